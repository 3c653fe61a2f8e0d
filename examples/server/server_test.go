package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

func get(t *testing.T, handler http.Handler, path string) (status int, body string) {
	t.Helper()
	response := httptest.NewRecorder()
	handler.ServeHTTP(response, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return response.Code, strings.TrimSpace(response.Body.String())
}

func TestServerAnswersWithImage(t *testing.T) {
	t.Setenv("MOLECULE_IMAGE_REGISTRY", "")
	images := handler(func(_ context.Context, runtime string) (mol.Image, error) {
		if runtime == "codex" {
			return mol.Image{}, errors.New("no engine")
		}
		return mol.Image{Ref: mol.LocalImageTag(runtime, "0123456789abcdef"), Platform: "linux/amd64", CacheHit: true}, nil
	})
	status, body := get(t, images, "/image/hermes")
	want := `{"ref":"molecule-local/workspace-template-hermes:0123456789ab","pull":false,"platform":"linux/amd64","cache_hit":true}`
	if status != http.StatusOK || body != want {
		t.Errorf("status %d, %s; want 200, %s", status, body, want)
	}
	if status, body = get(t, images, "/image/codex"); status != http.StatusBadGateway || body != "no engine" {
		t.Errorf("status %d, %s; want 502 and the error", status, body)
	}

	t.Setenv("MOLECULE_IMAGE_REGISTRY", "registry.example.com/org")
	status, body = get(t, images, "/image/hermes")
	want = `{"ref":"registry.example.com/org/workspace-template-hermes:latest","pull":true,"cache_hit":false}`
	if status != http.StatusOK || body != want {
		t.Errorf("with a registry: status %d, %s; want 200, %s", status, body, want)
	}
}

func TestServerRejectsUnknownRuntime(t *testing.T) {
	client, err := mol.New(mol.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	for _, registry := range []string{"", "registry.example.com/org"} {
		t.Setenv("MOLECULE_IMAGE_REGISTRY", registry)
		status, body := get(t, handler(client.EnsureLocalImage), "/image/hermez")
		if status != http.StatusNotFound || !strings.Contains(body, `unknown runtime "hermez"`) {
			t.Errorf("with the registry %q: status %d, %s; want 404 and the name", registry, status, body)
		}
	}
}

// checkout copies this folder into a new folder, with a link to go/mol where go.mod expects it.
func checkout(t *testing.T) (server, library string) {
	t.Helper()
	root := t.TempDir()
	server, library = filepath.Join(root, "examples/server"), filepath.Join(root, "go")
	if err := os.CopyFS(server, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(server, "vendor")); err != nil {
		t.Fatal(err)
	}
	target, err := filepath.Abs("../../go")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, library); err != nil {
		t.Fatal(err)
	}
	return server, library
}

// runIn runs a program in a folder, with additional variables, and returns its output.
func runIn(t *testing.T, folder string, env []string, program string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = folder
	cmd.Env = append(append(os.Environ(), "GOFLAGS=", "GOWORK=off", "PWD="+folder), env...)
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// succeed is runIn for programs that must succeed.
func succeed(t *testing.T, folder string, env []string, program string, args ...string) string {
	t.Helper()
	output, err := runIn(t, folder, env, program, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, output)
	}
	return output
}

// rejection starts the built server with a setting that only the library rejects, and returns its output.
func rejection(t *testing.T, folder string) string {
	t.Helper()
	output, err := runIn(t, folder, []string{"MOLECULE_LOCAL_IMAGE_ISOLATION=No"}, "./workspace-server")
	if err == nil {
		t.Errorf("the server exited without an error: %s", output)
	}
	return output
}

func TestServerBuildsInGoWorkspaceWithoutReplace(t *testing.T) {
	server, _ := checkout(t)
	succeed(t, server, nil, "go", "mod", "edit", "-dropreplace", "git.moleculesai.app/molecule-ai/libmol/go/mol")
	succeed(t, server, []string{"GOWORK=" + filepath.Join(server, "workspace/go.work")}, "go", "build", "-o", "workspace-server", ".")
	if output := rejection(t, server); !strings.Contains(output, "MOLECULE_LOCAL_IMAGE_ISOLATION") {
		t.Errorf("the library is not linked in: %s", output)
	}
}

// A build context with only the server does not contain the folder of the replace directive.
func TestServerBuildsVendoredWithoutReplacement(t *testing.T) {
	server, library := checkout(t)
	succeed(t, server, nil, "go", "mod", "vendor")
	if err := os.Remove(library); err != nil {
		t.Fatal(err)
	}
	output, err := runIn(t, server, nil, "go", "build", "-mod=mod", "-o", "workspace-server", ".")
	if err == nil || !strings.Contains(output, "replacement directory ../../go/mol does not exist") {
		t.Errorf("without vendoring: %v: %s", err, output)
	}
	succeed(t, server, []string{"GOFLAGS=-mod=vendor"}, "go", "build", "-o", "workspace-server", ".")
	if output := rejection(t, server); !strings.Contains(output, "MOLECULE_LOCAL_IMAGE_ISOLATION") {
		t.Errorf("the library is not linked in: %s", output)
	}
}

// systemd-analyze requires that the program exists, so the test replaces its path.
func TestServiceIsValidUnit(t *testing.T) {
	program, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("workspace-server.service")
	if err != nil {
		t.Fatal(err)
	}
	check := func(text string) (string, error) {
		unit := filepath.Join(t.TempDir(), "workspace-server.service")
		text = strings.Replace(text, "/usr/local/bin/workspace-server", program, 1)
		if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return runIn(t, ".", nil, "systemd-analyze", "verify", "--man=no", unit)
	}
	if output, err := check(string(text)); err != nil || output != "" {
		t.Errorf("systemd-analyze verify: %v\n%s", err, output)
	}
	wrong := strings.Replace(string(text), "CacheDirectory=", "CacheFolder=", 1)
	if output, _ := check(wrong); !strings.Contains(output, "CacheFolder") {
		t.Errorf("systemd-analyze verify does not report an unknown key: %s", output)
	}
}

func TestComposeFileIsValid(t *testing.T) {
	output := succeed(t, ".", []string{"DOCKER_GID=999"}, "docker-compose", "--file", "compose.yaml", "config")
	for _, want := range []string{"/var/run/docker.sock", "999", "127.0.0.1:8080", "/var/cache/workspace-server"} {
		if !strings.Contains(output, want) {
			t.Errorf("docker-compose config does not show %s:\n%s", want, output)
		}
	}
	// Without the group the server would start, but could not access the engine's socket.
	output, err := runIn(t, ".", []string{"DOCKER_GID="}, "docker-compose", "--file", "compose.yaml", "config")
	if err == nil || !strings.Contains(output, "DOCKER_GID") && !strings.Contains(output, "group of the engine's socket") {
		t.Errorf("without DOCKER_GID: %v\n%s", err, output)
	}
}
