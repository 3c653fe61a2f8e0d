package server

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const testRepo = "molecule-ai/molecule-ai-workspace-template-hermes"

func start(t *testing.T, options Options) *Server {
	t.Helper()
	s, err := Start(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func commit(t *testing.T, s *Server, c Commit) string {
	t.Helper()
	sha, err := s.Commit(testRepo, c)
	if err != nil {
		t.Fatal(err)
	}
	return sha
}

func oneFile(path, text string) Commit {
	return Commit{Files: map[string]File{path: {Text: text}}}
}

func get(t *testing.T, url string, header ...string) (int, string, http.Header) {
	t.Helper()
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body), response.Header
}

func runGit(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := git(dir, nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// keys returns the keys of a JSON object, in their order.
func keys(t *testing.T, body string) []string {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(body))
	var names []string
	if _, err := decoder.Token(); err != nil {
		t.Fatal(err)
	}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name.(string))
		var skip json.RawMessage
		if err := decoder.Decode(&skip); err != nil {
			t.Fatal(err)
		}
	}
	return names
}

func TestBranchAnswerMatchesGitea(t *testing.T) {
	s := start(t, Options{})
	sha := commit(t, s, Commit{Message: "Say \"hello\"", Files: map[string]File{"Dockerfile": {Text: "FROM scratch\n"}}})

	status, body, header := get(t, s.URL()+"/api/v1/repos/"+testRepo+"/branches/main")
	if status != 200 || header.Get("Content-Type") != "application/json;charset=utf-8" {
		t.Fatalf("status %d, header %v", status, header)
	}
	if got, want := keys(t, body), []string{"name", "commit", "protected", "required_approvals", "enable_status_check",
		"status_check_contexts", "user_can_push", "user_can_merge", "effective_branch_protection_name"}; !slices.Equal(got, want) {
		t.Errorf("keys %v, want %v", got, want)
	}
	var branch struct {
		Name   string
		Commit json.RawMessage
	}
	if err := json.Unmarshal([]byte(body), &branch); err != nil {
		t.Fatal(err)
	}
	if got, want := keys(t, string(branch.Commit)), []string{"id", "message", "url", "author", "committer", "verification",
		"timestamp", "added", "removed", "modified"}; !slices.Equal(got, want) {
		t.Errorf("keys of the commit %v, want %v", got, want)
	}
	var got map[string]any
	if err := json.Unmarshal(branch.Commit, &got); err != nil {
		t.Fatal(err)
	}
	user := map[string]any{"name": authorName, "email": authorEmail, "username": "template-author"}
	want := map[string]any{
		"id": sha, "message": "Say \"hello\"\n", "url": s.URL() + "/" + testRepo + "/commit/" + sha,
		"author": user, "committer": user, "timestamp": "2026-01-05T09:00:00Z", "added": nil, "removed": nil, "modified": nil,
		"verification": map[string]any{"verified": false, "reason": "gpg.error.not_signed_commit", "signature": "", "signer": nil, "payload": ""},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("commit\n%v\nwant\n%v", got, want)
	}
	if !strings.HasPrefix(body, "{\n  \"name\"") {
		t.Errorf("the answer is not indented: %.40q", body)
	}
}

func TestRepositoryAnswer(t *testing.T) {
	s := start(t, Options{Compact: true})
	if err := s.PutRepo(testRepo, Repo{DefaultBranch: "trunk"}); err != nil {
		t.Fatal(err)
	}
	var repo struct {
		ID            int64
		Owner         struct{ Login, Username string }
		FullName      string `json:"full_name"`
		DefaultBranch string `json:"default_branch"`
		Empty         bool
		CloneURL      string `json:"clone_url"`
	}
	read := func() {
		status, body, _ := get(t, s.URL()+"/api/v1/repos/"+testRepo)
		if err := json.Unmarshal([]byte(body), &repo); err != nil || status != 200 {
			t.Fatal(status, err, body)
		}
		if strings.Contains(strings.TrimSpace(body), "\n") || len(keys(t, body)) < 50 {
			t.Errorf("not the compact answer of a Gitea: %s", body)
		}
	}
	read()
	if !repo.Empty || repo.DefaultBranch != "trunk" || repo.FullName != testRepo || repo.Owner.Login != "molecule-ai" || repo.ID == 0 {
		t.Errorf("empty repository: %+v", repo)
	}
	if status, _, _ := get(t, s.URL()+"/api/v1/repos/"+testRepo+"/branches/trunk"); status != 404 {
		t.Errorf("the branch of an empty repository: status %d", status)
	}
	commit(t, s, oneFile("a", "1")) // goes to the default branch
	read()
	if repo.Empty || runGit(t, t.TempDir(), "ls-remote", "--symref", repo.CloneURL, "HEAD") == "" {
		t.Errorf("after a commit: %+v", repo)
	}
	if err := s.PutRepo(testRepo, Repo{Empty: true}); err != nil {
		t.Fatal(err)
	}
	if read(); !repo.Empty || repo.DefaultBranch != "trunk" {
		t.Errorf("emptied: %+v", repo)
	}
}

func TestSortedKeysPutOtherIDsFirst(t *testing.T) {
	s := start(t, Options{SortedKeys: true, Compact: true})
	sha := commit(t, s, oneFile("a", "1"))
	_, body, _ := get(t, s.URL()+"/api/v1/repos/"+testRepo+"/branches/main")
	first, own := strings.Index(body, `"id":`), strings.Index(body, `"id":"`+sha+`"`)
	if first < 0 || own < 0 || first >= own {
		t.Errorf("no other id before the commit's: %s", body)
	}
}

func TestBranchNames(t *testing.T) {
	s := start(t, Options{})
	for _, name := range []string{"feat/x", "feat/y/z", "50%", "ümlaut", "a+b"} {
		c := oneFile("a", name)
		c.Branch = name
		sha := commit(t, s, c)
		for _, escape := range []func(string) string{
			func(n string) string { return strings.NewReplacer("%", "%25").Replace(n) },
			func(n string) string { return strings.NewReplacer("%", "%25", "/", "%2F").Replace(n) },
		} {
			status, body, _ := get(t, s.URL()+"/api/v1/repos/"+testRepo+"/branches/"+escape(name))
			if status != 200 || !strings.Contains(body, sha) {
				t.Errorf("%s as %s: status %d, %s", name, escape(name), status, body)
			}
		}
	}
	for _, name := range []string{"feat", "feat/", "feat/*", "*", "", "nothing"} {
		if status, _, _ := get(t, s.URL()+"/api/v1/repos/"+testRepo+"/branches/"+name); status != 404 {
			t.Errorf("%q: status %d, want 404", name, status)
		}
	}
	if _, err := s.Commit(testRepo, Commit{Branch: "two..dots"}); err == nil {
		t.Error("an invalid branch name was accepted")
	}
}

func TestBranchTipAfterAnyKindOfUpdate(t *testing.T) {
	s := start(t, Options{})
	head := func() string {
		t.Helper()
		_, body, _ := get(t, s.URL()+"/api/v1/repos/"+testRepo+"/branches/main")
		var branch struct {
			Commit struct{ ID, Message string }
		}
		if err := json.Unmarshal([]byte(body), &branch); err != nil {
			t.Fatal(err)
		}
		return branch.Commit.ID + " " + strings.TrimSpace(branch.Commit.Message)
	}
	release := func(message string) string {
		t.Helper()
		return commit(t, s, Commit{Message: message, Files: map[string]File{"Dockerfile": {Text: message}}})
	}
	// Each function returns what the head is after it.
	for _, update := range []func(first, second string) string{
		func(_, second string) string { return second + " second" },
		func(_, second string) string {
			runGit(t, s.Root(), "-C", testRepo+".git", "pack-refs", "--all")
			return second + " second"
		},
		func(first, _ string) string {
			runGit(t, s.Root(), "-C", testRepo+".git", "update-ref", "refs/heads/main", first)
			return first + " first"
		},
	} {
		first := release("first")
		if got := head(); got != first+" first" {
			t.Errorf("%q, want %s", got, first)
		}
		second := release("second")
		if got := head(); got != second+" second" {
			t.Errorf("%q, want %s", got, second)
		}
		want := update(first, second)
		for range 2 {
			if got := head(); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
	}
}

func TestNotFoundAndBadNames(t *testing.T) {
	s := start(t, Options{})
	status, body, _ := get(t, s.URL()+"/api/v1/repos/molecule-ai/nothing")
	if want := `{
  "errors": null,
  "message": "The target couldn't be found.",
  "url": "` + s.URL() + `/api/swagger"
}
`; status != 404 || body != want {
		t.Errorf("status %d, %s", status, body)
	}
	if status, _, header := get(t, s.URL()+"/molecule-ai/nothing.git/info/refs?service=git-upload-pack"); status != 401 ||
		header.Get("WWW-Authenticate") != `Basic realm="Gitea"` {
		t.Errorf("git, no credentials: status %d, %v", status, header)
	}
	if status, body, _ := get(t, s.URL()+"/molecule-ai/nothing.git/info/refs?service=git-upload-pack", "Authorization", "Basic eDp5"); status != 404 || body != "Repository not found" {
		t.Errorf("git, with credentials: status %d, %s", status, body)
	}
	for _, name := range []string{"", "org", "org/", "/repo", "../x", "org/..", "org/a b", "org/x/y", "org/x.git"} {
		if err := s.PutRepo(name, Repo{}); err == nil {
			t.Errorf("the repository %q was created", name)
		}
	}
}

func TestAFileThatCannotBeReadIsNotReportedAsChanged(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "file"), nil, 0o644); err != nil { // so that its size is not 0
		t.Fatal(err)
	}
	err := writeContent(bufio.NewWriter(io.Discard), content{mode: "100644", path: "x", file: folder})
	if !errors.Is(err, syscall.EISDIR) || strings.Contains(err.Error(), "changed") {
		t.Errorf("got %v", err)
	}
}

func TestRequestsNeedTheToken(t *testing.T) {
	s := start(t, Options{Token: "s3cret"})
	sha := commit(t, s, oneFile("Dockerfile", "FROM scratch\n"))
	api := s.URL() + "/api/v1/repos/" + testRepo + "/branches/main"
	for header, want := range map[string]int{
		"": 403, "token wrong": 401, "s3cret": 401, "token s3cret": 200, "Bearer s3cret": 200, "Basic " + b64("x:s3cret"): 200,
	} {
		status, body, _ := get(t, api, "Authorization", header)
		if status != want {
			t.Errorf("%q: status %d, want %d", header, status, want)
		}
		if status == 401 && !slices.Equal(keys(t, body), []string{"message", "url"}) {
			t.Errorf("%q: %s", header, body)
		}
	}
	url := s.URL() + "/" + testRepo
	if _, err := git(t.TempDir(), nil, "-c", "core.askPass=true", "ls-remote", url); err == nil {
		t.Error("git was authorized without the token")
	}
	for _, user := range []string{"any:s3cret@", "s3cret:x-oauth-basic@"} {
		if out := runGit(t, t.TempDir(), "ls-remote", strings.Replace(url, "://", "://"+user, 1)); !strings.HasPrefix(out, sha) {
			t.Errorf("%s: %s", user, out)
		}
	}
	if err := s.PutRepo(testRepo, Repo{Forbidden: true}); err != nil {
		t.Fatal(err)
	}
	if status, body, _ := get(t, api, "Authorization", "token s3cret"); status != 403 || !strings.Contains(body, "required scope") {
		t.Errorf("status %d, %s", status, body)
	}
}

func b64(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

func TestPrivateRepositoryIsHiddenWithoutToken(t *testing.T) {
	s := start(t, Options{})
	commit(t, s, oneFile("a", "1"))
	if err := s.PutRepo(testRepo, Repo{Private: true}); err != nil {
		t.Fatal(err)
	}
	if status, _, _ := get(t, s.URL()+"/api/v1/repos/"+testRepo); status != 404 {
		t.Errorf("status %d", status)
	}
	if status, _, _ := get(t, s.URL()+"/"+testRepo+"/info/refs?service=git-upload-pack"); status != 401 {
		t.Errorf("git: status %d", status)
	}
}

// A commit without a branch can still be fetched by its id, as from Gitea.
func TestFetchOfExactCommitAfterForcePush(t *testing.T) {
	s := start(t, Options{})
	first := commit(t, s, Commit{Files: map[string]File{
		"Dockerfile": {Text: "FROM scratch\n"},
		"bin/run":    {Base64: b64("\x00\xffbinary"), Mode: "100755"},
		"link":       {Text: "bin/run", Mode: "120000"},
		"grüße \"\\": {Text: "ü\n"},
	}})
	second := commit(t, s, Commit{Orphan: true, Reset: true, Files: map[string]File{"new": {Text: "2"}}})
	if runGit(t, s.Root(), "-C", testRepo+".git", "rev-list", "--count", "main") != "1" {
		t.Error("the orphan has a parent")
	}
	for _, version := range []string{"0", "2"} {
		dir := t.TempDir()
		runGit(t, dir, "init", "-q")
		runGit(t, dir, "-c", "protocol.version="+version, "fetch", "-q", "--depth=1", s.URL()+"/"+testRepo+".git", first)
		runGit(t, dir, "checkout", "-q", first)
		info, err := os.Stat(filepath.Join(dir, "bin/run"))
		if err != nil || info.Mode()&0o111 == 0 {
			t.Errorf("bin/run: %v %v", info, err)
		}
		if data, _ := os.ReadFile(filepath.Join(dir, "link")); string(data) != "\x00\xffbinary" {
			t.Errorf("link: %q", data)
		}
		if _, err := os.Stat(filepath.Join(dir, "grüße \"\\")); err != nil {
			t.Error(err)
		}
	}
	if second == first {
		t.Error("two commits have one id")
	}
}

func TestCommitChangesATree(t *testing.T) {
	s := start(t, Options{})
	files := func() string {
		return strings.ReplaceAll(runGit(t, s.Root(), "-C", testRepo+".git", "ls-tree", "-r", "--name-only", "main"), "\n", " ")
	}
	commit(t, s, Commit{Files: map[string]File{"a": {}, "d/b": {}, "d/c": {}}})
	for _, step := range []struct {
		commit Commit
		want   string
		count  string
	}{
		{oneFile("e", ""), "a d/b d/c e", "2"},
		{Commit{Delete: []string{"d/b"}}, "a d/c e", "3"},
		{Commit{Delete: []string{"d"}, Files: map[string]File{"d": {}}}, "a d e", "4"},
		{Commit{Reset: true, Files: map[string]File{"x": {}}}, "x", "5"},
		{Commit{Orphan: true, Files: map[string]File{"y": {}}}, "x y", "1"},
		{Commit{}, "x y", "2"},
	} {
		commit(t, s, step.commit)
		if got := files(); got != step.want {
			t.Errorf("%+v: %q, want %q", step.commit, got, step.want)
		}
		if got := runGit(t, s.Root(), "-C", testRepo+".git", "rev-list", "--count", "main"); got != step.count {
			t.Errorf("%+v: %s commits, want %s", step.commit, got, step.count)
		}
	}
	for name, bad := range map[string]Commit{
		"mode":   {Files: map[string]File{"a": {Mode: "160000"}}},
		"base64": {Files: map[string]File{"a": {Base64: "?"}}},
		"both":   {Files: map[string]File{"a": {Base64: "YQ==", Text: "a"}}},
	} {
		if _, err := s.Commit(testRepo, bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if got := files(); got != "x y" {
		t.Errorf("a rejected commit changed the branch: %q", got)
	}
}

// writeTemplate creates a folder with all kinds of entries that a tree can have.
func writeTemplate(t *testing.T, dir string) {
	t.Helper()
	for path, text := range map[string]string{
		"Dockerfile": "FROM scratch\nCOPY . /\n", ".dockerignore": "*.md\n", "run": "#!/bin/sh\n", "grüße.md": "ü\n", "d/e/f": "", ".git/config": "no",
	} {
		full := filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(filepath.Join(dir, "run"), 0o755), os.Symlink("d/e", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
}

func TestPublishingIsReproducible(t *testing.T) {
	templates := t.TempDir()
	writeTemplate(t, filepath.Join(templates, "hermes"))
	if err := os.WriteFile(filepath.Join(templates, "README.md"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	tip := func(options Options) (sha, tree string) {
		s := start(t, options)
		defer s.Close()
		line := runGit(t, t.TempDir(), "ls-remote", s.RepoPrefix()+"hermes", "refs/heads/main")
		sha, _, _ = strings.Cut(line, "\t")
		return sha, runGit(t, s.Root(), "-C", testRepo+".git", "ls-tree", "-r", "-z", sha)
	}
	first, tree := tip(Options{Root: root, Templates: templates})
	var got []string
	for _, line := range strings.Split(strings.Trim(tree, "\x00"), "\x00") {
		mode, _, _ := strings.Cut(line, " ")
		_, path, _ := strings.Cut(line, "\t")
		got = append(got, mode+" "+path)
	}
	if want := []string{"100644 .dockerignore", "100644 Dockerfile", "100644 d/e/f", "100644 grüße.md", "120000 link", "100755 run"}; !slices.Equal(got, want) {
		t.Errorf("tree %q, want %q", got, want)
	}
	history := runGit(t, root, "-C", testRepo+".git", "log", "--format=%s %ad", "--date=iso-strict", "main")
	if want := "Add the workspace 2026-01-05T09:01:00Z\nStart the template 2026-01-05T09:00:00Z"; strings.ReplaceAll(history, "+00:00", "Z") != want {
		t.Errorf("history\n%s\nwant\n%s", history, want)
	}
	if again, _ := tip(Options{Root: t.TempDir(), Templates: templates}); again != first {
		t.Errorf("another run created %s, want %s", again, first)
	}
	if again, _ := tip(Options{Root: root, Templates: templates}); again != first {
		t.Errorf("publishing without a change created %s, want %s", again, first)
	}
	if err := os.WriteFile(filepath.Join(templates, "hermes/run"), []byte("#!/bin/sh\nexit\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if again, _ := tip(Options{Root: root, Templates: templates}); again == first {
		t.Error("publishing a change created no commit")
	}
	if got := runGit(t, root, "-C", testRepo+".git", "for-each-ref", "--format=%(refname)"); got != "refs/heads/main" {
		t.Errorf("refs %q", got)
	}
	if got := runGit(t, root, "-C", testRepo+".git", "rev-list", "--count", "main"); got != "3" {
		t.Errorf("%s commits, want 3", got)
	}
}

func TestBasePath(t *testing.T) {
	s := start(t, Options{BasePath: "/git"})
	sha := commit(t, s, oneFile("a", "1"))
	if !strings.HasSuffix(s.RepoPrefix(), "/git/molecule-ai/"+RepoNamePrefix) {
		t.Errorf("prefix %s", s.RepoPrefix())
	}
	if status, _, _ := get(t, s.URL()+"/api/v1/repos/"+testRepo); status != 200 {
		t.Errorf("below the base path: status %d", status)
	}
	if got := runGit(t, t.TempDir(), "ls-remote", s.RepoPrefix()+"hermes.git", "main"); !strings.HasPrefix(got, sha) {
		t.Errorf("ls-remote: %s", got)
	}
	root := strings.TrimSuffix(s.URL(), "/git")
	if status, _, _ := get(t, root+"/api/v1/repos/"+testRepo); status != 404 {
		t.Errorf("outside the base path: status %d", status)
	}
	for _, url := range []string{root, s.URL()} {
		if status, _, _ := get(t, url+"/_control/requests"); status != 200 {
			t.Errorf("control API at %s: status %d", url, status)
		}
	}
}

func TestListensOnLoopbackOnly(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0", "example.com:0", "nonsense"} {
		if s, err := Start(Options{Listen: address}); err == nil {
			s.Close()
			t.Errorf("listens on %s", address)
		}
	}
}

func TestControlAPI(t *testing.T) {
	s := start(t, Options{})
	call := func(method, path, body string) (int, string) {
		t.Helper()
		request, _ := http.NewRequest(method, s.URL()+"/_control/"+path, strings.NewReader(body))
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		answer, _ := io.ReadAll(response.Body)
		return response.StatusCode, strings.TrimSpace(string(answer))
	}
	for _, step := range []struct {
		method, path, body string
		status             int
	}{
		{"PUT", "repos/" + testRepo, `{"default_branch":"main","private":false,"empty":true}`, 204},
		{"POST", "repos/" + testRepo + "/commits", `{"branch":"main","message":"m","files":{"a":{"text":"1","mode":"100755"}},"delete":["b"],"reset":true}`, 200},
		{"POST", "repos/" + testRepo + "/commits", `{"file":{}}`, 400},
		{"POST", "repos/" + testRepo + "/commits", `{"files":{"a":{"mode":"7"}}}`, 400},
		{"PUT", "faults", `[{"match":"nothing","times":1,"status":500}]`, 204},
		{"PUT", "faults", `[{"match":"("}]`, 400},
		{"PUT", "faults", `[{"mach":"x"}]`, 400},
		{"PUT", "faults", `[{"match":"x","body_base64":"?"}]`, 400},
		{"DELETE", "faults", ``, 204},
		{"GET", "requests", ``, 200},
		{"DELETE", "requests", ``, 204},
		{"GET", "nothing", ``, 404},
		{"PUT", "repos/..%2Fx/y", `{}`, 400},
		{"DELETE", "repos/" + testRepo, ``, 204},
		{"DELETE", "repos/" + testRepo, ``, 400},
	} {
		status, body := call(step.method, step.path, step.body)
		if status != step.status {
			t.Errorf("%s %s %s: status %d, %s, want %d", step.method, step.path, step.body, status, body, step.status)
		}
		if step.status == 200 && step.method == "POST" {
			var answer struct{ SHA string }
			if err := json.Unmarshal([]byte(body), &answer); err != nil || len(answer.SHA) != 40 {
				t.Errorf("no commit id in %s", body)
			}
		}
	}
	if status, body := call("GET", "requests", ""); body != "[]" {
		t.Errorf("requests: %d %s", status, body)
	}
}

func TestRequestLog(t *testing.T) {
	s := start(t, Options{})
	commit(t, s, oneFile("a", "1"))
	get(t, s.URL()+"/api/v1/repos/"+testRepo+"/branches/feat%2Fx", "Authorization", "token abc", "User-Agent", "me/1")
	get(t, s.URL()+"/"+testRepo+"/info/refs?service=git-upload-pack", "User-Agent", "me/1")
	get(t, s.URL()+"/", "User-Agent", "me/1")
	want := []Request{
		{Method: "GET", Path: "/api/v1/repos/" + testRepo + "/branches/feat%2Fx", Service: "api", Authorization: "token abc", Status: 404, UserAgent: "me/1"},
		{Method: "GET", Path: "/" + testRepo + "/info/refs", Query: "service=git-upload-pack", Service: "git", Status: 200, UserAgent: "me/1"},
		{Method: "GET", Path: "/", Service: "other", Status: 404, UserAgent: "me/1"},
	}
	requests := func() []Request {
		list := s.Requests()
		for i := range list {
			if host, _, err := net.SplitHostPort(list[i].Peer); err != nil || host != "127.0.0.1" {
				t.Errorf("the peer is %q", list[i].Peer)
			}
			list[i].Peer = "" // its port is a random one
		}
		return list
	}
	// The client may get the answer before the server has recorded the status.
	deadline := time.Now().Add(5 * time.Second)
	for !reflect.DeepEqual(requests(), want) {
		if time.Now().After(deadline) {
			t.Fatalf("requests %+v, want %+v", requests(), want)
		}
		time.Sleep(time.Millisecond)
	}
	s.ClearRequests()
	if got := s.Requests(); len(got) != 0 {
		t.Errorf("cleared: %+v", got)
	}
}

func TestBeforeCommitMovesTheBranchBetweenLookupAndFetch(t *testing.T) {
	s := start(t, Options{})
	first := commit(t, s, oneFile("a", "1"))
	err := s.SetFaults(Fault{Match: `git-upload-pack`, Times: 1, BeforeCommit: &RepoCommit{Repo: testRepo, Commit: oneFile("a", "2")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, body, _ := get(t, s.URL()+"/api/v1/repos/"+testRepo+"/branches/main"); !strings.Contains(body, first) {
		t.Fatalf("lookup: %s", body)
	}
	dir := t.TempDir()
	runGit(t, dir, "init", "-q")
	runGit(t, dir, "fetch", "-q", "--depth=1", s.RepoPrefix()+"hermes", first)
	if got := runGit(t, dir, "show", "FETCH_HEAD:a"); got != "1" {
		t.Errorf("fetched %q", got)
	}
	if _, body, _ := get(t, s.URL()+"/api/v1/repos/"+testRepo+"/branches/main"); strings.Contains(body, first) {
		t.Error("the branch did not move")
	}
	if got := runGit(t, s.Root(), "-C", testRepo+".git", "rev-list", "--count", "main"); got != "2" {
		t.Errorf("%s commits, want 2: the fault is for one request", got)
	}
}

func TestFaults(t *testing.T) {
	s := start(t, Options{Compact: true})
	commit(t, s, oneFile("a", "1"))
	api := s.URL() + "/api/v1/repos/" + testRepo
	_, plainAnswer, _ := get(t, api)
	four := int64(4)

	t.Run("status, headers, body, times", func(t *testing.T) {
		set(t, s, Fault{Match: `^/api/`, Times: 2, Status: 502, Headers: map[string]string{"X-A": "b"}, Body: "ab", BodyRepeat: 3})
		for range 2 {
			if status, body, header := get(t, api); status != 502 || body != "ababab" || header.Get("X-A") != "b" {
				t.Errorf("%d %q %v", status, body, header)
			}
		}
		if status, body, _ := get(t, api); status != 200 || body != plainAnswer {
			t.Errorf("the third request: %d %q", status, body)
		}
	})
	t.Run("redirect of a renamed repository", func(t *testing.T) {
		set(t, s, Fault{Match: `/old`, Status: 301, Headers: map[string]string{"Location": api}})
		if status, body, _ := get(t, s.URL()+"/api/v1/repos/molecule-ai/old"); status != 200 || body != plainAnswer {
			t.Errorf("%d %q", status, body)
		}
	})
	t.Run("delay", func(t *testing.T) {
		set(t, s, Fault{Match: `.`, DelayMS: 50})
		began := time.Now()
		if status, body, _ := get(t, api); status != 200 || body != plainAnswer || time.Since(began) < 50*time.Millisecond {
			t.Errorf("%d %q after %s", status, body, time.Since(began))
		}
	})
	t.Run("reset", func(t *testing.T) {
		set(t, s, Fault{Match: `.`, Reset: true})
		if _, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(api); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v", err)
		}
	})
	t.Run("truncated real answer", func(t *testing.T) {
		set(t, s, Fault{Match: `.`, TruncateAfter: &four})
		response, err := http.Get(api)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if !errors.Is(err, io.ErrUnexpectedEOF) || string(body) != plainAnswer[:4] || response.ContentLength != int64(len(plainAnswer)) {
			t.Errorf("%q %v, content length %d", body, err, response.ContentLength)
		}
	})
	t.Run("truncated pack", func(t *testing.T) {
		set(t, s, Fault{Match: `/git-upload-pack$`, TruncateAfter: &four})
		if _, err := git(t.TempDir(), nil, "clone", "-q", s.RepoPrefix()+"hermes", "x"); err == nil {
			t.Error("git cloned a truncated pack")
		}
	})
	t.Run("drip", func(t *testing.T) {
		set(t, s, Fault{Match: `.`, Body: "12345", DripMS: 10, DripBytes: 2})
		began := time.Now()
		if _, body, _ := get(t, api); body != "12345" || time.Since(began) < 20*time.Millisecond {
			t.Errorf("%q after %s", body, time.Since(began))
		}
	})
	t.Run("endless", func(t *testing.T) {
		set(t, s, Fault{Match: `.`, Endless: true})
		response, err := http.Get(api)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if n, err := io.CopyN(io.Discard, response.Body, 8<<20); err != nil {
			t.Errorf("ended after %d: %v", n, err)
		}
	})
	t.Run("body_first before a repeated body", func(t *testing.T) {
		set(t, s, Fault{Match: `.`, BodyFirst: "abc", Body: "12", BodyRepeat: 2})
		if _, body, _ := get(t, api); body != "abc1212" {
			t.Errorf("%q", body)
		}
		set(t, s, Fault{Match: `.`, BodyFirst: "abc", Body: "12", Endless: true, TruncateAfter: &four})
		response, err := http.Get(api)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if body, err := io.ReadAll(response.Body); string(body) != "abc1" || err == nil {
			t.Errorf("%q %v", body, err)
		}
	})
	t.Run("hang after a part", func(t *testing.T) {
		set(t, s, Fault{Match: `.`, TruncateAfter: &four, Hang: true})
		response, err := (&http.Client{Timeout: 2 * time.Second}).Get(api)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		var timeout interface{ Timeout() bool }
		if string(body) != plainAnswer[:4] || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%q %v", body, err)
		}
	})
	t.Run("hang before the answer", func(t *testing.T) {
		set(t, s, Fault{Match: `.`, Hang: true})
		response, err := (&http.Client{Timeout: 200 * time.Millisecond}).Get(api)
		if err == nil {
			response.Body.Close()
			t.Fatalf("answered %s", response.Status)
		}
		if !os.IsTimeout(err) {
			t.Error(err)
		}
	})
	t.Run("hang after a body", func(t *testing.T) {
		set(t, s, Fault{Match: `.`, Body: "{", Hang: true})
		response, err := (&http.Client{Timeout: 2 * time.Second}).Get(api)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if body, err := io.ReadAll(response.Body); string(body) != "{" || !os.IsTimeout(err) {
			t.Errorf("%q %v", body, err)
		}
	})
	t.Run("a truncation without effect", func(t *testing.T) {
		whole := int64(len(plainAnswer))
		set(t, s, Fault{Match: `.`, TruncateAfter: &whole})
		if status, body, _ := get(t, api); status != 500 || !strings.Contains(body, "does not truncate") {
			t.Errorf("%d %q", status, body)
		}
	})
	t.Run("ineffective faults are rejected", func(t *testing.T) {
		for _, fault := range []Fault{
			{Match: `.`},
			{Match: `.`, Times: 1, MatchBody: "x"},
			{Match: `.`, Reset: true, Status: 500},
			{Match: `.`, Reset: true, Hang: true},
			{Match: `.`, Endless: true, Hang: true},
			{Match: `.`, DripBytes: 3},
			{Match: `.`, Status: 200, BodyRepeat: 3},
			{Match: `.`, Body: "b", BodyFirst: "a"},
		} {
			if err := s.SetFaults(fault); err == nil {
				t.Errorf("accepted: %+v", fault)
			}
		}
	})
	t.Run("match by the body", func(t *testing.T) {
		set(t, s, Fault{Match: `/git-upload-pack$`, MatchBody: `command=fetch`, Status: 503})
		if _, err := git(".", nil, "ls-remote", s.RepoPrefix()+"hermes"); err != nil {
			t.Error(err)
		}
		if _, err := git(t.TempDir(), nil, "clone", "-q", s.RepoPrefix()+"hermes", "x"); err == nil {
			t.Error("git fetched from a server that answers 503")
		}
	})
	t.Run("first match counts", func(t *testing.T) {
		set(t, s, Fault{Match: `nothing`, Status: 500}, Fault{Match: `branches`, Status: 503}, Fault{Match: `.`, Status: 418})
		if status, _, _ := get(t, api+"/branches/main"); status != 503 {
			t.Errorf("status %d", status)
		}
		if status, _, _ := get(t, api); status != 418 {
			t.Errorf("status %d", status)
		}
	})
}

func set(t *testing.T, s *Server, list ...Fault) {
	t.Helper()
	if err := s.SetFaults(list...); err != nil {
		t.Fatal(err)
	}
}

// Close does not wait for clients that never read, and leaves no child process.
func TestCloseEndsRunningRequests(t *testing.T) {
	s := start(t, Options{})
	// More than the connection's buffers take, so that git waits for the client.
	large := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{}).Read(large)
	sha := commit(t, s, Commit{Files: map[string]File{"large": {Base64: base64.StdEncoding.EncodeToString(large)}}})
	zero := int64(0)
	set(t, s, Fault{Match: `requests=1`, TruncateAfter: &zero, Hang: true}, Fault{Match: `requests=2`, Endless: true}, Fault{Match: `requests=3`, DelayMS: 60_000})
	for i := 1; i <= 3; i++ {
		go http.Get(fmt.Sprintf("%s/api/v1/repos/%s?requests=%d", s.URL(), testRepo, i))
	}
	response, err := http.Post(s.RepoPrefix()+"hermes.git/git-upload-pack", "application/x-git-upload-pack-request",
		strings.NewReader(fetchRequest(sha)))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	for deadline := time.Now().Add(time.Minute); len(s.Requests()) < 4; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d requests", len(s.Requests()))
		}
	}
	if len(children(t)) == 0 {
		t.Fatal("git does not wait for the client")
	}
	began := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	if left := children(t); len(left) > 0 {
		t.Errorf("child processes: %v", left)
	}
	if _, err := os.Stat(s.Root()); !os.IsNotExist(err) {
		t.Errorf("the temporary folder was not removed: %v", err)
	}
}

// children returns the child processes, zombies included.
func children(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(files) == 0 {
		t.Fatalf("no threads in /proc: %v", err)
	}
	var found []string
	for _, file := range files {
		list, _ := os.ReadFile(file) // the thread may have ended
		found = append(found, strings.Fields(string(list))...)
	}
	return found
}

// fetchRequest is the body of a fetch of one commit.
func fetchRequest(sha string) string {
	line := "want " + sha + " ofs-delta\n"
	return fmt.Sprintf("%04x%s00000009done\n", len(line)+4, line)
}

func TestARepositoryIsCreatedOnce(t *testing.T) {
	s := start(t, Options{})
	for round := range 300 {
		var group sync.WaitGroup
		for range 8 {
			group.Add(1)
			go func() {
				defer group.Done()
				repo, err := s.store.create("org", fmt.Sprintf("new-%d", round))
				if err != nil {
					t.Error(err)
					return
				}
				// A second creation would write it again.
				if head, err := os.ReadFile(filepath.Join(repo.dir, "HEAD")); err != nil || len(head) == 0 {
					t.Errorf("HEAD is %q, %v", head, err)
				}
			}()
		}
		group.Wait()
	}
}

func TestConcurrentRequests(t *testing.T) {
	s := start(t, Options{})
	commit(t, s, oneFile("a", "0"))
	var group sync.WaitGroup
	for i := range 8 {
		group.Add(3)
		go func() {
			defer group.Done()
			if _, err := s.Commit(testRepo, oneFile(fmt.Sprintf("f%d", i), "x")); err != nil {
				t.Error(err)
			}
		}()
		go func() {
			defer group.Done()
			if status, _, _ := get(t, s.URL()+"/api/v1/repos/"+testRepo+"/branches/main"); status != 200 {
				t.Errorf("status %d", status)
			}
		}()
		go func() {
			defer group.Done()
			if _, err := git(t.TempDir(), nil, "ls-remote", s.RepoPrefix()+"hermes"); err != nil {
				t.Error(err)
			}
		}()
	}
	group.Wait()
	if got := runGit(t, s.Root(), "-C", testRepo+".git", "rev-list", "--count", "main"); got != "9" {
		t.Errorf("%s commits, want 9", got)
	}
}

// Some HTTP clients send chunked request bodies, which CGI does not support.
func TestChunkedFetchRequest(t *testing.T) {
	s := start(t, Options{})
	sha := commit(t, s, oneFile("a", "1"))
	body := io.NopCloser(strings.NewReader(fetchRequest(sha)))
	request, err := http.NewRequest("POST", s.RepoPrefix()+"hermes.git/git-upload-pack", body)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-git-upload-pack-request")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	pack, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 || !bytes.Contains(pack, []byte("PACK")) {
		t.Errorf("status %d, %v, %.60q", response.StatusCode, err, pack)
	}
}

func TestPushIsRejected(t *testing.T) {
	s := start(t, Options{})
	commit(t, s, oneFile("a", "1"))
	dir := t.TempDir()
	runGit(t, dir, "clone", "-q", s.RepoPrefix()+"hermes", ".")
	runGit(t, dir, "rev-parse", "--verify", "main")
	cmd := exec.Command("git", "push", "-q", "origin", "main:other")
	cmd.Dir, cmd.Env = dir, append(gitEnv(), "GIT_TERMINAL_PROMPT=0")
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("pushed: %s", out)
	}
}
