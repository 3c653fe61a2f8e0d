package server

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/moby/moby/client"
)

// useContext makes the engine of MOL_TEST_ENGINE docker's current context, and unsets all other settings of the engine.
func useContext(t *testing.T) (host string) {
	t.Helper()
	host = os.Getenv("MOL_TEST_ENGINE")
	config := t.TempDir()
	id := sha256.Sum256([]byte("private"))
	meta := filepath.Join(config, "contexts/meta", hex.EncodeToString(id[:]))
	if err := os.MkdirAll(meta, 0o700); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		filepath.Join(meta, "meta.json"):     fmt.Sprintf(`{"Name":"private","Endpoints":{"docker":{"Host":%q}}}`, host),
		filepath.Join(config, "config.json"): `{"currentContext":"private"}`,
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("DOCKER_CONFIG", config)
	t.Setenv("DOCKER_HOST", "")
	t.Setenv("DOCKER_CONTEXT", "")
	t.Setenv("MOLECULE_LOCAL_BUILD_CACHE", t.TempDir())
	return host
}

func TestConnectFindsTheEngineOfADockerContext(t *testing.T) {
	host := useContext(t)
	engine, err := connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = engine.Close() }()
	if _, err := engine.Ping(t.Context(), client.PingOptions{}); err != nil || engine.DaemonHost() != host {
		t.Errorf("the engine at %s: %v; want the one at %s", engine.DaemonHost(), err, host)
	}

	// The guide warns that client.FromEnv ignores docker contexts.
	plain, err := client.New(client.FromEnv)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	if plain.DaemonHost() == host {
		t.Error("client.FromEnv uses docker contexts, but the guide says that it does not")
	}
}

func TestCreateContainerUsesTheEndpointAndThePlatformOfTheImage(t *testing.T) {
	image := mol.Image{Ref: os.Getenv("MOL_TEST_IMAGE"), Platform: "linux/" + runtime.GOARCH, Endpoint: useContext(t)}
	id, err := createContainer(t.Context(), image, "")
	if err != nil {
		t.Fatal(err)
	}
	engine, err := connectTo(image.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = engine.Close() }()
	if _, err := engine.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{}); err != nil {
		t.Error(err)
	}
	// The engine rejects an image for another platform than requested.
	image.Platform = "linux/s390x"
	if id, err := createContainer(t.Context(), image, ""); err == nil {
		t.Error("the engine accepted an image for another platform")
		_, _ = engine.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{})
	}
}

func TestPlatform(t *testing.T) {
	for _, name := range []string{"linux/amd64", "linux/arm/v7"} {
		p := platform(name)
		if got := strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/"); got != name {
			t.Errorf("platform(%q) is %s", name, got)
		}
	}
}

// The settings replace the variables, so an invalid variable does no harm.
func TestNewestConventionsAreValid(t *testing.T) {
	useContext(t)
	t.Setenv("MOLECULE_BUILD_CEILING_S", "soon")
	const commit = "0123456789abcdef0123456789abcdef01234567"
	options := newestConventions(map[string]string{"hermes": commit})
	client, err := mol.New(options)
	if err != nil {
		t.Fatal(err)
	}
	useClient(client)
	t.Cleanup(func() {
		ensureLocalImageHook = mol.EnsureLocalImage
		_ = client.Close()
	})
	if _, err := ensureLocalImageHook(t.Context(), "autogen"); err == nil || !strings.Contains(err.Error(), `unknown runtime "autogen"`) {
		t.Errorf("a runtime that is not on the allowlist: %v", err)
	}
	t.Setenv("MOLECULE_IMAGE_PLATFORM", "linux/arm64/v8")
	options = newestConventions(nil)
	options.Isolation = "two"
	pinned, moving := options.LocalImageTag("hermes", commit), options.LocalImageLatestTag("hermes")
	if !strings.HasSuffix(pinned, ":0123456789ab-arm64--two") || !strings.HasSuffix(moving, ":latest--two") {
		t.Errorf("the tags are %s and %s", pinned, moving)
	}
}

func TestCheckAcceptsTheEnvironment(t *testing.T) {
	useContext(t)
	if err := check(); err != nil {
		t.Error(err)
	}
	t.Setenv("MOLECULE_BUILD_CEILING_S", "soon")
	if err := check(); err == nil || report(err) {
		t.Errorf("with an invalid ceiling: %v; want an error that a retry does not fix", err)
	}
}
