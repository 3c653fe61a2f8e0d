package main

import (
	"os"
	"slices"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// mirrored are the flags that set an environment variable. The token has no flag,
// because all users can see flags, in ps and in /proc.
var mirrored = []struct{ flag, env, usage string }{
	{"repo-prefix", "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", "`URL` of the template repositories, up to the runtime's name"},
	{"branch", "MOLECULE_LOCAL_TEMPLATE_BRANCH", "`branch` of the template to build"},
	{"platform", "MOLECULE_IMAGE_PLATFORM", "`os/arch` to build for, or native"},
	{"isolation", "MOLECULE_LOCAL_IMAGE_ISOLATION", "`suffix` of the tags, to separate these images from others"},
	{"cache-dir", "MOLECULE_LOCAL_BUILD_CACHE", "`folder` for fetched templates; a relative path is relative to the working directory"},
	{"docker-host", "DOCKER_HOST", "`address` of the container engine"},
}

const (
	offlineEnv = "MOLECULE_LOCAL_OFFLINE"
	tokenEnv   = "MOLECULE_GITEA_TOKEN"
	cacheEnv   = "MOLECULE_LOCAL_BUILD_CACHE"
	hostEnv    = "DOCKER_HOST"
	contextEnv = "DOCKER_CONTEXT"
)

// flagless are the variables without a flag.
var flagless = []struct{ env, usage string }{
	{"MOLECULE_IMAGE_REGISTRY", "the registry that mol up pulls images from; empty: images are built"},
	{tokenEnv, "the token for Gitea; it has no flag, because all users can see flags"},
	{"MOLECULE_LOCAL_RUNTIME_VERSION_PIN", "1: the template's .runtime-version is the build argument RUNTIME_VERSION"},
	{"MOLECULE_BUILD_STALL_GRACE_S", "maximum time of a fetch or a build without any output: seconds, or a duration such as 4m (default 240)"},
	{"MOLECULE_BUILD_CEILING_S", "maximum time of a call without --timeout: seconds, or a duration such as 30m (default 1800)"},
	{"MOLECULE_BUILD_MEMORY_MIB", "maximum memory of the library, in MiB (default 512)"},
}

// choices are the flags without a variable. A server sets these options in code.
type choices struct {
	runtimes runtimesFlag
	tagArch  choice
	pins     map[string]string // from the file of --pins
}

// allowlist returns options with the known runtimes, to check arguments before the
// flags have set the environment.
func (a *app) allowlist() mol.Options {
	return mol.Options{Runtimes: a.chosen.runtimes, Token: os.Getenv(tokenEnv)}
}

// options returns the options of the environment and the flags.
func (a *app) options() mol.Options {
	options := mol.OptionsFromEnv()
	options.Runtimes = a.chosen.runtimes
	options.TagArch = mol.TagArch(a.chosen.tagArch.value)
	options.Pins = a.chosen.pins
	return options
}

// buildFlags adds the flags of the commands that build. Each sets its variable in
// this process, so that libmol, the package workspace and the Docker client read the
// same values.
func (a *app) buildFlags(cmd *cobra.Command) {
	cmd.Flags().SortFlags = false
	a.mirroredFlags(cmd, "repo-prefix", "branch", "platform", "isolation", "cache-dir", "docker-host")
	cmd.Flags().Bool("offline", false, "no network: the newest local image ("+offlineEnv+"=1)")
	a.runtimesFlag(cmd)
	pins := cmd.Flags().String("pins", "", "JSON `file` of commits to build instead of a branch's head; see mol help pins")
	a.chosen.tagArch.of = []string{string(mol.TagArchAuto), string(mol.TagArchAlways)}
	cmd.Flags().Var(&a.chosen.tagArch, "tag-arch", "when tags contain the architecture. auto: both tags, except for linux/amd64; always: the pinned tag, for all platforms")
	complete(cmd, "pins", []string{"json"}, cobra.ShellCompDirectiveFilterFileExt)
	complete(cmd, "tag-arch", a.chosen.tagArch.of, cobra.ShellCompDirectiveNoFileComp)
	a.progress.of = progressModes
	a.progress.then = func(mode string) { a.asJSON = a.asJSON || mode == "json" }
	cmd.Flags().Var(&a.progress, "progress", "how progress is shown (default auto: tty on a terminal, else plain)")
	complete(cmd, "progress", progressModes, cobra.ShellCompDirectiveNoFileComp)
	cmd.Flags().BoolVar(&a.verbose, "verbose", false, "keep every line of the build's output, and the progress of every layer")
	a.timeoutFlag(cmd)
	cmd.PreRunE = func(*cobra.Command, []string) (err error) {
		if err = a.setEnv(cmd.Flags()); err == nil && cmd.Flags().Changed("pins") {
			a.chosen.pins, err = readPins(*pins, a.allowlist())
		}
		return err
	}
}

// upkeepFlags adds the flags of the commands for existing images and templates.
func (a *app) upkeepFlags(cmd *cobra.Command) {
	cmd.Flags().SortFlags = false
	a.mirroredFlags(cmd, "isolation", "cache-dir", "docker-host")
	a.runtimesFlag(cmd)
	a.timeoutFlag(cmd)
}

// runtimesFlag adds --runtimes to a command that takes or lists runtimes.
func (a *app) runtimesFlag(cmd *cobra.Command) {
	cmd.Flags().Var(&a.chosen.runtimes, "runtimes", "`names` of all runtimes, separated by commas, instead of the default list")
	complete(cmd, "runtimes", nil, cobra.ShellCompDirectiveNoFileComp)
}

// complete sets the values that the shell offers for a flag.
func complete(cmd *cobra.Command, flag string, values []string, how cobra.ShellCompDirective) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, how)) // fails only for an unknown flag
}

func (a *app) mirroredFlags(cmd *cobra.Command, names ...string) {
	flags := cmd.Flags()
	for _, m := range mirrored {
		if slices.Contains(names, m.flag) {
			flags.String(m.flag, "", m.usage+" ("+m.env+")")
		}
	}
	cmd.PreRunE = func(*cobra.Command, []string) error { return a.setEnv(flags) }
}

func (a *app) timeoutFlag(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&a.timeout, "timeout", 0, "maximum `duration`, such as 90s or 10m")
}

// setEnv sets the variables of the flags that were given.
func (a *app) setEnv(flags *pflag.FlagSet) error {
	for _, m := range mirrored {
		if f := flags.Lookup(m.flag); f != nil && f.Changed {
			if err := os.Setenv(m.env, f.Value.String()); err != nil {
				return usageError{err}
			}
			a.from[m.env] = "--" + m.flag
		}
	}
	if f := flags.Lookup("offline"); f != nil && f.Changed {
		a.from[offlineEnv] = "--offline"
		value := ""
		if f.Value.String() == "true" {
			value = "1"
		}
		return os.Setenv(offlineEnv, value)
	}
	return nil
}
