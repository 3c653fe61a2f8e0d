package mol

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// listener hands events to the caller's OnEvent and Logger, in order and from a goroutine of its own, so
// that neither can hold up the answers. In between is a queue of bounded length: when the caller is too
// slow for it, build output and progress are left out and counted.
//
// A nil listener is nobody listening.
type listener struct {
	onEvent func(Event)
	logger  func() *slog.Logger // may change, and may be nil for a while
	mask    func(string) string // hides the token
	done    chan struct{}       // closed when the last event was delivered after close

	mu      sync.Mutex
	changed sync.Cond
	queue   []queuedEvent
	bytes   int
	current *queuedEvent // being delivered
	closing bool

	panicked bool // only the delivering goroutine looks
}

type queuedEvent struct {
	event Event
	// filler marks an EventThinned of our own, whose count can still grow.
	filler bool
	// delivered, if somebody waits for it, is closed when the event was delivered.
	delivered chan struct{}
}

const (
	// From here on, what can be left out is left out.
	softQueueLen = 1 << 10
	softQueue    = 4 << 20 // bytes of text
	// From here on, everything is.
	hardQueueLen = 8 << 10
)

// observed tells whether anybody wants to see the events.
func (o *Options) observed() bool { return o.OnEvent != nil || o.Logger != nil || o.logger != nil }

func newListener(options Options) *listener {
	if !options.observed() {
		return nil
	}
	logger := options.logger
	if options.Logger != nil || logger == nil {
		logger = func() *slog.Logger { return options.Logger }
	}
	l := &listener{
		onEvent: options.OnEvent,
		logger:  logger,
		mask:    masker(options.Token),
		done:    make(chan struct{}),
	}
	l.changed.L = &l.mu
	go l.run()
	return l
}

// put queues an event. It never waits.
func (l *listener) put(e Event) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	full := len(l.queue) >= softQueueLen || l.bytes >= softQueue
	if (full && thinnable(e.Kind)) || len(l.queue) >= hardQueueLen {
		l.leaveOut(e)
		return
	}
	l.queue = append(l.queue, queuedEvent{event: e})
	l.bytes += textBytes(&e)
	l.changed.Signal()
}

// thinnable are the kinds of which there can be any number, and of which one more or less changes nothing.
func thinnable(kind EventKind) bool {
	switch kind {
	case EventLog, EventFetchProgress, EventContextProgress, EventThinned:
		return true
	}
	return false
}

func (l *listener) leaveOut(e Event) {
	dropped := max(1, e.Dropped)
	if n := len(l.queue); n > 0 && l.queue[n-1].filler {
		last := &l.queue[n-1].event
		last.Dropped += dropped
		if last.Call != e.Call {
			last.Call, last.Runtime = 0, ""
		}
		return
	}
	l.queue = append(l.queue, queuedEvent{filler: true, event: Event{
		Kind: EventThinned, Call: e.Call, Runtime: e.Runtime, Time: e.Time, Dropped: dropped,
	}})
	l.changed.Signal()
}

// textBytes is about what an event costs besides its fixed size.
func textBytes(e *Event) int {
	return len(e.Message) + len(e.Line) + len(e.StepName) + len(e.StepError)
}

// mark gives a channel that is closed when all that was put so far is delivered; nil if it is already.
func (l *listener) mark() <-chan struct{} {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.current
	if n := len(l.queue); n > 0 {
		last = &l.queue[n-1]
	}
	if last == nil {
		return nil
	}
	if last.delivered == nil {
		last.delivered = make(chan struct{})
	}
	return last.delivered
}

// close lets the queue run empty and waits for that, up to a limit.
func (l *listener) close(limit time.Duration) {
	if l == nil {
		return
	}
	l.mu.Lock()
	l.closing = true
	l.changed.Signal()
	l.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-l.done:
	case <-timer.C:
	}
}

func (l *listener) run() {
	ended := false
	defer func() {
		if !ended {
			// The callback ended its goroutine with runtime.Goexit, as t.FailNow does.
			l.delivered()
			go l.run()
		}
	}()
	for {
		e, more := l.next()
		if !more {
			break
		}
		l.deliver(e)
		l.delivered()
	}
	ended = true
	close(l.done)
}

func (l *listener) next() (Event, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 {
		if l.closing {
			return Event{}, false
		}
		l.queue = nil
		l.changed.Wait()
	}
	first := l.queue[0]
	l.queue[0] = queuedEvent{}
	l.queue = l.queue[1:]
	l.bytes -= textBytes(&first.event)
	l.current = &first
	if first.filler {
		first.event.Message = fmt.Sprintf("%d events left out: they came faster than they were taken", first.event.Dropped)
	}
	return first.event, true
}

func (l *listener) delivered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current.delivered != nil {
		close(l.current.delivered)
	}
	l.current = nil
}

func (l *listener) deliver(e Event) {
	if l.onEvent != nil {
		l.protect("OnEvent", func() { l.onEvent(e) })
	}
	if logger := l.logger(); logger != nil {
		l.protect("Logger", func() { l.log(logger, e) })
	}
}

// protect keeps a panic in the caller's code from ending the process: it would come out of a goroutine that
// the caller has no way to guard. The first one is logged; a callback that panics once does so every time.
func (l *listener) protect(what string, call func()) {
	defer func() {
		p := recover()
		if p == nil || l.panicked {
			return
		}
		l.panicked = true
		if logger := l.logger(); logger != nil && what != "Logger" {
			defer func() { _ = recover() }()
			logger.Error("panic in "+what+" of mol.Options; later ones are not logged",
				"panic", l.mask(fmt.Sprint(p)))
		}
	}()
	call()
}

// log makes a record of an event, with the event's own time.
func (l *listener) log(logger *slog.Logger, e Event) {
	ctx := context.Background()
	level := e.logLevel()
	if !logger.Enabled(ctx, level) {
		return
	}
	text := e.Message
	if text == "" {
		text = strings.ReplaceAll(string(e.Kind), "_", " ")
	}
	r := slog.NewRecord(e.Time, level, text, 0)
	r.AddAttrs(e.attrs()...)
	_ = logger.Handler().Handle(ctx, r)
}

// logLevel: what an operator wants to see of every workspace that boots is Info, the rest Debug.
func (e *Event) logLevel() slog.Level {
	switch e.Kind {
	case EventWarning:
		return slog.LevelWarn
	case EventLookupDone, EventCacheHit, EventCacheMiss, EventWaiting, EventFetchStarted, EventFetchDone, EventBuildStarted,
		EventTagged, EventThinned:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// attrs are the fields that are set, under the names they have in the library's own JSON.
func (e *Event) attrs() []slog.Attr {
	attrs := []slog.Attr{slog.String("kind", string(e.Kind))}
	text := func(name, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(name, value))
		}
	}
	number := func(name string, value int64) {
		if value != 0 {
			attrs = append(attrs, slog.Int64(name, value))
		}
	}
	if e.Call != 0 {
		attrs = append(attrs, slog.Uint64("call", e.Call))
	}
	text("runtime", e.Runtime)
	text("span", e.Span)
	text("url", e.URL)
	text("ref", e.Ref)
	text("latest_ref", e.LatestRef)
	text("commit_sha", e.CommitSHA)
	text("branch", e.Branch)
	text("reason", e.Reason)
	text("holder", e.Holder)
	text("builder", e.Builder)
	text("endpoint", e.Endpoint)
	text("hint", e.Hint)
	number("step", int64(e.Step))
	number("steps", int64(e.Steps))
	text("step_name", e.StepName)
	if e.Cached {
		attrs = append(attrs, slog.Bool("cached", true))
	}
	text("line", e.Line)
	text("error", e.StepError)
	number("files", e.Files)
	number("objects", e.Objects)
	number("objects_total", e.ObjectsTotal)
	number("bytes", e.Bytes)
	number("dropped", e.Dropped)
	if e.Duration != 0 {
		attrs = append(attrs, slog.Duration("duration", e.Duration))
	}
	return attrs
}
