package mol

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// listener takes events from the library and hands them to the caller's OnEvent and Logger, in order, in a goroutine of
// its own. A callback that is slow or blocks delays no call: the library keeps a bounded number of events, drops the rest
// and counts them.
//
// A nil listener stands for a client without events.
type listener struct {
	core    coreClient
	onEvent func(Event)
	logger  func() *slog.Logger // may change, and may be nil for a while
	mask    func(string) string // hides the token
	done    chan struct{}       // closed when there are no more events

	mu        sync.Mutex
	delivered uint64        // the number of the last event that was handed over
	changed   chan struct{} // closed and replaced when delivered grows

	panicLogged bool // only the delivering goroutine uses it
}

// observed reports whether events go to OnEvent or a logger.
func (o *Options) observed() bool { return o.OnEvent != nil || o.Logger != nil || o.logger != nil }

func newListener(core coreClient, options Options) *listener {
	if !options.observed() {
		return nil
	}
	logger := options.logger
	if options.Logger != nil || logger == nil {
		logger = func() *slog.Logger { return options.Logger }
	}
	l := &listener{
		core:    core,
		onEvent: options.OnEvent,
		logger:  logger,
		mask:    masker(options.Token),
		done:    make(chan struct{}),
		changed: make(chan struct{}),
	}
	go l.run()
	return l
}

// run hands over one event after the other, until the client is freed.
func (l *listener) run() {
	var number uint64
	ended := false
	defer func() {
		if !ended {
			// The callback ended its goroutine with runtime.Goexit, as t.FailNow does.
			l.advance(number)
			go l.run()
		}
	}()
	for failed := 0; failed < maxFailures; {
		var event Event
		var err *Error
		event, number, err = l.core.nextEvent()
		if err.isFreed() {
			break
		}
		if err == nil {
			failed = 0
			l.deliver(event)
		} else {
			// An event that cannot be read is skipped.
			failed++
			time.Sleep(failurePause)
		}
		l.advance(number)
	}
	ended = true
	close(l.done)
}

// advance notes that the events up to this number were handed over.
func (l *listener) advance(number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if number <= l.delivered {
		return
	}
	l.delivered = number
	close(l.changed)
	l.changed = make(chan struct{})
}

// waitDelivered waits until the events up to this number were handed over, at most for limit.
func (l *listener) waitDelivered(number uint64, limit time.Duration) {
	if l == nil {
		return
	}
	var timeout <-chan time.Time // started only if there is something to wait for
	for {
		l.mu.Lock()
		reached, changed := l.delivered >= number, l.changed
		l.mu.Unlock()
		if reached {
			return
		}
		if timeout == nil {
			timeout = time.After(limit)
		}
		select {
		case <-changed:
		case <-l.done:
			return
		case <-timeout:
			return
		}
	}
}

// waitEnded waits until no more events come, at most for limit.
func (l *listener) waitEnded(limit time.Duration) {
	if l == nil {
		return
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-l.done:
	case <-timer.C:
	}
}

func (l *listener) deliver(e Event) {
	if l.onEvent != nil {
		l.callOnEvent(e)
	}
	if logger := l.logger(); logger != nil {
		ignorePanic(func() { l.log(logger, e) })
	}
}

// callOnEvent recovers a panic of OnEvent, which would end the process: the caller cannot recover it in this goroutine.
// Only the first one is logged, because a callback that panics once often does so every time.
func (l *listener) callOnEvent(e Event) {
	defer func() {
		p := recover()
		if p == nil || l.panicLogged {
			return
		}
		if logger := l.logger(); logger != nil {
			l.panicLogged = true
			ignorePanic(func() {
				logger.Error("panic in OnEvent of mol.Options; later ones are not logged", "panic", l.mask(fmt.Sprint(p)))
			})
		}
	}()
	l.onEvent(e)
}

// ignorePanic calls a logger of the caller. A panic in it cannot be logged.
func ignorePanic(call func()) {
	defer func() { _ = recover() }()
	call()
}

// log writes a log record of an event, with the time of the event.
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

// logLevel is Info for events that an operator wants to see of every workspace that boots.
func (e *Event) logLevel() slog.Level {
	switch e.Kind {
	case EventWarning:
		return slog.LevelWarn
	case EventLookupDone, EventCacheHit, EventCacheMiss, EventWaiting, EventFetchStarted, EventFetchDone, EventBuildStarted,
		EventPullStarted, EventPullDone,
		EventTagged, EventThinned:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}
