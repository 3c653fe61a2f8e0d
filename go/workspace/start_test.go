package workspace

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/workspace/workspacetest"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The tests in this file start real containers on the engine of MOL_TEST_ENGINE.

const testImage = "mol-workspace-test:latest"

// A starter has what Start needs.
type starter struct {
	engine *client.Client
	img    Image
	cfg    Config
}

// newStarter loads testImage and returns a configuration with an ID for this test.
func newStarter(t *testing.T, behaviour string) starter {
	t.Helper()
	engine := workspacetest.Engine(t)
	workspacetest.LoadImage(t, engine, testImage)
	img, err := Inspect(t.Context(), engine, testImage)
	if err != nil {
		t.Fatal(err)
	}
	id := strings.NewReplacer("/", "-", " ", "-").Replace(strings.ToLower(t.Name()))
	t.Cleanup(func() {
		if left := containers(t, engine, id); len(left) > 0 {
			t.Errorf("containers left behind: %v", left)
		}
	})
	return starter{engine, img, Config{ID: id, Env: []string{"BEHAVIOUR=" + behaviour}}}
}

// containers lists the containers of a workspace, running or not.
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

func (s starter) start(ctx context.Context) (*Workspace, error) {
	return Start(ctx, s.engine, s.img, s.cfg)
}

// mustStart starts a workspace that is stopped when the test ends.
func (s starter) mustStart(t *testing.T) *Workspace {
	t.Helper()
	ws, err := s.start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Stop(context.WithoutCancel(t.Context()), s.engine, ws.ContainerID); err != nil {
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

func TestStartAndStop(t *testing.T) {
	s := newStarter(t, "healthy")
	ws := s.mustStart(t)

	if got := body(t, ws.HealthURL); got != "healthy" {
		t.Errorf("%s answers %q, want %q", ws.HealthURL, got, "healthy")
	}
	if !strings.HasPrefix(ws.URL, "http://127.0.0.1:") || ws.HealthURL != ws.URL+"/health" {
		t.Errorf("URL is %s, HealthURL is %s", ws.URL, ws.HealthURL)
	}
	if ws.Name != "workspace-"+s.cfg.ID || ws.Image != testImage {
		t.Errorf("Name is %s, Image is %s", ws.Name, ws.Image)
	}

	for range 2 { // the second Stop finds no container
		if err := Stop(t.Context(), s.engine, ws.ContainerID); err != nil {
			t.Errorf("Stop: %v", err)
		}
	}
	if left := containers(t, s.engine, s.cfg.ID); len(left) > 0 {
		t.Errorf("containers after Stop: %v", left)
	}
}

func TestWaitReturnsTheExitCode(t *testing.T) {
	s := newStarter(t, "healthy")
	ws := s.mustStart(t)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if code, err := Wait(ctx, s.engine, ws.ContainerID); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait() with a cancelled context = %d, %v; want context.Canceled", code, err)
	}
	if _, err := s.engine.ContainerKill(t.Context(), ws.ContainerID, client.ContainerKillOptions{Signal: "KILL"}); err != nil {
		t.Fatal(err)
	}
	if code, err := Wait(t.Context(), s.engine, ws.ContainerID); code != 137 || err != nil {
		t.Errorf("Wait() after SIGKILL = %d, %v; want 137", code, err)
	}
}

func TestStartPublishesOnLoopbackOnly(t *testing.T) {
	s := newStarter(t, "healthy")
	ws := s.mustStart(t)

	found, err := s.engine.ContainerInspect(t.Context(), ws.ContainerID, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	published := 0
	for port, bindings := range found.Container.NetworkSettings.Ports {
		for _, b := range bindings {
			published++
			if !b.HostIP.IsLoopback() {
				t.Errorf("%s is published on %s", port, b.HostIP)
			}
		}
	}
	if published == 0 {
		t.Error("no port is published")
	}
}

func TestStartOnANetworkPublishesNothing(t *testing.T) {
	s := newStarter(t, "healthy")
	s.cfg.Network = "mol-workspace-test"
	if _, err := s.engine.NetworkCreate(t.Context(), s.cfg.Network, client.NetworkCreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := s.engine.NetworkRemove(context.WithoutCancel(t.Context()), s.cfg.Network, client.NetworkRemoveOptions{}); err != nil {
			t.Errorf("remove network: %v", err)
		}
	})
	ws := s.mustStart(t)

	if got := body(t, ws.HealthURL); got != "healthy" || strings.Contains(ws.URL, "127.0.0.1") {
		t.Errorf("%s answers %q, want %q from the network's address", ws.HealthURL, got, "healthy")
	}
	found, err := s.engine.ContainerInspect(t.Context(), ws.ContainerID, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for port, bindings := range found.Container.NetworkSettings.Ports {
		if len(bindings) > 0 {
			t.Errorf("%s is published: %v", port, bindings)
		}
	}
}

func TestStartFailsWhenTheWorkspaceExits(t *testing.T) {
	_, err := newStarter(t, "exit").start(t.Context())
	if !errors.Is(err, ErrNotReady) {
		t.Fatalf("Start() = %v, want ErrNotReady", err)
	}
	for _, want := range []string{"exited with code 3", "no model is configured"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not contain %q: %v", want, err)
		}
	}
}

func TestStartFailsWhenTheWorkspaceDoesNotAnswer(t *testing.T) {
	for behaviour, c := range map[string]struct {
		want    string
		timeout time.Duration
	}{"silent": {"logged nothing", 500 * time.Millisecond}, "unhealthy": {"503", 3 * time.Second}} {
		t.Run(behaviour, func(t *testing.T) {
			s := newStarter(t, behaviour)
			s.cfg.ReadyTimeout = c.timeout
			_, err := s.start(t.Context())
			if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Start() = %v, want ErrNotReady with %q", err, c.want)
			}
		})
	}
}

func TestAWorkspaceThatNeverAnswersARequestIsNotReady(t *testing.T) {
	s := newStarter(t, "hanging")
	s.cfg.ReadyTimeout = answerTimeout + time.Second // the first request has timed out
	if _, err := s.start(t.Context()); !errors.Is(err, ErrNotReady) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start() = %v, want ErrNotReady and no deadline of the caller", err)
	}
	s.cfg.ReadyTimeout = time.Second // it ends during the first request
	if _, err := s.start(t.Context()); err == nil || strings.Count(err.Error(), ErrNotReady.Error()) != 1 {
		t.Errorf("Start() = %v, want ErrNotReady once", err)
	}
}

func TestTheErrorEndsWithTheLastLineOfALongOutput(t *testing.T) {
	_, err := newStarter(t, "verbose").start(t.Context())
	if !errors.Is(err, ErrNotReady) || !strings.HasSuffix(err.Error(), "x\nthe last line") || len(err.Error()) > 17<<10 {
		t.Errorf("%v", err)
	}
}

func TestStartReturnsWhenItsContextEnds(t *testing.T) {
	s := newStarter(t, "silent")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := s.start(ctx)
		ended <- err
	}()
	for len(containers(t, s.engine, s.cfg.ID)) == 0 && len(ended) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Start() = %v, want context.Canceled", err)
	}
}

func TestWaitReportsAnErrorOfTheEngine(t *testing.T) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"StatusCode": 0, "Error": {"Message": "the runtime is gone"}}`)
	})
	server := httptest.NewServer(answer)
	defer server.Close()
	engine, err := client.New(client.WithHost("tcp://"+server.Listener.Addr().String()), client.WithAPIVersion("1.44"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = engine.Close() }()
	if code, err := Wait(t.Context(), engine, "x"); err == nil || !strings.Contains(err.Error(), "the runtime is gone") {
		t.Errorf("Wait() = %d, %v; want the engine's error", code, err)
	}
}

func TestStartKeepsAContainerWithTheSameID(t *testing.T) {
	s := newStarter(t, "healthy")
	ws := s.mustStart(t)
	if _, err := s.start(t.Context()); !errors.Is(err, ErrNameTaken) {
		t.Errorf("a second Start with the same ID: %v, want ErrNameTaken", err)
	}
	if got := body(t, ws.HealthURL); got != "healthy" {
		t.Errorf("the first workspace now answers %q", got)
	}
}

func TestInspectDoesNotPull(t *testing.T) {
	_, err := Inspect(t.Context(), workspacetest.Engine(t), "molecule-local/workspace-template-hermes:ffffffffffff")
	if !errdefs.IsNotFound(err) {
		t.Errorf("Inspect() = %v, want an error about a missing image", err)
	}
}

func TestPullUsesTheDockerLoginAndShowsItsProgress(t *testing.T) {
	engine := workspacetest.Engine(t) // which does not have the image's layer
	host := workspacetest.Registry(t, "molecule", "let me in")
	ref := host + "/org/workspace-template-hermes:latest"
	platform := &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	dir := workspacetest.DockerConfig(t)

	workspacetest.Login(t, dir, host, "molecule", "wrong")
	if _, err := Pull(t.Context(), engine, ref, platform, nil); !errors.Is(err, ErrPull) || !strings.Contains(err.Error(), ref) {
		t.Errorf("with a wrong password: %v, want ErrPull with %s", err, ref)
	}
	workspacetest.Login(t, dir, host, "molecule", "let me in")
	var layers []LayerProgress
	img, err := Pull(t.Context(), engine, ref, platform, func(l LayerProgress) { layers = append(layers, l) })
	if err != nil {
		t.Fatal(err)
	}
	workspacetest.RemoveImageAfter(t, engine, ref)
	if img.Ref != ref || img.Platform != platform || len(img.Config.ExposedPorts) != 1 {
		t.Errorf("Pull() = %+v", img)
	}
	// The image has one layer.
	if len(layers) == 0 || layers[0].Layer == "" || layers[0].Extracting || layers[0].Total < 1<<20 || !layers[len(layers)-1].Extracting {
		t.Errorf("the progress is %+v", layers)
	}
}

func TestOutputOfAWorkspaceThatExitsIsCopied(t *testing.T) {
	s := newStarter(t, "exit")
	var output strings.Builder
	s.cfg.Output = &output
	if _, err := s.start(t.Context()); !errors.Is(err, ErrNotReady) {
		t.Fatalf("got %v, want ErrNotReady", err)
	}
	if got := output.String(); got != "no model is configured\n" {
		t.Errorf("the output is %q", got)
	}
}

func TestSkipWriterDropsTheFirstBytes(t *testing.T) {
	var got strings.Builder
	w := &skipWriter{to: &got, skip: 5}
	for _, piece := range []string{"one", "two", "three"} {
		if n, err := w.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Errorf("Write(%q) = %d, %v", piece, n, err)
		}
	}
	if got.String() != "othree" {
		t.Errorf("got %q", got.String())
	}
}

func TestKeepLeavesTheContainerOfAFailedStart(t *testing.T) {
	s := newStarter(t, "exit")
	s.cfg.Keep = true
	if _, err := s.start(t.Context()); !errors.Is(err, ErrNotReady) || !errors.Is(err, ErrKept) {
		t.Fatalf("got %v, want ErrNotReady and ErrKept", err)
	}
	found, err := Find(t.Context(), s.engine, "", s.cfg.ID)
	if err != nil || found.Running {
		t.Errorf("%+v, %v", found, err)
	}
	if err := Stop(t.Context(), s.engine, found.ContainerID); err != nil {
		t.Error(err)
	}
}

func TestFindChoosesByIDNameContainerAndRuntime(t *testing.T) {
	s := newStarter(t, "healthy")
	s.cfg.Owner, s.cfg.Runtime = "alice", "find-by-runtime"
	ws := s.mustStart(t)
	ctx := t.Context()
	for _, name := range []string{s.cfg.ID, ws.Name, ws.ContainerID[:8], s.cfg.Runtime} {
		found, err := Find(ctx, s.engine, "alice", name)
		if err != nil || found.ContainerID != ws.ContainerID || found.URL != ws.URL || !found.Running {
			t.Errorf("Find(%q) = %+v, %v", name, found, err)
		}
	}
	for name, owner := range map[string]string{"nosuch": "alice", s.cfg.ID: "bob", "": "alice", ws.ContainerID[:3]: "alice"} {
		if found, err := Find(ctx, s.engine, owner, name); !errors.Is(err, ErrNotFound) {
			t.Errorf("Find(%q) of %s = %+v, %v", name, owner, found, err)
		}
	}
	unnamed := s
	unnamed.cfg.ID, unnamed.cfg.Runtime = "", ""
	ws = unnamed.mustStart(t)
	if found, err := Find(ctx, s.engine, "alice", ws.Name); err != nil || found.ID != ws.Name {
		t.Errorf("without an ID: %+v, %v", found, err)
	}
	second := s
	second.cfg.ID += "-2"
	other := second.mustStart(t)
	if _, err := Find(ctx, s.engine, "alice", s.cfg.Runtime); !errors.Is(err, ErrAmbiguous) || !strings.Contains(err.Error(), second.cfg.ID) {
		t.Errorf("two workspaces of one runtime: %v", err)
	}
	if found, err := Find(ctx, s.engine, "alice", second.cfg.ID); err != nil || found.ContainerID != other.ContainerID {
		t.Errorf("%+v, %v", found, err)
	}
}
