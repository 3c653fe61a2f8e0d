package mol

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fakeCore stands in for the library where it has to misbehave on demand: answer before start has
// returned, never answer, fail. What the real one does is tested in library_test.go.
type fakeCore struct {
	// onStart and onCancel decide what happens; without them calls wait until they are cancelled.
	onStart  func(f *fakeCore, id uint64, runtime string) *Error
	onCancel func(f *fakeCore, id uint64)

	results chan func() (ended, *Error)
	events  chan func() (Event, uint64, *Error)
	freed   chan struct{}
	frees   atomic.Int32

	mu        sync.Mutex
	lastID    uint64
	lastEvent uint64
	timeouts  []int64
	canceled  map[uint64]int
}

func newFakeCore() *fakeCore {
	return &fakeCore{
		results:  make(chan func() (ended, *Error), 1<<16),
		events:   make(chan func() (Event, uint64, *Error), 1<<16),
		freed:    make(chan struct{}),
		canceled: make(map[uint64]int),
	}
}

func (f *fakeCore) start(t task, timeoutMS int64) (uint64, *Error) {
	f.mu.Lock()
	f.lastID++
	id := f.lastID
	f.timeouts = append(f.timeouts, timeoutMS)
	f.mu.Unlock()
	if f.onStart != nil {
		if err := f.onStart(f, id, t.runtime); err != nil {
			return 0, err
		}
	}
	return id, nil
}

func (f *fakeCore) cancel(id uint64) {
	f.mu.Lock()
	f.canceled[id]++
	f.mu.Unlock()
	if f.onCancel != nil {
		f.onCancel(f, id)
		return
	}
	f.fail(id, &Error{Code: CodeCanceled, Message: "the call was cancelled"})
}

func (f *fakeCore) wait() (ended, *Error) {
	select {
	case <-f.freed:
		return ended{}, errFreed()
	case result := <-f.results:
		return result()
	}
}

func (f *fakeCore) nextEvent() (Event, uint64, *Error) {
	select {
	case <-f.freed:
		return Event{}, 0, errFreed()
	case event := <-f.events:
		return event()
	}
}

func errFreed() *Error { return &Error{Code: CodeClosed, Message: "the client was freed"} }

func (f *fakeCore) metrics() ([]byte, *Error) { return []byte("{}"), nil }

func (f *fakeCore) free() {
	f.frees.Add(1)
	close(f.freed)
}

func (f *fakeCore) event(e Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastEvent++
	number := f.lastEvent
	f.events <- func() (Event, uint64, *Error) { return e, number, nil }
}

func (f *fakeCore) end(e ended) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.lastEvent = f.lastEvent
	f.results <- func() (ended, *Error) { return e, nil }
}

func (f *fakeCore) succeed(id uint64) {
	f.end(ended{call: id, image: &Image{Ref: fmt.Sprintf("image-of-call-%d", id)}})
}

func (f *fakeCore) fail(id uint64, err *Error) { f.end(ended{call: id, err: err}) }

func (f *fakeCore) started() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int(f.lastID)
}

func (f *fakeCore) cancels() (calls, times int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.canceled {
		times += n
	}
	return len(f.canceled), times
}

// fakeClient is a Client on a fakeCore, closed at the end of the test.
func fakeClient(t *testing.T, f *fakeCore, options Options) *Client {
	t.Helper()
	c := &Client{startClient(f, newListener(f, options), options)}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// waitLimit is longer than anything in these tests takes, also on a slow machine.
const waitLimit = 90 * time.Second

// eventually waits for something that another goroutine, the engine or another process is about to do.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(waitLimit); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", waitLimit, what)
		}
	}
}

// group runs functions in goroutines and waits for them.
type group struct{ sync.WaitGroup }

func (g *group) run(f func()) {
	g.Add(1)
	go func() {
		defer g.Done()
		f()
	}()
}
