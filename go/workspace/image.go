package workspace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/jsonstream"
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

// A LayerProgress is how far the pull of one layer is.
type LayerProgress struct {
	Layer      string // the start of its digest
	Extracting bool   // its download is complete
	Bytes      int64  // done
	Total      int64  // 0 if the engine does not say
}

// ErrPull is wrapped by the error of Pull when the engine could not pull the image.
var ErrPull = errors.New("the image cannot be pulled")

// Pull pulls the image ref for a platform, or for the engine's own platform if
// platform is nil. It uses the credentials that `docker login` stored. Unless
// progress is nil, Pull calls it whenever the engine reports a layer, which Podman
// does not.
func Pull(ctx context.Context, engine *client.Client, ref string, platform *ocispec.Platform, progress func(LayerProgress)) (Image, error) {
	auth, err := registryAuth(ref)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	opts := client.ImagePullOptions{RegistryAuth: auth}
	if platform != nil {
		opts.Platforms = []ocispec.Platform{*platform}
	}
	if err := pull(ctx, engine, ref, opts, progress); err != nil {
		if client.IsErrConnectionFailed(err) || ctx.Err() != nil {
			return Image{}, fmt.Errorf("pull %s: %w", ref, err)
		}
		return Image{}, fmt.Errorf("%w: %s: %w", ErrPull, ref, err)
	}

	img, err := Inspect(ctx, engine, ref)
	if platform != nil {
		// If an engine has several platforms of one reference, it reports its own
		// platform, not the one that was pulled.
		img.Platform = platform
	}
	return img, err
}

func pull(ctx context.Context, engine *client.Client, ref string, opts client.ImagePullOptions, progress func(LayerProgress)) error {
	pulling, err := engine.ImagePull(ctx, ref, opts)
	if err != nil {
		return err
	}
	for message, err := range pulling.JSONMessages(ctx) {
		switch {
		case err != nil:
			return err
		case message.Error != nil:
			return message.Error
		}
		if layer, ok := layerProgress(message); ok && progress != nil {
			progress(layer)
		}
	}
	return nil
}

// layerProgress returns what a message of a pull says about a layer, if it does.
func layerProgress(message jsonstream.Message) (_ LayerProgress, ok bool) {
	layer := LayerProgress{Layer: message.ID, Extracting: message.Status == "Extracting"}
	// Newer engines report an extraction in seconds.
	if p := message.Progress; p != nil && p.Units == "" {
		layer.Bytes, layer.Total = p.Current, p.Total
	}
	return layer, message.ID != "" && (layer.Extracting || message.Status == "Downloading")
}

// ParsePlatform parses a platform in the form of MOLECULE_IMAGE_PLATFORM:
// "os/arch", "os/arch/variant", or "native" for the engine's own platform, which
// is nil.
func ParsePlatform(name string) (*ocispec.Platform, error) {
	if name == "native" {
		return nil, nil
	}
	parts := strings.Split(name, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return nil, fmt.Errorf("%q is not a valid platform: use os/arch, os/arch/variant or native", name)
	}
	platform := &ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		platform.Variant = parts[2]
	}
	return platform, nil
}
