//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
)

// footprint is what a leak in the host process would add to (promise P7).
type footprint struct {
	goroutines, threads, files int
	memory                     int // resident, in KiB
}

func (f footprint) within(limit footprint) bool {
	return f.goroutines <= limit.goroutines && f.threads <= limit.threads && f.files <= limit.files && f.memory <= limit.memory
}

func footprintNow(t *testing.T) footprint {
	t.Helper()
	debug.FreeOSMemory() // memory that Go keeps for later is not a leak
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	number := func(name string) int {
		_, after, _ := strings.Cut(string(status), "\n"+name+":")
		line, _, _ := strings.Cut(after, "\n")
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(line), " kB"))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return footprint{runtime.NumGoroutine(), number("Threads"), len(open), number("VmRSS")}
}

// inOwnProcess runs the test in a new process, and reports whether this is that process: the threads, files and memory
// of other tests must not count.
func inOwnProcess(t *testing.T) bool {
	t.Helper()
	const own = "MOL_TEST_OWN_PROCESS"
	if os.Getenv(own) != "" {
		return true
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v"}
	if deadline, ok := t.Deadline(); ok {
		// Before this process ends: its end would neither stop the child nor show its output.
		args = append(args, "-test.timeout="+time.Until(deadline.Add(-10*time.Second)).String())
	}
	child := exec.Command(os.Args[0], args...)
	child.Env = append(os.Environ(), own+"=1")
	output, err := child.CombinedOutput()
	t.Logf("%s", output)
	if err != nil {
		t.Fatal(err)
	}
	return false
}

func TestNothingIsLeftAfterAThousandRoundsOfEnsureAndCancel(t *testing.T) {
	t.Parallel()
	if !inOwnProcess(t) {
		return
	}
	env := newTestEnv(t)
	env.commit("hermes", dockerfile(plain))
	// Not env.client, which keeps every client until the end of the test.
	newClient := func() *testClient {
		o := env.options()
		o.OnEvent = func(Event) {}
		client, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		return &testClient{Client: client, env: env}
	}
	// A round is a call that is cancelled after a delay, so at a different step each time; one call in fifty completes.
	// Each client is used for fifty rounds.
	rounds := func(n int) {
		var c *testClient
		for i := range n {
			if i%50 == 0 {
				c = newClient()
			}
			call := c.start("hermes")
			if i%50 == 49 {
				call.mustSucceed()
				env.engine.removeImages(t, env.isolation)
				_ = c.Close()
				continue
			}
			time.Sleep(time.Duration(i%50) * 500 * time.Microsecond)
			call.cancel()
			if err := call.wait().err; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	}
	// The first rounds start the library's runtime, and the threads and the memory that Go and the C library keep.
	rounds(200)
	before := footprintNow(t)
	begun, done := time.Now(), 0
	for done < 1000 || time.Since(begun) < soakDuration(t) {
		rounds(1000)
		done += 1000
	}
	// Go never ends a thread that it has started, and may start one at any time; a leak would be many more. Memory
	// settles only after some time.
	limit := before
	limit.threads += 10
	limit.memory += 16 << 10
	after := footprintNow(t)
	for deadline := time.Now().Add(waitLimit / 3); !after.within(limit); after = footprintNow(t) {
		if time.Now().After(deadline) {
			t.Fatalf("before %+v, after %+v", before, after)
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("before %+v, after %d rounds %+v", before, done, after)
}

// soakDuration is how long make soak repeats a test; 0 for make test, which runs it once.
func soakDuration(t *testing.T) time.Duration {
	t.Helper()
	value := os.Getenv("MOL_TEST_SOAK_SECONDS")
	if value == "" {
		return 0
	}
	seconds, err := strconv.Atoi(value)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds) * time.Second
}
