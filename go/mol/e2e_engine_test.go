//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
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

// testEngine asks the engine without the library, to see what the library really did.
type testEngine struct {
	url    string
	client *http.Client
}

var importBusyboxOnce sync.Once

// dockerEngine is the private engine of the tests, with a busybox image in it.
func dockerEngine(t testing.TB) *testEngine {
	t.Helper()
	e := engineAt(requiredEnv(t, "MOL_TEST_ENGINE"))
	importBusyboxOnce.Do(func() { e.importBusybox(t) })
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

// ask sends a request and returns the status and the body of the answer.
func (e *testEngine) ask(t testing.TB, method, path string, query url.Values, contentType string, body []byte) (int, []byte) {
	t.Helper()
	request, err := http.NewRequest(method, "http://engine"+path+"?"+query.Encode(), bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", contentType)
	response, err := e.client.Do(request)
	if err != nil {
		t.Fatalf("the engine of the tests at %s: %v; run make test", e.url, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, answer
}

// do is ask for a request that must succeed.
func (e *testEngine) do(t testing.TB, method, path string, query url.Values, contentType string, body []byte) []byte {
	t.Helper()
	status, answer := e.ask(t, method, path, query, contentType, body)
	if status >= 300 {
		t.Fatalf("%s %s: %d %s", method, path, status, answer)
	}
	return answer
}

// importBusybox makes the base image from this machine's busybox: the tests reach no registry.
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
	for _, name := range []string{"sh", "cat", "echo", "seq", "sleep", "true"} {
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

// imageID returns the id of an image, or "" if the engine has none of that name.
func (e *testEngine) imageID(t testing.TB, ref string) string {
	t.Helper()
	status, answer := e.ask(t, "GET", "/images/"+ref+"/json", nil, "", nil)
	if status == http.StatusNotFound {
		return ""
	}
	var image struct {
		ID string `json:"Id"`
	}
	if err := json.Unmarshal(answer, &image); err != nil || status != http.StatusOK {
		t.Fatalf("%s: %d %s %v", ref, status, answer, err)
	}
	return image.ID
}

func (e *testEngine) tag(t testing.TB, image, ref string) {
	t.Helper()
	repo, tag, _ := strings.Cut(ref, ":")
	e.do(t, "POST", "/images/"+image+"/tag", url.Values{"repo": {repo}, "tag": {tag}}, "", nil)
}

// untag removes a reference, if it exists.
func (e *testEngine) untag(t testing.TB, ref string) {
	t.Helper()
	if status, answer := e.ask(t, "DELETE", "/images/"+ref, url.Values{"force": {"1"}}, "", nil); status >= 300 && status != http.StatusNotFound {
		t.Fatalf("%s: %d %s", ref, status, answer)
	}
}

// refs returns every reference with this isolation token.
func (e *testEngine) refs(t testing.TB, isolation string) []string {
	t.Helper()
	var status int
	var answer []byte
	// Docker's containerd store answers 404 while another test removes an image.
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

func (e *testEngine) removeImages(t testing.TB, isolation string) {
	t.Helper()
	for _, ref := range e.refs(t, isolation) {
		e.untag(t, ref)
	}
}

// isRunning reports whether a process has this word in its command line. The engine's process namespace is below that
// of the tests, so the processes of its builds are visible here. No call of its API shows them for BuildKit.
func isRunning(word string) bool {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		if data, err := os.ReadFile(line); err == nil && bytes.Contains(data, []byte(word)) {
			return true
		}
	}
	return false
}
