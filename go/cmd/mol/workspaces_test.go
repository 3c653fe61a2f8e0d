package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/templateserver/server"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// newShellEnv is newTestEnv with a template that has a shell: busybox, as hermes. It writes a line, and after that serves
// the folder /data at port 8000.
func newShellEnv(t *testing.T, command string) *testEnv {
	t.Helper()
	templates := t.TempDir()
	folder := filepath.Join(templates, "hermes")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	dockerfile := "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n" +
		"EXPOSE 8000\nCMD " + command + "\n"
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	return newTestEnvWith(t, server.Options{Templates: templates})
}

// down removes a workspace at the end of a test.
func (e *testEnv) down(t *testing.T, id string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	if _, err := e.engine.ContainerRemove(ctx, "workspace-"+id, client.ContainerRemoveOptions{Force: true}); err != nil && !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

const serveData = `echo "the workspace starts"; exec httpd -f -p 8000 -h /data`

func TestWorkspaceCommandsEndToEnd(t *testing.T) {
	e := newShellEnv(t, serveData)
	const id = "mol-cmd-test-shell"
	t.Cleanup(func() { e.down(t, id) })
	// The only browser that there is.
	programs, opened := t.TempDir(), filepath.Join(t.TempDir(), "opened")
	script := "#!/bin/sh\necho \"$1\" > " + opened + "\n"
	if err := os.WriteFile(filepath.Join(programs, "xdg-open"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	e.env = append(e.env, "PATH="+programs+":"+os.Getenv("PATH"))
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "ready"), []byte("yes"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := []string{"up", "hermes", "--detach", "--id", id, "-v", data + ":/data:ro", "--health-path", "/ready", "-e", "A=b c"}

	code, url, stderr := e.run(t, up...)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	url = strings.TrimSpace(url)
	for _, want := range []string{"| the workspace starts", "mol open " + id, "mol logs -f " + id, "mol shell " + id, "mol down " + id} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not in\n%s", want, stderr)
		}
	}

	for name, c := range map[string]struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		"ps":                 {[]string{"ps"}, 0, `^NAME +URL +STATUS\n` + id + ` +` + regexp.QuoteMeta(url) + ` +Up .*\n$`, ``},
		"logs":               {[]string{"logs", id}, 0, `^the workspace starts\n$`, ``},
		"logs by runtime":    {[]string{"logs", "hermes"}, 0, `^the workspace starts\n$`, ``},
		"last lines":         {[]string{"logs", "--tail", "0", id}, 0, `^$`, ``},
		"build log":          {[]string{"logs", "--build", "hermes"}, 0, `(?s)building with .* done\n$`, ``},
		"the environment":    {[]string{"shell", id, "--", "sh", "-c", "echo $A"}, 0, `^b c\n$`, ``},
		"an exit code":       {[]string{"shell", id, "--", "sh", "-c", "echo no >&2; exit 7"}, 7, `^$`, `^no\n$`},
		"no such program":    {[]string{"shell", id, "--", "nosuch"}, 126, `nosuch`, ``},
		"no command":         {[]string{"shell", id, "--"}, exitUsage, `^$`, `the command after -- is missing`},
		"no dash":            {[]string{"shell", id, "env"}, exitUsage, `^$`, `put -- before the command`},
		"open":               {[]string{"open", id}, 0, `^` + regexp.QuoteMeta(url) + `\n$`, ``},
		"a taken name":       {up, exitName, `^$`, `the name is taken.*\nhint: .*--id, or remove that one: mol down ` + id},
		"no such workspace":  {[]string{"down", "nosuch"}, exitName, `^$`, `no such workspace: "nosuch"; mol ps lists the workspaces`},
		"a runtime's log":    {[]string{"logs", "langgraph"}, exitName, `^$`, `mol logs --build langgraph`},
		"which workspace":    {[]string{"down"}, exitUsage, `^$`, `name one workspace; mol ps lists the workspaces`},
		"a relative path":    {[]string{"up", "hermes", "-v", "x:y"}, exitUsage, `^$`, `--volume x:y: use folder:path`},
		"follow of a build":  {[]string{"logs", "--build", "hermes", "-f"}, exitUsage, `^$`, `--follow and --tail are for workspaces`},
		"output is not JSON": {[]string{"logs", id, "--json"}, exitUsage, `--json is only for --build`, `^$`},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := e.run(t, c.args...)
			if code != c.code || !regexp.MustCompile(c.stdout).MatchString(stdout) || !regexp.MustCompile(c.stderr).MatchString(stderr) {
				t.Errorf("mol %s: exit code %d\n%s\n%s", strings.Join(c.args, " "), code, stdout, stderr)
			}
		})
	}
	if got, err := os.ReadFile(opened); string(got) != url+"\n" {
		t.Errorf("the browser opened %q, %v", got, err)
	}

	var listed workspacesResult
	_, stdout, _ := e.run(t, "ps", "--json")
	if err := json.Unmarshal([]byte(stdout), &listed); err != nil || len(listed.Workspaces) != 1 {
		t.Fatalf("%v: %s", err, stdout)
	}
	if got := listed.Workspaces[0]; got.ID != id || got.Runtime != "hermes" || !got.Running || got.URL != url || got.Owner != owner() {
		t.Errorf("mol ps --json: %+v", got)
	}
	if resp, err := http.Get(url + "/ready"); err != nil {
		t.Error(err)
	} else {
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if string(body) != "yes" {
			t.Errorf("%s/ready is %q", url, body)
		}
	}
	if code, stdout, stderr := e.run(t, "down", "hermes"); code != 0 || !strings.Contains(stdout, id+" is removed") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	if code, stdout, _ := e.run(t, "ps"); code != 0 || stdout != "no workspaces; mol up RUNTIME starts one\n" {
		t.Errorf("exit code %d: %s", code, stdout)
	}
}

func TestWithoutAnEngineTheCommandsSayWhatToDo(t *testing.T) {
	e := newTestEnvWith(t, server.Options{})
	e.env = append(e.env, "DOCKER_HOST=unix:///nowhere/docker.sock")
	for _, args := range [][]string{{"ps"}, {"down", "x"}, {"logs", "x"}, {"shell", "x"}, {"open", "x"}} {
		code, stdout, stderr := e.run(t, args...)
		if code != exitEngine || stdout != "" || !strings.Contains(stderr, "no container engine answers: unix:///nowhere/docker.sock (DOCKER_HOST)") ||
			!strings.Contains(stderr, "hint: start Docker or Podman") {
			t.Errorf("mol %s: exit code %d: %s%s", strings.Join(args, " "), code, stdout, stderr)
		}
	}
}

// brokenCache is a library whose cache folder cannot be read.
type brokenCache struct{ fakeClient }

func (*brokenCache) List(context.Context) (mol.Inventory, error) {
	return mol.Inventory{}, &mol.Error{Code: mol.CodeCache, Message: "the cache folder is a file"}
}

func TestFindingTheEngineNeedsNoCache(t *testing.T) {
	cleanEnv(t)
	t.Setenv(hostEnv, "unix:///nowhere/docker.sock") // so that the library is asked
	a := &app{open: func(mol.Options) (library, error) { return &brokenCache{}, nil }}
	engine, err := a.findEngine(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = engine.Close()
}

func TestCompletionAsksTheEngineOfDockerHost(t *testing.T) {
	cleanEnv(t)
	f := &fakeClient{err: errors.New("no engine")}
	_, _, _ = runHere(t.Context(), f, "__complete", "down", "--docker-host", "unix:///nowhere/of-the-flag.sock", "")
	if f.opts.DockerHost != "unix:///nowhere/of-the-flag.sock" {
		t.Errorf("asked for %q", f.opts.DockerHost)
	}
}

func TestShellOnATerminal(t *testing.T) {
	e := newShellEnv(t, serveData)
	const id = "mol-cmd-test-tty"
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "index.html"), []byte("yes"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := e.run(t, "up", "hermes", "-d", "--id", id, "-v", data+":/data", "--health-path", "/"); code != 0 {
		t.Fatal(stderr)
	}
	t.Cleanup(func() { e.down(t, id) })
	s := newScreen(t, 90, 20)
	cmd := e.commandOn(t, s, "shell", id)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.shows(t, `/ #$`)
	s.enter(t, "until stty size | grep 90; do sleep 0.1; done; echo $TERM\n")
	s.shows(t, `\n20 90\nxterm-256color\n/ #$`)
	s.resize(t, 70, 10)
	s.enter(t, "clear; until stty size | grep 70; do sleep 0.1; done\n")
	s.shows(t, `10 70\n/ #$`)
	s.enter(t, "exit 3\n")
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
}

func TestAWorkspaceThatExitsShowsWhy(t *testing.T) {
	e := newShellEnv(t, `echo "no model is configured"; exit 3`)
	const id = "mol-cmd-test-exits"
	code, _, stderr := e.run(t, "up", "hermes", "--id", id)
	if code != exitWorkspace || !strings.Contains(stderr, "it exited with code 3") || !strings.Contains(stderr, "no model is configured") ||
		!strings.Contains(stderr, "--keep") {
		t.Errorf("exit code %d:\n%s", code, stderr)
	}
	if code, _, _ := e.run(t, "logs", id); code != exitName {
		t.Errorf("the container is left: exit code %d", code)
	}

	code, _, stderr = e.run(t, "up", "hermes", "--id", id, "--keep")
	t.Cleanup(func() { e.down(t, id) })
	if code != exitWorkspace || !strings.Contains(stderr, "mol logs "+id) {
		t.Errorf("exit code %d:\n%s", code, stderr)
	}
	if code, stdout, stderr := e.run(t, "logs", id); code != 0 || stdout != "no model is configured\n" {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	for _, args := range [][]string{{"open", id}, {"shell", id}} {
		if code, _, stderr := e.run(t, args...); code != exitWorkspace || !strings.Contains(stderr, "is not running (Exited (3)") {
			t.Errorf("%q: exit code %d: %s", args, code, stderr)
		}
	}
}

func TestCtrlCWithKeepSaysThatTheContainerIsLeft(t *testing.T) {
	e := newShellEnv(t, "echo waiting; sleep 60")
	const id = "mol-cmd-test-kept"
	cmd := e.command(t, "up", "hermes", "--id", id, "--keep")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.down(t, id) })
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.HasSuffix(lines.Text(), "| waiting") {
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(stderr)
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitSignal+int(syscall.SIGINT) || !strings.Contains(string(rest), "its container is kept: mol logs "+id) {
		t.Errorf("exit code %d: %s", code, rest)
	}
}

func TestOutputLinesSplitsAndLimitsLines(t *testing.T) {
	var lines []string
	out := &outputLines{to: func(line string) { lines = append(lines, line) }}
	for _, piece := range []string{"one\ntw", "o\n\x1b[31mthree", "\x1b[0m\n"} {
		_, _ = out.Write([]byte(piece))
	}
	if got := strings.Join(lines, "|"); got != "one|two|three" {
		t.Errorf("got %q", got)
	}
	_, _ = out.Write([]byte("four"))
	out.flush()
	if got := lines[len(lines)-1]; got != "four" || len(lines) != 4 {
		t.Errorf("the last line is %q of %q", got, lines)
	}
	for range 1000 {
		_, _ = out.Write([]byte(strings.Repeat("x", 100)))
	}
	if len(out.rest) > 32*longestLine {
		t.Errorf("%d bytes of an unfinished line are kept", len(out.rest))
	}
}
