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

// builtCommits are commits of hermes, each one built, the oldest first.
func builtCommits(b *bed, c *testClient, n int) []string {
	b.Helper()
	var commits []string
	for i := range n {
		commits = append(commits, b.template("hermes", files{"Dockerfile": {Text: plain + strings.Repeat("#\n", i)}}))
		c.ensure("hermes")
		// Images know their age in whole seconds.
		time.Sleep(1050 * time.Millisecond)
	}
	return commits
}

func TestPruneKeepsTheNewestTwoUnlessToldOtherwise(t *testing.T) {
	b := parallelBed(t)
	c := b.client()
	commits := builtCommits(b, c, 3)

	recent, err := c.Prune(t.Context(), PruneOptions{KeepPerRuntime: -1})
	if err != nil {
		t.Fatal(err)
	}
	for i, image := range recent.Images {
		if image.Action != PruneKept || i > 0 && image.Reason != "used or built within the last 10 minutes" {
			t.Errorf("what was built a moment ago: %+v", image)
		}
	}
	for _, tree := range recent.Trees {
		if tree.Action != PruneKept {
			t.Errorf("what was built a moment ago: %+v", tree)
		}
	}

	would, err := c.Prune(t.Context(), PruneOptions{KeepRecent: -1, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(b.engine.refsOf(t, b.isolation)); n != 4 || !would.DryRun {
		t.Errorf("after a dry run there are %d references, want 3 and latest: %+v", n, would)
	}
	did, err := c.Prune(t.Context(), PruneOptions{KeepRecent: -1})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(did.Images, would.Images, func(a, b PrunedImage) bool { return a.Ref == b.Ref && a.Action == b.Action && a.Reason == b.Reason }) {
		t.Errorf("it did %+v\nand had said %+v", did.Images, would.Images)
	}
	oldest := did.Images[2]
	if oldest.Ref != b.ref("hermes", commits[0]) || oldest.Action != PruneRemoved || oldest.CommitSHA != commits[0] || did.FreedBytes < oldest.OwnBytes {
		t.Errorf("the oldest image: %+v of %+v", oldest, did)
	}
	if age := time.Since(oldest.Created()); age < 0 || age > time.Hour {
		t.Errorf("it is %v old", age)
	}
	if _, err := os.Stat(b.tree("hermes", commits[0])); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its tree is still there: %v", err)
	}

	none, err := c.Prune(t.Context(), PruneOptions{KeepPerRuntime: -1, KeepRecent: -1})
	if err != nil {
		t.Fatal(err)
	}
	if len(none.Images) != 2 || none.Images[0].Action != PruneKept || none.Images[1].Action != PruneRemoved {
		t.Errorf("with none to be kept: %+v", none)
	}
	inventory, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(inventory.Images) != 1 || len(inventory.Trees) != 0 || !inventory.Images[0].Latest || inventory.Images[0].CommitSHA != commits[2] {
		t.Errorf("what is left: %+v", inventory)
	}
}

func TestPruneAndListOfTheEnvironment(t *testing.T) {
	b := newBed(t)
	b.setenv()
	commits := builtCommits(b, b.client(), 1)
	inventory, err := List(t.Context())
	if err != nil || len(inventory.Images) != 1 || inventory.Images[0].CommitSHA != commits[0] {
		t.Errorf("List: %+v, %v", inventory, err)
	}
	report, err := Prune(t.Context(), PruneOptions{})
	if err != nil || len(report.Images) != 1 || report.Images[0].Action != PruneKept {
		t.Errorf("Prune: %+v, %v", report, err)
	}
}

func TestWhatTakesItsTimeEndsWithItsContext(t *testing.T) {
	b := parallelBed(t)
	c := b.client()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Prune(ctx, PruneOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context: %v", err)
	}
	// An engine that takes the connection and says nothing.
	silent := listenAndSayNothing(t)
	c = b.client(func(o *Options) { o.DockerHost = silent })
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begun := time.Now()
	_, err := c.List(ctx)
	if took := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || took > 200*time.Millisecond+atOnce {
		t.Errorf("after %v: %v", took, err)
	}
	var e *Error
	if !errors.As(err, &e) || e.Runtime != "" || strings.Contains(e.Message, "runtime") {
		t.Errorf("it names a runtime: %+v", e)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Prune(t.Context(), PruneOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// listenAndSayNothing is the address of an engine that accepts connections and never answers.
func listenAndSayNothing(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "engine.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return "unix://" + path
}

func TestDiagnose(t *testing.T) {
	b := newBed(t)
	b.setenv()
	sha := b.template("hermes", dockerfile(plain))
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
	if c := byName["engine"]; c.Status != CheckOK || !strings.Contains(c.Found, b.engine.url) {
		t.Errorf("%+v", c)
	}
	if c := byName["hermes"]; c.Status != CheckOK || !strings.Contains(c.Found, sha[:12]) {
		t.Errorf("%+v", c)
	}

	broken := b.client(func(o *Options) {
		o.DockerHost, o.RepoPrefix = "unix:///nowhere/docker.sock", "http://127.0.0.1:1/org/tpl-"
	})
	report, err = broken.Diagnose(t.Context())
	if err != nil || report.Status != CheckProblem {
		t.Errorf("where nothing works: %+v, %v", report, err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	silent := listenAndSayNothing(t)
	slow := b.client(func(o *Options) { o.DockerHost = silent })
	begun := time.Now()
	report, err = slow.Diagnose(ctx)
	// The report comes before the deadline, with what does not answer as a problem.
	if took := time.Since(begun); err != nil || report.Status != CheckProblem || took > 200*time.Millisecond+atOnce {
		t.Errorf("after %v: %+v, %v", took, report, err)
	}
}

func TestBuildLogAndMetrics(t *testing.T) {
	b := newBed(t)
	b.setenv()
	c := b.client()
	if _, err := c.BuildLog(t.Context(), "hermes"); !errors.Is(err, ErrCache) {
		t.Errorf("before a build: %v", err)
	}
	if _, err := c.BuildLog(t.Context(), "cobol"); !errors.Is(err, ErrUnknownRuntime) {
		t.Errorf("an unknown runtime: %v", err)
	}
	b.template("hermes", dockerfile(plain))
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
	if steps := found.StepDurations["lookup"]; steps.Count != 2 || steps.SumSeconds <= 0 || len(steps.Buckets) == 0 {
		t.Errorf("lookups: %+v", steps)
	}
	if _, err := EnsureLocalImage(t.Context(), "hermes"); err != nil {
		t.Fatal(err)
	}
	if shared, err := Metrics(); err != nil || shared.Hits != 1 || shared.Calls["ok"] != 1 {
		t.Errorf("of the environment's client: %+v, %v", shared, err)
	}
	for _, e := range c.events {
		if (e.Span == "") != (e.Kind == EventWarning) {
			t.Errorf("%s is in the span %q", e.Kind, e.Span)
		}
	}
	_ = c.Close()
	if _, err := c.Metrics(); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
