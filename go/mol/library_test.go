//go:build cgo && ((linux && (amd64 || arm64)) || darwin)

package mol

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// These tests use the real library and need no container engine.

// realClient returns a client without an engine, whose folders are those of the test.
func realClient(t *testing.T, repoPrefix string, change func(*Options)) *Client {
	t.Helper()
	clearEnv(t)
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	o := Options{
		RepoPrefix: repoPrefix,
		CacheDir:   dir + "/cache",
		DockerHost: "unix://" + dir + "/no-engine.sock",
	}
	if change != nil {
		change(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// gitea starts a server with this handler and returns the prefix of its repositories.
func gitea(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.URL + "/org/tpl-"
}

// silentGitea accepts requests and never answers. It counts the requests, and those that the client has ended.
func silentGitea(t *testing.T) (prefix string, received, ended *atomic.Int32) {
	t.Helper()
	received, ended = new(atomic.Int32), new(atomic.Int32)
	prefix = gitea(t, func(_ http.ResponseWriter, r *http.Request) {
		received.Add(1)
		<-r.Context().Done()
		ended.Add(1)
	})
	return prefix, received, ended
}

func TestTheLibraryHasTheABIVersionOfThisPackage(t *testing.T) {
	if errABI != nil {
		t.Fatal(errABI)
	}
}

func TestNewMakesNoRequest(t *testing.T) {
	var connections, requests atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) }))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	c := realClient(t, server.URL+"/org/tpl-", func(o *Options) { o.DockerHost = "tcp://" + server.Listener.Addr().String() })
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if connections.Load() != 0 || requests.Load() != 0 {
		t.Errorf("%d connections, %d requests", connections.Load(), requests.Load())
	}
}

func TestAnInvalidOptionIsRefusedByNameWithoutSecrets(t *testing.T) {
	clearEnv(t)
	t.Setenv("HOME", t.TempDir())
	for name, o := range map[string]Options{
		"MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX": {RepoPrefix: "https://u:hunter2@host/org/tpl-"},
		"MOLECULE_LOCAL_TEMPLATE_BRANCH":      {Branch: "a..b"},
		"MOLECULE_GITEA_TOKEN":                {Token: "hunter2 and more"},
		"MOLECULE_IMAGE_PLATFORM":             {Platform: "amd64"},
		"MOLECULE_LOCAL_IMAGE_ISOLATION":      {Isolation: "Not A Tag"},
		"MOLECULE_LOCAL_BUILDER_CA":           {Builder: "unix:///run/b.sock", BuilderTLS: BuilderTLS{CA: "/ca.pem"}},
		"MOLECULE_LOCAL_BUILDER_KEY":          {Builder: "tcp://b:1", BuilderTLS: BuilderTLS{CA: "/ca.pem", Key: "/key.pem"}},
		"MOLECULE_LOCAL_BUILDER_SERVER_NAME":  {Builder: "tcp://b:1", BuilderTLS: BuilderTLS{ServerName: "b.example"}},
		"MOLECULE_LOCAL_SHARED_CACHE is":      {SharedCache: "https://registry.example/cache"},
		"MOLECULE_LOCAL_SHARED_CACHE_MODE":    {SharedCache: "registry.example/cache", SharedCacheMode: "always"},
		"SHARED_CACHE_MODE is rw, but":        {SharedCacheMode: SharedCacheReadWrite},
		"Runtimes":                            {Runtimes: []string{}},
		"option runtimes":                     {Runtimes: []string{"hermes", "Hermes"}},
		"option tag_arch":                     {TagArch: "sometimes"},
		"option pins":                         {Pins: map[string]string{"hermes": "main"}},
	} {
		c, err := New(o)
		var e *Error
		if c != nil || !errors.Is(err, ErrInvalidOption) || !errors.As(err, &e) || e.Hint == "" {
			t.Fatalf("%s: got %v", name, err)
		}
		if text := err.Error(); !strings.Contains(text, name) || strings.Contains(text, "hunter2") {
			t.Errorf("%s: got %q", name, text)
		}
	}
}

func TestDurationsReachTheLibraryInItsSyntax(t *testing.T) {
	clearEnv(t)
	t.Setenv("HOME", t.TempDir())
	for _, d := range []time.Duration{1, time.Millisecond, time.Second + 1, time.Minute + 500*time.Millisecond, time.Hour, longestDuration} {
		c, err := New(Options{StallGrace: d, Ceiling: d})
		if err != nil {
			t.Errorf("%v: %v", d, err)
			continue
		}
		_ = c.Close()
	}
	for _, d := range []time.Duration{-1, -time.Hour, longestDuration + 1, math.MaxInt64, math.MinInt64} {
		for _, o := range []Options{{StallGrace: d}, {Ceiling: d}} {
			_, err := New(o)
			if !errors.Is(err, ErrInvalidOption) || !strings.Contains(err.Error(), strconv.Quote(d.String())) {
				t.Errorf("%v: got %v", o, err)
			}
		}
	}
}

func TestAnInvalidVariableIsRefusedAndNotIgnored(t *testing.T) {
	for _, c := range []struct{ name, value string }{
		{"MOLECULE_BUILD_STALL_GRACE_S", "soon"}, {"MOLECULE_BUILD_STALL_GRACE_S", "0"},
		{"MOLECULE_BUILD_CEILING_S", "-1"}, {"MOLECULE_BUILD_CEILING_S", "99999999999999999999"},
		{"MOLECULE_BUILD_CEILING_S", " "}, {"MOLECULE_LOCAL_OFFLINE", "perhaps"},
		{"MOLECULE_LOCAL_RUNTIME_VERSION_PIN", " 1"}, {"MOLECULE_LOCAL_IMAGE_ISOLATION", "a b"},
		{"MOLECULE_IMAGE_PLATFORM", "linux/amd64 "}, {"MOLECULE_LOCAL_BUILD_CACHE", "\xff"},
		{"MOLECULE_LOCAL_BUILD_CACHE", "~/cache"}, {"MOLECULE_BUILD_MEMORY_MIB", "1"},
		{"MOLECULE_LOCAL_BUILDER_CERT", "/cert.pem"},
		{"MOLECULE_LOCAL_SHARED_CACHE", "team/cache"}, {"MOLECULE_LOCAL_SHARED_CACHE_MODE", "r"},
	} {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			clearEnv(t)
			t.Setenv("HOME", t.TempDir())
			t.Setenv(c.name, c.value)
			ref, err := EnsureLocalImage(context.Background(), "hermes")
			if ref != "" || !errors.Is(err, ErrInvalidOption) {
				t.Errorf("got %q and %v", ref, err)
			}
		})
	}
}

func TestAnUnknownRuntimeIsRefusedByTheLibraryAtOnce(t *testing.T) {
	var requests atomic.Int32
	prefix := gitea(t, func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		http.NotFound(w, nil)
	})
	var cache string
	c := realClient(t, prefix, func(o *Options) {
		o.Token, cache = testToken, o.CacheDir
		o.OnEvent = func(e Event) { t.Errorf("got the event %+v", e) }
	})
	for name, call := range callsOfRuntimes {
		t.Run(name, func(t *testing.T) {
			for _, runtime := range unknownNames(testToken) {
				refusesUnknown(t, call(c, context.Background(), runtime), testToken)
			}
		})
	}
	if _, err := os.Stat(cache); !errors.Is(err, fs.ErrNotExist) || requests.Load() != 0 {
		t.Errorf("%d requests; the cache folder: %v", requests.Load(), err)
	}
}

func TestTheAllowlistOfAClientIsThatOfItsOptions(t *testing.T) {
	prefix := gitea(t, func(w http.ResponseWriter, _ *http.Request) { http.NotFound(w, nil) })
	runtimes := []string{"zeta", "google-adk"}
	c := realClient(t, prefix, func(o *Options) { o.Runtimes = runtimes })
	runtimes[0] = "hermes" // the client has a copy
	if _, err := c.EnsureLocalImage(context.Background(), "zeta"); !errors.Is(err, ErrRepoNotFound) {
		t.Errorf("got %v", err)
	}
	_, err := c.EnsureLocalImage(context.Background(), "hermes")
	if want := (Options{Runtimes: []string{"zeta", "google-adk"}}).CheckRuntime("hermes"); err == nil || err.Error() != want.Error() {
		t.Errorf("got %v, want %v", err, want)
	}
}

func TestACancelledContextStopsTheLookup(t *testing.T) {
	prefix, received, ended := silentGitea(t)
	c := realClient(t, prefix, nil)
	cause := errors.New("the workspace was deleted")
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := c.EnsureLocalImage(ctx, "hermes")
		done <- err
	}()
	eventually(t, "gitea got a request", func() bool { return received.Load() > 0 })
	start := time.Now()
	cancel(cause)
	err := <-done
	if took := time.Since(start); !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || took > 2*time.Second {
		t.Errorf("got %v after %v", err, took)
	}
	eventually(t, "the library ended its request", func() bool { return ended.Load() == received.Load() })
}

func TestADeadlineEndsTheLookup(t *testing.T) {
	prefix, _, _ := silentGitea(t)
	c := realClient(t, prefix, nil)
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err := c.EnsureLocalImage(ctx, "hermes")
	if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took < 300*time.Millisecond || took > 2*time.Second {
		t.Errorf("got %v after %v", err, took)
	}
}

func TestCloseStopsTheLookup(t *testing.T) {
	prefix, received, _ := silentGitea(t)
	c := realClient(t, prefix, nil)
	done := make(chan error, 1)
	go func() {
		_, err := c.EnsureLocalImage(context.Background(), "hermes")
		done <- err
	}()
	eventually(t, "gitea got a request", func() bool { return received.Load() > 0 })
	start := time.Now()
	_ = c.Close()
	if err := <-done; !errors.Is(err, ErrClosed) || time.Since(start) > 2*time.Second {
		t.Errorf("got %v after %v", err, time.Since(start))
	}
}

func TestEventsReportTheRequest(t *testing.T) {
	prefix := gitea(t, func(w http.ResponseWriter, _ *http.Request) { http.NotFound(w, nil) })
	var events []Event
	c := realClient(t, prefix, func(o *Options) { o.OnEvent = func(e Event) { events = append(events, e) } })
	_, err := c.EnsureLocalImage(context.Background(), "hermes")
	if !errors.Is(err, ErrRepoNotFound) {
		t.Errorf("got %v", err)
	}
	if len(events) == 0 {
		t.Fatal("want events before the call returns")
	}
	e := events[0]
	if e.Kind != EventLookupStarted || e.Runtime != "hermes" || e.Call == 0 || e.URL != prefix+"hermes" ||
		e.Message == "" || time.Since(e.Time).Abs() > time.Minute {
		t.Errorf("got %+v", e)
	}
}

// threads counts the threads of the process; where there is no /proc, those of Go.
func threads() int {
	if tasks, err := os.ReadDir("/proc/self/task"); err == nil {
		return len(tasks)
	}
	return pprof.Lookup("threadcreate").Count()
}

func TestTenThousandWaitingCallsUseFewThreads(t *testing.T) {
	prefix, received, _ := silentGitea(t)
	c := realClient(t, prefix, nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	before := threads()
	const calls = 10_000
	var returned atomic.Int32
	var wg group
	for range calls {
		wg.run(func() {
			_, err := c.EnsureLocalImage(ctx, "hermes")
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			returned.Add(1)
		})
	}
	eventually(t, "all calls wait", func() bool {
		c.inner.mu.Lock()
		defer c.inner.mu.Unlock()
		return len(c.inner.waiting) == calls
	})
	eventually(t, "gitea got a request", func() bool { return received.Load() > 0 })
	start := time.Now()
	cancel()
	wg.Wait()
	if took := time.Since(start); took > waitLimit {
		t.Errorf("%d calls took %v to return", returned.Load(), took)
	}
	if more := threads() - before; more > 64 {
		t.Errorf("%d new threads", more)
	}
	t.Logf("%d requests to gitea, %d new threads, all returned after %v", received.Load(), threads()-before, time.Since(start))
}

func TestTheHookReadsTheEnvironmentAtEachCall(t *testing.T) {
	clearEnv(t)
	t.Setenv("HOME", t.TempDir())
	t.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
	var requests [2]atomic.Int32
	for round := range 4 {
		i := round % 2
		prefix := gitea(t, func(w http.ResponseWriter, _ *http.Request) {
			requests[i].Add(1)
			http.NotFound(w, nil)
		})
		t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", prefix)
		t.Setenv("MOLECULE_LOCAL_TEMPLATE_BRANCH", "main")
		if ref, err := EnsureLocalImage(context.Background(), "hermes"); ref != "" || !errors.Is(err, ErrRepoNotFound) {
			t.Errorf("got %q and %v", ref, err)
		}
	}
	if requests[0].Load() != 2 || requests[1].Load() != 2 {
		t.Errorf("%d and %d requests, want 2 each", requests[0].Load(), requests[1].Load())
	}
}

// A server may be asked for its metrics before it starts the first workspace.
func TestEveryFunctionOfTheEnvironmentUsesOneClientThatLogs(t *testing.T) {
	clearEnv(t)
	t.Chdir(t.TempDir())
	t.Setenv("MOLECULE_LOCAL_BUILD_CACHE", "cache")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var first *sharedClient
	for _, function := range []struct {
		name string
		call func() error
	}{
		{"Metrics", func() error { _, err := Metrics(); return err }},
		{"List", func() error { _, err := List(ended); return err }},
		{"Prune", func() error { _, err := Prune(ended, PruneOptions{}); return err }},
		{"Diagnose", func() error { _, err := Diagnose(ended); return err }},
		{"EngineHost", func() error { _, err := EngineHost(ended); return err }},
	} {
		if err := function.call(); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", function.name, err)
		}
		sharedClients.mu.Lock()
		current := sharedClients.current
		sharedClients.mu.Unlock()
		if first == nil {
			first = current
		}
		if current != first {
			t.Errorf("%s uses another client", function.name)
		}
	}
	if first.inner.listener == nil {
		t.Error("the client does not log")
	}
}
