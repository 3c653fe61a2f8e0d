package main

import (
	"errors"
	"fmt"
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
	// output shows a line that the workspace has written.
	output(line string)
	// note shows a permanent line.
	note(line string)
	// end removes the part that is redrawn, then prints last, unless it is empty.
	end(last string)
}

// progressModes are the values of --progress.
var progressModes = []string{"auto", "plain", "tty", "quiet", "json"}

// newDisplay selects the display by --progress. auto is tty if standard error is a terminal with cursor movement, else
// plain.
func (a *app) newDisplay(runtime string) display {
	f, isTTY := isTerminal(a.stderr)
	switch {
	case a.asJSON:
		return &jsonDisplay{a: a}
	case a.progress.value == "quiet":
		return quietDisplay{}
	case isTTY && a.progress.value != "plain":
		return newLiveDisplay(f, runtime, a.verbose)
	}
	return newPlainDisplay(a.stderr, time.Now(), a.verbose)
}

// checkProgress reports flags that contradict each other or the terminal.
func (a *app) checkProgress() error {
	mode := a.progress.value
	if a.asJSON && mode != "" && mode != "json" {
		return fmt.Errorf("--json and --progress=%s contradict each other: use one of them", mode)
	}
	if _, ok := isTerminal(a.stderr); !ok && mode == "tty" {
		return errors.New("--progress=tty needs a terminal on standard error: use --progress=plain")
	}
	return nil
}

// showIfSlow calls do, and shows what it is doing if that takes a while.
func (a *app) showIfSlow(what string, do func() error) error {
	if a.asJSON {
		return do()
	}
	f, isTTY := isTerminal(a.stderr)
	after := 5 * time.Second
	if isTTY {
		after = 300 * time.Millisecond
	}
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-time.After(after):
	}
	if !isTTY {
		_, _ = fmt.Fprintln(a.stderr, "mol: still", what)
		return <-done
	}
	d := newLiveDisplay(f, what, false)
	defer d.end("")
	return <-done
}

// A quietDisplay shows nothing: the result, or the error, comes from the command.
type quietDisplay struct{}

func (quietDisplay) event(mol.Event)      {}
func (quietDisplay) phase(string, string) {}
func (quietDisplay) output(string)        {}
func (quietDisplay) note(string)          {}
func (quietDisplay) end(string)           {}
