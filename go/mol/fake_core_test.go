package mol

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fakeCore stands in for the library where it has to misbehave on demand: answer before submit has
// returned, never answer, fail. What the real one does is tested in library_test.go.
type fakeCore struct {
	// onSubmit and onCancel decide what happens; without them calls wait until they are cancelled.
	onSubmit func(f *fakeCore, id uint64, runtime string) *Error
	onCancel func(f *fakeCore, id uint64)

	messages chan func() (message, *Error)
	freed    chan struct{}
	frees    atomic.Int32

	mu       sync.Mutex
	lastID   uint64
	timeouts []int64
	canceled map[uint64]int
}

func newFakeCore() *fakeCore {
	return &fakeCore{
		messages: make(chan func() (message, *Error), 1<<16),
		freed:    make(chan struct{}),
		canceled: make(map[uint64]int),
	}
}

func (f *fakeCore) submit(t task, timeoutMS int64) (uint64, *Error) {
	f.mu.Lock()
	f.lastID++
	id := f.lastID
	f.timeouts = append(f.timeouts, timeoutMS)
	f.mu.Unlock()
	if f.onSubmit != nil {
		if err := f.onSubmit(f, id, t.runtime); err != nil {
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

func (f *fakeCore) next() (message, *Error) {
	select {
	case <-f.freed:
		return message{}, &Error{Code: CodeClosed, Message: "the client was freed"}
	case m := <-f.messages:
		return m()
	}
}

func (f *fakeCore) metrics() ([]byte, *Error) { return []byte("{}"), nil }

func (f *fakeCore) free() {
	f.frees.Add(1)
	close(f.freed)
}

func (f *fakeCore) event(e Event) {
	f.messages <- func() (message, *Error) { return message{call: e.Call, event: &e}, nil }
}

func (f *fakeCore) succeed(id uint64) {
	f.messages <- func() (message, *Error) {
		return message{call: id, image: &Image{Ref: fmt.Sprintf("image-of-call-%d", id)}}, nil
	}
}

func (f *fakeCore) fail(id uint64, err *Error) {
	f.messages <- func() (message, *Error) { return message{call: id, err: err}, nil }
}

func (f *fakeCore) submitted() int {
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
	c := &Client{startClient(f, newListener(options), options)}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// eventually waits for something that another goroutine is about to do.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 10 s still not: %s", what)
		}
	}
}

// group is a sync.WaitGroup that starts what it waits for.
type group struct{ sync.WaitGroup }

func (g *group) run(f func()) {
	g.Add(1)
	go func() {
		defer g.Done()
		f()
	}()
}
