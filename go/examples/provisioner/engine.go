package provisioner

import (
	"fmt"
	"os"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/connhelper"
	"github.com/docker/cli/cli/context/docker"
	"github.com/docker/cli/cli/context/store"
	"github.com/docker/cli/opts"
	"github.com/moby/moby/client"
)

// Connect returns a client for the engine that the docker command line would
// use: DOCKER_HOST if it is set, else the context named by DOCKER_CONTEXT or
// selected with `docker context use`, else the default socket. Nothing is sent
// yet; the version of the API is negotiated with the first request.
//
// The published ports of an engine on another machine are not reachable from
// here, so use such an engine only with WorkspaceConfig.Network.
func Connect() (*client.Client, error) {
	if host := os.Getenv(client.EnvOverrideHost); host != "" {
		return connectHost(host)
	}
	name := os.Getenv("DOCKER_CONTEXT")
	if name == "" {
		file, err := config.Load(config.Dir())
		if err != nil {
			return nil, fmt.Errorf("docker configuration: %w", err)
		}
		name = file.CurrentContext
	}
	if name == "" || name == "default" {
		return client.New(client.FromEnv)
	}
	return connectContext(name)
}

// connectHost is for the value of DOCKER_HOST, with or without a scheme, as the docker
// command line reads it. The client knows every scheme but ssh, for which the docker
// command line has a helper around the ssh program.
func connectHost(host string) (*client.Client, error) {
	host, err := opts.ParseHost(os.Getenv(client.EnvTLSVerify) != "", strings.TrimSpace(host))
	if err != nil {
		return nil, fmt.Errorf("docker host: %w", err)
	}
	helper, err := connhelper.GetConnectionHelper(host)
	if err != nil {
		return nil, fmt.Errorf("docker host %s: %w", host, err)
	}
	if helper == nil {
		return client.New(client.WithTLSClientConfigFromEnv(), client.WithHost(host), client.WithAPIVersionFromEnv())
	}
	return client.New(client.WithHost(helper.Host), client.WithDialContext(helper.Dialer), client.WithAPIVersionFromEnv())
}

// connectContext is for a docker context, with its TLS material.
func connectContext(name string) (*client.Client, error) {
	contexts := store.New(config.ContextStoreDir(), store.NewConfig(
		func() any { return &map[string]any{} },
		store.EndpointTypeGetter(docker.DockerEndpoint, func() any { return &docker.EndpointMeta{} }),
	))
	meta, err := contexts.GetMetadata(name)
	if err != nil {
		return nil, fmt.Errorf("docker context %q: %w", name, err)
	}
	bare, err := docker.EndpointFromContext(meta)
	if err != nil {
		return nil, fmt.Errorf("docker context %q: %w", name, err)
	}
	endpoint, err := docker.WithTLSData(contexts, name, bare)
	if err != nil {
		return nil, fmt.Errorf("docker context %q: %w", name, err)
	}
	opts, err := endpoint.ClientOpts()
	if err != nil {
		return nil, fmt.Errorf("docker context %q: %w", name, err)
	}
	return client.New(opts...)
}
