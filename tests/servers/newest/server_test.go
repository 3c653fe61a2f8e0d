package newest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/templateserver/server"
)

func TestBuildHitAndRebuild(t *testing.T) {
	env := newTestEnv(t)
	first := env.commit("claude-code", "v1.2.3\n")
	s := env.server()

	built := env.create(s, "claude-code")
	if built.Ref != env.ref("claude-code", first[:12]+"-"+runtime.GOARCH) || built.LatestRef != env.ref("claude-code", "latest") || built.CacheHit {
		t.Errorf("built %+v from %s", built, first)
	}
	if o := options(nil); built.Ref != o.LocalImageTag("claude-code", first) || built.LatestRef != o.LocalImageLatestTag("claude-code") {
		t.Errorf("the options give %s, %s", o.LocalImageTag("claude-code", first), o.LocalImageLatestTag("claude-code"))
	}
	if built.Platform != "linux/"+runtime.GOARCH {
		t.Errorf("the platform for the container is %s", built.Platform)
	}
	if version := env.inspect(built.Ref, `{{index .Config.Labels "version"}}`); version != "1.2.3" {
		t.Errorf("RUNTIME_VERSION was %q", version)
	}
	env.logged("INFO", "main is at "+first[:12], "must be built", "fetching "+first[:12], "building with ", built.Ref+" is ready")

	if hit := env.create(s, "claude-code"); !hit.CacheHit || hit.ImageID != built.ImageID {
		t.Errorf("a hit is %+v", hit)
	}
	env.logged("INFO", built.Ref+" exists")

	// An empty .runtime-version pins nothing and causes no warning.
	second := env.commit("claude-code", "\n")
	next := env.create(s, "claude-code")
	if next.CommitSHA != second || next.ImageID == built.ImageID {
		t.Errorf("a new commit is %+v, want %s", next, second)
	}
	if version := env.inspect(next.Ref, `{{index .Config.Labels "version"}}`); version != "" {
		t.Errorf("RUNTIME_VERSION was %q", version)
	}
	if latest := env.inspect(next.LatestRef, "{{.Id}}"); latest != next.ImageID {
		t.Errorf("%s is still %s", next.LatestRef, latest)
	}
	if strings.Contains(env.log.String(), "WARN") {
		t.Error("there is a warning")
	}
}

func TestPinnedCommitReplacesTheBranchHead(t *testing.T) {
	env := newTestEnv(t)
	pinned := env.commit("hermes", "1.0")
	head := env.commit("hermes", "2.0")
	s := env.server(Pin{Provider: "gitea", Runtime: "hermes", Commit: pinned})

	built := env.create(s, "hermes")
	if built.CommitSHA != pinned || built.Ref != env.ref("hermes", pinned[:12]+"-"+runtime.GOARCH) {
		t.Errorf("built %+v, want %s", built, pinned)
	}
	env.templates.ClearRequests()
	if hit := env.create(s, "hermes"); !hit.CacheHit || hit.ImageID != built.ImageID {
		t.Errorf("a hit is %+v", hit)
	}
	if requests := env.templates.Requests(); len(requests) > 0 {
		t.Errorf("a hit of a pinned commit sent requests to Gitea: %+v", requests)
	}

	// A given commit takes precedence over the manifest.
	made, err := s.CreateAt(t.Context(), "hermes", head)
	env.remove(made)
	if err != nil || made.Image.CommitSHA != head {
		t.Errorf("%+v, %v; want %s", made, err, head)
	}
	_, err = s.CreateAt(t.Context(), "hermes", head[:12])
	if !errors.Is(err, mol.ErrInvalidArgument) {
		t.Errorf("a short commit: %v", err)
	}
	if _, err := New([]Pin{{"gitea", "google-adk", pinned}}); !errors.Is(err, mol.ErrInvalidOption) {
		t.Errorf("a manifest for a runtime that is not on the list: %v", err)
	}
}

// An image with a tag of these conventions is used as it is: an earlier server or a colleague may have built it.
func TestImageTaggedByAnotherToolIsAHit(t *testing.T) {
	env := newTestEnv(t)
	sha := env.commit("codex", "1.0")
	ref := env.ref("codex", sha[:12]+"-"+runtime.GOARCH)
	id := env.importUnrelated(ref)

	found := env.create(env.server(), "codex")
	if !found.CacheHit || found.Ref != ref || found.ImageID != id {
		t.Errorf("found %+v, want %s, %s", found, ref, id)
	}
	if latest := env.inspect(env.ref("codex", "latest"), "{{.Id}}"); latest != id {
		t.Errorf("latest is %s", latest)
	}
	env.logged("INFO", ref+" exists")
	if strings.Contains(env.log.String(), "fetching") {
		t.Error("something was fetched")
	}
}

func TestUnknownRuntimeIsRefused(t *testing.T) {
	env := newTestEnv(t)
	s := env.server()
	for name, hint := range map[string]string{
		"langgraph": "the known runtimes are claude-code, codex, hermes, openclaw", // only in the default list
		"hermse":    "did you mean hermes? the known runtimes are claude-code, codex, hermes, openclaw",
	} {
		_, err := s.Create(t.Context(), name)
		if !errors.Is(err, mol.ErrUnknownRuntime) || !strings.Contains(err.Error(), `unknown runtime "`+name+`"; `+hint) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if requests := env.templates.Requests(); len(requests) > 0 {
		t.Errorf("requests to Gitea: %+v", requests)
	}
}

func TestPlatformVariableOverridesTheServerDefault(t *testing.T) {
	env := newTestEnv(t)
	t.Setenv("MOLECULE_IMAGE_PLATFORM", "linux/arm/v7")
	// The variant is dropped.
	if ref := options(nil).LocalImageTag("hermes", "0123456789abcdef"); ref != env.ref("hermes", "0123456789ab-arm") {
		t.Error(ref)
	}
	t.Setenv("MOLECULE_IMAGE_PLATFORM", "arm")
	if _, err := New(nil); !errors.Is(err, mol.ErrInvalidOption) || !strings.Contains(err.Error(), "MOLECULE_IMAGE_PLATFORM") {
		t.Errorf("an invalid platform: %v", err)
	}
}

// A testEnv is the environment of one test: Gitea, cache folder, isolation on the test engine, and log.
type testEnv struct {
	*testing.T
	templates *server.Server
	isolation string
	log       *logBuffer
}

func newTestEnv(t *testing.T) *testEnv {
	t.Helper()
	templates, err := server.Start(server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	env := &testEnv{t, templates, strings.ToLower(rand.Text()), new(logBuffer)}
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", templates.RepoPrefix())
	t.Setenv("MOLECULE_LOCAL_BUILD_CACHE", t.TempDir())
	t.Setenv("MOLECULE_LOCAL_IMAGE_ISOLATION", " "+env.isolation+"\n")
	t.Setenv("DOCKER_HOST", env.requiredEnv("MOL_TEST_ENGINE"))
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(io.MultiWriter(env.log, t.Output()), nil)))
	t.Cleanup(func() {
		slog.SetDefault(before)
		_ = templates.Close()
		listed := env.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")
		for _, ref := range strings.Fields(listed) {
			if strings.HasSuffix(ref, "--"+env.isolation) {
				env.docker("image", "rm", ref)
			}
		}
	})
	return env
}

func (env *testEnv) server(manifest ...Pin) *Server {
	env.Helper()
	s, err := New(manifest)
	if err != nil {
		env.Fatal(err)
	}
	env.Cleanup(func() { _ = s.Close() })
	return s
}

// create creates a workspace, removes its container and returns its image.
func (env *testEnv) create(s *Server, runtime string) mol.Image {
	env.Helper()
	made, err := s.Create(env.Context(), runtime)
	env.remove(made)
	if err != nil {
		env.Fatal(err)
	}
	return made.Image
}

func (env *testEnv) remove(w Workspace) {
	env.Helper()
	if w.ContainerID == "" {
		return
	}
	if isolation := env.docker("container", "inspect", "--format", `{{.Config.Labels.isolation}}`, w.ContainerID); isolation != env.isolation {
		env.Errorf("the container's isolation is %q", isolation)
	}
	env.docker("container", "rm", w.ContainerID)
}

// commit pushes a commit as the head of a runtime's template.
func (env *testEnv) commit(runtime, version string) string {
	env.Helper()
	sha, err := env.templates.Commit("molecule-ai/"+server.RepoNamePrefix+runtime, server.Commit{
		Branch: "main", Files: map[string]server.File{
			"Dockerfile":       {Text: "FROM scratch\nARG RUNTIME_VERSION\nLABEL version=$RUNTIME_VERSION\nCOPY content /\nCMD [\"/workspace\"]\n"},
			"content":          {Text: rand.Text()},
			".runtime-version": {Text: version},
		},
	})
	if err != nil {
		env.Fatal(err)
	}
	return sha
}

func (env *testEnv) ref(runtime, tag string) string {
	return "molecule-local/workspace-template-" + runtime + ":" + tag + "--" + env.isolation
}

func (env *testEnv) logged(level string, lines ...string) {
	env.Helper()
	all := strings.Split(env.log.String(), "\n")
	for _, line := range lines {
		if !slices.ContainsFunc(all, func(l string) bool { return strings.Contains(l, "level="+level) && strings.Contains(l, line) }) {
			env.Errorf("not logged at %s: %s", level, line)
		}
	}
}

// importUnrelated imports an image without labels under this reference and returns its id.
func (env *testEnv) importUnrelated(ref string) string {
	env.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	content := rand.Text()
	err := w.WriteHeader(&tar.Header{Name: "content", Mode: 0o644, Size: int64(len(content))})
	if err == nil {
		_, err = w.Write([]byte(content))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		env.Fatal(err)
	}
	unrelated := env.ref("unrelated", "latest")
	env.dockerWith(&archive, "import", "--change", `CMD ["/workspace"]`, "-", unrelated)
	env.docker("tag", unrelated, ref)
	return env.inspect(ref, "{{.Id}}")
}

func (env *testEnv) inspect(ref, format string) string {
	env.Helper()
	return env.docker("image", "inspect", "--format", format, ref)
}

// docker runs the docker command on the test engine, as another tool would.
func (env *testEnv) docker(args ...string) string {
	env.Helper()
	return env.dockerWith(nil, args...)
}

func (env *testEnv) dockerWith(stdin io.Reader, args ...string) string {
	env.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(env.Context()), env.requiredEnv("MOL_TEST_DOCKER"),
		append([]string{"--host", env.requiredEnv("MOL_TEST_ENGINE")}, args...)...)
	cmd.Stdin, cmd.Stderr = stdin, env.Output()
	out, err := cmd.Output()
	if err != nil {
		env.Fatalf("docker %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

func (env *testEnv) requiredEnv(name string) string {
	env.Helper()
	value := os.Getenv(name)
	if value == "" {
		env.Fatalf("%s is not set: run `tests/run go`", name)
	}
	return value
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
