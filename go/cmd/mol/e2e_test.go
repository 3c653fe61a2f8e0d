package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/templateserver/server"
	"git.moleculesai.app/molecule-ai/libmol/go/workspace/workspacetest"
	"github.com/moby/moby/client"
	"golang.org/x/term"
)

// The tests in this file run the real program with the template server, which has
// Gitea's API, and the engine of MOL_TEST_ENGINE.

// A testEnv is the environment of a run of the program.
type testEnv struct {
	env       []string
	engine    *client.Client
	templates *server.Server
}

// newTestEnv creates an environment with its own isolation suffix, so that tests do
// not share images. The images are removed when the test ends.
func newTestEnv(t *testing.T) *testEnv {
	t.Helper()
	dir, err := prepareTemplates()
	if err != nil {
		t.Fatal(err)
	}
	return newTestEnvWith(t, server.Options{Templates: dir})
}

func newTestEnvWith(t *testing.T, options server.Options) *testEnv {
	t.Helper()
	host := os.Getenv("MOL_TEST_ENGINE")
	if host == "" {
		t.Fatal("MOL_TEST_ENGINE is not set: run `make test`, which starts a private engine")
	}
	templates, err := server.Start(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := templates.Close(); err != nil {
			t.Error(err)
		}
	})
	engine, err := client.New(client.WithHost(host))
	if err != nil {
		t.Fatal(err)
	}
	isolation := strings.ToLower(rand.Text())
	t.Cleanup(func() {
		removeImages(t, engine, isolation)
		_ = engine.Close()
	})

	env := []string{
		"MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX=" + templates.RepoPrefix(),
		"MOLECULE_LOCAL_BUILD_CACHE=" + t.TempDir(),
		"MOLECULE_LOCAL_IMAGE_ISOLATION=" + isolation,
		"DOCKER_HOST=" + host,
		"TERM=xterm-256color",
		"XDG_CONFIG_HOME=" + t.TempDir(), // not the developer's own settings
		"NO_PROXY=127.0.0.1",
	}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if !strings.HasPrefix(name, "MOLECULE_") && !strings.HasPrefix(name, "DOCKER_") && !slices.Contains([]string{"TERM", "XDG_CONFIG_HOME", "NO_PROXY", "NO_COLOR"}, name) {
			env = append(env, v)
		}
	}
	return &testEnv{env, engine, templates}
}

// prepareTemplates creates the sample templates, once for all tests.
var prepareTemplates = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(scratch, "templates")
	text, err := exec.Command("../../../examples/templates/prepare", dir).CombinedOutput()
	if err != nil {
		return "", errors.New(string(text))
	}
	return dir, nil
})

// program builds this package, once for all tests.
var program = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "mol")
	text, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", errors.New(string(text))
	}
	return path, nil
})

// scratch is a temporary folder that all tests share.
var scratch string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "mol-cmd-test-")
	if err != nil {
		panic(err)
	}
	scratch = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func removeImages(t *testing.T, engine *client.Client, isolation string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	list, err := engine.ImageList(ctx, client.ImageListOptions{})
	if err != nil {
		t.Error(err)
		return
	}
	for _, img := range list.Items {
		for _, ref := range img.RepoTags {
			if !strings.HasSuffix(ref, "--"+isolation) {
				continue
			}
			if _, err := engine.ImageRemove(ctx, ref, client.ImageRemoveOptions{PruneChildren: true}); err != nil {
				t.Errorf("remove image %s: %v", ref, err)
			}
		}
	}
}

// command returns a run of the program.
func (e *testEnv) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = e.env
	return cmd
}

// commandOn is command with s as its terminal.
func (e *testEnv) commandOn(t *testing.T, s *screen, args ...string) *exec.Cmd {
	t.Helper()
	cmd := e.command(t, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.tty, s.tty, s.tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return cmd
}

func (e *testEnv) run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := e.command(t, args...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	runErr := cmd.Run()
	if exit := (*exec.ExitError)(nil); runErr != nil && !errors.As(runErr, &exit) {
		t.Fatal(runErr)
	}
	return cmd.ProcessState.ExitCode(), out.String(), err.String()
}

// lastResult decodes the last line of standard output with --json.
func lastResult(t *testing.T, stdout string) result {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	var got result
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
		t.Fatalf("%v: %s", err, stdout)
	}
	return got
}

func TestEnsureEndToEnd(t *testing.T) {
	e := newTestEnv(t)

	code, stdout, stderr := e.run(t, "ensure", "claude-code")
	if code != 0 || !regexp.MustCompile(`^molecule-local/workspace-template-claude-code:[0-9a-f]{12}--\w+\n$`).MatchString(stdout) {
		t.Fatalf("exit code %d, standard output %q, standard error:\n%s", code, stdout, stderr)
	}
	if !strings.Contains(stderr, "fetched") || strings.Contains(stderr, "\x1b") {
		t.Errorf("standard error is not plain progress:\n%q", stderr)
	}

	code, again, _ := e.run(t, "ensure", "claude-code", "--json")
	got := lastResult(t, again)
	if code != 0 || !got.OK || got.CacheHit == nil || !*got.CacheHit || got.Ref != strings.TrimSpace(stdout) {
		t.Errorf("the second call: exit code %d, %s", code, again)
	}
	if strings.Contains(again, `"fetch_started"`) || strings.Contains(again, `"build_started"`) {
		t.Errorf("the second call fetched or built:\n%s", again)
	}
}

func TestFailuresEndToEnd(t *testing.T) {
	e := newTestEnv(t)
	tests := []struct {
		args []string
		code int
		want string // on standard error
	}{
		{[]string{"ensure", "codex"}, exitRefused, e.templates.RepoPrefix() + "codex"},
		{[]string{"ensure", "claude-code", "--branch", "nowhere"}, exitRefused, "nowhere"},
		{[]string{"ensure", "claude-code", "--repo-prefix", "http://127.0.0.1:1/org/tpl-"}, exitRepository, "http://127.0.0.1:1/org/tpl-claude-code"},
		{[]string{"ensure", "claude-code", "--docker-host", "unix:///nowhere/docker.sock"}, exitEngine, "/nowhere/docker.sock"},
		{[]string{"ensure", "claude-code", "--cache-dir", "/proc/nowhere"}, exitCache, "/proc/nowhere"},
		{[]string{"ensure", "claude-code", "--isolation", "NOT VALID"}, exitUsage, "note: --isolation sets MOLECULE_LOCAL_IMAGE_ISOLATION"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args[1:], " "), func(t *testing.T) {
			code, stdout, stderr := e.run(t, tt.args...)
			if code != tt.code || stdout != "" || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit code %d, standard output %q, standard error:\n%s\nwant exit code %d and %q", code, stdout, stderr, tt.code, tt.want)
			}
		})
	}
}

func TestUpEndToEnd(t *testing.T) {
	e := newTestEnv(t)
	cmd := e.command(t, "up", "claude-code", "--id", "mol-cmd-test-up")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	url, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("%v: %v\n%s", err, cmd.Wait(), stderr.String())
	}
	if health := get(t, strings.TrimSpace(url)+"/health"); !strings.Contains(health, `"runtime":"claude-code"`) {
		t.Errorf("the workspace answers %s", health)
	}

	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after ctrl-C: %v\n%s", err, stderr.String())
	}
	if _, err := e.engine.ContainerInspect(t.Context(), "workspace-mol-cmd-test-up", client.ContainerInspectOptions{}); err == nil {
		t.Error("the container was not removed")
	}
}

func TestUpWritesOneResultAsJSON(t *testing.T) {
	e := newTestEnv(t)
	const id = "mol-cmd-test-one-result"
	t.Cleanup(func() { e.down(t, id) })
	for end, want := range map[string]int{"ctrl-C": 0, "an exit by itself": exitWorkspace} {
		t.Run(end, func(t *testing.T) {
			cmd := e.command(t, "up", "claude-code", "--id", id, "--json")
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var started startedLine
			lines := bufio.NewScanner(stdout)
			for started.Kind != "started" && lines.Scan() {
				if err := json.Unmarshal(lines.Bytes(), &started); err != nil || started.Kind == "result" {
					t.Fatalf("%v: %s", err, lines.Text())
				}
			}
			if started.URL == "" || started.Runtime != "claude-code" {
				t.Errorf("started %+v", started)
			}
			if end == "ctrl-C" {
				err = cmd.Process.Signal(os.Interrupt)
			} else {
				_, err = e.engine.ContainerKill(t.Context(), started.ContainerID, client.ContainerKillOptions{Signal: "KILL"})
			}
			if err != nil {
				t.Fatal(err)
			}
			var rest []string
			for lines.Scan() {
				rest = append(rest, lines.Text())
			}
			_ = cmd.Wait()
			if len(rest) != 1 {
				t.Fatalf("%d lines after started, want 1: %q", len(rest), rest)
			}
			got := lastResult(t, rest[0])
			if code := cmd.ProcessState.ExitCode(); code != want || got.OK != (want == 0) || got.ExitCode != want || got.Kind != "result" {
				t.Errorf("exit code %d: %s", code, rest)
			}
		})
	}
}

func TestUpDetachedEndToEnd(t *testing.T) {
	e := newTestEnv(t)
	code, stdout, stderr := e.run(t, "up", "claude-code", "--detach", "--id", "mol-cmd-test-detached", "--env", "A=1", "--json")
	if code != 0 {
		t.Fatalf("exit code %d:\n%s%s", code, stdout, stderr)
	}
	got := lastResult(t, stdout)
	t.Cleanup(func() {
		_, err := e.engine.ContainerRemove(context.WithoutCancel(t.Context()), got.ContainerID, client.ContainerRemoveOptions{Force: true})
		if err != nil {
			t.Error(err)
		}
	})
	if health := get(t, got.HealthURL); got.ContainerName != "workspace-mol-cmd-test-detached" || !strings.Contains(health, "claude-code") {
		t.Errorf("%s answers %s", got.HealthURL, health)
	}
	found, err := e.engine.ContainerInspect(t.Context(), got.ContainerID, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(found.Container.Config.Env, "A=1") {
		t.Errorf("the container's environment is %q", found.Container.Config.Env)
	}
}

func TestUpPullsFromTheRegistryEndToEnd(t *testing.T) {
	e := newTestEnvWith(t, server.Options{})
	registry := workspacetest.Registry(t, "molecule", "let me in")
	dir := workspacetest.DockerConfig(t)
	workspacetest.Login(t, dir, registry, "molecule", "let me in")
	e.env = append(e.env, "MOLECULE_IMAGE_REGISTRY="+registry+"/org", "MOLECULE_IMAGE_PLATFORM=native", "DOCKER_CONFIG="+dir)
	ref := registry + "/org/workspace-template-hermes:latest"
	const id = "mol-cmd-test-pull"

	code, stdout, stderr := e.run(t, "up", "hermes", "--detach", "--id", id, "-e", "BEHAVIOUR=healthy")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	t.Cleanup(func() {
		e.down(t, id)
		if _, err := e.engine.ImageRemove(context.WithoutCancel(t.Context()), ref, client.ImageRemoveOptions{}); err != nil {
			t.Error(err)
		}
	})
	want := regexp.QuoteMeta(ref) + `: pulling the image\n(.*\n)*.*` + regexp.QuoteMeta(ref) + `: pulled \d+\.\d MiB in .*s\n.* start ` + regexp.QuoteMeta(ref) + `\n`
	if !regexp.MustCompile(want).MatchString(stderr) {
		t.Errorf("it shows\n%s", stderr)
	}
	if health := get(t, strings.TrimSpace(stdout)+"/health"); health == "" {
		t.Error("the workspace does not answer")
	}

	// The image has one program only.
	code, stdout, stderr = e.run(t, "shell", id)
	if code != exitInternal || stdout != "" || !strings.Contains(stderr, id+" has no shell: run a program that its image has: mol shell "+id+" -- PROGRAM") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}

	e.down(t, id)
	_, stdout, _ = e.run(t, "up", "hermes", "--detach", "--id", id, "-e", "BEHAVIOUR=healthy", "--json")
	if up := lastResult(t, stdout); !up.OK || up.Runtime != "hermes" || up.Ref != ref {
		t.Errorf("with --json: %s", stdout)
	}

	code, stdout, _ = e.run(t, "up", "openclaw", "--id", id+"-none", "--json")
	if code != exitBuild || !strings.Contains(stdout, `"code":"pull_failed"`) || !strings.Contains(stdout, "check MOLECULE_IMAGE_REGISTRY") {
		t.Errorf("exit code %d: %s", code, stdout)
	}
}

// Presses ctrl-C while the program waits for Gitea.
func TestCtrlCOnTerminal(t *testing.T) {
	e := newTestEnv(t)
	if err := e.templates.SetFaults(server.Fault{Match: "/api/v1/", Hang: true}); err != nil {
		t.Fatal(err)
	}
	s := newScreen(t, 100, 24)
	before, err := term.GetState(int(s.tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	cmd := e.commandOn(t, s, "ensure", "claude-code")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.shows(t, `. look up +[\d.]+s\n  `+regexp.QuoteMeta(e.templates.URL()))

	pressed := time.Now()
	s.press(t, '\x03')
	_ = cmd.Wait()
	if took := time.Since(pressed); took > 2*time.Second {
		t.Errorf("the program exited %s after ctrl-C", took)
	}
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	s.shows(t, `^mol: stopped: interrupt$`)
	after, err := term.GetState(int(s.tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if *before != *after {
		t.Error("the terminal's settings changed")
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestListAndPruneEndToEnd(t *testing.T) {
	e := newTestEnv(t)
	if code, _, stderr := e.run(t, "ensure", "claude-code"); code != 0 {
		t.Fatal(stderr)
	}
	code, stdout, stderr := e.run(t, "list")
	if code != 0 || !regexp.MustCompile(`(?m)^claude-code +[0-9a-f]{12} +linux/amd64 +.* latest$`).MatchString(stdout) {
		t.Errorf("mol list: exit code %d\n%s%s", code, stdout, stderr)
	}
	if !strings.Contains(stdout, "1 image, and 1 template in the cache (") {
		t.Errorf("mol list has no last line:\n%s", stdout)
	}
	code, stdout, stderr = e.run(t, "prune", "--keep", "0", "--dry-run")
	if code != 0 || !strings.Contains(stdout, "the tag latest points at it") || !strings.Contains(stdout, "dry run: nothing was removed; this would free ") {
		t.Errorf("mol prune --dry-run: exit code %d\n%s%s", code, stdout, stderr)
	}
	code, stdout, _ = e.run(t, "prune", "--keep", "0", "--keep-recent", "0", "--json")
	var got struct {
		OK     bool
		Images []mol.PrunedImage
		Trees  []mol.PrunedTree
	}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	if code != 0 || !got.OK || len(got.Images) != 1 || got.Images[0].Action != mol.PruneKept || len(got.Trees) != 1 || got.Trees[0].Action != mol.PruneRemoved {
		t.Errorf("mol prune --json: exit code %d, %s", code, stdout)
	}
	if code, _, stderr := e.run(t, "prune", "--docker-host", "unix:///nowhere/docker.sock"); code != exitEngine {
		t.Errorf("without an engine: exit code %d\n%s", code, stderr)
	}
	if code, _, stderr := e.run(t, "prune", "--keep", "-1"); code != exitUsage {
		t.Errorf("--keep -1: exit code %d\n%s", code, stderr)
	}
	if code, _, stderr := e.run(t, "prune", "--keep-recent", "-1s"); code != exitUsage {
		t.Errorf("--keep-recent -1s: exit code %d\n%s", code, stderr)
	}
}

func TestDoctorEndToEnd(t *testing.T) {
	e := newTestEnv(t)
	code, stdout, stderr := e.run(t, "doctor", "--verbose")
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d\n%s%s", code, stdout, stderr)
	}
	for _, want := range []string{
		`(?m)^ok       engine        unix://\S+ \(DOCKER_HOST\)$`,
		`(?m)^ok       claude-code   main at [0-9a-f]{12}$`,
		`(?m)^no problems \(libmol \S+\)$`,
	} {
		if !regexp.MustCompile(want).MatchString(stdout) {
			t.Errorf("no line %s in\n%s", want, stdout)
		}
	}
	if lines := strings.Count(stdout, "\n"); lines > 24 {
		t.Errorf("%d lines do not fit on a screen", lines)
	}

	code, stdout, _ = e.run(t, "doctor", "--json", "--docker-host", "unix:///nowhere/docker.sock")
	var got struct {
		OK       bool
		ExitCode int `json:"exit_code"`
		mol.Diagnosis
	}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	if code != exitProblem || got.OK || got.ExitCode != exitProblem || got.Checks[0].Status != mol.CheckProblem || got.Checks[0].Fix == "" {
		t.Errorf("without an engine: exit code %d, %s", code, stdout)
	}

	code, stdout, stderr = e.run(t, "doctor", "--platform", "nonsense")
	if code != exitProblem || !regexp.MustCompile(`problem  options       MOLECULE_IMAGE_PLATFORM is not a valid platform.*; --platform sets MOLECULE_IMAGE_PLATFORM\n`).MatchString(stdout) || stderr != "" {
		t.Errorf("with an invalid option: exit code %d\n%s%s", code, stdout, stderr)
	}
}

// Without an engine and without DNS, a screen of the usual size shows both causes.
func TestDoctorGroupsByCause(t *testing.T) {
	e := newTestEnv(t)
	e.env = append(e.env, "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX=https://git.invalid/org/tpl-", "DOCKER_HOST=unix:///nowhere/docker.sock")
	s := newScreen(t, 80, 24)
	cmd := e.commandOn(t, s, "doctor")
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != exitProblem {
		t.Errorf("exit code %d", code)
	}
	s.shows(t, `(?s)^problem  engine  .*fix: .*also affected: version, builder, platform, engine disk\n`+
		`problem  gitea  .*fix: .*also affected: clock, autogen,.*openclaw\nok       .*cache disk.*\n2 problems, \d warning`)

	_, stdout, _ := e.run(t, "doctor", "--verbose")
	if got := strings.Count(stdout, "problem  "); got < 11 || strings.Contains(stdout, "also affected") {
		t.Errorf("%d problems with --verbose:\n%s", got, stdout)
	}
}

// A terminal of the usual size shows the whole output.
func TestDoctorFitsOnScreen(t *testing.T) {
	e := newTestEnv(t)
	s := newScreen(t, 80, 24)
	cmd := e.commandOn(t, s, "doctor")
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	// Both the first and the last line are visible.
	s.shows(t, `(?s)^ok +engine, .*\nno problems`)
}

// ensured returns the result of `mol ensure … --json`, which must succeed.
func (e *testEnv) ensured(t *testing.T, args ...string) result {
	t.Helper()
	code, stdout, stderr := e.run(t, append([]string{"ensure", "--json"}, args...)...)
	got := lastResult(t, stdout)
	if code != 0 || got.CacheHit == nil {
		t.Fatalf("mol ensure %s: exit code %d\n%s%s", args, code, stdout, stderr)
	}
	return got
}

// commit adds a commit to the main branch of a runtime's template.
func (e *testEnv) commit(t *testing.T, runtime, content string) string {
	t.Helper()
	sha, err := e.templates.Commit("molecule-ai/"+server.RepoNamePrefix+runtime, server.Commit{
		Branch: "main", Files: map[string]server.File{
			"Dockerfile": {Text: "FROM scratch\nCOPY content /\n"}, "content": {Text: content},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return sha
}

func TestEnsureCommitEndToEnd(t *testing.T) {
	e := newTestEnv(t)
	isolation := e.value("MOLECULE_LOCAL_IMAGE_ISOLATION")
	old := e.commit(t, "hermes", "old")
	head := e.commit(t, "hermes", "head")

	// The commit is not the head of the branch.
	built := e.ensured(t, "hermes@"+strings.ToUpper(old))
	if *built.CacheHit || built.CommitSHA != old || built.Ref != "molecule-local/workspace-template-hermes:"+old[:12]+"--"+isolation {
		t.Errorf("the first call: %+v", built)
	}
	e.templates.ClearRequests()
	if again := e.ensured(t, "hermes@"+old); !*again.CacheHit || again.ImageID != built.ImageID {
		t.Errorf("the second call: %+v", again)
	}
	pins := written(t, `{"templates": [{"provider": "gitea", "runtime": "hermes", "commit": "`+old+`"}]}`)
	if pinned := e.ensured(t, "hermes", "--pins", pins); !*pinned.CacheHit || pinned.CommitSHA != old {
		t.Errorf("with --pins: %+v", pinned)
	}
	if requests := e.templates.Requests(); len(requests) > 0 {
		t.Errorf("a hit sent requests to Gitea: %v", requests)
	}
	if newest := e.ensured(t, "hermes"); newest.CommitSHA != head {
		t.Errorf("without a commit: %+v, want %s", newest, head)
	}
	if pinned := e.ensured(t, "hermes@"+head, "--pins", pins); pinned.CommitSHA != head {
		t.Errorf("a commit on the command line does not override --pins: %+v", pinned)
	}

	// The repository does not have this commit.
	code, _, stderr := e.run(t, "ensure", "hermes@"+testSHA)
	if code != exitRepository || !strings.Contains(stderr, testSHA[:12]) {
		t.Errorf("a missing commit: exit code %d\n%s", code, stderr)
	}
}

func TestUpCommitEndToEnd(t *testing.T) {
	e := newTestEnv(t)
	sha := e.ensured(t, "claude-code").CommitSHA
	e.commit(t, "claude-code", "a workspace that cannot start")
	code, stdout, stderr := e.run(t, "up", "claude-code@"+sha, "--detach", "--id", "mol-cmd-test-commit", "--json")
	if code != 0 {
		t.Fatalf("exit code %d:\n%s%s", code, stdout, stderr)
	}
	got := lastResult(t, stdout)
	if _, err := e.engine.ContainerRemove(t.Context(), got.ContainerID, client.ContainerRemoveOptions{Force: true}); err != nil {
		t.Error(err)
	}
	if got.CommitSHA != sha || !strings.Contains(got.Ref, sha[:12]) {
		t.Errorf("started %+v, want %s", got, sha)
	}
}

// All commands that list runtimes use the list of --runtimes.
func TestRuntimesEndToEnd(t *testing.T) {
	e := newTestEnv(t)
	sha := e.commit(t, "google-adk", "content")
	runtimes := []string{"--runtimes", "google-adk,claude-code"}
	with := func(args ...string) []string { return append(args, runtimes...) }

	built := e.ensured(t, with("google-adk", "--tag-arch", "always")...)
	isolation := e.value("MOLECULE_LOCAL_IMAGE_ISOLATION")
	name := "molecule-local/workspace-template-google-adk:"
	if built.Ref != name+sha[:12]+"-amd64--"+isolation || built.LatestRef != name+"latest--"+isolation {
		t.Errorf("built %+v", built)
	}
	for _, tt := range []struct {
		args         []string
		want, unless string // unless must not match without --runtimes
	}{
		{[]string{"list"}, `(?m)^google-adk +` + sha[:12], `google-adk`},
		{[]string{"prune", "--dry-run", "--keep-recent", "0"}, `(?m)^kept +image google-adk:` + sha[:12] + `-amd64--`, `google-adk`},
		{[]string{"doctor", "--verbose"}, `(?m)^ok +google-adk +main at ` + sha[:12], `google-adk`},
	} {
		if code, stdout, stderr := e.run(t, with(tt.args...)...); code != 0 || !regexp.MustCompile(tt.want).MatchString(stdout) {
			t.Errorf("mol %s: exit code %d\n%s%s\nwant %s", tt.args, code, stdout, stderr, tt.want)
		}
		if code, stdout, _ := e.run(t, tt.args...); code != 0 || regexp.MustCompile(tt.unless).MatchString(stdout) {
			t.Errorf("mol %s without the list: exit code %d\n%s", tt.args, code, stdout)
		}
	}
	if _, stdout, _ := e.run(t, with("doctor")...); strings.Contains(stdout, "hermes") {
		t.Errorf("mol doctor checks a runtime that is not on the list:\n%s", stdout)
	}
	if code, stdout, stderr := e.run(t, with("logs", "--build", "google-adk")...); code != 0 || !strings.Contains(stdout, sha[:12]) {
		t.Errorf("mol logs: exit code %d\n%s%s", code, stdout, stderr)
	}
}

// The rules for variables are in docs/local-development.md.
func TestVariablesEndToEnd(t *testing.T) {
	e := newTestEnv(t)
	dir := t.TempDir()
	isolation := e.value("MOLECULE_LOCAL_IMAGE_ISOLATION")
	e.env = append(e.env,
		"MOLECULE_LOCAL_BUILD_CACHE=some/cache", "MOLECULE_LOCAL_IMAGE_ISOLATION= "+isolation+"\t",
		"MOLECULE_BUILD_STALL_GRACE_S=4m", "MOLECULE_BUILD_CEILING_S=1h30m")
	in := func(args ...string) (string, error) {
		cmd := e.command(t, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := in("ensure", "claude-code"); err != nil || !strings.HasSuffix(strings.TrimSpace(out), "--"+isolation) {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := in("doctor", "--verbose"); err != nil || !strings.Contains(out, filepath.Join(dir, "some/cache")+": complete trees: 1;") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, bad := range []string{"4 m", "0", "-1", "4x", "9000h"} {
		e.env = append(e.env, "MOLECULE_BUILD_STALL_GRACE_S="+bad)
		if code, _, stderr := e.run(t, "ensure", "claude-code"); code != exitUsage || !strings.Contains(stderr, `MOLECULE_BUILD_STALL_GRACE_S is not a valid duration: "`+bad+`"`) {
			t.Errorf("%q: exit code %d\n%s", bad, code, stderr)
		}
	}
}
