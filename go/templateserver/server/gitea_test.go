package server

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
)

// vector is an answer of a real Gitea, which `tests/run gitea` records. Addresses, ids and dates are replaced.
type vector struct {
	Path        string `json:"path"`
	Status      int    `json:"status"`
	ContentType string `json:"content_type"`
	Location    string `json:"location"`
	Body        any    `json:"body"`
}

const (
	giteaToken = "the-token-of-this-test"
	// The form of commit ids in the recorded answers.
	anyID = "0123456789012345678901234567890123456789"
)

// scenario describes how this server gives the same answer.
type scenario struct {
	token   bool // the server requires a token
	send    string
	private bool
	// forbidden means that the token lacks the permission.
	forbidden bool
}

// notSupported are the answers that this server does not have: it has no users and no renamed repositories.
var notSupported = []string{
	"no_access", "no_access_git", "no_git", "public_only", "public_only_git", "renamed", "renamed_git",
	// The server does not require the token.
	"missing_token", "wrong_scope_public",
}

func TestAnswersMatchRecordedGitea(t *testing.T) {
	const right, wrong = giteaToken, "0123456789abcdef"
	cases := map[string]scenario{
		"branch": {}, "repository": {}, "references": {}, "tree": {}, "commit": {}, "git": {},
		"missing_branch": {}, "missing_reference": {}, "missing_commit": {},
		"empty": {}, "empty_branch": {}, "missing": {}, "missing_git": {},
		"missing_token_git": {token: true, send: right},
		"bad_token":         {token: true, send: wrong},
		"bad_token_git":     {token: true, send: wrong},
		"private_nobody":    {private: true}, "private_nobody_git": {private: true},
		"private_reader":     {token: true, send: right, private: true},
		"private_reader_git": {token: true, send: right, private: true},
		"wrong_scope":        {token: true, send: right, forbidden: true},
		"wrong_scope_git":    {token: true, send: right, forbidden: true},
		"sign_in":            {token: true}, "sign_in_git": {token: true},
	}
	files, err := filepath.Glob("../../../tests/vectors/gitea/*.json")
	if err != nil || len(files) < len(cases) {
		t.Fatalf("%d recorded answers, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		how, ok := cases[name]
		if !ok {
			if !slices.Contains(notSupported, name) {
				t.Errorf("%s is not compared", name)
			}
			continue
		}
		delete(cases, name)
		t.Run(name, func(t *testing.T) { compare(t, file, how) })
	}
	for name := range cases {
		t.Errorf("%s is not recorded", name)
	}
}

func compare(t *testing.T, file string, how scenario) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var want vector
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	options := Options{}
	if how.token {
		options.Token = giteaToken
	}
	s := start(t, options)
	id := ""
	for _, runtime := range []string{"hermes", "codex"} {
		repo := "molecule-ai/" + RepoNamePrefix + runtime
		sha, err := s.Commit(repo, Commit{Branch: "main", Message: "A template", Files: map[string]File{"Dockerfile": {Text: "FROM scratch\n"}}})
		if err != nil {
			t.Fatal(err)
		}
		if runtime == "hermes" {
			id = sha
		}
		if err := s.PutRepo(repo, Repo{Private: how.private, Forbidden: how.forbidden}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutRepo("molecule-ai/"+RepoNamePrefix+"crewai", Repo{DefaultBranch: "main"}); err != nil {
		t.Fatal(err)
	}

	path := want.Path
	if want.Status == http.StatusOK {
		path = strings.Replace(path, anyID, id, 1)
	}
	request, err := http.NewRequest(http.MethodGet, s.URL()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if how.send != "" {
		if strings.HasPrefix(path, "/api/") {
			request.Header.Set("Authorization", "token "+how.send)
		} else {
			request.SetBasicAuth("x-access-token", how.send)
		}
	}
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != want.Status {
		t.Errorf("status %d, Gitea's is %d: %s", response.StatusCode, want.Status, body)
	}
	if got := response.Header.Get("Content-Type"); got != want.ContentType {
		t.Errorf("content type %q, Gitea's is %q", got, want.ContentType)
	}
	switch wanted := want.Body.(type) {
	case string:
		if string(body) != wanted {
			t.Errorf("%q, Gitea says %q", body, wanted)
		}
	case nil: // an HTML page, or git packets
	default:
		var got any
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatal(err)
		}
		sameShape(t, "", got, wanted, want.Status)
	}
}

// Fields of a commit that this server does not have.
var leftOut = []string{"author", "commit", "committer", "created", "files", "html_url", "parents", "stats"}

// sameShape compares the fields. It also compares the values of errors and of the fields that libmol reads.
func sameShape(t *testing.T, path string, got, want any, status int) {
	t.Helper()
	switch want := want.(type) {
	case map[string]any:
		fields, _ := got.(map[string]any)
		has, wanted := fieldNames(fields), fieldNames(want)
		if _, isCommit := want["sha"]; isCommit && path == "" {
			wanted = slices.DeleteFunc(wanted, func(name string) bool { return slices.Contains(leftOut, name) })
		}
		if !slices.Equal(has, wanted) {
			t.Errorf("%s has %v, Gitea's has %v", path, has, wanted)
			return
		}
		for _, name := range wanted {
			sameShape(t, path+"."+name, fields[name], want[name], status)
		}
	case []any:
		list, ok := got.([]any)
		if !ok || len(list) != len(want) {
			t.Errorf("%s is %v, Gitea's is %v", path, got, want)
			return
		}
		for i := range want {
			sameShape(t, path+"[]", list[i], want[i], status)
		}
	case string:
		read := []string{".name", ".default_branch", ".object_format_name", "[].ref", "[].object.type"}
		text, ok := got.(string)
		counts := slices.Contains(read, path) || (status != http.StatusOK && path != ".url")
		if !ok || (counts && text != want && want != anyID) {
			t.Errorf("%s is %v, Gitea's is %q", path, got, want)
		}
	case bool:
		if value, ok := got.(bool); !ok || (path == ".empty" && value != want) {
			t.Errorf("%s is %v, Gitea's is %v", path, got, want)
		}
	case nil:
		if got != nil {
			t.Errorf("%s is %v, Gitea's is null", path, got)
		}
	}
}

func fieldNames(fields map[string]any) []string {
	var names []string
	for name := range fields {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
