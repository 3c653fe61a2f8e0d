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

// This test needs a library that panics where FAILPOINTS says (src/testing/point.rs). The tag mol_failpoints compiles it,
// and tests/run links it with such a library, in the same way as the library that ships.

// panicsAt are an entry point, a caller's own task, a blocking thread, a shared build, the sending of an event, and the
// end of a call, in the order in which calls reach them.
var panicsAt = []string{"entry", "lookup-done", "checkout-done", "tree-ready", "event-BuildStarted", "image-built", "call-ended"}

func TestAPanicInTheLibraryIsErrInternalAndTheNextCallWorks(t *testing.T) {
	var points []string
	for _, point := range panicsAt {
		what := "=1*return(boom)"
		if point == "call-ended" {
			// All calls reach this point: the earlier ones must not panic there.
			what = fmt.Sprintf("=%d*off->1*return(boom)", len(panicsAt)-2)
		}
		points = append(points, point+what)
	}
	// This sets C's environment too, which the library reads once.
	if err := os.Setenv("FAILPOINTS", strings.Join(points, ";")); err != nil {
		t.Fatal(err)
	}
	env := newTestEnv(t)
	env.commit("hermes", dockerfile(plain))

	checkPanic := func(err error, point string) {
		t.Helper()
		place := regexp.MustCompile(`boom at the point ` + point + ` \(src/[a-z/]+\.rs:[0-9]+\)`)
		var e *Error
		if !errors.Is(err, ErrInternal) || !errors.As(err, &e) || !place.MatchString(e.Message) || e.Hint == "" {
			t.Errorf("at %s: got %#v", point, err)
		}
	}
	_, err := New(env.options())
	checkPanic(err, "entry")
	c := env.client()
	for _, point := range panicsAt[1:] {
		checkPanic(c.mustFail("hermes", ErrInternal), point)
		// A thread may still work in the folder of the fetch for a moment.
		eventually(t, "at "+point+": no fetch is left in the cache", func() bool { return len(env.unfinishedFetches()) == 0 })
	}
	c.ensure("hermes")
}
