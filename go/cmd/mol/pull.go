package main

import (
	"fmt"
	"strings"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// A pull is the state of the pull of one base image.
type pull struct {
	name   string // the step's
	layers map[string]layer
}

// A layer is the state of one layer.
type layer struct {
	bytes, total int64 // of its download
	rate         int64 // bytes per second; 0 when it is downloaded
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
