package workspace

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
)

// CopyOutput writes what a workspace has written to standard output and error. With
// follow it goes on until the workspace exits or ctx ends, and then returns nil. tail
// is the number of last lines to copy; negative copies all.
func CopyOutput(ctx context.Context, engine *client.Client, containerID string, stdout, stderr io.Writer, follow bool, tail int) error {
	opts := client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: follow}
	if tail >= 0 {
		opts.Tail = fmt.Sprint(tail)
	}
	logs, err := engine.ContainerLogs(ctx, containerID, opts)
	if err != nil {
		return fmt.Errorf("output of container %s: %w", containerID, err)
	}
	defer func() { _ = logs.Close() }()
	if _, err := stdcopy.StdCopy(stdout, stderr, logs); err != nil && !(follow && ctx.Err() != nil) {
		return fmt.Errorf("output of container %s: %w", containerID, err)
	}
	return nil
}

// drainTimeout limits the wait for the rest of the output at the end.
const drainTimeout = time.Second

// copyOutput copies the output in the background until stop, which also copies what was written before, for at most
// drainTimeout.
func copyOutput(ctx context.Context, engine *client.Client, id string, to io.Writer) (stop func()) {
	following, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	counted := &skipWriter{to: to}
	// Only for people who watch: the start does not depend on it, so errors are ignored.
	go func() {
		defer close(done)
		_ = CopyOutput(following, engine, id, counted, counted, true, -1)
	}()
	return func() {
		cancel()
		<-done
		// What was written a moment ago may not have been copied yet.
		rest := &skipWriter{to: to, skip: counted.passed}
		detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		_ = CopyOutput(detached, engine, id, rest, rest, false, -1)
	}
}

// A skipWriter drops the first skip bytes and passes on the rest.
type skipWriter struct {
	to           io.Writer
	skip, passed int64
}

func (w *skipWriter) Write(p []byte) (int, error) {
	skipped := min(w.skip, int64(len(p)))
	w.skip -= skipped
	n, err := w.to.Write(p[skipped:])
	w.passed += int64(n)
	return int(skipped) + n, err
}
