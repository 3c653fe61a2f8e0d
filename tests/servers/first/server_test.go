package first

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/templateserver/server"
)

// runtime is the runtime of these tests. Only these tests build images of this runtime without an isolation.
const runtime = "autogen"

func TestBuildHitAndRebuild(t *testing.T) {
	templates := environment(t)
	logged := logs(t)
	first := commit(t, templates, "first")

	built := image(t, runtime)
	if built.Pull || built.Ref != "molecule-local/workspace-template-autogen:"+first[:12] || built.Ref != mol.LocalImageTag(runtime, first) {
		t.Errorf("built %+v from %s", built, first)
	}
	if got := docker(t, "image", "inspect", "--format", "{{.Os}}/{{.Architecture}}", built.Ref); got != "linux/amd64" {
		t.Errorf("the image is for %s", got)
	}
	if _, err := os.Stat("cache/autogen/" + first[:12] + "/Dockerfile"); err != nil {
		t.Errorf("the relative cache folder: %v", err)
	}
	logged.has(t, "main is at "+first[:12], "fetching "+first[:12], "building with ", built.Ref+" is ready")

	templates.ClearRequests()
	if hit := image(t, runtime); hit != built {
		t.Errorf("a hit is %+v, want %+v", hit, built)
	}
	if requests := templates.Requests(); len(requests) != 1 {
		t.Errorf("a hit must only request the branch, got %+v", requests)
	}
	logged.has(t, built.Ref+" exists")

	second := commit(t, templates, "second")
	if next := image(t, runtime); next.Ref != mol.LocalImageTag(runtime, second) || next == built {
		t.Errorf("built %+v from %s", next, second)
	}
	if latest := imageID(t, mol.LocalImageLatestTag(runtime)); latest != imageID(t, mol.LocalImageTag(runtime, second)) {
		t.Errorf("%s is still the image of the first commit", mol.LocalImageLatestTag(runtime))
	}
}

func TestUnknownRuntimeIsRefused(t *testing.T) {
	templates := environment(t)
	for _, registry := range []string{"", "registry.example.com/org"} {
		t.Setenv("MOLECULE_IMAGE_REGISTRY", registry)
		for _, name := range []string{"autogne", "Autogen", "autogen ", "../autogen", ""} {
			if found, err := ImageFor(t.Context(), name); err == nil || !strings.Contains(err.Error(), "unknown runtime") {
				t.Errorf("%q: %+v, %v", name, found, err)
			}
		}
	}
	if requests := templates.Requests(); len(requests) > 0 {
		t.Errorf("requests to Gitea: %+v", requests)
	}
}

func TestRegistryImagesAreNotBuilt(t *testing.T) {
	t.Setenv("MOLECULE_IMAGE_REGISTRY", "registry.example.com/org")
	before := ensureLocalImageHook
	t.Cleanup(func() { ensureLocalImageHook = before })
	ensureLocalImageHook = func(context.Context, string) (string, error) {
		return "", errors.New("the hook was called")
	}
	found, err := ImageFor(t.Context(), runtime)
	if want := (Image{Ref: "registry.example.com/org/workspace-template-autogen:latest", Pull: true}); err != nil || found != want {
		t.Errorf("%+v, %v; want %+v", found, err, want)
	}
}

// environment sets the variables of an operator: Gitea, cache folder and engine.
func environment(t *testing.T) *server.Server {
	t.Helper()
	templates, err := server.Start(server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = templates.Close() })
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", templates.RepoPrefix())
	t.Setenv("MOLECULE_LOCAL_BUILD_CACHE", "cache")
	t.Setenv("DOCKER_HOST", requiredEnv(t, "MOL_TEST_ENGINE"))
	return templates
}

// TestMain runs the tests in a temporary folder, which contains the relative cache folder: libmol resolves it against
// the working directory of its first call.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "mol-first-server-")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err == nil {
		err = os.Chdir(dir)
	}
	if err != nil {
		log.Fatal(err)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// commit pushes a unique commit as the head of the template, and removes its images when the test ends.
func commit(t *testing.T, templates *server.Server, content string) string {
	t.Helper()
	sha, err := templates.Commit("molecule-ai/"+server.RepoNamePrefix+runtime, server.Commit{
		Branch: "main", Files: map[string]server.File{
			"Dockerfile": {Text: "FROM scratch\nCOPY content /\n"},
			"content":    {Text: content + rand.Text()},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, ref := range []string{mol.LocalImageTag(runtime, sha), mol.LocalImageLatestTag(runtime)} {
			_ = exec.Command(requiredEnv(t, "MOL_TEST_DOCKER"), "--host", requiredEnv(t, "MOL_TEST_ENGINE"), "image", "rm", ref).Run()
		}
	})
	return sha
}

func image(t *testing.T, runtime string) Image {
	t.Helper()
	found, err := ImageFor(t.Context(), runtime)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func imageID(t *testing.T, ref string) string {
	t.Helper()
	return docker(t, "image", "inspect", "--format", "{{.Id}}", ref)
}

// docker runs the docker command on the test engine.
func docker(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(requiredEnv(t, "MOL_TEST_DOCKER"), append([]string{"--host", requiredEnv(t, "MOL_TEST_ENGINE")}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("docker %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

func requiredEnv(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set: run `tests/run go`", name)
	}
	return value
}

func logs(t *testing.T) *logBuffer {
	t.Helper()
	b := new(logBuffer)
	before := log.Writer()
	log.SetOutput(io.MultiWriter(b, t.Output()))
	t.Cleanup(func() { log.SetOutput(before) })
	return b
}

func (b *logBuffer) has(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(b.String(), line) {
			t.Errorf("not logged: %s", line)
		}
	}
}

// A logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
