package main

import (
	"fmt"
	"strings"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/spf13/cobra"
)

func (a *app) ensureCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ensure RUNTIME[@SHA]",
		Short: "Build a runtime's image, unless the engine has it",
		Long: "Build the image of a runtime from the head of its template repository, unless the\n" +
			"engine has it already, and print its reference to standard output.\n\n" +
			"With @SHA it is the image of exactly that commit, given with all 40 or 64 digits. Then\n" +
			"no branch is looked up, and Gitea is not asked if the engine has the image.",
		Example: "  mol ensure claude-code\n  docker run $(mol ensure hermes)\n" +
			"  mol ensure hermes@0123456789abcdef0123456789abcdef01234567\n" +
			"  mol ensure google-adk --runtimes google-adk,hermes --pins manifest.json",
		Args:              a.oneTarget,
		ValidArgsFunction: a.completeRuntime,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := a.withTimeout(cmd.Context())
			defer cancel()

			runtime, commit, _ := strings.Cut(args[0], "@")
			d := a.newDisplay(runtime)
			if source := mol.Resolve(); source.Mode == mol.RegistryModeSaaS {
				d.note(fmt.Sprintf("MOLECULE_IMAGE_REGISTRY is set, so a server would pull from %s; this command still builds locally", source.Prefix))
			}
			img, err := a.ensure(ctx, runtime, commit, d)
			if err != nil {
				d.end("")
				return err
			}
			d.end(ready(img))
			if a.asJSON {
				return a.printJSON(result{outcome: succeeded, details: imageDetails(img)})
			}
			return a.println(img.Ref)
		},
	}
	a.buildFlags(cmd)
	return cmd
}

// ready returns the last line of a successful mol ensure.
func ready(img mol.Image) string {
	if img.CacheHit {
		return "ready in " + seconds(img.Timings.Total) + ", nothing to build"
	}
	return "ready in " + seconds(img.Timings.Total)
}
