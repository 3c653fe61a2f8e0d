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

// siegeSeconds is how long the siege lasts: a short time in make test.
func siegeSeconds(t *testing.T) time.Duration {
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

// lateAtMost is how late a call may be seen to return where ten thousand goroutines share two processors.
const lateAtMost = 30 * time.Second

// A server with 10,000 goroutines, whose contexts end at random, against template servers that lie and never end
// and an ssh that dies. It must not die, hang or grow (promises P4, P7 and P9).
func TestAServerWithTenThousandGoroutinesUnderSiegeDoesNotDieHangOrGrow(t *testing.T) {
	if !inOwnProcess(t) {
		return
	}
	b := newBed(t)
	docker := given(t, "MOL_TEST_DOCKER")
	programs := filepath.Join(b.dir, "programs")
	if err := os.Mkdir(programs, 0o755); err != nil {
		t.Fatal(err)
	}
	dies := "#!/bin/sh\nPATH=/usr/bin:/bin\n(dd bs=64k count=30 2>/dev/null; kill -9 0) | " + docker + " --host " + b.engine.url + " system dial-stdio\n"
	if err := os.WriteFile(filepath.Join(programs, "ssh"), []byte(dies), 0o755); err != nil {
		t.Fatal(err)
	}

	servers := []*templateServer{b.server}
	for _, how := range []fault{
		{"match": "/api/", "endless": true, "body": "{\"commit\":"},
		{"match": "/api/", "reset": true},
		{"match": "/api/", "status": 500, "body": "\x1b[31m\r\n"},
		{"match": "/git-upload-pack$", "endless": true, "body_first": "000dpackfile\n", "body": "000f\x02resolving\n",
			"headers": map[string]string{"Content-Type": "application/x-git-upload-pack-result"}},
		{"match": "/git-upload-pack$", "truncate_after": 70_000},
	} {
		hostile := startTemplateServer(t)
		hostile.misbehave(t, how)
		servers = append(servers, hostile)
	}
	for _, server := range servers {
		for _, runtime := range KnownRuntimes()[:3] {
			server.commit(t, templateRepo(runtime), "main", copying(strings.Repeat(unique(), 20_000)))
		}
	}
	var clients []*Client
	for _, server := range servers {
		for _, host := range []string{b.engine.url, "ssh://host", "unix:///nowhere.sock"} {
			o := b.options()
			o.RepoPrefix, o.DockerHost, o.env.searchPath = server.RepoPrefix, host, programs
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
		goroutines = 4_000 // it takes at most 8,128, and each call is more than one
	}
	round := func(lasts time.Duration) {
		end := time.Now().Add(lasts)
		var calls sync.WaitGroup
		for range goroutines {
			calls.Add(1)
			go func() {
				defer calls.Done()
				for time.Now().Before(end) {
					patience := time.Duration(1+rand.Intn(3000)) * time.Millisecond
					ctx, cancel := context.WithTimeout(context.Background(), patience)
					if rand.Intn(2) == 0 {
						time.AfterFunc(patience/2, cancel)
					}
					begun := time.Now()
					_, err := clients[rand.Intn(len(clients))].EnsureLocalImage(ctx, KnownRuntimes()[rand.Intn(3)])
					cancel()
					if errors.Is(err, ErrInternal) {
						t.Error(err)
					}
					if late := time.Since(begun) - patience; late > lateAtMost {
						t.Errorf("a call came back %v after its deadline", late)
					}
				}
			}()
		}
		calls.Wait()
	}
	round(siegeSeconds(t) / 2)
	time.Sleep(2 * time.Second)
	before := footprintNow(t)
	round(siegeSeconds(t) / 2)
	limit := before
	limit.threads += 80 // those of the library end when they have nothing to do; Go keeps its own
	limit.files += 64
	limit.memory += 96 << 10
	if raceDetector {
		limit.memory += 1 << 20 // its own records grow with every goroutine and never shrink
	}
	after := footprintNow(t)
	for deadline := time.Now().Add(patience / 3); !after.within(limit); after = footprintNow(t) {
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
