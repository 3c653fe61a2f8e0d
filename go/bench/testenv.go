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

// isolation is the tag suffix of libmol's images, cliIsolation that of the images built by the docker command.
const (
	isolation    = "bench"
	cliIsolation = "bench-cli"
)

// testEnv is the environment of all measurements: an engine, and a template server in a separate process.
type testEnv struct {
	settings
	self   string // path of this program
	socket string // of the engine
	engine *http.Client

	serverURL  string
	serverRoot string
	stopServer func()

	template template // the small one

	largest measurement // of the large template, also used in a plot
}

// measurement has the seconds of libmol and of the CLI way for a workload of size n.
type measurement struct {
	n            int
	ours, theirs []float64
}

// template is a template repository in its own organization.
type template struct {
	env *testEnv
	org string
}

// runtime is the same for all templates; they differ in the organization.
const runtime = "claude-code"

func newTestEnv(ctx context.Context, s settings) (_ *testEnv, err error) {
	socket, ok := strings.CutPrefix(s.engine, "unix://")
	if !ok {
		return nil, fmt.Errorf("the engine %s is not a unix socket", s.engine)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	env := &testEnv{settings: s, self: self, socket: socket, engine: unixClient(socket)}
	for name, value := range env.environment() {
		if err := os.Setenv(name, value); err != nil {
			return nil, err
		}
	}
	if err := env.startServer(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			env.close()
		}
	}()
	env.template, err = env.newTemplate(ctx, "small", 20, 4<<10)
	if err != nil {
		return nil, err
	}
	return env, os.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", env.template.prefix())
}

// environment returns the variables of this process and its children, which replace the user's settings.
func (env *testEnv) environment() map[string]string {
	return map[string]string{
		"HOME": filepath.Join(env.work, "home"), "DOCKER_HOST": env.settings.engine, "DOCKER_BUILDKIT": "1",
		"MOLECULE_LOCAL_BUILD_CACHE": env.cache(), "MOLECULE_LOCAL_IMAGE_ISOLATION": isolation,
		"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.DevNull,
		"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
	}
}

func (env *testEnv) cache() string { return filepath.Join(env.work, "cache") }

func (env *testEnv) close() {
	if env.stopServer != nil {
		env.stopServer()
	}
}

func unixClient(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
}

// serve runs the template server in its own process, until its standard input is closed.
func serve(args []string) error {
	s, err := server.Start(server.Options{Root: args[0], Compact: true, Log: os.Stderr})
	if err != nil {
		return err
	}
	fmt.Println(s.URL())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return s.Close()
}

func (env *testEnv) startServer(ctx context.Context) error {
	env.serverRoot = filepath.Join(env.work, "repositories")
	process := exec.CommandContext(ctx, env.self, "serve", env.serverRoot)
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
	env.stopServer = func() {
		_ = input.Close()
		_ = process.Wait()
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		return fmt.Errorf("the template server did not start: %w", err)
	}
	env.serverURL = strings.TrimSpace(line)
	return nil
}

// control sends a request to the template server's control API.
func (env *testEnv) control(ctx context.Context, method, path string, body, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, env.serverURL+"/_control/"+path, bytes.NewReader(text))
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

// newTemplate creates a template with a Dockerfile and files text files of size bytes, which git can compress.
func (env *testEnv) newTemplate(ctx context.Context, org string, files int, size int) (template, error) {
	t := template{env, org}
	if err := env.control(ctx, "PUT", "repos/"+t.repository(), server.Repo{}, nil); err != nil {
		return t, err
	}
	// Not through the control API, which keeps request bodies in memory.
	command := exec.CommandContext(ctx, "git", "-c", "core.compression=1", "fast-import", "--quiet", "--depth=0", "--done")
	command.Dir = filepath.Join(env.serverRoot, t.repository()+".git")
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
		// The files are spread over 64 folders.
		file(fmt.Sprintf("part-%02d/module/file-%06d.txt", i%64, i), words.next())
	}
	fmt.Fprint(out, "\ndone\n")
	err = errors.Join(out.Flush(), input.Close())
	return t, errors.Join(err, command.Wait())
}

// text generates different contents of the same size.
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
	return t.env.serverURL + "/" + t.org + "/molecule-ai-workspace-template-"
}

func (t template) branchURL() string {
	return t.env.serverURL + "/api/v1/repos/" + t.repository() + "/branches/main"
}

func (t template) cloneURL() string { return t.prefix() + runtime }

var releases atomic.Int64

// release creates a new commit, for which no image exists, and returns its id.
func (t template) release(ctx context.Context) (string, error) {
	var answer struct {
		SHA string `json:"sha"`
	}
	commit := server.Commit{Branch: "main", Files: map[string]server.File{
		"VERSION": {Text: fmt.Sprintln(releases.Add(1))},
	}}
	err := t.env.control(ctx, "POST", "repos/"+t.repository()+"/commits", commit, &answer)
	return answer.SHA, err
}

// remove deletes the repository.
func (t template) remove(ctx context.Context) error {
	return t.env.control(ctx, "DELETE", "repos/"+t.repository(), nil, nil)
}

// reference returns the reference of a commit's image, for the isolation of libmol or of the CLI way.
func reference(sha, isolation string) string {
	return mol.LocalImagePrefix() + "/workspace-template-" + runtime + ":" + sha[:12] + "--" + isolation
}

func latest(isolation string) string {
	return mol.LocalImagePrefix() + "/workspace-template-" + runtime + ":latest--" + isolation
}

// options returns the options of a client for this template, with the engine or a proxy in front of it.
func (t template) options(engine string) mol.Options {
	o := mol.OptionsFromEnv()
	o.RepoPrefix, o.DockerHost = t.prefix(), engine
	return o
}

// call sends a request to the engine.
func (env *testEnv) call(ctx context.Context, method, path string, query url.Values, answer any) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://engine"+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	return askJSON(env.engine, request, answer)
}

// forget removes the images, the engine's build cache and libmol's cache, so that the next build is a cold one.
func (env *testEnv) forget(ctx context.Context) error {
	var images []struct{ RepoTags []string }
	if err := env.call(ctx, "GET", "/images/json", nil, &images); err != nil {
		return err
	}
	for _, image := range images {
		for _, tag := range image.RepoTags {
			if !strings.HasSuffix(tag, "--"+isolation) && !strings.HasSuffix(tag, "--"+cliIsolation) {
				continue
			}
			if err := env.call(ctx, "DELETE", "/images/"+tag, url.Values{"force": {"1"}}, nil); err != nil {
				return err
			}
		}
	}
	if err := env.call(ctx, "POST", "/build/prune", url.Values{"all": {"1"}}, nil); err != nil {
		return err
	}
	return os.RemoveAll(env.cache())
}
