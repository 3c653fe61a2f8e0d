package mol

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"reflect"
	"strings"
	"time"
)

// EventKind is the kind of an [Event].
type EventKind string

// The kinds of events, roughly in the order in which a call that builds sends them. Each comment lists the fields that
// are set besides Kind, Call, Runtime, Time, Message and Span.
const (
	EventLookupStarted   EventKind = "lookup_started"   // URL
	EventLookupDone      EventKind = "lookup_done"      // URL, CommitSHA, Branch, Duration
	EventCacheHit        EventKind = "cache_hit"        // Ref
	EventCacheMiss       EventKind = "cache_miss"       // Ref, Reason
	EventWaiting         EventKind = "waiting"          // Holder
	EventFetchStarted    EventKind = "fetch_started"    // URL, CommitSHA
	EventFetchProgress   EventKind = "fetch_progress"   // Objects, ObjectsTotal, Bytes
	EventFetchDone       EventKind = "fetch_done"       // Objects, ObjectsTotal, Bytes, Files, Duration
	EventBuildStarted    EventKind = "build_started"    // Builder, Endpoint
	EventBaseImage       EventKind = "base_image"       // BaseImage
	EventContextProgress EventKind = "context_progress" // Files, Bytes
	EventContextDone     EventKind = "context_done"     // Files, Bytes
	EventStepStarted     EventKind = "step_started"     // Step, Steps, StepName
	EventPullStarted     EventKind = "pull_started"     // Step, StepName
	EventPullProgress    EventKind = "pull_progress"    // Step, StepName, Layer, Action, Bytes, BytesTotal, BytesPerSecond
	EventPullDone        EventKind = "pull_done"        // Step, StepName, Bytes, Duration
	EventStepDone        EventKind = "step_done"        // Step, Steps, StepName, Cached, Duration, StepError
	EventLog             EventKind = "log"              // Step, StepName, Line
	EventExportStarted   EventKind = "export_started"
	EventExportProgress  EventKind = "export_progress" // Bytes, BytesTotal
	EventExportDone      EventKind = "export_done"     // Duration
	EventTagged          EventKind = "tagged"          // Ref, LatestRef
	EventWarning         EventKind = "warning"         // Hint, Endpoint, Node
	EventThinned         EventKind = "thinned"         // Dropped, the number of events that were left out here
)

// Event reports a step of a call. Its texts are masked: they contain no token and no userinfo of a URL. A field that does
// not belong to the kind is zero.
//
// A build that several calls of one client share is reported once, with the id of the first call.
type Event struct {
	// Kind is the kind of event. A newer library may send kinds that this package has no constant for.
	Kind EventKind `json:"kind"`
	// Call is the id of the call, unique in the process; 0 if the event stands for several calls.
	Call uint64 `json:"call,omitempty"`
	// Time is the time of the event, to the millisecond.
	Time time.Time `json:"time"`
	// Runtime is the runtime name of that call.
	Runtime string `json:"runtime,omitempty"`
	// Message describes the event in one line.
	Message string `json:"message,omitempty"`
	// Span is the name of the event's span for OpenTelemetry, such as "mol.fetch": of low cardinality, without data of
	// the call. "" for EventWarning and EventThinned.
	Span string `json:"span,omitempty"`

	// URL is the address of the lookup or the fetch.
	URL string `json:"url,omitempty"`
	// Ref is the image reference with the commit, LatestRef the one with :latest.
	Ref       string `json:"ref,omitempty"`
	LatestRef string `json:"latest_ref,omitempty"`
	// CommitSHA is the full commit id, 40 or 64 hex digits. If it was looked up, it is the head of Branch.
	CommitSHA string `json:"commit_sha,omitempty"`
	Branch    string `json:"branch,omitempty"`
	// Reason says why an existing image or cache entry was not used.
	Reason string `json:"reason,omitempty"`
	// Holder is what the call waits for: "process 4711", "another process", "another client in this process", "another
	// call in this process" or "a prune".
	Holder string `json:"holder,omitempty"`
	// Builder is the kind of builder: "buildkit", "classic" or, on Podman, "buildah". Endpoint is the address of the
	// builder: the engine's, unless [Options.Builder] names another one. In a warning it is the engine's.
	Builder  string `json:"builder,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	// Node is the address of a builder's node that cannot be used or was lost, which the warning is about.
	Node string `json:"node,omitempty"`
	// Hint says what to do about a warning.
	Hint string `json:"hint,omitempty"`
	// Step is the number of a build step, from 1, and Steps the number of steps; 0 if unknown.
	Step  int `json:"step,omitempty"`
	Steps int `json:"steps,omitempty"`
	// StepName is the builder's name of the step.
	StepName string `json:"step_name,omitempty"`
	// Cached reports whether the builder took the step from its cache.
	Cached bool `json:"cached,omitempty"`
	// Line is one line of the build's output, without its line end and possibly truncated.
	Line string `json:"line,omitempty"`
	// StepError says why the step failed, "" if it did not.
	StepError string `json:"error,omitempty"`
	// Files, Objects and ObjectsTotal are counts; ObjectsTotal is 0 while unknown.
	Files        int64 `json:"files,omitempty"`
	Objects      int64 `json:"objects,omitempty"`
	ObjectsTotal int64 `json:"objects_total,omitempty"`
	// BaseImage is the name of a base image that the builder looks up.
	BaseImage string `json:"image,omitempty"`
	// Layer is the digest of a layer of a base image, or the beginning of it; Action is what the engine does with it:
	// "download" or "extract".
	Layer  string `json:"layer,omitempty"`
	Action string `json:"action,omitempty"`
	// Bytes is a number of bytes, BytesTotal how many there will be, and BytesPerSecond their average rate; each is 0
	// while unknown.
	Bytes          int64 `json:"bytes,omitempty"`
	BytesTotal     int64 `json:"bytes_total,omitempty"`
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
	// Dropped is the number of events that were left out because the receiver was too slow.
	Dropped int64 `json:"dropped,omitempty"`
	// Duration is the duration of the step, to the millisecond.
	Duration time.Duration `json:"-"`
}

// event is an Event without its methods, so that it is encoded field by field.
type event Event

// MarshalJSON returns the event in the library's JSON form (docs/events.md): fields that do not apply are absent, the
// duration is duration_ms. The time is in RFC 3339 form.
func (e Event) MarshalJSON() ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // left to the caller's encoder
	err := encoder.Encode(struct {
		event
		DurationMS int64 `json:"duration_ms,omitempty"`
	}{event(e), e.Duration.Milliseconds()})
	return text.Bytes(), err
}

// UnmarshalJSON reads an event in the library's JSON form, in the form of MarshalJSON, and a line of mol --json. Fields
// that are absent keep their values, and unknown fields are ignored, as with other structs.
func (e *Event) UnmarshalJSON(data []byte) error {
	wire := struct {
		event
		TimeUnixMS int64  `json:"time_unix_ms"`
		DurationMS *int64 `json:"duration_ms"`
	}{event: event(*e)}
	if err := json.Unmarshal(data, &wire); err != nil {
		return err
	}
	*e = Event(wire.event)
	if wire.DurationMS != nil {
		e.Duration = time.Duration(*wire.DurationMS) * time.Millisecond
	}
	if wire.TimeUnixMS != 0 {
		e.Time = time.UnixMilli(wire.TimeUnixMS)
	}
	return nil
}

// decodeEvent decodes an event of the library.
func decodeEvent(data []byte) (Event, error) {
	var e Event
	err := json.Unmarshal(data, &e)
	return e, err
}

// attrs returns the fields that are set, under their names in JSON, without the time and the message.
func (e *Event) attrs() []slog.Attr {
	var attrs []slog.Attr
	value := reflect.ValueOf(*e)
	for i := range value.NumField() {
		name, _, _ := strings.Cut(value.Type().Field(i).Tag.Get("json"), ",")
		if field := value.Field(i); name != "-" && name != "time" && name != "message" && !field.IsZero() {
			if field.Kind() == reflect.String {
				attrs = append(attrs, slog.String(name, field.String()))
			} else {
				attrs = append(attrs, slog.Any(name, field.Interface()))
			}
		}
	}
	if e.Duration != 0 {
		attrs = append(attrs, slog.Duration("duration", e.Duration))
	}
	return attrs
}
