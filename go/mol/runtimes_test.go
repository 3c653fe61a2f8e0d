package mol

import (
	"errors"
	"slices"
	"strconv"
	"strings"
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
			t.Errorf("KnownRuntimes() contains %.40q: %v", v.Runtime, got)
		}
	})
}

func TestTheHintHasTheNearestRuntime(t *testing.T) {
	type vector struct {
		vectorName
		Runtime string `json:"runtime"`
		Nearest string `json:"nearest"`
	}
	eachVector(t, "unknown_runtimes.json", func(t *testing.T, v vector) {
		want := "the known runtimes are autogen, claude-code, codex, crewai, deepagents, gemini-cli, hermes, langgraph, openclaw"
		if v.Nearest != "" {
			want = "did you mean " + v.Nearest + "? " + want
		}
		var e *Error
		if err := (Options{}).CheckRuntime(v.Runtime); !errors.As(err, &e) || !errors.Is(err, ErrUnknownRuntime) ||
			e.Message != "unknown runtime "+strconv.Quote(v.Runtime) || e.Hint != want {
			t.Errorf("got %v", err)
		}
	})
}

func TestCheckRuntimeUsesTheRuntimesOfItsOptions(t *testing.T) {
	o := Options{Runtimes: []string{"zeta", "google-adk"}, Token: testToken}
	if err := o.CheckRuntime("zeta"); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{
		"hermes":                `unknown runtime "hermes"; the known runtimes are google-adk, zeta`,
		"GoogleADK":             `unknown runtime "GoogleADK"; did you mean google-adk? the known runtimes are google-adk, zeta`,
		"my-" + testToken:       `unknown runtime "my-***"; the known runtimes are google-adk, zeta`,
		strings.Repeat("ä", 65): `unknown runtime "` + strings.Repeat("ä", 64) + `…"; the known runtimes are google-adk, zeta`,
	} {
		if err := o.CheckRuntime(name); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestAlignmentDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "ab", 1}, {"ab", "abc", 1},
		{"abc", "axc", 1}, {"ca", "abc", 3}, {"kitten", "sitting", 3},
	} {
		if got := alignmentDistance(c.a, c.b); got != c.want {
			t.Errorf("%q and %q: got %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestKnownRuntimesAreNineAndSorted(t *testing.T) {
	known := KnownRuntimes()
	if len(known) != 9 || !slices.IsSorted(known) {
		t.Errorf("got %q", known)
	}
}

func TestKnownRuntimesIsACopy(t *testing.T) {
	KnownRuntimes()[0] = "evil"
	if KnownRuntimes()[0] != "autogen" || IsKnownRuntime("evil") {
		t.Error("changing the result changed the allowlist")
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
