package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
)

// An outcome has the fields that all results share. A result is the last JSON line of a command; its kind distinguishes
// it from the lines before it.
type outcome struct {
	Kind     string `json:"kind"` // "result"
	OK       bool   `json:"ok"`
	ExitCode int    `json:"exit_code"`
}

var succeeded = outcome{Kind: "result", OK: true}

// A result is the result of a command for an image or a workspace, or of one that failed.
type result struct {
	outcome
	details
	Error *errorOut `json:"error,omitempty"`
}

// A startedLine is written by mol up when the workspace is up, without --detach.
type startedLine struct {
	Kind string `json:"kind"` // "started"
	details
}

// details describe an image, and the workspace that was started from it.
type details struct {
	Ref       string      `json:"ref,omitempty"`
	LatestRef string      `json:"latest_ref,omitempty"`
	Runtime   string      `json:"runtime,omitempty"`
	CommitSHA string      `json:"commit_sha,omitempty"`
	ImageID   string      `json:"image_id,omitempty"`
	Platform  string      `json:"platform,omitempty"`
	CacheHit  *bool       `json:"cache_hit,omitempty"`
	Timings   *timingsOut `json:"timings_ms,omitempty"`

	URL           string `json:"url,omitempty"`
	HealthURL     string `json:"health_url,omitempty"`
	ContainerID   string `json:"container_id,omitempty"`
	ContainerName string `json:"container_name,omitempty"`
}

type timingsOut struct {
	Lookup  float64 `json:"lookup"`
	Inspect float64 `json:"inspect"`
	Wait    float64 `json:"wait"`
	Fetch   float64 `json:"fetch"`
	Build   float64 `json:"build"`
	Tag     float64 `json:"tag"`
	Total   float64 `json:"total"`
}

type errorOut struct {
	Code     string            `json:"code"`
	Message  string            `json:"message"`
	Hint     string            `json:"hint,omitempty"`
	SetBy    map[string]string `json:"set_by,omitempty"`
	URL      string            `json:"url,omitempty"`
	Step     string            `json:"step,omitempty"`
	Line     int               `json:"line,omitempty"`
	ExitCode int               `json:"exit_code,omitempty"`
	Excerpt  string            `json:"excerpt,omitempty"`
	LogTail  string            `json:"log_tail,omitempty"`
}

// imageDetails describe an image that was built or found.
func imageDetails(img mol.Image) details {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	t := img.Timings
	return details{
		Ref: img.Ref, LatestRef: img.LatestRef, Runtime: img.Runtime, CommitSHA: img.CommitSHA,
		ImageID: img.ImageID, Platform: img.Platform, CacheHit: &img.CacheHit,
		Timings: &timingsOut{ms(t.Lookup), ms(t.Inspect), ms(t.Wait), ms(t.Fetch), ms(t.Build), ms(t.Tag), ms(t.Total)},
	}
}

// failure returns the result of a command that failed.
func failure(ctx context.Context, err error) result {
	out := &errorOut{Message: plain(masked(err.Error()))}
	code := exitCode(ctx, err)
	switch {
	case code == exitUsage:
		out.Code = "usage"
	case errors.Is(err, errExited):
		out.Code = "workspace_exited"
	case errors.Is(err, errNotRunning):
		out.Code = "workspace_not_running"
	case code == exitWorkspace:
		out.Code = "workspace_not_ready"
	case errors.Is(err, workspace.ErrNameTaken):
		out.Code = "name_taken"
	case errors.Is(err, workspace.ErrAmbiguous):
		out.Code = "ambiguous_workspace"
	case errors.Is(err, workspace.ErrPull):
		out.Code = "pull_failed"
	case code == exitName:
		out.Code = "no_such_workspace"
	case code == exitEngine:
		out.Code = "engine_unreachable"
	case code > exitSignal:
		out.Code = "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		out.Code = "deadline_exceeded"
	default:
		out.Code = "internal"
	}
	var detail *mol.Error
	if errors.As(err, &detail) {
		out.Code, out.Message = detail.Code.String(), headline(detail)
		out.Hint, out.URL, out.Step, out.LogTail = plain(detail.Hint), detail.URL, detail.Step, detail.LogTail
		out.Excerpt = detail.Excerpt
		out.Line, out.ExitCode = detail.Line, detail.ExitCode
	}
	var advice hinted
	if errors.As(err, &advice) {
		out.Hint = plain(masked(advice.hint))
	}
	return result{outcome: outcome{Kind: "result", ExitCode: code}, Error: out}
}

// A jsonDisplay writes each event as one line.
type jsonDisplay struct {
	a     *app
	mu    sync.Mutex
	ended bool
}

func (d *jsonDisplay) event(e mol.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return
	}
	e.Time, e.Call = e.Time.UTC(), 0 // there is only one call
	_ = d.a.printJSON(e)
}

func (d *jsonDisplay) phase(string, string) {}
func (d *jsonDisplay) output(string)        {}

// end waits until the last event is written whole, so that the result is the last line.
func (d *jsonDisplay) end(string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
}

func (d *jsonDisplay) note(line string) {
	d.event(mol.Event{Kind: mol.EventWarning, Time: time.Now(), Message: line})
}
