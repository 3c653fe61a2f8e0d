// Command mol builds workspace images and boots workspaces by hand: what a
// workspace server does with libmol, for people and for scripts.
//
//	mol ensure claude-code              build the image, or find that it is there
//	docker run $(mol ensure hermes)     the reference alone goes to standard output
//	mol up claude-code                  boot a workspace, until ctrl-C
//
// Progress goes to standard error: a live display on a terminal, plain lines
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

// runUntilSignal turns the first interrupt into a cancelled context, which ends
// what is running in order, also inside the engine. The second one ends the
// program on the spot.
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

// A signalError is the cause of a context that a signal has cancelled.
type signalError struct{ os.Signal }

func (e signalError) Error() string { return e.String() }
