//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// Cancel means stop (promise P4): at once, in the engine too, and for nobody else.

// endless is a template whose build says that it runs and then does not end. The word is in the command line of
// its process.
func (b *bed) endless(runtime string) (word string) {
	b.Helper()
	word = unique()
	b.template(runtime, dockerfile("FROM "+busybox+"\nRUN echo running "+word+"; sleep 600; true\n"))
	return word
}

// slow is a template whose build takes a while, and leaves its own number in the image: two builds would leave
// two numbers.
func (b *bed) slow(runtime, seconds string) (word string) {
	b.Helper()
	word = unique()
	b.template(runtime, dockerfile("FROM "+busybox+"\nRUN echo running "+word+"; sleep "+seconds+"; cat /proc/sys/kernel/random/uuid > /number\n"))
	return word
}

// builds waits until the build's process runs, on this machine.
func (c *testClient) builds(word string) {
	c.b.Helper()
	c.waitForLine(word)
	if !isRunning(word) {
		c.b.Fatal("the test does not see the processes of the engine")
	}
}

// isGone checks that a build's process is gone within the time that is promised.
func (b *bed) isGone(word string, since time.Time) {
	b.Helper()
	until(b, "the end of the build's process", func() bool { return !isRunning(word) })
	if took := time.Since(since); took > atOnce {
		b.Errorf("its process ended after %v", took)
	}
}

func TestACancelDuringTheBuildStopsItInTheEngineWithinASecond(t *testing.T) {
	t.Parallel()
	for _, builder := range []string{"buildkit", "classic"} {
		t.Run(builder, func(t *testing.T) {
			b := parallelBed(t)
			word := b.endless("hermes")
			c := b.bothBuilders()[builder]
			call := c.begin("hermes")
			c.builds(word)
			b.isGone(word, call.stops())
			if refs := b.engine.refsOf(b, b.isolation); len(refs) > 0 {
				t.Errorf("there are images: %v", refs)
			}
			for _, path := range b.cachedPaths() {
				if strings.Contains(path, ".work-") {
					t.Errorf("the cache holds %s", path)
				}
			}
			// What was cancelled can be made after all.
			b.template("hermes", dockerfile(plain))
			c.ensure("hermes")
		})
	}
}

func TestAContextThatHasEndedAsksNobody(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	proxy := b.engineProxy(func(string) treatment { return pass })
	c := b.client(func(o *Options) { o.DockerHost = proxy.url })
	cause := errors.New("the workspace was deleted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	_, err := c.EnsureLocalImage(ctx, "hermes")
	var e *Error
	if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || !errors.As(err, &e) || e.Code != CodeCanceled || e.Runtime != "hermes" {
		t.Errorf("got %#v", err)
	}
	if len(b.server.requests(b)) > 0 || proxy.all() != "" || len(c.seen()) > 0 {
		t.Errorf("asked %+v and %q, with %v", b.server.requests(b), proxy.all(), c.kinds())
	}
	b.untouched()
}

func TestACancelDuringTheLookupReturnsAtOnce(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	b.server.misbehave(b, fault{"match": "/api/", "hang": true})
	c := b.client()
	call := c.begin("hermes")
	until(t, "the request", func() bool { return len(b.server.requests(b)) > 0 })
	call.stops()
	b.untouched()
	if c.count(EventLookupDone) > 0 {
		t.Errorf("the lookup had ended: %v", c.kinds())
	}
}

func TestACancelDuringTheFetchReturnsAtOnceAndLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, part := range []string{"/info/refs", "/git-upload-pack"} {
		t.Run(part, func(t *testing.T) {
			b := parallelBed(t)
			sha := b.template("hermes", dockerfile(plain))
			b.server.misbehave(b, fault{"match": part, "truncate_after": 30, "hang": true})
			c := b.client()
			call := c.begin("hermes")
			until(t, "the request", func() bool {
				for _, r := range b.server.requests(b) {
					if strings.HasSuffix(r.Path, part) {
						return true
					}
				}
				return false
			})
			if len(b.leftovers(sha)) == 0 {
				t.Errorf("the test does not see what is half-written: %v", b.cachedPaths())
			}
			since := call.stops()
			until(t, "the removal of what was half-written", func() bool { return len(b.leftovers(sha)) == 0 })
			if took := time.Since(since); took > atOnce {
				t.Errorf("the cache was clean after %v", took)
			}
			b.server.misbehave(b)
			c.ensure("hermes")
		})
	}
}

func TestADeadlineStopsTheBuild(t *testing.T) {
	b := parallelBed(t)
	word := b.endless("hermes")
	c := b.client()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	deadline, _ := ctx.Deadline()
	_, err := c.EnsureLocalImage(ctx, "hermes")
	var e *Error
	if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &e) || e.Code != CodeDeadlineExceeded || time.Since(deadline) > atOnce {
		t.Errorf("got %v, %v after the deadline", err, time.Since(deadline))
	}
	c.waitForLine(word)
	b.isGone(word, deadline)
}

func TestADeadlineReplacesTheCeiling(t *testing.T) {
	b := parallelBed(t)
	b.slow("hermes", "2")
	c := b.client(func(o *Options) { o.Ceiling = time.Second })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.EnsureLocalImage(ctx, "hermes"); err != nil {
		t.Error(err)
	}
}

func TestCloseStopsTheBuildAndLeavesNothing(t *testing.T) {
	b := parallelBed(t)
	word := b.endless("hermes")
	c := b.client()
	call := c.begin("hermes")
	c.builds(word)
	since := time.Now()
	_ = c.Close()
	if took := time.Since(since); took > atOnce {
		t.Errorf("it took %v", took)
	}
	if err := call.wait().err; !errors.Is(err, ErrClosed) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	b.isGone(word, since)

	sha := b.template("hermes", dockerfile(plain))
	b.server.misbehave(b, fault{"match": "/info/refs", "truncate_after": 30, "hang": true})
	c = b.client()
	call = c.begin("hermes")
	until(t, "the fetch", func() bool { return len(b.leftovers(sha)) > 0 })
	_ = c.Close()
	if got := b.leftovers(sha); len(got) > 0 {
		t.Errorf("the cache holds %v", got)
	}
	if err := call.wait().err; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestOneCallersCancelDoesNotDisturbTheOthers(t *testing.T) {
	b := parallelBed(t)
	word := b.slow("hermes", "3")
	c := b.client()
	// The first one began the build, the second one only waits for it.
	first := c.begin("hermes")
	c.builds(word)
	second, third := c.begin("hermes"), c.begin("hermes")
	until(t, "both to wait", func() bool { return c.count(EventWaiting) == 2 })
	first.stops()
	second.stops()
	if !isRunning(word) {
		t.Error("the third one still wants it")
	}
	if image := third.ends(); b.engine.id(b, image.Ref) != image.ImageID || c.count(EventBuildStarted) != 1 {
		t.Errorf("got %+v and %v", image, c.kinds())
	}
}

func TestWhenTheLastCallerLeavesTheBuildStops(t *testing.T) {
	b := parallelBed(t)
	word := b.endless("hermes")
	c := b.client()
	first := c.begin("hermes")
	c.builds(word)
	second := c.begin("hermes")
	until(t, "the second to wait", func() bool { return c.count(EventWaiting) == 1 })
	first.stops()
	if !isRunning(word) {
		t.Error("the second one still wants it")
	}
	b.isGone(word, second.stops())
}

// One build (promise P3): for all callers of one process, also with several clients.

func TestAHundredCallersForOneRuntimeShareOneFetchAndOneBuild(t *testing.T) {
	b := parallelBed(t)
	b.slow("hermes", "2")
	proxy := b.engineProxy(func(string) treatment { return pass })
	c := b.client(func(o *Options) { o.DockerHost = proxy.url })
	var calls []*call
	for range 100 {
		calls = append(calls, c.begin("hermes"))
	}
	first := calls[0].ends()
	for _, call := range calls[1:] {
		if image := call.ends(); image.ImageID != first.ImageID || image.Ref != first.Ref {
			t.Errorf("got %+v and %+v", image, first)
		}
	}
	if c.count(EventFetchStarted) != 1 || c.count(EventBuildStarted) != 1 || c.count(EventWaiting) != 99 {
		t.Errorf("got %v", c.kinds())
	}
	if n := b.server.requests(b).fetches(); n != 1 {
		t.Errorf("fetched %d times", n)
	}
	if n := strings.Count(proxy.all(), "/build?"); n != 1 {
		t.Errorf("built %d times", n)
	}
}

func TestTwoClientsOfOneProcessShareOneBuildThroughTheLock(t *testing.T) {
	b := parallelBed(t)
	word := b.slow("hermes", "2")
	one, two := b.client(), b.client()
	first := one.begin("hermes")
	one.builds(word)
	second := two.begin("hermes")
	says(t, two.waitFor(EventWaiting, nil).Holder, "this process")
	a, z := first.ends(), second.ends()
	if a.ImageID != z.ImageID || one.count(EventBuildStarted) != 1 || two.count(EventBuildStarted) != 0 || z.Timings.Wait <= 0 {
		t.Errorf("got %+v and %+v", a, z)
	}
	if n := b.server.requests(b).fetches(); n != 1 {
		t.Errorf("fetched %d times", n)
	}
}

func TestWhoWaitsForTheLockCanBeCancelled(t *testing.T) {
	b := parallelBed(t)
	word := b.slow("hermes", "3")
	one, two := b.client(), b.client()
	holder := one.begin("hermes")
	one.builds(word)
	waiter := two.begin("hermes")
	two.waitFor(EventWaiting, nil)
	waiter.stops()
	if !isRunning(word) {
		t.Error("the holder was disturbed")
	}
	holder.ends()
}

func TestDifferentRuntimesAreBuiltSideBySide(t *testing.T) {
	b := parallelBed(t)
	c := b.client()
	var words []string
	var calls []*call
	for _, runtime := range []string{"hermes", "codex", "autogen"} {
		words = append(words, b.endless(runtime))
		calls = append(calls, c.begin(runtime))
	}
	until(t, "all builds at the same time", func() bool {
		for _, word := range words {
			if !isRunning(word) {
				return false
			}
		}
		return true
	})
	for _, call := range calls {
		call.stops()
	}
}

func TestAFailedBuildIsEverybodysErrorAndTheNextCallTriesAgain(t *testing.T) {
	b := parallelBed(t)
	word := unique()
	b.template("hermes", dockerfile("FROM "+busybox+"\nRUN echo "+word+"; sleep 1; exit 5\n"))
	c := b.client()
	first := c.begin("hermes")
	c.waitForLine(word)
	second := c.begin("hermes")
	for _, call := range []*call{first, second} {
		var e *Error
		if err := call.wait().err; !errors.As(err, &e) || e.Code != CodeBuildFailed || !strings.Contains(e.Step, word) {
			t.Errorf("got %#v", err)
		}
	}
	if n := c.count(EventBuildStarted); n != 1 {
		t.Errorf("built %d times", n)
	}
	c.refused("hermes", ErrBuildFailed)
	if n := c.count(EventBuildStarted); n != 2 {
		t.Errorf("built %d times", n)
	}
}

func TestACallDuringAPushGetsTheCommitThatItLookedUp(t *testing.T) {
	b := parallelBed(t)
	word := b.slow("hermes", "2")
	c := b.client()
	first := c.begin("hermes")
	c.builds(word)
	sha := b.template("hermes", dockerfile(plain))
	if got := c.ensure("hermes").CommitSHA; got != sha {
		t.Errorf("got %s", got)
	}
	if got := first.ends().CommitSHA; got == sha {
		t.Errorf("got %s", got)
	}
}
