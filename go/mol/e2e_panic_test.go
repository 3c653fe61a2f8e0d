//go:build cgo && mol_failpoints && linux && (amd64 || arm64)

package mol

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// These tests need a library that panics where FAILPOINTS says (src/testing/point.rs). With the tag mol_failpoints they
// are in the program, and tests/run links it with such a library, in the same way as the one that ships.

// A panic in an entry point, in a caller's own task, on a blocking thread, in a shared build, where an event is
// told, and where a call ends: once each, in the order in which calls come by them.
var panicsAt = []string{"entry", "lookup-done", "checkout-done", "tree-ready", "event-BuildStarted", "image-built", "call-ended"}

func TestAPanicInTheLibraryIsErrInternalAndTheNextCallWorks(t *testing.T) {
	var points []string
	for _, point := range panicsAt {
		what := "=1*return(boom)"
		if point == "call-ended" {
			// All calls come by there: those before are not stopped.
			what = fmt.Sprintf("=%d*off->1*return(boom)", len(panicsAt)-2)
		}
		points = append(points, point+what)
	}
	// Through C's environment too, where the library looks for it, once.
	if err := os.Setenv("FAILPOINTS", strings.Join(points, ";")); err != nil {
		t.Fatal(err)
	}
	b := newBed(t)
	b.template("hermes", dockerfile(plain))

	isTold := func(err error, point string) {
		t.Helper()
		place := regexp.MustCompile(`boom at the point ` + point + ` \(src/[a-z/]+\.rs:[0-9]+\)`)
		var e *Error
		if !errors.Is(err, ErrInternal) || !errors.As(err, &e) || !place.MatchString(e.Message) || e.Hint == "" {
			t.Errorf("at %s: got %#v", point, err)
		}
	}
	_, err := New(b.options())
	isTold(err, "entry")
	c := b.client()
	for _, point := range panicsAt[1:] {
		isTold(c.refused("hermes", ErrInternal), point)
		// A thread may be at work in it for a moment more.
		until(t, "at "+point+": no fetch is left in the cache", func() bool {
			return !strings.Contains(strings.Join(b.cachedPaths(), "\n"), ".work-")
		})
	}
	c.ensure("hermes")
}
