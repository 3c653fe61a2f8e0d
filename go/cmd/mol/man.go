package main

import (
	"fmt"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man",
		Short: "Write the manual page",
		Long: "Write the manual page mol(1) to standard output. It is generated from the commands and\n" +
			"flags of this program, so it matches this version.",
		Example: "  mol man | man -l -\n  mol man >/usr/local/share/man/man1/mol.1",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := a.stdout.Write(md2man.Render([]byte(manual(cmd.Root()))))
			return err
		},
	}
}

// manual returns the manual page in go-md2man's Markdown.
func manual(root *cobra.Command) string {
	var b strings.Builder
	write := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, format, args...) }

	write("%% \"MOL\" \"1\" \"\" \"libmol\" \"User Commands\"\n\n")
	write("# NAME\n\nmol - %s\n\n", strings.ToLower(root.Short[:1])+root.Short[1:])
	write("# SYNOPSIS\n\n**mol** [*command*] [*flags*]\n\n")
	write("# DESCRIPTION\n\n%s\n\n", markdown(root.Long))
	write("# COMMANDS\n\n")
	for _, cmd := range documented(root) {
		text := markdown(cmd.Long)
		if cmd.Parent() != root {
			// cobra's own commands; their texts use another Markdown dialect.
			text = cmd.Short + ". For more, see **" + cmd.CommandPath() + " --help**."
		}
		write("## %s\n\n%s\n\n", markdown(cmd.UseLine()), text)
		flags(&b, cmd.NonInheritedFlags())
		if cmd.Example != "" {
			write("For example:\n\n```\n%s\n```\n\n", cmd.Example)
		}
	}
	write("# GLOBAL FLAGS\n\n")
	flags(&b, root.PersistentFlags())
	write("# ENVIRONMENT\n\nIf a variable has a flag, the flag overrides it.\n\n")
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	for _, s := range settings {
		set.String(s.key, "", s.usage)
		name, usage := pflag.UnquoteUsage(set.Lookup(s.key))
		switch {
		case s.flag && s.kind != "":
			write("**%s**\n: %s (flag **--%s**)\n\n", s.env, markdown(usage), s.key)
		case s.flag:
			write("**%s**\n: %s (flag **--%s** *%s*)\n\n", s.env, markdown(usage), s.key, name)
		default:
			write("**%s**\n: %s (default %s)\n\n", s.env, markdown(usage), s.defaultText)
		}
	}
	for _, v := range otherVariables {
		write("**%s**\n: %s\n\n", v.env, markdown(v.usage))
	}
	write("# PINNED COMMITS\n\n")
	for paragraph := range strings.SplitSeq(pinsText, "\n\n") {
		if strings.HasPrefix(paragraph, "  ") {
			write("```\n%s\n```\n\n", paragraph)
		} else {
			write("%s\n\n", markdown(paragraph))
		}
	}
	write("# EXIT STATUS\n\n")
	for _, code := range exitCodes() {
		write("**%d**\n: %s\n\n", code.code, markdown(code.text))
	}
	write("%s\n", shellExitCode)
	return b.String()
}

// documented returns the runnable commands, in the order of the help.
func documented(root *cobra.Command) []*cobra.Command {
	var commands []*cobra.Command
	for _, cmd := range root.Commands() {
		switch {
		case cmd.Hidden || cmd.Name() == "help":
		case cmd.HasAvailableSubCommands():
			commands = append(commands, documented(cmd)...)
		case cmd.Runnable():
			commands = append(commands, cmd)
		}
	}
	return commands
}

func flags(b *strings.Builder, set *pflag.FlagSet) {
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		if f.Shorthand != "" {
			_, _ = fmt.Fprintf(b, "**-%s**, ", f.Shorthand)
		}
		_, _ = fmt.Fprintf(b, "**--%s**", f.Name)
		if value != "" {
			_, _ = fmt.Fprintf(b, " *%s*", value)
		}
		_, _ = fmt.Fprintf(b, "\n: %s\n\n", markdown(usage))
	})
}

// markdown escapes the special characters of Markdown.
func markdown(text string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "_", `\_`, "`", "\\`", "<", `\<`, "[", `\[`, "]", `\]`).Replace(text)
}
