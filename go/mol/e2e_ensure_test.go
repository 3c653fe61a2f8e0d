//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// From a runtime's name to an image, and again, and after a new commit.

func TestTheImageIsMadeOfTheHeadCommitAndNamedAfterIt(t *testing.T) {
	b := parallelBed(t)
	sha := b.template("hermes", copying("one"))
	image := b.client().ensure("hermes")

	id := b.engine.id(b, image.Ref)
	want := Image{
		Ref: b.ref("hermes", sha), LatestRef: b.latest("hermes"), Runtime: "hermes", CommitSHA: sha, ImageID: id,
		Platform: "linux/amd64", Endpoint: b.engine.url, Timings: image.Timings,
	}
	if image != want || id == "" {
		t.Errorf("got  %+v\nwant %+v", image, want)
	}
	if got := b.engine.id(b, image.LatestRef); got != id {
		t.Errorf(":latest is %q and not %q", got, id)
	}
	if got := b.engine.read(b, image.Ref, "content"); got != "one" {
		t.Errorf("the image holds %q", got)
	}
	for name, took := range map[string]int64{
		"Lookup": int64(image.Timings.Lookup), "Inspect": int64(image.Timings.Inspect), "Fetch": int64(image.Timings.Fetch),
		"Build": int64(image.Timings.Build), "Tag": int64(image.Timings.Tag), "Total": int64(image.Timings.Total),
	} {
		if took <= 0 {
			t.Errorf("Timings.%s is %d", name, took)
		}
	}
}

func TestTheHookGivesTheReferenceOfTheCommit(t *testing.T) {
	b := newBed(t)
	b.setenv()
	sha := b.template("hermes", copying("one"))
	for range 2 {
		ref, err := EnsureLocalImage(t.Context(), "hermes")
		if err != nil || ref != LocalImageTag("hermes", sha) || ref != b.ref("hermes", sha) {
			t.Fatalf("got %q and %v", ref, err)
		}
	}
	if got := LocalImageLatestTag("hermes"); b.engine.id(b, got) == "" {
		t.Errorf("%s is not there", got)
	}
}

func TestAHitIsOneAPICallAndNoGitRequestAndNoBuild(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", copying("one"))
	first := b.client().ensure("hermes")
	b.server.fresh(b)

	proxy := b.engineProxy(func(string) treatment { return pass })
	c := b.client(func(o *Options) { o.DockerHost = proxy.url; o.CacheDir = b.dir + "/elsewhere" })
	second := c.ensure("hermes")
	if !second.CacheHit || second.Ref != first.Ref || second.ImageID != first.ImageID {
		t.Errorf("got %+v after %+v", second, first)
	}
	if got := b.server.fresh(b); len(got) != 1 || got[0].Service != "api" || got[0].Method != "GET" {
		t.Errorf("the server was asked %+v", got)
	}
	if got := c.kinds(); !slices.Equal(got, []EventKind{EventLookupStarted, EventLookupDone, EventCacheHit}) {
		t.Errorf("the events were %v", got)
	}
	if sent := proxy.all(); strings.Contains(sent, "/build") || !strings.Contains(sent, "/images/") {
		t.Errorf("the engine got %s", sent)
	}
	if second.Timings.Fetch != 0 || second.Timings.Build != 0 || second.Timings.Lookup <= 0 || second.Timings.Total <= 0 {
		t.Errorf("got %+v", second.Timings)
	}
	// It notes that the image is in use, for whoever prunes, and nothing else.
	note := "hermes/." + first.CommitSHA[:12] + ".used"
	written, err := filepath.Glob(b.dir + "/elsewhere/*/*")
	if err != nil || len(written) != 1 || !strings.HasSuffix(written[0], note) {
		t.Errorf("a hit wrote %q to the cache, %v", written, err)
	}
}

func TestANewCommitIsBuiltAndTheOldImageStays(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", copying("one"))
	c := b.client()
	first := c.ensure("hermes")
	b.template("hermes", copying("two"))
	second := c.ensure("hermes")
	if second.CacheHit || second.Ref == first.Ref || second.LatestRef != first.LatestRef {
		t.Errorf("got %+v after %+v", second, first)
	}
	for ref, want := range map[string]string{first.Ref: "one", second.Ref: "two", second.LatestRef: "two"} {
		if got := b.engine.read(b, ref, "content"); got != want {
			t.Errorf("%s holds %q", ref, got)
		}
	}
}

func TestABranchThatMovesBetweenLookupAndFetchChangesNothing(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]map[string]any{
		"a new commit": {"files": files{"content": {Text: "came in between"}}},
		"a force-push": {"files": copying("came in between"), "orphan": true, "reset": true},
	} {
		t.Run(name, func(t *testing.T) {
			b := parallelBed(t)
			sha := b.template("hermes", copying("looked up"))
			how["repo"], how["branch"] = templateRepo("hermes"), "main"
			b.server.misbehave(b, fault{"match": "/info/refs", "times": 1, "before_commit": how})
			c := b.client()
			image := c.ensure("hermes")
			if image.CommitSHA != sha || image.Ref != b.ref("hermes", sha) {
				t.Errorf("got %+v", image)
			}
			if got := b.engine.read(b, image.Ref, "content"); got != "looked up" {
				t.Errorf("%s holds %q", image.Ref, got)
			}
			next := c.ensure("hermes")
			if next.CommitSHA == sha || b.engine.read(b, next.Ref, "content") != "came in between" {
				t.Errorf("got %+v", next)
			}
		})
	}
}

func TestTheSamplesGiveTheSameFilesWithBothBuilders(t *testing.T) {
	b := parallelBed(t, "--templates", given(t, "MOL_TEST_TEMPLATES"))
	made := map[string]map[string]entry{}
	for builder, c := range b.bothBuilders() {
		image := c.ensure("langgraph")
		if image.CacheHit {
			t.Fatal("it was there already")
		}
		if got := c.waitFor(EventBuildStarted, nil).Builder; got != builder {
			t.Errorf("the builder was %q", got)
		}
		made[builder] = b.engine.files(b, image.Ref)
		b.engine.removeAllOf(b, b.isolation)
	}
	if !maps.Equal(made["buildkit"], made["classic"]) {
		t.Errorf("got %v and %v", made["buildkit"], made["classic"])
	}
	found := made["buildkit"]
	if paths := slices.Sorted(maps.Keys(found)); !slices.Contains(paths, "workspace/skills/grüße.md") {
		t.Errorf("there is no file with a non-ASCII name: %v", paths)
	}
	if got := found["workspace/tools/hello"].mode; got != 0o755 {
		t.Errorf("the executable has mode %o", got)
	}
	if got := found["workspace/greeting"].link; got != "skills/grüße.md" {
		t.Errorf("the link leads to %q", got)
	}
	if c := b.client(); c.ensure("claude-code").Runtime != "claude-code" {
		t.Error("the other sample is not its own")
	}
}

// bothBuilders are two clients that use one builder each.
func (b *bed) bothBuilders(change ...func(*Options)) map[string]*testClient {
	b.Helper()
	classic := func(o *Options) { o.env.dockerBuildKit = "0" }
	return map[string]*testClient{
		"buildkit": b.client(change...),
		"classic":  b.client(append(change, classic)...),
	}
}

func TestEveryStepIsToldInItsOrderWithBothBuilders(t *testing.T) {
	t.Parallel()
	for _, builder := range []string{"buildkit", "classic"} {
		t.Run(builder, func(t *testing.T) {
			b := parallelBed(t)
			// The engine has never seen this, so it has no step's result yet.
			word := unique()
			sha := b.template("hermes", dockerfile("FROM "+busybox+"\nRUN echo says "+word+"\n"))
			c := b.bothBuilders()[builder]
			image := c.ensure("hermes")

			// There may be progress and more lines in between.
			rest := []EventKind{
				EventLookupStarted, EventLookupDone, EventCacheMiss, EventFetchStarted, EventFetchDone, EventBuildStarted,
				EventContextDone, EventStepStarted, EventLog, EventStepDone, EventExportStarted, EventExportDone, EventTagged,
			}
			if builder == "classic" {
				// It says nothing of an export: each step is an image already.
				rest = slices.DeleteFunc(rest, func(k EventKind) bool { return k == EventExportStarted || k == EventExportDone })
			}
			all := c.seen()
			for _, e := range all {
				if len(rest) > 0 && e.Kind == rest[0] && (e.Kind != EventStepStarted && e.Kind != EventStepDone || strings.Contains(e.StepName, word)) {
					rest = rest[1:]
				}
				if e.Runtime != "hermes" || e.Call == 0 || e.Call != all[0].Call || e.Message == "" || e.Time.IsZero() {
					t.Errorf("got %+v", e)
				}
			}
			if len(rest) > 0 {
				t.Errorf("no %s in its place: %v", rest[0], c.kinds())
			}
			if last := all[len(all)-1].Kind; last != EventTagged {
				t.Errorf("the last one is %s", last)
			}
			if e := c.waitFor(EventLookupDone, nil); e.CommitSHA != sha || e.Branch != "main" {
				t.Errorf("got %+v", e)
			}
			if e := c.waitFor(EventCacheMiss, nil); e.Ref != image.Ref || e.Reason == "" {
				t.Errorf("got %+v", e)
			}
			if e := c.waitFor(EventFetchDone, nil); e.Files != 1 || e.Objects != 3 || e.Bytes <= 0 || e.Bytes > 5000 {
				t.Errorf("it is not one commit, its tree and its file: %+v", e)
			}
			if e := c.waitFor(EventBuildStarted, nil); e.Builder != builder || e.Endpoint != b.engine.url {
				t.Errorf("got %+v", e)
			}
			if e := c.waitForLine("says " + word); e.Line != "says "+word || !strings.Contains(e.StepName, word) {
				t.Errorf("got %+v", e)
			}
			if e := c.waitFor(EventTagged, nil); e.Ref != image.Ref || e.LatestRef != image.LatestRef {
				t.Errorf("got %+v", e)
			}
		})
	}
}

func TestTheImageSaysWhereItComesFrom(t *testing.T) {
	b := parallelBed(t)
	sha := b.template("hermes", copying("one"))
	labels := b.engine.inspect(b, b.client().ensure("hermes").Ref).Config.Labels
	for name, want := range map[string]string{
		"org.opencontainers.image.source":   b.server.RepoPrefix + "hermes",
		"org.opencontainers.image.revision": sha,
		"ai.moleculesai.libmol.runtime":     "hermes",
		"ai.moleculesai.libmol.platform":    "linux/amd64",
	} {
		if got := labels[name]; got != want {
			t.Errorf("%s is %q and not %q", name, got, want)
		}
	}
}

func TestAServerBelowAPathWorks(t *testing.T) {
	b := parallelBed(t, "--base-path", "/git")
	sha := b.template("hermes", copying("one"))
	if got := b.client().ensure("hermes").CommitSHA; got != sha {
		t.Errorf("got %s", got)
	}
	for _, r := range b.server.requests(b) {
		if !strings.HasPrefix(r.Path, "/git/") {
			t.Errorf("got %+v", r)
		}
	}
}

// When an image that is there is used, and when it is not.

func TestAnImageWithoutLabelsCountsAsAHit(t *testing.T) {
	b := parallelBed(t)
	sha := b.template("hermes", dockerfile(plain))
	b.engine.tag(b, busybox, b.ref("hermes", sha))
	c := b.client()
	if image := c.ensure("hermes"); !image.CacheHit || image.ImageID != b.engine.id(b, busybox) || c.count(EventBuildStarted) != 0 {
		t.Errorf("got %+v and %v", image, c.kinds())
	}
}

func TestAnImageThatContradictsItsTagIsBuiltAgainWithAWarning(t *testing.T) {
	t.Parallel()
	for name, plant := range map[string]func(b *bed, sha string) (says string){
		"a revision label of another commit": func(b *bed, sha string) string {
			b.template("autogen", dockerfile(plain))
			other := b.client().ensure("autogen")
			b.engine.tag(b, other.Ref, b.ref("hermes", sha))
			return other.CommitSHA
		},
		"another architecture": func(b *bed, sha string) string {
			// An engine for amd64 runs this as well.
			other := b.client(func(o *Options) { o.Platform = "linux/386" }).ensure("hermes")
			if got := b.engine.inspect(b, other.Ref).Architecture; got != "386" {
				b.Fatalf("the image is for %s", got)
			}
			b.engine.tag(b, other.Ref, b.ref("hermes", sha))
			return "386"
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := parallelBed(t)
			sha := b.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /hermes\n"))
			why := plant(b, sha)
			c := b.client()
			image := c.ensure("hermes")
			found := b.engine.inspect(b, image.Ref)
			if image.CacheHit || found.Architecture != "amd64" || found.Config.Labels["org.opencontainers.image.revision"] != sha {
				t.Errorf("got %+v, which is %s", image, found.all)
			}
			if e := c.waitFor(EventWarning, nil); e.Hint == "" {
				t.Errorf("got %+v", e)
			} else {
				says(t, e.Message, why, image.Ref)
			}
			says(t, c.waitFor(EventCacheMiss, nil).Reason, why)
			if !c.ensure("hermes").CacheHit {
				t.Error("it is still not right")
			}
		})
	}
}

func TestLatestIsRefreshedAfterAHit(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	c := b.client()
	image := c.ensure("hermes")
	for name, spoil := range map[string]func(){
		"it is gone":           func() { b.engine.untag(b, image.LatestRef) },
		"it is something else": func() { b.engine.tag(b, busybox, image.LatestRef) },
	} {
		spoil()
		if !c.ensure("hermes").CacheHit {
			t.Errorf("%s: no hit", name)
		}
		if got := b.engine.id(b, image.LatestRef); got != image.ImageID {
			t.Errorf("%s: it is %q", name, got)
		}
	}
}

func TestALatestThatCannotBeRefreshedIsOnlyLogged(t *testing.T) {
	b := parallelBed(t)
	b.template("hermes", dockerfile(plain))
	proxy := b.engineProxy(func(line string) treatment {
		if strings.HasPrefix(line, "POST") && strings.Contains(line, "/tag?") && strings.Contains(line, "tag=latest") {
			return fail
		}
		return pass
	})
	var log bytes.Buffer
	c := b.client(func(o *Options) {
		o.DockerHost = proxy.url
		o.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	})
	for _, hit := range []bool{false, true} {
		c.forget()
		image := c.ensure("hermes")
		if image.CacheHit != hit || b.engine.id(b, image.LatestRef) != "" {
			t.Errorf("got %+v, and :latest is %q", image, b.engine.id(b, image.LatestRef))
		}
		says(t, c.waitFor(EventWarning, nil).Message, image.LatestRef, "told to fail")
	}
	_ = c.Close()
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 2 {
		t.Errorf("the log is %q", lines)
	}
	for _, line := range lines {
		var record struct{ Level, Msg, Runtime string }
		if err := json.Unmarshal([]byte(line), &record); err != nil || record.Level != "WARN" || record.Runtime != "hermes" {
			t.Errorf("got %s", line)
		}
	}
}

func TestTwoRuntimesHaveImagesOfTheirOwn(t *testing.T) {
	b := parallelBed(t)
	c := b.client()
	for _, runtime := range []string{"hermes", "autogen"} {
		b.template(runtime, copying("of "+runtime))
		image := c.ensure(runtime)
		if got := b.engine.read(b, image.Ref, "content"); got != "of "+runtime || image.Runtime != runtime {
			t.Errorf("%s: got %q, %+v", runtime, got, image)
		}
	}
}

func TestAnUnknownRuntimeIsAskedOfNobody(t *testing.T) {
	b := parallelBed(t)
	proxy := b.engineProxy(func(string) treatment { return pass })
	c := b.client(func(o *Options) { o.DockerHost = proxy.url })
	for _, name := range []string{
		"", "unknown", "../../../etc/passwd", "langgraph;rm -rf /", "claude-code\n", " langgraph", "CLAUDE-CODE", "hermes\x00",
		"hermes/../../x", "größe", "\xff", strings.Repeat("hermes", 10_000),
	} {
		image, err := c.EnsureLocalImage(t.Context(), name)
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeUnknownRuntime || image != (Image{}) {
			t.Errorf("%q: got %+v and %v", name, image, err)
			continue
		}
		if text := err.Error(); strings.ContainsAny(text, "\n\x00") || !utf8.ValidString(text) || len(text) > 1000 {
			t.Errorf("%q: the text is %q", name, text)
		}
		says(t, e.Hint, KnownRuntimes()...)
	}
	if sent := proxy.all(); sent != "" {
		t.Errorf("the engine got %q", sent)
	}
	if got := b.server.requests(b); len(got) > 0 {
		t.Errorf("the server got %+v", got)
	}
	if got := c.seen(); len(got) > 0 {
		t.Errorf("there are events: %+v", got)
	}
	b.untouched()
}

func TestNoProgramIsStartedForTheJob(t *testing.T) {
	b := newBed(t)
	b.setenv()
	b.template("hermes", copying("one"))
	// With nothing to be found there is no docker and no git that could be started. The template server has
	// the PATH it was started with.
	t.Setenv("PATH", t.TempDir())
	if _, err := EnsureLocalImage(t.Context(), "hermes"); err != nil {
		t.Error(err)
	}
}
