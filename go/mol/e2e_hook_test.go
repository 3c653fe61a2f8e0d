//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The functions without a Client, as a server's Start hook uses them: results, logs and folders.

// logToBuffer makes the hook log to a buffer until the end of the test, from level Info, without times.
func logToBuffer(t *testing.T) *bytes.Buffer {
	t.Helper()
	log := new(bytes.Buffer)
	withoutTime := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == "duration" {
			return slog.Attr{}
		}
		return a
	}
	SetLogger(slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{ReplaceAttr: withoutTime})))
	t.Cleanup(func() { SetLogger(nil) })
	return log
}

// containsInOrder checks that a text contains these parts, one after the other.
func containsInOrder(t *testing.T, text string, parts ...string) {
	t.Helper()
	rest := text
	for _, part := range parts {
		_, after, found := strings.Cut(rest, part)
		if !found {
			t.Fatalf("%q is missing, or not in its place:\n%s", part, text)
		}
		rest = after
	}
}

func TestTheHookReturnsTheReferenceAndLogsEveryStep(t *testing.T) {
	env, sha := environTestEnv(t)
	log := logToBuffer(t)
	ref, err := EnsureLocalImage(t.Context(), "hermes")
	if err != nil || ref != env.ref("hermes", sha) || ref != LocalImageTag("hermes", sha) {
		t.Fatalf("got %q and %v", ref, err)
	}
	if latest := LocalImageLatestTag("hermes"); env.engine.imageID(t, latest) == "" {
		t.Errorf("the engine has no %s", latest)
	}
	containsInOrder(t, log.String(), "kind=lookup_done", "commit_sha="+sha, "kind=cache_miss", "kind=fetch_started",
		"kind=fetch_done", "kind=build_started", "kind=tagged", `msg="the workspace image is ready"`, "ref="+ref,
		"cache_hit=false")

	log.Reset()
	if _, err := EnsureLocalImage(t.Context(), "hermes"); err != nil {
		t.Fatal(err)
	}
	containsInOrder(t, log.String(), "kind=lookup_done", "kind=cache_hit", `msg="the workspace image is ready"`, "cache_hit=true")
	if strings.Contains(log.String(), "WARN") {
		t.Errorf("there is a warning:\n%s", log)
	}
}

func TestTheHookLogsAFailureAsAWarningWithoutTheToken(t *testing.T) {
	const token = "7f3c0b5e9d2a4f6188c1e0b7a6d5943210fedcba"
	env, _ := environTestEnv(t, "--token", "another-"+token)
	t.Setenv("MOLECULE_GITEA_TOKEN", token)
	log := logToBuffer(t)
	if _, err := EnsureLocalImage(t.Context(), "hermes"); !errors.Is(err, ErrAuth) {
		t.Fatalf("got %v", err)
	}
	containsInOrder(t, log.String(), "level=WARN", "there is no workspace image", "runtime=hermes", "code=auth",
		"url="+env.server.RepoPrefix+"hermes", "hint=")
	if strings.Contains(log.String(), token) {
		t.Errorf("the token is in the log:\n%s", log)
	}
	log.Reset()
	if _, err := EnsureLocalImage(t.Context(), "hermse"); !errors.Is(err, ErrUnknownRuntime) {
		t.Fatalf("got %v", err)
	}
	containsInOrder(t, log.String(), "level=WARN", `unknown runtime \"hermse\"`, "code=unknown_runtime", "did you mean hermes?")
}

func TestSetLoggerAppliesToRunningCalls(t *testing.T) {
	env, _ := environTestEnv(t)
	env.commit("hermes", dockerfile("FROM "+busybox+"\nRUN echo "+uniqueWord()+"; sleep 2\n"))
	first := logToBuffer(t)
	done := make(chan error, 1)
	go func() {
		_, err := EnsureLocalImage(context.Background(), "hermes")
		done <- err
	}()
	eventually(t, "the fetch has begun", func() bool { return env.server.fetches(t) > 0 })
	second := logToBuffer(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	containsInOrder(t, second.String(), "kind=tagged", "the workspace image is ready")
	if strings.Contains(first.String(), "is ready") {
		t.Errorf("the old logger got the result:\n%s", first)
	}
}

// slog's default logger is read at each record.
func TestWithoutSetLoggerTheHookLogsToTheDefaultLogger(t *testing.T) {
	environTestEnv(t)
	chosen := chosenLogger.Swap(nil)
	t.Cleanup(func() { chosenLogger.Store(chosen) })
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	log := new(bytes.Buffer)
	slog.SetDefault(slog.New(slog.NewTextHandler(log, nil)))
	if _, err := EnsureLocalImage(t.Context(), "hermes"); err != nil {
		t.Fatal(err)
	}
	containsInOrder(t, log.String(), "kind=build_started", "the workspace image is ready")
}

func TestARelativeCacheFolderOfTheHookIgnoresLaterChdir(t *testing.T) {
	env, sha := environTestEnv(t)
	first, err := firstWorkingDirectory()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Rel(first, env.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("MOLECULE_LOCAL_BUILD_CACHE", filepath.Join(dir, "relative"))
	t.Chdir(t.TempDir())
	if _, err := EnsureLocalImage(t.Context(), "hermes"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(env.dir, "relative", "hermes", sha[:12])); err != nil {
		t.Error(err)
	}
}

func TestARelativeCacheFolderOfAClientIgnoresLaterChdir(t *testing.T) {
	env := newTestEnv(t)
	sha := env.commit("hermes", dockerfile(plain))
	dir := t.TempDir()
	t.Chdir(dir)
	c := env.client(func(o *Options) { o.CacheDir = "here" })
	t.Chdir(t.TempDir())
	c.ensure("hermes")
	if _, err := os.Stat(filepath.Join(dir, "here", "hermes", sha[:12])); err != nil {
		t.Error(err)
	}
	found, err := c.Diagnose(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(found.Checks, func(c Check) bool { return c.Name == "cache" })
	if i < 0 {
		t.Fatalf("no check of the cache: %+v", found.Checks)
	}
	mustContain(t, found.Checks[i].Found, filepath.Join(dir, "here"))
}

func TestEngineHostReturnsTheEngineInUse(t *testing.T) {
	env, _ := environTestEnv(t)
	host, err := EngineHost(t.Context())
	if err != nil || host != env.engine.url {
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
