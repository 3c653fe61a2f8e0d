package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"golang.org/x/term"
)

// A printer prints the demo's output: the same lines everywhere, with bold and dim
// text on a terminal.
type printer struct {
	w        *os.File
	emphasis bool
}

func newPrinter(w *os.File) *printer {
	return &printer{w, term.IsTerminal(int(w.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

func (p *printer) line(format string, args ...any) { _, _ = fmt.Fprintf(p.w, format+"\n", args...) }

func (p *printer) bold(text string) string { return p.paint("1", text) }
func (p *printer) dim(text string) string  { return p.paint("2", text) }

func (p *printer) paint(code, text string) string {
	if !p.emphasis {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (p *printer) heading(text string) { p.line("%s", p.bold("mol demo: "+text)) }

func (p *printer) section(n int, title string) {
	p.line("\n%s", p.bold(fmt.Sprintf("%d. %s", n, title)))
}

func (p *printer) fact(name, value string) { p.line("   %-10s %s", name, value) }

func (p *printer) failure(err error) {
	p.line("%s %s", p.paint("31", "mol demo:"), strings.ReplaceAll(err.Error(), "\n", "\n   "))
}

// event shows the main steps of a build.
func (p *printer) event(e mol.Event, elapsed time.Duration) {
	var text string
	switch e.Kind {
	case mol.EventLookupDone:
		text = fmt.Sprintf("%s is at %.12s", e.Branch, e.CommitSHA)
	case mol.EventFetchDone:
		text = fmt.Sprintf("fetched that commit: %d files, %.1f MB", e.Files, float64(e.Bytes)/1e6)
	case mol.EventStepDone:
		text = "build " + e.StepName
		if e.Cached {
			text += " (cached)"
		}
	case mol.EventTagged:
		text = "tagged"
	default:
		return
	}
	p.line("   %s", p.dim(fmt.Sprintf("%6s  %s", seconds(elapsed), text)))
}

// compare prints the times of two starts side by side.
func (p *printer) compare(one, two *boot) {
	p.line("   %-16s %8s %8s", "", "first", "again")
	row := func(name string, a, b time.Duration) {
		p.line("   %-16s %8s %8s", name, dash(a), dash(b))
	}
	row("look up commit", one.image.Timings.Lookup, two.image.Timings.Lookup)
	row("fetch", one.image.Timings.Fetch, two.image.Timings.Fetch)
	row("build", one.image.Timings.Build, two.image.Timings.Build)
	row("image ready", one.image.Timings.Total, two.image.Timings.Total)
	row("workspace up", one.ready, two.ready)
}

func dash(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return seconds(d)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2fs", d.Seconds()) }
