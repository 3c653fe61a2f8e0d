package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// mirrored are the flags that stand for a variable of the environment. The
// token has none: flags are for everybody to see, in ps and in /proc.
var mirrored = []struct{ flag, env, usage string }{
	{"repo-prefix", "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", "`URL` of the template repositories, up to the runtime's name"},
	{"branch", "MOLECULE_LOCAL_TEMPLATE_BRANCH", "`branch` of the template to build"},
	{"platform", "MOLECULE_IMAGE_PLATFORM", "`os/arch` to build for, or native"},
	{"isolation", "MOLECULE_LOCAL_IMAGE_ISOLATION", "`suffix` that keeps these images apart from others"},
	{"cache-dir", "MOLECULE_LOCAL_BUILD_CACHE", "`folder` for fetched templates"},
	{"docker-host", "DOCKER_HOST", "`address` of the container engine"},
}

const offlineEnv = "MOLECULE_LOCAL_OFFLINE"

// buildFlags adds the flags of the commands that build. Each sets its variable
// in this process, so that everything that reads the environment, which is
// libmol, the provisioner and the Docker client, sees the same.
func (a *app) buildFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	for _, m := range mirrored {
		flags.String(m.flag, "", m.usage+" ("+m.env+")")
	}
	flags.Bool("offline", false, "no network: the newest local image ("+offlineEnv+"=1)")
	flags.DurationVar(&a.timeout, "timeout", 0, "give up after this `duration`, such as 90s or 10m")
	cmd.PreRunE = func(*cobra.Command, []string) error { return setEnv(flags) }
}

func setEnv(flags *pflag.FlagSet) error {
	for _, m := range mirrored {
		if f := flags.Lookup(m.flag); f.Changed {
			if err := os.Setenv(m.env, f.Value.String()); err != nil {
				return usageError{err}
			}
		}
	}
	if f := flags.Lookup("offline"); f.Changed {
		value := ""
		if f.Value.String() == "true" {
			value = "1"
		}
		return os.Setenv(offlineEnv, value)
	}
	return nil
}
