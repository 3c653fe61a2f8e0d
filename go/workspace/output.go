package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
)

// CopyOutput writes what a workspace has written to standard output and error. With
// follow it goes on until the workspace exits or ctx ends. tail is the number of
// last lines to begin with, or negative for all.
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
	if _, err := stdcopy.StdCopy(stdout, stderr, logs); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("output of container %s: %w", containerID, err)
	}
	return nil
}

// copyOutput copies the output in the background until stop, which returns when
// nothing more is written.
func copyOutput(ctx context.Context, engine *client.Client, id string, to io.Writer) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Only for people who watch: the start does not depend on it.
		_ = CopyOutput(ctx, engine, id, to, to, true, -1)
	}()
	return func() {
		cancel()
		<-done
	}
}
