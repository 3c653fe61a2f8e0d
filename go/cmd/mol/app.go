package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
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
		err = usageError{withSuggestions(root, args, err)}
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
		DisableSuggestions:         true, // withSuggestions makes a hint of them
		SuggestionsMinimumDistance: 2,    // cobra's default
	}
	root.PersistentFlags().BoolVar(&a.asJSON, "json", false, "write JSON lines to standard output: events, then one result")
	root.AddCommand(a.resolveCommand(), a.ensureCommand(), a.upCommand(), a.psCommand(), a.logsCommand(),
		a.shellCommand(), a.openCommand(), a.downCommand(), a.listCommand(), a.pruneCommand(), a.doctorCommand(),
		a.configCommand(), a.initCommand(), a.versionCommand(), a.manCommand(), exitCodesTopic(), pinsTopic())
	return root
}

// withSuggestions adds to the error for an unknown command which one may be meant.
func withSuggestions(root *cobra.Command, args []string, err error) error {
	_, _, unknown := root.Find(args)
	if unknown == nil {
		return err
	}
	// Only cobra's message tells which of the arguments it took for the command.
	var name string
	if _, scanned := fmt.Sscanf(unknown.Error(), "unknown command %q", &name); scanned != nil {
		return err
	}
	names := root.SuggestionsFor(name)
	if len(names) == 0 {
		return err
	}
	return hinted{err, "did you mean " + strings.Join(names, " or ") + "?"}
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

// setBy returns, for each variable that a text names and that a flag or a file sets, that flag, or the key in the file.
func (a *app) setBy(text string) map[string]string {
	words := strings.FieldsFunc(text, func(r rune) bool { return r != '_' && (r < 'A' || r > 'Z') })
	found := map[string]string{}
	for _, s := range settings {
		switch from := a.from[s.env]; {
		case from == "" || from == s.env || from == contextEnv || from == buildxEnv || !slices.Contains(words, s.env):
		case strings.HasPrefix(from, "--"):
			found[s.env] = from
		default:
			found[s.env] = s.key + " in " + plain(from)
		}
	}
	return found
}

// notes returns what setBy finds as text.
func (a *app) notes(text string) []string {
	var lines []string
	found := a.setBy(text)
	for _, env := range slices.Sorted(maps.Keys(found)) {
		lines = append(lines, found[env]+" sets "+env)
	}
	return lines
}

// report prints an error: to standard error, or as the JSON result.
func (a *app) report(ctx context.Context, err error) {
	failed := failure(ctx, err)
	text := failed.Error.Message + " " + failed.Error.Hint
	if a.asJSON {
		failed.Error.SetBy = a.setBy(text)
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
	if errors.As(err, &detail) {
		_, _ = fmt.Fprintln(a.stderr, style.bad("mol:"), failed.Error.Message)
	} else {
		first, rest, _ := strings.Cut(masked(err.Error()), "\n")
		_, _ = fmt.Fprintln(a.stderr, style.bad("mol:"), clean(first))
		for line := range strings.Lines(rest) {
			_, _ = fmt.Fprintln(a.stderr, "  |", clean(line))
		}
	}
	if failed.Error.Excerpt != "" {
		_, _ = fmt.Fprintf(a.stderr, "Dockerfile:%d\n", failed.Error.Line)
		for line := range strings.SplitSeq(failed.Error.Excerpt, "\n") {
			line = "  " + clean(line)
			if strings.HasPrefix(line, "  >") {
				line = style.bad(line)
			}
			_, _ = fmt.Fprintln(a.stderr, line)
		}
	}
	if failed.Error.LogTail != "" {
		for _, line := range lastLines(failed.Error.LogTail, 20) {
			_, _ = fmt.Fprintln(a.stderr, "  |", clean(line))
		}
	}
	if failed.Error.Hint != "" {
		_, _ = fmt.Fprintln(a.stderr, style.dim("hint:"), failed.Error.Hint)
	}
	for _, note := range a.notes(text) {
		_, _ = fmt.Fprintln(a.stderr, style.dim("note:"), note)
	}
	if detail != nil && detail.Runtime != "" && detail.LogTail != "" {
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
