package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	goruntime "runtime"
	"strings"
	"text/tabwriter"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// row is one line of the table.
type row struct {
	what, ours, theirs, ratio, goal, met string
	runs                                 int
}

// report is the table of results, with a description of the machine.
type report struct {
	machine []string
	rows    []row
	bloat   string
}

func yes(met bool) string {
	if met {
		return "yes"
	}
	return "**no**"
}

// faster compares times. The goal is that libmol is at least goal times faster.
func (r *report) faster(what string, ours, theirs []float64, goal float64) {
	ratio := ratios(theirs, ours)
	r.add(row{
		what: what, ours: spread(ours, seconds), theirs: spread(theirs, seconds), runs: len(ours),
		ratio: times(median(ratio)) + " faster", goal: fmt.Sprintf("≥ %g times", goal), met: yes(median(ratio) >= goal),
	})
}

// throughput compares calls per second. The goal is that libmol does at least goal times as many.
func (r *report) throughput(what string, ours, theirs []float64, goal float64) {
	ratio := ratios(ours, theirs)
	r.add(row{
		what: what, ours: spread(ours, perSecond), theirs: spread(theirs, perSecond), runs: len(ours),
		ratio: times(median(ratio)), goal: fmt.Sprintf("≥ %g times", goal), met: yes(median(ratio) >= goal),
	})
}

// atMost compares times. The goal is that libmol takes at most goal times as long.
func (r *report) atMost(what string, ours, theirs []float64, goal float64) {
	ratio := ratios(ours, theirs)
	r.add(row{
		what: what, ours: spread(ours, seconds), theirs: spread(theirs, seconds), runs: len(ours),
		ratio: times(median(ratio)), goal: fmt.Sprintf("≤ %g times", goal), met: yes(median(ratio) <= goal),
	})
}

// note compares times without a goal.
func (r *report) note(what string, ours, theirs []float64) {
	r.add(row{
		what: what, ours: spread(ours, seconds), theirs: spread(theirs, seconds), runs: len(ours),
		ratio: times(median(ratios(ours, theirs))),
	})
}

// limit adds figures of libmol alone. The goal is a median of at most goal.
func (r *report) limit(what string, ours []float64, write unit, goal float64) {
	r.add(row{
		what: what, ours: spread(ours, write), runs: len(ours),
		goal: "≤ " + write(goal), met: yes(median(ours) <= goal),
	})
}

// fact adds a figure without a goal.
func (r *report) fact(what, ours string) { r.add(row{what: what, ours: ours, runs: 1}) }

func (r *report) add(added row) {
	r.rows = append(r.rows, added)
	fmt.Fprintf(os.Stderr, "   %s: %s | %s | %s | %s\n", added.what, added.ours, added.theirs, added.ratio, added.met)
}

func times(ratio float64) string {
	if ratio >= 10 {
		return fmt.Sprintf("%.0f times", ratio)
	}
	return fmt.Sprintf("%.2f times", ratio)
}

var heading = row{what: "what", ours: "libmol", theirs: "against", ratio: "ratio", goal: "goal", met: "met"}

func (r row) cells() []string {
	runs := fmt.Sprint(r.runs)
	if r == heading {
		runs = "runs"
	}
	return []string{r.what, r.ours, r.theirs, r.ratio, runs, r.goal, r.met}
}

func (r *report) text() string {
	var out bytes.Buffer
	for _, line := range r.machine {
		fmt.Fprintln(&out, line)
	}
	fmt.Fprintln(&out)
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	for _, line := range append([]row{heading}, r.rows...) {
		fmt.Fprintln(table, strings.ReplaceAll(strings.Join(line.cells(), "\t"), "**", ""))
	}
	_ = table.Flush()
	fmt.Fprintln(&out, "\n"+legend)
	return out.String()
}

// legend explains the figures of a table.
const legend = "Times are medians, with the 5th and 95th percentile. A ratio is the median of the ratios of all rounds."

func (r *report) markdown() string {
	var out strings.Builder
	fmt.Fprintln(&out, legend)
	fmt.Fprintln(&out)
	for i, line := range append([]row{heading}, r.rows...) {
		fmt.Fprintln(&out, "| "+strings.Join(line.cells(), " | ")+" |")
		if i == 0 {
			fmt.Fprintln(&out, "|"+strings.Repeat(" --- |", len(line.cells())))
		}
	}
	fmt.Fprintln(&out)
	for _, line := range r.machine {
		fmt.Fprintln(&out, "- "+line)
	}
	if r.bloat != "" {
		fmt.Fprintf(&out, "\nThe largest crates in `libmol.so`, by `cargo bloat --release --crates -n 10`:\n\n```\n%s\n```\n", r.bloat)
	}
	return out.String()
}

const (
	begin = "<!-- begin: written by make bench -->"
	end   = "<!-- end: written by make bench -->"
)

// write replaces the text between the two marks of a page.
func (r *report) write(path string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(page), begin)
	_, after, foundEnd := strings.Cut(rest, end)
	if !found || !foundEnd {
		return errors.New(path + " does not have the marks for the figures")
	}
	return os.WriteFile(path, []byte(before+begin+"\n\n"+r.markdown()+"\n"+end+after), 0o644)
}

// machine describes the machine, the engine and the programs, without names and paths of the machine.
func (env *testEnv) machine() []string {
	kernel := "unknown"
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		release, _, _ := strings.Cut(strings.TrimSpace(string(text)), "-")
		kernel = release
	}
	var memory int
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		_, _ = fmt.Sscanf(string(text), "MemTotal: %d", &memory)
	}
	var engine struct {
		Version    string
		APIVersion string `json:"ApiVersion"`
	}
	var info struct{ Driver string }
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = env.call(ctx, "GET", "/version", nil, &engine)
	_ = env.call(ctx, "GET", "/info", nil, &info)
	return []string{
		fmt.Sprintf("Machine: %d cores, %.0f GiB of memory, %s %s/%s", goruntime.NumCPU(), float64(memory)/(1<<20), "Linux "+kernel, goruntime.GOOS, goruntime.GOARCH),
		fmt.Sprintf("Engine: Docker %s (API %s, %s), BuildKit on both sides", engine.Version, engine.APIVersion, info.Driver),
		fmt.Sprintf("Programs: %s; %s", version(ctx, env.docker), version(ctx, "git")),
		fmt.Sprintf("libmol %s, %s", mol.LibraryVersion(), goruntime.Version()),
		"Date: " + time.Now().UTC().Format("2006-01-02"),
	}
}

func version(ctx context.Context, program string) string {
	output, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(output))
}
