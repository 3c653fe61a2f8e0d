package provisioner

import (
	"context"
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

// Labels on every container, for `docker ps --filter label=…` and for a server
// that looks for what an earlier run of it left behind.
const (
	LabelWorkspace = "ai.moleculesai.workspace"
	LabelRuntime   = "ai.moleculesai.runtime"
)

// engineGrace bounds the calls that must reach the engine also when the
// caller's context has ended.
const engineGrace = 30 * time.Second

// create makes the container, without starting it.
func (p *Provisioner) create(ctx context.Context, cfg WorkspaceConfig, img image) (id string, err error) {
	port, err := workspacePort(cfg, img)
	if err != nil {
		return "", err
	}
	opts := client.ContainerCreateOptions{
		Platform: img.platform,
		Config: &container.Config{
			Image:        img.ref,
			Env:          cfg.Env,
			ExposedPorts: network.PortSet{port: {}},
			Labels:       map[string]string{LabelWorkspace: cfg.ID, LabelRuntime: cfg.Runtime},
		},
		HostConfig: &container.HostConfig{},
	}
	if cfg.ID != "" {
		opts.Name = "workspace-" + cfg.ID
	}
	if cfg.Network != "" {
		opts.HostConfig.NetworkMode = container.NetworkMode(cfg.Network)
	} else {
		loopback := network.PortBinding{HostIP: netip.AddrFrom4([4]byte{127, 0, 0, 1})}
		opts.HostConfig.PortBindings = network.PortMap{port: {loopback}}
	}

	// A create that is cancelled half-way may still have made a container, and
	// then nobody would know its ID. So it always runs to its end.
	if err := ctx.Err(); err != nil {
		return "", err
	}
	detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), engineGrace)
	defer cancel()
	created, err := p.engine.ContainerCreate(detached, opts)
	if err != nil {
		return "", fmt.Errorf("create container from %s: %w", img.ref, err)
	}
	return created.ID, nil
}

// locate says where the started container is reached.
func (p *Provisioner) locate(ctx context.Context, cfg WorkspaceConfig, id string, img image) (*Workspace, error) {
	port, err := workspacePort(cfg, img)
	if err != nil {
		return nil, err
	}
	found, err := p.engine.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return nil, fmt.Errorf("inspect container: %w", err)
	}
	ctr := found.Container
	ws := &Workspace{ContainerID: id, Name: strings.TrimPrefix(ctr.Name, "/"), Image: img.ref}

	var host, hostPort string
	if cfg.Network != "" {
		if end := ctr.NetworkSettings.Networks[cfg.Network]; end != nil && end.IPAddress.IsValid() {
			host, hostPort = end.IPAddress.String(), strconv.Itoa(int(port.Num()))
		}
	} else if bound := ctr.NetworkSettings.Ports[port]; len(bound) > 0 {
		host, hostPort = "127.0.0.1", bound[0].HostPort
	}
	if host == "" {
		// A container that ends at once has no addresses any more.
		if !ctr.State.Running {
			return nil, p.exited(ctx, ctr.State.ExitCode, id)
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

// discard removes a container that Start made and will not hand out. It works
// on after ctx has ended: that is one of the reasons to come here.
func (p *Provisioner) discard(ctx context.Context, id string) error {
	detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), engineGrace)
	defer cancel()
	return p.remove(detached, id)
}

// remove deletes a container, running or not, and its anonymous volumes.
func (p *Provisioner) remove(ctx context.Context, id string) error {
	_, err := p.engine.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	// A conflict means that somebody else's removal of it is under way.
	if err == nil || errdefs.IsNotFound(err) || errdefs.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("remove container %s: %w", id, err)
}

// workspacePort is the port that the workspace listens on inside its container.
func workspacePort(cfg WorkspaceConfig, img image) (network.Port, error) {
	if cfg.Port != 0 {
		port, _ := network.PortFrom(cfg.Port, network.TCP)
		return port, nil
	}
	var ports []network.Port
	for exposed := range img.config.ExposedPorts {
		if port, err := network.ParsePort(exposed); err == nil && port.Proto() == network.TCP {
			ports = append(ports, port)
		}
	}
	if len(ports) == 0 {
		return network.Port{}, fmt.Errorf("image %s exposes no TCP port: set Port, or write EXPOSE in its Dockerfile", img.ref)
	}
	return slices.MinFunc(ports, func(a, b network.Port) int { return int(a.Num()) - int(b.Num()) }), nil
}
