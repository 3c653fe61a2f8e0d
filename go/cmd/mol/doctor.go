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
		Long: "Check everything that a build depends on: the engine, the disks, the cache, Gitea and\n" +
			"the template of each runtime, the token, logins, proxy and clock. Each line is ok, a\n" +
			"warning or a problem; warnings and problems have a fix. The output contains no secrets,\n" +
			"so it can be added to a bug report. Nothing is changed.",
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
	a.mirroredFlags(cmd, "repo-prefix", "branch", "platform", "isolation", "cache-dir", "docker-host")
	a.runtimesFlag(cmd)
	a.timeoutFlag(cmd)
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
	err := a.with(ctx, func(ctx context.Context, c library) error {
		var err error
		diagnosis, err = c.Diagnose(ctx)
		return err
	})
	var detail *mol.Error
	if errors.Is(err, mol.ErrInvalidOption) && errors.As(err, &detail) {
		return mol.Diagnosis{Version: mol.LibraryVersion(), Status: mol.CheckProblem, Checks: []mol.Check{
			{Name: "options", Status: mol.CheckProblem, Found: detail.Message, Fix: detail.Hint},
		}}, nil
	}
	return diagnosis, err
}

// printDiagnosis prints a line for each check. On a terminal, lines of successful
// checks are truncated, so that all checks fit on one screen. Warnings and problems
// are never truncated.
func (a *app) printDiagnosis(diagnosis mol.Diagnosis) error {
	style, width := newStyle(a.stdout), 0
	if f, ok := isTerminal(a.stdout); ok {
		width, _, _ = termSize(f)
	}
	var problems, warnings int64
	var text strings.Builder
	for _, check := range diagnosis.Checks {
		mark := style.good
		switch check.Status {
		case mol.CheckWarning:
			warnings++
			mark = style.accent
		case mol.CheckProblem:
			problems++
			mark = style.bad
		}
		const indent = 23
		found := plain(check.Found)
		if check.Status == mol.CheckOK && width > indent {
			found = ansi.Truncate(found, width-indent, "…")
		}
		_, _ = fmt.Fprintf(&text, "%s  %-12s  %s\n", mark(fmt.Sprintf("%-7s", check.Status)), check.Name, found)
		if check.Fix != "" {
			_, _ = fmt.Fprintf(&text, "%*s%s\n", indent, "", style.dim("fix: ")+plain(check.Fix))
		}
	}
	switch {
	case problems+warnings == 0:
		text.WriteString("no problems")
	default:
		text.WriteString(count(problems, "problem") + ", " + count(warnings, "warning"))
	}
	return a.println(text.String() + " (libmol " + diagnosis.Version + ")")
}
