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

// errProblems is what mol doctor ends with where it has told all there is to tell.
var errProblems = errors.New("there are problems")

func (a *app) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at all that a build depends on",
		Long: "Look at all that a build depends on: the engine, the disks, the cache, Gitea and the\n" +
			"template of each runtime, the token, logins, proxy and clock. Each line is ok, a\n" +
			"warning or a problem, and says how to mend it. There is no secret in it, so it can go\n" +
			"into a bug report. Nothing is changed.",
		Example: "  mol doctor\n  mol doctor --json | jq '.checks[] | select(.status != \"ok\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := a.diagnose(cmd.Context())
			if err != nil {
				return err
			}
			if a.asJSON {
				out := diagnosisResult{succeeded, report}
				if report.Status == mol.CheckProblem {
					out.OK, out.ExitCode = false, exitProblem
				}
				err = a.printJSON(out)
			} else {
				err = a.printReport(report)
			}
			if err == nil && report.Status == mol.CheckProblem {
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
	mol.Report
}

// diagnose asks libmol. Where it does not even take the options, that is the
// diagnosis.
func (a *app) diagnose(ctx context.Context) (mol.Report, error) {
	var report mol.Report
	err := a.with(ctx, func(ctx context.Context, c library) error {
		var err error
		report, err = c.Diagnose(ctx)
		return err
	})
	var detail *mol.Error
	if errors.Is(err, mol.ErrInvalidOption) && errors.As(err, &detail) {
		return mol.Report{Version: mol.LibraryVersion(), Status: mol.CheckProblem, Checks: []mol.Check{
			{Name: "options", Status: mol.CheckProblem, Found: detail.Message, Fix: detail.Hint},
		}}, nil
	}
	return report, err
}

// printReport writes a line for each check. On a terminal, what is well is cut
// to fit, so that all of it is to be seen at once; what is not never is.
func (a *app) printReport(report mol.Report) error {
	style, width := newStyle(a.stdout), 0
	if f, ok := isTerminal(a.stdout); ok {
		width, _, _ = termSize(f)
	}
	var problems, warnings int64
	var text strings.Builder
	for _, check := range report.Checks {
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
		text.WriteString("all is well")
	default:
		text.WriteString(count(problems, "problem") + ", " + count(warnings, "warning"))
	}
	return a.println(text.String() + " (libmol " + report.Version + ")")
}
