//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"context"
	"errors"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// siegeDuration is how long the siege lasts; make test uses the default.
func siegeDuration(t *testing.T) time.Duration {
	t.Helper()
	value := os.Getenv("MOL_TEST_SIEGE_SECONDS")
	if value == "" {
		return 16 * time.Second
	}
	seconds, err := strconv.Atoi(value)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds) * time.Second
}

// lateAtMost is how late after its deadline a call may return while thousands of goroutines share two processors.
const lateAtMost = 30 * time.Second

// Thousands of goroutines, whose contexts end at random, call template servers that send false or endless answers, and an
// engine behind an ssh that dies. The process must not crash, hang or grow (promises P4, P7 and P9).
func TestThousandsOfGoroutinesUnderSiegeNeitherCrashHangNorLeak(t *testing.T) {
	if !inOwnProcess(t) {
		return
	}
	env := newTestEnv(t)
	docker := requiredEnv(t, "MOL_TEST_DOCKER")
	programs := filepath.Join(env.dir, "programs")
	if err := os.Mkdir(programs, 0o755); err != nil {
		t.Fatal(err)
	}
	dies := "#!/bin/sh\nPATH=/usr/bin:/bin\n(dd bs=64k count=30 2>/dev/null; kill -9 0) | " + docker + " --host " + env.engine.url + " system dial-stdio\n"
	if err := os.WriteFile(filepath.Join(programs, "ssh"), []byte(dies), 0o755); err != nil {
		t.Fatal(err)
	}

	servers := []*templateServer{env.server}
	for _, how := range []fault{
		{"match": "/api/", "endless": true, "body": "{\"commit\":"},
		{"match": "/api/", "reset": true},
		{"match": "/api/", "status": 500, "body": "\x1b[31m\r\n"},
		{"match": "/git-upload-pack$", "endless": true, "body_first": "000dpackfile\n", "body": "000f\x02resolving\n",
			"headers": map[string]string{"Content-Type": "application/x-git-upload-pack-result"}},
		{"match": "/git-upload-pack$", "truncate_after": 70_000},
	} {
		hostile := startTemplateServer(t)
		hostile.setFaults(t, how)
		servers = append(servers, hostile)
	}
	for _, server := range servers {
		for _, runtime := range KnownRuntimes()[:3] {
			server.commit(t, templateRepo(runtime), "main", copying(strings.Repeat(uniqueWord(), 20_000)))
		}
	}
	var clients []*Client
	for _, server := range servers {
		for _, host := range []string{env.engine.url, "ssh://host", "unix:///nowhere.sock"} {
			o := env.options()
			o.RepoPrefix, o.DockerHost, o.env.machine["PATH"] = server.RepoPrefix, host, programs
			o.OnEvent = func(Event) {}
			client, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			clients = append(clients, client)
		}
	}

	goroutines := 10_000
	if raceDetector {
		goroutines = 4_000 // with the race detector, each call takes several times the time and memory
	}
	round := func(lasts time.Duration) {
		end := time.Now().Add(lasts)
		var calls sync.WaitGroup
		for range goroutines {
			calls.Add(1)
			go func() {
				defer calls.Done()
				for time.Now().Before(end) {
					timeout := time.Duration(1+rand.Intn(3000)) * time.Millisecond
					ctx, cancel := context.WithTimeout(context.Background(), timeout)
					if rand.Intn(2) == 0 {
						time.AfterFunc(timeout/2, cancel)
					}
					begun := time.Now()
					_, err := clients[rand.Intn(len(clients))].EnsureLocalImage(ctx, KnownRuntimes()[rand.Intn(3)])
					cancel()
					if errors.Is(err, ErrInternal) {
						t.Error(err)
					}
					if late := time.Since(begun) - timeout; late > lateAtMost {
						t.Errorf("a call returned %v after its deadline", late)
					}
				}
			}()
		}
		calls.Wait()
	}
	round(siegeDuration(t) / 2)
	time.Sleep(2 * time.Second)
	before := footprintNow(t)
	round(siegeDuration(t) / 2)
	limit := before
	limit.threads += 80 // the library's idle threads end; Go keeps its own
	limit.files += 64
	limit.memory += 96 << 10
	if raceDetector {
		limit.memory += 1 << 20 // the race detector's records grow with every goroutine and never shrink
	}
	after := footprintNow(t)
	for deadline := time.Now().Add(waitLimit / 3); !after.within(limit); after = footprintNow(t) {
		if time.Now().After(deadline) {
			t.Fatalf("before %+v, after %+v", before, after)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("before %+v, after %+v", before, after)
	for _, client := range clients {
		begun := time.Now()
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took > 4*time.Second {
			t.Errorf("a client took %v to close", took)
		}
	}
}
