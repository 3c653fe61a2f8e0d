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
	b := newTestEnv(t)
	first := b.commit("claude-code", "v1.2.3\n")
	s := b.server()

	built := b.create(s, "claude-code")
	if built.Ref != b.ref("claude-code", first[:12]+"-"+runtime.GOARCH) || built.LatestRef != b.ref("claude-code", "latest") || built.CacheHit {
		t.Errorf("built %+v from %s", built, first)
	}
	if o := options(nil); built.Ref != o.LocalImageTag("claude-code", first) || built.LatestRef != o.LocalImageLatestTag("claude-code") {
		t.Errorf("the options give %s, %s", o.LocalImageTag("claude-code", first), o.LocalImageLatestTag("claude-code"))
	}
	if built.Platform != "linux/"+runtime.GOARCH {
		t.Errorf("the platform for the container is %s", built.Platform)
	}
	if version := b.inspect(built.Ref, `{{index .Config.Labels "version"}}`); version != "1.2.3" {
		t.Errorf("RUNTIME_VERSION was %q", version)
	}
	b.logged("INFO", "main is at "+first[:12], "must be built", "fetching "+first[:12], "building with ", built.Ref+" is ready")

	if hit := b.create(s, "claude-code"); !hit.CacheHit || hit.ImageID != built.ImageID {
		t.Errorf("a hit is %+v", hit)
	}
	b.logged("INFO", built.Ref+" exists")

	// An empty .runtime-version pins nothing and causes no warning.
	second := b.commit("claude-code", "\n")
	next := b.create(s, "claude-code")
	if next.CommitSHA != second || next.ImageID == built.ImageID {
		t.Errorf("a new commit is %+v, want %s", next, second)
	}
	if version := b.inspect(next.Ref, `{{index .Config.Labels "version"}}`); version != "" {
		t.Errorf("RUNTIME_VERSION was %q", version)
	}
	if latest := b.inspect(next.LatestRef, "{{.Id}}"); latest != next.ImageID {
		t.Errorf("%s is still %s", next.LatestRef, latest)
	}
	if strings.Contains(b.log.String(), "WARN") {
		t.Error("there is a warning")
	}
}

func TestPinnedCommitReplacesTheBranchHead(t *testing.T) {
	b := newTestEnv(t)
	pinned := b.commit("hermes", "1.0")
	head := b.commit("hermes", "2.0")
	s := b.server(Pin{Provider: "gitea", Runtime: "hermes", Commit: pinned})

	built := b.create(s, "hermes")
	if built.CommitSHA != pinned || built.Ref != b.ref("hermes", pinned[:12]+"-"+runtime.GOARCH) {
		t.Errorf("built %+v, want %s", built, pinned)
	}
	b.templates.ClearRequests()
	if hit := b.create(s, "hermes"); !hit.CacheHit || hit.ImageID != built.ImageID {
		t.Errorf("a hit is %+v", hit)
	}
	if requests := b.templates.Requests(); len(requests) > 0 {
		t.Errorf("a hit of a pinned commit sent requests to Gitea: %+v", requests)
	}

	// A given commit takes precedence over the manifest.
	made, err := s.CreateAt(t.Context(), "hermes", head)
	b.remove(made)
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
	b := newTestEnv(t)
	sha := b.commit("codex", "1.0")
	ref := b.ref("codex", sha[:12]+"-"+runtime.GOARCH)
	id := b.importUnrelated(ref)

	found := b.create(b.server(), "codex")
	if !found.CacheHit || found.Ref != ref || found.ImageID != id {
		t.Errorf("found %+v, want %s, %s", found, ref, id)
	}
	if latest := b.inspect(b.ref("codex", "latest"), "{{.Id}}"); latest != id {
		t.Errorf("latest is %s", latest)
	}
	b.logged("INFO", ref+" exists")
	if strings.Contains(b.log.String(), "fetching") {
		t.Error("something was fetched")
	}
}

func TestUnknownRuntimeIsRefused(t *testing.T) {
	b := newTestEnv(t)
	s := b.server()
	for name, hint := range map[string]string{
		"langgraph": "the known runtimes are claude-code, codex, hermes, openclaw", // only in the default list
		"hermse":    "did you mean hermes? the known runtimes are claude-code, codex, hermes, openclaw",
	} {
		_, err := s.Create(t.Context(), name)
		if !errors.Is(err, mol.ErrUnknownRuntime) || !strings.Contains(err.Error(), `unknown runtime "`+name+`"; `+hint) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if requests := b.templates.Requests(); len(requests) > 0 {
		t.Errorf("requests to Gitea: %+v", requests)
	}
}

func TestPlatformVariableOverridesTheServerDefault(t *testing.T) {
	b := newTestEnv(t)
	t.Setenv("MOLECULE_IMAGE_PLATFORM", "linux/arm/v7")
	// The variant is dropped.
	if ref := options(nil).LocalImageTag("hermes", "0123456789abcdef"); ref != b.ref("hermes", "0123456789ab-arm") {
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
	b := &testEnv{t, templates, strings.ToLower(rand.Text()), new(logBuffer)}
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", templates.RepoPrefix())
	t.Setenv("MOLECULE_LOCAL_BUILD_CACHE", t.TempDir())
	t.Setenv("MOLECULE_LOCAL_IMAGE_ISOLATION", " "+b.isolation+"\n")
	t.Setenv("DOCKER_HOST", b.given("MOL_TEST_ENGINE"))
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(io.MultiWriter(b.log, t.Output()), nil)))
	t.Cleanup(func() {
		slog.SetDefault(before)
		_ = templates.Close()
		listed := b.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")
		for _, ref := range strings.Fields(listed) {
			if strings.HasSuffix(ref, "--"+b.isolation) {
				b.docker("image", "rm", ref)
			}
		}
	})
	return b
}

func (b *testEnv) server(manifest ...Pin) *Server {
	b.Helper()
	s, err := New(manifest)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s
}

// create creates a workspace, removes its container and returns its image.
func (b *testEnv) create(s *Server, runtime string) mol.Image {
	b.Helper()
	made, err := s.Create(b.Context(), runtime)
	b.remove(made)
	if err != nil {
		b.Fatal(err)
	}
	return made.Image
}

func (b *testEnv) remove(w Workspace) {
	b.Helper()
	if w.ContainerID == "" {
		return
	}
	if isolation := b.docker("container", "inspect", "--format", `{{.Config.Labels.isolation}}`, w.ContainerID); isolation != b.isolation {
		b.Errorf("the container's isolation is %q", isolation)
	}
	b.docker("container", "rm", w.ContainerID)
}

// commit pushes a commit as the head of a runtime's template.
func (b *testEnv) commit(runtime, version string) string {
	b.Helper()
	sha, err := b.templates.Commit("molecule-ai/"+server.RepoNamePrefix+runtime, server.Commit{
		Branch: "main", Files: map[string]server.File{
			"Dockerfile":       {Text: "FROM scratch\nARG RUNTIME_VERSION\nLABEL version=$RUNTIME_VERSION\nCOPY content /\nCMD [\"/workspace\"]\n"},
			"content":          {Text: rand.Text()},
			".runtime-version": {Text: version},
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	return sha
}

func (b *testEnv) ref(runtime, tag string) string {
	return "molecule-local/workspace-template-" + runtime + ":" + tag + "--" + b.isolation
}

func (b *testEnv) logged(level string, lines ...string) {
	b.Helper()
	all := strings.Split(b.log.String(), "\n")
	for _, line := range lines {
		if !slices.ContainsFunc(all, func(l string) bool { return strings.Contains(l, "level="+level) && strings.Contains(l, line) }) {
			b.Errorf("not logged at %s: %s", level, line)
		}
	}
}

// importUnrelated imports an image without labels under this reference and returns its id.
func (b *testEnv) importUnrelated(ref string) string {
	b.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	content := rand.Text()
	err := w.WriteHeader(&tar.Header{Name: "content", Mode: 0o644, Size: int64(len(content))})
	if err == nil {
		_, err = w.Write([]byte(content))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		b.Fatal(err)
	}
	unrelated := b.ref("unrelated", "latest")
	b.dockerWith(&archive, "import", "--change", `CMD ["/workspace"]`, "-", unrelated)
	b.docker("tag", unrelated, ref)
	return b.inspect(ref, "{{.Id}}")
}

func (b *testEnv) inspect(ref, format string) string {
	b.Helper()
	return b.docker("image", "inspect", "--format", format, ref)
}

// docker runs the docker command on the test engine, as another tool would.
func (b *testEnv) docker(args ...string) string {
	b.Helper()
	return b.dockerWith(nil, args...)
}

func (b *testEnv) dockerWith(stdin io.Reader, args ...string) string {
	b.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(b.Context()), b.given("MOL_TEST_DOCKER"),
		append([]string{"--host", b.given("MOL_TEST_ENGINE")}, args...)...)
	cmd.Stdin, cmd.Stderr = stdin, b.Output()
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("docker %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

func (b *testEnv) given(name string) string {
	b.Helper()
	value := os.Getenv(name)
	if value == "" {
		b.Fatalf("%s is not set: run `tests/run go`", name)
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
