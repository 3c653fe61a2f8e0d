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

// The host process is safe (promise P7): nothing is left in it, however often.

// footprint is what a leak would add to.
type footprint struct {
	goroutines, threads, files int
	memory                     int // resident, in KiB
}

func (f footprint) within(limit footprint) bool {
	return f.goroutines <= limit.goroutines && f.threads <= limit.threads && f.files <= limit.files && f.memory <= limit.memory
}

func footprintNow(t *testing.T) footprint {
	t.Helper()
	debug.FreeOSMemory() // what Go only keeps for later is no leak
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

// inOwnProcess runs the test in a process of its own, and says whether this is that process. Such a test counts what
// the process has, and other tests leave their share.
func inOwnProcess(t *testing.T) bool {
	t.Helper()
	const own = "MOL_TEST_OWN_PROCESS"
	if os.Getenv(own) != "" {
		return true
	}
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	child.Env = append(os.Environ(), own+"=1")
	said, err := child.CombinedOutput()
	t.Logf("%s", said)
	if err != nil {
		t.Fatal(err)
	}
	return false
}

func TestNothingIsLeftAfterAThousandRoundsOfEnsureAndCancel(t *testing.T) {
	if !inOwnProcess(t) {
		return
	}
	b := newBed(t)
	b.template("hermes", dockerfile(plain))
	// Not b.client, which keeps every client until the end of the test.
	newcomer := func() *testClient {
		o := b.options()
		o.OnEvent = func(Event) {}
		client, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		return &testClient{Client: client, b: b}
	}
	// A round is a call that is cancelled after a while, which leads to a different place each time; one in fifty
	// may end. Every client is used for fifty.
	rounds := func(n int) {
		var c *testClient
		for i := range n {
			if i%50 == 0 {
				c = newcomer()
			}
			call := c.begin("hermes")
			if i%50 == 49 {
				call.ends()
				b.engine.removeAllOf(b, b.isolation)
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
	// The library's one runtime and the threads and the memory that Go and the C library keep for later come with
	// the first rounds.
	rounds(200)
	before := footprintNow(t)
	begun, done := time.Now(), 0
	for done < 1000 || time.Since(begun) < soak(t) {
		rounds(1000)
		done += 1000
	}
	// Go never ends a thread that it once made, and may make one at any time; a leak would be many more. Memory
	// settles only in time.
	limit := before
	limit.threads += 3
	limit.memory += 16 << 10
	after := footprintNow(t)
	for deadline := time.Now().Add(patience / 3); !after.within(limit); after = footprintNow(t) {
		if time.Now().After(deadline) {
			t.Fatalf("before %+v, after %+v", before, after)
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("before %+v, after %d rounds %+v", before, done, after)
}

// soak is how long make soak wants a test to go on; make test wants it once.
func soak(t *testing.T) time.Duration {
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
