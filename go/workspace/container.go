package workspace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// Labels of every container, for `docker ps --filter label=…` and for servers
// that look for containers of an earlier run.
const (
	LabelWorkspace = "ai.moleculesai.workspace"
	LabelRuntime   = "ai.moleculesai.runtime"
	LabelOwner     = "ai.moleculesai.owner"
	LabelPort      = "ai.moleculesai.port"
)

// namePrefix and the ID are the name of a workspace's container.
const namePrefix = "workspace-"

// engineGrace limits the requests that are also sent when the caller's context
// has ended.
const engineGrace = 30 * time.Second

// create creates the container without starting it.
func create(ctx context.Context, engine *client.Client, img Image, cfg Config) (id string, err error) {
	port, err := workspacePort(img, cfg)
	if err != nil {
		return "", err
	}
	opts := client.ContainerCreateOptions{
		Platform: img.Platform,
		Config: &container.Config{
			Image:        img.Ref,
			Env:          cfg.Env,
			ExposedPorts: network.PortSet{port: {}},
			Labels: map[string]string{
				LabelWorkspace: cfg.ID, LabelRuntime: cfg.Runtime, LabelPort: port.Port(),
			},
		},
		HostConfig: &container.HostConfig{Binds: cfg.Volumes},
	}
	if cfg.ID != "" {
		opts.Name = namePrefix + cfg.ID
	}
	if cfg.Owner != "" {
		opts.Config.Labels[LabelOwner] = cfg.Owner
	}
	if cfg.Network != "" {
		opts.HostConfig.NetworkMode = container.NetworkMode(cfg.Network)
	} else {
		loopback := network.PortBinding{HostIP: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
		opts.HostConfig.PortBindings = network.PortMap{port: {loopback}}
	}

	// A cancelled request may still create a container, whose ID would be lost. So
	// the request is not cancelled with ctx.
	if err := ctx.Err(); err != nil {
		return "", err
	}
	detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), engineGrace)
	defer cancel()
	created, err := engine.ContainerCreate(detached, opts)
	if err != nil && taken(detached, engine, opts.Name, err) {
		return "", nameTakenError{opts.Name, err}
	}
	if err != nil {
		return "", fmt.Errorf("create container from %s: %w", img.Ref, err)
	}
	return created.ID, nil
}

// taken reports whether a container with the name exists, after err from its creation. Docker answers with a conflict,
// Podman with its general error.
func taken(ctx context.Context, engine *client.Client, name string, err error) bool {
	if errdefs.IsConflict(err) {
		return true
	}
	if name == "" {
		return false
	}
	_, err = engine.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	return err == nil
}

// A nameTakenError says which name is taken, without the engine's own words.
type nameTakenError struct {
	name  string
	cause error
}

func (e nameTakenError) Error() string {
	return fmt.Sprintf("%v: the container %s exists already", ErrNameTaken, e.name)
}

func (e nameTakenError) Unwrap() []error { return []error{ErrNameTaken, e.cause} }

// locate returns the workspace with the URLs of the started container.
func locate(ctx context.Context, engine *client.Client, id string, img Image, cfg Config) (*Workspace, error) {
	port, err := workspacePort(img, cfg)
	if err != nil {
		return nil, err
	}
	found, err := engine.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return nil, fmt.Errorf("inspect container: %w", err)
	}
	ctr := found.Container
	ws := &Workspace{ContainerID: id, Name: strings.TrimPrefix(ctr.Name, "/"), Image: img.Ref}

	var host, hostPort string
	if cfg.Network != "" {
		if end := ctr.NetworkSettings.Networks[cfg.Network]; end != nil && end.IPAddress.IsValid() {
			host, hostPort = end.IPAddress.String(), strconv.Itoa(int(port.Num()))
		}
	} else if bound := ctr.NetworkSettings.Ports[port]; len(bound) > 0 {
		host, hostPort = "127.0.0.1", bound[0].HostPort
	}
	if host == "" {
		// A container that exits at once has no address.
		if !ctr.State.Running {
			return nil, exited(ctx, engine, ctr.State.ExitCode, id)
		}
		return nil, fmt.Errorf("container %s has no address for port %s", ws.Name, port)
	}
	path := cfg.HealthPath
	if path == "" {
		path = "/health"
	}
	ws.URL = "http://" + net.JoinHostPort(host, hostPort)
	ws.HealthURL = ws.URL + "/" + strings.TrimPrefix(path, "/")
	return ws, nil
}

// discard removes the container of a failed Start, also after ctx has ended.
func discard(ctx context.Context, engine *client.Client, id string) error {
	detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), engineGrace)
	defer cancel()
	return remove(detached, engine, id)
}

// remove removes a container, running or not, and its anonymous volumes.
func remove(ctx context.Context, engine *client.Client, id string) error {
	_, err := engine.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	// A conflict means that another client is already removing the container.
	if err == nil || errdefs.IsNotFound(err) || errdefs.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("remove container %s: %w", id, err)
}

// ErrNoPort is wrapped by the error of Start when neither Config.Port nor the image
// says where the workspace listens.
var ErrNoPort = errors.New("set Config.Port, or add EXPOSE to its Dockerfile")

// workspacePort returns the port that the workspace listens on inside its container.
func workspacePort(img Image, cfg Config) (network.Port, error) {
	if cfg.Port != 0 {
		port, _ := network.PortFrom(cfg.Port, network.TCP)
		return port, nil
	}
	var ports []network.Port
	for exposed := range img.Config.ExposedPorts {
		if port, err := network.ParsePort(exposed); err == nil && port.Proto() == network.TCP {
			ports = append(ports, port)
		}
	}
	if len(ports) == 0 {
		return network.Port{}, fmt.Errorf("image %s exposes no TCP port: %w", img.Ref, ErrNoPort)
	}
	return slices.MinFunc(ports, func(a, b network.Port) int { return int(a.Num()) - int(b.Num()) }), nil
}
