package mol

import "time"

// EventKind is the kind of an [Event].
type EventKind string

// The kinds of events, roughly in the order in which a call that builds sends them. Each comment lists the fields that
// are set besides Kind, Call, Runtime, Time, Message and Span.
const (
	EventLookupStarted   EventKind = "lookup_started"   // URL
	EventLookupDone      EventKind = "lookup_done"      // CommitSHA, Branch, Duration
	EventCacheHit        EventKind = "cache_hit"        // Ref
	EventCacheMiss       EventKind = "cache_miss"       // Ref, Reason
	EventWaiting         EventKind = "waiting"          // Holder
	EventFetchStarted    EventKind = "fetch_started"    // URL
	EventFetchProgress   EventKind = "fetch_progress"   // Objects, ObjectsTotal, Bytes
	EventFetchDone       EventKind = "fetch_done"       // Objects, Bytes, Files, Duration
	EventBuildStarted    EventKind = "build_started"    // Builder, Endpoint
	EventContextProgress EventKind = "context_progress" // Files, Bytes
	EventContextDone     EventKind = "context_done"     // Files, Bytes
	EventStepStarted     EventKind = "step_started"     // Step, Steps, StepName
	EventStepDone        EventKind = "step_done"        // Step, Steps, StepName, Cached, Duration, StepError
	EventLog             EventKind = "log"              // Step, StepName, Line
	EventExportStarted   EventKind = "export_started"
	EventExportDone      EventKind = "export_done" // Duration
	EventTagged          EventKind = "tagged"      // Ref, LatestRef
	EventWarning         EventKind = "warning"     // Hint, Endpoint
	EventThinned         EventKind = "thinned"     // Dropped, the number of events that were left out here
)

// Event reports a step of a call. Its texts are masked: they contain no token and no userinfo of a URL. A field that does
// not belong to the kind is zero.
//
// A build that several calls of one client share is reported once, with the id of the first call.
type Event struct {
	// Kind is the kind of event. A newer library may send kinds that this package has no constant for.
	Kind EventKind
	// Call is the id of the call, unique in the process; 0 if the event belongs to no call.
	Call uint64
	// Runtime is the runtime name of that call.
	Runtime string
	// Time is the time of the event, to the millisecond.
	Time time.Time
	// Message describes the event in one line.
	Message string
	// Span is the name of the event's span for OpenTelemetry, such as "mol.fetch": of low cardinality, without data of
	// the call. "" for EventWarning and EventThinned.
	Span string

	// URL is the address of the lookup or the fetch.
	URL string
	// Ref is the image reference with the commit, LatestRef the one with :latest.
	Ref, LatestRef string
	// CommitSHA is the full commit id, 40 or 64 hex digits. It is the head of Branch.
	CommitSHA, Branch string
	// Reason says why an existing image or cache entry was not used.
	Reason string
	// Holder is what the call waits for: a process id or another call.
	Holder string
	// Builder is the engine's builder: "buildkit", "classic" or, on Podman, "buildah". Endpoint is the
	// engine's address.
	Builder, Endpoint string
	// Hint says what to do about a warning.
	Hint string
	// Step is the number of a build step, from 1, and Steps the number of steps; 0 if unknown.
	Step, Steps int
	// StepName is the builder's name of the step.
	StepName string
	// Cached reports whether the builder took the step from its cache.
	Cached bool
	// Line is one line of the build's output, without its line end and possibly truncated.
	Line string
	// StepError says why the step failed, "" if it did not.
	StepError string
	// Files, Objects and ObjectsTotal are counts; ObjectsTotal is 0 while unknown.
	Files, Objects, ObjectsTotal int64
	// Bytes is a number of bytes.
	Bytes int64
	// Dropped is the number of events that were left out because the receiver was too slow.
	Dropped int64
	// Duration is the duration of the step, to the millisecond.
	Duration time.Duration
}

// wireEvent is an event as the library sends it: one flat JSON object.
type wireEvent struct {
	Kind         EventKind `json:"kind"`
	Call         uint64    `json:"call"`
	Runtime      string    `json:"runtime"`
	TimeUnixMS   int64     `json:"time_unix_ms"`
	Message      string    `json:"message"`
	Span         string    `json:"span"`
	URL          string    `json:"url"`
	Ref          string    `json:"ref"`
	LatestRef    string    `json:"latest_ref"`
	CommitSHA    string    `json:"commit_sha"`
	Branch       string    `json:"branch"`
	Reason       string    `json:"reason"`
	Holder       string    `json:"holder"`
	Builder      string    `json:"builder"`
	Endpoint     string    `json:"endpoint"`
	Hint         string    `json:"hint"`
	Step         int       `json:"step"`
	Steps        int       `json:"steps"`
	StepName     string    `json:"step_name"`
	Cached       bool      `json:"cached"`
	Line         string    `json:"line"`
	Error        string    `json:"error"`
	Files        int64     `json:"files"`
	Objects      int64     `json:"objects"`
	ObjectsTotal int64     `json:"objects_total"`
	Bytes        int64     `json:"bytes"`
	Dropped      int64     `json:"dropped"`
	DurationMS   int64     `json:"duration_ms"`
}

func (w *wireEvent) event() Event {
	e := Event{
		Kind: w.Kind, Call: w.Call, Runtime: w.Runtime, Message: w.Message, Span: w.Span,
		URL: w.URL, Ref: w.Ref, LatestRef: w.LatestRef, CommitSHA: w.CommitSHA, Branch: w.Branch,
		Reason: w.Reason, Holder: w.Holder, Builder: w.Builder, Endpoint: w.Endpoint, Hint: w.Hint,
		Step: w.Step, Steps: w.Steps, StepName: w.StepName, Cached: w.Cached, Line: w.Line, StepError: w.Error,
		Files: w.Files, Objects: w.Objects, ObjectsTotal: w.ObjectsTotal, Bytes: w.Bytes, Dropped: w.Dropped,
		Duration: time.Duration(w.DurationMS) * time.Millisecond,
	}
	if w.TimeUnixMS != 0 {
		e.Time = time.UnixMilli(w.TimeUnixMS)
	}
	return e
}
