//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// No secret gets out (promise P6): a token is planted wherever one can come in, everything that can fail does,
// and all that comes out is searched for every spelling of it.

const (
	// secret has characters that every encoding changes.
	secret = "tk_7f3c/0b5e+9d2a~4f61=88c1&e0b7"
	// password is another one, where only what a URL carries can be recognised.
	password = "hunter2"
)

// secretSpellings is every way in which a program may have written the secret down.
func secretSpellings() []string {
	every := ""
	for i := range len(secret) {
		every += fmt.Sprintf("%%%02X", secret[i])
	}
	percent := url.QueryEscape(secret)
	all := []string{secret, percent, strings.ToLower(percent), every, strings.ToLower(every), strings.ReplaceAll(secret, "/", "%2F")}
	for _, user := range []string{"", "git:", "x-access-token:", "ab:", secret + ":", secret} {
		for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding} {
			all = append(all, encoding.EncodeToString([]byte(user+secret)))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// forbidden are parts of the secret, plain or in base64: half a token is a leak too.
func forbidden() []string {
	all := append(secretSpellings(), "7f3c/0b5e", "88c1&e0b7", password)
	for shift := range 3 {
		encoded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + secret))
		all = append(all, encoded[8:len(encoded)-4])
	}
	return all
}

var allForbidden = forbidden()

func isClean(t testing.TB, what, text string) {
	t.Helper()
	for _, part := range allForbidden {
		if strings.Contains(text, part) {
			t.Errorf("%s shows %s:\n%s", what, part, text)
			return
		}
	}
}

// spy sees all that leaves the package.
type spy struct {
	*testClient
	log bytes.Buffer
}

func (b *bed) spy(change ...func(*Options)) *spy {
	b.Helper()
	s := new(spy)
	level := &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}
	s.testClient = b.client(append([]func(*Options){func(o *Options) {
		o.Token = secret
		o.Logger = slog.New(slog.NewTextHandler(&s.log, level))
	}}, change...)...)
	return s
}

// all is all that has left it, and what is in the cache.
func (s *spy) all(err error) string {
	s.b.Helper()
	_ = s.Close() // which has handed every event over
	var all []string
	if err != nil {
		all = shownErrors(err)
	}
	for _, e := range s.seen() {
		data, _ := json.Marshal(e)
		all = append(all, string(data), fmt.Sprintf("%v %+v %#v", e, e, e))
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		all = append(all, fmt.Sprintf(verb, s.Client), fmt.Sprintf(verb, *s.Client))
	}
	all = append(all, s.log.String())
	all = append(all, s.b.cachedPaths()...)
	return strings.Join(all, "\n")
}

// fails makes the call fail in this way, and nothing may be shown.
func (s *spy) fails(what string, want error) (shown string) {
	s.b.Helper()
	e := s.refused("hermes", want)
	shown = s.all(e)
	isClean(s.b, what, shown)
	return shown
}

func TestTheSearchFindsEverySpelling(t *testing.T) {
	for _, spelling := range secretSpellings() {
		found := slices.ContainsFunc(allForbidden, func(part string) bool { return strings.Contains("before "+spelling+" after", part) })
		if !found {
			t.Errorf("not %s", spelling)
		}
	}
}

func TestWhatTheTemplateServerAnswersIsMasked(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	all := strings.Join(secretSpellings(), " ")
	quoted, _ := json.Marshal(secret)
	headers := map[string]string{"X-Echo": all, "Retry-After": "3600", "WWW-Authenticate": `Basic realm="` + secret + `"`}
	for _, c := range []struct {
		how  fault
		want error
	}{
		{fault{"status": 401, "body": all, "headers": headers}, ErrAuth},
		{fault{"status": 403, "body": all, "headers": headers}, ErrAuth},
		{fault{"status": 418, "body": all, "headers": headers}, ErrBadResponse},
		{fault{"status": 500, "body": all, "headers": headers}, ErrGiteaUnreachable},
		{fault{"status": 503, "body": all, "headers": headers}, ErrGiteaUnreachable},
		{fault{"status": 200, "body": string(quoted)}, ErrBadResponse},
		{fault{"status": 200, "body": `{"commit":` + string(quoted) + `}`}, ErrBadResponse},
		{fault{"status": 200, "body": branchAnswer(secret)}, ErrBadResponse},
		{fault{"status": 200, "body": `{` + string(quoted) + `:1}`}, ErrBadResponse},
		{fault{"status": 302, "headers": map[string]string{"Location": "http://me:" + password + "@127.0.0.1:1/" + secret}}, ErrGiteaUnreachable},
	} {
		b.server.misbehave(b, c.how.with(fault{"match": "/api/"}))
		b.spy().fails(fmt.Sprint(c.how), c.want)
	}
	b.server.misbehave(b, fault{"match": "/branches/", "status": 404},
		fault{"match": "/api/", "status": 200, "body": `{"empty":false,"default_branch":` + string(quoted) + `}`})
	if shown := b.spy().fails("a default branch", ErrRepoNotFound); !strings.Contains(shown, "***") {
		t.Errorf("the test does not see the token on its way: %s", shown)
	}
}

func TestWhatGitAnswersIsMasked(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	all := strings.Join(secretSpellings(), " ")
	line := func(text string) string { return fmt.Sprintf("%04x%s", len(text)+4, text) }
	for part, kind := range gitTypes {
		for _, c := range []struct {
			how  fault
			want error
		}{
			{fault{"status": 401, "body": all}, ErrAuth},
			{fault{"status": 500, "body": all}, ErrFetch},
			{fault{"status": 200, "body": all}, ErrFetch},
			{fault{"status": 200, "body": all, "headers": kind}, ErrFetch},
			{fault{"status": 200, "body": line("ERR " + secret), "headers": kind}, ErrFetch},
			{fault{"status": 200, "body": line(secret), "headers": map[string]string{"Content-Type": secret}}, ErrFetch},
		} {
			b.server.misbehave(b, c.how.with(fault{"match": part}))
			b.spy().fails(fmt.Sprint(part, c.how), c.want)
		}
	}
}

func TestWhatABuildSaysIsMasked(t *testing.T) {
	t.Parallel()
	var quoted []string
	for _, spelling := range secretSpellings() {
		quoted = append(quoted, "'"+spelling+"'")
	}
	for _, builder := range []string{"buildkit", "classic"} {
		t.Run(builder, func(t *testing.T) {
			b := parallelBed(t)
			for _, text := range []string{
				"FROM " + busybox + "\nRUN for t in " + strings.Join(quoted, " ") + "; do echo \"says $t\"; done; exit 3\n",
				"FROM " + busybox + "\nRUN echo 'https://me:" + password + "@host/ " + secret + "'; exit 3\n",
				"FROM " + busybox + "\nRUN false '" + secret + "'\n",
				"FROM " + busybox + "\nCOPY \"/no/" + secret + "\" /\n",
			} {
				b.template("hermes", dockerfile(text))
				s := b.spy(func(o *Options) {
					if builder == "classic" {
						o.env.dockerBuildKit = "0"
					}
				})
				if shown := s.fails(text, ErrBuildFailed); !strings.Contains(shown, "***") {
					t.Errorf("the test does not see the token on its way: %s", shown)
				}
			}
		})
	}
}

func TestWhatTheTemplatesFilesSayIsMasked(t *testing.T) {
	b := parallelBed(t)
	script := ""
	for _, spelling := range secretSpellings() {
		script += "echo 'says " + spelling + "' >&2\n"
	}
	b.template("hermes", files{
		"Dockerfile":       {Text: "FROM " + busybox + "\nCOPY . /t\nRUN sh /t/talk; ls -R /t; echo " + unique() + "; exit 1\n"},
		"talk":             {Text: script, Mode: "100755"},
		".runtime-version": {Text: "latest " + secret + "\n"},
		// The file's name in the cache is the template's own, and not the library's doing.
		"dir/" + strings.ReplaceAll(secret, "/", "_"): {Text: ""},
	})
	s := b.spy(func(o *Options) { o.RuntimeVersionPin = true })
	e := s.refused("hermes", ErrBuildFailed)
	shown := s.all(e)
	if i := strings.Index(shown, "dir/"+strings.ReplaceAll(secret, "/", "_")); i < 0 {
		t.Error("the file is not in the cache")
	}
	isClean(t, "the rest", strings.ReplaceAll(shown, strings.ReplaceAll(secret, "/", "_"), ""))
	lines := 0
	for _, e := range s.ofKind(EventLog) {
		if strings.HasPrefix(e.Line, "says") {
			lines++
		}
	}
	if lines != len(secretSpellings()) {
		t.Errorf("%d lines came and not %d", lines, len(secretSpellings()))
	}
}

func TestWhatTheCallerGivesIsMasked(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	blocked := filepath.Join(b.dir, "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Options)
		want   error
	}{
		"cache":         {func(o *Options) { o.CacheDir = blocked + "/" + secret }, ErrCache},
		"engine":        {func(o *Options) { o.DockerHost = "unix:///" + secret + "/s" }, ErrEngineUnreachable},
		"engine's user": {func(o *Options) { o.DockerHost = "tcp://me:" + password + "@127.0.0.1:1" }, ErrEngineUnreachable},
		"context":       {func(o *Options) { o.DockerHost = ""; o.env.dockerContext = secret }, ErrInvalidOption},
		"proxy":         {func(o *Options) { o.env.httpProxy = "http://me:" + password + "@127.0.0.1:1" }, ErrGiteaUnreachable},
	} {
		b.spy(c.change).fails(name, c.want)
	}
	for name, change := range map[string]func(*Options){
		"no engine": func(o *Options) { o.DockerHost = secret },
		"platform":  func(o *Options) { o.Platform = secret },
		"isolation": func(o *Options) { o.Isolation = secret },
		"branch":    func(o *Options) { o.Branch = secret + " " + secret },
		"prefix":    func(o *Options) { o.RepoPrefix = "http://127.0.0.1:1/" + secret + "/t-" },
		"user":      func(o *Options) { o.RepoPrefix = "https://" + secret + "@host/o/t-" },
		"password":  func(o *Options) { o.RepoPrefix = "https://me:" + password + "@host/o/t-" },
		"token":     func(o *Options) { o.Token = secret + " " + password + "\n" },
		"proxy":     func(o *Options) { o.env.httpProxy = "nonsense://me:" + password + "@:x" },
		"offline":   func(o *Options) { o.env.offline = secret },
		"ceiling":   func(o *Options) { o.env.ceiling = secret },
		"authority": func(o *Options) { o.env.sslCertFile = "/" + secret },
	} {
		o := b.options()
		o.Token = secret
		change(&o)
		client, err := New(o)
		if err == nil {
			_ = client.Close()
			t.Errorf("%s: it was taken", name)
			continue
		}
		isClean(t, name, strings.Join(shownErrors(err), "\n"))
		isClean(t, name, fmt.Sprintf("%v %+v %#v", o, o, o))
	}
	s := b.spy()
	_, err := s.EnsureLocalImage(t.Context(), secret)
	isClean(t, "a runtime", strings.Join(shownErrors(err)[:3], "\n"))
}

func TestNeitherTheImageNorTheEngineNorTheCacheLearnsTheToken(t *testing.T) {
	t.Parallel()
	for _, builder := range []string{"buildkit", "classic"} {
		t.Run(builder, func(t *testing.T) {
			b := parallelBed(t, "--token", secret)
			b.template("hermes", dockerfile(plain))
			proxy := b.engineProxy(func(string) treatment { return pass })
			s := b.spy(func(o *Options) {
				o.DockerHost = proxy.url
				if builder == "classic" {
					o.env.dockerBuildKit = "0"
				}
			})
			image := s.ensure("hermes")
			sent := proxy.all()
			if !strings.Contains(sent, "/build?") {
				t.Error("the test does not see what the engine gets")
			}
			isClean(t, "what the engine gets", sent)
			isClean(t, "what the caller gets", s.all(nil)+fmt.Sprintf("%#v", image))
			isClean(t, "the image", b.engine.inspect(b, image.Ref).all)
			isClean(t, "the image's history", b.engine.history(b, image.Ref))
			for _, path := range b.cachedPaths() {
				if data, err := os.ReadFile(filepath.Join(b.cache(), path)); err == nil {
					isClean(t, path, string(data))
				}
			}
			// What is asked for is logged by servers and proxies.
			for _, r := range b.server.requests(b) {
				isClean(t, "an address", r.Path+"?"+r.Query+" "+r.UserAgent)
			}
			for _, line := range commandLines() {
				if strings.Contains(line, "templateserver") {
					continue // which has been told it, to know it again
				}
				isClean(t, "a command line", line)
			}
		})
	}
}

func commandLines() []string {
	var lines []string
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		if data, err := os.ReadFile(path); err == nil {
			lines = append(lines, string(data))
		}
	}
	return lines
}
