package provisioner

import (
	"context"
	"fmt"

	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
	"github.com/moby/moby/client"
)

// A Provisioner starts and stops workspaces on one engine. It keeps no state and
// is safe for concurrent use.
type Provisioner struct {
	engine *client.Client

	// EnsureLocalImage, if set, replaces mol.EnsureLocalImage. A server that shows
	// the progress of builds sets it to a function that calls a mol.Client with
	// OnEvent in its options. Set it before the first Start.
	EnsureLocalImage func(ctx context.Context, runtime string) (string, error)

	// Runtimes, if set, replaces the default allowlist for images that are pulled.
	// For local builds, set mol.Options.Runtimes.
	Runtimes []string
}

// New returns a Provisioner for engine, which the caller closes.
func New(engine *client.Client) *Provisioner {
	return &Provisioner{engine: engine}
}

// A WorkspaceConfig describes the workspace to start. Runtime or Image is
// required; all other fields are optional.
type WorkspaceConfig struct {
	workspace.Config

	// Image, if set, is the reference of the image to use, whatever Runtime is. It
	// is pulled if the engine does not have it.
	Image string
}

// Start starts a workspace and returns once it answers. If it fails, it removes
// the container, also when ctx has ended, unless cfg.Keep is set.
func (p *Provisioner) Start(ctx context.Context, cfg WorkspaceConfig) (*workspace.Workspace, error) {
	img, err := p.image(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start workspace %s: %w", cfg.label(), err)
	}
	ws, err := workspace.Start(ctx, p.engine, img, cfg.Config)
	if err != nil {
		return nil, fmt.Errorf("start workspace %s: %w", cfg.label(), err)
	}
	return ws, nil
}

// Stop stops a workspace and removes its container and anonymous volumes. It
// only needs the container's ID or name, so it also works after a restart of the
// server. If the container does not exist, Stop returns nil.
func (p *Provisioner) Stop(ctx context.Context, containerID string) error {
	return workspace.Stop(ctx, p.engine, containerID)
}

// label names the workspace in errors.
func (cfg WorkspaceConfig) label() string {
	for _, s := range []string{cfg.ID, cfg.Runtime, cfg.Image} {
		if s != "" {
			return fmt.Sprintf("%q", s)
		}
	}
	return "without a runtime or an image"
}
