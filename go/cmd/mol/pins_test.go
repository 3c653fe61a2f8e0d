package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// written returns the path of a file with this text.
func written(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pins.json")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const otherSHA = "fedcba9876543210fedcba9876543210fedcba98"

func TestPinsFileForms(t *testing.T) {
	both := map[string]string{"hermes": testSHA, "codex": otherSHA}
	for name, tt := range map[string]struct {
		text string
		want map[string]string
	}{
		"an object of runtimes and commits": {`{"hermes": "` + testSHA + `", "codex": "` + otherSHA + `"}`, both},
		"a list of entries": {`[
			{"provider": "gitea", "runtime": "hermes", "commit": "` + testSHA + `", "size": 7, "tags": ["a", "a"]},
			{"sha": "` + otherSHA + `", "runtime": "codex"}
		]`, both},
		"a list in an object": {`{"version": 2, "templates": [
			{"runtime": "hermes", "commit_sha": "` + testSHA + `"},
			{"runtime": "codex", "commit": "` + otherSHA + `"}
		], "source": {"list": []}}`, both},
		"the manifest of the server": {`{
			"version": 1,
			"plugins": [
				{"name": "browser", "repo": "molecule-ai/plugin-browser", "ref": "main"},
				{"name": "hermes", "repo": "molecule-ai/plugin-hermes", "ref": "v1"}
			],
			"workspace_templates": [
				{"name": "hermes", "repo": "molecule-ai/workspace-template-hermes", "ref": "main", "provider": "anthropic",
				 "runtime": "hermes", "commit": "` + testSHA + `"},
				{"name": "hermes-2", "repo": "molecule-ai/workspace-template-hermes", "ref": "main", "provider": "openai",
				 "runtime": "hermes", "commit": "` + testSHA + `"}
			],
			"more_templates": [
				{"name": "codex", "repo": "molecule-ai/workspace-template-codex", "ref": "` + otherSHA + `", "runtime": "codex"}
			],
			"org_templates": [{"name": "team", "repo": "molecule-ai/org-template-team", "ref": "main"}],
			"tags": ["a", "b"], "none": []
		}`, both},
		"one runtime of two providers, with one commit": {`[
			{"provider": "a", "runtime": "hermes", "commit": "` + testSHA + `"},
			{"provider": "b", "runtime": "hermes", "commit": "` + strings.ToUpper(testSHA) + `"}
		]`, map[string]string{"hermes": testSHA}},
	} {
		f := &fakeClient{img: scriptImage()}
		code, _, stderr := runFake(t, t.Context(), f, "ensure", "hermes", "--pins", written(t, tt.text))
		if diff := cmp.Diff(tt.want, f.opts.Pins); code != 0 || diff != "" || f.commit != "" {
			t.Errorf("%s: exit code %d: %s (-want +got):\n%s", name, code, stderr, diff)
		}
	}
}

func TestPinsOfRuntimesFlag(t *testing.T) {
	f := &fakeClient{img: scriptImage()}
	file := written(t, `{"google-adk": "`+testSHA+`"}`)
	// The order of the flags does not matter.
	for _, args := range [][]string{
		{"ensure", "google-adk", "--pins", file, "--runtimes", "google-adk"},
		{"ensure", "google-adk", "--runtimes", "google-adk", "--pins", file},
	} {
		if code, _, stderr := runFake(t, t.Context(), f, args...); code != 0 || f.opts.Pins["google-adk"] != testSHA {
			t.Errorf("exit code %d, pins %v: %s", code, f.opts.Pins, stderr)
		}
	}
}

// Invalid pins must fail: ignoring one would build another commit than the file has.
func TestInvalidPins(t *testing.T) {
	for text, want := range map[string]string{
		``:                                       `:1: invalid JSON: unexpected end of JSON input`,
		"{\n\n,}":                                `:3: invalid JSON: invalid character ','`,
		`{} {}`:                                  `:1: invalid JSON: invalid character '{' after top-level value`,
		"\ufeff{}":                               `:1: invalid JSON`,
		`"hermes"`:                               `: the file is a string, not an object or a list`,
		`null`:                                   `: the file is null, not an object or a list`,
		`{}`:                                     `: the file has no commit`,
		`[]`:                                     `: the file has no commit`,
		`{"a": []}`:                              `: the file has no commit`,
		` [true]`:                                `: entry 1 is a boolean, not an object`,
		`[{}, null]`:                             `: entry 1: "runtime" is missing`,
		`{"a": [], "version": 1, "b": []}`:       `: the file has no commit: no entry of a list has a "runtime"`,
		`{"hermes": "` + testSHA + `", "a": []}`: `: the file has no commit: no entry of a list has a "runtime"`,
		`{"a": [{"name": "x"}], "b": [{"runtime": "hermes", "commit": "` + testSHA + `"}, {"name": "y"}]}`:                  `: "b", entry 2: "runtime" is missing`,
		`{"b": [{"runtime": "hermes", "commit": "` + testSHA + `"}, "y"]}`:                                                  `: "b", entry 2 is a string, not an object`,
		`{"b": [{"runtime": "hermes", "commit": "main"}]}`:                                                                  `: "b", entry 1 ("hermes"): "main" is not a commit id`,
		`{"b": [{"runtime": "hermse", "commit": "` + testSHA + `"}]}`:                                                       ": \"b\", entry 1 (\"hermse\"): unknown runtime \"hermse\"\nhint: did you mean hermes?",
		`[{"runtime": "hermes", "ref": "main"}]`:                                                                            `: entry 1 ("hermes"): "ref" is "main", not a full commit id: set it or "commit" to all 40 or 64 hexadecimal digits of a commit`,
		`[{"runtime": "hermes", "ref": 7}]`:                                                                                 `: entry 1 ("hermes"): "ref" is a number, not a string`,
		`{"a": [{"runtime": "hermes", "sha": "` + testSHA + `"}], "b": [{"runtime": "hermes", "ref": "` + otherSHA + `"}]}`: `: "a", entry 1 ("hermes") and "b", entry 1 ("hermes") have different commits for one runtime`,
		`{"hermes": 7}`:                 `: "hermes" is a number, not a string`,
		`{"hermes": "main"}`:            `: "hermes": "main" is not a commit id: use all 40 or 64 hexadecimal digits`,
		`{"hermse": "` + testSHA + `"}`: ": \"hermse\": unknown runtime \"hermse\"\nhint: did you mean hermes? the known runtimes are autogen",
		`{"hermes": "` + testSHA + `", "hermes": "` + testSHA + `"}`:                                          `: duplicate name "hermes"`,
		`[{"runtime": "hermes"}]`:                                                                             `: entry 1 ("hermes"): "commit" is missing`,
		`[{"runtime": "hermes", "Commit": "` + testSHA + `"}]`:                                                `: entry 1 ("hermes"): "commit" is missing`,
		`[{"runtime": "hermes", "commit": null}]`:                                                             `: entry 1 ("hermes"): "commit" is null, not a string`,
		`[{"runtime": "hermes", "commit": "` + testSHA[:39] + `"}]`:                                           `: entry 1 ("hermes"): "` + testSHA[:39] + `" is not a commit`,
		`[{"runtime": "hermes", "runtime": "codex", "commit": "` + testSHA + `"}]`:                            `: entry 1: duplicate name "runtime"`,
		`[{"runtime": "hermes", "commit": "` + testSHA + `", "sha": "` + otherSHA + `"}]`:                     `: entry 1 ("hermes"): both "commit" and "sha" are set`,
		`[{"runtime": "hermes", "sha": "` + testSHA + `"}, {"runtime": "hermes", "sha": "` + otherSHA + `"}]`: `: entry 1 ("hermes") and entry 2 ("hermes") have different commits for one runtime`,
		`["` + strings.Repeat("a", maxPins) + `"]`:                                                            `: the file is larger than 1.0 MiB`,
	} {
		f, path := &fakeClient{}, written(t, text)
		code, stdout, stderr := runFake(t, t.Context(), f, "ensure", "hermes", "--pins", path)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, "mol: --pins: "+path+want) {
			t.Errorf("%.200s: exit code %d, standard output %q, standard error:\n%s\nwant %s", text, code, stdout, stderr, want)
		}
	}
	for _, path := range []string{"", "/nowhere/pins.json", t.TempDir()} {
		code, _, stderr := runFake(t, t.Context(), &fakeClient{}, "ensure", "hermes", "--pins", path)
		if code != exitUsage || !strings.Contains(stderr, "mol: --pins: ") {
			t.Errorf("%q: exit code %d: %s", path, code, stderr)
		}
	}
}

// A token in the place of a runtime or a commit is masked in errors.
func TestTokenInArgumentsAndPinsIsMasked(t *testing.T) {
	const token = "n0t-f0r-l0gs"
	for _, args := range [][]string{
		{"ensure", "hermes@" + token},
		{"ensure", token},
		{"ensure", "hermes", "--pins", written(t, `{"hermes": "`+token+`"}`)},
		{"ensure", "hermes", "--pins", written(t, `[{"runtime": "`+token+`"}]`)},
	} {
		f := &fakeClient{}
		cleanEnv(t)
		t.Setenv(tokenEnv, token)
		code, stdout, stderr := runHere(t.Context(), f, args...)
		if code != exitUsage || strings.Contains(stdout+stderr, token) || !strings.Contains(stderr, "***") {
			t.Errorf("mol %s: exit code %d: %s%s", args, code, stdout, stderr)
		}
	}
}

// A pull cannot choose a commit.
func TestUpRejectsCommitWithRegistry(t *testing.T) {
	for _, args := range [][]string{
		{"up", "hermes@" + testSHA},
		{"up", "hermes", "--pins", written(t, `{"hermes": "`+testSHA+`"}`)},
	} {
		cleanEnv(t)
		t.Setenv("MOLECULE_IMAGE_REGISTRY", "registry.example.com/org")
		code, _, stderr := runHere(t.Context(), &fakeClient{}, args...)
		if code != exitUsage || !strings.Contains(stderr, "MOLECULE_IMAGE_REGISTRY is set") {
			t.Errorf("mol %s: exit code %d: %s", args, code, stderr)
		}
	}
}

func TestPinsTopic(t *testing.T) {
	code, stdout, _ := runFake(t, t.Context(), &fakeClient{}, "help", "pins")
	if code != 0 || strings.TrimSpace(stdout) != pinsText {
		t.Errorf("exit code %d:\n%s", code, stdout)
	}
	for line := range strings.Lines(pinsText) {
		if len(line) > 110 {
			t.Errorf("too long for a terminal: %s", line)
		}
	}
	// The examples in the text must work.
	examples := 0
	for _, example := range strings.Split(pinsText, "\n\n") {
		if strings.HasPrefix(example, "  ") {
			examples++
			f := &fakeClient{img: scriptImage()}
			code, _, stderr := runFake(t, t.Context(), f, "ensure", "hermes", "--pins", written(t, example))
			if code != 0 || len(f.opts.Pins) != 1 {
				t.Errorf("exit code %d, %v: %s", code, f.opts.Pins, stderr)
			}
		}
	}
	if examples == 0 {
		t.Error("the text has no example")
	}
}
