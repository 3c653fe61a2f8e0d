package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/charmbracelet/x/ansi"
	"github.com/vbauerster/cupwriter"
)

// A frameWriter draws the frames of a live display, each in place of the one before.
//
// When a window gets narrower, some terminals cut the lines that no longer fit, and others wrap them. Where they are
// wrapped, the last frame has more rows than were drawn, and the next one has to begin above them.
type frameWriter struct {
	*cupwriter.Writer
	out   io.Writer
	wraps bool

	width     int   // of the terminal, for the next frame
	lastWidth int   // the same for the last frame
	rows      []int // the widths of the next frame's rows
	lastRows  []int
}

func newFrameWriter(f *os.File) *frameWriter {
	return &frameWriter{Writer: cupwriter.New(f, false), out: f, wraps: rewrapsLines(os.Getenv)}
}

// GetTermSize is called before each frame.
func (w *frameWriter) GetTermSize() (width, height int, err error) {
	width, height, err = w.Writer.GetTermSize()
	w.width = width
	return width, height, err
}

// ReadFrom adds a row to the next frame.
func (w *frameWriter) ReadFrom(r io.Reader) (int64, error) {
	row, err := io.ReadAll(r)
	if err != nil {
		return 0, err
	}
	if len(row) > 0 {
		w.rows = append(w.rows, ansi.StringWidth(string(row)))
	}
	return w.Writer.ReadFrom(bytes.NewReader(row))
}

// Flush draws the next frame. cupwriter moves the cursor up by the number of rows that it drew for the last frame. If
// the terminal has wrapped them into more rows since, the cursor must first move up by the rows that were added.
func (w *frameWriter) Flush(rows int) error {
	if w.wraps && w.width < w.lastWidth {
		if more := wrapped(w.lastRows, w.width); more > 0 {
			if _, err := fmt.Fprintf(w.out, "\x1b[%dA", more); err != nil {
				return err
			}
		}
	}
	w.lastWidth, w.lastRows, w.rows = w.width, w.rows, w.lastRows[:0]
	return w.Writer.Flush(rows)
}

// wrapped returns how many rows are added when rows of these widths are wrapped.
func wrapped(widths []int, width int) (more int) {
	for _, w := range widths {
		more += (max(w, 1) - 1) / max(width, 1)
	}
	return more
}

var (
	wrappingPrograms  = []string{"Apple_Terminal", "ghostty", "iTerm.app", "vscode", "WezTerm"} // in TERM_PROGRAM
	wrappingVariables = []string{"ALACRITTY_WINDOW_ID", "KITTY_WINDOW_ID", "KONSOLE_VERSION", "VTE_VERSION", "WT_SESSION"}
)

// rewrapsLines reports whether the terminal is one that rewraps the lines on the screen when it gets narrower. Terminals
// cannot be asked, so it goes by the variables that these terminals set. For an unknown one, a line that stays behind is
// better than the loss of other output.
func rewrapsLines(getenv func(string) string) bool {
	switch term := getenv("TERM"); {
	case getenv("TMUX") != "":
		return true
	case getenv("STY") != "" || term == "xterm" && getenv("XTERM_VERSION") != "": // GNU screen, xterm
		return false
	case strings.HasPrefix(term, "foot") || strings.HasPrefix(term, "alacritty"):
		return true
	}
	isSet := func(name string) bool { return getenv(name) != "" }
	return slices.Contains(wrappingPrograms, getenv("TERM_PROGRAM")) || slices.ContainsFunc(wrappingVariables, isSet)
}
