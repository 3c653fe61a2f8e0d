package mol

import "os"

// RegistryMode is how a server gets its workspace images.
type RegistryMode string

const (
	// RegistryModeSaaS means that images are pulled from the registry that the operator has set. This package does not
	// pull.
	RegistryModeSaaS RegistryMode = "saas"
	// RegistryModeLocal means that images are built on this machine, with [EnsureLocalImage].
	RegistryModeLocal RegistryMode = "local"
)

// RegistrySource is where workspace images come from.
type RegistrySource struct {
	// Mode says whether images are pulled or built.
	Mode RegistryMode
	// Prefix is the prefix of image references: the operator's value, unchanged, or "molecule-local".
	Prefix string
}

// Resolve reads MOLECULE_IMAGE_REGISTRY at each call. Any value that is not empty selects [RegistryModeSaaS] and is the
// prefix, unchanged: a pull from a mistyped registry fails visibly, while a local build would hide the mistake.
func Resolve() RegistrySource {
	if prefix := os.Getenv("MOLECULE_IMAGE_REGISTRY"); prefix != "" {
		return RegistrySource{Mode: RegistryModeSaaS, Prefix: prefix}
	}
	return RegistrySource{Mode: RegistryModeLocal, Prefix: localImagePrefix}
}

// LibraryVersion returns the version of the linked library, "0.1.0+4a856492ba78" for example. If libmol.a is linked
// statically, the plus sign and the first digits of its SHA-256 follow the version. It is "" if the package was built
// without the library.
func LibraryVersion() string { return libraryVersion() }

// ABIVersion returns the version of the C interface of the linked library, 0 if the package was built without it.
func ABIVersion() uint32 { return abiVersion() }
