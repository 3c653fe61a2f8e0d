package mol

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
)

// MetricsSnapshot has the counters of a client since New. Apart from what is in progress, the values only grow.
type MetricsSnapshot struct {
	// Version is the version of the library.
	Version string `json:"version"`
	// Calls counts the calls for an image that have ended, by "ok" or the name of the error's [Code].
	Calls map[string]uint64 `json:"calls"`
	// InProgress is the number of running calls for an image.
	InProgress int64 `json:"in_progress"`
	// Hits counts calls that returned an existing image, Misses those whose image did not exist or could not be used.
	Hits   uint64 `json:"hits"`
	Misses uint64 `json:"misses"`
	// Waits counts how often a call has begun to wait for another call or for a prune, of this process or of another.
	Waits uint64 `json:"waits"`
	// Builds counts fetches with their builds that have ended without being cancelled, by "ok" or the name of the error's
	// [Code]. A build that several calls share counts once.
	Builds map[string]uint64 `json:"builds"`
	// NodeBuilds counts the builds that have ended on a node of the builder, by the address of the node and by result, as
	// in Builds. "engine" is the engine's own builder. A build that could not start on a node, or lost it, counts there as
	// "builder_unreachable", and again on the next node. There are at most 100 addresses; "other" is the rest.
	NodeBuilds map[string]map[string]uint64 `json:"node_builds"`
	// NodeBuildsInProgress is the number of running builds of each node.
	NodeBuildsInProgress map[string]int64 `json:"node_builds_in_progress"`
	// CallDurations are the durations of the calls.
	CallDurations Durations `json:"call_durations"`
	// StepDurations are the durations of the steps "lookup", "inspect", "wait", "fetch", "build" and "tag". A build that
	// several calls share counts once.
	StepDurations map[string]Durations `json:"step_durations"`
}

// Durations is a histogram of durations.
type Durations struct {
	// Count is the number of durations, SumSeconds their sum.
	Count      uint64  `json:"count"`
	SumSeconds float64 `json:"sum_seconds"`
	// Buckets are sorted by their upper bound and cumulative: each includes the previous ones.
	Buckets []DurationBucket `json:"buckets"`
}

// DurationBucket is the number of durations up to LESeconds.
type DurationBucket struct {
	LESeconds float64 `json:"le_seconds"`
	Count     uint64  `json:"count"`
}

// Metrics returns the counters of the client. It makes no request and does not wait. After [Client.Close] the error is
// [ErrClosed].
func (c *Client) Metrics() (MetricsSnapshot, error) {
	text, failed := c.inner.core.metrics()
	goruntime.KeepAlive(c)
	if failed != nil {
		if failed.Code == CodeNoSuchHandle {
			failed = alreadyClosedError()
		}
		return MetricsSnapshot{}, failed
	}
	var snapshot MetricsSnapshot
	if err := json.Unmarshal(text, &snapshot); err != nil {
		return MetricsSnapshot{}, &Error{Code: CodeInternal, Message: "libmol sent metrics that cannot be read: " + err.Error()}
	}
	return snapshot, nil
}

// Metrics is [Client.Metrics] of the client that [EnsureLocalImage] uses. When the environment changes, a new client
// begins at 0.
func Metrics() (MetricsSnapshot, error) {
	shared, err := acquireShared()
	if err != nil {
		return MetricsSnapshot{}, err
	}
	defer sharedClients.release(shared)
	return shared.Metrics()
}

// WritePrometheus writes the snapshot in the Prometheus text format, version 0.0.4, for a server's /metrics:
//
//	http.HandleFunc("/metrics", func(w http.ResponseWriter, r *http.Request) {
//		snapshot, err := client.Metrics()
//		if err != nil {
//			http.Error(w, err.Error(), http.StatusServiceUnavailable)
//			return
//		}
//		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
//		_ = snapshot.WritePrometheus(w)
//	})
func (s MetricsSnapshot) WritePrometheus(w io.Writer) error {
	p := promWriter{bufio.NewWriter(w)}
	p.family("mol_info", "gauge", "The version of libmol; always 1.")
	p.sample("mol_info", fmt.Sprintf("{version=%q}", s.Version), "1")
	p.family("mol_calls_total", "counter", "Calls for an image that have ended, by result.")
	p.byResult("mol_calls_total", s.Calls)
	p.family("mol_calls_in_progress", "gauge", "Calls for an image that are under way.")
	p.sample("mol_calls_in_progress", "", strconv.FormatInt(s.InProgress, 10))
	p.counter("mol_hits_total", "Calls that returned an existing image.", s.Hits)
	p.counter("mol_misses_total", "Calls whose image did not exist or could not be used.", s.Misses)
	p.counter("mol_waits_total", "How often a call began to wait for another one or for a prune.", s.Waits)
	p.family("mol_builds_total", "counter", "Fetches with their builds that have ended without being cancelled, by result.")
	p.byResult("mol_builds_total", s.Builds)
	p.family("mol_node_builds_total", "counter", "Builds that have ended on a node of the builder, or could not run there, by result.")
	for _, node := range slices.Sorted(maps.Keys(s.NodeBuilds)) {
		for _, result := range slices.Sorted(maps.Keys(s.NodeBuilds[node])) {
			labels := fmt.Sprintf("{builder_node=%s,result=%q}", quoted(node), result)
			p.sample("mol_node_builds_total", labels, strconv.FormatUint(s.NodeBuilds[node][result], 10))
		}
	}
	p.family("mol_node_builds_in_progress", "gauge", "Builds that are under way on a node of the builder.")
	for _, node := range slices.Sorted(maps.Keys(s.NodeBuildsInProgress)) {
		running := strconv.FormatInt(s.NodeBuildsInProgress[node], 10)
		p.sample("mol_node_builds_in_progress", "{builder_node="+quoted(node)+"}", running)
	}
	p.family("mol_call_duration_seconds", "histogram", "How long calls for an image took.")
	p.histogram("mol_call_duration_seconds", "", s.CallDurations)
	p.family("mol_step_duration_seconds", "histogram", "How long the steps took; a build that many wait for counts once.")
	for _, step := range slices.Sorted(maps.Keys(s.StepDurations)) {
		p.histogram("mol_step_duration_seconds", fmt.Sprintf("step=%q,", step), s.StepDurations[step])
	}
	return p.Flush()
}

// promWriter writes the text format (prometheus.io/docs/instrumenting/exposition_formats). The names of codes and steps,
// and versions, need no escaping, so %q quotes them. Flush returns the first error.
type promWriter struct{ *bufio.Writer }

func (p promWriter) family(name, kind, help string) {
	_, _ = fmt.Fprintf(p, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (p promWriter) sample(name, labels, value string) {
	_, _ = fmt.Fprintf(p, "%s%s %s\n", name, labels, value)
}

func (p promWriter) counter(name, help string, value uint64) {
	p.family(name, "counter", help)
	p.sample(name, "", strconv.FormatUint(value, 10))
}

func (p promWriter) byResult(name string, counts map[string]uint64) {
	for _, result := range slices.Sorted(maps.Keys(counts)) {
		p.sample(name, fmt.Sprintf("{result=%q}", result), strconv.FormatUint(counts[result], 10))
	}
}

// histogram writes a histogram; labels are empty or end with a comma.
func (p promWriter) histogram(name, labels string, d Durations) {
	for _, bucket := range d.Buckets {
		p.sample(name+"_bucket", fmt.Sprintf("{%sle=%q}", labels, float(bucket.LESeconds)), strconv.FormatUint(bucket.Count, 10))
	}
	p.sample(name+"_bucket", "{"+labels+`le="+Inf"}`, strconv.FormatUint(d.Count, 10))
	if labels != "" {
		labels = "{" + labels[:len(labels)-1] + "}"
	}
	p.sample(name+"_sum", labels, float(d.SumSeconds))
	p.sample(name+"_count", labels, strconv.FormatUint(d.Count, 10))
}

// quoted quotes the value of a label.
func quoted(value string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(value) + `"`
}

func float(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }
