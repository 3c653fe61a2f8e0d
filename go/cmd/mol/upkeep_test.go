package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

func TestPruneFlags(t *testing.T) {
	for args, want := range map[string]mol.PruneOptions{
		"prune":                    {KeepPerRuntime: 2, KeepRecent: 10 * time.Minute},
		"prune --keep 5 --dry-run": {KeepPerRuntime: 5, KeepRecent: 10 * time.Minute, DryRun: true},
		"prune --keep 0 -n":        {KeepPerRuntime: -1, KeepRecent: 10 * time.Minute, DryRun: true},
		"prune --keep-recent 1h":   {KeepPerRuntime: 2, KeepRecent: time.Hour},
		"prune --keep-recent 0":    {KeepPerRuntime: 2, KeepRecent: -1},
	} {
		f := &fakeClient{}
		if code, _, stderr := runFake(t, t.Context(), f, strings.Fields(args)...); code != 0 || f.pruned != want {
			t.Errorf("mol %s: exit code %d, %+v, want %+v\n%s", args, code, f.pruned, want, stderr)
		}
	}
}

func TestListAndPruneTables(t *testing.T) {
	hours := func(n int64) int64 { return time.Now().Unix() - n*3600 - 10 }
	newest := mol.LocalImage{
		Ref: testRef, Runtime: "hermes", Platform: "linux/amd64", CommitSHA: testSHA, CreatedUnix: hours(1),
		Bytes: 3 << 30, OwnBytes: 20 << 20, Latest: true, UsedBy: []string{"workspace-7"},
	}
	oldest := newest
	oldest.CommitSHA, oldest.CreatedUnix, oldest.Latest, oldest.UsedBy = "", hours(30), false, nil
	tree := mol.CachedTree{Path: "/cache/hermes/0123456789ab", Runtime: "hermes", Bytes: 306 << 10}
	_, list, _ := runFake(t, t.Context(), &fakeClient{inventory: mol.Inventory{
		Images: []mol.LocalImage{newest, oldest}, Trees: []mol.CachedTree{tree},
	}}, "list")
	golden(t, "list.txt", list)
	_, pruned, _ := runFake(t, t.Context(), &fakeClient{report: mol.PruneReport{
		FreedBytes: 20 << 20,
		Images: []mol.PrunedImage{
			{LocalImage: newest, Action: mol.PruneKept, Reason: "the tag latest points at it"},
			{LocalImage: oldest, Action: mol.PruneRemoved, Reason: "older than the newest 2\x1b[2J"},
		},
		Trees: []mol.PrunedTree{{CachedTree: tree, Action: mol.PruneRemoved, Reason: "older than the newest 2"}},
	}}, "prune")
	golden(t, "prune.txt", pruned)
}

func TestDoctorShowsFixes(t *testing.T) {
	f := &fakeClient{diagnosis: mol.Diagnosis{Version: "0.1.0", Status: mol.CheckProblem, Checks: []mol.Check{
		{Name: "engine", Status: mol.CheckOK, Found: "unix:///var/run/docker.sock (the default socket)"},
		{Name: "cache disk", Status: mol.CheckWarning, Found: "12 MiB free at /home", Fix: "free some space there"},
		{Name: "token", Status: mol.CheckProblem, Found: "set, but refused", Fix: "set another one"},
	}}}
	code, stdout, stderr := runFake(t, t.Context(), f, "doctor")
	if code != exitProblem || stderr != "" {
		t.Errorf("exit code %d, want %d; %s", code, exitProblem, stderr)
	}
	golden(t, "doctor.txt", stdout)
	f.diagnosis.Status, f.diagnosis.Checks = mol.CheckWarning, f.diagnosis.Checks[:2]
	if code, stdout, _ := runFake(t, t.Context(), f, "doctor", "--json"); code != 0 || !strings.HasPrefix(stdout, `{"kind":"result","ok":true,"exit_code":0,"version":"0.1.0","status":"warning",`) {
		t.Errorf("exit code %d\n%s", code, stdout)
	}
}

func TestLogsEndToEnd(t *testing.T) {
	e := newTestEnv(t)
	if code, stdout, stderr := e.run(t, "logs", "--build", "claude-code"); code != exitCache || stdout != "" || !strings.Contains(stderr, "no log of a build of claude-code") {
		t.Errorf("before a build: exit code %d\n%s%s", code, stdout, stderr)
	}
	if code, _, stderr := e.run(t, "ensure", "claude-code"); code != 0 {
		t.Fatal(stderr)
	}
	code, stdout, stderr := e.run(t, "logs", "--build", "claude-code")
	if code != 0 || !regexp.MustCompile(`(?s)^molecule-local/workspace-template-claude-code:.* building with .* done\n$`).MatchString(stdout) {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
	code, stdout, _ = e.run(t, "logs", "--build", "claude-code", "--json")
	var got mol.BuildLog
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != 0 || got.Runtime != "claude-code" || time.Since(got.Ended()) > time.Hour {
		t.Errorf("exit code %d, %v: %s", code, err, stdout)
	}
}

// Parses the text with Prometheus' own parser and checks it with promtool's linter.
func TestMetricsForPrometheus(t *testing.T) {
	e := newTestEnv(t)
	client, err := mol.New(mol.Options{
		RepoPrefix: e.templates.RepoPrefix(), CacheDir: t.TempDir(), Isolation: e.value("MOLECULE_LOCAL_IMAGE_ISOLATION"),
		DockerHost: e.value("DOCKER_HOST"),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	for _, runtime := range []string{"claude-code", "claude-code", "codex"} {
		_, _ = client.EnsureLocalImage(t.Context(), runtime)
	}
	snapshot, err := client.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := snapshot.WritePrometheus(&text); err != nil {
		t.Fatal(err)
	}

	problems, err := promlint.New(bytes.NewReader(text.Bytes())).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(&text)
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]float64{}
	for _, m := range families["mol_calls_total"].GetMetric() {
		calls[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
	}
	if calls["ok"] != 2 || calls["repo_not_found"] != 1 {
		t.Errorf("calls: %v", calls)
	}
	builds := families["mol_node_builds_total"].GetMetric()
	if len(builds) != 1 || builds[0].GetLabel()[0].GetValue() != "engine" || builds[0].GetCounter().GetValue() != 1 {
		t.Errorf("builds of nodes: %v", builds)
	}
	if hits := families["mol_hits_total"].GetMetric()[0].GetCounter().GetValue(); hits != 1 {
		t.Errorf("%v hits, want 1", hits)
	}
	steps := map[string]uint64{}
	for _, m := range families["mol_step_duration_seconds"].GetMetric() {
		steps[m.GetLabel()[0].GetValue()] = m.GetHistogram().GetSampleCount()
	}
	if steps["lookup"] != 3 || steps["build"] != 1 {
		t.Errorf("steps: %v", steps)
	}
	whole := families["mol_call_duration_seconds"].GetMetric()[0].GetHistogram()
	if whole.GetSampleCount() != 3 || whole.GetSampleSum() <= 0 || len(whole.GetBucket()) != 17 {
		t.Errorf("calls took %v", whole)
	}
}

// value returns a variable of the environment.
func (e *testEnv) value(name string) string {
	for _, v := range e.env {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// Lets a real bash complete command lines.
func TestCompletionInBash(t *testing.T) {
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	const ask = `
PATH=$1:$PATH
source <(mol completion bash) || exit 1
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
compopt() { :; } # only exists while readline completes
_get_comp_words_by_ref() { words=("${COMP_WORDS[@]}") cword=$COMP_CWORD cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}; }
__start_mol
printf '%s\n' "${COMPREPLY[@]}"
`
	for line, want := range map[string]string{
		"mol doc":             "doctor",
		"mol ensure her":      "hermes",
		"mol logs --build cl": "claude-code",
		"mol prune --dry":     "--dry-run",
		"mol completion z":    "zsh",
		"mol ensure --runtimes hermes,google-adk go": "google-adk",
		"mol logs --build --runtimes=google-adk go":  "google-adk",
		"mol ensure hermes --tag-arch al":            "always",
		"mol ensure --shar":                          "--shared-cache",
		"mol doctor --runt":                          "--runtimes",
	} {
		args := append([]string{"-c", ask, "bash", filepath.Dir(path)}, strings.Fields(line)...)
		out, err := exec.Command("bash", args...).CombinedOutput()
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
		if err != nil || first != want {
			t.Errorf("%s<tab> gives %q (%v), want %s", line, out, err, want)
		}
	}
	for _, shell := range []string{"zsh", "fish", "powershell"} {
		if out, err := exec.Command(path, "completion", shell).Output(); err != nil || !strings.Contains(string(out), "mol") {
			t.Errorf("mol completion %s: %v", shell, err)
		}
	}
}

// Formats the page with groff, which reports errors.
func TestManualPage(t *testing.T) {
	_, page, _ := runFake(t, t.Context(), &fakeClient{}, "man")
	file := filepath.Join(t.TempDir(), "mol.1")
	if err := os.WriteFile(file, []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("groff", "-man", "-ww", "-Tutf8", "-P-c", "-b", file)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil || complaints.Len() > 0 {
		t.Fatalf("groff: %v\n%s", err, complaints.String())
	}
	text := regexp.MustCompile(`.\x08`).ReplaceAllString(out.String(), "")
	for _, want := range []string{
		"mol - build workspace images and start workspaces", "mol ensure RUNTIME", "--dry-run", "-n, --dry-run",
		"MOLECULE_LOCAL_BUILD_CACHE", "MOLECULE_GITEA_TOKEN", "mol doctor found a problem", "mol completion bash", "--json",
		"mol ensure RUNTIME[@SHA]", "--tag-arch auto|always", "--shared-cache registry/path",
		"MOLECULE_LOCAL_SHARED_CACHE_MODE", "MOLECULE_BUILD_CEILING_S", `"workspace_templates": [`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not contain %q:\n%s", want, text)
		}
	}
}

// Engines do not report how much space the removal of an image frees.
func TestPruneEstimatesFreedSpace(t *testing.T) {
	image := func(action mol.PruneAction) []mol.PrunedImage {
		return []mol.PrunedImage{{Action: mol.PruneKept}, {Action: action}}
	}
	for want, report := range map[string]mol.PruneReport{
		"freed about 24 MiB": {FreedBytes: 24 << 20, Images: image(mol.PruneRemoved)},
		"freed 24 MiB":       {FreedBytes: 24 << 20, Images: image(mol.PruneUntagged)},
		"dry run: nothing was removed; this would free about 24 MiB": {
			DryRun: true, FreedBytes: 24 << 20, Images: image(mol.PruneRemoved),
		},
	} {
		if got := freed(report); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestTablesFitTheTerminal(t *testing.T) {
	for _, width := range []int{80, 200} {
		s := newScreen(t, width, 24)
		a := &app{stdout: s.tty, stderr: s.tty}
		image := mol.PrunedImage{Action: mol.PruneKept, LocalImage: mol.LocalImage{Ref: testRef, OwnBytes: 3 << 30}}
		image.Reason = "a container uses it: " + strings.Repeat("workspace-7, ", 20)
		if err := a.printPruned(mol.PruneReport{Images: []mol.PrunedImage{image}}); err != nil {
			t.Fatal(err)
		}
		s.shows(t, `^ACTION +WHAT +SIZE +WHY\nkept +image hermes:0123456789ab +3.0 GiB +a container uses it: workspace-.*…\nfreed`)
	}
}
