//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What a template may look like, and what is said about one that cannot be built.

func TestATemplateWithoutADockerfileIsRefusedBeforeTheEngineHearsOfIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		content files
		says    string
	}{
		"there is none": {files{"README": {Text: "none"}}, "no Dockerfile at its root"},
		"it is elsewhere": {
			files{"docker/Dockerfile": {Text: plain}, "dockerfile": {Text: plain}}, "no Dockerfile at its root",
		},
		"it is a folder":             {files{"Dockerfile/x": {Text: plain}}, "folder"},
		"it is a link to the host's": {files{"Dockerfile": {Text: "/etc/passwd", Mode: "120000"}}, "Dockerfile"},
	} {
		t.Run(name, func(t *testing.T) {
			b := parallelBed(t)
			b.template("hermes", c.content)
			client := b.client()
			e := client.refused("hermes", ErrNoDockerfile)
			says(t, e.Message, c.says, b.server.RepoPrefix+"hermes")
			says(t, e.Hint, "Dockerfile")
			if client.count(EventBuildStarted) > 0 || len(b.engine.refsOf(b, b.isolation)) > 0 {
				t.Errorf("it was built: %v", client.kinds())
			}
			b.template("hermes", dockerfile(plain))
			client.ensure("hermes")
		})
	}
}

func TestABuildThatFailsHasItsStepAndTheLastLinesOfItsOutput(t *testing.T) {
	t.Parallel()
	for _, builder := range []string{"buildkit", "classic"} {
		t.Run(builder, func(t *testing.T) {
			b := parallelBed(t)
			// Standard output and error come to the engine on two ways: without the pause either may be first.
			b.template("hermes", dockerfile("FROM "+busybox+"\nRUN true\nRUN seq 1 200; sleep 0.5; echo about to fail >&2; echo "+unique()+
				"; exit 42\nRUN echo never\n"))
			c := b.bothBuilders()[builder]
			e := c.refused("hermes", ErrBuildFailed)
			if e.Code != CodeBuildFailed || e.Runtime != "hermes" || len(b.engine.refsOf(b, b.isolation)) > 0 {
				t.Errorf("got %#v", e)
			}
			says(t, e.Message, "42", b.server.RepoPrefix+"hermes")
			says(t, e.Step, "RUN seq 1 200")
			if e.Line != 3 || e.ExitCode != 42 {
				t.Errorf("line %d, exit code %d", e.Line, e.ExitCode)
			}
			tail := "\n" + e.LogTail + "\n"
			says(t, tail, "\nabout to fail\n", "\n200\n")
			if lines := strings.Count(tail, "\n"); lines > 52 || strings.Contains(tail, "\n100\n") {
				t.Errorf("it is not the last lines: %d of them", lines)
			}
			says(t, e.Error(), "about to fail", "RUN seq 1 200")
			if c.count(EventLog) < 201 {
				t.Errorf("only %d lines were told", c.count(EventLog))
			}
			done := c.waitFor(EventStepDone, func(e Event) bool { return e.StepError != "" })
			says(t, done.StepError, "42")
			says(t, done.StepName, "RUN seq 1 200")
		})
	}
}

func TestADockerfileThatMakesNoSenseIsAFailedBuild(t *testing.T) {
	b := parallelBed(t)
	for text, want := range map[string]string{
		"FROM scratch\nFLY me to the moon\n":  "FLY",
		"RUN true\n":                          "",
		"":                                    "",
		"FROM scratch\nCOPY missing-file /\n": "missing-file",
		"FROM registry.invalid/no/such:image\nRUN true\n": "registry.invalid",
	} {
		b.template("hermes", dockerfile(text))
		for builder, c := range b.bothBuilders() {
			e := c.refused("hermes", ErrBuildFailed)
			if !strings.Contains(strings.ToUpper(e.Message), strings.ToUpper(want)) {
				t.Errorf("%s, %q: got %q", builder, text, e.Message)
			}
		}
	}
}

func TestALineOfMegabytesNeitherStopsTheBuildNorFillsTheError(t *testing.T) {
	t.Parallel()
	for _, builder := range []string{"buildkit", "classic"} {
		t.Run(builder, func(t *testing.T) {
			b := parallelBed(t)
			b.template("hermes", dockerfile("FROM "+busybox+"\nRUN head -c 8000000 /dev/zero | tr '\\0' x; echo; echo after "+unique()+"; exit 3\n"))
			e := b.bothBuilders()[builder].refused("hermes", ErrBuildFailed)
			says(t, e.LogTail, "after ")
			if len(e.LogTail) > 64<<10 || len(e.Message) > 4<<10 || len(e.Error()) > 16<<10 {
				t.Errorf("it has %d, %d and %d bytes", len(e.LogTail), len(e.Message), len(e.Error()))
			}
		})
	}
}

func TestTheOutputComesLineByLineWhileTheBuildRuns(t *testing.T) {
	t.Parallel()
	for _, builder := range []string{"buildkit", "classic"} {
		t.Run(builder, func(t *testing.T) {
			b := parallelBed(t)
			word := unique()
			b.template("hermes", dockerfile("FROM "+busybox+"\nRUN echo begun "+word+"; sleep 2; echo -e '\\033[31mred\\033[0m'\n"))
			c := b.bothBuilders()[builder]
			call := c.begin("hermes")
			c.waitForLine("begun " + word)
			if !isRunning(word) {
				t.Error("the line came when the build was over")
			}
			call.ends()
			if e := c.waitFor(EventLog, func(e Event) bool { return e.Line == "red" }); !strings.Contains(e.StepName, word) {
				t.Errorf("got %+v", e)
			}
		})
	}
}

func TestASlowBuildThatSaysSomethingIsNotStalled(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile("FROM "+busybox+"\nRUN for i in 1 2 3 4 5 6; do echo "+unique()+" $i; sleep 0.5; done\n"))
	b.client(func(o *Options) { o.StallGrace = 2 * time.Second }).ensure("hermes")
}

func TestTheVersionPinGoesInOnlyWhereItIsAskedForAndAVersion(t *testing.T) {
	b := parallelBed(t)
	text := "FROM " + busybox + "\nARG RUNTIME_VERSION=none\nRUN echo \"$RUNTIME_VERSION\" > /version # " + unique() + "\n"
	for _, c := range []struct {
		pin   string
		asked bool
		want  string
		warns bool
	}{
		{"1.0.0", false, "none", false},
		{" @scope/pkg@v1.2.3 \nmore\n", true, "1.2.3", false},
		{"latest; rm -rf /\n", true, "none", true},
	} {
		b.template("hermes", files{"Dockerfile": {Text: text}, ".runtime-version": {Text: c.pin}})
		client := b.client(func(o *Options) { o.RuntimeVersionPin = c.asked })
		image := client.ensure("hermes")
		if got := strings.TrimSpace(b.engine.read(b, image.Ref, "version")); got != c.want {
			t.Errorf("%q: the version is %q", c.pin, got)
		}
		if warnings := client.ofKind(EventWarning); (len(warnings) > 0) != c.warns {
			t.Errorf("%q: got %+v", c.pin, warnings)
		} else if c.warns {
			says(t, warnings[0].Message, ".runtime-version")
		}
	}
	b.template("hermes", dockerfile(plain))
	client := b.client(func(o *Options) { o.RuntimeVersionPin = true })
	client.ensure("hermes")
	if client.count(EventWarning) > 0 {
		t.Errorf("a template without a pin: %+v", client.ofKind(EventWarning))
	}
}

func TestAnEngineThatIsNotThereIsNamedAndNothingIsFetched(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	for host, reason := range map[string]string{
		"unix://" + filepath.Join(b.dir, "no.sock"): "No such file",
		"tcp://127.0.0.1:1":                         "refused",
	} {
		e := b.client(func(o *Options) { o.DockerHost = host }).refused("hermes", ErrEngineUnreachable)
		says(t, e.Message, host, "DOCKER_HOST", reason)
		says(t, e.Hint, "start Docker")
	}
	for _, host := range []string{"unix://relative", "tcp://host:port", "fd://", "ftp://host"} {
		says(t, b.client(func(o *Options) { o.DockerHost = host }).refused("hermes", ErrInvalidOption).Message, "DOCKER_HOST")
	}
	b.untouched()
	if git := b.server.requests(b).of("git"); len(git) > 0 {
		t.Errorf("it was fetched: %+v", git)
	}
}

func TestAnEngineThatComesUpLaterIsFoundByTheNextCall(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	socket := filepath.Join(b.dir, "late.sock")
	c := b.client(func(o *Options) { o.DockerHost = "unix://" + socket })
	c.refused("hermes", ErrEngineUnreachable)
	if err := os.Symlink(strings.TrimPrefix(b.engine.url, "unix://"), socket); err != nil {
		t.Fatal(err)
	}
	c.ensure("hermes")
}

func TestAnEngineThatFailsIsToldWithItsWords(t *testing.T) {
	t.Parallel()
	for _, builder := range []string{"buildkit", "classic"} {
		for path, treat := range map[string]treatment{"/images/": fail, "/build?": breakOff} {
			t.Run(fmt.Sprint(builder, " ", path), func(t *testing.T) {
				b := parallelBed(t)
				b.template("hermes", dockerfile(plain))
				proxy := b.engineProxy(func(line string) treatment {
					if strings.Contains(line, path) {
						return treat
					}
					return pass
				})
				through := func(o *Options) { o.DockerHost = proxy.url }
				e := b.bothBuilders(through)[builder].refused("hermes", ErrEngineUnreachable)
				says(t, e.Message, proxy.url)
				if treat == fail {
					says(t, e.Message, "told to fail", "500")
				}
				b.client().ensure("hermes")
			})
		}
	}
}
