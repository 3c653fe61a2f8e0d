package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The command prints one line of JSON and stops when its standard input is closed.
func TestRunStopsWhenStdinCloses(t *testing.T) {
	stdin, closeStdin := io.Pipe()
	stdout, output := io.Pipe()
	var stderr bytes.Buffer
	ended := make(chan error, 1)
	go func() {
		ended <- run(context.Background(), []string{"--root", t.TempDir(), "--base-path", "git", "--org", "us"}, stdin, output, &stderr)
		output.Close()
	}()
	lines := bufio.NewReader(stdout)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err, stderr.String())
	}
	var listening struct {
		URL        string `json:"url"`
		RepoPrefix string `json:"repo_prefix"`
	}
	if err := json.Unmarshal([]byte(line), &listening); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(listening.URL, "http://127.0.0.1:") || listening.RepoPrefix != listening.URL+"/us/molecule-ai-workspace-template-" {
		t.Errorf("%+v", listening)
	}
	response, err := http.Get(listening.URL + "/_control/requests")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	closeStdin.Close()
	mustStop(t, ended)
	if rest, _ := io.ReadAll(lines); len(rest) > 0 {
		t.Errorf("more output: %q", rest)
	}
}

// mustStop waits for the end of run.
func mustStop(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the server did not stop")
	}
}

func TestRunStopsWhenContextEnds(t *testing.T) {
	stdin, hold := io.Pipe()
	defer hold.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	started, output := io.Pipe()
	ended := make(chan error, 1)
	root := t.TempDir()
	go func() { ended <- run(ctx, []string{"--root", root}, stdin, output, io.Discard) }()
	if _, err := started.Read(make([]byte, 1024)); err != nil { // it listens
		t.Fatal(err)
	}
	go io.Copy(io.Discard, started)
	cancel()
	mustStop(t, ended)
}

func TestRunRejectsInvalidFlags(t *testing.T) {
	for _, args := range [][]string{{}, {"--root", "x", "y"}, {"--nothing"}, {"--root", t.TempDir(), "--templates", "/nothing/here"}, {"--root", t.TempDir(), "--listen", "0.0.0.0:0"}} {
		if err := run(context.Background(), args, strings.NewReader(""), io.Discard, io.Discard); err == nil {
			t.Errorf("%q: accepted", args)
		}
	}
}
