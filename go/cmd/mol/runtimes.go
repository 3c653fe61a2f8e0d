package main

import (
	"fmt"
	"strings"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/agext/levenshtein"
	"github.com/spf13/cobra"
)

// oneRuntime accepts exactly one argument, a known runtime.
func oneRuntime(_ *cobra.Command, args []string) error {
	known := strings.Join(mol.KnownRuntimes(), ", ")
	switch {
	case len(args) == 0:
		return fmt.Errorf("which runtime? (known: %s)", known)
	case len(args) > 1:
		return fmt.Errorf("one runtime at a time, not %d: %s", len(args), strings.Join(args, ", "))
	case mol.IsKnownRuntime(args[0]):
		return nil
	}
	near := nearestRuntime(args[0])
	if near != "" {
		near = ": did you mean " + near + "?"
	}
	return fmt.Errorf("%w %q%s (known: %s)", mol.ErrUnknownRuntime, args[0], near, known)
}

// completeRuntime offers the runtimes to the shell.
func completeRuntime(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return mol.KnownRuntimes(), cobra.ShellCompDirectiveNoFileComp
}

// nearestRuntime is the runtime that was probably meant, or "".
func nearestRuntime(name string) string {
	name = strings.ToLower(strings.TrimSpace(name))
	best, distance := "", 4 // more than three typing errors is another word
	for _, runtime := range mol.KnownRuntimes() {
		if d := levenshtein.Distance(name, runtime, nil); d < distance && d < len(runtime)/2+1 {
			best, distance = runtime, d
		}
		if best == "" && len(name) >= 3 && strings.HasPrefix(runtime, name) {
			best = runtime
		}
	}
	return best
}
