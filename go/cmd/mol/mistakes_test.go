package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"git.moleculesai.app/molecule-ai/libmol/go/templateserver/server"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// A mistake is a row of docs/errors.md, which this test writes with -update.
type mistake struct {
	what string   // what is done wrong, for people
	args []string // of mol
	env  []string
	// files is a new commit of hermes' template.
	files map[string]string
	// before prepares the rest.
	before func(t *testing.T, e *testEnv)
	code   int
}

const takenID = "mol-cmd-test-taken"

func mistakes(dir string) []mistake {
	ensure := []string{"ensure", "hermes"}
	return []mistake{
		{what: "A runtime is misspelt", args: []string{"ensure", "claude-cod"}, code: exitUsage},
		{what: "The runtime is forgotten", args: []string{"ensure", "--runtimes", "hermes,codex"}, code: exitUsage},
		{what: "A flag is misspelt", args: []string{"ensure", "hermes", "--plattform", "linux/amd64"}, code: exitUsage},
		{what: "The platform is incomplete", args: []string{"ensure", "hermes", "--platform", "linux/amd"}, code: exitUsage},
		{what: "A duration is misspelt", args: ensure, env: []string{"MOLECULE_BUILD_CEILING_S=30min"}, code: exitUsage},
		{what: "A commit is too short", args: []string{"ensure", "hermes@0123"}, code: exitUsage},
		{what: "A setting is misspelt in mol.toml", args: ensure, code: exitUsage, before: func(t *testing.T, e *testEnv) {
			write(t, filepath.Join(e.value("XDG_CONFIG_HOME"), "molecule", "mol.toml"), "platfrom = \"linux/arm64\"\n")
		}},
		{what: "A project's file names an engine", args: ensure, code: exitUsage, before: func(t *testing.T, _ *testEnv) {
			write(t, filepath.Join(dir, projectFile), "docker-host = \"tcp://10.0.0.1:2375\"\n")
		}},
		{what: "The engine does not run", args: ensure, env: []string{"DOCKER_HOST=unix:///nowhere/docker.sock"}, code: exitEngine},
		{what: "The engine's address is an HTTPS URL without TLS files", args: ensure, env: []string{"DOCKER_HOST=https://10.0.0.1"}, code: exitUsage},
		{what: "The host of the template server does not exist", args: []string{"ensure", "hermes", "--repo-prefix", "https://git.invalid/org/tpl-"}, code: exitRepository},
		{what: "The proxy is not there", args: ensure, env: []string{"NO_PROXY=", "HTTP_PROXY=http://127.0.0.1:1", "HTTPS_PROXY=http://127.0.0.1:1",
			"MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX=https://git.invalid/org/tpl-"}, code: exitRepository},
		{what: "A bundle of certificates does not exist", args: ensure, env: []string{"SSL_CERT_FILE=/nowhere/ca.pem", "SSL_CERT_DIR=",
			"MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX=https://git.invalid/org/tpl-"}, code: exitUsage},
		{what: "The registry of MOLECULE_IMAGE_REGISTRY cannot be reached", args: []string{"up", "hermes", "--id", "demo"},
			env: []string{"MOLECULE_IMAGE_REGISTRY=127.0.0.1:1/org"}, code: exitBuild},
		{what: "A runtime has no repository", args: []string{"ensure", "codex"}, code: exitRefused},
		{what: "The token is wrong", args: ensure, env: []string{"MOLECULE_GITEA_TOKEN=another-t0ken"}, code: exitRefused, before: func(t *testing.T, e *testEnv) {
			refuse := server.Fault{Match: "/api/v1/", Status: 401, Body: `{"message":"invalid username, password or token"}`}
			if err := e.templates.SetFaults(refuse); err != nil {
				t.Fatal(err)
			}
		}},
		{what: "A branch does not exist", args: []string{"ensure", "hermes", "--branch", "mian"}, code: exitRefused},
		{what: "The template has no Dockerfile", args: ensure, files: map[string]string{"README": "x"}, code: exitBuild},
		{what: "The Dockerfile has an unknown instruction", args: ensure, files: map[string]string{"Dockerfile": "FROM scratch\nCOPPY . .\n"}, code: exitBuild},
		{what: "A file to copy does not exist", args: ensure, files: map[string]string{"Dockerfile": "FROM scratch\nENV A=b\nCOPY aap.py /\nENV C=d\n"}, code: exitBuild},
		{what: "The registry of the base image cannot be reached", args: ensure, files: map[string]string{"Dockerfile": "FROM 127.0.0.1:1/team/base:1\nRUN make\n"}, code: exitBuild},
		{what: "Nothing was built before going offline", args: []string{"ensure", "hermes", "--offline"}, code: exitEngine},
		{what: "The cache is a file", args: ensure, code: exitCache, before: func(t *testing.T, e *testEnv) {
			write(t, filepath.Join(dir, "cache"), "")
			e.env = append(e.env, "MOLECULE_LOCAL_BUILD_CACHE="+filepath.Join(dir, "cache"))
		}},
		{what: "The name of a workspace is taken", args: []string{"up", "hermes", "--id", takenID}, code: exitName, before: func(t *testing.T, e *testEnv) {
			code, ref, stderr := e.run(t, "ensure", "hermes")
			if code != 0 {
				t.Fatal(stderr)
			}
			other := client.ContainerCreateOptions{Name: "workspace-" + takenID, Config: &container.Config{Image: strings.TrimSpace(ref)}}
			if _, err := e.engine.ContainerCreate(t.Context(), other); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { e.down(t, takenID) })
		}},
		{what: "The program of a workspace cannot be started", args: []string{"up", "hermes", "--id", "mol-cmd-test-exits"}, code: exitWorkspace,
			files: map[string]string{"Dockerfile": "FROM scratch\nCOPY x /\nEXPOSE 8000\nCMD [\"/x\"]\n", "x": "not a program"}},
		{what: "There is no such workspace", args: []string{"down", "hermse"}, code: exitName},
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// errorsHead is the beginning of docs/errors.md.
const errorsHead = `# Mistakes and what is shown

Each of these mistakes is made by a test, with the command ` + "`mol`" + `, a template server and an engine. The test writes this
table: after ` + "`make lib`, with `MOL_TEST_ENGINE` set, `go test -run Mistakes -update`" + ` in go/cmd/mol. Addresses, folders
and commits are examples, and "…" is the engine's own text. The codes of errors are in
[local-development.md](local-development.md#errors).

| what is done | exit code | what is shown |
| --- | --- | --- |
`

func TestMistakesShowTheDocumentedMessages(t *testing.T) {
	dir := t.TempDir()
	var table strings.Builder
	table.WriteString(errorsHead)
	for _, m := range mistakes(dir) {
		t.Run(m.what, func(t *testing.T) {
			e := newTestEnvWith(t, server.Options{})
			files := map[string]server.File{"Dockerfile": {Text: "FROM scratch\nCOPY Dockerfile /\nEXPOSE 8000\nCMD [\"/x\"]\n"}}
			if m.files != nil {
				clear(files)
				for name, text := range m.files {
					files[name] = server.File{Text: text}
				}
			}
			if _, err := e.templates.Commit("molecule-ai/"+server.RepoNamePrefix+"hermes", server.Commit{Branch: "main", Files: files}); err != nil {
				t.Fatal(err)
			}
			e.env = append(e.env, m.env...)
			if m.before != nil {
				m.before(t, e)
			}
			cmd := e.command(t, m.args...)
			cmd.Dir = dir
			var stderr strings.Builder
			cmd.Stderr = &stderr
			_ = cmd.Run()
			_ = os.Remove(filepath.Join(dir, projectFile))
			if code := cmd.ProcessState.ExitCode(); code != m.code {
				t.Errorf("exit code %d, want %d", code, m.code)
			}
			_, shown, found := strings.Cut("\n"+stderr.String(), "\nmol: ")
			if !found {
				t.Fatalf("no message in\n%s", stderr.String())
			}
			table.WriteString("| " + m.what + ": " + code(commandLine(m)) + " | " + strconv.Itoa(m.code) + " | " +
				cell(normalized(e, dir, "mol: "+shown)) + " |\n")
		})
	}
	golden(t, "../../../../docs/errors.md", table.String())
}

// commandLine is what a person types.
func commandLine(m mistake) string {
	var words []string
	for _, v := range m.env {
		if !strings.HasSuffix(v, "=") && !strings.HasPrefix(v, "HTTP_PROXY") {
			words = append(words, v)
		}
	}
	return strings.Join(append(append(words, "mol"), m.args...), " ")
}

// normalized replaces what differs in every run.
func normalized(e *testEnv, dir, text string) string {
	for _, r := range [][2]string{
		{regexp.QuoteMeta(e.templates.URL()), "https://git.example.com"},
		{regexp.QuoteMeta(e.value("XDG_CONFIG_HOME")), "/home/me/.config"},
		{regexp.QuoteMeta(dir), "/home/me/project"},
		{regexp.QuoteMeta(e.value("DOCKER_HOST")), "unix:///var/run/docker.sock"},
		{"--" + regexp.QuoteMeta(e.value("MOLECULE_LOCAL_IMAGE_ISOLATION")), ""},
		{`\b[0-9a-f]{12}\b`, "0123456789ab"},
		// The words of the engine differ with its version.
		{`(\(line \d+ of the Dockerfile\)|the build failed|did not become ready: start container): [^\n]*`, "$1: …"},
	} {
		text = regexp.MustCompile(r[0]).ReplaceAllString(text, r[1])
	}
	return text
}

// code marks a text as code in Markdown.
func code(text string) string {
	return "`" + strings.ReplaceAll(text, "|", `\|`) + "`"
}

// cell is a text of several lines in a cell of a table.
func cell(text string) string {
	var lines []string
	for line := range strings.Lines(strings.TrimSpace(text)) {
		lines = append(lines, code(strings.TrimRight(line, "\n")))
	}
	return strings.Join(lines, "<br>")
}
