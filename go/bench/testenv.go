package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/templateserver/server"
)

// isolation keeps libmol's images apart from others, and cliIsolation those of the docker program from
// libmol's.
const (
	isolation    = "bench"
	cliIsolation = "bench-cli"
)

// bed is what all measurements stand on: an engine, and a template server in a process of its own.
type bed struct {
	settings
	self   string // this program
	socket string // of the engine
	engine *http.Client

	serverURL  string
	serverRoot string
	stopServer func()

	template template // the small one

	largest both // what the large template took, for its plot too
}

// both is what so much of something took with libmol, and the CLI way.
type both struct {
	n            int
	ours, theirs []float64
}

// template is the template of one runtime in an organization of its own.
type template struct {
	b   *bed
	org string
}

// runtime is the same for all templates: it is the organizations that differ.
const runtime = "claude-code"

func newBed(ctx context.Context, s settings) (_ *bed, err error) {
	socket, ok := strings.CutPrefix(s.engine, "unix://")
	if !ok {
		return nil, fmt.Errorf("the engine %s is no unix socket", s.engine)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b := &bed{settings: s, self: self, socket: socket, engine: unixClient(socket)}
	for name, value := range b.environment() {
		if err := os.Setenv(name, value); err != nil {
			return nil, err
		}
	}
	if err := b.startServer(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	b.template, err = b.newTemplate(ctx, "small", 20, 4<<10)
	if err != nil {
		return nil, err
	}
	return b, os.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", b.template.prefix())
}

// environment is what this process and all that it starts live in: nothing of the user's.
func (b *bed) environment() map[string]string {
	return map[string]string{
		"HOME": filepath.Join(b.work, "home"), "DOCKER_HOST": b.settings.engine, "DOCKER_BUILDKIT": "1",
		"MOLECULE_LOCAL_BUILD_CACHE": b.cache(), "MOLECULE_LOCAL_IMAGE_ISOLATION": isolation,
		"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.DevNull,
		"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
	}
}

func (b *bed) cache() string { return filepath.Join(b.work, "cache") }

func (b *bed) close() {
	if b.stopServer != nil {
		b.stopServer()
	}
}

func unixClient(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
}

// serve is the process of the template server. It ends with its standard input.
func serve(_ context.Context, args []string) error {
	s, err := server.Start(server.Options{Root: args[0], Compact: true, Log: os.Stderr})
	if err != nil {
		return err
	}
	fmt.Println(s.URL())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return s.Close()
}

func (b *bed) startServer(ctx context.Context) error {
	b.serverRoot = filepath.Join(b.work, "repositories")
	process := exec.CommandContext(ctx, b.self, "serve", b.serverRoot)
	process.Stderr = os.Stderr
	input, err := process.StdinPipe()
	if err != nil {
		return err
	}
	output, err := process.StdoutPipe()
	if err != nil {
		return err
	}
	if err := process.Start(); err != nil {
		return err
	}
	b.stopServer = func() {
		_ = input.Close()
		_ = process.Wait()
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		return fmt.Errorf("the template server does not start: %w", err)
	}
	b.serverURL = strings.TrimSpace(line)
	return nil
}

// control asks the template server's control surface.
func (b *bed) control(ctx context.Context, method, path string, body, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, b.serverURL+"/_control/"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	return askJSON(http.DefaultClient, request, answer)
}

func askJSON(client *http.Client, request *http.Request, answer any) error {
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", request.Method, request.URL.Path, response.Status, body)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(body, answer)
}

// newTemplate makes a template with so many files of so many bytes besides its Dockerfile. They are text:
// such as templates are, and such as git can compress.
func (b *bed) newTemplate(ctx context.Context, org string, files int, size int) (template, error) {
	t := template{b, org}
	if err := b.control(ctx, "PUT", "repos/"+t.repository(), server.Repo{}, nil); err != nil {
		return t, err
	}
	// Past the control surface, whose bodies are whole in memory.
	command := exec.CommandContext(ctx, "git", "-c", "core.compression=1", "fast-import", "--quiet", "--depth=0", "--done")
	command.Dir = filepath.Join(b.serverRoot, t.repository()+".git")
	command.Stderr = os.Stderr
	input, err := command.StdinPipe()
	if err != nil {
		return t, err
	}
	if err := command.Start(); err != nil {
		return t, err
	}
	out := bufio.NewWriterSize(input, 1<<20)
	file := func(path string, content []byte) {
		fmt.Fprintf(out, "M 100644 inline %s\ndata %d\n", path, len(content))
		_, _ = out.Write(content)
		_ = out.WriteByte('\n')
	}
	fmt.Fprint(out, "commit refs/heads/main\ncommitter bench <bench@example.com> 1767603600 +0000\ndata 5\nbegin\n")
	file("Dockerfile", []byte("FROM scratch\nCOPY . /\n"))
	words := newText(size)
	for i := range files {
		// 64 folders, and as many files in each as it takes.
		file(fmt.Sprintf("part-%02d/module/file-%06d.txt", i%64, i), words.next())
	}
	fmt.Fprint(out, "\ndone\n")
	err = errors.Join(out.Flush(), input.Close())
	return t, errors.Join(err, command.Wait())
}

// text makes contents of one size that are all different.
type text struct {
	content []byte
	number  int
}

func newText(size int) *text {
	const words = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon"
	list := strings.Fields(words)
	random := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, 0, size+16)
	for len(content) < size {
		content = append(content, list[random.IntN(len(list))]...)
		content = append(content, " \n"[min(1, random.IntN(12)/11)])
	}
	return &text{content: content[:size]}
}

func (t *text) next() []byte {
	t.number++
	copy(t.content, fmt.Sprintf("%08d", t.number))
	return t.content
}

func (t template) repository() string { return t.org + "/molecule-ai-workspace-template-" + runtime }

func (t template) prefix() string {
	return t.b.serverURL + "/" + t.org + "/molecule-ai-workspace-template-"
}

func (t template) branchURL() string {
	return t.b.serverURL + "/api/v1/repos/" + t.repository() + "/branches/main"
}

func (t template) cloneURL() string { return t.prefix() + runtime }

var releases atomic.Int64

// release makes a commit, so that nobody has an image for it, and gives its id.
func (t template) release(ctx context.Context) (string, error) {
	var answer struct {
		SHA string `json:"sha"`
	}
	commit := server.Commit{Branch: "main", Files: map[string]server.File{
		"VERSION": {Text: fmt.Sprintln(releases.Add(1))},
	}}
	err := t.b.control(ctx, "POST", "repos/"+t.repository()+"/commits", commit, &answer)
	return answer.SHA, err
}

// remove takes the repository away.
func (t template) remove(ctx context.Context) error {
	return t.b.control(ctx, "DELETE", "repos/"+t.repository(), nil, nil)
}

// reference of a commit's image, libmol's or the docker program's.
func reference(sha, isolation string) string {
	return mol.LocalImagePrefix() + "/workspace-template-" + runtime + ":" + sha[:12] + "--" + isolation
}

func latest(isolation string) string {
	return mol.LocalImagePrefix() + "/workspace-template-" + runtime + ":latest--" + isolation
}

// options for a client of one template, at the engine or a front before it.
func (t template) options(engine string) mol.Options {
	o := mol.OptionsFromEnv()
	o.RepoPrefix, o.DockerHost = t.prefix(), engine
	return o
}

// call asks the engine.
func (b *bed) call(ctx context.Context, method, path string, query url.Values, answer any) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://engine"+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	return askJSON(b.engine, request, answer)
}

// forget takes away what builds have left, in the engine and in the cache: the next one is a first one.
func (b *bed) forget(ctx context.Context) error {
	var images []struct{ RepoTags []string }
	if err := b.call(ctx, "GET", "/images/json", nil, &images); err != nil {
		return err
	}
	for _, image := range images {
		for _, tag := range image.RepoTags {
			if !strings.HasSuffix(tag, "--"+isolation) && !strings.HasSuffix(tag, "--"+cliIsolation) {
				continue
			}
			if err := b.call(ctx, "DELETE", "/images/"+tag, url.Values{"force": {"1"}}, nil); err != nil {
				return err
			}
		}
	}
	if err := b.call(ctx, "POST", "/build/prune", url.Values{"all": {"1"}}, nil); err != nil {
		return err
	}
	return os.RemoveAll(b.cache())
}
