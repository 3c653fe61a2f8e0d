package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// The exit codes. Scripts may retry after exitRepository and exitTimeout; other
// failures usually need a fix first.
const (
	exitOK         = 0
	exitInternal   = 1
	exitUsage      = 2
	exitRepository = 3
	exitRefused    = 4
	exitEngine     = 5
	exitBuild      = 6
	exitTimeout    = 7
	exitCache      = 8
	exitWorkspace  = 9
	exitProblem    = 10
	exitName       = 11
	exitSignal     = 128 // plus the signal's number, as in a shell
)

// exitGroups lists the errors of each exit code. The first match counts.
var exitGroups = []struct {
	code  int
	text  string
	kinds []error
}{
	{exitUsage, "usage: an unknown command, flag or runtime, or an invalid option, environment variable, configuration file, pins file or commit",
		[]error{mol.ErrUnknownRuntime, mol.ErrInvalidOption, mol.ErrInvalidArgument}},
	{exitRepository, "the template repository cannot be reached or read; trying again may help",
		[]error{mol.ErrGiteaUnreachable, mol.ErrBadResponse, mol.ErrFetch}},
	{exitRefused, "the template repository or its branch does not exist, or the token is refused",
		[]error{mol.ErrRepoNotFound, mol.ErrAuth}},
	{exitEngine, "the container engine or the builder cannot be reached or cannot build for the platform, or no image exists while offline",
		[]error{mol.ErrEngineUnreachable, mol.ErrBuilderUnreachable, mol.ErrPlatformUnsupported, mol.ErrNoLocalImage}},
	{exitBuild, "the template has no Dockerfile, its build failed, or the image cannot be pulled (MOLECULE_IMAGE_REGISTRY)",
		[]error{mol.ErrNoDockerfile, mol.ErrBuildFailed, workspace.ErrPull}},
	{exitTimeout, "it took too long: --timeout, a limit of libmol, or no progress",
		[]error{mol.ErrStalled, mol.ErrTimeout, context.DeadlineExceeded}},
	{exitCache, "the cache folder cannot be used or has no build log of the runtime, or this process has reached its limit of threads or file descriptors",
		[]error{mol.ErrCache, mol.ErrProcessLimit}},
	{exitWorkspace, "the workspace did not become ready, is not running, or exited by itself",
		[]error{workspace.ErrNotReady, errNotRunning, errExited}},
	{exitProblem, "mol doctor found a problem",
		[]error{errProblems}},
	{exitName, "no workspace has this name, several match, or the name for a new one is taken",
		[]error{workspace.ErrNotFound, workspace.ErrAmbiguous, workspace.ErrNameTaken}},
}

// A usageError is an error of the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// A hinted error says what to do next.
type hinted struct {
	error
	hint string
}

func (e hinted) Unwrap() error { return e.error }

// exitCode returns the exit code for the error of a command.
func exitCode(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	var sig signalError
	if errors.Is(err, context.Canceled) && errors.As(context.Cause(ctx), &sig) {
		if number, ok := sig.Signal.(syscall.Signal); ok {
			return exitSignal + int(number)
		}
	}
	var command commandError
	if errors.As(err, &command) {
		return int(command)
	}
	if errors.As(err, &usageError{}) {
		return exitUsage
	}
	for _, group := range exitGroups {
		for _, kind := range group.kinds {
			if errors.Is(err, kind) {
				return group.code
			}
		}
	}
	if client.IsErrConnectionFailed(err) {
		return exitEngine
	}
	return exitInternal
}

type exitMeaning struct {
	code int
	text string
}

// exitCodes returns all exit codes with their meanings.
func exitCodes() []exitMeaning {
	codes := []exitMeaning{{exitOK, "success"}, {exitInternal, "an internal error, or any other failure"}}
	for _, group := range exitGroups {
		codes = append(codes, exitMeaning{group.code, group.text})
	}
	return append(codes,
		exitMeaning{exitSignal + int(syscall.SIGINT), "interrupted (ctrl-C)"},
		exitMeaning{exitSignal + int(syscall.SIGTERM), "terminated (SIGTERM). After ctrl-C or SIGTERM, mol up exits with 0 if the workspace was up and was stopped"})
}

// shellExitCode is the exception from exitCodes.
const shellExitCode = "mol shell exits with the code of its command."

// exitCodesTopic is `mol help exit-codes`.
func exitCodesTopic() *cobra.Command {
	var text strings.Builder
	text.WriteString("The exit code shows the kind of failure:\n\n")
	for _, code := range exitCodes() {
		_, _ = fmt.Fprintf(&text, "  %3d  %s\n", code.code, code.text)
	}
	text.WriteString("\n" + shellExitCode)
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: text.String()}
}
