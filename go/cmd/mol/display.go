package main

import (
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// A display shows one command's progress. Its methods may be called from several
// goroutines; after end it shows nothing more.
type display interface {
	// event shows what libmol reports.
	event(e mol.Event)
	// phase shows that the command has come to something that is not libmol's.
	phase(name, detail string)
	// note shows a line that stays.
	note(line string)
	// end takes away what moves and leaves the line last, unless that is empty.
	end(last string)
}

// newDisplay picks the display: JSON lines if they were asked for, a live one if
// standard error is a terminal that can do it, else plain lines.
func (a *app) newDisplay(runtime string) display {
	if a.asJSON {
		return &jsonDisplay{a: a}
	}
	if f, ok := isTerminal(a.stderr); ok {
		return newLiveDisplay(f, runtime)
	}
	return newPlainDisplay(a.stderr, time.Now())
}
