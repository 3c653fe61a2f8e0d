package main

import (
	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/spf13/cobra"
)

func (a *app) resolveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resolve",
		Short: "Show where images come from",
		Long: "Show where images come from: \"local\" and the prefix of locally built images, or\n" +
			"\"saas\" and the registry to pull from (MOLECULE_IMAGE_REGISTRY).",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			source := mol.Resolve()
			if a.asJSON {
				return a.printJSON(sourceResult{succeeded, source.Mode, source.Prefix})
			}
			return a.println(string(source.Mode) + " " + source.Prefix)
		},
	}
}

type sourceResult struct {
	outcome
	Mode   mol.RegistryMode `json:"mode"`
	Prefix string           `json:"prefix"`
}
