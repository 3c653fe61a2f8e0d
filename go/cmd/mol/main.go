// Command mol builds workspace images and starts workspaces, as a workspace server
// does with libmol, for people and scripts.
//
//	mol ensure claude-code              build the image, unless the engine has it
//	docker run $(mol ensure hermes)     standard output has the reference only
//	mol up claude-code                  run a workspace until ctrl-C
//
// Progress goes to standard error, as a live display on a terminal and as plain lines
// elsewhere. With --json, events and the result go to standard output instead.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(runUntilSignal())
}

// runUntilSignal cancels the context on the first signal, which also cancels a build
// in the engine. The second signal ends the program immediately.
func runUntilSignal() int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		sig := <-signals
		signal.Stop(signals)
		cancel(signalError{sig})
	}()

	a := &app{stdout: os.Stdout, stderr: os.Stderr, open: openClient}
	return a.run(ctx, os.Args[1:])
}

// A signalError is the cause of a context that a signal cancelled.
type signalError struct{ os.Signal }

func (e signalError) Error() string { return e.String() }

// Is makes errors.Is report context.Canceled, because net/http returns this cause in place of context.Canceled.
func (e signalError) Is(target error) bool { return target == context.Canceled }
