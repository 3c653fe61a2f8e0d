package main

import (
	"os"
	"slices"

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
	cmd.Flags().SortFlags = false
	a.mirroredFlags(cmd, "repo-prefix", "branch", "platform", "isolation", "cache-dir", "docker-host")
	cmd.Flags().Bool("offline", false, "no network: the newest local image ("+offlineEnv+"=1)")
	a.timeoutFlag(cmd)
}

// upkeepFlags adds the flags of the commands that look at what is there.
func (a *app) upkeepFlags(cmd *cobra.Command) {
	cmd.Flags().SortFlags = false
	a.mirroredFlags(cmd, "isolation", "cache-dir", "docker-host")
	a.timeoutFlag(cmd)
}

func (a *app) mirroredFlags(cmd *cobra.Command, names ...string) {
	flags := cmd.Flags()
	for _, m := range mirrored {
		if slices.Contains(names, m.flag) {
			flags.String(m.flag, "", m.usage+" ("+m.env+")")
		}
	}
	cmd.PreRunE = func(*cobra.Command, []string) error { return setEnv(flags) }
}

func (a *app) timeoutFlag(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&a.timeout, "timeout", 0, "give up after this `duration`, such as 90s or 10m")
}

func setEnv(flags *pflag.FlagSet) error {
	for _, m := range mirrored {
		if f := flags.Lookup(m.flag); f != nil && f.Changed {
			if err := os.Setenv(m.env, f.Value.String()); err != nil {
				return usageError{err}
			}
		}
	}
	if f := flags.Lookup("offline"); f != nil && f.Changed {
		value := ""
		if f.Value.String() == "true" {
			value = "1"
		}
		return os.Setenv(offlineEnv, value)
	}
	return nil
}
