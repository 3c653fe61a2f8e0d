package mol

import "testing"

func TestResolveReadsTheRegistryVerbatim(t *testing.T) {
	type vector struct {
		vectorName
		Value  *string      `json:"value"`
		Mode   RegistryMode `json:"mode"`
		Prefix string       `json:"prefix"`
	}
	eachVector(t, "resolve.json", func(t *testing.T, v vector) {
		if v.Value == nil {
			unsetenv(t, "MOLECULE_IMAGE_REGISTRY")
		} else {
			t.Setenv("MOLECULE_IMAGE_REGISTRY", *v.Value)
		}
		if got, want := Resolve(), (RegistrySource{v.Mode, v.Prefix}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

func TestResolveReadsTheEnvironmentAtEachCall(t *testing.T) {
	t.Setenv("MOLECULE_IMAGE_REGISTRY", "one.example")
	first := Resolve()
	t.Setenv("MOLECULE_IMAGE_REGISTRY", "two.example")
	second := Resolve()
	t.Setenv("MOLECULE_IMAGE_REGISTRY", "")
	third := Resolve()
	if first.Prefix != "one.example" || second.Prefix != "two.example" || third.Mode != RegistryModeLocal {
		t.Errorf("got %+v, %+v, %+v", first, second, third)
	}
}

func TestResolveAllocatesAtMostOnce(t *testing.T) {
	for _, value := range []string{"", "registry.example.com/org"} {
		t.Setenv("MOLECULE_IMAGE_REGISTRY", value)
		if n := testing.AllocsPerRun(100, func() { Resolve() }); n > 1 {
			t.Errorf("%v allocations with %q", n, value)
		}
	}
}

func BenchmarkResolve(b *testing.B) {
	for _, bench := range []struct{ name, value string }{{"local", ""}, {"saas", "registry.example.com/org"}} {
		b.Run(bench.name, func(b *testing.B) {
			b.Setenv("MOLECULE_IMAGE_REGISTRY", bench.value)
			b.ReportAllocs()
			for b.Loop() {
				Resolve()
			}
		})
	}
}
