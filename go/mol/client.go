package mol

import (
	"context"
	"encoding/json"
	"errors"
	goruntime "runtime"
	"slices"
	"sync"
	"time"
)

// Client makes images with one set of [Options]. It is safe for use by any number of goroutines. A call
// that waits costs a goroutine and no thread; the client itself keeps one thread, which waits for the
// library's answers, until [Client.Close].
type Client struct {
	// Everything is behind this pointer, so that the goroutine that waits for answers does not keep the
	// Client itself alive (see New), and so that printing a Client prints nothing of it.
	inner *client
}

// New checks the options and prepares a client. Neither network nor engine are asked before the first call.
//
// The error is an [*Error]: [CodeInvalidOption] for an option that cannot be used; [CodeInternal] where the
// package was built without the library, or with another version of it.
func New(options Options) (*Client, error) {
	settings, err := options.settings()
	if err != nil {
		return nil, err
	}
	core, err := newCoreClient(settings, options.observed())
	if err != nil {
		return nil, err
	}
	inner := startClient(core, newListener(options), options)
	c := &Client{inner}
	// A back-stop for a Client that nobody closes. Closing waits, and cleanups share one goroutine.
	goruntime.AddCleanup(c, func(inner *client) { go inner.close() }, inner)
	return c, nil
}

// EnsureLocalImage returns the image for the newest commit of a runtime's template, or for the one in [Options.Pins],
// and builds it if the engine does not have it. Calls for the same runtime and commit share one fetch and one build.
//
// A deadline on the context takes the place of [Options.Ceiling]. When the context ends, the call returns
// within a second, with an error for which errors.Is holds for the context's Err and its Cause; the fetch
// or the build stops unless somebody else waits for it as well.
//
// The error is an [*Error], whose [Code] says what kind of failure it is.
func (c *Client) EnsureLocalImage(ctx context.Context, runtime string) (Image, error) {
	return c.image(ctx, task{kind: taskEnsure, runtime: runtime})
}

// EnsureCommit returns the image for exactly one commit of a runtime's template, and builds it if the engine does not
// have it. The commit has all 40 or 64 hexadecimal digits. There is no lookup, and no network at all if the engine has
// the image. The tags are those of [Client.EnsureLocalImage], so the moving one is set to this commit.
//
// An invalid commit is [ErrInvalidArgument]; otherwise it is as for EnsureLocalImage.
func (c *Client) EnsureCommit(ctx context.Context, runtime, sha string) (Image, error) {
	return c.image(ctx, task{kind: taskEnsureCommit, runtime: runtime, commit: sha})
}

func (c *Client) image(ctx context.Context, t task) (Image, error) {
	answer, err := c.inner.call(ctx, t)
	goruntime.KeepAlive(c)
	if err != nil {
		return Image{}, err
	}
	return *answer.image, nil
}

// EngineHost returns the address of the engine in use, as DOCKER_HOST has it: what another client needs to find the
// images. An engine behind TLS needs DOCKER_TLS_VERIFY and DOCKER_CERT_PATH too. The context is as for
// [Client.EnsureLocalImage].
func (c *Client) EngineHost(ctx context.Context) (string, error) {
	var found struct {
		DockerHost string `json:"docker_host"`
	}
	err := c.inner.report(ctx, task{kind: taskEngineHost}, &found)
	goruntime.KeepAlive(c)
	if err != nil {
		return "", err
	}
	return found.DockerHost, nil
}

// Close cancels the calls that are running, waits for them and frees what the client holds. They return an
// error for which errors.Is holds for [ErrClosed] and [context.Canceled]; later calls return ErrClosed.
// Close may be called more than once and from several goroutines; each call returns when the client is
// closed. The error is always nil.
//
// Events that came before are handed to [Options.OnEvent] before Close returns, unless it takes longer than
// a second over them.
func (c *Client) Close() error {
	c.inner.close()
	goruntime.KeepAlive(c)
	return nil
}

// coreClient is the library's client, as mol.h has it. Only bridge_cgo.go implements it for real; tests
// have another one that misbehaves on demand.
type coreClient interface {
	// submit starts a call and does not wait for it. A timeout of 0 stands for the ceiling.
	submit(t task, timeoutMS int64) (id uint64, err *Error)
	// cancel asks for the end of a call. It still gets its answer, as every call does exactly once.
	cancel(id uint64)
	// next waits for the next message of any call. CodeClosed and CodeNoSuchHandle say that the client is
	// freed and none will come.
	next() (message, *Error)
	// metrics are the client's numbers, in JSON.
	metrics() ([]byte, *Error)
	// free ends everything, next included.
	free()
}

// task is what a call asks for.
type task struct {
	kind    taskKind
	runtime string // "" for what is about all of them
	commit  string // of taskEnsureCommit
	keep    uint32
	// recentMS is as for mol_prune.
	recentMS int64
	dryRun   bool
}

type taskKind int

const (
	taskEnsure taskKind = iota
	taskEnsureCommit
	taskEngineHost
	taskList
	taskPrune
	taskDiagnose
	taskBuildLog
)

// takesRuntime tells whether a task of this kind is about one runtime.
func (k taskKind) takesRuntime() bool {
	return k == taskEnsure || k == taskEnsureCommit || k == taskBuildLog
}

// kindResult marks the answer that is a report, where the kind of an event would be.
const kindResult EventKind = "result"

// message is an event of a call, or its answer: an image, a report in JSON, or an error.
type message struct {
	call   uint64
	event  *Event
	image  *Image
	report json.RawMessage
	err    *Error
}

// answer is how a call ended, with the events that came before it still on their way.
type answer struct {
	image  *Image
	report json.RawMessage
	err    *Error
	events <-chan struct{}
}

type client struct {
	core     coreClient
	listener *listener
	mask     func(string) string // hides the token
	runtimes []string            // the allowlist, alphabetical

	// Threads that are inside the library to submit or to cancel. A goroutine in C holds a thread: without
	// a limit, ten thousand calls that start at once could have the Go runtime make thousands of them.
	inside chan struct{}

	stop   chan struct{} // closed when Close begins
	closed chan struct{} // closed when it is done
	dead   chan struct{} // closed when the dispatcher ends

	mu      sync.Mutex
	closing bool
	running sync.WaitGroup // Add only with mu and while not closing
	// waiting has the calls that wait for their answer, and early the answers that came before submit
	// could say what the call's id is.
	waiting map[uint64]chan<- *answer
	early   map[uint64]*answer
	broken  *Error // why the dispatcher gave up
}

const (
	maxInside = 8
	// What the library may need to confirm a cancel. A call that was cancelled returns within a second
	// even if it does not.
	cancelGrace = 800 * time.Millisecond
	// How long a call that has its answer waits for the listener to see what came before it.
	eventGrace = 100 * time.Millisecond
	// How long Close waits for the listener.
	closeGrace = time.Second
)

func startClient(core coreClient, l *listener, options Options) *client {
	c := &client{
		core:     core,
		listener: l,
		mask:     masker(options.Token),
		runtimes: options.KnownRuntimes(),
		inside:   make(chan struct{}, maxInside),
		stop:     make(chan struct{}),
		closed:   make(chan struct{}),
		dead:     make(chan struct{}),
		waiting:  make(map[uint64]chan<- *answer),
		early:    make(map[uint64]*answer),
	}
	go c.dispatch()
	return c
}

// call has a task carried out and waits for its answer.
func (c *client) call(ctx context.Context, t task) (*answer, error) {
	// This comes first: every other error shows the name as it is.
	if t.kind.takesRuntime() && !slices.Contains(c.runtimes, t.runtime) {
		return nil, unknownRuntime(t.runtime, c.runtimes, c.mask)
	}
	if ctx.Err() != nil {
		return nil, contextError(ctx, t.runtime, nil)
	}
	if err := c.begin(); err != nil {
		err.Runtime = t.runtime
		return nil, err
	}
	defer c.running.Done()

	id, answers, err := c.submit(ctx, t)
	if err != nil {
		return nil, err
	}
	select {
	case a := <-answers:
		return a, a.settle(t.runtime)
	case <-ctx.Done():
		return nil, contextError(ctx, t.runtime, c.giveUp(id, answers))
	case <-c.stop:
		return nil, closedError(t.runtime, c.giveUp(id, answers))
	}
}

// report has a task carried out whose answer is a report, and reads that into what report points to.
func (c *client) report(ctx context.Context, t task, report any) error {
	a, err := c.call(ctx, t)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(a.report, report); err != nil {
		return &Error{Code: CodeInternal, Message: "libmol sent a report that cannot be read: " + err.Error()}
	}
	return nil
}

// begin counts a call as running, unless there can be no more.
func (c *client) begin() *Error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return &Error{
			Code:    CodeClosed,
			Message: "the client is closed",
			Hint:    "make another one with mol.New",
		}
	}
	if c.broken != nil {
		err := *c.broken
		return &err
	}
	c.running.Add(1)
	return nil
}

func (c *client) submit(ctx context.Context, t task) (uint64, <-chan *answer, error) {
	select {
	case c.inside <- struct{}{}:
	case <-ctx.Done():
		return 0, nil, contextError(ctx, t.runtime, nil)
	case <-c.stop:
		return 0, nil, closedError(t.runtime, nil)
	}
	id, err := c.core.submit(t, timeoutMS(ctx))
	<-c.inside
	if err != nil {
		if err.Runtime == "" {
			err.Runtime = t.runtime
		}
		return 0, nil, err
	}
	answers := make(chan *answer, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, came := c.early[id]; came {
		delete(c.early, id)
		answers <- a
	} else if c.broken != nil {
		answers <- &answer{err: c.broken}
	} else {
		c.waiting[id] = answers
	}
	return id, answers, nil
}

// giveUp cancels a call and waits for its answer: what the library says of how the call ended, nil for
// success or where it said nothing in time.
func (c *client) giveUp(id uint64, answers <-chan *answer) *Error {
	timer := time.NewTimer(cancelGrace)
	defer timer.Stop()
	select {
	case c.inside <- struct{}{}:
		c.core.cancel(id)
		<-c.inside
	case a := <-answers:
		return a.err
	case <-timer.C:
		return nil
	}
	select {
	case a := <-answers:
		return a.err
	case <-timer.C:
		return nil
	}
}

// dispatch takes the library's messages, one after the other, until the client is freed. Nothing in here
// may wait for a caller or for the listener.
func (c *client) dispatch() {
	defer close(c.dead)
	const tries = 10
	for failed := 0; failed < tries; {
		m, err := c.core.next()
		switch {
		case err == nil:
			failed = 0
			c.take(m)
		case err.Code == CodeClosed, err.Code == CodeNoSuchHandle:
			// Freed while it waited, or between two waits.
			c.fail(closedError("", nil))
			return
		case err.Code == CodeNoEvent:
			// Nothing came in time. It was not asked to be quick.
		default:
			// One failure may be about one message. A library that keeps failing will not answer any more.
			if failed++; failed == tries {
				c.fail(err)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func (c *client) take(m message) {
	switch {
	case m.event != nil:
		c.listener.put(*m.event)
	case m.image != nil:
		c.answer(m.call, &answer{image: m.image})
	case m.report != nil:
		c.answer(m.call, &answer{report: m.report})
	case m.err != nil:
		c.answer(m.call, &answer{err: m.err})
	}
}

func (c *client) answer(id uint64, a *answer) {
	a.events = c.listener.mark()
	c.mu.Lock()
	defer c.mu.Unlock()
	if waiting, known := c.waiting[id]; known {
		delete(c.waiting, id)
		waiting <- a
	} else {
		c.early[id] = a
	}
}

// fail answers every call, now and from now on, with an error.
func (c *client) fail(err *Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = err
	for id, waiting := range c.waiting {
		delete(c.waiting, id)
		waiting <- &answer{err: err}
	}
}

func (c *client) close() {
	c.mu.Lock()
	first := !c.closing
	c.closing = true
	c.mu.Unlock()
	if !first {
		<-c.closed
		return
	}
	close(c.stop)
	c.running.Wait()
	c.core.free()
	<-c.dead
	c.listener.close(closeGrace)
	close(c.closed)
}

// settle waits a moment for the listener and gives the error, if the answer is one. It is a copy: several
// calls may have the same.
func (a *answer) settle(runtime string) error {
	if a.events != nil {
		timer := time.NewTimer(eventGrace)
		select {
		case <-a.events:
		case <-timer.C:
		}
		timer.Stop()
	}
	if a.err == nil {
		return nil
	}
	err := *a.err
	if err.Runtime == "" {
		err.Runtime = runtime
	}
	return &err
}

// timeoutMS is the time up to the context's deadline in milliseconds, at least one and rounded up, so that
// the library never gives up before the context does; 0 without a deadline.
func timeoutMS(ctx context.Context) int64 {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return max(1, int64((time.Until(deadline)+time.Millisecond-1)/time.Millisecond))
}

// masker hides a token. Kept as a function, the token shows in no print of what holds it.
func masker(token string) func(string) string {
	return func(text string) string { return MaskTokenInString(text, token) }
}

// contextError is what a call returns that its context ended. What the library said of it is kept where it
// says more than that the call was cancelled.
func contextError(ctx context.Context, runtime string, said *Error) *Error {
	call := "the call"
	if runtime != "" {
		call += " for runtime " + quoteShort(runtime)
	}
	err := &Error{Code: CodeCanceled, Message: call + " was canceled"}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err.Code = CodeDeadlineExceeded
		err.Message = "the deadline of " + call + " passed"
		err.Hint = "allow more time"
		if runtime != "" {
			err.Hint += ": a first build can take 10 minutes and more where the platform is emulated"
		}
	}
	if said != nil {
		switch said.Code {
		case CodeCanceled, CodeDeadlineExceeded:
			err.URL, err.Step, err.Line, err.ExitCode, err.LogTail = said.URL, said.Step, said.Line, said.ExitCode, said.LogTail
		default:
			kept := *said
			err = &kept
		}
	}
	err.Runtime = runtime
	cause := context.Cause(ctx)
	if cause != nil && !errors.Is(ctx.Err(), cause) {
		err.Message += ": " + cause.Error()
	}
	return err.withCauses(ctx.Err(), cause)
}

func closedError(runtime string, said *Error) *Error {
	err := &Error{Code: CodeClosed, Runtime: runtime, Message: "the client was closed while the call was running"}
	if said != nil {
		err.URL, err.Step, err.Line, err.ExitCode, err.LogTail = said.URL, said.Step, said.Line, said.ExitCode, said.LogTail
	}
	return err.withCauses(context.Canceled)
}
