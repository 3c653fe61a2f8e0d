package workspace

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

// Connect returns a client for the engine that the docker command would use:
// DOCKER_HOST if it is set, else the context named by DOCKER_CONTEXT or selected
// with `docker context use`, else the default socket. It sends no request; the
// first request negotiates the API version.
//
// The published ports of an engine on another machine cannot be reached from
// here, so use such an engine only with Config.Network.
func Connect() (*client.Client, error) { return ConnectOr("") }

// ConnectOr is Connect with another engine in place of the one at the default
// socket: fallback, in the form of DOCKER_HOST, unless it is "". With the Endpoint of
// an image of libmol, it connects to the engine that has this image.
func ConnectOr(fallback string) (*client.Client, error) {
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
	switch {
	case name != "" && name != "default":
		return connectContext(name)
	case fallback != "":
		return connectHost(fallback)
	}
	return client.New(client.FromEnv)
}

// connectHost connects to the value of DOCKER_HOST, with or without a scheme, which
// it parses as the docker command does. The client supports all schemes except ssh,
// for which the docker command has a helper that runs the ssh program.
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

// connectContext connects to the engine of a docker context, with its TLS files.
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
