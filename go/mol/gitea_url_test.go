package mol

import (
	"errors"
	"net/url"
	"strings"
	"testing"
)

func TestGiteaBranchAPIURL(t *testing.T) {
	type vector struct {
		vectorName
		RepoPrefix string   `json:"repo_prefix"`
		Runtime    string   `json:"runtime"`
		Branch     string   `json:"branch"`
		Want       string   `json:"want"`
		Error      string   `json:"error"`
		NotShown   []string `json:"not_shown"`
	}
	eachVector(t, "branch_url.json", func(t *testing.T, v vector) {
		got, err := GiteaBranchAPIURL(v.RepoPrefix, v.Runtime, v.Branch)
		if v.Error == "" {
			if err != nil || got != v.Want {
				t.Fatalf("got %q and %v, want %q", got, err, v.Want)
			}
			// Parsing the URL gives the branch back, whatever characters are in it.
			u, err := url.Parse(got)
			if err != nil || !strings.HasSuffix(u.Path, "/branches/"+v.Branch) || u.RawQuery != "" || u.Fragment != "" {
				t.Errorf("%q parses to %+v, %v", got, u, err)
			}
			return
		}
		if got != "" || !errors.Is(err, ErrInvalidOption) {
			t.Fatalf("got %q and %v, want %s", got, err, v.Error)
		}
		var e *Error
		if !errors.As(err, &e) || e.Hint == "" || e.Code.String() != v.Error {
			t.Errorf("got %#v", err)
		}
		if text := err.Error(); strings.ContainsAny(text, "\n\x00") {
			t.Errorf("want a single line: %q", text)
		}
		for _, secret := range v.NotShown {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%q shows %q", err, secret)
			}
		}
	})
}

func TestGiteaBranchAPIURLRefusesAnInvalidRuntimeName(t *testing.T) {
	for _, name := range []string{"", "../x", "a/b", "a b", "a?b", "a%2fb", "ä", "a\x00"} {
		if got, err := GiteaBranchAPIURL("https://host/org/tpl-", name, "main"); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("%q: got %q and %v", name, got, err)
		}
	}
}

func TestGiteaBranchAPIURLRefusesInvalidUTF8(t *testing.T) {
	if got, err := GiteaBranchAPIURL("https://host/org\xff/tpl-", "hermes", "main"); !errors.Is(err, ErrInvalidOption) {
		t.Errorf("prefix: got %q and %v", got, err)
	}
	if got, err := GiteaBranchAPIURL("https://host/org/tpl-", "hermes", "main\xff"); !errors.Is(err, ErrInvalidOption) {
		t.Errorf("branch: got %q and %v", got, err)
	}
}

// URL parsers disagree about these, so all of them are refused.
func TestGiteaBranchAPIURLRefusesAmbiguousPrefixes(t *testing.T) {
	for _, prefix := range []string{
		"https://host/a/../org/tpl-", "https://host/./org/tpl-", "https://host/%2e%2e/org/tpl-", "https://host/org%2ftpl-",
		"https://host/org%5ctpl-", "https://höst/org/tpl-", "https://ho%73t/org/tpl-", "https://host:/org/tpl-",
		"https://host:0/org/tpl-", "https://[::1/org/tpl-", "https:///org/tpl-", "https:host/org/tpl-", "https:/host/org/tpl-",
		"https://host/org%zz/tpl-", "https://ho st/org/tpl-",
	} {
		if got, err := GiteaBranchAPIURL(prefix, "hermes", "main"); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("%q: got %q and %v", prefix, got, err)
		}
	}
}

func TestParseGiteaBranchHeadSha(t *testing.T) {
	type vector struct {
		vectorName
		Body     string `json:"body"`
		PaddedTo int    `json:"padded_to"`
		Want     string `json:"want"`
		Error    string `json:"error"`
	}
	eachVector(t, "head_sha.json", func(t *testing.T, v vector) {
		body := []byte(v.Body + strings.Repeat(" ", max(0, v.PaddedTo-len(v.Body))))
		got, err := ParseGiteaBranchHeadSha(body)
		if v.Error == "" {
			if err != nil || got != v.Want {
				t.Errorf("got %q and %v, want %q", got, err, v.Want)
			}
			return
		}
		var e *Error
		if got != "" || !errors.Is(err, ErrBadResponse) || !errors.As(err, &e) || e.Code.String() != v.Error {
			t.Fatalf("got %q and %v, want %s", got, err, v.Error)
		}
		if text := err.Error(); strings.ContainsAny(text, "\n\x00") || len(text) > 500 {
			t.Errorf("want a single line: %q", text)
		}
	})
}

func TestParseGiteaBranchHeadShaReportsATooLargeAnswer(t *testing.T) {
	_, err := ParseGiteaBranchHeadSha(make([]byte, 64<<10+1))
	if err == nil || !strings.Contains(err.Error(), "larger than 64 KiB") {
		t.Errorf("got %v", err)
	}
}

func TestParseGiteaBranchHeadShaRefusesInvalidUTF8(t *testing.T) {
	body := []byte(`{"x":"` + "\xff" + `","commit":{"id":"0123456789abcdef0123456789abcdef01234567"}}`)
	if got, err := ParseGiteaBranchHeadSha(body); !errors.Is(err, ErrBadResponse) {
		t.Errorf("got %q and %v", got, err)
	}
}

func FuzzParseGiteaBranchHeadSha(f *testing.F) {
	f.Add([]byte(`{"commit":{"id":"0123456789abcdef0123456789abcdef01234567"}}`))
	f.Add([]byte(`{"commit":{"author":{"id":1},"id":null}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		sha, err := ParseGiteaBranchHeadSha(body)
		if (err == nil) != isCommitID(sha) {
			t.Errorf("got %q and %v", sha, err)
		}
	})
}

func FuzzGiteaBranchAPIURL(f *testing.F) {
	f.Add("https://host/git/org/tpl-", "feature/x")
	f.Add("https://user:password@host/org/tpl-", "../..")
	f.Fuzz(func(t *testing.T, prefix, branch string) {
		got, err := GiteaBranchAPIURL(prefix, "hermes", branch)
		if err != nil {
			return
		}
		u, err := url.Parse(got)
		if err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Host == "" ||
			!strings.Contains(u.Path, "/api/v1/repos/") || !strings.HasSuffix(u.Path, "/branches/"+branch) {
			t.Errorf("%q and %q result in %q", prefix, branch, got)
		}
	})
}
