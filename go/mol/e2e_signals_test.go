//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// On a thread that Go did not start, SIGPIPE ends the process: a write of the library to an ssh that is gone would
// end the server, and this test.
func TestAServerWithSixtyCallsSurvivesAnSSHThatDies(t *testing.T) {
	env := parallelTestEnv(t)
	docker := requiredEnv(t, "MOL_TEST_DOCKER")
	for _, runtime := range KnownRuntimes() {
		env.commit(runtime, files{
			"Dockerfile": {Text: "FROM scratch\nCOPY content /\nLABEL test=" + env.isolation + "\n"},
			"content":    {Text: strings.Repeat(uniqueWord(), 6<<20/20)},
		})
	}
	for name, script := range map[string]string{
		"at once":            "exit 1",
		"without reading":    "exec <&-; sleep 0.02",
		"during the context": "(dd bs=64k count=46 2>/dev/null; kill -9 0) | " + docker + " --host " + env.engine.url + " system dial-stdio",
	} {
		programs := filepath.Join(env.dir, name)
		if err := os.Mkdir(programs, 0o755); err != nil {
			t.Fatal(err)
		}
		// Another process writes the script: a file that a process has open for writing cannot be executed.
		write := exec.Command("/bin/sh", "-c", `cat >"$0" && chmod 755 "$0"`, filepath.Join(programs, "ssh"))
		write.Stdin = strings.NewReader("#!/bin/sh\nPATH=/usr/bin:/bin\n" + script + "\n")
		if err := write.Run(); err != nil {
			t.Fatal(err)
		}
		o := env.options()
		o.DockerHost, o.env.machine["PATH"] = "ssh://host", programs
		client, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
		defer cancel()
		var calls sync.WaitGroup
		for i := range 60 {
			runtime := KnownRuntimes()[i%len(KnownRuntimes())]
			calls.Add(1)
			go func() {
				defer calls.Done()
				_, err := client.EnsureLocalImage(ctx, runtime)
				if !errors.Is(err, ErrEngineUnreachable) {
					t.Errorf("ssh that dies %s: %v", name, err)
				}
			}()
		}
		calls.Wait()
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
}
