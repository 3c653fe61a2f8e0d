package mol

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestNobodyListening(t *testing.T) {
	var l *listener = newListener(Options{})
	if l != nil {
		t.Fatal("a listener without a reason")
	}
	l.put(Event{Kind: EventLog})
	if l.mark() != nil {
		t.Error("something to wait for")
	}
	l.close(0)
}

func TestEventsComeInOrderAndFromOneGoroutineAtATime(t *testing.T) {
	const events = 1000 // below the length from which lines are left out
	var inside sync.Mutex
	next := 0
	l := newListener(Options{OnEvent: func(e Event) {
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
		l.put(Event{Kind: EventLog, Step: i})
	}
	l.close(10 * time.Second)
	if next != events {
		t.Errorf("%d events came", next)
	}
}

func TestWhatIsTooMuchIsLeftOutAndCounted(t *testing.T) {
	for _, c := range []struct {
		name   string
		event  Event
		events int
	}{
		{"many short lines", Event{Kind: EventLog, Line: "x"}, 100_000},
		{"few long lines", Event{Kind: EventLog, Line: strings.Repeat("x", 1<<20)}, 100},
		{"progress", Event{Kind: EventFetchProgress}, 10_000},
		{"what must not be left out, a flood of it", Event{Kind: EventStepStarted}, 100_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			began, release := make(chan struct{}), make(chan struct{})
			var came, dropped, fillers int
			l := newListener(Options{OnEvent: func(e Event) {
				switch e.Kind {
				case EventTagged:
					close(began)
					<-release
				case EventThinned:
					fillers++
					dropped += int(e.Dropped)
					if e.Message == "" || e.Runtime != "hermes" || e.Call != 7 {
						t.Errorf("got %+v", e)
					}
				default:
					came++
				}
			}})
			l.put(Event{Kind: EventTagged})
			<-began
			e := c.event
			e.Runtime, e.Call = "hermes", 7
			for range c.events {
				l.put(e)
			}
			if n := len(l.queue); n > hardQueueLen+1 || l.bytes > softQueue+1<<20 {
				t.Errorf("%d events with %d bytes are waiting", n, l.bytes)
			}
			close(release)
			l.close(10 * time.Second)
			if came+dropped != c.events || dropped == 0 || fillers != 1 {
				t.Errorf("%d came and %d were counted in %d events, of %d", came, dropped, fillers, c.events)
			}
		})
	}
}

func TestWhatMattersIsKeptWhenLinesAreLeftOut(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	var kinds []EventKind
	l := newListener(Options{OnEvent: func(e Event) {
		if len(kinds) == 0 {
			close(began)
			<-release
		}
		kinds = append(kinds, e.Kind)
	}})
	l.put(Event{Kind: EventBuildStarted})
	<-began
	for range 10 * softQueueLen {
		l.put(Event{Kind: EventLog, Call: 1})
		l.put(Event{Kind: EventThinned, Call: 2, Dropped: 3}) // the library's own
	}
	l.put(Event{Kind: EventStepDone})
	l.put(Event{Kind: EventTagged})
	close(release)
	l.close(10 * time.Second)
	if n := len(kinds); n < 3 || kinds[n-1] != EventTagged || kinds[n-2] != EventStepDone || kinds[n-3] != EventThinned {
		t.Errorf("got %d events, the last of them %v", n, kinds[max(0, n-3):])
	}
}

func TestAPanicInOnEventIsLoggedOnceAndStopsNothing(t *testing.T) {
	var log bytes.Buffer
	events := 0
	l := newListener(Options{
		Token:  testToken,
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
		OnEvent: func(Event) {
			events++
			panic(errors.New("cannot draw " + testToken))
		},
	})
	for range 10 {
		l.put(Event{Kind: EventTagged})
	}
	l.close(10 * time.Second)
	if events != 10 || strings.Count(log.String(), "panic in OnEvent") != 1 || strings.Contains(log.String(), testToken) {
		t.Errorf("%d events, log:\n%s", events, log.String())
	}
	if !strings.Contains(log.String(), "cannot draw ***") {
		t.Errorf("the log does not say what it was:\n%s", log.String())
	}
}

type panickingHandler struct{ slog.Handler }

func (panickingHandler) Enabled(context.Context, slog.Level) bool { panic("no log") }

func TestAPanicInTheLoggerStopsNothing(t *testing.T) {
	events := 0
	l := newListener(Options{
		Logger:  slog.New(panickingHandler{}),
		OnEvent: func(Event) { events++; panic("both") },
	})
	for range 10 {
		l.put(Event{Kind: EventTagged})
	}
	l.close(10 * time.Second)
	if events != 10 {
		t.Errorf("%d events came", events)
	}
}

func TestAnOnEventThatEndsItsGoroutineStopsNothing(t *testing.T) {
	events := 0
	l := newListener(Options{OnEvent: func(Event) { events++; runtime.Goexit() }})
	l.put(Event{Kind: EventTagged})
	if mark := l.mark(); mark != nil {
		<-mark
	}
	for range 9 {
		l.put(Event{Kind: EventTagged})
	}
	l.close(10 * time.Second)
	if events != 10 {
		t.Errorf("%d events came", events)
	}
}

func TestCloseDoesNotWaitForEver(t *testing.T) {
	release := make(chan struct{})
	l := newListener(Options{OnEvent: func(Event) { <-release }})
	l.put(Event{Kind: EventTagged})
	start := time.Now()
	l.close(50 * time.Millisecond)
	if took := time.Since(start); took < 50*time.Millisecond || took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	close(release)
	<-l.done
}

func TestAMarkIsPassedWhenAllBeforeItIsDelivered(t *testing.T) {
	step := make(chan struct{})
	l := newListener(Options{OnEvent: func(Event) { <-step }})
	for range 3 {
		l.put(Event{Kind: EventTagged})
	}
	mark := l.mark()
	if again := l.mark(); again != mark {
		t.Error("two marks at one place")
	}
	l.put(Event{Kind: EventTagged})
	for range 2 {
		step <- struct{}{}
	}
	select {
	case <-mark:
		t.Error("passed with an event to go")
	case <-time.After(10 * time.Millisecond):
	}
	step <- struct{}{}
	<-mark
	step <- struct{}{}
	l.close(10 * time.Second)
	if l.mark() != nil {
		t.Error("something to wait for at the end")
	}
}

func TestALogRecordHasTheEventsTimeLevelAndFields(t *testing.T) {
	var log bytes.Buffer
	l := newListener(Options{Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug - 4}))})
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
		l.put(w.event)
	}
	l.close(10 * time.Second)
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
	l := newListener(Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	l.put(Event{Kind: EventLog, Message: "a line of the build"})
	l.put(Event{Kind: EventTagged, Message: "tagged"})
	l.close(10 * time.Second)
	if text := log.String(); strings.Contains(text, "a line") || !strings.Contains(text, "tagged") {
		t.Errorf("got %s", text)
	}
}
