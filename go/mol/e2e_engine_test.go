//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// busybox is an image with a shell and the usual small programs, for templates with a RUN instruction.
const busybox = "libmol-test/busybox-go:latest"

// testEngine is a second way to the engine, past the library: to see what it really did.
type testEngine struct {
	url    string
	client *http.Client
}

var importBusybox sync.Once

// engineOfTheTests is the private engine, with a busybox image in it.
func engineOfTheTests(t testing.TB) *testEngine {
	t.Helper()
	e := engineAt(given(t, "MOL_TEST_ENGINE"))
	importBusybox.Do(func() { e.importBusybox(t) })
	return e
}

func engineAt(url string) *testEngine {
	socket := strings.TrimPrefix(url, "unix://")
	return &testEngine{url, &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

// ask sends a request and gives the answer, whatever its status.
func (e *testEngine) ask(t testing.TB, method, path string, query url.Values, contentType string, body []byte) (int, []byte) {
	t.Helper()
	request, err := http.NewRequest(method, "http://engine"+path+"?"+query.Encode(), bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", contentType)
	response, err := e.client.Do(request)
	if err != nil {
		t.Fatalf("the tests' engine at %s: %v; run make test", e.url, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, answer
}

// do is ask where it must work.
func (e *testEngine) do(t testing.TB, method, path string, query url.Values, contentType string, body []byte) []byte {
	t.Helper()
	status, answer := e.ask(t, method, path, query, contentType, body)
	if status >= 300 {
		t.Fatalf("%s %s: %d %s", method, path, status, answer)
	}
	return answer
}

// importBusybox makes the base image from the machine's own busybox: there is no registry in reach.
func (e *testEngine) importBusybox(t testing.TB) {
	t.Helper()
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("%v: install busybox-static, or run make test", err)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, folder := range []string{"bin/", "tmp/", "etc/"} {
		add(tar.Header{Name: folder, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Mode: 0o755}, data)
	for _, name := range []string{"sh", "cat", "echo", "env", "false", "head", "ls", "seq", "sleep", "tr", "true"} {
		add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	repo, tag, _ := strings.Cut(busybox, ":")
	query := url.Values{
		"fromSrc": {"-"}, "repo": {repo}, "tag": {tag}, "platform": {"linux/amd64"}, "changes": {"ENV PATH=/bin"},
	}
	e.do(t, "POST", "/images/create", query, "application/x-tar", archive.Bytes())
}

// inspected is what the engine knows of an image; all is its answer as text.
type inspected struct {
	ID           string `json:"Id"`
	Architecture string
	Config       struct{ Labels map[string]string }

	all string
}

// inspect gives the zero value if the engine has no image of that name.
func (e *testEngine) inspect(t testing.TB, ref string) inspected {
	t.Helper()
	status, answer := e.ask(t, "GET", "/images/"+ref+"/json", nil, "", nil)
	if status == http.StatusNotFound {
		return inspected{}
	}
	image := inspected{all: string(answer)}
	if err := json.Unmarshal(answer, &image); err != nil || status != http.StatusOK {
		t.Fatalf("%s: %d %s %v", ref, status, answer, err)
	}
	return image
}

func (e *testEngine) id(t testing.TB, ref string) string {
	t.Helper()
	return e.inspect(t, ref).ID
}

// history says how an image came to be.
func (e *testEngine) history(t testing.TB, ref string) string {
	t.Helper()
	return string(e.do(t, "GET", "/images/"+ref+"/history", nil, "", nil))
}

func (e *testEngine) tag(t testing.TB, image, ref string) {
	t.Helper()
	repo, tag, _ := strings.Cut(ref, ":")
	e.do(t, "POST", "/images/"+image+"/tag", url.Values{"repo": {repo}, "tag": {tag}}, "", nil)
}

// untag removes a reference, if it is there.
func (e *testEngine) untag(t testing.TB, ref string) {
	t.Helper()
	if status, answer := e.ask(t, "DELETE", "/images/"+ref, url.Values{"force": {"1"}}, "", nil); status >= 300 && status != http.StatusNotFound {
		t.Fatalf("%s: %d %s", ref, status, answer)
	}
}

// refsOf is every reference that ends with a test's mark.
func (e *testEngine) refsOf(t testing.TB, isolation string) []string {
	t.Helper()
	var status int
	var answer []byte
	// Docker's containerd store answers with 404 while another test removes an image.
	for range 10 {
		if status, answer = e.ask(t, "GET", "/images/json", nil, "", nil); status != http.StatusNotFound {
			break
		}
	}
	var images []struct{ RepoTags []string }
	if err := json.Unmarshal(answer, &images); err != nil || status != http.StatusOK {
		t.Fatalf("the images: %d %s %v", status, answer, err)
	}
	var refs []string
	for _, image := range images {
		for _, ref := range image.RepoTags {
			if strings.HasSuffix(ref, "--"+isolation) {
				refs = append(refs, ref)
			}
		}
	}
	slices.Sort(refs)
	return refs
}

func (e *testEngine) removeAllOf(t testing.TB, isolation string) {
	t.Helper()
	for _, ref := range e.refsOf(t, isolation) {
		e.untag(t, ref)
	}
}

// entry is one thing in an image.
type entry struct {
	mode    int64
	content string
	link    string
}

// files are the files and links in an image, without what the engine itself puts into every container.
func (e *testEngine) files(t testing.TB, ref string) map[string]entry {
	t.Helper()
	body, err := json.Marshal(map[string]any{"Image": ref, "Cmd": []string{"never-started"}})
	if err != nil {
		t.Fatal(err)
	}
	var made struct{ ID string }
	if err := json.Unmarshal(e.do(t, "POST", "/containers/create", nil, "application/json", body), &made); err != nil {
		t.Fatal(err)
	}
	archive := tar.NewReader(bytes.NewReader(e.do(t, "GET", "/containers/"+made.ID+"/export", nil, "", nil)))
	e.do(t, "DELETE", "/containers/"+made.ID, nil, "", nil)
	found := map[string]entry{}
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		own := slices.ContainsFunc([]string{
			"dev/", "proc/", "sys/", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf", ".dockerenv",
		}, func(own string) bool { return strings.HasPrefix(header.Name, own) })
		if header.Typeflag == tar.TypeDir || own {
			continue
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		found[header.Name] = entry{header.Mode & 0o7777, string(content), header.Linkname}
	}
}

// read gives the text of one file in an image.
func (e *testEngine) read(t testing.TB, ref, path string) string {
	t.Helper()
	found, ok := e.files(t, ref)[path]
	if !ok {
		t.Fatalf("%s has no file %s", ref, path)
	}
	return found.content
}

// isRunning tells whether a process has this word in its command line. The engine's process namespace is
// below ours, so the processes of its builds are to be seen here, which no call of its API shows for BuildKit.
func isRunning(word string) bool {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		if data, err := os.ReadFile(line); err == nil && bytes.Contains(data, []byte(word)) {
			return true
		}
	}
	return false
}

// treatment is what a proxy does with a request to the engine.
type treatment int

const (
	pass     treatment = iota // the engine answers
	fail                      // the answer is a 500
	breakOff                  // the engine gets it, and the connection ends as soon as it answers
)

// engineProxy stands between the library and the engine: it sees all that is sent, and fails where it is told to.
// All else is the real engine's.
type engineProxy struct {
	url   string // what to set DOCKER_HOST to
	treat func(requestLine string) treatment

	mu   sync.Mutex
	sent bytes.Buffer
}

func (b *bed) engineProxy(treat func(string) treatment) *engineProxy {
	b.Helper()
	// Not in the test's own folder: the path of a socket may have 108 bytes at most.
	dir, err := os.MkdirTemp("", "mol")
	if err != nil {
		b.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = listener.Close()
		_ = os.RemoveAll(dir)
	})
	p := &engineProxy{url: "unix://" + filepath.Join(dir, "s"), treat: treat}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go p.serve(client, strings.TrimPrefix(b.engine.url, "unix://"))
		}
	}()
	return p
}

// all is what the library has sent so far.
func (p *engineProxy) all() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent.String()
}

// serve is one connection, which may carry several requests, one after the other.
func (p *engineProxy) serve(client net.Conn, socket string) {
	defer client.Close()
	engine, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer engine.Close()
	broken := make(chan struct{})
	cut := sync.OnceFunc(func() { close(broken) })
	go func() {
		defer client.Close()
		buffer := make([]byte, 64<<10)
		for {
			n, err := engine.Read(buffer)
			select {
			case <-broken:
				return
			default:
			}
			if err != nil {
				return
			}
			if _, err := client.Write(buffer[:n]); err != nil {
				return
			}
		}
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := client.Read(buffer)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.sent.Write(buffer[:n])
		p.mu.Unlock()
		line, _, _ := strings.Cut(string(buffer[:n]), "\r\n")
		switch p.treat(line) {
		case fail:
			const body = `{"message":"told to fail"}`
			_, _ = io.WriteString(client, "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 26\r\n\r\n"+body)
			continue
		case breakOff:
			cut()
		}
		if _, err := engine.Write(buffer[:n]); err != nil {
			return
		}
	}
}
