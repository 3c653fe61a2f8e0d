package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func (a *app) logsCommand() *cobra.Command {
	var (
		build, follow bool
		tail          int
	)
	cmd := &cobra.Command{
		Use:   "logs WORKSPACE | --build RUNTIME",
		Short: "Show the output of a workspace or of a build",
		Long: "Show what a workspace has written to standard output and error. With --build, show the\n" +
			"log of a runtime's last build that used this cache, by any program, whether it\n" +
			"succeeded or failed. Of a very long log only the beginning and the end are kept.",
		Example: "  mol logs --follow hermes\n  mol logs --build claude-code",
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case build && (follow || cmd.Flags().Changed("tail")):
				return errors.New("--follow and --tail are for workspaces: omit them, or --build")
			case build:
				return a.oneRuntime(cmd, args)
			case a.asJSON:
				return errors.New("--json is only for --build: the output of a workspace is text")
			case len(args) != 1:
				return errors.New("name one workspace (mol ps lists the workspaces), or a runtime with --build")
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
			if build {
				return a.completeRuntime(cmd, args, start)
			}
			return a.completeWorkspace(cmd, args, start)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if build {
				return a.buildLog(cmd.Context(), args[0])
			}
			err := a.withWorkspace(cmd.Context(), args[0], func(ctx context.Context, engine *client.Client, found workspace.Info) error {
				return workspace.CopyOutput(ctx, engine, found.ContainerID, a.stdout, a.stderr, follow, tail)
			})
			if errors.Is(err, workspace.ErrNotFound) && a.allowlist().IsKnownRuntime(args[0]) {
				return fmt.Errorf("%w; the log of the last build of the runtime %s: mol logs --build %s", err, args[0], args[0])
			}
			if cmd.Context().Err() != nil && follow {
				return cmd.Context().Err() // ctrl-C
			}
			return err
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().BoolVar(&build, "build", false, "the log of a runtime's last build")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "keep printing new output until the workspace exits")
	cmd.Flags().IntVarP(&tail, "tail", "n", -1, "show only the last `number` lines")
	a.mirroredFlags(cmd, "cache-dir", "docker-host")
	a.runtimesFlag(cmd)
	return cmd
}

// buildLog prints the log of a runtime's last build.
func (a *app) buildLog(ctx context.Context, runtime string) error {
	return a.withClient(ctx, func(ctx context.Context, c library) error {
		log, err := c.BuildLog(ctx, runtime)
		if err != nil {
			return err
		}
		if a.asJSON {
			return a.printJSON(logResult{succeeded, log})
		}
		for line := range strings.Lines(log.Text) {
			if err := a.println(plain(line)); err != nil {
				return err
			}
		}
		return nil
	})
}

type logResult struct {
	outcome
	mol.BuildLog
}

// An outputLines passes each line of a workspace's output to a display.
type outputLines struct {
	to   func(line string)
	rest []byte
}

func (o *outputLines) Write(p []byte) (int, error) {
	o.rest = append(o.rest, p...)
	rest := o.rest
	for {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		if !whole && len(rest) < 16*longestLine {
			o.rest = append(o.rest[:0], rest...)
			return len(p), nil
		}
		rest = after
		o.to(clean(string(line)))
	}
}

// flush passes on the last line, which has no line end.
func (o *outputLines) flush() {
	if len(o.rest) > 0 {
		o.to(clean(string(o.rest)))
		o.rest = nil
	}
}
