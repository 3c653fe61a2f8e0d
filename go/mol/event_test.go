package mol

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestEveryFieldOfALibraryEventIsCopied(t *testing.T) {
	const wire = `{"kind":"step_done","call":7,"runtime":"hermes","time_unix_ms":1700000000123,"message":"m","span":"sp",
		"url":"u","ref":"r","latest_ref":"l","commit_sha":"c","branch":"b","reason":"re","holder":"h","builder":"bu",
		"endpoint":"e","node":"n","hint":"hi","step":2,"steps":5,"step_name":"sn","cached":true,
		"line":"li","error":"er","files":1,"objects":2,"objects_total":3,"bytes":4,"image":"im","layer":"la","action":"ac","bytes_total":6,"bytes_per_second":7,"dropped":5,"duration_ms":1500,
		"of_a_newer_library":{"x":[1]}}`
	want := Event{
		Kind: EventStepDone, Call: 7, Runtime: "hermes", Time: time.UnixMilli(1700000000123), Message: "m", Span: "sp",
		URL: "u", Ref: "r", LatestRef: "l", CommitSHA: "c", Branch: "b", Reason: "re", Holder: "h", Builder: "bu",
		Endpoint: "e", Node: "n", Hint: "hi", Step: 2, Steps: 5, StepName: "sn", Cached: true,
		Line: "li", StepError: "er", Files: 1, Objects: 2, ObjectsTotal: 3, Bytes: 4, Dropped: 5,
		BaseImage: "im", Layer: "la", Action: "ac", BytesTotal: 6, BytesPerSecond: 7,
		Duration: 1500 * time.Millisecond,
	}
	got, err := decodeEvent([]byte(wire))
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	// Each field is set above, so a zero field was not decoded.
	for i := range reflect.TypeFor[Event]().NumField() {
		if reflect.ValueOf(got).Field(i).IsZero() {
			t.Errorf("%s is zero", reflect.TypeFor[Event]().Field(i).Name)
		}
	}
	// Each of them is logged; the time and the message are in the record itself.
	names := make(map[string]bool)
	for _, attr := range got.attrs() {
		names[attr.Key] = true
	}
	for name := range strings.FieldsSeq("kind call runtime span url ref latest_ref commit_sha branch reason holder builder " +
		"endpoint node hint step steps step_name cached line error files objects objects_total image layer action bytes bytes_total " +
		"bytes_per_second dropped duration") {
		if !names[name] {
			t.Errorf("%s is not logged", name)
		}
	}
}

func TestAnEventWithoutATimeHasTheZeroTime(t *testing.T) {
	if e, err := decodeEvent([]byte(`{"kind":"log"}`)); err != nil || !e.Time.IsZero() {
		t.Errorf("got %v, %v", e.Time, err)
	}
}

func TestAnEventIsEncodedWithTheFieldsThatApply(t *testing.T) {
	e := Event{Kind: EventStepDone, Time: time.UnixMilli(1700000000123).UTC(), StepName: "RUN true", Duration: 1500 * time.Millisecond}
	text, err := json.Marshal(e)
	const want = `{"kind":"step_done","time":"2023-11-14T22:13:20.123Z","step_name":"RUN true","duration_ms":1500}`
	if err != nil || string(text) != want {
		t.Errorf("got %s, %v, want %s", text, err, want)
	}
}

func TestAnEventIsDecodedAsItWasEncoded(t *testing.T) {
	want := Event{
		Kind: EventPullDone, Call: 7, Runtime: "hermes", Time: time.UnixMilli(1700000000123).UTC(), Message: "m", Step: 2,
		StepName: "[2/5] <x>", Bytes: 4, Duration: 1500 * time.Millisecond,
	}
	text, err := json.Marshal([]Event{want, {}})
	if err != nil {
		t.Fatal(err)
	}
	var got []Event
	if err := json.Unmarshal(text, &got); err != nil || len(got) != 2 || got[0] != want || got[1] != (Event{}) {
		t.Errorf("%s: got %+v, %v", text, got, err)
	}
	// Like other values, an event keeps what the text does not have.
	kept := want
	if err := json.Unmarshal([]byte("null"), &kept); err != nil || kept != want {
		t.Errorf("null: got %+v, %v", kept, err)
	}
	if err := json.Unmarshal([]byte(`{"duration_ms":"x"}`), &kept); err == nil || kept != want {
		t.Errorf("an invalid duration: got %+v, %v", kept, err)
	}
}
