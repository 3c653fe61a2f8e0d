package mol

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestEachCallGetsItsOwnAnswer(t *testing.T) {
	f := newFakeCore()
	f.onStart = func(f *fakeCore, id uint64, name string) *Error {
		go func() {
			time.Sleep(rand.N(3 * time.Millisecond))
			if strings.HasPrefix(name, "good") {
				f.end(ended{call: id, image: &Image{Ref: "image of " + name}})
			} else {
				f.fail(id, &Error{Code: CodeAuth, Message: "error of " + name})
			}
		}()
		return nil
	}
	c := fakeClient(t, f, Options{})
	var wg group
	for i := range 1000 {
		wg.run(func() {
			name := fmt.Sprintf("%s-%d", []string{"good", "bad"}[i%2], i)
			image, err := c.EnsureLocalImage(context.Background(), name)
			if i%2 == 0 {
				if err != nil || image.Ref != "image of "+name {
					t.Errorf("%s got %q, %v", name, image.Ref, err)
				}
				return
			}
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, ErrAuth) || e.Runtime != name || e.Message != "error of "+name {
				t.Errorf("%s got %v", name, err)
			}
		})
	}
	wg.Wait()
	if n := len(c.inner.waiting) + len(c.inner.early); n != 0 {
		t.Errorf("%d calls are still known", n)
	}
}

func TestAResultMayArriveBeforeStartReturns(t *testing.T) {
	f := newFakeCore()
	f.onStart = func(f *fakeCore, id uint64, _ string) *Error {
		f.succeed(id)
		time.Sleep(time.Millisecond)
		return nil
	}
	c := fakeClient(t, f, Options{})
	for range 50 {
		if _, err := c.EnsureLocalImage(context.Background(), "hermes"); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(c.inner.early); n != 0 {
		t.Errorf("%d answers were never fetched", n)
	}
}

func TestAnEndedContextStartsNoCall(t *testing.T) {
	f := newFakeCore()
	c := fakeClient(t, f, Options{})
	cause := errors.New("shutting down")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	if _, err := c.EnsureLocalImage(ctx, "hermes"); !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	ctx2, cancel2 := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancel2()
	if _, err := c.EnsureLocalImage(ctx2, "hermes"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if n := f.started(); n != 0 {
		t.Errorf("%d calls reached the library", n)
	}
}

// callsOfRuntimes are the calls that take the name of a runtime.
var callsOfRuntimes = map[string]func(*Client, context.Context, string) error{
	"EnsureLocalImage": func(c *Client, ctx context.Context, name string) error {
		_, err := c.EnsureLocalImage(ctx, name)
		return err
	},
	"EnsureCommit": func(c *Client, ctx context.Context, name string) error {
		_, err := c.EnsureCommit(ctx, name, strings.Repeat("a", 40))
		return err
	},
	"BuildLog": func(c *Client, ctx context.Context, name string) error {
		_, err := c.BuildLog(ctx, name)
		return err
	},
}

// checkRedacted checks that an error shows neither the token nor a long name, and that its message and runtime are on
// one line.
func checkRedacted(t *testing.T, err error, token string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("got %.200v", err)
		return
	}
	shown := fmt.Sprintf("%v %+v %#v", err, e, e)
	if strings.Contains(shown, token) || strings.ContainsAny(e.Message+e.Runtime, "\n\x00") || len(shown) > 4000 ||
		len(e.Runtime) > 300 || len(e.Message) > 400 {
		t.Errorf("it shows too much: %.5000s", shown)
	}
}

// refusesUnknown checks that an unknown runtime is refused as one, with the known ones.
func refusesUnknown(t *testing.T, err error, token string) {
	t.Helper()
	if !errors.Is(err, ErrUnknownRuntime) || errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the known runtimes are autogen, ") {
		t.Errorf("got %.200v", err)
		return
	}
	checkRedacted(t, err, token)
}

// unknownNames are names that no allowlist has. Some hold the token.
func unknownNames(token string) []string {
	return []string{
		"", "unknown", "../../../etc/passwd", "hermes\x00", " hermes", "\xff", token, "hermes-" + token,
		strings.Repeat("x", maxNameLen-3) + token, strings.Repeat("x", 1<<20),
	}
}

// The library checks the name of a runtime, so errors that end a call before that may hold any name.
func TestAnUncheckedRuntimeIsMaskedAndTruncatedInErrors(t *testing.T) {
	f := newFakeCore()
	f.onStart = func(*fakeCore, uint64, string) *Error { return &Error{Code: CodeCache, Message: "no cache"} }
	c := fakeClient(t, f, Options{Token: testToken})
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	late, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancel()
	check := func(ctx context.Context, want error) {
		t.Helper()
		for name, call := range callsOfRuntimes {
			for _, runtime := range unknownNames(testToken) {
				err := call(c, ctx, runtime)
				if !errors.Is(err, want) {
					t.Errorf("%s: got %.200v, want %v", name, err, want)
				}
				checkRedacted(t, err, testToken)
			}
		}
	}
	check(canceled, context.Canceled)
	check(late, context.DeadlineExceeded)
	check(context.Background(), ErrCache)
	_ = c.Close()
	check(context.Background(), ErrClosed)
}

func TestACancelledContextCancelsItsCallAndNoOther(t *testing.T) {
	f := newFakeCore()
	c := fakeClient(t, f, Options{})
	cause := errors.New("the workspace was deleted")
	ctx, cancel := context.WithCancelCause(context.Background())
	var wg group
	wg.run(func() {
		_, err := c.EnsureLocalImage(ctx, "hermes")
		var e *Error
		if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || !errors.As(err, &e) || e.Code != CodeCanceled || e.Runtime != "hermes" {
			t.Errorf("got %v", err)
		}
		if !strings.Contains(err.Error(), `the call for the runtime hermes was cancelled`) {
			t.Errorf("it does not say which call: %v", err)
		}
	})
	eventually(t, "the first call is started", func() bool { return f.started() == 1 })
	wg.run(func() {
		if image, err := c.EnsureLocalImage(context.Background(), "hermes"); err != nil || image.Ref != "image-of-call-2" {
			t.Errorf("got %v and %v", image, err)
		}
	})
	eventually(t, "the second call is started", func() bool { return f.started() == 2 })
	cancel(cause)
	eventually(t, "the first is cancelled", func() bool { n, _ := f.cancels(); return n == 1 })
	f.succeed(2)
	wg.Wait()
	if calls, times := f.cancels(); calls != 1 || times != 1 || f.canceled[1] != 1 {
		t.Errorf("cancelled %v", f.canceled)
	}
}

func TestADeadlineGoesToTheLibraryRoundedUp(t *testing.T) {
	f := newFakeCore()
	f.onStart = func(f *fakeCore, id uint64, _ string) *Error { f.succeed(id); return nil }
	c := fakeClient(t, f, Options{})
	if _, err := c.EnsureLocalImage(context.Background(), "hermes"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	if _, err := c.EnsureLocalImage(ctx, "hermes"); err != nil {
		t.Fatal(err)
	}
	if f.timeouts[0] != timeoutCeiling || f.timeouts[1] < 3_590_000 || f.timeouts[1] > 3_600_000 {
		t.Errorf("got %v", f.timeouts)
	}
	deadline := time.Now().Add(time.Hour)
	exact, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	for range 100 {
		got := timeoutMS(exact)
		if left := time.Until(deadline); time.Duration(got)*time.Millisecond < left {
			t.Fatalf("%d ms are less than the %v that are left", got, left)
		}
	}
	almost, cancel := context.WithDeadline(context.Background(), time.Now().Add(time.Microsecond))
	defer cancel()
	if got := timeoutMS(almost); got != 1 {
		t.Errorf("a deadline that is almost there makes %d ms: with 0, the library would not wait at all", got)
	}
}

func TestADeadlineThatPassesIsDeadlineExceeded(t *testing.T) {
	for name, fromLibrary := range map[string]*Error{
		"the library sees a cancel":   {Code: CodeCanceled, Message: "the call was cancelled"},
		"the library sees it as well": {Code: CodeDeadlineExceeded, Message: "the deadline passed"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeCore()
			f.onCancel = func(f *fakeCore, id uint64) { f.fail(id, fromLibrary) }
			c := fakeClient(t, f, Options{})
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
			defer cancel()
			_, err := c.EnsureLocalImage(ctx, "hermes")
			var e *Error
			if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || !errors.As(err, &e) || e.Code != CodeDeadlineExceeded {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestADeadlineThatTheLibraryReportsSaysWhatWasRunning(t *testing.T) {
	cause := errors.New("the request is over")
	ctx, cancel := context.WithTimeoutCause(context.Background(), 100*time.Millisecond, cause)
	defer cancel()
	f := newFakeCore()
	f.onStart = func(f *fakeCore, id uint64, _ string) *Error {
		context.AfterFunc(ctx, func() {
			f.fail(id, &Error{Code: CodeDeadlineExceeded, Message: "the deadline passed: building", Step: "RUN sleep", Line: 2})
		})
		return nil
	}
	f.onCancel = func(*fakeCore, uint64) { t.Error("the call was cancelled before the library could report it") }
	c := fakeClient(t, f, Options{})
	_, err := c.EnsureLocalImage(ctx, "hermes")
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeDeadlineExceeded || e.Step != "RUN sleep" || e.Line != 2 || e.Runtime != "hermes" {
		t.Fatalf("got %#v", err)
	}
	if e.Message != "the deadline passed: building" || err.Error() != e.Message+": the request is over" || !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
}

func TestTheLibrarysOwnDeadlineIsDeadlineExceeded(t *testing.T) {
	f := newFakeCore()
	f.onStart = func(f *fakeCore, id uint64, _ string) *Error {
		f.fail(id, &Error{Code: CodeDeadlineExceeded, Message: "the deadline passed during the build", Step: "RUN sleep"})
		return nil
	}
	c := fakeClient(t, f, Options{})
	if _, err := c.EnsureLocalImage(context.Background(), "hermes"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestACancelThatTheLibraryNeverConfirmsReturnsWithinASecond(t *testing.T) {
	f := newFakeCore()
	f.onCancel = func(*fakeCore, uint64) {}
	c := fakeClient(t, f, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(10*time.Millisecond, cancel)
	start := time.Now()
	_, err := c.EnsureLocalImage(ctx, "hermes")
	if took := time.Since(start); !errors.Is(err, context.Canceled) || cancelGrace >= time.Second || took > waitLimit {
		t.Errorf("got %v after %v", err, took)
	}
	// The answer that comes after all is not kept.
	f.succeed(1)
	eventually(t, "the call is forgotten", func() bool {
		c.inner.mu.Lock()
		defer c.inner.mu.Unlock()
		return len(c.inner.waiting)+len(c.inner.early) == 0
	})
}

func TestAnErrorFromStartIsReturned(t *testing.T) {
	f := newFakeCore()
	f.onStart = func(*fakeCore, uint64, string) *Error { return &Error{Code: CodeCache, Message: "no cache"} }
	c := fakeClient(t, f, Options{})
	_, err := c.EnsureLocalImage(context.Background(), "hermes")
	var e *Error
	if !errors.Is(err, ErrCache) || !errors.As(err, &e) || e.Runtime != "hermes" {
		t.Errorf("got %v", err)
	}
}

func TestCloseCancelsRunningCallsAndRefusesLaterOnes(t *testing.T) {
	f := newFakeCore()
	c := fakeClient(t, f, Options{})
	var wg group
	for range 100 {
		wg.run(func() {
			_, err := c.EnsureLocalImage(context.Background(), "hermes")
			if !errors.Is(err, ErrClosed) || !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	}
	eventually(t, "all are started", func() bool { return f.started() == 100 })
	for range 10 {
		wg.run(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if f.frees.Load() != 1 {
				t.Error("Close returned before the client was freed")
			}
		})
	}
	wg.Wait()
	if calls, _ := f.cancels(); calls != 100 {
		t.Errorf("%d calls were cancelled", calls)
	}
	if _, err := c.EnsureLocalImage(context.Background(), "hermes"); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if f.started() != 100 || f.frees.Load() != 1 {
		t.Errorf("%d calls, %d frees", f.started(), f.frees.Load())
	}
}

func TestCloseWhileCallsBegin(t *testing.T) {
	for range 50 {
		f := newFakeCore()
		c := &Client{startClient(f, nil, Options{})}
		var wg group
		for range 20 {
			wg.run(func() {
				if _, err := c.EnsureLocalImage(context.Background(), "hermes"); !errors.Is(err, ErrClosed) {
					t.Errorf("got %v", err)
				}
			})
		}
		_ = c.Close()
		wg.Wait()
	}
}

func TestTheDispatcherContinuesAfterAFailedWait(t *testing.T) {
	f := newFakeCore()
	f.onStart = func(f *fakeCore, id uint64, _ string) *Error {
		for range 5 {
			f.results <- func() (ended, *Error) { return ended{}, &Error{Code: CodeInternal, Message: "no JSON"} }
		}
		f.succeed(id)
		return nil
	}
	c := fakeClient(t, f, Options{})
	for range 3 {
		if _, err := c.EnsureLocalImage(context.Background(), "hermes"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestALibraryThatAlwaysFailsEndsAllCalls(t *testing.T) {
	f := newFakeCore()
	c := fakeClient(t, f, Options{})
	var wg group
	for range 10 {
		wg.run(func() {
			if _, err := c.EnsureLocalImage(context.Background(), "hermes"); !errors.Is(err, ErrInternal) {
				t.Errorf("got %v", err)
			}
		})
	}
	eventually(t, "all are started", func() bool { return f.started() == 10 })
	for range 20 {
		f.results <- func() (ended, *Error) { return ended{}, &Error{Code: CodeInternal, Message: "broken"} }
	}
	wg.Wait()
	if _, err := c.EnsureLocalImage(context.Background(), "hermes"); !errors.Is(err, ErrInternal) {
		t.Errorf("got %v", err)
	}
}

func TestConcurrentCgoCallsAreLimited(t *testing.T) {
	f := newFakeCore()
	var inside, most atomic.Int32
	f.onStart = func(f *fakeCore, id uint64, _ string) *Error {
		now := inside.Add(1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		time.Sleep(100 * time.Microsecond)
		inside.Add(-1)
		f.succeed(id)
		return nil
	}
	c := fakeClient(t, f, Options{})
	var wg group
	for range 1000 {
		wg.run(func() {
			if _, err := c.EnsureLocalImage(context.Background(), "hermes"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := most.Load(); n > maxCgoCalls {
		t.Errorf("%d calls were in the library at once", n)
	}
}

func TestEventsArriveBeforeTheCallReturns(t *testing.T) {
	const events = 3 // OnEvent takes them within eventGrace
	f := newFakeCore()
	f.onStart = func(f *fakeCore, id uint64, name string) *Error {
		for step := range events {
			f.event(Event{Kind: EventStepDone, Call: id, Runtime: name, Step: step + 1})
		}
		f.succeed(id)
		return nil
	}
	var mu sync.Mutex
	var got []int
	c := fakeClient(t, f, Options{OnEvent: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, e.Step)
	}})
	for range 20 {
		if _, err := c.EnsureLocalImage(context.Background(), "hermes"); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if !slices.Equal(got, []int{1, 2, 3}) {
			t.Errorf("got %v", got)
		}
		got = nil
		mu.Unlock()
	}
}

func TestASlowOnEventDoesNotHoldUpTheAnswers(t *testing.T) {
	f := newFakeCore()
	f.onStart = func(f *fakeCore, id uint64, _ string) *Error {
		f.event(Event{Kind: EventLog, Call: id, Line: "x"})
		f.succeed(id)
		return nil
	}
	release := make(chan struct{})
	c := fakeClient(t, f, Options{OnEvent: func(Event) { <-release }})
	start := time.Now()
	for range 3 {
		if _, err := c.EnsureLocalImage(context.Background(), "hermes"); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("three calls took %v", took)
	}
	close(release)
}

func TestOnEventMayCallTheClient(t *testing.T) {
	f := newFakeCore()
	f.onStart = func(f *fakeCore, id uint64, name string) *Error {
		f.event(Event{Kind: EventTagged, Call: id, Runtime: name})
		f.succeed(id)
		return nil
	}
	var c *Client
	var inner atomic.Int32
	c = fakeClient(t, f, Options{OnEvent: func(e Event) {
		if e.Runtime == "hermes" {
			if _, err := c.EnsureLocalImage(context.Background(), "codex"); err != nil {
				t.Error(err)
			}
			inner.Add(1)
		}
	}})
	if _, err := c.EnsureLocalImage(context.Background(), "hermes"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the inner call returns", func() bool { return inner.Load() == 1 })
}

func TestCloseInOnEventIsNoDeadlock(t *testing.T) {
	f := newFakeCore()
	f.onStart = func(f *fakeCore, id uint64, _ string) *Error {
		f.event(Event{Kind: EventWarning, Call: id})
		return nil
	}
	var c *Client
	closed := make(chan struct{})
	c = fakeClient(t, f, Options{OnEvent: func(Event) { _ = c.Close(); close(closed) }})
	if _, err := c.EnsureLocalImage(context.Background(), "hermes"); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	<-closed
}

func TestAnUnreachableClientIsClosed(t *testing.T) {
	f := newFakeCore()
	newClient(startClient(f, nil, Options{}))
	eventually(t, "it is freed", func() bool { runtime.GC(); return f.frees.Load() == 1 })
}

func TestNothingIsLeftAfterClose(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 20 {
		f := newFakeCore()
		c := &Client{startClient(f, newListener(f, Options{OnEvent: func(Event) {}}), Options{})}
		var wg group
		for i := range 50 {
			wg.run(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*time.Millisecond/10)
				defer cancel()
				_, _ = c.EnsureLocalImage(ctx, "hermes")
			})
		}
		wg.Wait()
		_ = c.Close()
	}
	eventually(t, "the goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
}

func TestAClientDoesNotShowItsOptions(t *testing.T) {
	c := fakeClient(t, newFakeCore(), Options{Token: testToken, OnEvent: func(Event) {}})
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb, c) + fmt.Sprintf(verb, *c); strings.Contains(text, testToken) {
			t.Errorf("%s shows the token: %s", verb, text)
		}
	}
}

func TestTenThousandCallsCanWaitAtOnce(t *testing.T) {
	f := newFakeCore()
	c := fakeClient(t, f, Options{})
	const calls = 10_000
	var wg group
	for range calls {
		wg.run(func() {
			if _, err := c.EnsureLocalImage(context.Background(), "hermes"); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "all are started", func() bool { return f.started() == calls })
	start := time.Now()
	for id := range calls {
		f.succeed(uint64(id + 1))
	}
	wg.Wait()
	t.Logf("%d answers in %v", calls, time.Since(start))
}

func TestImageHasExactlyTheDocumentedFields(t *testing.T) {
	var names []string
	for i := range reflect.TypeFor[Image]().NumField() {
		names = append(names, reflect.TypeFor[Image]().Field(i).Name)
	}
	if got := strings.Join(names, " "); got != "Ref LatestRef Runtime CommitSHA ImageID Platform Endpoint CacheHit Timings" {
		t.Errorf("got %s", got)
	}
}
