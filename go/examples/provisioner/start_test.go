package provisioner

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
	"git.moleculesai.app/molecule-ai/libmol/go/workspace/workspacetest"
	"github.com/containerd/errdefs"
)

// The tests in this file start real containers on the engine of MOL_TEST_ENGINE.
// The tests of go/workspace cover the containers themselves.

// testImage is not the name of a local build.
const testImage = "mol-provisioner-test:latest"

// testID names the workspace of a test.
func testID(t *testing.T) string { return strings.ToLower(t.Name()) }

// start starts a workspace that answers, and stops it when the test ends.
func start(t *testing.T, p *Provisioner, cfg WorkspaceConfig) *workspace.Workspace {
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
	resp, err := http.Get(ws.HealthURL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s answers %s", ws.HealthURL, resp.Status)
	}
	return ws
}

func TestStartUsesTheLocalBuild(t *testing.T) {
	t.Setenv("MOLECULE_IMAGE_REGISTRY", "")
	p := New(workspacetest.Engine(t))
	workspacetest.LoadImage(t, p.engine, local)
	asked := hookAnswers(t, local, nil)

	ws := start(t, p, WorkspaceConfig{Config: workspace.Config{ID: testID(t), Runtime: "hermes"}})
	if ws.Image != local || len(*asked) != 1 {
		t.Errorf("started %s after calling the hook for %q", ws.Image, *asked)
	}
}

func TestStartUsesTheExplicitImage(t *testing.T) {
	p := New(workspacetest.Engine(t))
	workspacetest.LoadImage(t, p.engine, testImage)

	ws := start(t, p, WorkspaceConfig{Config: workspace.Config{ID: testID(t)}, Image: testImage})
	if ws.Image != testImage {
		t.Errorf("started %s", ws.Image)
	}
}

func TestStartErrorNamesTheWorkspace(t *testing.T) {
	p := New(workspacetest.Engine(t))
	workspacetest.LoadImage(t, p.engine, testImage)

	cfg := WorkspaceConfig{Config: workspace.Config{ID: testID(t), Env: []string{"BEHAVIOUR=exit"}}, Image: testImage}
	_, err := p.Start(t.Context(), cfg)
	if !errors.Is(err, workspace.ErrNotReady) || !strings.Contains(err.Error(), cfg.ID) {
		t.Errorf("Start() = %v, want ErrNotReady and %s", err, cfg.ID)
	}
}

func TestStartNeverPullsALocalImage(t *testing.T) {
	p := New(workspacetest.Engine(t))
	_, err := p.Start(t.Context(), WorkspaceConfig{Image: "molecule-local/workspace-template-hermes:ffffffffffff"})
	if !errdefs.IsNotFound(err) || strings.Contains(err.Error(), "pull") {
		t.Errorf("Start() = %v, want an error about a missing image", err)
	}
}

func TestStartPullsFromTheOperatorsRegistry(t *testing.T) {
	p := New(workspacetest.Engine(t))
	host := workspacetest.Registry(t, "molecule", "let me in")
	workspacetest.Login(t, workspacetest.DockerConfig(t), host, "molecule", "let me in")
	t.Setenv("MOLECULE_IMAGE_REGISTRY", host+"/org")
	t.Setenv("MOLECULE_IMAGE_PLATFORM", "linux/"+runtime.GOARCH)

	ws := start(t, p, WorkspaceConfig{Config: workspace.Config{ID: testID(t), Runtime: "hermes"}})
	ref := host + "/org/workspace-template-hermes:latest"
	workspacetest.RemoveImageAfter(t, p.engine, ref)
	if ws.Image != ref {
		t.Errorf("started %s, want %s", ws.Image, ref)
	}
	if err := p.Stop(t.Context(), ws.ContainerID); err != nil { // before its image is removed
		t.Error(err)
	}
}
