//go:build !cgo || !((linux && (amd64 || arm64)) || darwin)

package mol

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestWithoutTheLibraryThereIsAClearError(t *testing.T) {
	clearEnv(t)
	c, err := New(Options{})
	ref, err2 := EnsureLocalImage(context.Background(), "hermes")
	if c != nil || ref != "" {
		t.Errorf("got %v and %q", c, ref)
	}
	for _, err := range []error{err, err2} {
		if !errors.Is(err, ErrInternal) || !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "CGO_ENABLED=1") {
			t.Errorf("got %v", err)
		}
	}
}
