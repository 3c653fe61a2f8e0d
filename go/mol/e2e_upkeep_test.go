//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPruneAndListReturnTypedReports(t *testing.T) {
	env := parallelTestEnv(t)
	c := env.client()
	var commits []string
	for i := range 2 {
		commits = append(commits, env.commit("hermes", files{"Dockerfile": {Text: plain + strings.Repeat("#\n", i)}}))
		c.ensure("hermes")
		// The engine stores the age of an image in whole seconds.
		time.Sleep(1050 * time.Millisecond)
	}

	recent, err := c.Prune(t.Context(), PruneOptions{KeepPerRuntime: -1})
	if err != nil {
		t.Fatal(err)
	}
	if len(recent.Images) != 2 || len(recent.Trees) != 2 || recent.Images[1].Reason != "used or built within the last 10 minutes" {
		t.Errorf("got %+v", recent)
	}
	for _, image := range recent.Images {
		if image.Action != PruneKept {
			t.Errorf("a recent image: %+v", image)
		}
	}
	for _, tree := range recent.Trees {
		if tree.Action != PruneKept {
			t.Errorf("a recent tree: %+v", tree)
		}
	}

	would, err := c.Prune(t.Context(), PruneOptions{KeepPerRuntime: 1, KeepRecent: -1, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(env.engine.refs(t, env.isolation)); n != 3 || !would.DryRun {
		t.Errorf("after a dry run there are %d references, want two and latest: %+v", n, would)
	}
	did, err := c.Prune(t.Context(), PruneOptions{KeepPerRuntime: 1, KeepRecent: -1})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(did.Images, would.Images, func(a, b PrunedImage) bool { return a.Ref == b.Ref && a.Action == b.Action && a.Reason == b.Reason }) {
		t.Errorf("removed    %+v\nin the dry run %+v", did.Images, would.Images)
	}
	oldest := did.Images[1]
	if oldest.Ref != env.ref("hermes", commits[0]) || oldest.Action != PruneRemoved || oldest.CommitSHA != commits[0] || did.FreedBytes < oldest.OwnBytes {
		t.Errorf("the oldest image: %+v of %+v", oldest, did)
	}
	if age := time.Since(oldest.Created()); age < 0 || age > time.Hour {
		t.Errorf("the age of the oldest image is %v", age)
	}
	if _, err := os.Stat(env.tree("hermes", commits[0])); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its tree still exists: %v", err)
	}

	inventory, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(inventory.Images) != 1 || len(inventory.Trees) != 1 || !inventory.Images[0].Latest || inventory.Images[0].CommitSHA != commits[1] {
		t.Errorf("the inventory after Prune: %+v", inventory)
	}
}

func TestPruneAndListUseTheEnvironment(t *testing.T) {
	env, sha := environTestEnv(t)
	env.client().ensure("hermes")
	inventory, err := List(t.Context())
	if err != nil || len(inventory.Images) != 1 || inventory.Images[0].CommitSHA != sha {
		t.Errorf("List: %+v, %v", inventory, err)
	}
	report, err := Prune(t.Context(), PruneOptions{})
	if err != nil || len(report.Images) != 1 || report.Images[0].Action != PruneKept {
		t.Errorf("Prune: %+v, %v", report, err)
	}
}

func TestPruneAndListEndWithTheirContext(t *testing.T) {
	env := parallelTestEnv(t)
	c := env.client()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Prune(ctx, PruneOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context: %v", err)
	}
	silent := silentEngine(t)
	c = env.client(func(o *Options) { o.DockerHost = silent })
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begun := time.Now()
	_, err := c.List(ctx)
	if took := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || took > 200*time.Millisecond+cancelLimit {
		t.Errorf("after %v: %v", took, err)
	}
	var e *Error
	if !errors.As(err, &e) || e.Runtime != "" || strings.Contains(e.Message, "runtime") {
		t.Errorf("the error names a runtime: %+v", e)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Prune(t.Context(), PruneOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// silentEngine returns the address of an engine that accepts connections and never answers.
func silentEngine(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "engine.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return "unix://" + path
}

func TestDiagnoseReturnsATypedReport(t *testing.T) {
	env, sha := environTestEnv(t)
	report, err := Diagnose(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]Check{}
	for _, check := range report.Checks {
		byName[check.Name] = check
		if (check.Fix == "") != (check.Status == CheckOK) {
			t.Errorf("%+v", check)
		}
	}
	if c := byName["engine"]; c.Status != CheckOK || !strings.Contains(c.Found, env.engine.url) {
		t.Errorf("%+v", c)
	}
	if c := byName["hermes"]; c.Status != CheckOK || !strings.Contains(c.Found, sha[:12]) {
		t.Errorf("%+v", c)
	}

	broken := env.client(func(o *Options) {
		o.DockerHost, o.RepoPrefix = "unix:///nowhere/docker.sock", "http://127.0.0.1:1/org/tpl-"
	})
	report, err = broken.Diagnose(t.Context())
	if err != nil || report.Status != CheckProblem {
		t.Errorf("without a server and an engine: %+v, %v", report, err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	silent := silentEngine(t)
	slow := env.client(func(o *Options) { o.DockerHost = silent })
	begun := time.Now()
	report, err = slow.Diagnose(ctx)
	// The report comes in time; an engine that does not answer is a problem in it.
	if took := time.Since(begun); err != nil || report.Status != CheckProblem || took > 200*time.Millisecond+cancelLimit {
		t.Errorf("after %v: %+v, %v", took, report, err)
	}
}

func TestBuildLogAndMetricsReturnTypedReports(t *testing.T) {
	env := newTestEnv(t)
	env.setVariables()
	c := env.client()
	if _, err := c.BuildLog(t.Context(), "hermes"); !errors.Is(err, ErrCache) {
		t.Errorf("before a build: %v", err)
	}
	if _, err := c.BuildLog(t.Context(), "cobol"); !errors.Is(err, ErrUnknownRuntime) {
		t.Errorf("an unknown runtime: %v", err)
	}
	env.commit("hermes", dockerfile(plain))
	c.ensure("hermes")
	c.ensure("hermes")
	log, err := c.BuildLog(t.Context(), "hermes")
	if err != nil || log.Runtime != "hermes" || !strings.HasSuffix(log.Text, " done\n") || time.Since(log.Ended()) > time.Hour {
		t.Errorf("%+v, %v", log, err)
	}

	found, err := c.Metrics()
	if err != nil || found.Calls["ok"] != 2 || found.Builds["ok"] != 1 || found.Hits != 1 || found.Misses != 1 || found.InProgress != 0 {
		t.Errorf("%+v, %v", found, err)
	}
	if node := found.NodeBuilds["engine"]; len(found.NodeBuilds) != 1 || node["ok"] != 1 || found.NodeBuildsInProgress["engine"] != 0 {
		t.Errorf("builds of nodes: %v, in progress: %v", found.NodeBuilds, found.NodeBuildsInProgress)
	}
	if steps := found.StepDurations["lookup"]; steps.Count != 2 || steps.SumSeconds <= 0 || len(steps.Buckets) == 0 {
		t.Errorf("lookups: %+v", steps)
	}
	if _, err := EnsureLocalImage(t.Context(), "hermes"); err != nil {
		t.Fatal(err)
	}
	if shared, err := Metrics(); err != nil || shared.Hits != 1 || shared.Calls["ok"] != 1 {
		t.Errorf("the client of the environment: %+v, %v", shared, err)
	}
	_ = c.Close()
	if _, err := c.Metrics(); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
