package provisioner

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ensureLocalImageHook is the whole integration with libmol. It is a variable
// so that a test of the server needs neither Gitea nor an engine.
var ensureLocalImageHook = mol.EnsureLocalImage

// A source is a reference and when to pull it.
type source struct {
	ref  string
	pull pullPolicy
}

type pullPolicy int

const (
	pullNever   pullPolicy = iota // built on this machine: no registry has it
	pullMissing                   // an image that somebody chose by name
	pullAlways                    // a registry's :latest, which moves
)

// An image is a reference that the engine has, and what it says about itself.
type image struct {
	ref      string
	platform *ocispec.Platform
	config   *ocispec.ImageConfig
}

// image picks the image for a workspace and sees to it that the engine has it.
func (p *Provisioner) image(ctx context.Context, cfg WorkspaceConfig) (image, error) {
	src, err := p.choose(ctx, cfg)
	if err != nil {
		return image{}, err
	}
	if src.pull == pullAlways {
		return p.pull(ctx, src.ref)
	}
	img, err := p.inspect(ctx, src.ref)
	switch {
	case !errdefs.IsNotFound(err):
		return img, err
	case src.pull == pullMissing:
		return p.pull(ctx, src.ref)
	case cfg.Image != "":
		return image{}, fmt.Errorf("%w: a local image is in no registry: leave Image empty to have it built", err)
	default:
		return image{}, fmt.Errorf("%w: libmol built it in another engine than %s: point both to the same one with DOCKER_HOST", err, p.engine.DaemonHost())
	}
}

// choose decides where the image comes from. An explicit image wins; otherwise
// the operator's setting decides between a registry and a build on this machine.
func (p *Provisioner) choose(ctx context.Context, cfg WorkspaceConfig) (source, error) {
	if cfg.Image != "" {
		// The name of a local image is also a valid name on Docker Hub, where
		// anybody could have put something: it is never pulled.
		if mol.IsLocalBuildImage(cfg.Image) {
			return source{cfg.Image, pullNever}, nil
		}
		return source{cfg.Image, pullMissing}, nil
	}
	runtimes := mol.Options{Runtimes: p.Runtimes}
	if cfg.Runtime == "" {
		return source{}, errors.New("set Runtime, to one of " + strings.Join(runtimes.KnownRuntimes(), ", ") + ", or Image")
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

// inspect asks the engine for an image. The platform is the one the image is
// for, so that a linux/amd64 image on an arm64 machine is started as what it is.
func (p *Provisioner) inspect(ctx context.Context, ref string) (image, error) {
	found, err := p.engine.ImageInspect(ctx, ref)
	if err != nil {
		return image{}, fmt.Errorf("inspect image %s: %w", ref, err)
	}
	img := image{
		ref:      ref,
		platform: &ocispec.Platform{OS: found.Os, Architecture: found.Architecture, Variant: found.Variant},
		config:   &ocispec.ImageConfig{},
	}
	if found.Config != nil {
		img.config = &found.Config.ImageConfig
	}
	return img, nil
}

// pull fetches an image from its registry, for the platform that local images
// are built for, too.
func (p *Provisioner) pull(ctx context.Context, ref string) (image, error) {
	auth, err := registryAuth(ref)
	if err != nil {
		return image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	opts := client.ImagePullOptions{RegistryAuth: auth}
	platform, err := imagePlatform()
	if err != nil {
		return image{}, err
	}
	if platform != nil {
		opts.Platforms = []ocispec.Platform{*platform}
	}
	progress, err := p.engine.ImagePull(ctx, ref, opts)
	if err != nil {
		return image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	if err := progress.Wait(ctx); err != nil {
		return image{}, fmt.Errorf("pull %s: %w", ref, err)
	}

	img, err := p.inspect(ctx, ref)
	if platform != nil {
		// An engine that keeps one reference for several platforms describes its
		// own one when asked, not the one that was pulled.
		img.platform = platform
	}
	return img, err
}

// imagePlatform is MOLECULE_IMAGE_PLATFORM in the engine's form: linux/amd64 by
// default, nil for "native".
func imagePlatform() (*ocispec.Platform, error) {
	name := mol.OptionsFromEnv().Platform
	switch name {
	case "":
		return &ocispec.Platform{OS: "linux", Architecture: "amd64"}, nil
	case "native":
		return nil, nil
	}
	parts := strings.Split(name, "/")
	if len(parts) < 2 || len(parts) > 3 {
		return nil, fmt.Errorf("%w: MOLECULE_IMAGE_PLATFORM is %q: write os/arch, os/arch/variant or native", mol.ErrInvalidOption, name)
	}
	platform := &ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		platform.Variant = parts[2]
	}
	return platform, nil
}
