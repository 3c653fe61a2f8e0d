//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Which commit? And all the ways in which that question fails: each is told apart, names the URL and the next
// step, and none leads to a registry (promise P1).

// lookupFails checks that a call ends with the lookup, and what holds for all such ends.
func (c *testClient) lookupFails(want error) *Error {
	c.b.Helper()
	e := c.refused("hermes", want)
	if e.Runtime != "hermes" || !strings.Contains(e.URL, "workspace-template-hermes") || !strings.Contains(e.Message, "hermes") {
		c.b.Errorf("it does not name the repository: %#v", e)
	}
	if said := strings.ToLower(fmt.Sprint(e)); strings.Contains(said, "registry") || strings.Contains(said, "pull") {
		c.b.Errorf("it leads to a registry: %s", said)
	}
	if c.count(EventLookupDone)+c.count(EventFetchStarted) > 0 {
		c.b.Errorf("it went on: %v", c.kinds())
	}
	c.b.untouched()
	return e
}

func TestAGiteaThatCannotBeReachedIsToldWithTheReason(t *testing.T) {
	t.Parallel()
	// It takes connections and says nothing, ever.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	// It speaks first, and no HTTP.
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	go func() {
		for {
			conn, err := other.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
			_ = conn.Close()
		}
	}()
	// Nobody has signed its certificate.
	untrusted := httptest.NewUnstartedServer(http.NotFoundHandler())
	untrusted.Config.ErrorLog = discard
	untrusted.StartTLS()
	t.Cleanup(untrusted.Close)
	plainText := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plainText.Close)

	for _, c := range []struct {
		name, origin string
		says         []string // one of them in the message
		hint         string
	}{
		{"it refuses the connection", "http://127.0.0.1:1", []string{"refused"}, ""},
		{"its name does not resolve", "https://no-such-host.invalid", []string{"resolve"}, ""},
		{"it never answers", "http://" + silent.Addr().String(), []string{"30 seconds", "timed out"}, ""},
		{"it speaks no TLS", strings.Replace(plainText.URL, "http:", "https:", 1), []string{"TLS"}, "SSL_CERT_FILE"},
		{"its certificate is not trusted", untrusted.URL, []string{"certificate"}, "SSL_CERT_FILE"},
		{"it speaks no HTTP", "http://" + other.Addr().String(), []string{"HTTP", "message", "parse"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := parallelBed(t)
			e := b.client(func(o *Options) { o.RepoPrefix = c.origin + "/o/workspace-template-" }).lookupFails(ErrGiteaUnreachable)
			said := false
			for _, part := range c.says {
				said = said || strings.Contains(e.Message, part)
			}
			if !said || !strings.Contains(e.URL, c.origin) {
				t.Errorf("it does not say %q: %#v", c.says, e)
			}
			says(t, e.Hint, c.hint)
		})
	}
}

func TestARepositoryThatIsNotFoundIsNamedAndNoOther(t *testing.T) {
	b := parallelBed(t)
	e := b.client().lookupFails(ErrRepoNotFound)
	says(t, e.Message, b.server.RepoPrefix+"hermes")
	for _, runtime := range KnownRuntimes() {
		if strings.Contains(e.Hint, runtime) {
			t.Errorf("it names %s: %s", runtime, e.Hint)
		}
	}
}

// answered is how a lookup ends that gets this answer.
func (b *bed) answered(how fault, want error) *Error {
	b.Helper()
	b.server.misbehave(b, how.with(fault{"match": "/api/"}))
	e := b.client().lookupFails(want)
	if git := b.server.fresh(b).of("git"); len(git) > 0 {
		b.Errorf("it was fetched: %+v", git)
	}
	return e
}

func TestEachStatusIsAnErrorOfItsKindThatNamesIt(t *testing.T) {
	b := parallelBed(t)
	for _, c := range []struct {
		want   error
		hint   string
		status []int
	}{
		{ErrAuth, "MOLECULE_GITEA_TOKEN", []int{401, 403}},
		{ErrGiteaUnreachable, "", []int{408, 500, 501, 505}},
		{ErrBadResponse, "", []int{201, 204, 304, 400, 405, 410, 418}},
	} {
		for _, status := range c.status {
			e := b.answered(fault{"status": status, "body": `{"message":"no"}`}, c.want)
			says(t, e.Message, fmt.Sprint(status))
			says(t, e.Hint, c.hint)
		}
	}
}

func TestGiteasOwnRefusalsNameTheTokensVariable(t *testing.T) {
	b := parallelBed(t, "--token", "the-right-token")
	b.template("hermes", dockerfile(plain))
	with := func(token string) *testClient { return b.client(func(o *Options) { o.Token = token }) }
	for _, token := range []string{"", "a-wrong-token"} {
		says(t, with(token).lookupFails(ErrAuth).Hint, "MOLECULE_GITEA_TOKEN")
	}
	c := with("the-right-token")
	c.ensure("hermes")
	b.server.repository(b, templateRepo("hermes"), map[string]any{"forbidden": true})
	says(t, c.refused("hermes", ErrAuth).Message, "403")
}

func TestAnAnswerThatIsNoBranchIsABadAnswer(t *testing.T) {
	b := parallelBed(t)
	for _, body := range []string{
		"null", "[]", "{", "{}", `"x"`, "<html>sign in</html>", `{"commit":{}}`, `{"commit":{"id":7}}`, `{"commit":null}`,
		`{"name":"main","id":"0123456789abcdef0123456789abcdef01234567"}`,
	} {
		b.answered(fault{"status": 200, "body": body}, ErrBadResponse)
	}
}

func branchAnswer(id string) string {
	data, _ := json.Marshal(map[string]any{"commit": map[string]any{"id": id}})
	return string(data)
}

func TestACommitIDThatIsNoneIsABadAnswer(t *testing.T) {
	b := parallelBed(t)
	const full = "0123456789abcdef0123456789abcdef01234567"
	for name, id := range map[string]string{
		"short": full[:12], "one digit short": full[:39], "one digit long": full + "8", "upper case": strings.ToUpper(full),
		"not hex": strings.ReplaceAll(full, "a", "g"), "a space": " " + full, "a path": "../../../x" + full[10:], "empty": "",
		"63 digits": strings.Repeat("0123456789abcdef", 4)[1:],
	} {
		t.Run(name, func(*testing.T) { b.answered(fault{"status": 200, "body": branchAnswer(id)}, ErrBadResponse) })
	}
}

func TestACommitIDOf64DigitsIsTaken(t *testing.T) {
	b := parallelBed(t)
	id := strings.Repeat("0123456789abcdef", 4)
	b.server.misbehave(b, fault{"match": "/branches/", "status": 200, "body": branchAnswer(id)})
	c := b.client()
	// There is no such repository, which is another matter.
	if _, err := c.EnsureLocalImage(t.Context(), "hermes"); err == nil || errors.Is(err, ErrBadResponse) {
		t.Errorf("got %v", err)
	}
	if e := c.waitFor(EventLookupDone, nil); e.CommitSHA != id {
		t.Errorf("got %+v", e)
	}
	if e := c.waitFor(EventCacheMiss, nil); e.Ref != b.ref("hermes", id) {
		t.Errorf("got %+v", e)
	}
}

func TestAnAnswerOf64KiBIsReadAndOneByteMoreIsRefused(t *testing.T) {
	b := parallelBed(t)
	sha := b.template("hermes", dockerfile(plain))
	padded := func(n int) fault {
		answer := branchAnswer(sha)
		return fault{"match": "/api/", "status": 200, "body": answer + strings.Repeat(" ", n-len(answer))}
	}
	says(t, b.answered(padded(64<<10+1), ErrBadResponse).Message, "65536")
	b.server.misbehave(b, padded(64<<10))
	if got := b.client().ensure("hermes").CommitSHA; got != sha {
		t.Errorf("got %s", got)
	}
}

func TestAnEndlessAnswerIsRefusedWhateverItsStatus(t *testing.T) {
	b := parallelBed(t)
	for _, status := range []int{200, 401, 404, 500} {
		since := time.Now()
		b.answered(fault{"status": status, "endless": true}, ErrBadResponse)
		if took := time.Since(since); took > 10*time.Second {
			t.Errorf("%d: it took %v", status, took)
		}
	}
}

func TestAnAnswerThatBreaksOffIsGiteaUnreachable(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	b.answered(fault{"truncate_after": 100}, ErrGiteaUnreachable)
}

func TestGiteasAnswerIsReadHoweverItIsLaidOut(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{nil, {"--compact"}, {"--sorted-keys"}, {"--sorted-keys", "--compact"}} {
		t.Run(strings.Join(flags, ""), func(t *testing.T) {
			b := parallelBed(t, flags...)
			sha := b.template("hermes", dockerfile(plain))
			if got := b.client().ensure("hermes").CommitSHA; got != sha {
				t.Errorf("got %s", got)
			}
		})
	}
}

// Which branch? main, else the default branch; or the one that was asked for.

func TestMainIsBuiltWithOneQuestionAlsoWhereItIsNotTheDefaultBranch(t *testing.T) {
	b := parallelBed(t)
	b.server.repository(b, templateRepo("hermes"), map[string]any{"default_branch": "develop"})
	b.server.commit(b, templateRepo("hermes"), "develop", dockerfile("FROM nothing\n"))
	sha := b.template("hermes", dockerfile(plain))
	if got := b.client().ensure("hermes").CommitSHA; got != sha {
		t.Errorf("got %s", got)
	}
	if api := b.server.requests(b).of("api"); len(api) != 1 || !strings.HasSuffix(api[0].Path, "/branches/main") {
		t.Errorf("asked %+v", api)
	}
}

func TestWithoutMainTheDefaultBranchIsBuilt(t *testing.T) {
	t.Parallel()
	for _, branch := range []string{"master", "feature/deep/er", "größe/日本", "a+b&c=d#e;f"} {
		t.Run(branch, func(t *testing.T) {
			b := parallelBed(t)
			b.server.repository(b, templateRepo("hermes"), map[string]any{"default_branch": branch})
			sha := b.server.commit(b, templateRepo("hermes"), branch, dockerfile(plain))
			c := b.client()
			if got := c.ensure("hermes").CommitSHA; got != sha {
				t.Errorf("got %s", got)
			}
			if e := c.waitFor(EventLookupDone, nil); e.Branch != branch {
				t.Errorf("got %+v", e)
			}
			if api := b.server.requests(b).of("api"); len(api) != 3 {
				t.Errorf("asked %+v", api)
			}
		})
	}
}

func TestABranchThatIsAskedForIsBuiltWithoutProbing(t *testing.T) {
	t.Parallel()
	for _, branch := range []string{"develop", "feature/x", "größe/日本"} {
		t.Run(branch, func(t *testing.T) {
			b := parallelBed(t)
			b.template("hermes", dockerfile("FROM nothing\n"))
			sha := b.server.commit(b, templateRepo("hermes"), branch, dockerfile(plain))
			if got := b.client(func(o *Options) { o.Branch = branch }).ensure("hermes").CommitSHA; got != sha {
				t.Errorf("got %s", got)
			}
			if api := b.server.requests(b).of("api"); len(api) != 1 {
				t.Errorf("asked %+v", api)
			}
		})
	}
}

func TestABranchThatIsNotThereIsNamedAndNoOtherIsBuilt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		prepare func(*bed)
		asked   string // for
		message string
		hint    string
		calls   int
	}{
		{"it was asked for", func(b *bed) { b.template("hermes", dockerfile(plain)) }, "no/such", "no/such", "MOLECULE_LOCAL_TEMPLATE_BRANCH", 1},
		{"it is the default branch", func(b *bed) {
			b.server.commit(b, templateRepo("hermes"), "other", dockerfile(plain))
			b.server.repository(b, templateRepo("hermes"), map[string]any{"default_branch": "gone"})
		}, "", "gone", "MOLECULE_LOCAL_TEMPLATE_BRANCH", 3},
		{"the repository is empty", func(b *bed) {
			b.server.repository(b, templateRepo("hermes"), map[string]any{"empty": true})
		}, "", "empty", "push", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := parallelBed(t)
			c.prepare(b)
			e := b.client(func(o *Options) { o.Branch = c.asked }).lookupFails(ErrRepoNotFound)
			says(t, e.Message, c.message, b.server.RepoPrefix+"hermes")
			says(t, e.Hint, c.hint)
			if api := b.server.requests(b).of("api"); len(api) != c.calls {
				t.Errorf("asked %+v", api)
			}
		})
	}
}

// What fails for a moment only is tried again; what does not is told at once.

func TestALookupThatFailsForAMomentIsTriedAgain(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]fault{
		"a 502": {"status": 502}, "a 503": {"status": 503}, "a 504": {"status": 504}, "a 429": {"status": 429}, "a reset": {"reset": true},
	} {
		t.Run(name, func(t *testing.T) {
			b := parallelBed(t)
			b.template("hermes", dockerfile(plain))
			b.server.misbehave(b, how.with(fault{"match": "/api/", "times": 2}))
			c := b.client()
			c.ensure("hermes")
			if api := b.server.requests(b).of("api"); len(api) != 3 || c.count(EventWarning) != 2 {
				t.Errorf("asked %d times, with %v", len(api), c.kinds())
			}
		})
	}
}

func TestAFetchThatFailsForAMomentIsTriedAgain(t *testing.T) {
	t.Parallel()
	for _, part := range []string{"/info/refs", "/git-upload-pack$"} {
		for name, how := range map[string]fault{"a 503": {"status": 503}, "a reset": {"reset": true}, "it breaks off": {"truncate_after": 20}} {
			t.Run(part+" "+name, func(t *testing.T) {
				b := parallelBed(t)
				sha := b.template("hermes", dockerfile(plain))
				b.server.misbehave(b, how.with(fault{"match": part, "times": 1}))
				if got := b.client().ensure("hermes").CommitSHA; got != sha {
					t.Errorf("got %s", got)
				}
			})
		}
	}
}

func TestWhatStaysAsItIsIsAskedForOnce(t *testing.T) {
	b := parallelBed(t)
	for status, want := range map[int]error{
		400: ErrBadResponse, 401: ErrAuth, 403: ErrAuth, 410: ErrBadResponse, 500: ErrGiteaUnreachable, 501: ErrGiteaUnreachable,
	} {
		b.server.misbehave(b, fault{"match": "/api/", "status": status})
		b.client().refused("hermes", want)
		if got := b.server.fresh(b); len(got) != 1 {
			t.Errorf("%d: asked %d times", status, len(got))
		}
	}
}

func TestRetryAfterIsObeyedUnlessItIsTooLong(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	after := func(status int, seconds string, times int) fault {
		return fault{"match": "/api/", "status": status, "times": times, "headers": map[string]string{"Retry-After": seconds}}
	}
	b.server.misbehave(b, after(503, "3600", 0))
	since := time.Now()
	e := b.client().refused("hermes", ErrGiteaUnreachable)
	says(t, e.Message, "503")
	if took := time.Since(since); took > 2*time.Second || len(b.server.fresh(b)) != 1 {
		t.Errorf("an hour: told after %v", took)
	}

	b.server.misbehave(b, after(429, "2", 1))
	since = time.Now()
	b.client().ensure("hermes")
	if took := time.Since(since); took < 2*time.Second {
		t.Errorf("two seconds: asked again after %v", took)
	}
}

func TestTheTryingEndsAfterAFewTimesAndWithTheDeadline(t *testing.T) {
	b := parallelBed(t)
	b.server.misbehave(b, fault{"match": "/api/", "status": 503})
	says(t, b.client().refused("hermes", ErrGiteaUnreachable).Message, "503")
	if n := len(b.server.fresh(b)); n < 3 || n > 10 {
		t.Errorf("asked %d times", n)
	}
	b.server.misbehave(b, fault{"match": "/api/", "status": 503, "headers": map[string]string{"Retry-After": "30"}})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	since := time.Now()
	_, err := b.client().EnsureLocalImage(ctx, "hermes")
	if took := time.Since(since); !errors.Is(err, context.DeadlineExceeded) || took > 1500*time.Millisecond {
		t.Errorf("got %v after %v", err, took)
	}
}
