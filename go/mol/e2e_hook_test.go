//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The functions of a server's Start hook, which has no client: what they log, and where they find things.

// logInto has the hook log to a buffer for the time of the test, from Info up, without the times.
func logInto(t *testing.T) *bytes.Buffer {
	t.Helper()
	said := new(bytes.Buffer)
	withoutTime := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == "duration" {
			return slog.Attr{}
		}
		return a
	}
	SetLogger(slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{ReplaceAttr: withoutTime})))
	t.Cleanup(func() { SetLogger(nil) })
	return said
}

// inOrder checks that a text has these parts, one after the other.
func inOrder(t *testing.T, text string, parts ...string) {
	t.Helper()
	rest := text
	for _, part := range parts {
		_, after, found := strings.Cut(rest, part)
		if !found {
			t.Fatalf("%q is not there, or not in its place:\n%s", part, text)
		}
		rest = after
	}
}

func TestTheHookLogsLookupMissFetchBuildAndResult(t *testing.T) {
	b, sha := envBed(t)
	said := logInto(t)
	ref, err := EnsureLocalImage(t.Context(), "hermes")
	if err != nil || ref != b.ref("hermes", sha) {
		t.Fatalf("got %q and %v", ref, err)
	}
	inOrder(t, said.String(), "kind=lookup_done", "commit_sha="+sha, "kind=cache_miss", "kind=fetch_started",
		"kind=fetch_done", "kind=build_started", "kind=tagged", `msg="the workspace image is ready"`, "ref="+ref,
		"cache_hit=false")

	said.Reset()
	if _, err := EnsureLocalImage(t.Context(), "hermes"); err != nil {
		t.Fatal(err)
	}
	inOrder(t, said.String(), "kind=lookup_done", "kind=cache_hit", `msg="the workspace image is ready"`, "cache_hit=true")
	if strings.Contains(said.String(), "WARN") {
		t.Errorf("there is a warning:\n%s", said)
	}
}

func TestTheHookLogsAFailureAsAWarningWithoutSecrets(t *testing.T) {
	b, _ := envBed(t, "--token", plainToken)
	t.Setenv("MOLECULE_GITEA_TOKEN", "another-"+plainToken)
	said := logInto(t)
	if _, err := EnsureLocalImage(t.Context(), "hermes"); !errors.Is(err, ErrAuth) {
		t.Fatalf("got %v", err)
	}
	inOrder(t, said.String(), "level=WARN", "there is no workspace image", "runtime=hermes", "code=auth",
		"url="+b.server.RepoPrefix+"hermes", "hint=")
	if strings.Contains(said.String(), plainToken) {
		t.Errorf("the token is in the log:\n%s", said)
	}
	said.Reset()
	if _, err := EnsureLocalImage(t.Context(), "hermse"); !errors.Is(err, ErrUnknownRuntime) {
		t.Fatalf("got %v", err)
	}
	inOrder(t, said.String(), "level=WARN", `unknown runtime \"hermse\"`, "code=unknown_runtime", "did you mean hermes?")
}

// The logger that counts is the one of the moment, also for a client that is older.
func TestSetLoggerHoldsForCallsThatAreRunning(t *testing.T) {
	b, _ := envBed(t)
	b.template("hermes", dockerfile("FROM "+busybox+"\nRUN echo "+unique()+"; sleep 2\n"))
	first := logInto(t)
	done := make(chan error, 1)
	go func() {
		_, err := EnsureLocalImage(context.Background(), "hermes")
		done <- err
	}()
	until(t, "the build has begun", func() bool { return b.server.requests(b).fetches() > 0 })
	second := logInto(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	inOrder(t, second.String(), "kind=tagged", "the workspace image is ready")
	if strings.Contains(first.String(), "is ready") {
		t.Errorf("the old logger got the result:\n%s", first)
	}
}

// Without SetLogger it is slog's default, as it is at that moment.
func TestTheHookLogsToTheDefaultLogger(t *testing.T) {
	envBed(t)
	chosen := chosenLogger.Swap(nil)
	t.Cleanup(func() { chosenLogger.Store(chosen) })
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	said := new(bytes.Buffer)
	slog.SetDefault(slog.New(slog.NewTextHandler(said, nil)))
	if _, err := EnsureLocalImage(t.Context(), "hermes"); err != nil {
		t.Fatal(err)
	}
	inOrder(t, said.String(), "kind=build_started", "the workspace image is ready")
}

func TestARelativeCacheFolderStaysWhereTheFirstCallFoundIt(t *testing.T) {
	b, sha := envBed(t)
	first, err := firstWorkingDirectory()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Rel(first, b.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("MOLECULE_LOCAL_BUILD_CACHE", filepath.Join(dir, "relative"))
	t.Chdir(t.TempDir())
	if _, err := EnsureLocalImage(t.Context(), "hermes"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "relative", "hermes", sha[:12])); err != nil {
		t.Error(err)
	}
}

func TestARelativeCacheFolderOfAClientBeginsAtTheWorkingDirectoryAndDoctorShowsItWhole(t *testing.T) {
	b := newBed(t)
	sha := b.template("hermes", dockerfile(plain))
	dir := t.TempDir()
	t.Chdir(dir)
	c := b.client(func(o *Options) { o.CacheDir = "here" })
	t.Chdir(t.TempDir())
	c.ensure("hermes")
	if _, err := os.Stat(filepath.Join(dir, "here", "hermes", sha[:12])); err != nil {
		t.Error(err)
	}
	found, err := c.Diagnose(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range found.Checks {
		if check.Name == "cache" {
			says(t, check.Found, filepath.Join(dir, "here"))
		}
	}
}

func TestEngineHostIsWhereTheImagesAre(t *testing.T) {
	b, _ := envBed(t)
	host, err := EngineHost(t.Context())
	if err != nil || host != b.engine.url {
		t.Errorf("got %q and %v", host, err)
	}
	t.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
	if host, err := EngineHost(t.Context()); host != "" || !errors.Is(err, ErrEngineUnreachable) {
		t.Errorf("got %q and %v", host, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := EngineHost(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
