package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/charmbracelet/x/ansi"
	"github.com/spf13/cobra"
)

// errProblems sets the exit code of mol doctor. The problems have been printed already.
var errProblems = errors.New("there are problems")

func (a *app) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check everything that a build depends on",
		Long: "Check everything that a build depends on: the engine, the builder, the disks, the caches,\n" +
			"Gitea and the template of each runtime, the token, logins, proxy and clock. Warnings and\n" +
			"problems have a fix, and name the checks that failed because of them. With --verbose every\n" +
			"check is shown. The output contains no secrets, so it can be added to a bug report.\n" +
			"Nothing is changed.",
		Example: "  mol doctor\n  mol doctor --json | jq '.checks[] | select(.status != \"ok\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			diagnosis, err := a.diagnose(cmd.Context())
			if err != nil {
				return err
			}
			if a.asJSON {
				out := diagnosisResult{succeeded, diagnosis}
				if diagnosis.Status == mol.CheckProblem {
					out.OK, out.ExitCode = false, exitProblem
				}
				err = a.printJSON(out)
			} else {
				err = a.printDiagnosis(diagnosis)
			}
			if err == nil && diagnosis.Status == mol.CheckProblem {
				err = errProblems
			}
			return err
		},
	}
	cmd.Flags().SortFlags = false
	a.mirroredFlags(cmd, buildSettings...)
	a.runtimesFlag(cmd)
	a.timeoutFlag(cmd)
	cmd.Flags().BoolVar(&a.verbose, "verbose", false, "show every check")
	return cmd
}

type diagnosisResult struct {
	outcome
	mol.Diagnosis
}

// diagnose runs the checks of libmol. If an option is invalid, that is the only
// problem reported.
func (a *app) diagnose(ctx context.Context) (mol.Diagnosis, error) {
	var diagnosis mol.Diagnosis
	err := a.withClient(ctx, func(ctx context.Context, c library) error {
		return a.showIfSlow("checking the engine, the cache and Gitea", func() (err error) {
			diagnosis, err = c.Diagnose(ctx)
			return err
		})
	})
	var detail *mol.Error
	if errors.Is(err, mol.ErrInvalidOption) && errors.As(err, &detail) {
		found := strings.Join(append([]string{detail.Message}, a.notes(detail.Message+" "+detail.Hint)...), "; ")
		return mol.Diagnosis{Version: mol.LibraryVersion(), Status: mol.CheckProblem, Checks: []mol.Check{
			{Name: "options", Status: mol.CheckProblem, Found: found, Fix: detail.Hint},
		}}, nil
	}
	return diagnosis, err
}

// The columns of a check: its status, its name, and from foundColumn on what was found.
const foundColumn = 23

// printDiagnosis prints what is broken, with its fix and what else it affects, and what passed in one line. With
// --verbose it prints every check.
func (a *app) printDiagnosis(diagnosis mol.Diagnosis) error {
	r := report{style: newStyle(a.stdout), verbose: a.verbose}
	if f, ok := isTerminal(a.stdout); ok {
		width, _, _ := termSize(f)
		r.width = width - foundColumn
	}
	affected := map[string][]string{} // by cause
	for _, check := range diagnosis.Checks {
		if check.Cause != "" {
			affected[check.Cause] = append(affected[check.Cause], check.Name)
		}
	}
	var passed []string
	var problems, warnings int64
	for _, check := range diagnosis.Checks {
		switch {
		case check.Status == mol.CheckOK:
			passed = append(passed, check.Name)
			if !a.verbose {
				continue
			}
		case check.Cause != "":
			if !a.verbose {
				continue
			}
		case check.Status == mol.CheckProblem:
			problems++
		default:
			warnings++
		}
		r.check(check)
		if names := affected[check.Name]; len(names) > 0 && check.Cause == "" && !a.verbose {
			r.below("also affected: ", strings.Join(names, ", "))
		}
	}
	if len(passed) > 0 && !a.verbose {
		r.line(mol.CheckOK, "", strings.Join(passed, ", "))
	}
	version := " (libmol " + diagnosis.Version + ")"
	if problems+warnings == 0 {
		return a.println(r.text.String() + "no problems" + version)
	}
	return a.println(r.text.String() + count(problems, "problem") + ", " + count(warnings, "warning") + version)
}

// A report is the text of a diagnosis.
type report struct {
	style   style
	width   int // of what was found; 0: it is not wrapped
	verbose bool
	text    strings.Builder
}

func (r *report) check(check mol.Check) {
	r.line(check.Status, check.Name, check.Found)
	if check.Fix != "" {
		r.below("fix: ", check.Fix)
	}
}

// line writes the status, the name and what was found.
func (r *report) line(status mol.CheckStatus, name, found string) {
	mark := map[mol.CheckStatus]func(string) string{
		mol.CheckOK: r.style.good, mol.CheckWarning: r.style.accent, mol.CheckProblem: r.style.bad,
	}[status]
	if mark == nil {
		mark = r.style.bad
	}
	first, rest, _ := strings.Cut(r.wrap(found), "\n")
	head := mark(fmt.Sprintf("%-7s", status)) + "  "
	if name != "" {
		head += fmt.Sprintf("%-12s  ", name)
	}
	r.text.WriteString(head + first + "\n")
	if rest != "" {
		r.indented(rest)
	}
}

// below writes a line under what was found.
func (r *report) below(label, text string) {
	wrapped := r.wrap(label + text)
	r.indented(r.style.dim(label) + strings.TrimPrefix(wrapped, label))
}

func (r *report) indented(lines string) {
	for line := range strings.SplitSeq(lines, "\n") {
		r.text.WriteString(strings.Repeat(" ", foundColumn) + line + "\n")
	}
}

// wrap breaks a text into lines; without --verbose into at most three.
func (r *report) wrap(text string) string {
	const most = 3
	text = plain(text)
	if r.width <= 0 {
		return text
	}
	lines := strings.Split(ansi.Wrap(text, r.width, " /"), "\n")
	if len(lines) > most && !r.verbose {
		lines = lines[:most]
		lines[most-1] = ansi.Truncate(lines[most-1]+"…", r.width, "…")
	}
	return strings.Join(lines, "\n")
}
