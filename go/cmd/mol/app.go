package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
	"github.com/spf13/cobra"
)

// An app is one run of the command, with its outputs and flags.
type app struct {
	stdout, stderr io.Writer
	open           func(mol.Options) (library, error)

	asJSON   bool
	progress choice // of progressModes
	verbose  bool
	timeout  timeoutFlag
	chosen   choices
	from     map[string]string // where the variables come from, see loadConfig
	parsed   bool              // the command line is valid, so later errors are not usage errors
}

// A library is the part of mol.Client that the commands use.
type library interface {
	EnsureLocalImage(ctx context.Context, runtime string) (mol.Image, error)
	EnsureCommit(ctx context.Context, runtime, sha string) (mol.Image, error)
	EngineHost(ctx context.Context) (string, error)
	List(ctx context.Context) (mol.Inventory, error)
	Prune(ctx context.Context, o mol.PruneOptions) (mol.PruneReport, error)
	Diagnose(ctx context.Context) (mol.Diagnosis, error)
	BuildLog(ctx context.Context, runtime string) (mol.BuildLog, error)
	Close() error
}

func openClient(opts mol.Options) (library, error) { return mol.New(opts) }

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && !a.parsed {
		err = usageError{err}
	}
	var command commandError
	if err != nil && !errors.Is(err, errProblems) && !errors.As(err, &command) {
		a.report(ctx, err)
	}
	return exitCode(ctx, err)
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "mol",
		Short: "Build workspace images and start workspaces",
		Long: "Build workspace images and start workspaces.\n\n" +
			"The template of a runtime comes from its Gitea repository. The container engine that\n" +
			"the docker command would use builds the image.",
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			err := a.checkProgress()
			a.parsed = err == nil
			return err
		},
	}
	root.PersistentFlags().BoolVar(&a.asJSON, "json", false, "write JSON lines to standard output: events, then one result")
	root.AddCommand(a.resolveCommand(), a.ensureCommand(), a.upCommand(), a.psCommand(), a.logsCommand(),
		a.shellCommand(), a.openCommand(), a.downCommand(), a.listCommand(), a.pruneCommand(), a.doctorCommand(),
		a.configCommand(), a.initCommand(), a.versionCommand(), a.manCommand(), exitCodesTopic(), pinsTopic())
	return root
}

// ensure builds the image of a runtime, unless the engine has it, and shows the
// progress on d. Without a commit it takes the one of --pins, or the head of the
// template's branch.
func (a *app) ensure(ctx context.Context, runtime, commit string, d display) (mol.Image, error) {
	opts := a.options()
	opts.OnEvent = func(e mol.Event) {
		// The warning with an endpoint is for servers that find the engine by DOCKER_HOST only.
		if e.Kind != mol.EventWarning || e.Endpoint == "" {
			d.event(e)
		}
	}
	c, err := a.open(opts)
	if err != nil {
		return mol.Image{}, err
	}
	// Close also waits for the last events.
	defer func() { _ = c.Close() }()
	if commit != "" {
		return c.EnsureCommit(ctx, runtime, commit)
	}
	return c.EnsureLocalImage(ctx, runtime)
}

// withClient calls do with a client for the environment and the flags, and a context that
// ends after --timeout.
func (a *app) withClient(ctx context.Context, do func(context.Context, library) error) error {
	ctx, cancel := a.withTimeout(ctx)
	defer cancel()
	c, err := a.open(a.options())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return do(ctx, c)
}

// withTimeout applies --timeout.
func (a *app) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Duration(a.timeout))
}

// printJSON writes a JSON object as one line to standard output.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// println writes a line of the result to standard output.
func (a *app) println(line string) error {
	_, err := fmt.Fprintln(a.stdout, line)
	return err
}

// asTyped replaces the name of each variable in a message by what the user has set: the flag, or the key in a file.
func (a *app) asTyped(text string) string {
	for _, s := range settings {
		switch from := a.from[s.env]; {
		case from == "" || from == s.env || from == contextEnv || from == buildxEnv:
		case strings.HasPrefix(from, "--"):
			text = replaceWord(text, s.env, from)
		default:
			text = replaceWord(text, s.env, s.key+" in "+from)
		}
	}
	return text
}

// replaceWord replaces a name, but not the beginning of a longer one.
func replaceWord(text, name, by string) string {
	return regexp.MustCompile(`\b`+name+`\b`).ReplaceAllLiteralString(text, by)
}

// report prints an error: to standard error, or as the JSON result.
func (a *app) report(ctx context.Context, err error) {
	if a.asJSON {
		failed := failure(ctx, err)
		failed.Error.Message, failed.Error.Hint = a.asTyped(failed.Error.Message), a.asTyped(failed.Error.Hint)
		_ = a.printJSON(failed)
		return
	}
	style := newStyle(a.stderr)
	var sig signalError
	if errors.As(context.Cause(ctx), &sig) && errors.Is(err, context.Canceled) && !errors.Is(err, workspace.ErrKept) {
		_, _ = fmt.Fprintln(a.stderr, style.bad("mol:"), "stopped:", sig)
		return
	}
	var detail *mol.Error
	if !errors.As(err, &detail) {
		first, rest, _ := strings.Cut(err.Error(), "\n")
		_, _ = fmt.Fprintln(a.stderr, style.bad("mol:"), clean(first))
		for line := range strings.Lines(rest) {
			_, _ = fmt.Fprintln(a.stderr, "  |", clean(line))
		}
		return
	}
	_, _ = fmt.Fprintln(a.stderr, style.bad("mol:"), a.asTyped(headline(detail)))
	if detail.Excerpt != "" {
		_, _ = fmt.Fprintf(a.stderr, "Dockerfile:%d\n", detail.Line)
		for line := range strings.SplitSeq(detail.Excerpt, "\n") {
			line = "  " + clean(line)
			if strings.HasPrefix(line, "  >") {
				line = style.bad(line)
			}
			_, _ = fmt.Fprintln(a.stderr, line)
		}
	}
	if detail.LogTail != "" {
		for _, line := range lastLines(detail.LogTail, 20) {
			_, _ = fmt.Fprintln(a.stderr, "  |", clean(line))
		}
	}
	if detail.Hint != "" {
		_, _ = fmt.Fprintln(a.stderr, style.dim("hint:"), a.asTyped(plain(detail.Hint)))
	}
	if detail.Runtime != "" && detail.LogTail != "" {
		_, _ = fmt.Fprintln(a.stderr, style.dim("the whole output:"), "mol logs --build", detail.Runtime)
	}
}

// isTerminal reports whether w can show a live display or colours.
func isTerminal(w io.Writer) (*os.File, bool) {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return nil, false
	}
	width, height, err := termSize(f)
	// Some pseudo-terminals have no size: nothing can be laid out on them.
	return f, err == nil && width > 0 && height > 0
}
