package main

import (
	"errors"
	"os"
	"slices"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
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
	{"cache-dir", "MOLECULE_LOCAL_BUILD_CACHE", "`folder` for fetched templates; a relative path begins at the working directory"},
	{"docker-host", "DOCKER_HOST", "`address` of the container engine"},
}

const (
	offlineEnv = "MOLECULE_LOCAL_OFFLINE"
	tokenEnv   = "MOLECULE_GITEA_TOKEN"
)

// flagless are the variables that no flag stands for.
var flagless = []struct{ env, usage string }{
	{tokenEnv, "the token for Gitea; it has no flag, because flags are for everybody to see"},
	{"MOLECULE_LOCAL_RUNTIME_VERSION_PIN", "1: the template's .runtime-version is the build argument RUNTIME_VERSION"},
	{"MOLECULE_BUILD_STALL_GRACE_S", "how long a fetch or a build may go on without any output: seconds, or a duration such as 4m (default 240)"},
	{"MOLECULE_BUILD_CEILING_S", "how long a call may take without --timeout: seconds, or a duration such as 30m (default 1800)"},
	{"MOLECULE_BUILD_MEMORY_MIB", "the most memory that the library takes, in MiB (default 512)"},
}

// choices are flags without a variable: what a server sets in code.
type choices struct {
	runtimes runtimesFlag
	tagArch  tagArchFlag
	pins     map[string]string // read before the command runs
}

// allowlist has the runtimes that there are. It is for checking arguments, when
// the environment is not set yet.
func (a *app) allowlist() mol.Options {
	return mol.Options{Runtimes: a.chosen.runtimes, Token: os.Getenv(tokenEnv)}
}

// options are those of the environment and the flags.
func (a *app) options() mol.Options {
	options := mol.OptionsFromEnv()
	options.Runtimes = a.chosen.runtimes
	options.TagArch = mol.TagArch(a.chosen.tagArch)
	options.Pins = a.chosen.pins
	return options
}

// buildFlags adds the flags of the commands that build. Each sets its variable
// in this process, so that everything that reads the environment, which is
// libmol, the provisioner and the Docker client, sees the same.
func (a *app) buildFlags(cmd *cobra.Command) {
	cmd.Flags().SortFlags = false
	a.mirroredFlags(cmd, "repo-prefix", "branch", "platform", "isolation", "cache-dir", "docker-host")
	cmd.Flags().Bool("offline", false, "no network: the newest local image ("+offlineEnv+"=1)")
	a.runtimesFlag(cmd)
	pins := cmd.Flags().String("pins", "", "JSON `file` of commits to build in place of a branch's head; see mol help pins")
	cmd.Flags().Var(&a.chosen.tagArch, "tag-arch", "the architecture in tags. auto: in both, for all but linux/amd64; always: in the pinned one, for every platform")
	complete(cmd, "pins", []string{"json"}, cobra.ShellCompDirectiveFilterFileExt)
	complete(cmd, "tag-arch", tagArchs, cobra.ShellCompDirectiveNoFileComp)
	a.timeoutFlag(cmd)
	cmd.PreRunE = func(*cobra.Command, []string) (err error) {
		if err = setEnv(cmd.Flags()); err == nil && cmd.Flags().Changed("pins") {
			a.chosen.pins, err = readPins(*pins, a.allowlist())
		}
		return err
	}
}

// upkeepFlags adds the flags of the commands that look at what is there.
func (a *app) upkeepFlags(cmd *cobra.Command) {
	cmd.Flags().SortFlags = false
	a.mirroredFlags(cmd, "isolation", "cache-dir", "docker-host")
	a.runtimesFlag(cmd)
	a.timeoutFlag(cmd)
}

// runtimesFlag is for every command that takes or lists runtimes.
func (a *app) runtimesFlag(cmd *cobra.Command) {
	cmd.Flags().Var(&a.chosen.runtimes, "runtimes", "`names` of all runtimes, separated by commas, in place of the default list")
	complete(cmd, "runtimes", nil, cobra.ShellCompDirectiveNoFileComp)
}

// complete says what the shell offers as the value of a flag.
func complete(cmd *cobra.Command, flag string, values []string, how cobra.ShellCompDirective) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, how)) // an error only for a flag that is not there
}

// A tagArchFlag is the mol.TagArch of --tag-arch; "" where it is not given.
type tagArchFlag mol.TagArch

var tagArchs = []string{string(mol.TagArchAuto), string(mol.TagArchAlways)}

func (f *tagArchFlag) Set(value string) error {
	if !slices.Contains(tagArchs, value) {
		return errors.New("use auto or always")
	}
	*f = tagArchFlag(value)
	return nil
}

func (f *tagArchFlag) String() string { return string(*f) }

// Type is what help calls the value.
func (f *tagArchFlag) Type() string { return "auto|always" }

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
