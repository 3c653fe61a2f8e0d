package provisioner

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/client"
)

// testEngine connects to the private engine that tests/run starts. It never
// looks for another one: a test has no business in the developer's own engine.
func testEngine(t *testing.T) *client.Client {
	t.Helper()
	host := os.Getenv("MOL_TEST_ENGINE")
	if host == "" {
		t.Fatal("MOL_TEST_ENGINE is not set: run `make test`, which brings a private engine")
	}
	engine, err := client.New(client.WithHost(host))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	return engine
}

// workspaceImage is an image FROM scratch with testdata/workspace in it, for the
// machine's own architecture, made once for all tests.
var workspaceImage = sync.OnceValues(func() (v1.Image, error) {
	program, err := buildWorkspace()
	if err != nil {
		return nil, fmt.Errorf("build testdata/workspace: %w", err)
	}
	var files bytes.Buffer
	archive := tar.NewWriter(&files)
	if err := archive.WriteHeader(&tar.Header{Name: "workspace", Mode: 0o755, Size: int64(len(program))}); err != nil {
		return nil, err
	}
	if _, err := archive.Write(program); err != nil {
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

func buildWorkspace() ([]byte, error) {
	dir, err := os.MkdirTemp("", "workspace")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	out := filepath.Join(dir, "workspace")
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", out, "./testdata/workspace")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, text)
	}
	return os.ReadFile(out)
}

// loadImage puts an image into the engine under ref, for the time of the test.
func loadImage(t *testing.T, engine *client.Client, ref string) {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := workspaceImage()
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
	removeImageAfter(t, engine, ref)
}

func removeImageAfter(t *testing.T, engine *client.Client, ref string) {
	t.Helper()
	t.Cleanup(func() {
		_, err := engine.ImageRemove(context.WithoutCancel(t.Context()), ref, client.ImageRemoveOptions{})
		if err != nil {
			t.Errorf("remove image %s: %v", ref, err)
		}
	})
}
