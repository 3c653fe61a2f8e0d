package main

import (
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// A display shows the progress of a command. Its methods are safe for concurrent use.
// It shows nothing after end.
type display interface {
	// event shows an event of libmol.
	event(e mol.Event)
	// phase shows a step of the command that is not part of libmol.
	phase(name, detail string)
	// note shows a permanent line.
	note(line string)
	// end removes the moving part and prints the line last, unless that is empty.
	end(last string)
}

// newDisplay selects the display: JSON lines with --json, a live display if standard
// error is a terminal with cursor movement, else plain lines.
func (a *app) newDisplay(runtime string) display {
	if a.asJSON {
		return &jsonDisplay{a: a}
	}
	if f, ok := isTerminal(a.stderr); ok {
		return newLiveDisplay(f, runtime)
	}
	return newPlainDisplay(a.stderr, time.Now())
}
