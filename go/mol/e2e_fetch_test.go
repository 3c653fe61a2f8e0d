//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var discard = log.New(io.Discard, "", 0)

// noise is text that does not compress away.
func noise(n int) string {
	data := make([]byte, n*3/4)
	for i := range data {
		data[i] = byte(rand.IntN(256))
	}
	return base64.StdEncoding.EncodeToString(data)
}

// Exactly one commit, from a server that misbehaves.

// fetchFails checks that a call ends with the fetch, and that nothing of it is left.
func (c *testClient) fetchFails(sha string, want error) *Error {
	c.b.Helper()
	e := c.refused("hermes", want)
	if e.URL == "" || !strings.Contains(e.Error(), "workspace-template-hermes") {
		c.b.Errorf("it does not name the repository: %#v", e)
	}
	if c.count(EventBuildStarted) > 0 {
		c.b.Errorf("it was built: %v", c.kinds())
	}
	if _, err := os.Stat(c.b.tree("hermes", sha)); err == nil {
		c.b.Error("there is a tree in the cache")
	}
	return e
}

func TestGitsRefusalsAreToldApart(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]error{401: ErrAuth, 403: ErrAuth, 404: ErrRepoNotFound, 418: ErrFetch, 500: ErrFetch} {
		for _, part := range []string{"/info/refs", "/git-upload-pack$"} {
			t.Run(fmt.Sprint(part, " ", status), func(t *testing.T) {
				b := parallelBed(t)
				sha := b.template("hermes", dockerfile(plain))
				b.server.misbehave(b, fault{"match": part, "status": status})
				says(t, b.client().fetchFails(sha, want).Message, fmt.Sprint(status))
			})
		}
	}
}

func TestACommitThatTheServerDoesNotHaveIsNamed(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	const gone = "0123456789abcdef0123456789abcdef01234567"
	b.server.misbehave(b, fault{"match": "/api/", "status": 200, "body": branchAnswer(gone)})
	says(t, b.client().fetchFails(gone, ErrFetch).Message, gone, b.server.RepoPrefix)
}

func TestAnAnswerThatIsNoGitIsAFailedFetch(t *testing.T) {
	b := parallelBed(t)
	sha := b.template("hermes", dockerfile(plain))
	for part, kind := range gitTypes {
		for _, body := range []string{"<html>sign in</html>", "0000", "zzzz", "0008NAK\n"} {
			b.server.misbehave(b, fault{"match": part, "status": 200, "body": body, "headers": kind})
			if e := b.client().fetchFails(sha, ErrFetch); strings.Contains(e.Message, "did not answer as git does") {
				t.Errorf("it has the type of git's: %v", e)
			}
		}
	}
}

func TestAPackThatIsCutIsNeverUsed(t *testing.T) {
	t.Parallel()
	content := noise(20_000)
	for _, cut := range []int{100, 10_000} {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			b := parallelBed(t)
			sha := b.template("hermes", copying(content))
			b.server.misbehave(b, fault{"match": "/git-upload-pack$", "truncate_after": cut})
			c := b.client()
			c.fetchFails(sha, ErrFetch)
			b.server.misbehave(b)
			if got := b.engine.read(b, c.ensure("hermes").Ref, "content"); got != content {
				t.Errorf("the image holds %d bytes and not %d", len(got), len(content))
			}
		})
	}
}

func TestAServerThatFallsSilentIsStalledAndASlowOneIsNot(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		how  fault
		want error
	}{
		"silent before the refs": {fault{"match": "/info/refs", "truncate_after": 40, "hang": true}, ErrStalled},
		"silent in the pack":     {fault{"match": "/git-upload-pack$", "truncate_after": 40, "hang": true}, ErrStalled},
		// The whole takes longer than the grace, and a pause a tenth of it.
		"slow": {fault{"match": "/git-upload-pack$", "drip_ms": 300, "drip_bytes": 20}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := parallelBed(t)
			sha := b.template("hermes", dockerfile(plain))
			b.server.misbehave(b, c.how)
			const grace = 3 * time.Second
			client := b.client(func(o *Options) { o.StallGrace = grace })
			since := time.Now()
			if c.want == nil {
				client.ensure("hermes")
				if took := time.Since(since); took < grace || client.count(EventFetchProgress) == 0 {
					t.Errorf("it was not slow: %v, %v", took, client.kinds())
				}
				return
			}
			says(t, client.fetchFails(sha, c.want).Hint, "MOLECULE_BUILD_STALL_GRACE_S")
			if took := time.Since(since); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// Redirects: the token goes to the origin it was given for, and to nobody else (promise P6).

const plainToken = "7f3c0b5e9d2a4f6188c1e0b7a6d5943210fedcba"

func hasToken(r request) bool {
	if encoded, ok := strings.CutPrefix(r.Authorization, "Basic "); ok {
		decoded, _ := base64.StdEncoding.DecodeString(encoded)
		return strings.Contains(string(decoded), plainToken)
	}
	return strings.Contains(r.Authorization, plainToken)
}

func TestTheAPIGetsTheTokenInItsHeaderAndGitAsCredentials(t *testing.T) {
	b := parallelBed(t, "--token", plainToken)
	b.template("hermes", dockerfile(plain))
	b.client(func(o *Options) { o.Token = plainToken }).ensure("hermes")
	all := b.server.requests(b)
	for _, r := range all.of("api") {
		if r.Authorization != "token "+plainToken {
			t.Errorf("got %+v", r)
		}
	}
	if git := all.of("git"); len(git) < 2 {
		t.Errorf("got %+v", git)
	}
	for _, r := range all {
		if !hasToken(r) || strings.Contains(r.Path+r.Query+r.UserAgent, plainToken) || (r.Service == "api" && !strings.Contains(r.UserAgent, "libmol/")) {
			t.Errorf("got %+v", r)
		}
	}
}

func TestWithoutATokenNoCredentialsAreSent(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	b.client().ensure("hermes")
	for _, r := range b.server.requests(b) {
		if r.Authorization != "" {
			t.Errorf("got %+v", r)
		}
	}
}

// renamed has the repository of hermes renamed to that of codex, here or on another server: Gitea redirects.
func (b *bed) renamed(server *templateServer) {
	b.Helper()
	to := func(path string) map[string]string { return map[string]string{"Location": server.URL + path} }
	b.server.misbehave(b,
		fault{
			"match": "/api/v1/repos/[^/]*/[^/]*hermes/branches/main$", "status": 307,
			"headers": to("/api/v1/repos/" + templateRepo("codex") + "/branches/main"),
		},
		fault{
			"match": `hermes/info/refs\?service=git-upload-pack`, "status": 301,
			"headers": to("/" + templateRepo("codex") + "/info/refs?service=git-upload-pack"),
		},
	)
}

func TestARenamedRepositoryIsFollowedWithAndWithoutAToken(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{"with": {"--token", plainToken}, "without": nil} {
		t.Run(name, func(t *testing.T) {
			b := parallelBed(t, flags...)
			sha := b.template("codex", dockerfile(plain))
			b.renamed(b.server)
			image := b.client(func(o *Options) { o.Token = strings.Join(flags[min(1, len(flags)):], "") }).ensure("hermes")
			if image.CommitSHA != sha || image.Ref != b.ref("hermes", sha) {
				t.Errorf("got %+v", image)
			}
		})
	}
}

func TestARedirectToAnotherOriginIsRefusedWithAToken(t *testing.T) {
	t.Parallel()
	withToken := func(o *Options) { o.Token = plainToken }
	for name, redirect := range map[string]func(b *bed, other *templateServer){
		"in the lookup": func(b *bed, other *templateServer) { b.renamed(other) },
		"in the fetch": func(b *bed, other *templateServer) {
			there := other.URL + "/" + templateRepo("hermes") + "/info/refs?service=git-upload-pack"
			b.server.misbehave(b, fault{"match": "/info/refs", "status": 302, "headers": map[string]string{"Location": there}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := parallelBed(t, "--token", plainToken)
			b.template("hermes", dockerfile(plain))
			other := startTemplateServer(t)
			other.commit(t, templateRepo("codex"), "main", dockerfile(plain))
			redirect(b, other)
			e := b.client(withToken).refused("hermes", ErrGiteaUnreachable)
			says(t, e.Message, other.URL)
			says(t, e.Hint, "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX")
			if got := other.requests(t); len(got) > 0 {
				t.Errorf("the other server was asked %+v", got)
			}
		})
	}
}

func TestARedirectToAnotherOriginIsFollowedWithoutAToken(t *testing.T) {
	b := parallelBed(t)
	other := startTemplateServer(t)
	sha := other.commit(t, templateRepo("codex"), "main", dockerfile(plain))
	b.renamed(other)
	if got := b.client().ensure("hermes").CommitSHA; got != sha {
		t.Errorf("got %s", got)
	}
}

func TestRedirectsThatLeadNowhereEnd(t *testing.T) {
	b := parallelBed(t)
	b.server.misbehave(b, fault{"match": "/api/", "status": 302, "headers": map[string]string{"Location": "/api/v1/again"}})
	says(t, b.client().lookupFails(ErrGiteaUnreachable).Message, "redirects")
	if n := len(b.server.fresh(b)); n > 20 {
		t.Errorf("asked %d times", n)
	}
	b.server.misbehave(b, fault{"match": "/api/", "status": 302})
	b.client().lookupFails(ErrBadResponse)
}

// The cache: whatever it holds, what is used is whole, and the next call succeeds (promise P5).

// whole is a template that shows what was in its context.
func whole() files {
	return files{"Dockerfile": {Text: "FROM scratch\nCOPY . /\n"}, "content": {Text: "right"}}
}

func (b *bed) isRight() {
	b.Helper()
	found := b.engine.files(b, b.client().ensure("hermes").Ref)
	if _, stale := found["stale"]; stale || found["content"].content != "right" {
		b.Errorf("the image has %v", found)
	}
}

func TestAStaleOrHalfWrittenTreeInTheCacheIsThrownAway(t *testing.T) {
	t.Parallel()
	write := func(t *testing.T, path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mkdir := func(t *testing.T, path string) {
		t.Helper()
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, plant := range map[string]func(t *testing.T, b *bed, tree string){
		"half-written": func(t *testing.T, _ *bed, tree string) {
			mkdir(t, tree)
			write(t, filepath.Join(tree, "Dockerfile"), "FROM scratch\nCOPY . /\n")
			write(t, filepath.Join(tree, "content"), "ri")
			write(t, filepath.Join(tree, "stale"), "")
		},
		"empty":               func(t *testing.T, _ *bed, tree string) { mkdir(t, tree) },
		"a file in its place": func(t *testing.T, _ *bed, tree string) { write(t, tree, "") },
		"a link to somebody else": func(t *testing.T, b *bed, tree string) {
			elsewhere := filepath.Join(b.dir, "elsewhere")
			mkdir(t, elsewhere)
			write(t, filepath.Join(elsewhere, "Dockerfile"), "FROM scratch\nCOPY . /\n")
			write(t, filepath.Join(elsewhere, "stale"), "")
			if err := os.Symlink(elsewhere, tree); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if _, err := os.Stat(filepath.Join(elsewhere, "stale")); err != nil {
					t.Errorf("the link was followed: %v", err)
				}
			})
		},
		"its voucher is cut short": func(t *testing.T, b *bed, tree string) {
			b.client().ensure("hermes")
			b.engine.removeAllOf(b, b.isolation)
			vouchers := 0
			entries, err := os.ReadDir(filepath.Dir(tree))
			if err != nil {
				t.Fatal(err)
			}
			for _, entry := range entries {
				path := filepath.Join(filepath.Dir(tree), entry.Name())
				if data, err := os.ReadFile(path); err == nil && filepath.Ext(path) == ".json" && strings.Contains(string(data), filepath.Base(tree)) {
					vouchers++
					write(t, path, string(data[:len(data)/2]))
				}
			}
			if vouchers != 1 {
				t.Fatalf("there are %d files that vouch for the tree", vouchers)
			}
			write(t, filepath.Join(tree, "stale"), "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := parallelBed(t)
			tree := b.tree("hermes", b.template("hermes", whole()))
			mkdir(t, filepath.Dir(tree))
			plant(t, b, tree)
			b.isRight()
		})
	}
}

func TestAWholeTreeIsUsedWithoutAFetch(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", whole())
	b.isRight()
	b.engine.removeAllOf(b, b.isolation)
	b.server.fresh(b)
	c := b.client()
	if image := c.ensure("hermes"); image.CacheHit || c.count(EventFetchStarted) != 0 {
		t.Errorf("got %+v and %v", image, c.kinds())
	}
	if got := b.server.fresh(b).of("git"); len(got) > 0 {
		t.Errorf("it was fetched: %+v", got)
	}
}

func TestTheTreeIsBelowItsRuntimeAndCommit(t *testing.T) {
	b := parallelBed(t)
	sha := b.template("hermes", whole())
	b.client().ensure("hermes")
	if data, err := os.ReadFile(filepath.Join(b.tree("hermes", sha), "content")); err != nil || string(data) != "right" {
		t.Errorf("got %q and %v", data, err)
	}
	for _, dir := range []string{b.cache(), filepath.Join(b.cache(), "hermes")} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v, %v", dir, info.Mode(), err)
		}
	}
}

func TestACacheFolderThatCannotBeUsedIsNamed(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(b *bed) (folder, hint string){
		"it is a file": func(b *bed) (string, string) {
			path := filepath.Join(b.dir, "a-file")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				b.Fatal(err)
			}
			return path, "MOLECULE_LOCAL_BUILD_CACHE"
		},
		"it cannot be made": func(*bed) (string, string) { return "/proc/nowhere", "MOLECULE_LOCAL_BUILD_CACHE" },
		"others can write to it": func(b *bed) (string, string) {
			path := filepath.Join(b.dir, "open")
			if err := os.Mkdir(path, 0o700); err != nil {
				b.Fatal(err)
			}
			if err := os.Chmod(path, 0o777); err != nil {
				b.Fatal(err)
			}
			return path, "chmod"
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := parallelBed(t)
			b.template("hermes", dockerfile(plain))
			folder, hint := prepare(b)
			e := b.client(func(o *Options) { o.CacheDir = folder }).refused("hermes", ErrCache)
			says(t, e.Message, folder)
			says(t, e.Hint, hint)
			b.untouched()
		})
	}
}
