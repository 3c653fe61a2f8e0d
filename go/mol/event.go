package mol

import "time"

// EventKind says what an [Event] reports.
type EventKind string

// The kinds of events, in about the order in which a call that has to build sees them. The fields named
// behind each are the ones that are set, besides Kind, Call, Runtime, Time and Message.
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
	EventThinned         EventKind = "thinned"     // Dropped: events that were left out at this point
)

// Event is one thing that happened during a call. All of its texts are masked: no token and no userinfo of
// a URL is in them. A field that does not belong to the kind is zero.
//
// A build that several calls of one client wait for is reported once, with the id of the call that came
// first.
type Event struct {
	// Kind says what happened. A newer library may send kinds that this package has no constant for.
	Kind EventKind
	// Call is the id of the call this belongs to; 0 for what belongs to none. Unique in the process.
	Call uint64
	// Runtime is the runtime name of that call.
	Runtime string
	// Time is when it happened, to the millisecond.
	Time time.Time
	// Message is one line for people.
	Message string
	// Span is the name of the span that it is in, as OpenTelemetry would have it: of few values, such as
	// "mol.fetch", and with nothing of the call in it. "" for warnings and what was left out.
	Span string

	// URL is the address asked or fetched from.
	URL string
	// Ref is the sha-pinned image reference, LatestRef the one with :latest.
	Ref, LatestRef string
	// CommitSHA is the full commit id, 40 or 64 hex digits; Branch the branch whose head it is.
	CommitSHA, Branch string
	// Reason is why a present image or cache entry was not used.
	Reason string
	// Holder is whom the call waits for: a process id or another call.
	Holder string
	// Builder is the engine's builder: "buildkit", "classic" or, on Podman, "buildah". Endpoint is the
	// engine's address.
	Builder, Endpoint string
	// Hint says what to do about a warning.
	Hint string
	// Step is the number of a build step, from 1, and Steps how many there are; 0 where it is not known.
	Step, Steps int
	// StepName is the step as the builder names it.
	StepName string
	// Cached tells that the builder took the step from its cache.
	Cached bool
	// Line is one line of the build's output, without its line end and possibly cut short.
	Line string
	// StepError is why the step failed, "" when it did not.
	StepError string
	// Files, Objects and ObjectsTotal are counts; ObjectsTotal is 0 while it is not known.
	Files, Objects, ObjectsTotal int64
	// Bytes is a number of bytes.
	Bytes int64
	// Dropped is how many events were left out because nobody took them fast enough.
	Dropped int64
	// Duration is how long it took, to the millisecond.
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
