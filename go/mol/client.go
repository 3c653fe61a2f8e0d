package mol

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	goruntime "runtime"
	"strings"
	"sync"
	"time"
)

// Client makes images with one set of [Options]. It is safe for use by any number of goroutines. A call that waits
// needs a goroutine and no thread. The client itself uses one thread, and one more for events if [Options.OnEvent] or
// [Options.Logger] is set, until [Client.Close].
type Client struct {
	// A pointer, so that the goroutine that waits for results does not keep the Client itself alive (see newClient), and
	// that printing a Client shows none of its fields.
	inner *client
}

// New checks the options and creates a client. It uses neither network nor engine before the first call.
//
// The error is an [*Error]: [CodeInvalidOption] for an invalid option; [CodeInternal] if the package was built without the
// library, or with another version of it.
func New(options Options) (*Client, error) {
	settings, err := options.settings()
	if err != nil {
		return nil, err
	}
	core, err := newCoreClient(settings, options.observed())
	if err != nil {
		return nil, err
	}
	return newClient(startClient(core, newListener(core, options), options)), nil
}

func newClient(inner *client) *Client {
	c := &Client{inner}
	// For a Client that is never closed. In its own goroutine, because close blocks, and a cleanup must not run for a
	// long time.
	goruntime.AddCleanup(c, func(inner *client) { go inner.close() }, inner)
	return c
}

// EnsureLocalImage returns the image for the newest commit of a runtime's template, or for the one in [Options.Pins],
// and builds it if the engine does not have it. Calls for the same runtime and commit share one fetch and one build.
//
// A deadline on the context takes the place of [Options.Ceiling]. When the context ends, the call returns
// within a second, with an error for which errors.Is holds for the context's Err and its Cause; the fetch
// or the build stops unless another call waits for it.
//
// The error is an [*Error], whose [Code] says what kind of failure it is.
func (c *Client) EnsureLocalImage(ctx context.Context, runtime string) (Image, error) {
	return c.image(ctx, task{kind: taskEnsure, runtime: runtime})
}

// EnsureCommit returns the image for exactly one commit of a runtime's template, and builds it if the engine does not
// have it. The commit has all 40 or 64 hexadecimal digits. There is no lookup, and no request to Gitea if the engine
// has the image. The tags are those of [Client.EnsureLocalImage], so the moving one is set to this commit.
//
// The error for an invalid commit is [ErrInvalidArgument]. The context and all other errors are as for
// [Client.EnsureLocalImage].
func (c *Client) EnsureCommit(ctx context.Context, runtime, sha string) (Image, error) {
	return c.image(ctx, task{kind: taskEnsureCommit, runtime: runtime, commit: sha})
}

func (c *Client) image(ctx context.Context, t task) (Image, error) {
	result, err := c.inner.call(ctx, t)
	goruntime.KeepAlive(c)
	if err != nil {
		return Image{}, err
	}
	return *result.image, nil
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
// Close waits up to a second for [Options.OnEvent] to handle the events that are still queued.
func (c *Client) Close() error {
	c.inner.close()
	goruntime.KeepAlive(c)
	return nil
}

// coreClient is a client of the library, as mol.h has it. bridge_cgo.go implements it; tests have another one that
// misbehaves on demand.
type coreClient interface {
	// start starts a call and does not wait for it. The timeout is as in mol.h.
	start(t task, timeoutMS int64) (id uint64, err *Error)
	// cancel cancels a call. It still gets its result.
	cancel(id uint64)
	// wait waits for the end of any call. CodeClosed and CodeNoSuchHandle mean that the client is freed.
	wait() (ended, *Error)
	// nextEvent waits for the next event, and returns its number, which grows from 1. The errors are as for wait.
	nextEvent() (Event, uint64, *Error)
	// metrics returns the client's counters, in JSON.
	metrics() ([]byte, *Error)
	// free ends everything, wait and nextEvent included.
	free()
}

// task is what a call asks for.
type task struct {
	kind    taskKind
	runtime string // "" for tasks about all runtimes
	commit  string // of taskEnsureCommit
	keep    uint32
	// recentMS is keep_recent_ms of mol_request.
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

// ended is the end of a call: an image, a report in JSON, or an error.
type ended struct {
	call   uint64
	image  *Image
	report json.RawMessage
	err    *Error
	// lastEvent is the number of the last event before the end, 0 for none.
	lastEvent uint64
}

type client struct {
	core     coreClient
	listener *listener
	mask     func(string) string // hides the token

	// cgoSlots limits concurrent cgo calls. A goroutine in C holds a thread: without a limit, ten thousand calls that
	// start at once could make the Go runtime start thousands of threads.
	cgoSlots chan struct{}

	stop   chan struct{} // closed when Close begins
	closed chan struct{} // closed when it is done
	dead   chan struct{} // closed when the dispatcher ends

	mu      sync.Mutex
	closing bool
	running sync.WaitGroup // Add only with mu and while not closing
	// waiting has the calls that wait for their result; early the results that came before start returned the id.
	waiting   map[uint64]chan<- *ended
	early     map[uint64]*ended
	lastEvent uint64 // the highest of all results so far
	broken    *Error // why the dispatcher gave up
}

const (
	maxCgoCalls = 8
	// cancelGrace is how long a cancelled call waits for its result, so that it returns within a second.
	cancelGrace = 800 * time.Millisecond
	// deadlineGrace is the part of cancelGrace in which a call whose deadline has passed is not cancelled yet. The
	// library has the same deadline, and its error names what was running.
	deadlineGrace = 200 * time.Millisecond
	// eventGrace is how long a call that has its result waits for OnEvent to take the events before it.
	eventGrace = 100 * time.Millisecond
	// closeGrace is how long Close waits for OnEvent to take the last events.
	closeGrace = time.Second

	// After maxFailures failures in a row, with failurePause after each, the library is considered broken.
	maxFailures  = 10
	failurePause = 10 * time.Millisecond
)

func startClient(core coreClient, l *listener, options Options) *client {
	c := &client{
		core:     core,
		listener: l,
		mask:     masker(options.Token),
		cgoSlots: make(chan struct{}, maxCgoCalls),
		stop:     make(chan struct{}),
		closed:   make(chan struct{}),
		dead:     make(chan struct{}),
		waiting:  make(map[uint64]chan<- *ended),
		early:    make(map[uint64]*ended),
	}
	go c.dispatch()
	return c
}

// call runs a task and waits for its result.
func (c *client) call(ctx context.Context, t task) (*ended, error) {
	if ctx.Err() != nil {
		return nil, contextError(ctx, c.shown(t), nil, c.mask)
	}
	if err := c.begin(); err != nil {
		err.Runtime = c.shown(t)
		return nil, err
	}
	defer c.running.Done()

	id, results, err := c.start(ctx, t)
	if err != nil {
		return nil, err
	}
	select {
	case e := <-results:
		c.listener.waitDelivered(e.lastEvent, eventGrace)
		return e, e.failure(t.runtime)
	case <-ctx.Done():
		grace := time.Duration(0)
		if _, ok := ctx.Deadline(); ok && isPassed(ctx) {
			grace = deadlineGrace
		}
		return nil, contextError(ctx, c.shown(t), c.abandon(id, results, grace), c.mask)
	case <-c.stop:
		return nil, closedError(c.shown(t), c.abandon(id, results, 0))
	}
}

// shown returns the runtime of a task for an error. Only the library checks the name, so it may be any text before a
// call has started.
func (c *client) shown(t task) string { return shownRuntime(t.runtime, c.mask) }

// report runs a task whose result is a report, and decodes it into report.
func (c *client) report(ctx context.Context, t task, report any) error {
	e, err := c.call(ctx, t)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(e.report, report); err != nil {
		return &Error{Code: CodeInternal, Message: "libmol sent a report that cannot be read: " + err.Error()}
	}
	return nil
}

// begin counts a call as running, unless the client is closed.
func (c *client) begin() *Error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return alreadyClosedError()
	}
	if c.broken != nil {
		err := *c.broken
		return &err
	}
	c.running.Add(1)
	return nil
}

func (c *client) start(ctx context.Context, t task) (uint64, <-chan *ended, error) {
	select {
	case c.cgoSlots <- struct{}{}:
	case <-ctx.Done():
		return 0, nil, contextError(ctx, c.shown(t), nil, c.mask)
	case <-c.stop:
		return 0, nil, closedError(c.shown(t), nil)
	}
	id, err := c.core.start(t, timeoutMS(ctx))
	<-c.cgoSlots
	if err != nil {
		if err.Runtime == "" {
			err.Runtime = c.shown(t)
		}
		return 0, nil, err
	}
	results := make(chan *ended, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, came := c.early[id]; came {
		delete(c.early, id)
		results <- e
	} else if c.broken != nil {
		results <- &ended{err: c.broken}
	} else {
		c.waiting[id] = results
	}
	return id, results, nil
}

// abandon waits up to grace for a call to end by itself, and then cancels it. It returns the error in the call's
// result; nil if the call succeeded, or if no result came within cancelGrace.
func (c *client) abandon(id uint64, results <-chan *ended, grace time.Duration) *Error {
	timer := time.NewTimer(cancelGrace)
	defer timer.Stop()
	if grace > 0 {
		select {
		case e := <-results:
			return e.err
		case <-time.After(grace):
		}
	}
	select {
	case c.cgoSlots <- struct{}{}:
		c.core.cancel(id)
		<-c.cgoSlots
	case e := <-results:
		return e.err
	case <-timer.C:
		return nil
	}
	select {
	case e := <-results:
		return e.err
	case <-timer.C:
		return nil
	}
}

// dispatch hands each result to its call, until the client is freed. Nothing in here may wait for a caller.
func (c *client) dispatch() {
	defer close(c.dead)
	for failed := 0; ; {
		e, err := c.core.wait()
		switch {
		case err == nil:
			failed = 0
			c.deliver(&e)
		case err.isFreed():
			c.fail(closedError("", nil))
			return
		default:
			if failed++; failed == maxFailures {
				c.fail(err)
				return
			}
			time.Sleep(failurePause)
		}
	}
}

// isFreed reports whether the client was freed, during a wait or between two.
func (e *Error) isFreed() bool {
	return e != nil && (e.Code == CodeClosed || e.Code == CodeNoSuchHandle)
}

func (c *client) deliver(e *ended) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastEvent = max(c.lastEvent, e.lastEvent)
	if waiting, known := c.waiting[e.call]; known {
		delete(c.waiting, e.call)
		waiting <- e
	} else {
		c.early[e.call] = e
	}
}

// fail ends every call, now and later, with an error.
func (c *client) fail(err *Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = err
	for id, waiting := range c.waiting {
		delete(c.waiting, id)
		waiting <- &ended{err: err}
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
	c.mu.Lock()
	lastEvent := c.lastEvent
	c.mu.Unlock()
	start := time.Now()
	c.listener.waitDelivered(lastEvent, closeGrace)
	c.core.free()
	<-c.dead
	c.listener.waitEnded(closeGrace - time.Since(start))
	close(c.closed)
}

// failure returns a copy of the error, if there is one: calls may share it.
func (e *ended) failure(runtime string) error {
	if e.err == nil {
		return nil
	}
	err := *e.err
	if err.Runtime == "" {
		err.Runtime = runtime
	}
	return &err
}

// timeoutCeiling is MOL_TIMEOUT_CEILING of mol.h: the call ends at the ceiling of the options.
const timeoutCeiling = math.MaxInt64

// timeoutMS is the time up to the context's deadline in milliseconds, at least one and rounded up, so that
// the library never gives up before the context does; timeoutCeiling without a deadline.
func timeoutMS(ctx context.Context) int64 {
	deadline, ok := ctx.Deadline()
	if !ok {
		return timeoutCeiling
	}
	return max(1, int64((time.Until(deadline)+time.Millisecond-1)/time.Millisecond))
}

// masker returns a function that masks a token. A struct that has the function in place of the token can be printed
// without showing the token.
func masker(token string) func(string) string {
	return func(text string) string { return MaskTokenInString(text, token) }
}

func isPassed(ctx context.Context) bool {
	return errors.Is(ctx.Err(), context.DeadlineExceeded)
}

// contextError is the error of a call that its context ended. The library's own error is kept if it says more than that
// the call was cancelled. The text of the context's cause is the caller's: it is masked, and put on one line.
func contextError(ctx context.Context, runtime string, fromLibrary *Error, mask func(string) string) *Error {
	call := "the call"
	if runtime != "" {
		call += " for the runtime " + runtime
	}
	err := &Error{Code: CodeCanceled, Message: call + " was cancelled"}
	if isPassed(ctx) {
		err.Code = CodeDeadlineExceeded
		err.Message = "the deadline of " + call + " has passed"
		err.Hint = "allow more time"
		if runtime != "" {
			err.Hint += ": a first build can take 10 minutes or more if the platform is emulated"
		}
	}
	if fromLibrary != nil {
		if fromLibrary.Code == CodeCanceled || fromLibrary.Code == CodeDeadlineExceeded && !isPassed(ctx) {
			err.takeBuild(fromLibrary)
		} else {
			kept := *fromLibrary
			err = &kept
		}
	}
	err.Runtime = runtime
	cause := context.Cause(ctx)
	if cause != nil && !errors.Is(ctx.Err(), cause) {
		err.causeText = mask(strings.Join(strings.Fields(cause.Error()), " "))
	}
	return err.withCauses(ctx.Err(), cause)
}

// alreadyClosedError is the error of a call that begins after Close.
func alreadyClosedError() *Error {
	return &Error{Code: CodeClosed, Message: "the client is closed", Hint: "create a new client with mol.New"}
}

// closedError is the error of a call that Close cancels.
func closedError(runtime string, fromLibrary *Error) *Error {
	err := &Error{Code: CodeClosed, Runtime: runtime, Message: "the client was closed while the call was running"}
	if fromLibrary != nil {
		err.takeBuild(fromLibrary)
	}
	return err.withCauses(context.Canceled)
}
