package mol

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// listening returns a listener with its library, and a function that frees that library when all events were delivered.
func listening(options Options) (*fakeCore, *listener, func()) {
	f := newFakeCore()
	l := newListener(f, options)
	return f, l, func() {
		l.waitDelivered(f.lastEvent, 10*time.Second)
		f.free()
		l.waitEnded(10 * time.Second)
	}
}

func TestNoListenerWithoutCallbackOrLogger(t *testing.T) {
	l := newListener(newFakeCore(), Options{})
	if l != nil {
		t.Fatal("a listener without a callback and a logger")
	}
	l.waitDelivered(1, time.Hour)
	l.waitEnded(time.Hour)
}

func TestEventsComeInOrderAndFromOneGoroutineAtATime(t *testing.T) {
	const events = 1000
	var inside sync.Mutex
	next := 0
	f, _, done := listening(Options{OnEvent: func(e Event) {
		if !inside.TryLock() {
			t.Error("two at once")
			return
		}
		defer inside.Unlock()
		if e.Step != next {
			t.Errorf("got %d, want %d", e.Step, next)
		}
		next++
	}})
	for i := range events {
		f.event(Event{Kind: EventLog, Step: i})
	}
	done()
	if next != events {
		t.Errorf("%d events came", next)
	}
}

func TestAPanicInOnEventIsLoggedOnceAndStopsNothing(t *testing.T) {
	var log bytes.Buffer
	events := 0
	f, _, done := listening(Options{
		Token:  testToken,
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
		OnEvent: func(Event) {
			events++
			panic(errors.New("cannot draw " + testToken))
		},
	})
	for range 10 {
		f.event(Event{Kind: EventTagged})
	}
	done()
	if events != 10 || strings.Count(log.String(), "panic in OnEvent") != 1 || strings.Contains(log.String(), testToken) {
		t.Errorf("%d events, log:\n%s", events, log.String())
	}
	if !strings.Contains(log.String(), "cannot draw ***") {
		t.Errorf("the log does not say what it was:\n%s", log.String())
	}
}

// A failingOnce panics at its first record.
type failingOnce struct {
	slog.Handler
	failed *bool
}

func (h failingOnce) Enabled(context.Context, slog.Level) bool {
	if !*h.failed {
		*h.failed = true
		panic("no log yet")
	}
	return true
}

func TestAPanicInOnEventIsLoggedAfterOneInTheLogger(t *testing.T) {
	var log bytes.Buffer
	events := 0
	f, _, done := listening(Options{
		Logger: slog.New(failingOnce{slog.NewTextHandler(&log, nil), new(bool)}),
		OnEvent: func(Event) {
			if events++; events > 1 {
				panic("cannot draw")
			}
		},
	})
	for range 3 {
		f.event(Event{Kind: EventTagged})
	}
	done()
	if strings.Count(log.String(), "panic in OnEvent") != 1 {
		t.Errorf("log:\n%s", log.String())
	}
}

type panickingHandler struct{ slog.Handler }

func (panickingHandler) Enabled(context.Context, slog.Level) bool { panic("no log") }

func TestAPanicInTheLoggerStopsNothing(t *testing.T) {
	events := 0
	f, _, done := listening(Options{
		Logger:  slog.New(panickingHandler{}),
		OnEvent: func(Event) { events++; panic("both") },
	})
	for range 10 {
		f.event(Event{Kind: EventTagged})
	}
	done()
	if events != 10 {
		t.Errorf("%d events came", events)
	}
}

func TestAnOnEventThatEndsItsGoroutineStopsNothing(t *testing.T) {
	events := 0
	f, l, done := listening(Options{OnEvent: func(Event) { events++; runtime.Goexit() }})
	f.event(Event{Kind: EventTagged})
	l.waitDelivered(f.lastEvent, 10*time.Second)
	for range 9 {
		f.event(Event{Kind: EventTagged})
	}
	done()
	if events != 10 {
		t.Errorf("%d events came", events)
	}
}

func TestALogRecordHasTheEventsTimeLevelAndFields(t *testing.T) {
	var log bytes.Buffer
	f, _, done := listening(Options{Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug - 4}))})
	at := time.UnixMilli(1700000000123).UTC()
	want := []struct {
		event Event
		level string
	}{
		{Event{Kind: EventLookupStarted}, "DEBUG"},
		{Event{Kind: EventCacheHit, Ref: "r"}, "INFO"},
		{Event{Kind: EventWaiting, Holder: "process 7"}, "INFO"},
		{Event{Kind: EventBuildStarted}, "INFO"},
		{Event{Kind: EventLog, Line: "x"}, "DEBUG"},
		{Event{Kind: EventTagged}, "INFO"},
		{Event{Kind: EventWarning}, "WARN"},
		{Event{Kind: EventThinned}, "INFO"},
		{Event{Kind: "of_a_newer_library"}, "DEBUG"},
	}
	for i, w := range want {
		w.event.Time = at
		if i%2 == 0 {
			w.event.Message = "for people"
		}
		f.event(w.event)
	}
	done()
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines:\n%s", len(lines), log.String())
	}
	for i, line := range lines {
		var got map[string]any
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(err)
		}
		text := "for people"
		if i%2 != 0 {
			text = strings.ReplaceAll(string(want[i].event.Kind), "_", " ")
		}
		if got["level"] != want[i].level || got["msg"] != text || got["kind"] != string(want[i].event.Kind) || got["time"] != at.Format(time.RFC3339Nano) {
			t.Errorf("got %s, want %s and %q", line, want[i].level, text)
		}
	}
}

func TestTheLoggerSeesOnlyItsLevel(t *testing.T) {
	var log bytes.Buffer
	f, _, done := listening(Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	f.event(Event{Kind: EventLog, Message: "a line of the build"})
	f.event(Event{Kind: EventTagged, Message: "tagged"})
	done()
	if text := log.String(); strings.Contains(text, "a line") || !strings.Contains(text, "tagged") {
		t.Errorf("got %s", text)
	}
}

func TestWaitDeliveredWaitsForTheEventsAndNotForEver(t *testing.T) {
	step := make(chan struct{})
	f, l, done := listening(Options{OnEvent: func(Event) { <-step }})
	for range 3 {
		f.event(Event{Kind: EventTagged})
	}
	start := time.Now()
	l.waitDelivered(2, 50*time.Millisecond)
	if took := time.Since(start); took < 50*time.Millisecond || took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	delivered := make(chan struct{})
	go func() { l.waitDelivered(2, 10*time.Second); close(delivered) }()
	step <- struct{}{}
	select {
	case <-delivered:
		t.Error("one event was not delivered")
	case <-time.After(10 * time.Millisecond):
	}
	step <- struct{}{}
	<-delivered
	close(step)
	done()
}

func TestAnEventThatCannotBeReadIsSkipped(t *testing.T) {
	var kinds []EventKind
	f, _, done := listening(Options{OnEvent: func(e Event) { kinds = append(kinds, e.Kind) }})
	for range 5 {
		f.lastEvent++
		number := f.lastEvent
		f.events <- func() (Event, uint64, *Error) { return Event{}, number, &Error{Code: CodeInternal, Message: "no JSON"} }
	}
	f.event(Event{Kind: EventTagged})
	done()
	if !slices.Equal(kinds, []EventKind{EventTagged}) {
		t.Errorf("got %v", kinds)
	}
}
