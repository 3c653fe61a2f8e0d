package mol

import (
	"bytes"
	"strings"
	"testing"
)

func TestMetricsHaveTheBuildsOfEachNode(t *testing.T) {
	snapshot := MetricsSnapshot{
		NodeBuilds: map[string]map[string]uint64{
			"tcp://10.0.0.7:1234":    {"ok": 3, "builder_unreachable": 1},
			"unix:///a\\b\"c/ü.sock": {"ok": 0},
		},
		NodeBuildsInProgress: map[string]int64{"tcp://10.0.0.7:1234": 2},
	}
	var text bytes.Buffer
	if err := snapshot.WritePrometheus(&text); err != nil {
		t.Fatal(err)
	}
	want := `# TYPE mol_node_builds_total counter
mol_node_builds_total{builder_node="tcp://10.0.0.7:1234",result="builder_unreachable"} 1
mol_node_builds_total{builder_node="tcp://10.0.0.7:1234",result="ok"} 3
mol_node_builds_total{builder_node="unix:///a\\b\"c/ü.sock",result="ok"} 0
# HELP mol_node_builds_in_progress Builds that are under way on a node of the builder.
# TYPE mol_node_builds_in_progress gauge
mol_node_builds_in_progress{builder_node="tcp://10.0.0.7:1234"} 2
`
	if !strings.Contains(text.String(), want) {
		t.Errorf("got\n%s\nwant\n%s", &text, want)
	}
}
