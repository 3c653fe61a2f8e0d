package main

import (
	"runtime/debug"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			version := "unknown"
			if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
				version = info.Main.Version
			}
			if library := mol.LibraryVersion(); library != "" {
				version += " with libmol " + library
			}
			if a.asJSON {
				return a.printJSON(result{Kind: "result", OK: true, Version: version})
			}
			return a.println("mol " + version)
		},
	}
}
