package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// A commandError is the exit code of a command in a workspace.
type commandError int

func (e commandError) Error() string { return fmt.Sprintf("the command exited with code %d", int(e)) }

func (a *app) shellCommand() *cobra.Command {
	var command []string
	cmd := a.workspaceCommand(&cobra.Command{
		Use:   "shell WORKSPACE [-- COMMAND...]",
		Short: "Run a shell in a workspace",
		Long: "Run a shell in a workspace: bash if it has one, else sh. With COMMAND, run that instead.\n" +
			"The exit code is that of the command.",
		Example: "  mol shell hermes\n  mol shell hermes -- env",
	}, func(ctx context.Context, engine *client.Client, found workspace.Info) error {
		if !found.Running {
			return fmt.Errorf("%s %w (%s); mol logs %[1]s shows why", found.ID, errNotRunning, found.Status)
		}
		if command == nil {
			shell, err := findShell(ctx, engine, found)
			if err != nil {
				return err
			}
			command = []string{shell}
		}
		return execute(ctx, engine, found.ContainerID, command, os.Stdin, a.stdout, a.stderr)
	})
	one := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if a.asJSON {
			return errors.New("--json is not supported: the output is that of the command")
		}
		if dash := cmd.ArgsLenAtDash(); dash >= 0 {
			args, command = args[:dash], args[dash:]
			if len(command) == 0 {
				return errors.New("the command after -- is missing")
			}
		} else if len(args) > 1 {
			return errors.New("put -- before the command: mol shell hermes -- env")
		}
		return one(cmd, args)
	}
	return cmd
}

// findShell returns the shell that a workspace has.
func findShell(ctx context.Context, engine *client.Client, found workspace.Info) (string, error) {
	var out bytes.Buffer
	search := []string{"sh", "-c", "command -v bash || command -v sh"}
	err := execute(ctx, engine, found.ContainerID, search, nil, &out, io.Discard)
	var failed commandError
	switch shell := strings.TrimSpace(out.String()); {
	case errors.As(err, &failed), err == nil && shell == "":
		return "", fmt.Errorf("%s has no shell: run a program that its image has: mol shell %[1]s -- PROGRAM", found.ID)
	case err != nil:
		return "", err
	default:
		return shell, nil
	}
}

// execute runs a command in a container, on a terminal if this process has one. If in is nil, the command gets empty
// input.
func execute(ctx context.Context, engine *client.Client, container string, command []string, in *os.File, stdout, stderr io.Writer) error {
	out, onScreen := stdout.(*os.File)
	tty := onScreen && term.IsTerminal(int(in.Fd())) && term.IsTerminal(int(out.Fd()))
	create := client.ExecCreateOptions{
		Cmd: command, TTY: tty, AttachStdin: true, AttachStdout: true, AttachStderr: true,
	}
	attach := client.ExecAttachOptions{TTY: tty}
	if tty {
		create.Env = []string{"TERM=" + os.Getenv("TERM")}
		if width, height, err := term.GetSize(int(out.Fd())); err == nil {
			create.ConsoleSize = client.ConsoleSize{Height: uint(height), Width: uint(width)}
			attach.ConsoleSize = create.ConsoleSize
		}
	}
	created, err := engine.ExecCreate(ctx, container, create)
	if err != nil {
		return fmt.Errorf("run %s: %w", command[0], err)
	}
	session, err := engine.ExecAttach(ctx, created.ID, attach)
	if err != nil {
		return fmt.Errorf("run %s: %w", command[0], err)
	}
	defer session.Close()
	if tty {
		before, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return err
		}
		defer func() { _ = term.Restore(int(in.Fd()), before) }()
		defer followSize(ctx, engine, created.ID, out)()
	}
	go func() {
		if in != nil {
			_, _ = io.Copy(session.Conn, in)
		}
		_ = session.CloseWrite()
	}()
	ended := make(chan error, 1)
	go func() {
		if tty {
			_, err := io.Copy(stdout, session.Reader)
			ended <- err
			return
		}
		_, err := stdcopy.StdCopy(stdout, stderr, session.Reader)
		ended <- err
	}()
	select {
	case err = <-ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", command[0], err)
	}
	state, err := engine.ExecInspect(ctx, created.ID, client.ExecInspectOptions{})
	if err != nil {
		return fmt.Errorf("run %s: %w", command[0], err)
	}
	if state.ExitCode != 0 {
		return commandError(state.ExitCode)
	}
	return nil
}

// followSize keeps the command's terminal at the size of this one until stop is called.
func followSize(ctx context.Context, engine *client.Client, id string, out *os.File) (stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	resize := func() {
		if width, height, err := term.GetSize(int(out.Fd())); err == nil {
			_, _ = engine.ExecResize(ctx, id, client.ExecResizeOptions{Height: uint(height), Width: uint(width)})
		}
	}
	go func() {
		resize() // an engine may ignore the size at the start
		for range changed {
			resize()
		}
	}()
	return func() {
		signal.Stop(changed)
		close(changed)
	}
}
