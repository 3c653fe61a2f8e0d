//go:build cgo && linux && (amd64 || arm64)

package mol

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// What a server chooses in its code: its runtimes, its tags, its commits. tests/it/server_choices.rs has more of it.

func TestRuntimesReplacesTheAllowlist(t *testing.T) {
	b := parallelBed(t)
	sha := b.template("google-adk", dockerfile(plain))
	c := b.client(func(o *Options) { o.Runtimes = []string{"google-adk", "codex"} })
	if image := c.ensure("google-adk"); image.CommitSHA != sha {
		t.Errorf("got %+v", image)
	}
	e := c.refused("hermes", ErrUnknownRuntime)
	if e.Message != `unknown runtime "hermes"` || e.Hint != "the known runtimes are codex, google-adk" {
		t.Errorf("got %+v", e)
	}
	log, err := c.BuildLog(t.Context(), "google-adk")
	if err != nil || !strings.Contains(log.Text, "COPY Dockerfile") {
		t.Errorf("got %+v and %v", log, err)
	}
	if _, err := c.BuildLog(t.Context(), "hermes"); !errors.Is(err, ErrUnknownRuntime) {
		t.Errorf("got %v", err)
	}
}

func TestTagArchAlwaysFindsWhatSomebodyElseHasTagged(t *testing.T) {
	b := parallelBed(t)
	sha := b.template("hermes", dockerfile("FROM nothing\n"))
	always := func(o *Options) { o.TagArch = TagArchAlways }
	o := b.options()
	always(&o)
	tagged := o.LocalImageTag("hermes", sha)
	if want := "molecule-local/workspace-template-hermes:" + sha[:12] + "-amd64--" + b.isolation; tagged != want {
		t.Fatalf("got %q, want %q", tagged, want)
	}
	b.engine.tag(b, busybox, tagged)
	image := b.client(always).ensure("hermes")
	if !image.CacheHit || image.Ref != tagged || image.LatestRef != b.latest("hermes") {
		t.Errorf("got %+v", image)
	}
}

func TestEnsureCommitTakesTheCommitAndNoHead(t *testing.T) {
	b := parallelBed(t)
	old := b.template("hermes", dockerfile(plain))
	b.template("hermes", dockerfile("FROM nothing\n"))
	c := b.client()
	image, err := c.EnsureCommit(t.Context(), "hermes", old)
	if err != nil || image.CommitSHA != old || image.CacheHit || image.Ref != b.ref("hermes", old) {
		t.Fatalf("got %+v and %v", image, err)
	}
	// Nobody is at this address.
	c = b.client(func(o *Options) { o.RepoPrefix = "http://127.0.0.1:1/org/tpl-" })
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

func TestPinsNameTheCommitOfARuntime(t *testing.T) {
	b := parallelBed(t)
	old := b.template("hermes", dockerfile(plain))
	b.template("hermes", dockerfile("FROM nothing\n"))
	head := b.template("codex", dockerfile(plain))
	c := b.client(func(o *Options) { o.Pins = map[string]string{"hermes": old} })
	if got := c.ensure("hermes").CommitSHA; got != old {
		t.Errorf("hermes is at %s", got)
	}
	if got := c.ensure("codex").CommitSHA; got != head {
		t.Errorf("codex is at %s", got)
	}
}
