package workspace

import (
	"path/filepath"
	"testing"

	"git.moleculesai.app/molecule-ai/libmol/go/workspace/workspacetest"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/context/docker"
	"github.com/docker/cli/cli/context/store"
	"github.com/moby/moby/client"
)

// The order of the settings is that of the docker command.
func TestConnectFollowsTheDockerCommand(t *testing.T) {
	dir := workspacetest.DockerConfig(t)
	contexts := store.New(filepath.Join(dir, "contexts"), store.NewConfig(func() any { return &map[string]any{} }))
	for name, host := range map[string]string{"desktop": "unix:///desktop.sock", "lab": "tcp://lab:2375"} {
		err := contexts.CreateOrUpdate(store.Metadata{
			Name:      name,
			Endpoints: map[string]any{docker.DockerEndpoint: docker.EndpointMeta{Host: host}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	tests := []struct {
		name                   string
		host, context, current string
		want                   string
	}{
		{"nothing is set", "", "", "", client.DefaultDockerHost},
		{"the current context", "", "", "desktop", "unix:///desktop.sock"},
		{"DOCKER_CONTEXT overrides the current context", "", "lab", "desktop", "tcp://lab:2375"},
		{"DOCKER_CONTEXT=default", "", "default", "desktop", client.DefaultDockerHost},
		{"DOCKER_HOST overrides both", "unix:///host.sock", "lab", "desktop", "unix:///host.sock"},
		{"DOCKER_HOST without a scheme", "lab:2375", "", "", "tcp://lab:2375"},
		{"DOCKER_HOST with a port only", ":2375", "", "", "tcp://localhost:2375"},
		{"DOCKER_HOST with a line break", "unix:///host.sock\n", "", "", "unix:///host.sock"},
		{"ssh uses the ssh program", "ssh://me@build.example.com", "", "", "http://docker.example.com"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("DOCKER_HOST", tt.host)
			t.Setenv("DOCKER_CONTEXT", tt.context)
			file, err := config.Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			file.CurrentContext = tt.current
			if err := file.Save(); err != nil {
				t.Fatal(err)
			}

			engine, err := Connect()
			if err != nil {
				t.Fatal(err)
			}
			defer engine.Close()
			if got := engine.DaemonHost(); got != tt.want {
				t.Errorf("Connect() uses %s, want %s", got, tt.want)
			}
		})
	}

	for _, tt := range []struct{ host, context, want string }{
		{"", "", "unix:///podman.sock"},
		{"", "default", "unix:///podman.sock"},
		{"", "lab", "tcp://lab:2375"},
		{"unix:///host.sock", "", "unix:///host.sock"},
	} {
		t.Run("another default than the socket, "+tt.want, func(t *testing.T) {
			t.Setenv("DOCKER_HOST", tt.host)
			t.Setenv("DOCKER_CONTEXT", tt.context)
			engine, err := ConnectOr("unix:///podman.sock")
			if err != nil {
				t.Fatal(err)
			}
			defer engine.Close()
			if got := engine.DaemonHost(); got != tt.want {
				t.Errorf("ConnectOr() uses %s, want %s", got, tt.want)
			}
		})
	}

	t.Run("a context that does not exist", func(t *testing.T) {
		t.Setenv("DOCKER_HOST", "")
		t.Setenv("DOCKER_CONTEXT", "nowhere")
		if engine, err := Connect(); err == nil {
			t.Errorf("Connect() uses %s, want an error", engine.DaemonHost())
		}
	})
}
