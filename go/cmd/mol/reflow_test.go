package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/templateserver/server"
	"golang.org/x/term"
)

// A tmuxWindow is the window of a real terminal, which rewraps its lines when its width changes.
type tmuxWindow struct {
	t      *testing.T
	socket string
}

// newTmuxWindow opens a window of 24 rows in which a shell runs script.
func newTmuxWindow(t *testing.T, env []string, width int, script string) tmuxWindow {
	t.Helper()
	w := tmuxWindow{t, t.TempDir() + "/tmux"}
	cmd := exec.Command("tmux", "-f", "/dev/null", "-S", w.socket, "new-session", "-d", "-x", strconv.Itoa(width), "-y", "24", script)
	cmd.Env = append(env, "LANG=C.UTF-8", "SHELL=/bin/sh")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tmux: %v: %s", err, text)
	}
	t.Cleanup(func() { w.tmux("kill-server") })
	w.tmux("set-option", "window-size", "manual")
	return w
}

func (w tmuxWindow) tmux(args ...string) string {
	w.t.Helper()
	text, err := exec.Command("tmux", append([]string{"-S", w.socket}, args...)...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("tmux %s: %v: %s", args[0], err, text)
	}
	return string(text)
}

// resize changes the window's width, then waits for the pane's terminal, which tmux resizes a little later.
func (w tmuxWindow) resize(width int) {
	w.t.Helper()
	w.tmux("resize-window", "-x", strconv.Itoa(width), "-y", "24")
	tty, err := os.OpenFile(strings.TrimSpace(w.tmux("display-message", "-p", "#{pane_tty}")), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer tty.Close()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(frameEvery) {
		got, _, err := term.GetSize(int(tty.Fd()))
		if err != nil {
			w.t.Fatal(err)
		}
		if got == width {
			return
		}
	}
	w.t.Fatalf("the terminal is not %d columns wide", width)
}

// shows waits until the window's text, including its scrollback, matches the pattern.
func (w tmuxWindow) shows(pattern string) {
	w.t.Helper()
	want := regexp.MustCompile(`^` + pattern + `$`)
	var text string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(frameEvery) {
		if text = strings.TrimRight(w.tmux("capture-pane", "-p", "-S", "-"), "\n"); want.MatchString(text) {
			return
		}
	}
	w.t.Fatalf("the window does not match %s:\n%s", pattern, text)
}

func TestANarrowerWindowThatWrapsLinesHasNoStaleLines(t *testing.T) {
	e := newTestEnv(t)
	if err := e.templates.SetFaults(server.Fault{Match: "/api/v1/", Hang: true}); err != nil {
		t.Fatal(err)
	}
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	w := newTmuxWindow(t, e.env, 110, "seq 40; sh -c 'echo $$ > "+pidFile+"; exec "+path+" ensure claude-code'; true")
	// The earlier output must not be lost either.
	const lookUp = `(\d+\n){40}. look up[^\n]*\n  http[^\n]*`
	w.shows(lookUp)
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for _, width := range []int{70, 60, 25, 12, 90, 30} {
		// The window and the size of its terminal do not change at the same moment. A frame in between may leave a line.
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		w.resize(width)
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		w.shows(lookUp)
		time.Sleep(5 * frameEvery)
		w.shows(lookUp)
	}
}

func TestTerminalsThatRewrapLines(t *testing.T) {
	for environment, want := range map[string]bool{
		"TERM=xterm-256color":                                      false,
		"TERM=linux":                                               false,
		"TERM=xterm-256color VTE_VERSION=7006":                     true,
		"TERM=xterm-256color TERM_PROGRAM=Apple_Terminal":          true,
		"TERM=xterm-kitty KITTY_WINDOW_ID=1":                       true,
		"TERM=foot":                                                true,
		"TERM=xterm-256color TERM_PROGRAM=another":                 false,
		"TERM=screen.xterm-256color STY=1.pts VTE_VERSION=7006":    false, // GNU screen inside of a terminal of GNOME
		"TERM=screen TMUX=/tmp/tmux-0/default,1,0 STY=1.pts":       true,
		"TERM=xterm XTERM_VERSION=XTerm(379)":                      false,
		"TERM=xterm XTERM_VERSION=XTerm(379) KONSOLE_VERSION=2401": false, // xterm, started from Konsole
	} {
		getenv := func(name string) string {
			for _, v := range strings.Fields(environment) {
				if value, found := strings.CutPrefix(v, name+"="); found {
					return value
				}
			}
			return ""
		}
		if got := rewrapsLines(getenv); got != want {
			t.Errorf("%s: %t, want %t", environment, got, want)
		}
	}
}
