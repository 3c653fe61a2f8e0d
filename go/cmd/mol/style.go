package main

import (
	"io"
	"os"
)

// A style colours text, except when the output is not a terminal or NO_COLOR is set
// (no-color.org).
type style struct{ colour bool }

func newStyle(w io.Writer) style {
	_, terminal := isTerminal(w)
	return style{terminal && os.Getenv("NO_COLOR") == ""}
}

func (s style) good(text string) string   { return s.paint("32", text) }
func (s style) bad(text string) string    { return s.paint("31", text) }
func (s style) accent(text string) string { return s.paint("36", text) }
func (s style) dim(text string) string    { return s.paint("2", text) }

func (s style) paint(code, text string) string {
	if !s.colour || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}
