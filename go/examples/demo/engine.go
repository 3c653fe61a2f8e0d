package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// An engine is the container engine that the demo runs on.
type engine struct {
	client  *client.Client
	private bool // started by the demo, which also stops it
	version string
	ours    map[string]bool // references that the demo created
}

// findEngine connects to the engine that the docker command would use. If there is
// none, root gets a private one in dir.
func findEngine(ctx context.Context, out *printer, after *cleanup, root, dir string) (*engine, error) {
	eng, err := connect(ctx, after)
	if err == nil {
		return eng, onThisMachine(eng.client.DaemonHost())
	}
	if os.Getuid() != 0 {
		return nil, fmt.Errorf("no container engine: %w\nstart or install Docker (https://docs.docker.com/engine/install), or, on Debian and Ubuntu, run this as root", err)
	}

	out.fact("engine", "not found; starting a private one, and installing docker.io if it is missing")
	script := filepath.Join(root, "scripts/engine")
	after.add(func(ctx context.Context) error { return call(ctx, script, "stop", dir) })
	if err := call(ctx, script, "start", dir); err != nil {
		return nil, err
	}
	for name, value := range map[string]string{
		"DOCKER_HOST":       "unix://" + filepath.Join(dir, "docker.sock"),
		"DOCKER_TLS_VERIFY": "",
		"DOCKER_CERT_PATH":  "",
	} {
		if err := os.Setenv(name, value); err != nil {
			return nil, err
		}
	}
	eng, err = connect(ctx, after)
	if err != nil {
		return nil, err
	}
	after.made("engine")
	eng.private = true
	return eng, nil
}

func connect(ctx context.Context, after *cleanup) (*engine, error) {
	c, err := workspace.Connect()
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	version, err := c.ServerVersion(asking, client.ServerVersionOptions{})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	after.add(func(context.Context) error { return c.Close() })
	return &engine{
		client:  c,
		version: cmp.Or(version.Platform.Name, "Docker Engine") + " " + version.Version,
		ours:    map[string]bool{},
	}, nil
}

// String describes the engine.
func (e *engine) String() string {
	if e.private {
		return e.version + ", private to this demo"
	}
	return e.version + " at " + e.client.DaemonHost()
}

// onThisMachine rejects an engine that publishes ports on another machine's
// loopback.
func onThisMachine(host string) error {
	u, err := url.Parse(host)
	if err != nil {
		return err
	}
	switch u.Scheme {
	case "unix", "npipe":
		return nil
	case "tcp":
		if name := u.Hostname(); name == "localhost" || name == "127.0.0.1" || name == "::1" {
			return nil
		}
	}
	return fmt.Errorf("the container engine is %s, whose workspaces cannot be reached from here: set DOCKER_HOST to an engine on this machine", host)
}

// call runs a program of this source tree. Its standard error becomes part of the
// error.
func call(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	// Interrupt instead of kill, so that scripts/engine cleans up.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// keepLatest restores the :latest tag of the user's own images at the end.
func (e *engine) keepLatest(ctx context.Context, after *cleanup) error {
	if e.private {
		return nil // its images are removed with it
	}
	// The entries of the build cache have no owner, so the demo cannot remove its own.
	after.note = "the engine's build cache keeps some megabytes, as after any build; docker builder prune removes them"
	latest := mol.LocalImageLatestTag(runtime)
	before, err := e.imageID(ctx, latest)
	if err != nil {
		return err
	}
	after.add(func(ctx context.Context) error {
		now, err := e.imageID(ctx, latest)
		if err != nil || now == before {
			return err // untagging the user's own image could remove it
		}
		// Untag first: moving the tag would leave the demo's image without a name.
		if err := e.untag(ctx, latest); err != nil || before == "" {
			return err
		}
		_, err = e.client.ImageTag(ctx, client.ImageTagOptions{Source: before, Target: latest})
		return err
	})
	return nil
}

// imageID returns the ID of the image that ref points to, or "" if there is none.
func (e *engine) imageID(ctx context.Context, ref string) (string, error) {
	found, err := e.client.ImageInspect(ctx, ref)
	if errdefs.IsNotFound(err) {
		return "", nil
	}
	return found.ID, err
}

// removeAfterwards removes an image of the demo at the end. Its commit was created
// in this run, so nothing else uses the image.
func (e *engine) removeAfterwards(after *cleanup, ref string) {
	if e.ours[ref] {
		return
	}
	e.ours[ref] = true
	after.made("image")
	if !e.private {
		after.add(func(ctx context.Context) error { return e.untag(ctx, ref) })
	}
}

// untag removes a reference, and the image if it was the last reference.
func (e *engine) untag(ctx context.Context, ref string) error {
	_, err := e.client.ImageRemove(ctx, ref, client.ImageRemoveOptions{PruneChildren: true})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
