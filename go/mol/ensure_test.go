package mol

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakePool returns a pool whose clients use a new fakeCore each, and a function that returns these. Clients close
// synchronously.
func fakePool() (*clientPool, func() []*fakeCore) {
	var mu sync.Mutex
	var cores []*fakeCore
	open := func(o Options) (*Client, error) {
		if o.Branch == "bad" {
			return nil, &Error{Code: CodeInvalidOption, Message: "bad branch"}
		}
		f := newFakeCore()
		mu.Lock()
		cores = append(cores, f)
		mu.Unlock()
		return &Client{startClient(f, nil, o)}, nil
	}
	pool := &clientPool{open: open, close: func(c *Client) { _ = c.Close() }}
	return pool, func() []*fakeCore {
		mu.Lock()
		defer mu.Unlock()
		return cores
	}
}

func TestCallsWithOneEnvironmentShareAClient(t *testing.T) {
	pool, cores := fakePool()
	var wg group
	for range 100 {
		wg.run(func() {
			c, err := pool.acquire(Options{Branch: "main"})
			if err != nil {
				t.Error(err)
				return
			}
			pool.release(c)
		})
	}
	wg.Wait()
	if n := len(cores()); n != 1 {
		t.Errorf("%d clients", n)
	}
	if n := cores()[0].frees.Load(); n != 0 {
		t.Error("the current client was closed")
	}
}

func TestANewEnvironmentGetsANewClientAndTheOldOneClosesAfterItsLastCall(t *testing.T) {
	pool, cores := fakePool()
	acquire := func(branch string) *sharedClient {
		t.Helper()
		c, err := pool.acquire(Options{Branch: branch})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	// wantFrees checks how often each client was freed.
	wantFrees := func(want ...int32) {
		t.Helper()
		var got []int32
		for _, core := range cores() {
			got = append(got, core.frees.Load())
		}
		if !slices.Equal(got, want) {
			t.Errorf("the clients were freed %v times, want %v", got, want)
		}
	}
	first, second := acquire("one"), acquire("one")
	other := acquire("two")
	if first.Client != second.Client || first.Client == other.Client {
		t.Fatal("want one client for each environment")
	}
	wantFrees(0, 0)
	pool.release(first)
	wantFrees(0, 0)
	pool.release(second)
	wantFrees(1, 0)

	pool.release(other)
	wantFrees(1, 0)
	third := acquire("three")
	wantFrees(1, 1, 0)
	pool.release(third)
	wantFrees(1, 1, 0)
}

// If a variable did not count, calls would use the client of an earlier environment.
func TestEveryVariableChangeMakesANewClient(t *testing.T) {
	clearEnv(t)
	for _, name := range everyVariable {
		if name == "MOLECULE_IMAGE_REGISTRY" { // only Resolve reads it
			continue
		}
		t.Run(name, func(t *testing.T) {
			pool, cores := fakePool()
			for _, value := range []string{"1", "2", "1"} {
				t.Setenv(name, value)
				c, err := pool.acquire(OptionsFromEnv())
				if err != nil {
					t.Fatal(err)
				}
				pool.release(c)
			}
			if n := len(cores()); n != 3 {
				t.Errorf("%d clients", n)
			}
		})
	}
}

func TestAnInvalidEnvironmentKeepsTheCurrentClient(t *testing.T) {
	pool, cores := fakePool()
	c, err := pool.acquire(Options{})
	if err != nil {
		t.Fatal(err)
	}
	pool.release(c)
	for range 3 {
		if _, err := pool.acquire(Options{Branch: "bad"}); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("got %v", err)
		}
	}
	second, err := pool.acquire(Options{})
	if err != nil || second.Client != c.Client || len(cores()) != 1 {
		t.Errorf("got %v, %d clients", err, len(cores()))
	}
}

func TestTheHookRefusesUnknownRuntimesWithoutAClient(t *testing.T) {
	clearEnv(t)
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_BRANCH", "a..b") // New would fail
	const token = "t0ken-in-a-name"
	t.Setenv("MOLECULE_GITEA_TOKEN", token)
	hookOpens(t, func(Options) (*Client, error) {
		t.Error("a client was made")
		return nil, ErrInternal
	})
	records := logRecords(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, name := range unknownNames(token) {
		for _, ctx := range []context.Context{context.Background(), ctx} {
			ref, err := EnsureLocalImage(ctx, name)
			if ref != "" {
				t.Errorf("got %q", ref)
			}
			refusesUnknown(t, err, token[:6])
			if log := records(); strings.Contains(log, token[:6]) || len(log) > 2000 || !strings.Contains(log, "code=unknown_runtime") {
				t.Errorf("got the log record %.3000s", log)
			}
		}
	}
	if ref, err := EnsureLocalImage(ctx, "hermes"); ref != "" || !errors.Is(err, context.Canceled) {
		t.Errorf("got %q and %v", ref, err)
	}
}

// hookOpens replaces the function with which the hook makes its clients, until the end of the test.
func hookOpens(t *testing.T, open func(Options) (*Client, error)) {
	t.Helper()
	before := sharedClients.open
	t.Cleanup(func() { sharedClients.open = before })
	sharedClients.open = open
}

// hookOn makes the hook use a fakeCore until the end of the test, with an environment of its own.
func hookOn(t *testing.T, f *fakeCore) {
	t.Helper()
	clearEnv(t)
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_BRANCH", t.Name())
	hookOpens(t, func(o Options) (*Client, error) { return &Client{startClient(f, newListener(f, o), o)}, nil })
}

// handlerFunc is a function as a slog.Handler.
type handlerFunc func(slog.Record)

func (h handlerFunc) Enabled(context.Context, slog.Level) bool      { return true }
func (h handlerFunc) WithAttrs([]slog.Attr) slog.Handler            { return h }
func (h handlerFunc) WithGroup(string) slog.Handler                 { return h }
func (h handlerFunc) Handle(_ context.Context, r slog.Record) error { h(r); return nil }

// logWith makes the hook log to a function until the end of the test.
func logWith(t *testing.T, handle handlerFunc) {
	t.Helper()
	chosen := chosenLogger.Load()
	t.Cleanup(func() { chosenLogger.Store(chosen) })
	SetLogger(slog.New(handle))
}

// logRecords keeps what the hook logs until the end of the test. The function waits for the next record.
func logRecords(t *testing.T) (next func() string) {
	t.Helper()
	records := make(chan string, 100)
	logWith(t, func(r slog.Record) {
		text := r.Level.String() + " " + r.Message
		r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
		records <- text
	})
	return func() string {
		t.Helper()
		select {
		case text := <-records:
			return text
		case <-time.After(waitLimit):
			t.Fatal("nothing was logged")
			return ""
		}
	}
}

func TestABlockedLoggerDoesNotDelayACancelledCall(t *testing.T) {
	f := newFakeCore()
	f.onStart = func(f *fakeCore, id uint64, name string) *Error {
		f.event(Event{Kind: EventBuildStarted, Call: id, Runtime: name})
		return nil
	}
	// The worst case: the library does not confirm the cancel.
	f.onCancel = func(*fakeCore, uint64) {}
	hookOn(t, f)
	release := make(chan struct{})
	defer close(release)
	logWith(t, func(slog.Record) { <-release })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		_, err := EnsureLocalImage(ctx, "hermes")
		ended <- err
	}()
	eventually(t, "the call is started", func() bool { return f.started() == 1 })
	cancel()
	start := time.Now()
	select {
	case err := <-ended:
		if took := time.Since(start); !errors.Is(err, context.Canceled) || cancelGrace+eventGrace >= time.Second || took > waitLimit {
			t.Errorf("got %v after %s", err, took)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the call did not return")
	}
}

func TestALoggerThatPanicsOrExitsChangesNoResult(t *testing.T) {
	for name, handle := range map[string]handlerFunc{
		"panics":             func(slog.Record) { panic("no disk") },
		"ends its goroutine": func(slog.Record) { runtime.Goexit() },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeCore()
			f.onStart = func(f *fakeCore, id uint64, _ string) *Error { f.succeed(id); return nil }
			hookOn(t, f)
			logWith(t, handle)
			if ref, err := EnsureLocalImage(context.Background(), "hermes"); ref != "image-of-call-1" || err != nil {
				t.Errorf("got %q and %v", ref, err)
			}
			if _, err := EnsureLocalImage(context.Background(), "unknown"); !errors.Is(err, ErrUnknownRuntime) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestTheResultOfACallIsLogged(t *testing.T) {
	records := logRecords(t)
	for _, c := range []struct {
		image Image
		err   error
		want  string
	}{
		{
			Image{Runtime: "hermes", Ref: "r", CacheHit: true, Timings: Timings{Total: time.Second}}, nil,
			"INFO the workspace image is ready runtime=hermes ref=r cache_hit=true duration=1s",
		},
		{
			Image{}, &Error{Code: CodeCanceled, Runtime: "hermes", Message: "the call was cancelled"},
			"INFO there is no workspace image: the call was cancelled runtime=hermes code=canceled",
		},
		{
			Image{}, &Error{Code: CodeDeadlineExceeded, Runtime: "hermes", Message: "too late", Hint: "allow more time"},
			"WARN there is no workspace image: too late runtime=hermes code=deadline_exceeded hint=allow more time",
		},
		{
			Image{}, &Error{Code: CodeBuildFailed, Runtime: "hermes", Message: "it failed", URL: "u", Step: "[1/2] RUN x"},
			"WARN there is no workspace image: it failed runtime=hermes code=build_failed url=u step=[1/2] RUN x",
		},
		{Image{}, &Error{Code: CodeInternal, Message: "no library"}, "WARN there is no workspace image: no library code=internal"},
		{Image{}, errors.New("something else"), "WARN there is no workspace image: something else code=internal"},
	} {
		logResult(c.image, c.err)
		if got := records(); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}
