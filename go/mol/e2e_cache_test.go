//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The tests here need a machine that is not as it is: another server, in a mount namespace of its own, sees what
// they change there, and nobody else does.

// elsewhere runs another server that starts one workspace, after this script has changed what it sees of the disk,
// and gives what it says. It must fail.
func (b *bed) elsewhere(script, runtime string, env ...string) string {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	child := exec.Command("/usr/bin/unshare", "--mount", "--", "/bin/sh", "-ec", script+`; exec "$0"`, self)
	child.Env = append(append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", childRuntime+"="+runtime), env...)
	var said bytes.Buffer
	child.Stdout, child.Stderr = &said, &said
	var status *exec.ExitError
	if err := child.Run(); !errors.As(err, &status) {
		b.Fatalf("this cannot be: %v: %s", err, &said)
	}
	return said.String()
}

func TestAReadOnlyCacheIsNamed(t *testing.T) {
	b := newBed(t)
	b.setenv()
	b.template("hermes", dockerfile(plain))
	if err := os.Mkdir(b.cache(), 0o700); err != nil {
		t.Fatal(err)
	}
	// Not even root can write to a mount that is read-only.
	said := b.elsewhere("mount -t tmpfs -o ro,mode=700 none "+b.cache(), "hermes")
	says(t, said, b.cache(), "ead-only", "MOLECULE_LOCAL_BUILD_CACHE")
	if refs := b.engine.refsOf(t, b.isolation); len(refs) > 0 {
		t.Errorf("there are images: %v", refs)
	}
}

func TestACacheOfAnotherUserIsRefused(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	for _, folder := range []string{b.cache(), filepath.Join(b.cache(), "hermes")} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(folder, 12345, -1); err != nil {
			t.Fatalf("the tests run as root, as their engine does: %v", err)
		}
		e := b.client().refused("hermes", ErrCache)
		says(t, e.Message, folder, "another user", "12345")
		says(t, e.Hint, "MOLECULE_LOCAL_BUILD_CACHE")
		if err := os.Chown(folder, os.Getuid(), -1); err != nil {
			t.Fatal(err)
		}
	}
	// Nothing was written before it was looked at, and now it can be used.
	b.client().ensure("hermes")
}

func TestWithoutAnEngineEveryEndpointThatWasTriedIsListed(t *testing.T) {
	b := newBed(t)
	b.setenv()
	b.template("hermes", dockerfile(plain))
	home, run := filepath.Join(b.dir, "home"), filepath.Join(b.dir, "run")
	// An engine that this machine has must neither be found nor be touched: /run is hidden.
	said := b.elsewhere("mount -t tmpfs none /run; [ -L /var/run ] || mount -t tmpfs none /var/run", "hermes",
		"DOCKER_HOST=", "HOME="+home, "XDG_RUNTIME_DIR="+run)
	for _, socket := range []string{
		"/var/run/docker.sock",
		run + "/docker.sock",
		home + "/.docker/run/docker.sock",
		home + "/.docker/desktop/docker.sock",
		home + "/.colima/default/docker.sock",
		run + "/podman/podman.sock",
		"/run/podman/podman.sock",
	} {
		says(t, said, "unix://"+socket)
	}
	if n := strings.Count(said, "No such file"); n < 7 {
		t.Errorf("it says why for %d of them only: %s", n, said)
	}
	says(t, said, "start Docker or Podman", "DOCKER_HOST")
	b.untouched()
}
