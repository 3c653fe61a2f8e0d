package mol

import (
	"slices"
	"testing"
)

func TestIsKnownRuntimeMatchesExactly(t *testing.T) {
	type vector struct {
		vectorName
		Runtime string `json:"runtime"`
		Known   bool   `json:"known"`
	}
	eachVector(t, "is_known_runtime.json", func(t *testing.T, v vector) {
		if got := IsKnownRuntime(v.Runtime); got != v.Known {
			t.Errorf("IsKnownRuntime(%.40q) is %v", v.Runtime, got)
		}
		if got := slices.Contains(KnownRuntimes(), v.Runtime); got != v.Known {
			t.Errorf("KnownRuntimes() has %.40q: %v", v.Runtime, got)
		}
	})
}

func TestKnownRuntimesAreTheNineInOrder(t *testing.T) {
	known := KnownRuntimes()
	if len(known) != 9 || !slices.IsSorted(known) {
		t.Errorf("got %q", known)
	}
}

func TestKnownRuntimesIsACopy(t *testing.T) {
	KnownRuntimes()[0] = "evil"
	if KnownRuntimes()[0] != "autogen" || IsKnownRuntime("evil") {
		t.Error("a caller changed the allowlist")
	}
}

var sink bool

func TestIsKnownRuntimeDoesNotAllocate(t *testing.T) {
	for _, name := range []string{"hermes", "unknown", "", "openclaw\x00"} {
		if n := testing.AllocsPerRun(100, func() { sink = IsKnownRuntime(name) }); n != 0 {
			t.Errorf("%v allocations for %q", n, name)
		}
	}
}

func BenchmarkIsKnownRuntime(b *testing.B) {
	for _, name := range []string{"autogen", "openclaw", "unknown"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				sink = IsKnownRuntime(name)
			}
		})
	}
}
