package main

import (
	"fmt"
	"strings"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
)

// A pull is the state of the pull of one base image.
type pull struct {
	name   string // the step's
	layers map[string]layer
}

// A layer is the state of one layer.
type layer struct {
	bytes, total int64 // of its download
	rate         int64 // bytes per second; 0 once the download is complete
	extracting   bool
}

func newPull(e mol.Event) *pull {
	return &pull{name: stepName(e), layers: map[string]layer{}}
}

// update notes the progress of a layer.
func (p *pull) update(e mol.Event) {
	l := p.layers[e.Layer]
	if e.Action == "extract" {
		l.bytes, l.rate, l.extracting = l.total, 0, true
	} else {
		l.bytes, l.total, l.rate = e.Bytes, e.BytesTotal, e.BytesPerSecond
		if l.bytes >= l.total {
			l.rate = 0
		}
	}
	p.layers[e.Layer] = l
}

// String returns the amount, the rate and the time that is left, as far as they are known:
// "12.4 MiB / 45.0 MiB, 3.1 MiB/s, 10s left".
func (p *pull) String() string {
	var bytes, total, rate int64
	extracting := 0
	for _, l := range p.layers {
		bytes, total, rate = bytes+l.bytes, total+l.total, rate+l.rate
		if l.extracting {
			extracting++
		}
	}
	switch {
	case total == 0 && len(p.layers) == 0:
		return "pulling"
	case total == 0:
		return "pulling " + count(int64(len(p.layers)), "layer")
	case bytes >= total && extracting > 0:
		return "extracting " + size(total)
	}
	parts := []string{size(bytes) + " / " + size(total)}
	if rate > 0 && total > bytes {
		left := time.Duration(float64(total-bytes) / float64(rate) * float64(time.Second))
		parts = append(parts, size(rate)+"/s", fmt.Sprintf("%s left", left.Round(time.Second)))
	}
	return strings.Join(parts, ", ")
}

// pulls are the pulls under way, by the number of their step.
type pulls map[int]*pull

// note keeps the pulls up to date.
func (p pulls) note(e mol.Event) {
	switch e.Kind {
	case mol.EventBuildStarted:
		clear(p)
	case mol.EventPullStarted:
		p[e.Step] = newPull(e)
	case mol.EventPullProgress:
		if p[e.Step] == nil { // its start was dropped
			p[e.Step] = newPull(e)
		}
		p[e.Step].update(e)
	case mol.EventPullDone:
		delete(p, e.Step)
	}
}

// An imagePull shows the pull of the image of `mol up` as libmol shows that of a base image: with the same events, but
// without a step.
type imagePull struct {
	to           func(mol.Event)
	runtime, ref string
	start        time.Time
	began        map[string]time.Time // the first message of each layer
	latest       map[string]int64     // bytes downloaded of each layer
}

func newImagePull(runtime, ref string, to func(mol.Event)) *imagePull {
	p := &imagePull{to: to, runtime: runtime, ref: ref, start: time.Now(), began: map[string]time.Time{}, latest: map[string]int64{}}
	p.send(mol.Event{Kind: mol.EventPullStarted, Message: "pulling the image"})
	return p
}

func (p *imagePull) progress(l workspace.LayerProgress) {
	e := mol.Event{
		Kind: mol.EventPullProgress, Layer: l.Layer, Action: "download", Bytes: l.Bytes, BytesTotal: l.Total,
		Message: "downloading a layer",
	}
	began, known := p.began[l.Layer]
	switch {
	case l.Extracting:
		e.Action, e.Message = "extract", "extracting a layer"
		p.latest[l.Layer] = max(p.latest[l.Layer], l.Total)
	case !known:
		p.began[l.Layer] = time.Now()
		p.latest[l.Layer] = l.Bytes
	default:
		e.BytesPerSecond = int64(float64(l.Bytes) / max(time.Since(began), 100*time.Millisecond).Seconds())
		p.latest[l.Layer] = l.Bytes
	}
	p.send(e)
}

func (p *imagePull) done() {
	e := mol.Event{Kind: mol.EventPullDone, Duration: time.Since(p.start), Message: "pulled the image"}
	for _, bytes := range p.latest {
		e.Bytes += bytes
	}
	p.send(e)
}

func (p *imagePull) send(e mol.Event) {
	e.Time, e.Runtime = time.Now().Truncate(time.Millisecond), p.runtime
	e.StepName, e.Message = p.ref, p.ref+": "+e.Message
	p.to(e)
}
