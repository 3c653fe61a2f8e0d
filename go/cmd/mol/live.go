package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/charmbracelet/x/ansi"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

const (
	frameEvery = 100 * time.Millisecond
	barWidth   = 40
	// The most steps that are shown at once.
	maxRunning = 4
)

// A liveDisplay draws on a terminal: permanent lines for what is done, and below them
// the current activity, which is redrawn in place:
//
//	✓ main is at 0123456789ab
//	✓ fetched 40 objects, 1.2 MiB in 0.85s
//	⠹ build [======>-------------] 3/7  12.3s
//	  [1/7] FROM python:3.13  12.4 MiB / 45.0 MiB, 3.1 MiB/s, 10s left
//	  [3/7] RUN pip install -r requirements.txt  4.0s
//	  Collecting numpy
//
// It moves the cursor but changes no setting of the terminal, so nothing needs to be
// restored when the program ends.
type liveDisplay struct {
	w        io.Writer
	style    style
	verbose  bool // the build's output is permanent
	progress *mpb.Progress
	bar      *mpb.Bar

	mu    sync.Mutex
	now   activity
	ended bool
}

// An activity is the content of the redrawn part.
type activity struct {
	name        string
	since       time.Time
	done, total int64  // the bar, if total is known
	cached      int    // steps from the builder's cache
	amount      string // shown after the bar
	detail      string // shown below the bar, if no step runs
	running     []runningStep
	pulls       pulls
	line        string // the last line of output, shown last
}

// A runningStep is a build step that has started and not ended.
type runningStep struct {
	number int
	name   string
	since  time.Time
}

func newLiveDisplay(f *os.File, runtime string, verbose bool) *liveDisplay {
	d := &liveDisplay{w: f, style: newStyle(f), verbose: verbose}
	d.begin(runtime, "")
	d.progress = mpb.New(mpb.WithConsoleWriter(newFrameWriter(f)), mpb.WithRefreshRate(frameEvery), mpb.WithWidth(barWidth))

	frames := []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}
	spin := decor.Meta(decor.Spinner(frames), d.style.accent)
	name := decor.Any(func(decor.Statistics) string { return " " + d.snapshot().name })
	right := decor.Any(func(decor.Statistics) string {
		now := d.snapshot()
		if now.amount != "" {
			now.amount += "  "
		}
		return now.amount + seconds(time.Since(now.since))
	})
	gauge := mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding("-").Rbound("]").Build()
	fill := func(w io.Writer, stat decor.Statistics) error {
		now := d.snapshot()
		if now.total <= 0 {
			return nil
		}
		stat.Current, stat.Total = min(now.done, now.total), now.total
		return gauge.Fill(w, stat)
	}
	below := make([]mpb.BarFiller, maxRunning+2) // each draws one line, or none
	for i := range below {
		below[i] = mpb.BarFillerFunc(func(w io.Writer, stat decor.Statistics) error {
			lines := d.below(stat.AvailableWidth)
			if i >= len(lines) {
				return nil
			}
			_, err := io.WriteString(w, d.style.dim(lines[i])+"\n")
			return err
		})
	}
	// Add fails only after Wait, which end calls.
	d.bar, _ = d.progress.Add(0, mpb.BarFillerFunc(fill),
		mpb.PrependDecorators(spin, name),
		mpb.AppendDecorators(right),
		mpb.BarBtmExtender(below...),
	)
	return d
}

// snapshot returns the activity without the slices and maps that event changes in place.
func (d *liveDisplay) snapshot() activity {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now
	now.running, now.pulls = nil, nil
	return now
}

// below returns the lines below the bar, each at most width wide: the steps and pulls that run, and the last line of
// output.
func (d *liveDisplay) below(width int) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var lines []string
	add := func(text, amount string) {
		if amount != "" {
			amount = "  " + amount
		}
		text = ansi.Truncate("  "+text, max(width-ansi.StringWidth(amount), width/3), "…")
		lines = append(lines, ansi.Truncate(text+amount, width, "…"))
	}
	shown := map[int]bool{}
	for _, step := range d.now.running {
		shown[step.number] = true
		took := time.Since(step.since)
		switch pull := d.now.pulls[step.number]; {
		case pull != nil:
			add(step.name, pull.String())
		case took >= time.Second:
			add(step.name, seconds(took))
		default:
			add(step.name, "")
		}
	}
	for _, number := range slices.Sorted(maps.Keys(d.now.pulls)) {
		if pull := d.now.pulls[number]; !shown[number] {
			add(clean(pull.name), pull.String())
		}
	}
	if more := len(lines) - maxRunning; more > 0 {
		lines = lines[:maxRunning]
		add(fmt.Sprintf("and %d more", more), "")
	}
	if len(lines) == 0 && d.now.detail != "" {
		add(d.now.detail, "")
	}
	if d.now.line != "" {
		add(d.now.line, "")
	}
	return lines
}

func (d *liveDisplay) event(e mol.Event) {
	d.mu.Lock()
	kept := d.apply(e)
	d.mu.Unlock()
	for _, line := range kept {
		d.keep(line)
	}
}

// apply updates the redrawn part and returns the permanent lines.
func (d *liveDisplay) apply(e mol.Event) (kept []string) {
	d.now.pulls.note(e)
	switch e.Kind {
	case mol.EventLookupStarted:
		d.begin("look up", e.URL)
	case mol.EventFetchStarted:
		d.begin("fetch", e.URL)
	case mol.EventBuildStarted:
		d.begin("build", "")
	case mol.EventExportStarted:
		d.now.detail, d.now.line = clean(describe(e)), ""
	case mol.EventWaiting:
		d.begin("wait", describe(e))
	case mol.EventFetchProgress:
		d.now.done, d.now.total, d.now.amount = e.Objects, e.ObjectsTotal, size(e.Bytes)
	case mol.EventContextProgress, mol.EventContextDone, mol.EventBaseImage, mol.EventExportProgress:
		d.now.detail = describe(e)
	case mol.EventStepStarted, mol.EventStepDone:
		d.step(e)
	case mol.EventLog:
		if d.verbose {
			kept = append(kept, d.style.dim("  "+clean(e.Line)))
			break
		}
		d.now.line = clean(e.Line)
	case mol.EventWarning:
		kept = append(kept, d.style.bad("!")+" "+plain(describe(e)))
	case mol.EventLookupDone, mol.EventCacheHit, mol.EventFetchDone, mol.EventPullDone:
		kept = append(kept, d.tick(describe(e)))
	case mol.EventTagged:
		if d.now.name == "build" {
			kept = append(kept, d.tick("built "+d.built()+" in "+seconds(time.Since(d.now.since))))
			d.begin("tag", "")
		}
		kept = append(kept, d.tick(describe(e)))
	}
	return kept
}

// begin starts a new activity with its own clock.
func (d *liveDisplay) begin(name, detail string) {
	d.now = activity{name: name, detail: clean(detail), since: time.Now(), pulls: pulls{}}
}

// step shows a build step. Steps may run in parallel, so the bar shows how many are
// done. The name of the last one stays until another begins.
func (d *liveDisplay) step(e mol.Event) {
	d.now.total = max(d.now.total, int64(e.Steps))
	if e.Kind == mol.EventStepDone {
		d.now.done++
		if e.Cached {
			d.now.cached++
		}
		d.now.detail = clean(stepName(e))
		d.now.running = slices.DeleteFunc(d.now.running, func(s runningStep) bool { return s.number == e.Step })
	} else {
		d.now.running = append(d.now.running, runningStep{e.Step, clean(stepName(e)), time.Now()})
		d.now.detail, d.now.line = "", ""
	}
	if d.now.total > 0 {
		d.now.amount = fmt.Sprintf("%d/%d", min(d.now.done, d.now.total), d.now.total)
	}
}

// built describes a finished build.
func (d *liveDisplay) built() string {
	text := count(d.now.done, "step")
	if d.now.cached > 0 {
		text += fmt.Sprintf(", %d of them cached", d.now.cached)
	}
	return text
}

func (d *liveDisplay) phase(name, detail string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.begin(name, detail)
}

func (d *liveDisplay) output(line string) { d.keep(d.style.dim("  " + line)) }

func (d *liveDisplay) note(line string) { d.keep(d.style.dim("·") + " " + clean(line)) }

func (d *liveDisplay) end(last string) {
	d.mu.Lock()
	ended := d.ended
	d.ended = true
	d.mu.Unlock()
	if ended {
		return
	}
	d.bar.Abort(true) // true: remove it from the screen
	d.progress.Wait()
	if last != "" {
		_, _ = fmt.Fprintln(d.w, d.tick(last))
	}
}

// keep prints a permanent line above the redrawn part. A line longer than the
// terminal's width wraps.
func (d *liveDisplay) keep(line string) {
	_, _ = io.WriteString(d.progress, line+"\n")
}

func (d *liveDisplay) tick(text string) string { return d.style.good("✓") + " " + clean(text) }
