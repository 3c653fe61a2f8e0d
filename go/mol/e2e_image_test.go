//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// What the library answers, as Go types: an image, events, errors, and the choices a server makes in its Options.

func TestAnImageIsBuiltAndFoundAgain(t *testing.T) {
	env := parallelTestEnv(t)
	builtAndFoundAgain(env, env.engine)
}

func TestAnImageIsBuiltAndFoundAgainOnPodman(t *testing.T) {
	env := parallelTestEnv(t)
	podman := engineAt(requiredEnv(t, "MOL_TEST_PODMAN"))
	t.Cleanup(func() { podman.removeImages(t, env.isolation) })
	builtAndFoundAgain(env, podman)
}

func builtAndFoundAgain(env *TestEnv, engine *testEngine) {
	env.Helper()
	sha := env.commit("hermes", copying(uniqueWord()))
	c := env.client(func(o *Options) { o.DockerHost = engine.url })
	built := c.ensure("hermes")
	want := Image{
		Ref: env.ref("hermes", sha), LatestRef: env.latest("hermes"), Runtime: "hermes", CommitSHA: sha,
		ImageID: engine.imageID(env, built.Ref), Platform: "linux/amd64", Endpoint: engine.url, Timings: built.Timings,
	}
	if built != want || built.ImageID == "" || engine.imageID(env, built.LatestRef) != built.ImageID {
		env.Errorf("got  %+v\nwant %+v", built, want)
	}
	for name, took := range map[string]time.Duration{
		"Lookup": built.Timings.Lookup, "Inspect": built.Timings.Inspect, "Fetch": built.Timings.Fetch,
		"Build": built.Timings.Build, "Tag": built.Timings.Tag, "Total": built.Timings.Total,
	} {
		if took <= 0 {
			env.Errorf("Timings.%s is %v", name, took)
		}
	}

	before := len(c.recorded())
	found := c.ensure("hermes")
	want.CacheHit, want.Timings = true, found.Timings
	if found != want {
		env.Errorf("got  %+v\nwant %+v", found, want)
	}
	if found.Timings.Fetch != 0 || found.Timings.Build != 0 || found.Timings.Lookup <= 0 || found.Timings.Total <= 0 {
		env.Errorf("got %+v", found.Timings)
	}
	if got := c.kinds()[before:]; !slices.Equal(got, []EventKind{EventLookupStarted, EventLookupDone, EventCacheHit}) {
		env.Errorf("the events of a hit are %v", got)
	}
}

func TestEveryStepSendsAnEvent(t *testing.T) {
	env := parallelTestEnv(t)
	// No engine has run this step before, so its build cache has no result for it.
	word := uniqueWord()
	sha := env.commit("hermes", dockerfile("FROM "+busybox+"\nRUN echo says "+word+"\n"))
	c := env.client()
	image := c.ensure("hermes")

	// Progress and more lines of output may be in between.
	rest := []EventKind{
		EventLookupStarted, EventLookupDone, EventCacheMiss, EventFetchStarted, EventFetchDone, EventBuildStarted,
		EventContextDone, EventStepStarted, EventLog, EventStepDone, EventExportStarted, EventExportDone, EventTagged,
	}
	all := c.recorded()
	for _, e := range all {
		isStep := e.Kind == EventStepStarted || e.Kind == EventStepDone
		if len(rest) > 0 && e.Kind == rest[0] && (!isStep || strings.Contains(e.StepName, word)) {
			rest = rest[1:]
		}
		if e.Runtime != "hermes" || e.Call == 0 || e.Call != all[0].Call || e.Message == "" || e.Time.IsZero() {
			t.Errorf("got %+v", e)
		}
		if (e.Span == "") != (e.Kind == EventWarning) {
			t.Errorf("%s has the span %q", e.Kind, e.Span)
		}
	}
	if len(rest) > 0 {
		t.Errorf("%s is missing, or not in its place: %v", rest[0], c.kinds())
	}
	if e := c.waitFor(EventLookupDone, nil); e.CommitSHA != sha || e.Branch != "main" {
		t.Errorf("got %+v", e)
	}
	if e := c.waitFor(EventCacheMiss, nil); e.Ref != image.Ref || e.Reason == "" {
		t.Errorf("got %+v", e)
	}
	// The objects are a commit, its tree and one file.
	if e := c.waitFor(EventFetchDone, nil); e.Files != 1 || e.Objects != 3 || e.Bytes <= 0 || e.Duration <= 0 {
		t.Errorf("got %+v", e)
	}
	if e := c.waitFor(EventBuildStarted, nil); e.Builder != "buildkit" || e.Endpoint != env.engine.url {
		t.Errorf("got %+v", e)
	}
	if e := c.waitForLine("says " + word); e.Line != "says "+word || !strings.Contains(e.StepName, word) {
		t.Errorf("got %+v", e)
	}
	if e := c.waitFor(EventTagged, nil); e.Ref != image.Ref || e.LatestRef != image.LatestRef {
		t.Errorf("got %+v", e)
	}
}

func TestAFailedBuildIsAnErrorWithAllFields(t *testing.T) {
	env := parallelTestEnv(t)
	// The pause keeps standard output and error in order: each comes to the engine through its own pipe.
	env.commit("hermes", dockerfile("FROM "+busybox+"\nRUN true\nRUN seq 1 200; sleep 0.5; echo about to fail >&2; echo "+
		uniqueWord()+"; exit 42\n"))
	c := env.client()
	e := c.mustFail("hermes", ErrBuildFailed)
	if e.Code != CodeBuildFailed || e.Runtime != "hermes" || e.URL != env.server.RepoPrefix+"hermes" || e.Line != 3 || e.ExitCode != 42 {
		t.Errorf("got %#v", e)
	}
	mustContain(t, e.Message, "42", e.URL)
	mustContain(t, e.Step, "RUN seq 1 200")
	mustContain(t, "\n"+e.LogTail+"\n", "\nabout to fail\n", "\n200\n")
	mustContain(t, e.Error(), "about to fail", "RUN seq 1 200")
	done := c.waitFor(EventStepDone, func(e Event) bool { return e.StepError != "" })
	mustContain(t, done.StepError, "42")
	mustContain(t, done.StepName, "RUN seq 1 200")
}

func TestRuntimesPinsAndTagArchReachTheLibrary(t *testing.T) {
	env := parallelTestEnv(t)
	pinned := env.commit("google-adk", dockerfile(plain))
	env.commit("google-adk", dockerfile("FROM nothing\n"))
	head := env.commit("codex", dockerfile("FROM nothing\n"))
	o := env.options()
	o.Runtimes = []string{"google-adk", "codex"}
	o.Pins = map[string]string{"google-adk": pinned}
	o.TagArch = TagArchAlways
	c := env.clientWith(o)

	image := c.ensure("google-adk")
	if image.CommitSHA != pinned || image.Ref != o.LocalImageTag("google-adk", pinned) || !strings.Contains(image.Ref, "-amd64--") ||
		image.LatestRef != env.latest("google-adk") {
		t.Errorf("got %+v", image)
	}
	// codex is not pinned. Its image was tagged without the library.
	env.engine.tag(t, busybox, o.LocalImageTag("codex", head))
	if image := c.ensure("codex"); !image.CacheHit || image.CommitSHA != head {
		t.Errorf("got %+v", image)
	}
	if log, err := c.BuildLog(t.Context(), "google-adk"); err != nil || !strings.Contains(log.Text, "COPY Dockerfile") {
		t.Errorf("got %+v and %v", log, err)
	}
	e := c.mustFail("hermes", ErrUnknownRuntime)
	if e.Message != `unknown runtime "hermes"` || e.Hint != "the known runtimes are codex, google-adk" {
		t.Errorf("got %+v", e)
	}
}

func TestEnsureCommitUsesTheGivenCommit(t *testing.T) {
	env := parallelTestEnv(t)
	old := env.commit("hermes", dockerfile(plain))
	env.commit("hermes", dockerfile("FROM nothing\n"))
	c := env.client()
	image, err := c.EnsureCommit(t.Context(), "hermes", old)
	if err != nil || image.CommitSHA != old || image.CacheHit || image.Ref != env.ref("hermes", old) {
		t.Fatalf("got %+v and %v", image, err)
	}
	// A hit needs no server: nothing listens at this address.
	c = env.client(func(o *Options) { o.RepoPrefix = "http://127.0.0.1:1/org/tpl-" })
	if image, err := c.EnsureCommit(t.Context(), "hermes", strings.ToUpper(old)); err != nil || !image.CacheHit {
		t.Errorf("got %+v and %v", image, err)
	}
	for _, commit := range []string{"", "main", old[:12], old + "\x00", "\xff" + old} {
		if _, err := c.EnsureCommit(t.Context(), "hermes", commit); !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("%q: got %v", commit, err)
		}
	}
	if _, err := c.EnsureCommit(t.Context(), "hermes\x00", old); !errors.Is(err, ErrUnknownRuntime) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.EnsureCommit(ctx, "hermes", old); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Promise P6, for everything that this package prints. Every spelling of a token, and every way in, is tested in Rust.
func TestNoTokenIsInAnErrorAnEventOrALog(t *testing.T) {
	// Every encoding changes some of its characters.
	const token = "tk_7f3c/0b5e+9d2a~4f61=88c1&e0b7"
	spellings := []string{token, url.QueryEscape(token), base64.StdEncoding.EncodeToString([]byte("git:" + token))}
	env := parallelTestEnv(t, "--token", token)
	env.commit("hermes", dockerfile("FROM "+busybox+"\nRUN echo 'says "+strings.Join(spellings, "'; echo 'says ")+"'; exit 3\n"))
	var log bytes.Buffer
	c := env.client(func(o *Options) {
		o.Token = token
		o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}))
	})
	e := c.mustFail("hermes", ErrBuildFailed)
	_, unknown := c.EnsureLocalImage(t.Context(), token)
	_ = c.Close() // delivers the remaining events

	printed := append(errorTexts(e), errorTexts(unknown)...)
	lines := 0
	for _, event := range c.recorded() {
		data, err := json.Marshal(event)
		if err != nil {
			t.Fatal(err)
		}
		printed = append(printed, string(data), fmt.Sprintf("%v %+v %#v", event, event, event))
		if event.Line == "says ***" {
			lines++
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		printed = append(printed, fmt.Sprintf(verb, c.Client), fmt.Sprintf(verb, *c.Client))
	}
	text := strings.Join(append(printed, log.String()), "\n")
	// Half a token is a leak too.
	for _, secret := range append(spellings, "7f3c/0b5e", "88c1&e0b7") {
		if strings.Contains(text, secret) {
			t.Errorf("%s is in:\n%s", secret, text)
		}
	}
	if lines != len(spellings) {
		t.Errorf("%d masked lines, want %d:\n%s", lines, len(spellings), text)
	}
}
