//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// childRuntime, if it is set, makes the test program a server that starts one workspace and no more: it prints
// the reference of the image, or why there is none.
const childRuntime = "MOL_TEST_CHILD_RUNTIME"

func TestMain(m *testing.M) {
	SetLogger(nil) // the tests of the log set their own
	runtime := os.Getenv(childRuntime)
	if runtime == "" {
		os.Exit(m.Run())
	}
	ref, err := EnsureLocalImage(context.Background(), runtime)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(ref)
}

// process starts another server with the environment of this test.
func (b *bed) process(runtime string) (*exec.Cmd, *bytes.Buffer) {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	said := new(bytes.Buffer)
	child := exec.Command(self)
	child.Env = append(os.Environ(), childRuntime+"="+runtime)
	child.Stdout, child.Stderr = said, said
	if err := child.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = child.Process.Kill() })
	return child, said
}

func TestSeveralProcessesShareOneFetchAndOneBuild(t *testing.T) {
	b := newBed(t)
	b.setenv()
	sha := b.template("hermes", dockerfile("FROM "+busybox+"\nRUN echo "+unique()+"; sleep 2\n"))
	type started struct {
		child *exec.Cmd
		said  *bytes.Buffer
	}
	var all []started
	for range 3 {
		child, said := b.process("hermes")
		all = append(all, started{child, said})
	}
	for _, s := range all {
		if err := s.child.Wait(); err != nil || strings.TrimSpace(s.said.String()) != b.ref("hermes", sha) {
			t.Errorf("got %v and %q", err, s.said)
		}
	}
	if n := b.server.requests(t).fetches(); n != 1 {
		t.Errorf("%d fetches", n)
	}
}

func TestAProcessThatIsKilledWhileItBuildsLeavesTheWayFree(t *testing.T) {
	b := newBed(t)
	b.setenv()
	word := unique()
	sha := b.template("hermes", dockerfile("FROM "+busybox+"\nRUN sleep 3; echo "+word+" > /x\n"))
	child, _ := b.process("hermes")
	until(t, "the build of the other process runs", func() bool { return isRunning(word) })

	c := b.client()
	waiting := c.begin("hermes")
	holder := c.waitFor(EventWaiting, nil).Holder
	if want := fmt.Sprintf("process %d", child.Process.Pid); holder != want {
		t.Errorf("it waits for %q, not for %q", holder, want)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	if image := waiting.ends(); image.Ref != b.ref("hermes", sha) {
		t.Errorf("got %+v", image)
	}
}

func TestPodmanIsSpokenToLikeDocker(t *testing.T) {
	b := parallelBed(t)
	podman := engineAt(given(t, "MOL_TEST_PODMAN"))
	t.Cleanup(func() { podman.removeAllOf(t, b.isolation) })
	c := b.client(func(o *Options) { o.DockerHost = podman.url })
	for _, content := range []string{"one", "two"} {
		sha := b.template("hermes", copying(content))
		first := c.ensure("hermes")
		if first.CacheHit || first.Ref != b.ref("hermes", sha) || first.Endpoint != podman.url {
			t.Errorf("got %+v", first)
		}
		if got := podman.read(t, first.Ref, "content"); got != content {
			t.Errorf("in the image is %q", got)
		}
		if again := c.ensure("hermes"); !again.CacheHit || again.ImageID != first.ImageID {
			t.Errorf("got %+v", again)
		}
	}
	if n := c.count(EventBuildStarted); n != 2 {
		t.Errorf("%d builds", n)
	}
}
