package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/examples/provisioner"
	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
)

const runtime = "claude-code"

// pinned matches all image references of the demo.
var pinned = regexp.MustCompile(`^molecule-local/workspace-template-claude-code:[0-9a-f]{12}$`)

type demonstration struct {
	out       *printer
	engine    *engine
	templates *templates
	after     *cleanup
}

// A boot is the result of a Start.
type boot struct {
	image   mol.Image
	ready   time.Duration // the whole Start, until the workspace answered
	health  string        // the answer
	fetched bool
	built   bool
}

func (d *demonstration) show(ctx context.Context) error {
	if err := d.engine.keepLatest(ctx, d.after); err != nil {
		return err
	}

	// New versions and commits, so that the first Start is a cold build also on an
	// engine that ran the demo before.
	stamp := time.Now().Format("20060102.150405")
	first := "1.1.0+" + stamp
	sha, err := d.templates.release(first)
	if err != nil {
		return err
	}
	d.out.section(1, fmt.Sprintf("Start(%q) for the first time", runtime))
	one, err := d.boot(ctx, true)
	if err != nil {
		return err
	}
	if err := one.check(sha, first, true); err != nil {
		return err
	}

	d.out.section(2, "the same again: nothing to fetch, nothing to build")
	two, err := d.boot(ctx, false)
	if err != nil {
		return err
	}
	if err := two.check(sha, first, false); err != nil {
		return err
	}
	d.out.compare(one, two)

	second := "1.2.0+" + stamp
	sha, err = d.templates.release(second)
	if err != nil {
		return err
	}
	d.out.section(3, "a new commit on main")
	three, err := d.boot(ctx, true)
	if err != nil {
		return err
	}
	return three.check(sha, second, true)
}

// boot starts a workspace, requests its health and stops it.
func (d *demonstration) boot(ctx context.Context, details bool) (*boot, error) {
	b := &boot{}
	p := provisioner.New(d.engine.client)
	began := time.Now()
	p.EnsureLocalImage = func(ctx context.Context, runtime string) (string, error) {
		opts := mol.OptionsFromEnv()
		opts.OnEvent = func(e mol.Event) {
			b.fetched = b.fetched || e.Kind == mol.EventFetchStarted
			b.built = b.built || e.Kind == mol.EventBuildStarted
			if details {
				d.out.event(e, time.Since(began))
			}
		}
		c, err := mol.New(opts)
		if err != nil {
			return "", err
		}
		b.image, err = c.EnsureLocalImage(ctx, runtime)
		// Close waits for the last events, so that they are printed now.
		err = errors.Join(err, c.Close())
		if b.image.Ref != "" {
			d.engine.removeAfterwards(d.after, b.image.Ref)
		}
		return b.image.Ref, err
	}

	ws, err := p.Start(ctx, provisioner.WorkspaceConfig{Config: workspace.Config{Runtime: runtime}})
	if err != nil {
		return nil, err
	}
	b.ready = time.Since(began)
	d.after.made("container")
	stop := func(ctx context.Context) error { return p.Stop(ctx, ws.ContainerID) }
	b.health, err = get(ctx, ws.HealthURL)
	if err := errors.Join(err, stop(context.WithoutCancel(ctx))); err != nil {
		return nil, err
	}
	if details {
		d.out.fact("image", b.image.Ref)
		d.out.fact("workspace", fmt.Sprintf("%s, up after %s", ws.URL, seconds(b.ready)))
		d.out.fact("/health", b.health)
	}
	return b, nil
}

// check compares a boot with the expected result.
func (b *boot) check(sha, version string, work bool) error {
	switch {
	case !pinned.MatchString(b.image.Ref) || !strings.HasSuffix(b.image.Ref, ":"+sha[:12]):
		return fmt.Errorf("the image is %s, but the branch is at %s", b.image.Ref, sha)
	case b.image.CacheHit == work || b.fetched != work || b.built != work:
		return fmt.Errorf("cache hit: %t, fetched: %t, built: %t; expected %t, %t, %t", b.image.CacheHit, b.fetched, b.built, !work, work, work)
	case !strings.Contains(b.health, version):
		return fmt.Errorf("the workspace answers %s, but the template's version is %s", b.health, version)
	}
	return nil
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	return strings.TrimSpace(string(body)), err
}
