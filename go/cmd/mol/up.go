package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// stopTimeout limits the time that `mol up` takes to stop after ctrl-C.
const stopTimeout = 30 * time.Second

func (a *app) upCommand() *cobra.Command {
	var (
		detach bool
		cfg    = workspace.Config{Owner: owner()}
	)
	cmd := &cobra.Command{
		Use:   "up RUNTIME[@SHA]",
		Short: "Start a workspace and print its URL",
		Long: "Start a workspace as a server does: find or build the image (or pull it, if\n" +
			"MOLECULE_IMAGE_REGISTRY is set), start a container and wait until it answers. The URL is\n" +
			"printed to standard output; ctrl-C stops and removes the workspace. With --detach it keeps\n" +
			"running. With @SHA the image is the one of exactly that commit. What the workspace writes\n" +
			"until it answers is shown.",
		Example:           "  mol up claude-code\n  mol up hermes --detach -e MODEL_API_KEY -v $PWD:/workspace/code",
		Args:              a.oneTarget,
		ValidArgsFunction: a.completeRuntime,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := absoluteFolders(cfg.Volumes); err != nil {
				return usageError{err}
			}
			var commit string
			cfg.Runtime, commit, _ = strings.Cut(args[0], "@")
			if cfg.ID == "" {
				cfg.ID = newID(cfg.Runtime)
			}
			return a.up(cmd.Context(), cfg, commit, detach)
		},
	}
	a.buildFlags(cmd)
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "keep the workspace running")
	cmd.Flags().StringVar(&cfg.ID, "id", "", "the workspace's `name` (default: the runtime and a random number)")
	cmd.Flags().VarP(envFlag{&cfg.Env}, "env", "e", "`NAME=value` for the workspace, or NAME to pass on this process's value; may be repeated")
	cmd.Flags().Uint16Var(&cfg.Port, "port", 0, "the `port` that the workspace listens on (default: the one that its image exposes)")
	cmd.Flags().StringArrayVarP(&cfg.Volumes, "volume", "v", nil, "mount `folder:path[:ro]`, or a named volume as name:path; may be repeated; write a folder in the working directory as ./folder")
	cmd.Flags().StringVar(&cfg.HealthPath, "health-path", "/health", "the `path` that answers when the workspace is ready")
	cmd.Flags().BoolVar(&cfg.Keep, "keep", false, "keep the container if it does not become ready")
	return cmd
}

// up starts a workspace and, without detach, stops it when ctx ends.
func (a *app) up(ctx context.Context, cfg workspace.Config, commit string, detach bool) error {
	source := mol.Resolve()
	if source.Mode == mol.RegistryModeSaaS && (commit != "" || a.chosen.pins != nil) {
		return usageError{errors.New("MOLECULE_IMAGE_REGISTRY is set, so the image is pulled from there, and no commit can be chosen: unset it, or omit @SHA and --pins")}
	}

	d := a.newDisplay(cfg.Runtime)
	output := &outputLines{to: d.output}
	cfg.Output = output
	began := time.Now()
	starting, cancel := a.withTimeout(ctx)
	engine, built, ws, err := a.start(starting, cfg, commit, d)
	cancel()
	output.flush()
	if err != nil {
		d.end("")
		return a.notUp(cfg, err)
	}
	defer func() { _ = engine.Close() }()
	next := "ctrl-C stops it; mol logs -f " + cfg.ID + " shows its output"
	if detach {
		next = fmt.Sprintf("next: mol open %[1]s, mol logs -f %[1]s, mol shell %[1]s, mol down %[1]s", cfg.ID)
	}
	d.end("up in " + seconds(time.Since(began)) + "; " + next)
	up := workspaceDetails(cfg.Runtime, built, ws)
	if detach {
		return a.printUp(result{outcome: succeeded, details: up}, ws.URL)
	}
	if err = a.printUp(startedLine{"started", up}, ws.URL); err == nil {
		err = wait(ctx, engine, ws)
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	err = errors.Join(err, workspace.Stop(stopping, engine, ws.ContainerID))
	if err == nil && a.asJSON {
		err = a.printJSON(result{outcome: succeeded, details: up})
	}
	return err
}

// notUp explains why a workspace is not up, in terms of the command line.
func (a *app) notUp(cfg workspace.Config, err error) error {
	err = fmt.Errorf("start workspace %q: %w", cfg.ID, err)
	switch {
	case errors.Is(err, workspace.ErrNameTaken):
		return hinted{err, fmt.Sprintf("choose another name with --id, or remove that one: mol down %[1]s, or docker rm -f workspace-%[1]s if it is not in mol ps", cfg.ID)}
	case errors.Is(err, workspace.ErrPull):
		return hinted{err, "check MOLECULE_IMAGE_REGISTRY, and log in with docker login if the registry asks for that; without the variable the image is built here"}
	case errors.Is(err, workspace.ErrNoPort):
		return usageError{fmt.Errorf("the image of %s exposes no TCP port: use --port, or add EXPOSE to the template's Dockerfile", cfg.Runtime)}
	case errors.Is(err, workspace.ErrKept):
		return hinted{err, fmt.Sprintf("its container is kept: mol logs %[1]s, mol shell %[1]s, mol down %[1]s", cfg.ID)}
	case errors.Is(err, workspace.ErrNotReady):
		return hinted{err, "start it again with --keep to examine its container; if it answers elsewhere, set --port or --health-path"}
	}
	return err
}

// absoluteFolders makes the folders of volumes absolute, as engines want them. A name
// without a separator is a volume.
func absoluteFolders(volumes []string) error {
	for i, volume := range volumes {
		from, rest, found := strings.Cut(volume, ":")
		if !found || from == "" || !strings.HasPrefix(rest, "/") {
			return fmt.Errorf("--volume %s: use folder:path or folder:path:ro, with an absolute path in the workspace", volume)
		}
		if strings.HasPrefix(from, ".") || strings.Contains(from, "/") {
			folder, err := filepath.Abs(from)
			if err != nil {
				return err
			}
			volumes[i] = folder + ":" + rest
		}
	}
	return nil
}

// start builds the image, or pulls it if MOLECULE_IMAGE_REGISTRY is set, and
// starts a workspace from it. If it was pulled, built is the zero Image.
func (a *app) start(ctx context.Context, cfg workspace.Config, commit string, d display) (engine *client.Client, built mol.Image, ws *workspace.Workspace, err error) {
	source := mol.Resolve()
	if source.Mode != mol.RegistryModeSaaS {
		if built, err = a.ensure(ctx, cfg.Runtime, commit, d); err != nil {
			return nil, built, nil, err
		}
	}
	if engine, err = workspace.ConnectOr(built.Endpoint); err != nil {
		return nil, built, nil, err
	}
	var img workspace.Image
	if source.Mode == mol.RegistryModeSaaS {
		ref := source.Prefix + "/workspace-template-" + cfg.Runtime + ":latest"
		d.phase("pull", source.Prefix)
		img, err = a.pull(ctx, engine, cfg.Runtime, ref, d)
	} else {
		img, err = workspace.Inspect(ctx, engine, built.Ref)
	}
	if err == nil {
		d.phase("start", img.Ref)
		ws, err = workspace.Start(ctx, engine, img, cfg)
	}
	if err != nil {
		_ = engine.Close()
	}
	return engine, built, ws, err
}

// pull pulls an image for the platform that local images are built for.
func (a *app) pull(ctx context.Context, engine *client.Client, runtime, ref string, d display) (workspace.Image, error) {
	platform, err := workspace.ParsePlatform(cmp.Or(a.options().Platform, "linux/amd64"))
	if err != nil {
		return workspace.Image{}, fmt.Errorf("%w: MOLECULE_IMAGE_PLATFORM: %w", mol.ErrInvalidOption, err)
	}
	events := newImagePull(runtime, ref, d.event)
	img, err := workspace.Pull(ctx, engine, ref, platform, events.progress)
	if err == nil {
		events.done()
	}
	return img, err
}

// workspaceDetails describe a workspace that is up. If its image was pulled, built is empty.
func workspaceDetails(runtime string, built mol.Image, ws *workspace.Workspace) details {
	var up details
	if built.Ref != "" {
		up = imageDetails(built)
	}
	up.Runtime, up.Ref = runtime, ws.Image
	up.URL, up.HealthURL = ws.URL, ws.HealthURL
	up.ContainerID, up.ContainerName = ws.ContainerID, ws.Name
	return up
}

// printUp prints the workspace's URL or, with --json, a line.
func (a *app) printUp(line any, url string) error {
	if a.asJSON {
		return a.printJSON(line)
	}
	return a.println(url)
}

// wait returns nil when ctx ends, because that is how a user stops a workspace,
// and an error when the workspace exits by itself.
func wait(ctx context.Context, engine *client.Client, ws *workspace.Workspace) error {
	code, err := workspace.Wait(ctx, engine, ws.ContainerID)
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w with code %d", errExited, code)
}

// errNotRunning is the error of a command that needs a running workspace.
var errNotRunning = errors.New("is not running")

// errExited is the error of a workspace that was up and exited by itself.
var errExited = errors.New("the workspace exited")

// newID returns a new, random name for a workspace.
func newID(runtime string) string {
	var random [3]byte
	_, _ = rand.Read(random[:]) // documented never to fail
	return runtime + "-" + hex.EncodeToString(random[:])
}
