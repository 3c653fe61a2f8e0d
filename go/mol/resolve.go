package mol

import "os"

// RegistryMode says how a server gets its workspace images.
type RegistryMode string

const (
	// RegistryModeSaaS says that images are pulled from the registry that the operator named. This package
	// does not pull.
	RegistryModeSaaS RegistryMode = "saas"
	// RegistryModeLocal says that images are built on this machine, with [EnsureLocalImage].
	RegistryModeLocal RegistryMode = "local"
)

// RegistrySource is where workspace images come from.
type RegistrySource struct {
	// Mode is pull or build.
	Mode RegistryMode
	// Prefix is what an image reference begins with: the operator's value as it is, or "molecule-local".
	Prefix string
}

// Resolve reads MOLECULE_IMAGE_REGISTRY, at each call. Any value that is not empty selects
// [RegistryModeSaaS] and is the prefix, verbatim: the operator is trusted, and a pull from a mistyped
// registry fails loudly, while a build in its place would hide the mistake.
func Resolve() RegistrySource {
	if prefix := os.Getenv("MOLECULE_IMAGE_REGISTRY"); prefix != "" {
		return RegistrySource{Mode: RegistryModeSaaS, Prefix: prefix}
	}
	return RegistrySource{Mode: RegistryModeLocal, Prefix: localImagePrefix}
}

// LibraryVersion is the version of the library that is linked in, "0.1.0+4a856492ba78" for example: behind the
// plus sign is the beginning of the SHA-256 of libmol.a, where it is linked statically. It is "" where the
// package was built without the library.
func LibraryVersion() string { return libraryVersion() }
