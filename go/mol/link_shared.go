//go:build cgo && mol_shared

package mol

// Without this tag the static library is linked in, by link_<os>_<arch>.go.

// #cgo pkg-config: mol
import "C"
