// Package first is a small workspace server with the conventions of the first version that built images on the
// developer's machine. It sets nothing in code; the operator sets the environment.
//
//   - The runtimes are the nine of libmol's default list.
//   - An image is molecule-local/workspace-template-<runtime>:<sha12>, with :latest beside it, for linux/amd64.
//   - MOLECULE_IMAGE_REGISTRY, if it is not empty, is where images are pulled from; then nothing is built.
//   - The text of the error for a name that is not on the list has "unknown runtime" in it.
//   - The cache folder may be relative.
//   - What happens is logged through the log package.
package first

import (
	"context"
	"fmt"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// ensureLocalImageHook is the whole integration. It is a variable so that a test of the server needs neither Gitea nor
// an engine.
var ensureLocalImageHook = mol.EnsureLocalImage

// An Image is what a workspace is started from.
type Image struct {
	Ref string
	// Pull tells that it comes from a registry. A local image is in none, and must never be pulled.
	Pull bool
}

// ImageFor returns the image for a runtime. Where images are built here, the engine has it then.
func ImageFor(ctx context.Context, runtime string) (Image, error) {
	source := mol.Resolve()
	if source.Mode == mol.RegistryModeLocal {
		ref, err := ensureLocalImageHook(ctx, runtime)
		if err != nil {
			return Image{}, fmt.Errorf("provision %s: %w", runtime, err)
		}
		return Image{Ref: ref, Pull: !mol.IsLocalBuildImage(ref)}, nil
	}
	if !mol.IsKnownRuntime(runtime) {
		return Image{}, fmt.Errorf("provision %s: unknown runtime %q", runtime, runtime)
	}
	return Image{Ref: source.Prefix + "/workspace-template-" + runtime + ":latest", Pull: true}, nil
}
