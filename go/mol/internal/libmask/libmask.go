//go:build cgo && ((linux && (amd64 || arm64)) || darwin)

// Package libmask calls the library's mol_mask_token. Go's masking is compared with it in tests, and cgo cannot be
// used in a test file. Only programs that import package mol can be linked, because that package links the library.
package libmask

/*
#cgo CFLAGS: -I${SRCDIR}/../..
#include <stdlib.h>
#include "mol.h"
*/
import "C"

import (
	"fmt"
	"strings"
	"unsafe"
)

// MaskToken masks the token in a text. Both must be valid UTF-8 without NUL bytes.
func MaskToken(text, token string) string {
	if strings.Contains(text+token, "\x00") {
		panic("libmask: a C string cannot have a NUL byte in it")
	}
	cText, cToken := C.CString(text), C.CString(token)
	defer C.free(unsafe.Pointer(cText))
	defer C.free(unsafe.Pointer(cToken))
	var masked *C.char
	if status := C.mol_mask_token(cText, cToken, &masked, nil); status != C.MOL_OK {
		panic(fmt.Sprintf("libmask: mol_mask_token(%q, %q) fails with %d", text, token, status))
	}
	defer C.mol_string_free(masked)
	return C.GoString(masked)
}
