package provisioner

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"git.moleculesai.app/molecule-ai/libmol/go/workspace/workspacetest"
)

const guide = "../../../docs/integration.md"

// guideFiles returns the Go blocks of the guide. Each is a whole file that begins with "package server // name".
func guideFiles(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^```go\n(.*?)^```$")
	first := regexp.MustCompile(`^package server // (\w+\.go)\n`)
	files := map[string]string{}
	for _, found := range block.FindAllStringSubmatch(string(text), -1) {
		name := first.FindStringSubmatch(found[1])
		if name == nil {
			t.Fatalf("a Go block of %s does not begin with its package and its file name:\n%s", guide, found[1])
		}
		if files[name[1]] != "" {
			t.Fatalf("%s has two blocks named %s", guide, name[1])
		}
		files[name[1]] = found[1]
	}
	if blocks := strings.Count(string(text), "```go\n"); len(files) != blocks || blocks < 5 {
		t.Fatalf("%s has %d Go blocks, but this test found %d", guide, blocks, len(files))
	}
	return files
}

// guideWorkspace returns the go.work of the guide.
func guideWorkspace(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^    go [0-9.]+\n(\n|    .*\n)+`).Find(text)
	if found == nil {
		t.Fatalf("%s has no go.work", guide)
	}
	return strings.ReplaceAll(string(found), "    ", "")
}

// TestGuideCompilesAndRuns creates the folders of the guide: libmol and the server beside it, with the guide's go.work
// above both. The server has the guide's files, the tests of testdata/guide and this example's dependencies. It runs the
// tests of the server against the engine of MOL_TEST_ENGINE.
func TestGuideCompilesAndRuns(t *testing.T) {
	workspacetest.LoadImage(t, workspacetest.Engine(t), testImage) // for the container that the guide creates
	root := t.TempDir()
	folder := filepath.Join(root, "server")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(folder, os.DirFS("testdata/guide")); err != nil {
		t.Fatal(err)
	}
	for name, text := range guideFiles(t) {
		write(name, text)
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		write(name, string(text))
	}
	write("../go.work", guideWorkspace(t))
	repository, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(repository, filepath.Join(root, "libmol")); err != nil {
		t.Fatal(err)
	}

	run := func(program string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Dir = folder
		cmd.Env = append(os.Environ(), "GOWORK="+filepath.Join(root, "go.work"), "PWD="+folder, "MOL_TEST_IMAGE="+testImage)
		output, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s in the guide's package: %v\n%s", program, strings.Join(args, " "), err, output)
		}
		return string(output)
	}
	const modules = "git.moleculesai.app/molecule-ai/libmol/go/"
	run("go", "mod", "edit", "-dropreplace", modules+"mol", "-dropreplace", modules+"workspace", "-droprequire", modules+"workspace")
	if unformatted := run("gofmt", "-l", "."); unformatted != "" {
		t.Errorf("gofmt would change in %s: %s", guide, unformatted)
	}
	run("go", "vet", ".")
	output := run("go", "test", "-count=1", "-v", ".")
	for _, test := range []string{"TestImageForBuildsLocally", "TestConnect", "TestCreateContainer"} {
		if !strings.Contains(output, "--- PASS: "+test) {
			t.Errorf("%s did not run:\n%s", test, output)
		}
	}
}

// TestREADMECompiles vets the Go file of the README in this module.
func TestREADMECompiles(t *testing.T) {
	text, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```go\n(.*?)^```$").FindAllStringSubmatch(string(text), -1)
	if len(blocks) != 1 {
		t.Fatalf("the README has %d Go blocks, want 1", len(blocks))
	}
	file := filepath.Join(t.TempDir(), "readme.go")
	if err := os.WriteFile(file, []byte(blocks[0][1]), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"gofmt", "-d"}, {"go", "vet"}} {
		output, err := exec.CommandContext(t.Context(), args[0], append(args[1:], file)...).CombinedOutput()
		if err != nil || len(output) > 0 {
			t.Errorf("%s: %v\n%s", args[0], err, output)
		}
	}
}
