//go:build !cgo || !((linux && (amd64 || arm64)) || darwin)

package mol

import (
	"errors"
	"fmt"
	"runtime"
)

// newCoreClient replaces the one in bridge_cgo.go where the library cannot be linked.
func newCoreClient([]setting, bool) (coreClient, error) { return nil, errNoLibrary }

var errNoLibrary error = (&Error{
	Code: CodeInternal,
	Message: fmt.Sprintf("this program was built without libmol (%s/%s, CGO_ENABLED=0 or a target that "+
		"libmol does not support), so it cannot build images", runtime.GOOS, runtime.GOARCH),
	Hint: "build it with CGO_ENABLED=1 and a C compiler on linux/amd64, linux/arm64 or darwin, or set " +
		"MOLECULE_IMAGE_REGISTRY to pull images instead of building them",
}).withCauses(errors.ErrUnsupported)

func abiVersion() uint32 { return 0 }

func libraryVersion() string { return "" }
