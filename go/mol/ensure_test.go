package mol

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// fakePool makes clients on fakeCores that answer at once, and remembers them.
func fakePool() (*clientPool, func() []*fakeCore) {
	var mu sync.Mutex
	var cores []*fakeCore
	pool := &clientPool{open: func(o Options) (*Client, error) {
		if o.Branch == "bad" {
			return nil, &Error{Code: CodeInvalidOption, Message: "bad branch"}
		}
		f := newFakeCore()
		mu.Lock()
		cores = append(cores, f)
		mu.Unlock()
		return &Client{startClient(f, nil, "")}, nil
	}}
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
	first, second := acquire("one"), acquire("one")
	other := acquire("two")
	if first.Client != second.Client || first.Client == other.Client {
		t.Fatal("the clients are not by environment")
	}
	pool.release(first)
	if cores()[0].frees.Load() != 0 {
		t.Fatal("closed under a call")
	}
	pool.release(second)
	eventually(t, "the old client is closed", func() bool { return cores()[0].frees.Load() == 1 })

	pool.release(other)
	third := acquire("three")
	eventually(t, "the unused client is closed", func() bool { return cores()[1].frees.Load() == 1 })
	pool.release(third)
	if cores()[2].frees.Load() != 0 {
		t.Error("the current client was closed")
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
	if ref, err := EnsureLocalImage(context.Background(), "unknown"); ref != "" || !errors.Is(err, ErrUnknownRuntime) {
		t.Errorf("got %q and %v", ref, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if ref, err := EnsureLocalImage(ctx, "hermes"); ref != "" || !errors.Is(err, context.Canceled) {
		t.Errorf("got %q and %v", ref, err)
	}
}
