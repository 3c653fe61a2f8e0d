// Package workspacetest has what tests of workspaces share: the engine of
// MOL_TEST_ENGINE, a small workspace image, and a registry that has it.
package workspacetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/docker/cli/cli/config"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/client"
)

// Engine connects to the private engine that tests/run starts. It uses no other
// engine, because a test must not change the developer's own one.
func Engine(t *testing.T) *client.Client {
	t.Helper()
	host := os.Getenv("MOL_TEST_ENGINE")
	if host == "" {
		t.Fatal("MOL_TEST_ENGINE is not set: run `make test`, which starts a private engine")
	}
	engine, err := client.New(client.WithHost(host))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	return engine
}

//go:embed testdata/program/main.go
var program []byte

// image is an image FROM scratch with testdata/program in it, for this machine's
// architecture. It is built once for all tests.
var image = sync.OnceValues(func() (v1.Image, error) {
	binary, err := buildProgram()
	if err != nil {
		return nil, fmt.Errorf("build testdata/program: %w", err)
	}
	var files bytes.Buffer
	archive := tar.NewWriter(&files)
	if err := archive.WriteHeader(&tar.Header{Name: "workspace", Mode: 0o755, Size: int64(len(binary))}); err != nil {
		return nil, err
	}
	if _, err := archive.Write(binary); err != nil {
		return nil, err
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(files.Bytes())), nil
	}, tarball.WithCompressionLevel(gzip.NoCompression))
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config.Entrypoint = []string{"/workspace"}
	file.Config.ExposedPorts = map[string]struct{}{"8080/tcp": {}}
	return mutate.ConfigFile(img, file)
})

func buildProgram() ([]byte, error) {
	dir, err := os.MkdirTemp("", "workspace")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	source, binary := filepath.Join(dir, "main.go"), filepath.Join(dir, "workspace")
	if err := os.WriteFile(source, program, 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", binary, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, text)
	}
	return os.ReadFile(binary)
}

// LoadImage loads the workspace image into the engine as ref, until the test
// ends. The image's program answers /health, exits, or does not answer: see the
// variable BEHAVIOUR in testdata/program.
func LoadImage(t *testing.T, engine *client.Client, ref string) {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := image()
	if err != nil {
		t.Fatal(err)
	}
	var saved bytes.Buffer
	if err := tarball.Write(tag, img, &saved); err != nil {
		t.Fatal(err)
	}
	loaded, err := engine.ImageLoad(t.Context(), &saved)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = loaded.Close() }()
	if _, err := io.Copy(io.Discard, loaded); err != nil {
		t.Fatal(err)
	}
	RemoveImageAfter(t, engine, ref)
}

// RemoveImageAfter removes the image ref from the engine when the test ends.
func RemoveImageAfter(t *testing.T, engine *client.Client, ref string) {
	t.Helper()
	t.Cleanup(func() {
		_, err := engine.ImageRemove(context.WithoutCancel(t.Context()), ref, client.ImageRemoveOptions{})
		if err != nil {
			t.Errorf("remove image %s: %v", ref, err)
		}
	})
}

// Registry starts a registry that has the workspace image as
// org/workspace-template-hermes:latest and requires this login. It returns the
// registry's host and port.
func Registry(t *testing.T, user, password string) (host string) {
	t.Helper()
	images := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	upload := httptest.NewServer(images)
	defer upload.Close()
	tag, err := name.NewTag(strings.TrimPrefix(upload.URL, "http://") + "/org/workspace-template-hermes:latest")
	if err != nil {
		t.Fatal(err)
	}
	img, err := image()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}

	private := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "wrong user or password", http.StatusUnauthorized)
			return
		}
		images.ServeHTTP(w, r)
	}))
	t.Cleanup(private.Close)
	return strings.TrimPrefix(private.URL, "http://")
}

// DockerConfig makes a new, empty folder the docker configuration until the test
// ends.
func DockerConfig(t *testing.T) (dir string) {
	t.Helper()
	before := config.Dir()
	dir = t.TempDir()
	config.SetDir(dir)
	t.Cleanup(func() { config.SetDir(before) })
	return dir
}

// Login writes the result of `docker login` to the folder of DockerConfig.
func Login(t *testing.T, dir, host, user, password string) {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	file := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, auth)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
}
