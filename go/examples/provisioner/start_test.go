package provisioner

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/moby/client"
)

// The tests in this file boot real containers on the engine of MOL_TEST_ENGINE.

// testImage is not a local build's name, so that only the explicit tests use it.
const testImage = "mol-provisioner-test:latest"

// startable is a provisioner, and a configuration that boots testImage under an
// ID of the test's own.
func startable(t *testing.T, behaviour string) (*Provisioner, WorkspaceConfig) {
	t.Helper()
	engine := testEngine(t)
	loadImage(t, engine, testImage)
	id := strings.NewReplacer("/", "-", " ", "-").Replace(strings.ToLower(t.Name()))
	t.Cleanup(func() {
		if left := containers(t, engine, id); len(left) > 0 {
			t.Errorf("containers left behind: %v", left)
		}
	})
	return New(engine), WorkspaceConfig{ID: id, Image: testImage, Env: []string{"BEHAVIOUR=" + behaviour}}
}

// containers lists what there is of a workspace, running or not.
func containers(t *testing.T, engine *client.Client, id string) []string {
	t.Helper()
	list, err := engine.ContainerList(context.WithoutCancel(t.Context()), client.ContainerListOptions{
		All:     true,
		Filters: client.Filters{}.Add("label", LabelWorkspace+"="+id),
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range list.Items {
		names = append(names, c.Names...)
	}
	return names
}

// start boots a workspace that is stopped when the test ends.
func start(t *testing.T, p *Provisioner, cfg WorkspaceConfig) *Workspace {
	t.Helper()
	ws, err := p.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(context.WithoutCancel(t.Context()), ws.ContainerID); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
	return ws
}

func body(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestStartAnswersAndStopRemoves(t *testing.T) {
	p, cfg := startable(t, "well")
	ws := start(t, p, cfg)

	if got := body(t, ws.HealthURL); got != "well" {
		t.Errorf("%s answers %q, want %q", ws.HealthURL, got, "well")
	}
	if !strings.HasPrefix(ws.URL, "http://127.0.0.1:") || ws.HealthURL != ws.URL+"/health" {
		t.Errorf("URL is %s, HealthURL is %s", ws.URL, ws.HealthURL)
	}
	if ws.Name != "workspace-"+cfg.ID || ws.Image != testImage {
		t.Errorf("Name is %s, Image is %s", ws.Name, ws.Image)
	}

	for range 2 { // the second time there is nothing to stop
		if err := p.Stop(t.Context(), ws.ContainerID); err != nil {
			t.Errorf("Stop: %v", err)
		}
	}
	if left := containers(t, p.engine, cfg.ID); len(left) > 0 {
		t.Errorf("still there after Stop: %v", left)
	}
}

func TestStartPublishesOnLoopbackOnly(t *testing.T) {
	p, cfg := startable(t, "well")
	ws := start(t, p, cfg)

	found, err := p.engine.ContainerInspect(t.Context(), ws.ContainerID, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for port, bindings := range found.Container.NetworkSettings.Ports {
		for _, b := range bindings {
			if !b.HostIP.IsLoopback() {
				t.Errorf("%s is published on %s", port, b.HostIP)
			}
		}
	}
}

func TestStartOnANetworkPublishesNothing(t *testing.T) {
	p, cfg := startable(t, "well")
	cfg.Network = "mol-provisioner-test"
	if _, err := p.engine.NetworkCreate(t.Context(), cfg.Network, client.NetworkCreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := p.engine.NetworkRemove(context.WithoutCancel(t.Context()), cfg.Network, client.NetworkRemoveOptions{}); err != nil {
			t.Errorf("remove network: %v", err)
		}
	})
	ws := start(t, p, cfg)

	if got := body(t, ws.HealthURL); got != "well" || strings.Contains(ws.URL, "127.0.0.1") {
		t.Errorf("%s answers %q, want %q from the network's address", ws.HealthURL, got, "well")
	}
	found, err := p.engine.ContainerInspect(t.Context(), ws.ContainerID, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for port, bindings := range found.Container.NetworkSettings.Ports {
		if len(bindings) > 0 {
			t.Errorf("%s is published: %v", port, bindings)
		}
	}
}

func TestStartUsesTheLocalBuild(t *testing.T) {
	t.Setenv("MOLECULE_IMAGE_REGISTRY", "")
	p, cfg := startable(t, "well")
	loadImage(t, p.engine, local)
	asked := hookAnswers(t, local, nil)
	cfg.Image, cfg.Runtime = "", "hermes"

	ws := start(t, p, cfg)
	if ws.Image != local || len(*asked) != 1 {
		t.Errorf("started %s after asking the hook for %q", ws.Image, *asked)
	}
}

func TestStartReportsAWorkspaceThatEnds(t *testing.T) {
	p, cfg := startable(t, "exit")
	_, err := p.Start(t.Context(), cfg)
	if !errors.Is(err, ErrNotReady) {
		t.Fatalf("Start() = %v, want ErrNotReady", err)
	}
	for _, want := range []string{cfg.ID, "exit code 3", "no model is configured"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
}

func TestStartReportsAWorkspaceThatDoesNotAnswer(t *testing.T) {
	for behaviour, want := range map[string]string{"silent": "logged nothing", "unwell": "503"} {
		t.Run(behaviour, func(t *testing.T) {
			p, cfg := startable(t, behaviour)
			cfg.ReadyTimeout = 500 * time.Millisecond
			_, err := p.Start(t.Context(), cfg)
			if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), want) {
				t.Errorf("Start() = %v, want ErrNotReady with %q", err, want)
			}
		})
	}
}

func TestStartStopsWaitingWithItsContext(t *testing.T) {
	p, cfg := startable(t, "silent")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for len(containers(t, p.engine, cfg.ID)) == 0 && t.Context().Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	if _, err := p.Start(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("Start() = %v, want context.Canceled", err)
	}
}

func TestStartLeavesATwinAlone(t *testing.T) {
	p, cfg := startable(t, "well")
	ws := start(t, p, cfg)
	if _, err := p.Start(t.Context(), cfg); !errdefs.IsConflict(err) {
		t.Errorf("a second Start with the same ID: %v, want a conflict", err)
	}
	if got := body(t, ws.HealthURL); got != "well" {
		t.Errorf("the first workspace now answers %q", got)
	}
}

func TestStartNeverPullsALocalImage(t *testing.T) {
	p := New(testEngine(t))
	_, err := p.Start(t.Context(), WorkspaceConfig{Image: "molecule-local/workspace-template-hermes:ffffffffffff"})
	if !errdefs.IsNotFound(err) || strings.Contains(err.Error(), "pull") {
		t.Errorf("Start() = %v, want an error about a missing image", err)
	}
}

func TestStartPullsFromTheOperatorsRegistry(t *testing.T) {
	t.Setenv("MOLECULE_IMAGE_PLATFORM", "linux/"+runtime.GOARCH)
	p, cfg := startable(t, "well")
	cfg.Image, cfg.Runtime = "", "hermes"
	host := privateRegistry(t, "molecule", "let me in")
	ref := host + "/org/workspace-template-hermes:latest"
	t.Setenv("MOLECULE_IMAGE_REGISTRY", host+"/org")

	dir := dockerConfig(t)
	login := func(password string) {
		file := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("molecule:"+password)))
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	login("wrong")
	if _, err := p.Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "pull "+ref) {
		t.Errorf("with a wrong password: %v, want an error that names %s", err, ref)
	}
	login("let me in")
	ws := start(t, p, cfg)
	removeImageAfter(t, p.engine, ref)
	if ws.Image != ref || body(t, ws.HealthURL) != "well" {
		t.Errorf("started %s", ws.Image)
	}
	if err := p.Stop(t.Context(), ws.ContainerID); err != nil { // before its image is removed
		t.Error(err)
	}
}

// privateRegistry serves the workspace image as org/workspace-template-hermes,
// to those who know the password.
func privateRegistry(t *testing.T, user, password string) (host string) {
	t.Helper()
	images := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	open := httptest.NewServer(images)
	defer open.Close()
	tag, err := name.NewTag(strings.TrimPrefix(open.URL, "http://") + "/org/workspace-template-hermes:latest")
	if err != nil {
		t.Fatal(err)
	}
	img, err := workspaceImage()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}

	closed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		images.ServeHTTP(w, r)
	}))
	t.Cleanup(closed.Close)
	return strings.TrimPrefix(closed.URL, "http://")
}
