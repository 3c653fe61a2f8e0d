package mol

import (
	"os"
	"testing"
)

// everyVariable are the variables that OptionsFromEnv and Resolve read.
var everyVariable = []string{
	"MOLECULE_IMAGE_REGISTRY", "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", "MOLECULE_LOCAL_TEMPLATE_BRANCH",
	"MOLECULE_GITEA_TOKEN", "MOLECULE_LOCAL_BUILD_CACHE", "MOLECULE_IMAGE_PLATFORM",
	"MOLECULE_LOCAL_IMAGE_ISOLATION", "MOLECULE_LOCAL_OFFLINE", "MOLECULE_LOCAL_RUNTIME_VERSION_PIN",
	"MOLECULE_BUILD_STALL_GRACE_S", "MOLECULE_BUILD_CEILING_S", "MOLECULE_BUILD_MEMORY_MIB",
	"MOLECULE_LOCAL_BUILDER", "MOLECULE_LOCAL_BUILDER_CA", "MOLECULE_LOCAL_BUILDER_CERT",
	"MOLECULE_LOCAL_BUILDER_KEY", "MOLECULE_LOCAL_BUILDER_SERVER_NAME", "BUILDX_BUILDER", "BUILDX_CONFIG",
	"MOLECULE_LOCAL_SHARED_CACHE", "MOLECULE_LOCAL_SHARED_CACHE_MODE",
	"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_BUILDKIT",
	"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy",
	"SSL_CERT_FILE", "SSL_CERT_DIR", "HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "TMPDIR", "PATH",
}

// clearEnv unsets all of them until the end of the test.
func clearEnv(t testing.TB) {
	t.Helper()
	for _, name := range everyVariable {
		unsetenv(t, name)
	}
}

func unsetenv(t testing.TB, name string) {
	t.Helper()
	t.Setenv(name, "") // restores it at the end
	if err := os.Unsetenv(name); err != nil {
		t.Fatal(err)
	}
}
