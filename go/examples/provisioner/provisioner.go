package provisioner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// A Provisioner starts and stops workspaces on one engine. It holds no state of
// its own and is safe for concurrent use.
type Provisioner struct {
	engine *client.Client

	// EnsureLocalImage, when set, takes the place of mol.EnsureLocalImage: a
	// server that shows the progress of builds sets it to a function around a
	// mol.Client whose options have OnEvent. Set it before the first Start.
	EnsureLocalImage func(ctx context.Context, runtime string) (string, error)

	// Runtimes, when set, is the allowlist of images that are pulled, in place of
	// the default one. A local build has the one of its own options.
	Runtimes []string
}

// New returns a Provisioner for engine, which stays the caller's to close.
func New(engine *client.Client) *Provisioner {
	return &Provisioner{engine: engine}
}

// A WorkspaceConfig says what to start. Runtime or Image is needed, the rest
// has defaults.
type WorkspaceConfig struct {
	// ID names the workspace: its container is called "workspace-<ID>", so that
	// a second Start with the same ID fails instead of starting a twin. With no
	// ID the engine makes a name up.
	ID string

	// Runtime is the name of the workspace's runtime, such as "claude-code".
	Runtime string

	// Image, when set, is used whatever Runtime says. It is pulled if the engine
	// does not have it.
	Image string

	// Env is the container's environment, each entry in the form "NAME=value".
	Env []string

	// Port is the TCP port the workspace listens on. Zero means the lowest one
	// that the image exposes.
	Port uint16

	// HealthPath is asked until it answers with a 2xx status. The default is
	// "/health".
	HealthPath string

	// ReadyTimeout bounds the wait for the first answer, on top of the context
	// that Start was given. The default is two minutes: an image for another
	// architecture starts slowly under emulation.
	ReadyTimeout time.Duration

	// Network is for a server that is itself a container: the workspace joins
	// this network of the engine and is reached at its address there. Without
	// one the workspace's port is published on the engine's 127.0.0.1, on a port
	// that the engine picks, which also works with Docker Desktop.
	Network string
}

// A Workspace is a container that has answered.
type Workspace struct {
	ContainerID string
	Name        string // the container's name
	Image       string // the reference that was started
	URL         string // "http://127.0.0.1:49153", no trailing slash
	HealthURL   string // the address that answered
}

// Start boots a workspace and returns once it answers. When it returns an error
// there is no container: one that was made is removed again, also when ctx ended.
func (p *Provisioner) Start(ctx context.Context, cfg WorkspaceConfig) (_ *Workspace, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start workspace %s: %w", cfg.label(), err)
		}
	}()

	img, err := p.image(ctx, cfg)
	if err != nil {
		return nil, err
	}
	id, err := p.create(ctx, cfg, img)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.discard(ctx, id))
		}
	}()

	if _, err := p.engine.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	ws, err := p.locate(ctx, cfg, id, img)
	if err != nil {
		return nil, err
	}
	if err := p.waitUntilHealthy(ctx, cfg, ws); err != nil {
		return nil, err
	}
	return ws, nil
}

// stopGrace is how long a workspace has between SIGTERM and SIGKILL.
const stopGrace = 10 * time.Second

// Stop ends a workspace and removes its container and anonymous volumes. It
// needs nothing but the container's ID or name, so it works after the server
// was restarted. A container that is already gone is no error.
func (p *Provisioner) Stop(ctx context.Context, containerID string) error {
	grace := int(stopGrace.Seconds())
	_, err := p.engine.ContainerStop(ctx, containerID, client.ContainerStopOptions{Timeout: &grace})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop container %s: %w", containerID, err)
	}
	return p.remove(ctx, containerID)
}

// label is how errors name the workspace.
func (cfg WorkspaceConfig) label() string {
	for _, s := range []string{cfg.ID, cfg.Runtime, cfg.Image} {
		if s != "" {
			return fmt.Sprintf("%q", s)
		}
	}
	return "with neither a runtime nor an image"
}
