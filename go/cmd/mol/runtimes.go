package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/spf13/cobra"
)

// A runtimesFlag is the allowlist of --runtimes, or nil for the default one.
type runtimesFlag []string

// validRuntime matches the names that the library accepts, see mol.Options.Runtimes.
var validRuntime = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$`)

// Set sets the whole list. A second flag replaces the first.
func (f *runtimesFlag) Set(list string) error {
	names := strings.Split(list, ",")
	for i, name := range names {
		switch {
		case !validRuntime.MatchString(name):
			return fmt.Errorf("%s is not a valid name: use at most 64 lower-case letters, digits and '-', with a letter or digit first and last", quoted(name))
		case slices.Contains(names[:i], name):
			return fmt.Errorf("duplicate name %q", name)
		}
	}
	*f = names
	return nil
}

func (f *runtimesFlag) String() string { return strings.Join(*f, ",") }

// Type is the name of the value in the help.
func (f *runtimesFlag) Type() string { return "names" }

// oneRuntime accepts exactly one argument, a known runtime.
func (a *app) oneRuntime(_ *cobra.Command, args []string) error {
	if err := a.oneArgument(args); err != nil {
		return err
	}
	return a.allowlist().CheckRuntime(args[0])
}

// oneTarget accepts exactly one argument, RUNTIME or RUNTIME@SHA.
func (a *app) oneTarget(_ *cobra.Command, args []string) error {
	if err := a.oneArgument(args); err != nil {
		return err
	}
	runtime, commit, pinned := strings.Cut(args[0], "@")
	if err := a.allowlist().CheckRuntime(runtime); err != nil || !pinned {
		return err
	}
	return checkCommit(commit)
}

func (a *app) oneArgument(args []string) error {
	switch len(args) {
	case 0:
		return fmt.Errorf("the runtime is missing: the known runtimes are %s", strings.Join(a.allowlist().KnownRuntimes(), ", "))
	case 1:
		return nil
	}
	var all []string
	for _, arg := range args {
		all = append(all, quoted(arg))
	}
	return fmt.Errorf("only one runtime is allowed, not %d: %s", len(args), strings.Join(all, ", "))
}

// checkCommit accepts a full commit id.
func checkCommit(id string) error {
	if wholeCommit.MatchString(id) {
		return nil
	}
	return errors.New(quoted(id) + " is not a commit id: use all 40 or 64 hexadecimal digits, as git rev-parse prints them")
}

var wholeCommit = regexp.MustCompile(`^([0-9a-fA-F]{40}|[0-9a-fA-F]{64})$`)

// quoted returns text for an error message: masked, truncated and quoted.
func quoted(text string) string {
	const most = 80
	text = masked(text)
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most]) + "…"
	}
	return strconv.Quote(text)
}

// masked replaces the token.
func masked(text string) string { return mol.MaskTokenInString(text, os.Getenv(tokenEnv)) }

// completeRuntime offers the runtimes to the shell.
func (a *app) completeRuntime(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.allowlist().KnownRuntimes(), cobra.ShellCompDirectiveNoFileComp
}
