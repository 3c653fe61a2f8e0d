package main

import (
	"context"
	"encoding/base64"
	"flag"
	"net/url"
	"os"
	"strings"
	"testing"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// pure measures functions that need neither a network nor an engine.
func pure(_ context.Context, env *testEnv, r *report) error {
	testing.Init()
	if err := flag.Set("test.benchtime", "100ms"); err != nil {
		return err
	}
	rounds := env.runs(21, 3)
	const registry = "MOLECULE_IMAGE_REGISTRY"
	defer os.Unsetenv(registry)
	for _, value := range []string{"", "registry.example.com/workspaces"} {
		if err := os.Setenv(registry, value); err != nil {
			return err
		}
		name := "mol.Resolve(), no registry"
		if value != "" {
			name = "mol.Resolve(), a registry"
		}
		var source mol.RegistrySource
		took, allocations := benchmark(rounds, func() { source = mol.Resolve() })
		_ = source
		r.limit(name, took, seconds, 150e-9)
		r.limit(name+": allocations", []float64{allocations}, count, 1)
	}

	var known bool
	names := append(mol.KnownRuntimes(), "claude_code", "an-unknown-runtime")
	i := 0
	took, allocations := benchmark(rounds, func() {
		known = mol.IsKnownRuntime(names[i%len(names)])
		i++
	})
	_ = known
	r.limit("mol.IsKnownRuntime", took, seconds, 100e-9)
	r.limit("mol.IsKnownRuntime: allocations", []float64{allocations}, count, 0)

	for _, often := range []int{0, 3} {
		text := logText(64<<10, often)
		var masked string
		ours := func() { masked = mol.MaskTokenInString(text, token) }
		list := spellings()
		theirs := func() {
			masked = text
			for _, spelling := range list {
				masked = strings.ReplaceAll(masked, spelling, "***")
			}
		}
		var a, b []float64
		for range rounds {
			took, _ := benchmark(1, ours)
			a = append(a, took...)
			took, _ = benchmark(1, theirs)
			b = append(b, took...)
		}
		_ = masked
		name := "mol.MaskTokenInString, 64 KiB log text with the token, against strings.ReplaceAll"
		if often == 0 {
			name = "mol.MaskTokenInString, 64 KiB log text, against strings.ReplaceAll"
		}
		r.atMost(name, a, b, 1)
	}
	return nil
}

// benchmark returns the seconds and the allocations of one call.
func benchmark(rounds int, do func()) (took []float64, allocations float64) {
	for range rounds {
		result := testing.Benchmark(func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				do()
			}
		})
		took = append(took, result.T.Seconds()/float64(result.N))
		allocations = float64(result.AllocsPerOp())
	}
	return took, allocations
}

// token has the form of a Gitea token.
const token = "3f9a0c5be1d24876a9b8c7d6e5f40312a1b2c3d4"

// spellings returns the spellings of the token that simple code would replace: plain, percent-encoded, and the base64 of
// user:token in both alphabets. For a token of hex digits some are equal.
func spellings() []string {
	list := []string{token, url.QueryEscape(token)}
	for _, user := range []string{"x:", "ab:", "git:"} {
		plain := []byte(user + token)
		list = append(list,
			base64.StdEncoding.EncodeToString(plain), base64.URLEncoding.EncodeToString(plain))
	}
	return list
}

// logText returns the output of a build with the token in it about often times.
func logText(size, often int) string {
	const line = "#12 4.183 Collecting uvicorn[standard]==0.30.6 (from -r requirements.txt (line 7))\n"
	var b strings.Builder
	for n := 0; b.Len() < size; n++ {
		if often > 0 && n%(size/len(line)/often) == 0 {
			b.WriteString("#12 4.200 fetching https://git:" + token + "@git.example.com/org/repo\n")
		}
		b.WriteString(line)
	}
	return b.String()[:size]
}
