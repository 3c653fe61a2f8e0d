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
	private bool // made by the demo, and gone with it
	version string
	ours    map[string]bool // references that the demo has made
}

// findEngine connects to the engine that the docker command would use. With none
// in reach, root gets a private one in dir.
func findEngine(ctx context.Context, out *printer, after *cleanup, root, dir string) (*engine, error) {
	eng, err := connect(ctx, after)
	if err == nil {
		return eng, onThisMachine(eng.client.DaemonHost())
	}
	if os.Getuid() != 0 {
		return nil, fmt.Errorf("no container engine: %w\nstart or install Docker (https://docs.docker.com/engine/install), or, on Debian and Ubuntu, run this as root", err)
	}

	out.fact("engine", "none in reach; starting a private one, and installing docker.io if need be")
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

// String says which engine it is.
func (e *engine) String() string {
	if e.private {
		return e.version + ", private to this demo"
	}
	return e.version + " at " + e.client.DaemonHost()
}

// onThisMachine refuses an engine whose published ports are on another machine's
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
	return fmt.Errorf("the container engine is %s, and a workspace there cannot be reached from here: set DOCKER_HOST to one on this machine", host)
}

// call runs a program of this source tree, whose last line of complaint becomes
// the error.
func call(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	// Interrupt rather than kill: scripts/engine takes back what it began.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return nil
}

// keepLatest sees to it that the :latest tag of the user's own images is put back
// at the end.
func (e *engine) keepLatest(ctx context.Context, after *cleanup) error {
	if e.private {
		return nil // it goes with all its images
	}
	// Its entries do not say whose they are.
	after.note = "the engine's build cache keeps some megabytes, as after any build; docker builder prune empties it"
	latest := mol.LocalImageLatestTag(runtime)
	before, err := e.client.ImageInspect(ctx, latest)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	after.add(func(ctx context.Context) error {
		// Untag first: to move the tag would leave the demo's image, nameless.
		if err := e.untag(ctx, latest); err != nil || before.ID == "" {
			return err
		}
		_, err := e.client.ImageTag(ctx, client.ImageTagOptions{Source: before.ID, Target: latest})
		return err
	})
	return nil
}

// removeAfterwards removes an image of the demo at the end. Its commit was made
// for this run, so it cannot be anybody else's.
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

// untag removes a reference, and the image if that was its last one.
func (e *engine) untag(ctx context.Context, ref string) error {
	_, err := e.client.ImageRemove(ctx, ref, client.ImageRemoveOptions{PruneChildren: true})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
