package provisioner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ensureLocalImageHook is the whole integration with libmol. It is a variable,
// so that a test of the server needs neither Gitea nor an engine.
var ensureLocalImageHook = mol.EnsureLocalImage

// A source is a reference and when to pull it.
type source struct {
	ref  string
	pull pullPolicy
}

type pullPolicy int

const (
	pullNever   pullPolicy = iota // built on this machine, so it is in no registry
	pullMissing                   // an image that the caller named
	pullAlways                    // the :latest tag of a registry, which moves
)

// image chooses the image for a workspace and pulls it if necessary.
func (p *Provisioner) image(ctx context.Context, cfg WorkspaceConfig) (workspace.Image, error) {
	src, err := p.choose(ctx, cfg)
	if err != nil {
		return workspace.Image{}, err
	}
	if src.pull == pullAlways {
		return p.pull(ctx, src.ref)
	}
	img, err := workspace.Inspect(ctx, p.engine, src.ref)
	switch {
	case !errdefs.IsNotFound(err):
		return img, err
	case src.pull == pullMissing:
		return p.pull(ctx, src.ref)
	case cfg.Image != "":
		return workspace.Image{}, fmt.Errorf("%w: a local image is in no registry: leave Image empty to build it", err)
	default:
		return workspace.Image{}, fmt.Errorf("%w: libmol built it in another engine than %s: set DOCKER_HOST, so that both use the same engine", err, p.engine.DaemonHost())
	}
}

// choose decides where the image comes from. An explicit image has priority.
// Otherwise MOLECULE_IMAGE_REGISTRY selects a registry or a local build.
func (p *Provisioner) choose(ctx context.Context, cfg WorkspaceConfig) (source, error) {
	if cfg.Image != "" {
		// Never pull a local image: its name is also a valid name on Docker Hub,
		// where anybody could have registered it.
		if mol.IsLocalBuildImage(cfg.Image) {
			return source{cfg.Image, pullNever}, nil
		}
		return source{cfg.Image, pullMissing}, nil
	}
	runtimes := mol.Options{Runtimes: p.Runtimes}
	if cfg.Runtime == "" {
		return source{}, errors.New("set Runtime to one of " + strings.Join(runtimes.KnownRuntimes(), ", ") + ", or set Image")
	}

	registry := mol.Resolve()
	if registry.Mode == mol.RegistryModeLocal {
		ensure := p.EnsureLocalImage
		if ensure == nil {
			ensure = ensureLocalImageHook
		}
		ref, err := ensure(ctx, cfg.Runtime)
		if err != nil {
			return source{}, err
		}
		return source{ref, pullNever}, nil
	}
	if err := runtimes.CheckRuntime(cfg.Runtime); err != nil {
		return source{}, err
	}
	return source{registry.Prefix + "/workspace-template-" + cfg.Runtime + ":latest", pullAlways}, nil
}

// pull pulls an image for the platform that local images are built for.
func (p *Provisioner) pull(ctx context.Context, ref string) (workspace.Image, error) {
	platform, err := imagePlatform()
	if err != nil {
		return workspace.Image{}, err
	}
	return workspace.Pull(ctx, p.engine, ref, platform, nil)
}

// imagePlatform returns MOLECULE_IMAGE_PLATFORM in the engine's form. The default
// is linux/amd64; nil stands for "native".
func imagePlatform() (*ocispec.Platform, error) {
	platform, err := workspace.ParsePlatform(cmp.Or(mol.OptionsFromEnv().Platform, "linux/amd64"))
	if err != nil {
		return nil, fmt.Errorf("%w: MOLECULE_IMAGE_PLATFORM: %w", mol.ErrInvalidOption, err)
	}
	return platform, nil
}
