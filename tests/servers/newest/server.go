// Package newest is a small workspace server with the conventions of the newest server that builds images on the
// developer's machine, set in code through the public API of libmol.
//
//   - There are four runtimes, and they change from one version to the next.
//   - An image is molecule-local/workspace-template-<runtime>:<sha12>-<arch>[--<isolation>], with latest[--<isolation>]
//     beside it: always with the architecture, never with a variant.
//   - Images are for the engine's native platform. MOLECULE_IMAGE_PLATFORM sets another one for build and container.
//   - The template's .runtime-version is always passed as the build argument RUNTIME_VERSION.
//   - A manifest pins commits, with their provider and runtime.
//   - Progress is logged through log/slog.
package newest

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// runtimes is the allowlist.
var runtimes = []string{"claude-code", "codex", "hermes", "openclaw"}

// A Pin is an entry of the manifest.
type Pin struct {
	Provider string // informational
	Runtime  string
	Commit   string // all 40 digits
}

// options returns the options for the conventions above.
func options(manifest []Pin) mol.Options {
	o := mol.OptionsFromEnv()
	o.Runtimes = runtimes
	o.TagArch = mol.TagArchAlways
	if o.Platform == "" {
		o.Platform = "native"
	}
	o.RuntimeVersionPin = true
	o.Pins = map[string]string{}
	for _, pin := range manifest {
		o.Pins[pin.Runtime] = pin.Commit
	}
	o.Logger = slog.Default()
	return o
}

// A Server starts workspaces.
type Server struct{ images *mol.Client }

// New returns a server with this manifest and the settings of the environment.
func New(manifest []Pin) (*Server, error) {
	images, err := mol.New(options(manifest))
	if err != nil {
		return nil, err
	}
	return &Server{images}, nil
}

// Close cancels running builds.
func (s *Server) Close() error { return s.images.Close() }

// A Workspace is a created container and its image.
type Workspace struct {
	ContainerID string
	Image       mol.Image
}

// Create creates the container of a workspace for a runtime, from the commit in the manifest or else the newest commit
// of its template.
func (s *Server) Create(ctx context.Context, runtime string) (Workspace, error) {
	// One time limit for image and container.
	ctx, cancel := context.WithTimeout(ctx, mol.DefaultProvisionCeiling())
	defer cancel()
	image, err := s.images.EnsureLocalImage(ctx, runtime)
	if err != nil {
		return Workspace{}, fmt.Errorf("provision %s: %w", runtime, err)
	}
	return create(ctx, image)
}

// CreateAt is Create for the given commit.
func (s *Server) CreateAt(ctx context.Context, runtime, commit string) (Workspace, error) {
	ctx, cancel := context.WithTimeout(ctx, mol.DefaultProvisionCeiling())
	defer cancel()
	image, err := s.images.EnsureCommit(ctx, runtime, commit)
	if err != nil {
		return Workspace{}, fmt.Errorf("provision %s at %s: %w", runtime, commit, err)
	}
	return create(ctx, image)
}

// create creates the container on the engine that has the image, for the image's platform. The engine may differ from
// DOCKER_HOST. image.Platform is always a concrete platform, never the option value "native".
func create(ctx context.Context, image mol.Image) (Workspace, error) {
	engine, err := client.New(client.WithHost(image.Endpoint))
	if err != nil {
		return Workspace{}, err
	}
	defer func() { _ = engine.Close() }()
	platform := ocispec.Platform{}
	parts := strings.Split(image.Platform, "/")
	platform.OS, platform.Architecture = parts[0], parts[1]
	if len(parts) > 2 {
		platform.Variant = parts[2]
	}
	created, err := engine.ContainerCreate(ctx, client.ContainerCreateOptions{
		Platform: &platform,
		Config: &container.Config{
			Image:  image.Ref,
			Labels: map[string]string{"isolation": mol.LocalImageIsolation()},
		},
	})
	if err != nil {
		return Workspace{}, fmt.Errorf("create a container from %s: %w", image.Ref, err)
	}
	return Workspace{created.ID, image}, nil
}
