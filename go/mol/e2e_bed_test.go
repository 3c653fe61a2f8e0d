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
	"io/fs"
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

// The tests in e2e_*_test.go do the whole job: through this package and the library, with a real git server and
// a real engine. What they stand on is here. Their twins are in tests/it, at the level of Rust.

const (
	// patience is longer than anything here takes, on a slow machine too.
	patience = 90 * time.Second
	// atOnce is what a cancelled call may take to end, in it and in the engine (promise P4).
	atOnce = time.Second
)

// plain is a template that needs no base image.
const plain = "FROM scratch\nCOPY Dockerfile /\n"

// given is one of the values that tests/run gives to every test.
func given(t testing.TB, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set: these tests need a private engine and more; run make test", name)
	}
	return value
}

var lastUnique atomic.Int64

// unique is a word that no other test, and no earlier run, has used.
func unique() string {
	return fmt.Sprintf("g%x-%x-%d", time.Now().UnixMilli(), os.Getpid(), lastUnique.Add(1))
}

// until waits for something that a server, the engine or another process is about to do.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v still not: %s", patience, what)
		}
	}
}

// bed is a template server, a cache folder and a mark in the tags of one test alone, so that tests run side by
// side on one engine.
type bed struct {
	*testing.T
	server    *templateServer
	engine    *testEngine
	isolation string
	dir       string
}

// newBed starts a template server with these flags.
func newBed(t *testing.T, flags ...string) *bed {
	t.Helper()
	b := &bed{
		T:         t,
		engine:    engineOfTheTests(t),
		isolation: unique(),
		dir:       t.TempDir(),
	}
	b.server = startTemplateServer(t, flags...)
	t.Cleanup(func() { b.engine.removeAllOf(t, b.isolation) })
	return b
}

// parallelBed is newBed for a test that does not touch the environment.
func parallelBed(t *testing.T, flags ...string) *bed {
	t.Helper()
	t.Parallel()
	return newBed(t, flags...)
}

// cache is the cache folder. It is not there before the first call.
func (b *bed) cache() string { return filepath.Join(b.dir, "cache") }

// tree is where the files of a commit are in it.
func (b *bed) tree(runtime, sha string) string { return filepath.Join(b.cache(), runtime, sha[:12]) }

// options lead to this test's surroundings, and to nothing of the machine.
func (b *bed) options() Options {
	return Options{
		RepoPrefix: b.server.RepoPrefix,
		CacheDir:   b.cache(),
		Isolation:  b.isolation,
		DockerHost: b.engine.url,
		env:        environment{captured: true, home: b.dir},
	}
}

// setenv leads to the same surroundings through the environment, and clears all else there.
func (b *bed) setenv() {
	b.Helper()
	clearEnv(b.T)
	b.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", b.server.RepoPrefix)
	b.Setenv("MOLECULE_LOCAL_BUILD_CACHE", b.cache())
	b.Setenv("MOLECULE_LOCAL_IMAGE_ISOLATION", b.isolation)
	b.Setenv("DOCKER_HOST", b.engine.url)
	b.Setenv("HOME", b.dir)
}

// template makes a commit with these files and no others the head of a runtime's template.
func (b *bed) template(runtime string, content files) string {
	b.Helper()
	return b.server.commit(b, templateRepo(runtime), "main", content)
}

// ref and latest are the references of a commit's image, by the rule of the contract.
func (b *bed) ref(runtime, sha string) string { return b.tagged(runtime, sha[:12]) }
func (b *bed) latest(runtime string) string   { return b.tagged(runtime, "latest") }

func (b *bed) tagged(runtime, tag string) string {
	return "molecule-local/workspace-template-" + runtime + ":" + tag + "--" + b.isolation
}

// cachedPaths is every path below the cache folder, relative to it.
func (b *bed) cachedPaths() []string {
	b.Helper()
	var paths []string
	err := filepath.WalkDir(b.cache(), func(path string, _ fs.DirEntry, err error) error {
		// What is half-written may go while this looks.
		if err == nil && path != b.cache() {
			rel, _ := filepath.Rel(b.cache(), path)
			paths = append(paths, rel)
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return paths
}

// leftovers is what a fetch has in the cache before it is whole, or when it is.
func (b *bed) leftovers(sha string) []string {
	b.Helper()
	return slices.DeleteFunc(b.cachedPaths(), func(path string) bool {
		return !strings.Contains(path, ".work-") && !strings.HasSuffix(path, sha[:12])
	})
}

// untouched checks that no image was made and nothing written.
func (b *bed) untouched() {
	b.Helper()
	if refs := b.engine.refsOf(b, b.isolation); len(refs) > 0 {
		b.Errorf("there are images: %v", refs)
	}
	if _, err := os.Stat(b.cache()); !errors.Is(err, fs.ErrNotExist) {
		b.Errorf("something was written to the cache: %v, %v", b.cachedPaths(), err)
	}
}

// testClient is a Client that remembers its events.
type testClient struct {
	*Client
	b *bed

	mu     sync.Mutex
	events []Event
}

// client is a client with the bed's options, changed.
func (b *bed) client(change ...func(*Options)) *testClient {
	b.Helper()
	o := b.options()
	for _, change := range change {
		change(&o)
	}
	return b.clientOf(o)
}

func (b *bed) clientOf(o Options) *testClient {
	b.Helper()
	c := &testClient{b: b}
	o.OnEvent = func(e Event) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.events = append(c.events, e)
	}
	client, err := New(o)
	if err != nil {
		b.Fatal(err)
	}
	c.Client = client
	b.Cleanup(func() { _ = client.Close() })
	return c
}

// ensure is the job where it must work.
func (c *testClient) ensure(runtime string) Image {
	c.b.Helper()
	image, err := c.EnsureLocalImage(c.b.Context(), runtime)
	if err != nil {
		c.b.Fatalf("%s: %v", runtime, err)
	}
	return image
}

// refused is the job where it must fail, in this way.
func (c *testClient) refused(runtime string, want error) *Error {
	c.b.Helper()
	image, err := c.EnsureLocalImage(c.b.Context(), runtime)
	if err == nil {
		c.b.Fatalf("%s: this cannot have worked: %+v", runtime, image)
	}
	if image != (Image{}) {
		c.b.Errorf("there is an image besides the error: %+v", image)
	}
	return told(c.b, err, want)
}

// registries are the words that no error may hold (promise P1): as words, for there are secrets and secretaries.
var registries = regexp.MustCompile(`(?i)ghcr|\becr\b`)

// told checks what holds for every error: it is the kind it should be, says what failed, and what to do next, and
// never leads to a registry.
func told(t testing.TB, err, want error) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, want) {
		t.Fatalf("it is not %q: %v", want, err)
	}
	if e.Message == "" || e.Hint == "" || e.Runtime == "" {
		t.Errorf("it lacks a message, a hint or the runtime: %#v", e)
	}
	// The name of a variable is as it is.
	if start := []rune(e.Message + "  "); unicode.IsUpper(start[0]) && unicode.IsLower(start[1]) || strings.HasSuffix(e.Message, ".") || strings.HasSuffix(e.Hint, ".") {
		t.Errorf("it is written like a sentence: %q, %q", e.Message, e.Hint)
	}
	namesNoRegistry(t, err)
	return e
}

func namesNoRegistry(t testing.TB, err error) {
	t.Helper()
	for _, text := range shownErrors(err) {
		if found := registries.FindString(text); found != "" {
			t.Errorf("it mentions a registry, %s: %s", found, text)
		}
	}
}

// shownErrors is an error in every way in which it can be printed.
func shownErrors(err error) []string {
	texts := []string{err.Error(), fmt.Sprintf("%v", err), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err), fmt.Sprintf("%q", err)}
	var e *Error
	if errors.As(err, &e) {
		texts = append(texts, fmt.Sprintf("%+v", *e), fmt.Sprintf("%#v", *e), e.Step, e.LogTail)
	}
	return texts
}

// says checks that a text holds all of these parts.
func says(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("it does not say %q: %s", part, text)
		}
	}
}

// call is one that is under way.
type call struct {
	b      *bed
	cancel context.CancelFunc
	end    chan ended
}

type ended struct {
	image Image
	err   error
	at    time.Time
}

func (c *testClient) begin(runtime string) *call {
	ctx, cancel := context.WithCancel(c.b.Context())
	call := &call{b: c.b, cancel: cancel, end: make(chan ended, 1)}
	go func() {
		image, err := c.EnsureLocalImage(ctx, runtime)
		call.end <- ended{image, err, time.Now()}
	}()
	return call
}

func (c *call) wait() ended {
	c.b.Helper()
	select {
	case end := <-c.end:
		return end
	case <-time.After(patience):
		c.b.Fatal("a call has one end, and it did not come")
		panic("unreachable")
	}
}

// ends gives the image of a call that must work.
func (c *call) ends() Image {
	c.b.Helper()
	end := c.wait()
	if end.err != nil {
		c.b.Fatal(end.err)
	}
	return end.image
}

// stops cancels a call, which must say so in time. It gives the time of the cancel.
func (c *call) stops() time.Time {
	c.b.Helper()
	since := time.Now()
	c.cancel()
	end := c.wait()
	if !errors.Is(end.err, context.Canceled) {
		c.b.Errorf("got %v", end.err)
	}
	if took := end.at.Sub(since); took > atOnce {
		c.b.Errorf("it took %v to return", took)
	}
	if end.err != nil {
		namesNoRegistry(c.b, end.err)
	}
	return since
}

// seen is every event so far.
func (c *testClient) seen() []Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.events)
}

// forget forgets them.
func (c *testClient) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = nil
}

func (c *testClient) ofKind(kind EventKind) []Event {
	return slices.DeleteFunc(c.seen(), func(e Event) bool { return e.Kind != kind })
}

func (c *testClient) count(kind EventKind) int { return len(c.ofKind(kind)) }

func (c *testClient) kinds() []EventKind {
	var kinds []EventKind
	for _, e := range c.seen() {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

// waitFor waits for an event.
func (c *testClient) waitFor(kind EventKind, matches func(Event) bool) Event {
	c.b.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		for _, e := range c.ofKind(kind) {
			if matches == nil || matches(e) {
				return e
			}
		}
		if time.Now().After(deadline) {
			c.b.Fatalf("no %s came; what came: %v", kind, c.kinds())
		}
	}
}

// waitForLine waits for a line of the build's output.
func (c *testClient) waitForLine(text string) Event {
	c.b.Helper()
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

// copying is a template whose image holds one file of its context.
func copying(content string) files {
	return files{"Dockerfile": {Text: "FROM scratch\nCOPY content /\n"}, "content": {Text: content}}
}

// faults tell the template server how to misbehave; the fields are those of go/templateserver/server.Fault.
type (
	faults []fault
	fault  map[string]any
)

// gitTypes are the requests of a fetch, as faults match them, each with the content type of git's answer: one
// of another type is refused before anything of it is read.
var gitTypes = map[string]map[string]string{
	"/info/refs":        {"Content-Type": "application/x-git-upload-pack-advertisement"},
	"/git-upload-pack$": {"Content-Type": "application/x-git-upload-pack-result"},
}

// with is the same fault for other requests.
func (f fault) with(more fault) fault {
	merged := fault{}
	for _, from := range []fault{f, more} {
		for name, value := range from {
			merged[name] = value
		}
	}
	return merged
}

// templateServer is a real git server behind Gitea's API, that can be told to misbehave.
type templateServer struct {
	URL        string `json:"url"`
	RepoPrefix string `json:"repo_prefix"`

	known int // requests that were taken
}

func templateRepo(runtime string) string {
	return "molecule-ai/molecule-ai-workspace-template-" + runtime
}

// control asks a server of the tests. Its connections must not be among those that tests count.
var control = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func startTemplateServer(t *testing.T, flags ...string) *templateServer {
	t.Helper()
	process := exec.Command(given(t, "MOL_TEST_TEMPLATESERVER"), append([]string{"--root", t.TempDir()}, flags...)...)
	// What git complains of is part of many tests, and of interest only where one fails.
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
		// It stops when this is closed, also when the test is killed.
		_ = stdin.Close()
		_ = process.Wait()
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("the template server said:\n%s", &stderr)
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
	response, err := control.Do(request)
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

// commit makes a commit with these files and no others the head of a branch.
func (s *templateServer) commit(t testing.TB, repo, branch string, content files) string {
	t.Helper()
	var made struct{ SHA string }
	s.control(t, "POST", "repos/"+repo+"/commits", map[string]any{"branch": branch, "files": content, "reset": true}, &made)
	return made.SHA
}

// repository makes a repository, or changes one.
func (s *templateServer) repository(t testing.TB, repo string, how map[string]any) {
	t.Helper()
	s.control(t, "PUT", "repos/"+repo, how, nil)
}

// misbehave replaces what the server does wrong.
func (s *templateServer) misbehave(t testing.TB, how ...fault) {
	t.Helper()
	if how == nil {
		how = faults{}
	}
	s.control(t, "PUT", "faults", how, nil)
}

type request struct {
	Method, Path, Query, Service, Authorization string
	UserAgent                                   string `json:"user_agent"`
}

// requests are all that came.
func (s *templateServer) requests(t testing.TB) requests {
	t.Helper()
	var all requests
	s.control(t, "GET", "requests", nil, &all)
	return all
}

// fresh are those that came since the last call of it. The server does not forget them: one that comes in
// between would be lost.
func (s *templateServer) fresh(t testing.TB) requests {
	t.Helper()
	all := s.requests(t)
	fresh := all[s.known:]
	s.known = len(all)
	return fresh
}

type requests []request

// of are the requests of one service, api or git.
func (all requests) of(service string) requests {
	return slices.DeleteFunc(slices.Clone(all), func(r request) bool { return r.Service != service })
}

// fetches is how many fetches were begun.
func (all requests) fetches() int {
	n := 0
	for _, r := range all {
		if strings.HasSuffix(r.Path, "/info/refs") {
			n++
		}
	}
	return n
}
