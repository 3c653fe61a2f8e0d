package main

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"
	"golang.org/x/term"
)

// A screen is a pseudo-terminal. The emulator shows what is written to tty.
type screen struct {
	tty    *os.File
	master *os.File

	mu  sync.Mutex
	emu *vt.Emulator
	raw bytes.Buffer
}

func newScreen(t *testing.T, width, height int) *screen {
	t.Helper()
	t.Setenv("TERM", "xterm-256color")
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := pty.Setsize(tty, &pty.Winsize{Cols: uint16(width), Rows: uint16(height)}); err != nil {
		t.Fatal(err)
	}
	s := &screen{tty: tty, master: master, emu: vt.NewEmulator(width, height)}
	go func() { _, _ = io.Copy(master, s.emu) }() // replies to terminal queries, such as the cursor position
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(s, master)
	}()
	t.Cleanup(func() {
		_ = tty.Close()
		<-read
		_ = master.Close()
	})
	return s
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raw.Write(p)
	return s.emu.Write(p)
}

// press types a key.
func (s *screen) press(t *testing.T, key byte) {
	t.Helper()
	if _, err := s.master.Write([]byte{key}); err != nil {
		t.Fatal(err)
	}
}

// enter types a text.
func (s *screen) enter(t *testing.T, text string) {
	t.Helper()
	for _, key := range []byte(text) {
		s.press(t, key)
	}
}

// resize changes the size of the terminal, as a user does with a window.
func (s *screen) resize(t *testing.T, width, height int) {
	t.Helper()
	s.mu.Lock()
	s.emu.Resize(width, height)
	s.mu.Unlock()
	if err := pty.Setsize(s.tty, &pty.Winsize{Cols: uint16(width), Rows: uint16(height)}); err != nil {
		t.Fatal(err)
	}
}

// text returns the visible text, without trailing spaces.
func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	for line := range strings.Lines(s.emu.String()) {
		lines = append(lines, strings.TrimRight(line, " \r\n"))
	}
	return strings.TrimRight(strings.Join(lines, "\n"), "\n")
}

// written returns everything that was written, with control sequences.
func (s *screen) written() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.raw.String()
}

// shows waits until the screen matches.
func (s *screen) shows(t *testing.T, pattern string) {
	t.Helper()
	want := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if want.MatchString(s.text()) {
			return
		}
	}
	t.Fatalf("the screen does not match %s:\n%s", pattern, s.text())
}

func TestLiveDisplay(t *testing.T) {
	s := newScreen(t, 80, 24)
	before, err := term.GetState(int(s.tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	d := newLiveDisplay(s.tty, "hermes", false)
	events := scriptedEvents()

	d.event(events[0])
	s.shows(t, `. look up +[\d.]+s\n  `+regexp.QuoteMeta(testURL)+`$`)
	for _, e := range events[1:6] {
		d.event(e)
	}
	s.shows(t, `✓ main is at 0123456789ab\n. fetch \[=+>-+\] +1.0 MiB  [\d.]+s\n  `+regexp.QuoteMeta(testURL)+`$`)
	for _, e := range events[6:14] {
		d.event(e)
	}
	s.shows(t, `. build \[=+>-+\] 1/3  [\d.]+s\n  \[2/3\] RUN pip install -r requirements.txt\n  100% ünïcödé$`)
	for _, e := range events[14:] {
		d.event(e)
	}
	d.end(ready(scriptImage()))

	s.shows(t, `ready in`)
	want := regexp.MustCompile(`^✓ main is at 0123456789ab
✓ fetched 1,234 objects, 14 files, 2.0 MiB in 0.85s
! warning: the :latest tag was not refreshed: the engine is read-only
✓ built 3 steps, 1 of them cached in [\d.]+s
✓ molecule-local/workspace-template-hermes:0123456789ab is ready
✓ ready in 14.1s$`)
	if got := s.text(); !want.MatchString(got) {
		t.Errorf("at the end the screen is\n%s\nwant\n%s", got, want)
	}
	after, err := term.GetState(int(s.tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if *before != *after {
		t.Error("the terminal's settings changed")
	}
}

// Only a few control sequences are allowed, which all terminals support.
func TestLiveDisplayControlSequences(t *testing.T) {
	for _, noColour := range []string{"", "1"} {
		t.Run("NO_COLOR="+noColour, func(t *testing.T) {
			t.Setenv("NO_COLOR", noColour)
			s := newScreen(t, 80, 24)
			d := newLiveDisplay(s.tty, "hermes", false)
			for _, e := range scriptedEvents() {
				d.event(e)
			}
			s.shows(t, `is ready`)
			d.end("done")
			s.shows(t, `done$`)

			allowed := regexp.MustCompile(`^\x1b\[\d+A|^\x1b\[J|^\x1b\[(0|2|31|32|36)m`)
			if noColour != "" {
				allowed = regexp.MustCompile(`^\x1b\[\d+A|^\x1b\[J`)
			}
			text := s.written()
			for i := range text {
				if text[i] == '\x1b' && !allowed.MatchString(text[i:]) {
					t.Fatalf("unexpected control sequence %q", text[i:min(len(text), i+10)])
				}
			}
			if noColour == "" && !strings.Contains(text, "\x1b[32m") {
				t.Error("no colours")
			}
		})
	}
}

func TestLiveDisplayOnNarrowTerminal(t *testing.T) {
	const width = 30
	s := newScreen(t, width, 10)
	d := newLiveDisplay(s.tty, "hermes", false)
	for _, e := range scriptedEvents()[7:14] {
		d.event(e)
	}
	// Each line must fit: redrawing a wrapped line would leave parts of it behind.
	s.shows(t, `^. build +\[.*\] +1/3  [\d.]+s\n  \[2/3\] RUN pip install -r re…\n  100% ünïcödé$`)
	time.Sleep(5 * frameEvery)
	s.shows(t, `^. build +\[.*\] +1/3  [\d.]+s\n  \[2/3\] RUN pip install -r re…\n  100% ünïcödé$`)
	d.end("")
	s.shows(t, `^$`)
}

func TestDisplayForStandardError(t *testing.T) {
	s := newScreen(t, 80, 24)
	tests := []struct {
		name   string
		term   string
		json   bool
		stderr io.Writer
		want   string
	}{
		{"a terminal", "xterm", false, s.tty, "live"},
		{"a terminal without cursor movement", "dumb", false, s.tty, "plain"},
		{"a pipe", "xterm", false, new(bytes.Buffer), "plain"},
		{"--json", "xterm", true, s.tty, "json"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("TERM", tt.term)
			a := &app{stdout: io.Discard, stderr: tt.stderr, asJSON: tt.json}
			d := a.newDisplay("hermes")
			d.end("")
			got := ""
			switch d.(type) {
			case *liveDisplay:
				got = "live"
			case *plainDisplay:
				got = "plain"
			case *jsonDisplay:
				got = "json"
			}
			if got != tt.want {
				t.Errorf("the display is %s, want %s", got, tt.want)
			}
		})
	}
}

// libmol waits only a while for a slow reader, so events may come after the end of a call.
func TestJSONDisplayShowsNothingAfterTheEnd(t *testing.T) {
	var out bytes.Buffer
	d := &jsonDisplay{a: &app{stdout: &out}}
	d.event(mol.Event{Kind: mol.EventLog, Line: "before"})
	d.end("")
	before := out.String()
	d.event(mol.Event{Kind: mol.EventLog, Line: "after"})
	d.note("after")
	if before == "" || out.String() != before {
		t.Errorf("got %s", out.String())
	}
}

func TestLiveDisplayShowsPullsAndParallelSteps(t *testing.T) {
	for width, pulling := range map[int]string{
		80:  "  \\[a 1/2\\] FROM docker.io/library/python:3…  12 MiB / 44 MiB, 2.0 MiB/s, 16s left\n",
		200: "  \\[a 1/2\\] FROM docker.io/library/python:3.13  12 MiB / 44 MiB, 2.0 MiB/s, 16s left\n",
	} {
		s := newScreen(t, width, 24)
		d := newLiveDisplay(s.tty, "hermes", false)
		events := pullEvents()
		for _, e := range events[:2] {
			d.event(e)
		}
		s.shows(t, `looking up the base image docker.io/library/python:3.13$`)
		for _, e := range events[2:7] {
			d.event(e)
		}
		s.shows(t, "^. build.*\n"+pulling+`  \[b 2/2\] RUN make(  \d.*)?$`)
		for _, e := range events[7:] {
			d.event(e)
		}
		s.shows(t, `✓ \[a 1/2\] FROM docker.io/library/python:3.13: pulled 44 MiB in 21.0s\n. build \[.*\] +1/4.*\n  \[b 2/2\] RUN make(  \d.*)?$`)
		for i := range 9 {
			d.event(mol.Event{Kind: mol.EventStepStarted, Step: 3 + i, Steps: 12, StepName: "RUN more"})
		}
		s.shows(t, `1/12.*\n(  .*RUN m.*\n){4}  and 6 more$`)
		d.end("")
	}
}

// BuildKit pulls an image when its files are needed, which may be after the end of its step.
func TestLiveDisplayShowsAPullOfAStepThatHasEnded(t *testing.T) {
	s := newScreen(t, 120, 24)
	d := newLiveDisplay(s.tty, "hermes", false)
	events := pullEvents()
	for _, e := range []mol.Event{events[0], events[2], events[8], events[4], events[6]} {
		d.event(e)
	}
	s.shows(t, `FROM docker.io/library/python:3.13  8.0 MiB / 40 MiB, 2.0 MiB/s, 16s left$`)
	d.end("")
}

func TestLiveDisplayWithVerboseKeepsTheOutput(t *testing.T) {
	s := newScreen(t, 80, 24)
	d := newLiveDisplay(s.tty, "hermes", true)
	for _, e := range scriptedEvents()[7:15] {
		d.event(e)
	}
	s.shows(t, `^  Collecting numpy\n  100% ünïcödé\n. build`)
	d.end("")
}

func TestLiveDisplayOnATerminalThatIsResized(t *testing.T) {
	for _, name := range append(wrappingVariables, "TMUX", "TERM_PROGRAM") {
		t.Setenv(name, "") // the emulator does not wrap
	}
	s := newScreen(t, 200, 24)
	d := newLiveDisplay(s.tty, "hermes", false)
	for _, e := range pullEvents()[:7] {
		d.event(e)
	}
	s.shows(t, `python:3.13  12 MiB / 44 MiB, 2.0 MiB/s, 16s left\n  \[b 2/2\] RUN make(  \d.*)?`)
	for _, width := range []int{80, 70, 120} {
		s.resize(t, width, 24)
		s.shows(t, `^. build \[[^\n]*\n  \[a 1/2\] FROM [^\n]*  12 MiB / 44 MiB, 2.0 MiB/s, 16s left\n  \[b 2/2\] RUN make[^\n]*$`)
		for line := range strings.Lines(s.text()) {
			if got := len([]rune(strings.TrimRight(line, "\n"))); got > width {
				t.Errorf("a line of %d columns on a terminal of %d: %q", got, width, line)
			}
		}
	}
	d.end("ready")
	s.shows(t, `^✓ ready$`)
}
