package workspace

import (
	"fmt"

	"github.com/distribution/reference"
	"github.com/docker/cli/cli/config"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
)

// registryAuth returns the credentials that `docker login` stored for the
// registry of ref, in the engine's encoding, or "" if there are none.
func registryAuth(ref string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", err
	}
	key := reference.Domain(named)
	if key == "docker.io" {
		key = "https://index.docker.io/v1/" // the name that `docker login` uses for Docker Hub
	}
	file, err := config.Load(config.Dir())
	if err != nil {
		return "", fmt.Errorf("docker configuration: %w", err)
	}
	found, err := file.GetAuthConfig(key)
	if err != nil {
		return "", fmt.Errorf("credentials for %s: %w", key, err)
	}
	if found.Username == "" && found.Password == "" && found.IdentityToken == "" && found.RegistryToken == "" {
		return "", nil
	}
	return authconfig.Encode(registry.AuthConfig{
		Username:      found.Username,
		Password:      found.Password,
		IdentityToken: found.IdentityToken,
		RegistryToken: found.RegistryToken,
		ServerAddress: found.ServerAddress,
	})
}
