package main

import (
	"strings"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// began is the start time of the scripted build.
var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const (
	testSHA = "0123456789abcdef0123456789abcdef01234567"
	testRef = "molecule-local/workspace-template-hermes:0123456789ab"
	testURL = "https://git.example.com/org/tpl-hermes"
)

// scriptedEvents returns the events of a build, with colours and control characters in its
// output.
func scriptedEvents() []mol.Event {
	events := []mol.Event{
		{Kind: mol.EventLookupStarted, URL: testURL, Message: "looking up " + testURL},
		{Kind: mol.EventLookupDone, CommitSHA: testSHA, Branch: "main", Duration: 120 * time.Millisecond, Message: "main is at 0123456789ab"},
		{Kind: mol.EventCacheMiss, Ref: testRef, Reason: "the engine does not have it", Message: testRef + " must be built: the engine does not have it"},
		{Kind: mol.EventFetchStarted, URL: testURL, Message: "fetching 0123456789ab from " + testURL},
		{Kind: mol.EventFetchProgress, Objects: 10, ObjectsTotal: 1234, Bytes: 4 << 10},
		{Kind: mol.EventFetchProgress, Objects: 600, ObjectsTotal: 1234, Bytes: 1 << 20},
		{Kind: mol.EventFetchDone, Objects: 1234, ObjectsTotal: 1234, Files: 14, Bytes: 2 << 20, Duration: 850 * time.Millisecond},
		{Kind: mol.EventBuildStarted, Builder: "buildkit", Endpoint: "unix:///var/run/docker.sock", Message: "building with buildkit at unix:///var/run/docker.sock"},
		{Kind: mol.EventContextDone, Files: 14, Bytes: 3 << 20, Message: "the build context is sent: 14 files, 3.0 MiB"},
		{Kind: mol.EventStepStarted, Step: 1, Steps: 3, StepName: "[1/3] FROM docker.io/library/python:3.13"},
		{Kind: mol.EventStepDone, Step: 1, Steps: 3, StepName: "[1/3] FROM docker.io/library/python:3.13", Cached: true},
		{Kind: mol.EventStepStarted, Step: 2, Steps: 3, StepName: "RUN pip install -r requirements.txt"},
		{Kind: mol.EventLog, Step: 2, Line: "\x1b[32mCollecting\x1b[0m\tnumpy\x07"},
		{Kind: mol.EventLog, Step: 2, Line: "100% ünïcödé"},
		{Kind: mol.EventStepDone, Step: 2, Steps: 3, StepName: "RUN pip install -r requirements.txt", Duration: 12300 * time.Millisecond},
		{Kind: mol.EventStepStarted, Step: 3, Steps: 3, StepName: "COPY . /workspace"},
		{Kind: mol.EventStepDone, Step: 3, Steps: 3, StepName: "COPY . /workspace", Duration: 40 * time.Millisecond},
		{Kind: mol.EventExportStarted, Message: "the builder sends the image"},
		{Kind: mol.EventExportProgress, Bytes: 300 << 20, BytesTotal: 400 << 20, Message: "transferring the image to the engine: 300.0 MiB of 400.0 MiB"},
		{Kind: mol.EventExportDone, Duration: 300 * time.Millisecond},
		{Kind: mol.EventWarning, Message: "the :latest tag was not refreshed", Hint: "the engine is read-only"},
		{Kind: mol.EventThinned, Dropped: 1200, Message: "1200 events were dropped: the reader is too slow"},
		{Kind: "weighed", Message: "a kind that this command does not know"},
		{Kind: mol.EventTagged, Ref: testRef, LatestRef: "molecule-local/workspace-template-hermes:latest", Message: testRef + " is ready"},
	}
	for i := range events {
		events[i].Runtime = "hermes"
		events[i].Time = began.Add(time.Duration(i) * 700 * time.Millisecond)
	}
	return events
}

func scriptImage() mol.Image {
	return mol.Image{
		Ref: testRef, LatestRef: "molecule-local/workspace-template-hermes:latest", Runtime: "hermes",
		CommitSHA: testSHA, ImageID: "sha256:feed", Platform: "linux/amd64",
		Timings: mol.Timings{Lookup: 120 * time.Millisecond, Fetch: 850 * time.Millisecond, Build: 13 * time.Second, Total: 14100 * time.Millisecond},
	}
}

// pullEvents are the events of two steps in parallel, one of which pulls an image with two layers.
func pullEvents() []mol.Event {
	const from = "[a 1/2] FROM docker.io/library/python:3.13"
	name := from + "@sha256:" + strings.Repeat("0a", 32)
	return []mol.Event{
		{Kind: mol.EventBuildStarted, Builder: "buildkit"},
		{Kind: mol.EventBaseImage, BaseImage: "docker.io/library/python:3.13", Message: "looking up the base image docker.io/library/python:3.13"},
		{Kind: mol.EventStepStarted, Step: 1, Steps: 4, StepName: name},
		{Kind: mol.EventStepStarted, Step: 2, Steps: 4, StepName: "[b 2/2] RUN make"},
		{Kind: mol.EventPullStarted, Step: 1, StepName: name, Message: name + ": pulling the base image"},
		{Kind: mol.EventPullProgress, Step: 1, StepName: name, Layer: "sha256:aa", Action: "download", Bytes: 4 << 20, BytesTotal: 4 << 20, BytesPerSecond: 8 << 20},
		{Kind: mol.EventPullProgress, Step: 1, StepName: name, Layer: "sha256:bb", Action: "download", Bytes: 8 << 20, BytesTotal: 40 << 20, BytesPerSecond: 2 << 20},
		{Kind: mol.EventPullDone, Step: 1, StepName: name, Message: name + ": pulled the base image, 44.0 MiB", Bytes: 44 << 20, Duration: 21 * time.Second},
		{Kind: mol.EventStepDone, Step: 1, Steps: 4, StepName: name, Duration: 21 * time.Second},
	}
}
