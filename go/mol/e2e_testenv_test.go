//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
)

// The tests in e2e_*_test.go run the whole job through this package and the library, with a real git server and a real
// engine. They test what the package adds to the library: Go types, contexts, goroutines, threads, the environment. How
// the library behaves is tested in Rust, in tests/it.

const (
	// cancelLimit is how long a cancelled call may take to end, here and in the engine, with the race detector and other
	// suites on the same machine. tests/it checks the promised second (P4).
	cancelLimit = 3 * time.Second
)

// plain is a template that needs no base image.
const plain = "FROM scratch\nCOPY Dockerfile /\n"

func TestMain(m *testing.M) {
	SetLogger(nil) // tests that read the log set their own logger
	os.Exit(m.Run())
}

// requiredEnv returns a variable that tests/run sets for the tests.
func requiredEnv(t testing.TB, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set: these tests need a private engine and more; run make test", name)
	}
	return value
}

var lastUnique atomic.Int64

// uniqueWord returns a word that no other test and no earlier run has used.
func uniqueWord() string {
	return fmt.Sprintf("g%x-%x-%d", time.Now().UnixMilli(), os.Getpid(), lastUnique.Add(1))
}

// TestEnv has a template server, a cache folder and an isolation token for one test, so that tests run in parallel on
// one engine.
type TestEnv struct {
	*testing.T
	server    *templateServer
	engine    *testEngine
	isolation string
	dir       string
}

// newTestEnv starts a template server with these flags.
func newTestEnv(t *testing.T, flags ...string) *TestEnv {
	t.Helper()
	env := &TestEnv{T: t, engine: dockerEngine(t), isolation: uniqueWord(), dir: t.TempDir()}
	env.server = startTemplateServer(t, flags...)
	t.Cleanup(func() { env.engine.removeImages(t, env.isolation) })
	return env
}

// parallelTestEnv is newTestEnv for a test that does not change the environment of the process.
func parallelTestEnv(t *testing.T, flags ...string) *TestEnv {
	t.Helper()
	t.Parallel()
	return newTestEnv(t, flags...)
}

// environTestEnv is newTestEnv with the environment variables set for it, and a template for hermes.
func environTestEnv(t *testing.T, flags ...string) (env *TestEnv, sha string) {
	t.Helper()
	env = newTestEnv(t, flags...)
	env.setVariables()
	return env, env.commit("hermes", dockerfile(plain))
}

// cache is the cache folder. It does not exist before the first call.
func (env *TestEnv) cache() string { return filepath.Join(env.dir, "cache") }

// tree is where the files of a commit are in the cache.
func (env *TestEnv) tree(runtime, sha string) string {
	return filepath.Join(env.cache(), runtime, sha[:12])
}

// options are for the servers and folders of this test; nothing comes from the environment of the process.
func (env *TestEnv) options() Options {
	return Options{
		RepoPrefix: env.server.RepoPrefix,
		CacheDir:   env.cache(),
		Isolation:  env.isolation,
		DockerHost: env.engine.url,
		env:        environment{machine: map[string]string{"HOME": env.dir}},
	}
}

// setVariables sets the environment variables for the same options, and unsets all others.
func (env *TestEnv) setVariables() {
	env.Helper()
	clearEnv(env.T)
	env.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", env.server.RepoPrefix)
	env.Setenv("MOLECULE_LOCAL_BUILD_CACHE", env.cache())
	env.Setenv("MOLECULE_LOCAL_IMAGE_ISOLATION", env.isolation)
	env.Setenv("DOCKER_HOST", env.engine.url)
	env.Setenv("HOME", env.dir)
}

// commit makes a commit with these files and no others, the head of a runtime's template, and returns its id.
func (env *TestEnv) commit(runtime string, content files) string {
	env.Helper()
	return env.server.commit(env, templateRepo(runtime), "main", content)
}

// ref and latest are the references of a commit's image, as in docs/local-development.md.
func (env *TestEnv) ref(runtime, sha string) string { return env.tagged(runtime, sha[:12]) }
func (env *TestEnv) latest(runtime string) string   { return env.tagged(runtime, "latest") }

func (env *TestEnv) tagged(runtime, tag string) string {
	return "molecule-local/workspace-template-" + runtime + ":" + tag + "--" + env.isolation
}

// unfinishedFetches are the folders in the cache of fetches that have not completed.
func (env *TestEnv) unfinishedFetches() []string {
	env.Helper()
	paths, err := filepath.Glob(filepath.Join(env.cache(), "*", ".work-*"))
	if err != nil {
		env.Fatal(err)
	}
	return paths
}

// testClient is a Client that records its events.
type testClient struct {
	*Client
	env *TestEnv

	mu     sync.Mutex
	events []Event
}

// client returns a client with the options of the TestEnv, changed.
func (env *TestEnv) client(change ...func(*Options)) *testClient {
	env.Helper()
	o := env.options()
	for _, change := range change {
		change(&o)
	}
	return env.clientWith(o)
}

// clientFromEnv returns a client as EnsureLocalImage makes it.
func (env *TestEnv) clientFromEnv() *testClient {
	env.Helper()
	return env.clientWith(OptionsFromEnv())
}

func (env *TestEnv) clientWith(o Options) *testClient {
	env.Helper()
	c := &testClient{env: env}
	o.OnEvent = func(e Event) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.events = append(c.events, e)
	}
	client, err := New(o)
	if err != nil {
		env.Fatal(err)
	}
	c.Client = client
	env.Cleanup(func() { _ = client.Close() })
	return c
}

// ensure calls EnsureLocalImage, which must succeed.
func (c *testClient) ensure(runtime string) Image {
	c.env.Helper()
	image, err := c.EnsureLocalImage(c.env.Context(), runtime)
	if err != nil {
		c.env.Fatalf("%s: %v", runtime, err)
	}
	return image
}

// mustFail calls EnsureLocalImage, which must fail with this error.
func (c *testClient) mustFail(runtime string, want error) *Error {
	c.env.Helper()
	image, err := c.EnsureLocalImage(c.env.Context(), runtime)
	if err == nil {
		c.env.Fatalf("%s: want an error, got %+v", runtime, image)
	}
	if image != (Image{}) {
		c.env.Errorf("got an image besides the error: %+v", image)
	}
	return checkError(c.env, err, want)
}

// registries matches words that no error may contain (promise P1). ecr must be a whole word: "secret" contains it.
var registries = regexp.MustCompile(`(?i)ghcr|\becr\b`)

// checkError checks what holds for every error: it is of the wanted kind, has a message, a hint and the runtime, is
// formatted like an error, and mentions no registry.
func checkError(t testing.TB, err, want error) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, want) {
		t.Fatalf("want %q, got %v", want, err)
	}
	if e.Message == "" || e.Hint == "" || e.Runtime == "" {
		t.Errorf("the message, the hint or the runtime is missing: %#v", e)
	}
	// The message may begin with the name of a variable.
	if start := []rune(e.Message + "  "); unicode.IsUpper(start[0]) && unicode.IsLower(start[1]) || strings.HasSuffix(e.Message, ".") || strings.HasSuffix(e.Hint, ".") {
		t.Errorf("want lower case and no full stop: %q, %q", e.Message, e.Hint)
	}
	for _, text := range errorTexts(err) {
		if found := registries.FindString(text); found != "" {
			t.Errorf("the error mentions a registry, %s: %s", found, text)
		}
	}
	return e
}

// errorTexts are all the ways in which an error can be printed.
func errorTexts(err error) []string {
	texts := []string{err.Error(), fmt.Sprintf("%v", err), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err), fmt.Sprintf("%q", err)}
	var e *Error
	if errors.As(err, &e) {
		texts = append(texts, fmt.Sprintf("%+v", *e), fmt.Sprintf("%#v", *e), e.Step, e.LogTail)
	}
	return texts
}

// mustContain checks that a text contains all of these parts.
func mustContain(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in: %s", part, text)
		}
	}
}

// call is a running call of EnsureLocalImage.
type call struct {
	env    *TestEnv
	cancel context.CancelFunc
	result chan callResult
}

type callResult struct {
	image Image
	err   error
	at    time.Time
}

// start starts a call in a goroutine.
func (c *testClient) start(runtime string) *call {
	ctx, cancel := context.WithCancel(c.env.Context())
	call := &call{env: c.env, cancel: cancel, result: make(chan callResult, 1)}
	go func() {
		image, err := c.EnsureLocalImage(ctx, runtime)
		call.result <- callResult{image, err, time.Now()}
	}()
	return call
}

func (c *call) wait() callResult {
	c.env.Helper()
	select {
	case result := <-c.result:
		return result
	case <-time.After(waitLimit):
		c.env.Fatal("the call has not returned")
		panic("unreachable")
	}
}

// mustSucceed waits for a call and returns its image.
func (c *call) mustSucceed() Image {
	c.env.Helper()
	result := c.wait()
	if result.err != nil {
		c.env.Fatal(result.err)
	}
	return result.image
}

// mustCancel cancels a call, which must return in time with context.Canceled. It returns the time of the cancel.
func (c *call) mustCancel() time.Time {
	c.env.Helper()
	since := time.Now()
	c.cancel()
	result := c.wait()
	if !errors.Is(result.err, context.Canceled) {
		c.env.Errorf("got %v", result.err)
	}
	if took := result.at.Sub(since); took > cancelLimit {
		c.env.Errorf("the call took %v to return", took)
	}
	return since
}

// recorded returns the events so far.
func (c *testClient) recorded() []Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.events)
}

func (c *testClient) ofKind(kind EventKind) []Event {
	return slices.DeleteFunc(c.recorded(), func(e Event) bool { return e.Kind != kind })
}

func (c *testClient) count(kind EventKind) int { return len(c.ofKind(kind)) }

func (c *testClient) kinds() []EventKind {
	var kinds []EventKind
	for _, e := range c.recorded() {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

// waitFor waits for an event of this kind; matches may be nil.
func (c *testClient) waitFor(kind EventKind, matches func(Event) bool) Event {
	c.env.Helper()
	for deadline := time.Now().Add(waitLimit); ; time.Sleep(5 * time.Millisecond) {
		for _, e := range c.ofKind(kind) {
			if matches == nil || matches(e) {
				return e
			}
		}
		if time.Now().After(deadline) {
			c.env.Fatalf("no event %s; got %v", kind, c.kinds())
		}
	}
}

// waitForLine waits for a line of the build's output.
func (c *testClient) waitForLine(text string) Event {
	c.env.Helper()
	return c.waitFor(EventLog, func(e Event) bool { return strings.Contains(e.Line, text) })
}

// file is one file of a commit.
type file struct {
	Text string `json:"text"`
	Mode string `json:"mode,omitempty"`
}

// files are the files of a commit, by path.
type files map[string]file

func dockerfile(text string) files { return files{"Dockerfile": {Text: text}} }

// copying is a template whose image has one file of its context.
func copying(content string) files {
	return files{"Dockerfile": {Text: "FROM scratch\nCOPY content /\n"}, "content": {Text: content}}
}

// fault tells the template server how to misbehave; the fields are those of go/templateserver/server.Fault.
type fault map[string]any

// templateServer is a real git server behind Gitea's API, with faults on demand.
type templateServer struct {
	URL        string `json:"url"`
	RepoPrefix string `json:"repo_prefix"`
}

func templateRepo(runtime string) string {
	return "molecule-ai/molecule-ai-workspace-template-" + runtime
}

// controlClient is for requests to the servers of the tests. It keeps no connection open, because tests count those.
var controlClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func startTemplateServer(t *testing.T, flags ...string) *templateServer {
	t.Helper()
	process := exec.Command(requiredEnv(t, "MOL_TEST_TEMPLATESERVER"), append([]string{"--root", t.TempDir()}, flags...)...)
	// git's errors are part of many tests; they are shown only where one fails.
	var stderr bytes.Buffer
	process.Stderr = &stderr
	stdin, err := process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatalf("%v; run make test", err)
	}
	t.Cleanup(func() {
		// The server stops when its standard input is closed, also when the test is killed.
		_ = stdin.Close()
		_ = process.Wait()
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("output of the template server:\n%s", &stderr)
		}
	})
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	s := new(templateServer)
	if err := json.Unmarshal(line, s); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *templateServer) control(t testing.TB, method, path string, body, answer any) {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequest(method, s.URL+"/_control/"+path, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	response, err := controlClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err = io.ReadAll(response.Body)
	if err != nil || response.StatusCode >= 300 {
		t.Fatalf("%s %s: %s %s %v", method, path, response.Status, data, err)
	}
	if answer != nil {
		if err := json.Unmarshal(data, answer); err != nil {
			t.Fatal(err)
		}
	}
}

// commit makes a commit with these files and no others, the head of a branch, and returns its id.
func (s *templateServer) commit(t testing.TB, repo, branch string, content files) string {
	t.Helper()
	var made struct{ SHA string }
	s.control(t, "POST", "repos/"+repo+"/commits", map[string]any{"branch": branch, "files": content, "reset": true}, &made)
	return made.SHA
}

// setFaults replaces the server's faults.
func (s *templateServer) setFaults(t testing.TB, faults ...fault) {
	t.Helper()
	if faults == nil {
		faults = []fault{}
	}
	s.control(t, "PUT", "faults", faults, nil)
}

type request struct{ Method, Path, Service string }

// requests returns all requests so far, but those of the tests themselves.
func (s *templateServer) requests(t testing.TB) []request {
	t.Helper()
	var all []request
	s.control(t, "GET", "requests", nil, &all)
	return all
}

// fetches returns how many fetches have begun.
func (s *templateServer) fetches(t testing.TB) int {
	t.Helper()
	n := 0
	for _, r := range s.requests(t) {
		if strings.HasSuffix(r.Path, "/info/refs") {
			n++
		}
	}
	return n
}
