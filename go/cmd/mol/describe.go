package main

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// describe returns an event as one line of text: its message or, for some kinds, a text with more numbers.
func describe(e mol.Event) string {
	switch e.Kind {
	case mol.EventFetchProgress:
		return "fetching: " + amount(e)
	case mol.EventFetchDone:
		return fmt.Sprintf("fetched %s in %s", amount(e), seconds(e.Duration))
	case mol.EventStepStarted:
		return stepName(e)
	case mol.EventPullStarted:
		return numbered(e, e.Message)
	case mol.EventPullProgress:
		return join(stepName(e)+": "+e.Action+" "+e.Layer, layerAmount(e))
	case mol.EventPullDone:
		text := e.Message
		if e.Bytes > 0 {
			text = e.StepName + ": pulled " + size(e.Bytes)
		}
		return numbered(e, text) + " in " + seconds(e.Duration)
	case mol.EventStepDone:
		return stepName(e) + ": " + stepOutcome(e)
	case mol.EventLog:
		return "| " + clean(e.Line)
	case mol.EventExportDone:
		return "exported the image in " + seconds(e.Duration)
	case mol.EventWarning:
		return join("warning: "+e.Message, e.Hint)
	default:
		return cmp.Or(e.Message, string(e.Kind))
	}
}

// amount returns the event's numbers of objects, files and bytes. Unknown numbers are
// omitted.
func amount(e mol.Event) string {
	var parts []string
	switch {
	case e.ObjectsTotal > e.Objects:
		parts = append(parts, fmt.Sprintf("%d of %s", e.Objects, count(e.ObjectsTotal, "object")))
	case e.Objects > 0:
		parts = append(parts, count(e.Objects, "object"))
	}
	if e.Files > 0 {
		parts = append(parts, count(e.Files, "file"))
	}
	return strings.Join(append(parts, size(e.Bytes)), ", ")
}

// layerAmount returns the amount of an event for one layer.
func layerAmount(e mol.Event) string {
	if e.BytesTotal == 0 {
		return ""
	}
	return size(e.Bytes) + " / " + size(e.BytesTotal)
}

// stepName returns the name of a build step with its number.
func stepName(e mol.Event) string { return numbered(e, e.StepName) }

// numbered returns a text that begins with the name of a build step. It adds the step's number, which some builders
// include in the name, and removes the digest of a base image.
func numbered(e mol.Event, text string) string {
	text = digest.ReplaceAllString(text, "$1")
	switch {
	case strings.HasPrefix(text, "[") || e.Step == 0:
		return text
	case e.Steps == 0:
		return fmt.Sprintf("[%d] %s", e.Step, text)
	}
	return fmt.Sprintf("[%d/%d] %s", e.Step, e.Steps, text)
}

// digest matches the digest that BuildKit adds to the name of a base image.
var digest = regexp.MustCompile(`( FROM \S+)@sha256:[0-9a-f]{64}`)

func stepOutcome(e mol.Event) string {
	switch {
	case e.StepError != "":
		return "failed: " + e.StepError
	case e.Cached:
		return "cached"
	}
	return "done in " + seconds(e.Duration)
}

// join appends an explanation to a text, if there is one.
func join(text, why string) string {
	if why == "" {
		return text
	}
	return text + ": " + why
}
