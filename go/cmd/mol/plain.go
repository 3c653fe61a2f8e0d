package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// progressEvery is the interval of progress lines.
const progressEvery = 2 * time.Second

// A plainDisplay writes a line for each event, with the time since the start. Without
// --verbose it writes at most one progress line per progressEvery. It is for files,
// pipes and terminals without cursor movement.
type plainDisplay struct {
	mu       sync.Mutex
	w        io.Writer
	start    time.Time
	progress time.Time // when the last progress line was written
	pulls    pulls
	verbose  bool
	ended    bool
}

func newPlainDisplay(w io.Writer, start time.Time, verbose bool) *plainDisplay {
	return &plainDisplay{w: w, start: start, progress: start, pulls: pulls{}, verbose: verbose}
}

func (d *plainDisplay) event(e mol.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := e.Time
	if now.IsZero() {
		now = time.Now()
	}
	d.pulls.note(e)
	text := describe(e)
	switch e.Kind {
	case mol.EventFetchProgress, mol.EventContextProgress, mol.EventPullProgress, mol.EventExportProgress:
		if d.verbose {
			break
		}
		if now.Sub(d.progress) < progressEvery {
			return
		}
		d.progress = now
		if e.Kind == mol.EventPullProgress { // of all layers
			text = stepName(e) + ": " + d.pulls[e.Step].String()
		}
	}
	d.line(now, text)
}

func (d *plainDisplay) phase(name, detail string) { d.note(name + " " + detail) }

func (d *plainDisplay) output(line string) { d.note("| " + line) }

func (d *plainDisplay) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.line(time.Now(), line)
}

func (d *plainDisplay) end(last string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if last != "" {
		d.line(time.Now(), last)
	}
	d.ended = true
}

// line writes one line. Event times are rounded to milliseconds and the start is not,
// so the difference may be slightly negative.
func (d *plainDisplay) line(now time.Time, text string) {
	if d.ended {
		return
	}
	_, _ = fmt.Fprintf(d.w, "%8s  %s\n", seconds(max(0, now.Sub(d.start))), clean(text))
}
