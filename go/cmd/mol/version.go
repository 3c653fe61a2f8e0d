package main

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// versionTimeout limits the request for the engine's version.
const versionTimeout = 3 * time.Second

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of mol, libmol, Go and the engine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versionResult{outcome: succeeded, Version: version(), Library: mol.LibraryVersion(), ABI: mol.ABIVersion(), Go: runtime.Version()}
			if a.setEnv(cmd.Flags()) == nil { // mol doctor reports an invalid configuration file
				v.Engine = a.engineVersion(cmd.Context())
			}
			if a.asJSON {
				return a.printJSON(v)
			}
			engine := v.Engine
			if engine == "" {
				engine = "none answers; mol doctor says why"
			}
			return a.println(fmt.Sprintf("mol %s\nlibmol %s, ABI %d\n%s %s/%s\nengine: %s",
				v.Version, cmp.Or(v.Library, "none: built without cgo"), v.ABI, v.Go, runtime.GOOS, runtime.GOARCH, engine))
		},
	}
}

type versionResult struct {
	outcome
	Version string `json:"version"`
	Library string `json:"library"`
	ABI     uint32 `json:"abi"`
	Go      string `json:"go"`
	Engine  string `json:"engine"` // "" if none answers
}

// releaseVersion is set by packaging/command with -ldflags -X. It is empty in a mol built by plain go build or go
// install.
var releaseVersion string

// version is the version of this command. Without releaseVersion, it is what Go's module system knows.
func version() string {
	if releaseVersion != "" {
		return releaseVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// engineVersion describes the engine: "Docker Engine 27.3.1 at unix:///var/run/docker.sock". "" if none answers.
func (a *app) engineVersion(ctx context.Context) (description string) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	_ = a.withEngine(ctx, func(ctx context.Context, engine *client.Client) error {
		found, err := engine.ServerVersion(ctx, client.ServerVersionOptions{})
		if err == nil {
			description = fmt.Sprintf("%s %s at %s", cmp.Or(found.Platform.Name, "Docker"), found.Version, engine.DaemonHost())
		}
		return err
	})
	return description
}
