package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// A Config describes the container of a workspace. All fields are optional.
type Config struct {
	// ID names the workspace: its container is called "workspace-<ID>", so a
	// second Start with the same ID fails. Without an ID the engine chooses a
	// name.
	ID string

	// Runtime is the workspace's runtime, such as "claude-code". It becomes a
	// label of the container.
	Runtime string

	// Owner is the user whose workspace it is, for [List]. It becomes a label of the
	// container.
	Owner string

	// Env is the container's environment. Each entry has the form "NAME=value".
	Env []string

	// Volumes are mounted into the container, as docker's --volume: "/folder:/path",
	// "/folder:/path:ro" or "name:/path".
	Volumes []string

	// Port is the TCP port that the workspace listens on. Zero means the lowest TCP
	// port that the image exposes.
	Port uint16

	// HealthPath is requested until it answers with a 2xx status. The default is
	// "/health".
	HealthPath string

	// ReadyTimeout limits the wait for the first answer, in addition to the
	// context of Start. The default is two minutes, because an image for another
	// architecture starts slowly under emulation.
	ReadyTimeout time.Duration

	// Network is for a caller that runs in a container itself: the workspace
	// joins this network of the engine and is reached at its address there.
	// Without Network the workspace's port is published on the engine's
	// 127.0.0.1, on a port that the engine chooses. That also works with Docker
	// Desktop.
	Network string

	// Output receives what the workspace writes until it answers, standard output
	// and error. Nil discards it.
	Output io.Writer

	// Keep leaves the container where it is if Start fails after it was created, so
	// that it can be examined. The error then wraps ErrKept.
	Keep bool
}

// ErrKept is wrapped by the error of Start when Config.Keep has left a container.
var ErrKept = errors.New("the container is kept")

// A keptError is an error that also wraps ErrKept, with the same text.
type keptError struct{ error }

func (e keptError) Unwrap() []error { return []error{e.error, ErrKept} }

// ErrNameTaken is wrapped by the error of Start when a container with the name of
// the workspace exists already.
var ErrNameTaken = errors.New("the name is taken")

// A Workspace is a container that has answered.
type Workspace struct {
	ContainerID string
	Name        string // the container's name
	Image       string // the reference that was started
	URL         string // for example "http://127.0.0.1:49153", without a trailing slash
	HealthURL   string // the URL that answered
}

// Start creates and starts a container from img and returns once it answers. If
// it fails, it removes the container, also when ctx has ended, unless Keep is set.
func Start(ctx context.Context, engine *client.Client, img Image, cfg Config) (_ *Workspace, err error) {
	id, err := create(ctx, engine, img, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		switch {
		case err != nil && cfg.Keep:
			err = keptError{err}
		case err != nil:
			err = errors.Join(err, discard(ctx, engine, id))
		}
	}()

	if _, err := engine.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		if client.IsErrConnectionFailed(err) || ctx.Err() != nil {
			return nil, fmt.Errorf("start container: %w", err)
		}
		return nil, fmt.Errorf("%w: start container: %w", ErrNotReady, err)
	}
	if cfg.Output != nil {
		stop := copyOutput(ctx, engine, id, cfg.Output)
		defer stop()
	}
	ws, err := locate(ctx, engine, id, img, cfg)
	if err != nil {
		return nil, err
	}
	if err := waitUntilHealthy(ctx, engine, ws, cfg.ReadyTimeout); err != nil {
		return nil, err
	}
	return ws, nil
}

// stopGrace is the time between SIGTERM and SIGKILL.
const stopGrace = 10 * time.Second

// Stop stops a workspace and removes its container and anonymous volumes. It
// only needs the container's ID or name, so it also works after a restart of the
// caller. If the container does not exist, Stop returns nil.
func Stop(ctx context.Context, engine *client.Client, containerID string) error {
	grace := int(stopGrace.Seconds())
	_, err := engine.ContainerStop(ctx, containerID, client.ContainerStopOptions{Timeout: &grace})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop container %s: %w", containerID, err)
	}
	return remove(ctx, engine, containerID)
}

// Wait blocks until a container exits and returns its exit code.
func Wait(ctx context.Context, engine *client.Client, containerID string) (exitCode int64, err error) {
	exited := engine.ContainerWait(ctx, containerID, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case state := <-exited.Result:
		if state.Error != nil {
			return 0, fmt.Errorf("wait for container %s: %s", containerID, state.Error.Message)
		}
		return state.StatusCode, nil
	case err := <-exited.Error:
		return 0, fmt.Errorf("wait for container %s: %w", containerID, err)
	}
}
