//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// The environment, through OptionsFromEnv: each variable of docs/local-development.md reaches the library and has its
// effect.

func TestTheVariablesOfAJobHaveTheirEffect(t *testing.T) {
	const token = "7f3c0b5e9d2a4f6188c1e0b7a6d5943210fedcba"
	env, _ := environTestEnv(t, "--token", token)
	// The build succeeds only with the build argument RUNTIME_VERSION=2.0.0.
	sha := env.server.commit(env, templateRepo("hermes"), "feature/größe", files{
		"Dockerfile":       {Text: "FROM scratch\nARG RUNTIME_VERSION=none\nCOPY file-$RUNTIME_VERSION /\n"},
		"file-2.0.0":       {Text: uniqueWord()},
		".runtime-version": {Text: "v2.0.0"},
	})
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_BRANCH", "feature/größe")
	t.Setenv("MOLECULE_LOCAL_RUNTIME_VERSION_PIN", "1")
	t.Setenv("MOLECULE_IMAGE_PLATFORM", "linux/386")
	env.clientFromEnv().mustFail("hermes", ErrAuth)
	t.Setenv("MOLECULE_GITEA_TOKEN", token)
	image := env.clientFromEnv().ensure("hermes")
	want := Image{
		Ref: LocalImageTag("hermes", sha), LatestRef: LocalImageLatestTag("hermes"), Runtime: "hermes", CommitSHA: sha,
		ImageID: env.engine.imageID(t, image.Ref), Platform: "linux/386", Endpoint: env.engine.url, Timings: image.Timings,
	}
	if image != want || !strings.HasSuffix(image.Ref, "-386--"+env.isolation) {
		t.Errorf("got  %+v\nwant %+v", image, want)
	}
	if _, err := os.Stat(env.tree("hermes", sha)); err != nil {
		t.Error(err)
	}

	before := len(env.server.requests(t))
	t.Setenv("MOLECULE_LOCAL_OFFLINE", "1")
	if found := env.clientFromEnv().ensure("hermes"); !found.CacheHit || found.Ref != image.Ref {
		t.Errorf("got %+v", found)
	}
	t.Setenv("MOLECULE_LOCAL_IMAGE_ISOLATION", env.isolation+".b")
	env.clientFromEnv().mustFail("hermes", ErrNoLocalImage)
	if got := env.server.requests(t)[before:]; len(got) > 0 {
		t.Errorf("got requests in spite of MOLECULE_LOCAL_OFFLINE: %+v", got)
	}
}

func TestTheDefaultCacheIsInTheUsersCacheFolder(t *testing.T) {
	env, sha := environTestEnv(t)
	unsetenv(t, "MOLECULE_LOCAL_BUILD_CACHE")
	unsetenv(t, "HOME")
	for _, c := range []struct{ name, value, want string }{
		{"TMPDIR", "tmp", "tmp"}, {"HOME", "home", "home/.cache"}, {"XDG_CACHE_HOME", "xdg", "xdg"},
	} {
		t.Setenv(c.name, filepath.Join(env.dir, c.value))
		env.clientFromEnv().ensure("hermes")
		if _, err := os.Stat(filepath.Join(env.dir, c.want, "molecule", "workspace-template-build", "hermes", sha[:12])); err != nil {
			t.Error(err)
		}
		env.engine.removeImages(t, env.isolation)
	}
}

func TestStallAndCeilingErrorsAreNotContextErrors(t *testing.T) {
	env, _ := environTestEnv(t)
	env.server.setFaults(t, fault{"match": "/info/refs", "truncate_after": 40, "hang": true})
	for _, c := range []struct {
		variable string
		want     error
	}{
		{"MOLECULE_BUILD_STALL_GRACE_S", ErrStalled}, {"MOLECULE_BUILD_CEILING_S", ErrTimeout},
	} {
		t.Setenv(c.variable, "1")
		e := env.clientFromEnv().mustFail("hermes", c.want)
		mustContain(t, e.Hint, c.variable)
		if errors.Is(e, context.DeadlineExceeded) || errors.Is(e, context.Canceled) {
			t.Errorf("no context has ended: %#v", e)
		}
		unsetenv(t, c.variable)
	}
}

func TestTheDockerContextChoosesTheEngine(t *testing.T) {
	clearEnv(t)
	config := t.TempDir()
	write := func(path string, value any) {
		t.Helper()
		data, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		path = filepath.Join(config, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const name = "the tests"
	engine := requiredEnv(t, "MOL_TEST_ENGINE")
	write(fmt.Sprintf("contexts/meta/%x/meta.json", sha256.Sum256([]byte(name))), map[string]any{
		"Name": name, "Metadata": map[string]any{}, "Endpoints": map[string]any{"docker": map[string]any{"Host": engine}},
	})
	t.Setenv("DOCKER_CONFIG", config)
	t.Setenv("DOCKER_CONTEXT", name)
	if got, err := EngineHost(t.Context()); got != engine {
		t.Errorf("DOCKER_CONTEXT: got %q and %v", got, err)
	}
	unsetenv(t, "DOCKER_CONTEXT")
	write("config.json", map[string]string{"currentContext": name})
	if got, err := EngineHost(t.Context()); got != engine {
		t.Errorf("currentContext: got %q and %v", got, err)
	}
}

// recordingProxy is an HTTP proxy that refuses every request and records the last one.
func recordingProxy(t *testing.T) (address string, last *atomic.Value) {
	last = new(atomic.Value)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		last.Store(r.Method + " " + r.RequestURI)
		http.Error(w, "refused by the test", http.StatusTeapot)
	}))
	t.Cleanup(proxy.Close)
	return proxy.URL, last
}

func TestTheProxyVariablesAreUsed(t *testing.T) {
	clearEnv(t)
	t.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
	for _, c := range []struct{ variable, scheme, want string }{
		{"HTTP_PROXY", "http", "GET http://gitea.invalid/api/v1/repos/o/t-hermes/branches/main"},
		{"http_proxy", "http", "GET http://gitea.invalid/api/v1/repos/o/t-hermes/branches/main"},
		{"HTTPS_PROXY", "https", "CONNECT gitea.invalid:443"},
		{"https_proxy", "https", "CONNECT gitea.invalid:443"},
	} {
		address, last := recordingProxy(t)
		t.Setenv(c.variable, address)
		t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", c.scheme+"://gitea.invalid/o/t-")
		if _, err := EnsureLocalImage(t.Context(), "hermes"); err == nil || last.Load() != c.want {
			t.Errorf("%s: the proxy got %v, and the error is %v", c.variable, last.Load(), err)
		}
		unsetenv(t, c.variable)
	}

	address, last := recordingProxy(t)
	t.Setenv("HTTP_PROXY", address)
	t.Setenv("NO_PROXY", "example.com,127.0.0.1")
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", gitea(t, http.NotFound)) // listens on 127.0.0.1
	if _, err := EnsureLocalImage(t.Context(), "hermes"); !errors.Is(err, ErrRepoNotFound) || last.Load() != nil {
		t.Errorf("NO_PROXY: the proxy got %v, and the error is %v", last.Load(), err)
	}
}

func TestTheCertificateVariablesAreUsed(t *testing.T) {
	clearEnv(t)
	t.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", server.URL+"/o/t-")

	_, err := EnsureLocalImage(t.Context(), "hermes")
	mustContain(t, checkError(t, err, ErrGiteaUnreachable).Hint, "SSL_CERT_FILE")
	dir := t.TempDir()
	path := filepath.Join(dir, "server.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(path, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"SSL_CERT_FILE": path, "SSL_CERT_DIR": dir} {
		t.Setenv(name, value)
		// The server is trusted, and has no repository.
		if _, err := EnsureLocalImage(t.Context(), "hermes"); !errors.Is(err, ErrRepoNotFound) {
			t.Errorf("%s: got %v", name, err)
		}
		unsetenv(t, name)
	}
	t.Setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
	if _, err := New(OptionsFromEnv()); !errors.Is(err, ErrInvalidOption) || !strings.Contains(err.Error(), "SSL_CERT_FILE") {
		t.Errorf("got %v", err)
	}
}
