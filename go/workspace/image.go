package workspace

import (
	"context"
	"fmt"
	"strings"

	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An Image is an image that the engine has.
type Image struct {
	Ref string

	// Platform is what the container is created for. An image for linux/amd64 on
	// an arm64 machine then runs under emulation.
	Platform *ocispec.Platform

	// Config has the ports that the image exposes.
	Config *ocispec.ImageConfig
}

// Inspect returns the image ref of the engine. It does not pull; if the engine
// does not have the image, errdefs.IsNotFound is true for the error.
func Inspect(ctx context.Context, engine *client.Client, ref string) (Image, error) {
	found, err := engine.ImageInspect(ctx, ref)
	if err != nil {
		return Image{}, fmt.Errorf("inspect image %s: %w", ref, err)
	}
	img := Image{
		Ref:      ref,
		Platform: &ocispec.Platform{OS: found.Os, Architecture: found.Architecture, Variant: found.Variant},
		Config:   &ocispec.ImageConfig{},
	}
	if found.Config != nil {
		img.Config = &found.Config.ImageConfig
	}
	return img, nil
}

// Pull pulls the image ref for a platform, or for the engine's own platform if
// platform is nil. It uses the credentials that `docker login` stored.
func Pull(ctx context.Context, engine *client.Client, ref string, platform *ocispec.Platform) (Image, error) {
	auth, err := registryAuth(ref)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	opts := client.ImagePullOptions{RegistryAuth: auth}
	if platform != nil {
		opts.Platforms = []ocispec.Platform{*platform}
	}
	progress, err := engine.ImagePull(ctx, ref, opts)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	if err := progress.Wait(ctx); err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}

	img, err := Inspect(ctx, engine, ref)
	if platform != nil {
		// If an engine has several platforms of one reference, it reports its own
		// platform, not the one that was pulled.
		img.Platform = platform
	}
	return img, err
}

// ParsePlatform parses a platform in the form of MOLECULE_IMAGE_PLATFORM:
// "os/arch", "os/arch/variant", or "native" for the engine's own platform, which
// is nil.
func ParsePlatform(name string) (*ocispec.Platform, error) {
	if name == "native" {
		return nil, nil
	}
	parts := strings.Split(name, "/")
	if len(parts) < 2 || len(parts) > 3 {
		return nil, fmt.Errorf("%q is not a valid platform: use os/arch, os/arch/variant or native", name)
	}
	platform := &ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		platform.Variant = parts[2]
	}
	return platform, nil
}
