//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// Contexts, goroutines and Close (promises P3 and P4). See library_test.go for those that need no engine.

// buildsForever makes a template whose build prints a word and does not end. The word is in the command line of the
// build's process.
func (env *TestEnv) buildsForever(runtime string) (word string) {
	env.Helper()
	word = uniqueWord()
	env.commit(runtime, dockerfile("FROM "+busybox+"\nRUN echo running "+word+"; sleep 600; true\n"))
	return word
}

// waitForBuild waits until the process of a build runs, on this machine.
func (c *testClient) waitForBuild(word string) {
	c.env.Helper()
	c.waitForLine(word)
	if !isRunning(word) {
		c.env.Fatal("the processes of the engine are not visible to the test")
	}
}

// mustStop checks that the process of a build ends within cancelLimit.
func (env *TestEnv) mustStop(word string, since time.Time) {
	env.Helper()
	eventually(env, "the process of the build ends", func() bool { return !isRunning(word) })
	if took := time.Since(since); took > cancelLimit {
		env.Errorf("the process of the build ended after %v", took)
	}
}

func TestADeadlineNamesTheStepThatWasRunning(t *testing.T) {
	env := parallelTestEnv(t)
	word := env.buildsForever("hermes")
	c := env.client()
	// A busy machine may need longer until the step runs.
	for limit := 2 * time.Second; ; limit *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		_, err := c.EnsureLocalImage(ctx, "hermes")
		cancel()
		var e *Error
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &e) {
			t.Fatalf("got %v", err)
		}
		if strings.Contains(e.Step, word) {
			start := "the deadline of the call for the runtime hermes has passed, at this point: "
			if !strings.HasPrefix(e.Message, start) || e.Hint == "" || e.Runtime != "hermes" {
				t.Errorf("got %#v", e)
			}
			return
		}
		if limit > waitLimit {
			t.Fatalf("no step after %v: %v", limit, err)
		}
	}
}

func TestTheBuildStopsWhenTheLastContextEnds(t *testing.T) {
	env := parallelTestEnv(t)
	word := env.buildsForever("hermes")
	c := env.client()
	first := c.start("hermes")
	c.waitForBuild(word)
	second := c.start("hermes")
	eventually(t, "the second call waits for the first", func() bool { return c.count(EventWaiting) == 1 })
	first.mustCancel()
	if !isRunning(word) {
		t.Error("the build was stopped although the second call waits for it")
	}
	env.mustStop(word, second.mustCancel())
	if refs := env.engine.refs(t, env.isolation); len(refs) > 0 {
		t.Errorf("there are images: %v", refs)
	}
	if left := env.unfinishedFetches(); len(left) > 0 {
		t.Errorf("left in the cache: %v", left)
	}
	env.commit("hermes", dockerfile(plain))
	c.ensure("hermes")
}

func TestCloseStopsTheBuildAndTheFetch(t *testing.T) {
	env := parallelTestEnv(t)
	word := env.buildsForever("hermes")
	c := env.client()
	call := c.start("hermes")
	c.waitForBuild(word)
	since := time.Now()
	_ = c.Close()
	if took := time.Since(since); took > cancelLimit {
		t.Errorf("Close took %v", took)
	}
	if err := call.wait().err; !errors.Is(err, ErrClosed) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	env.mustStop(word, since)

	env.commit("hermes", dockerfile(plain))
	env.server.setFaults(t, fault{"match": "/info/refs", "truncate_after": 30, "hang": true})
	c = env.client()
	call = c.start("hermes")
	eventually(t, "the fetch has begun", func() bool { return len(env.unfinishedFetches()) > 0 })
	_ = c.Close()
	if left := env.unfinishedFetches(); len(left) > 0 {
		t.Errorf("left in the cache: %v", left)
	}
	if err := call.wait().err; !errors.Is(err, ErrClosed) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAHundredGoroutinesShareOneFetchAndOneBuild(t *testing.T) {
	env := parallelTestEnv(t)
	env.commit("hermes", dockerfile("FROM "+busybox+"\nRUN echo "+uniqueWord()+"; sleep 2; cat /proc/sys/kernel/random/uuid > /number\n"))
	c := env.client()
	var calls []*call
	for range 100 {
		calls = append(calls, c.start("hermes"))
	}
	first := calls[0].mustSucceed()
	for _, call := range calls[1:] {
		if image := call.mustSucceed(); image.ImageID != first.ImageID || image.Ref != first.Ref {
			t.Errorf("got %+v and %+v", image, first)
		}
	}
	if c.count(EventFetchStarted) != 1 || c.count(EventBuildStarted) != 1 || c.count(EventWaiting) != 99 {
		t.Errorf("got %v", c.kinds())
	}
	if n := env.server.fetches(t); n != 1 {
		t.Errorf("%d fetches", n)
	}
}
