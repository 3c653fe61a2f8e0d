package mol

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// eachVector runs a test for every case of a file in tests/vectors. The Rust tests read the same files.
func eachVector[Case any](t *testing.T, file string, test func(t *testing.T, c Case)) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "tests", "vectors", file))
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		About string            `json:"about"`
		Cases []json.RawMessage `json:"cases"`
	}
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if len(vectors.Cases) == 0 {
		t.Fatalf("%s has no cases", file)
	}
	for _, raw := range vectors.Cases {
		var named vectorName
		if err := json.Unmarshal(raw, &named); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		t.Run(named.Name, func(t *testing.T) {
			var c Case
			// A misspelled field is an error, so that no case is tested without it.
			d := json.NewDecoder(bytes.NewReader(raw))
			d.DisallowUnknownFields()
			if err := d.Decode(&c); err != nil {
				t.Fatal(err)
			}
			test(t, c)
		})
	}
}

// vectorName is the field that every case has.
type vectorName struct {
	Name string `json:"name"`
}
