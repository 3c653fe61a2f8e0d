// Package first is a small workspace server with the conventions of the first version that built images on the
// developer's machine. It sets nothing in code; the operator sets the environment.
//
//   - The runtimes are the nine of the default list.
//   - An image is molecule-local/workspace-template-<runtime>:<sha12>, with :latest beside it, for linux/amd64.
//   - If MOLECULE_IMAGE_REGISTRY is not empty, images are pulled from that registry and nothing is built.
//   - The error for a name that is not on the list contains "unknown runtime".
//   - The cache folder may be relative.
//   - Progress is logged through the log package.
package first

import (
	"context"
	"fmt"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// ensureLocalImageHook is the whole integration. It is a variable so that tests of the server can replace it and need
// neither Gitea nor an engine.
var ensureLocalImageHook = mol.EnsureLocalImage

// An Image is the image of a workspace.
type Image struct {
	Ref string
	// Pull is true for an image from a registry. A local image must never be pulled.
	Pull bool
}

// ImageFor returns the image for a runtime. In local mode, the engine has the image when ImageFor returns.
func ImageFor(ctx context.Context, runtime string) (Image, error) {
	source := mol.Resolve()
	if source.Mode == mol.RegistryModeLocal {
		ref, err := ensureLocalImageHook(ctx, runtime)
		if err != nil {
			return Image{}, fmt.Errorf("provision %s: %w", runtime, err)
		}
		return Image{Ref: ref, Pull: !mol.IsLocalBuildImage(ref)}, nil
	}
	if err := (mol.Options{}).CheckRuntime(runtime); err != nil {
		return Image{}, fmt.Errorf("provision %s: %w", runtime, err)
	}
	return Image{Ref: source.Prefix + "/workspace-template-" + runtime + ":latest", Pull: true}, nil
}
