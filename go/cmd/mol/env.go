package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const (
	offlineEnv = "MOLECULE_LOCAL_OFFLINE"
	tokenEnv   = "MOLECULE_GITEA_TOKEN"
	cacheEnv   = "MOLECULE_LOCAL_BUILD_CACHE"
	hostEnv    = "DOCKER_HOST"
	contextEnv = "DOCKER_CONTEXT"
	builderEnv = "MOLECULE_LOCAL_BUILDER"
	buildxEnv  = "BUILDX_BUILDER"

	sharedCacheEnv     = "MOLECULE_LOCAL_SHARED_CACHE"
	sharedCacheModeEnv = "MOLECULE_LOCAL_SHARED_CACHE_MODE"
)

// otherVariables cannot be set in a configuration file.
var otherVariables = []struct{ env, usage string }{
	{"MOLECULE_IMAGE_REGISTRY", "the registry that mol up pulls images from; empty: images are built"},
	{tokenEnv, "the token for Gitea; it has no flag, because all users can see flags"},
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

// buildSettings are the flags with a variable that every command has which looks up a template or builds.
var buildSettings = []string{"repo-prefix", "branch", "platform", "isolation", "cache-dir", "docker-host", "builder", "shared-cache"}

// buildFlags adds the flags of the commands that build. Those with a variable set it in this process, so that libmol,
// the package workspace and the Docker client read the same values.
func (a *app) buildFlags(cmd *cobra.Command) {
	cmd.Flags().SortFlags = false
	a.mirroredFlags(cmd, append(buildSettings, "offline")...)
	a.runtimesFlag(cmd)
	pins := cmd.Flags().String("pins", "", "JSON `file` of commits to build instead of a branch's head; see mol help pins")
	a.chosen.tagArch.of = []string{string(mol.TagArchAuto), string(mol.TagArchAlways)}
	cmd.Flags().Var(&a.chosen.tagArch, "tag-arch", "when tags contain the architecture. auto: both tags, except for linux/amd64; always: the tag with the commit, for all platforms")
	complete(cmd, "pins", []string{"json"}, cobra.ShellCompDirectiveFilterFileExt)
	complete(cmd, "tag-arch", a.chosen.tagArch.of, cobra.ShellCompDirectiveNoFileComp)
	a.progress.of = progressModes
	a.progress.then = func(mode string) { a.asJSON = a.asJSON || mode == "json" }
	cmd.Flags().Var(&a.progress, "progress", "how progress is shown (default auto: tty on a terminal, else plain)")
	complete(cmd, "progress", progressModes, cobra.ShellCompDirectiveNoFileComp)
	cmd.Flags().BoolVar(&a.verbose, "verbose", false, "on a terminal, keep every line of the build's output; elsewhere, print every progress event, also of single layers")
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
	for _, s := range settings {
		switch {
		case !slices.Contains(names, s.key):
		case s.kind != "":
			flags.Bool(s.key, false, s.usage+" ("+s.env+"=1)")
		default:
			flags.String(s.key, "", s.usage+" ("+s.env+")")
		}
	}
	cmd.PreRunE = func(*cobra.Command, []string) error { return a.setEnv(flags) }
}

func (a *app) timeoutFlag(cmd *cobra.Command) {
	cmd.Flags().Var(&a.timeout, "timeout", "maximum `duration`, such as 90s or 10m")
}

// A timeoutFlag is the duration of --timeout, or 0 without the flag.
type timeoutFlag time.Duration

// Set accepts a positive duration.
func (f *timeoutFlag) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err == nil && d <= 0 {
		err = errors.New("must be positive; leave the flag out for the limit of MOLECULE_BUILD_CEILING_S")
	}
	*f = timeoutFlag(d)
	return err
}

// String is "" without the flag, so that the help shows no default.
func (f *timeoutFlag) String() string {
	if *f == 0 {
		return ""
	}
	return time.Duration(*f).String()
}

// Type is the name of the value in the help.
func (f *timeoutFlag) Type() string { return "duration" }

// setEnv sets the variables of the settings in the configuration files, and of the flags that were given. Every command
// that reads settings calls it first.
func (a *app) setEnv(flags *pflag.FlagSet) error {
	if err := a.loadConfig(); err != nil {
		return usageError{err}
	}
	for _, s := range settings {
		f := flags.Lookup(s.key)
		if f == nil || !f.Changed {
			continue
		}
		value := f.Value.String()
		switch {
		case s.env == offlineEnv && value == "true":
			value = "1"
		case s.env == offlineEnv:
			value = ""
		}
		if err := os.Setenv(s.env, value); err != nil {
			return usageError{err}
		}
		a.from[s.env] = "--" + s.key
	}
	for _, s := range settings {
		if from := a.from[s.env]; from != "" && a.isOverridden(s, from) && strings.HasPrefix(a.from[s.belongsTo], "--") {
			delete(a.from, s.env)
			if err := os.Unsetenv(s.env); err != nil {
				return err
			}
		}
	}
	return nil
}
