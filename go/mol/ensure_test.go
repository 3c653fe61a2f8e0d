package mol

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
)

// fakePool makes clients on fakeCores that answer at once, and remembers them. They close before the pool's
// call returns.
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
		t.Error("the client was closed while it can still be used")
	}
}

func TestAnotherEnvironmentGetsAnotherClientAndTheOldOneClosesAfterItsLastCall(t *testing.T) {
	pool, cores := fakePool()
	acquire := func(branch string) *sharedClient {
		t.Helper()
		c, err := pool.acquire(Options{Branch: branch})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	// frees is how often each client was freed.
	frees := func(want ...int32) {
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
		t.Fatal("the clients are not by environment")
	}
	frees(0, 0)
	pool.release(first)
	frees(0, 0)
	pool.release(second)
	frees(1, 0)

	pool.release(other)
	frees(1, 0)
	third := acquire("three")
	frees(1, 1, 0)
	pool.release(third)
	frees(1, 1, 0)
}

// A variable that does not count would have calls use the client of an environment that is gone.
func TestEveryVariableHasAnotherClient(t *testing.T) {
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

func TestAnEnvironmentThatCannotBeUsedLeavesTheClientAlone(t *testing.T) {
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
	again, err := pool.acquire(Options{})
	if err != nil || again.Client != c.Client || len(cores()) != 1 {
		t.Errorf("got %v, %d clients", err, len(cores()))
	}
}

func TestThePackageLevelCallNeedsNoClientToRefuse(t *testing.T) {
	clearEnv(t)
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_BRANCH", "a..b") // New would fail
	const token = "t0ken-in-a-name"
	t.Setenv("MOLECULE_GITEA_TOKEN", token)
	open := sharedClients.open
	t.Cleanup(func() { sharedClients.open = open })
	sharedClients.open = func(Options) (*Client, error) {
		t.Error("a client was made")
		return nil, ErrInternal
	}
	var said strings.Builder
	chosen := chosenLogger.Load()
	t.Cleanup(func() { chosenLogger.Store(chosen) })
	SetLogger(slog.New(slog.NewTextHandler(&said, nil)))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, name := range unknownNames(token) {
		for _, ctx := range []context.Context{context.Background(), ctx} {
			said.Reset()
			ref, err := EnsureLocalImage(ctx, name)
			if ref != "" {
				t.Errorf("got %q", ref)
			}
			refusesUnknown(t, err, token[:6])
			if log := said.String(); strings.Contains(log, token[:6]) || len(log) > 2000 || !strings.Contains(log, "code=unknown_runtime") {
				t.Errorf("the log has %.3000s", log)
			}
		}
	}
	if ref, err := EnsureLocalImage(ctx, "hermes"); ref != "" || !errors.Is(err, context.Canceled) {
		t.Errorf("got %q and %v", ref, err)
	}
}
