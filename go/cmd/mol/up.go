package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/examples/provisioner"
	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// stopTimeout bounds what `mol up` does after ctrl-C.
const stopTimeout = 30 * time.Second

func (a *app) upCommand() *cobra.Command {
	var (
		detach bool
		cfg    provisioner.WorkspaceConfig
	)
	cmd := &cobra.Command{
		Use:   "up RUNTIME[@SHA]",
		Short: "Boot a workspace and print its address",
		Long: "Boot a workspace the way a server does: find or build the image, start a container\n" +
			"and wait until it answers. Its address goes to standard output; ctrl-C stops and\n" +
			"removes it. With --detach it is left running. With @SHA the image is the one of exactly\n" +
			"that commit.",
		Example:           "  mol up claude-code\n  mol up hermes --detach --env MODEL_API_KEY",
		Args:              a.oneTarget,
		ValidArgsFunction: a.completeRuntime,
		RunE: func(cmd *cobra.Command, args []string) error {
			var commit string
			cfg.Runtime, commit, _ = strings.Cut(args[0], "@")
			if cfg.ID == "" {
				cfg.ID = newID(cfg.Runtime)
			}
			return a.up(cmd.Context(), cfg, commit, detach)
		},
	}
	a.buildFlags(cmd)
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "leave the workspace running")
	cmd.Flags().StringVar(&cfg.ID, "id", "", "the workspace's `name` (default: the runtime and a random number)")
	cmd.Flags().Var(envFlag{&cfg.Env}, "env", "`NAME=value` for the workspace, or NAME to hand on this process's; may be repeated")
	cmd.Flags().Uint16Var(&cfg.Port, "port", 0, "the `port` that the workspace listens on (default: the one its image exposes)")
	return cmd
}

// up boots a workspace and, unless it is to be left alone, stops it again when
// ctx ends.
func (a *app) up(ctx context.Context, cfg provisioner.WorkspaceConfig, commit string, detach bool) error {
	source := mol.Resolve()
	if source.Mode == mol.RegistryModeSaaS && (commit != "" || a.chosen.pins != nil) {
		return usageError{errors.New("MOLECULE_IMAGE_REGISTRY is set, so the image is pulled from there, and no commit can be chosen: unset it, or give neither @SHA nor --pins")}
	}
	engine, err := provisioner.Connect()
	if err != nil {
		return err
	}
	defer func() { _ = engine.Close() }()

	d := a.newDisplay(cfg.Runtime)
	p := provisioner.New(engine)
	p.Runtimes = a.chosen.runtimes
	var img mol.Image
	p.EnsureLocalImage = func(ctx context.Context, runtime string) (string, error) {
		var err error
		if img, err = a.ensure(ctx, runtime, commit, d); err != nil {
			return "", err
		}
		d.phase("start", img.Ref)
		return img.Ref, nil
	}
	if source.Mode == mol.RegistryModeSaaS {
		d.phase("pull and start", source.Prefix)
	}

	began := time.Now()
	starting, cancel := a.withTimeout(ctx)
	ws, err := p.Start(starting, cfg)
	cancel()
	if err != nil {
		d.end("")
		return err
	}
	next := "ctrl-C stops it"
	if detach {
		next = "docker rm -f " + ws.Name + " removes it"
	}
	d.end("up in " + seconds(time.Since(began)) + "; " + next)
	if err := a.announce(ws, img); err != nil || detach {
		return err
	}

	gone := wait(ctx, engine, ws)
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return errors.Join(gone, p.Stop(stopping, ws.ContainerID))
}

// announce prints what is up.
func (a *app) announce(ws *provisioner.Workspace, img mol.Image) error {
	if !a.asJSON {
		return a.println(ws.URL)
	}
	up := imageResult(img)
	up.Ref = ws.Image
	up.URL, up.HealthURL = ws.URL, ws.HealthURL
	up.ContainerID, up.ContainerName = ws.ContainerID, ws.Name
	return a.printJSON(up)
}

// wait returns nil when ctx ends, which is how a user stops a workspace, and an
// error when the workspace ends by itself.
func wait(ctx context.Context, engine *client.Client, ws *provisioner.Workspace) error {
	ended := engine.ContainerWait(ctx, ws.ContainerID, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case <-ctx.Done():
		return nil
	case state := <-ended.Result:
		return fmt.Errorf("%w: it ended with exit code %d", errEnded, state.StatusCode)
	case err := <-ended.Error:
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("wait for container %s: %w", ws.Name, err)
	}
}

// errEnded is what a workspace comes to that was up and ended by itself.
var errEnded = errors.New("the workspace runs no longer")

// newID is a name for a workspace, new every time.
func newID(runtime string) string {
	var random [3]byte
	_, _ = rand.Read(random[:]) // documented never to fail
	return runtime + "-" + hex.EncodeToString(random[:])
}
