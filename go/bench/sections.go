package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/templateserver/server"
)

// section is one part of the table.
type section struct {
	name string
	run  func(context.Context, *bed, *report) error
}

var sections = []section{
	{"warm", warm}, {"cold", cold}, {"large", large}, {"files", files}, {"pure", pure},
	{"waiters", waiters}, {"throughput", throughput}, {"library", library},
}

func sectionNames() []string {
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	return names
}

// runs is how many, or how many in a short run.
func (b *bed) runs(long, short int) int {
	if b.short {
		return short
	}
	return long
}

// timed is one way to do it, and how long it took each time, in seconds.
type timed struct {
	do    func(context.Context) error
	took  []float64
	after func(context.Context) error // not timed; nil for nothing
}

// fewRounds are of something that takes so long that there is no round for warming up: smaller things have
// done that.
const fewRounds = 2

// inTurns does all ways, one after the other, in every round; each round begins with another one. There is one
// more in the beginning, which does not count.
func inTurns(ctx context.Context, rounds int, ways ...*timed) error {
	first := 0
	if rounds <= fewRounds {
		first = 1
	}
	for round := first; round <= rounds; round++ {
		for i := range ways {
			way := ways[(i+round)%len(ways)]
			begun := time.Now()
			if err := way.do(ctx); err != nil {
				return err
			}
			if took := time.Since(begun).Seconds(); round > 0 {
				way.took = append(way.took, took)
			}
			if way.after == nil {
				continue
			}
			if err := way.after(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// hit is the call that this is all about, as a server makes it.
func hit(ctx context.Context) error {
	_, err := mol.EnsureLocalImage(ctx, runtime)
	return err
}

// floor is the two calls that a hit cannot do without, over connections that are kept alive.
func (b *bed) floor(ctx context.Context, sha string) func(context.Context) error {
	api := &http.Client{}
	get := func(client *http.Client, url string) error {
		request, err := http.NewRequestWithContext(ctx, "GET", url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", url, response.Status)
		}
		_, err = io.Copy(io.Discard, response.Body)
		return err
	}
	inspect := "http://engine/images/" + reference(sha, isolation) + "/json"
	return func(context.Context) error {
		return errors.Join(get(api, b.template.branchURL()), get(b.engine, inspect))
	}
}

func warm(ctx context.Context, b *bed, r *report) error {
	sha, err := b.template.release(ctx)
	if err != nil {
		return err
	}
	old := b.cli(b.template)
	viaCLI := &timed{do: func(ctx context.Context) error {
		_, _, err := old.ensure(ctx)
		return err
	}}
	viaMol, floor := &timed{do: hit}, &timed{do: b.floor(ctx, sha)}
	if err := errors.Join(hit(ctx), viaCLI.do(ctx)); err != nil { // the images
		return err
	}
	if err := inTurns(ctx, b.runs(200, 20), viaMol, viaCLI); err != nil {
		return err
	}
	r.faster("warm hit against the CLI way", viaMol.took, viaCLI.took, 30)
	viaMol.took = nil
	if err := inTurns(ctx, b.runs(3000, 200), viaMol, floor); err != nil {
		return err
	}
	r.atMost("warm hit against the floor", viaMol.took, floor.took, 1.5)
	return b.forget(ctx)
}

// race builds a template again and again, each time from a new commit, with libmol and the CLI way in
// turns, and sees from a front before the engine what happens when.
type race struct {
	total, start, context [2][]float64 // libmol's, the CLI way's
}

func (b *bed) race(ctx context.Context, t template, rounds int) (race, error) {
	var r race
	f, err := unixFront(filepath.Join(b.work, "front.sock"), b.socket)
	if err != nil {
		return r, err
	}
	defer f.close()
	engine := "unix://" + f.address()
	client, err := mol.New(t.options(engine))
	if err != nil {
		return r, err
	}
	defer client.Close()
	old := b.cli(t)
	old.engine = engine

	first := 0
	if rounds <= fewRounds {
		first = 1
	}
	for round := first; round <= rounds; round++ { // as in inTurns
		if _, err := t.release(ctx); err != nil {
			return r, err
		}
		for i := range 2 {
			way := (i + round) % 2
			f.reset()
			begun := time.Now()
			from := begun
			if way == 0 {
				_, err = client.EnsureLocalImage(ctx, runtime)
			} else {
				var s steps
				_, s, err = old.ensure(ctx)
				from = s.clone
			}
			total := time.Since(begun)
			if err != nil {
				return r, err
			}
			build, err := f.firstBuild()
			if err != nil {
				return r, err
			}
			sent, err := f.contextTime()
			if err != nil {
				return r, err
			}
			if round > 0 {
				r.total[way] = append(r.total[way], total.Seconds())
				r.start[way] = append(r.start[way], build.Sub(from).Seconds())
				r.context[way] = append(r.context[way], sent.Seconds())
			}
			if err := b.forget(ctx); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

func cold(ctx context.Context, b *bed, r *report) error {
	found, err := b.race(ctx, b.template, b.runs(20, 3))
	if err != nil {
		return err
	}
	r.atMost("cold path up to the request for the build, against git clone and the start of the docker CLI",
		found.start[0], found.start[1], 0.5)
	r.atMost("cold path in all, small template", found.total[0], found.total[1], 1)
	return nil
}

func files(ctx context.Context, b *bed, r *report) error {
	n := b.runs(20_000, 500)
	t, err := b.newTemplate(ctx, "files", n, 1<<10)
	if err != nil {
		return err
	}
	found, err := b.race(ctx, t, b.runs(2, 1))
	if err != nil {
		return err
	}
	r.atMost(fmt.Sprintf("%d files: the context to the engine", n), found.context[0], found.context[1], 0.7)
	r.note(fmt.Sprintf("%d files: cold path in all", n), found.total[0], found.total[1])
	r.note(fmt.Sprintf("%d files: up to the request for the build", n), found.start[0], found.start[1])
	return t.remove(ctx)
}

// large compares the time, and measures libmol's memory in a process of its own.
func large(ctx context.Context, b *bed, r *report) error {
	mib := b.runs(1024, 16)
	t, err := b.newTemplate(ctx, "large", mib, 1<<20)
	if err != nil {
		return err
	}
	var ours, theirs, memory, own []float64
	old := b.cli(t)
	for round := range b.runs(2, 1) {
		if _, err := t.release(ctx); err != nil {
			return err
		}
		for i := range 2 {
			if (i+round)%2 == 0 {
				o, err := b.inChild(ctx, job{Prefix: t.prefix(), Engine: b.settings.engine, Callers: 1})
				if err != nil {
					return err
				}
				ours, memory, own = append(ours, o.Seconds), append(memory, o.MemoryGrowth), append(own, o.OwnGrowth)
			} else {
				begun := time.Now()
				if _, _, err := old.ensure(ctx); err != nil {
					return err
				}
				theirs = append(theirs, time.Since(begun).Seconds())
			}
			if err := b.forget(ctx); err != nil {
				return err
			}
		}
	}
	b.largest = both{mib, ours, theirs}
	what := fmt.Sprintf("%d MiB in files of 1 MiB: ", mib)
	r.atMost(what+"time", ours, theirs, 1)
	r.limit(what+"peak memory growth", memory, mebibytes, 64<<20)
	r.fact(what+"the same without mapped files", spread(own, mebibytes))
	if err := t.remove(ctx); err != nil || b.short {
		return err
	}
	// What the goal does not ask for, and a reader should know.
	const single = 256
	if t, err = b.newTemplate(ctx, "single", 1, single<<20); err != nil {
		return err
	}
	o, err := b.inChild(ctx, job{Prefix: t.prefix(), Engine: b.settings.engine, Callers: 1})
	if err != nil {
		return err
	}
	what = fmt.Sprintf("%d MiB in one file: ", single)
	r.fact(what+"peak memory growth", mebibytes(o.MemoryGrowth))
	r.fact(what+"the same without mapped files", mebibytes(o.OwnGrowth))
	return errors.Join(b.forget(ctx), t.remove(ctx))
}

// waiters lets ten thousand wait for one build, whose fetch takes long enough for all to arrive.
func waiters(ctx context.Context, b *bed, r *report) error {
	n := b.runs(10_000, 200)
	f, err := unixFront(filepath.Join(b.work, "front.sock"), b.socket)
	if err != nil {
		return err
	}
	defer f.close()
	if _, err := b.template.release(ctx); err != nil {
		return err
	}
	faults := []server.Fault{{Match: `git-upload-pack$`, Times: 1, DelayMS: n + 1000}}
	if err := b.control(ctx, "PUT", "faults", faults, nil); err != nil {
		return err
	}
	o, err := b.inChild(ctx, job{Prefix: b.template.prefix(), Engine: "unix://" + f.address(), Callers: n})
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d goroutines wait for one cold build: ", n)
	_, builds := f.seen()
	r.limit(what+"builds", []float64{float64(builds)}, count, 1)
	r.limit(what+"OS threads more", []float64{float64(o.ThreadsGrowth)}, count, 64)
	r.limit(what+"memory growth at the peak", []float64{o.MemoryGrowth}, mebibytes, 64<<20)
	r.fact(what+"the same without mapped files", mebibytes(o.OwnGrowth))
	r.limit(what+"from the first return to the last", []float64{o.Spread}, seconds, 0.1)
	return errors.Join(b.forget(ctx), b.control(ctx, "DELETE", "faults", nil, nil))
}

// many does it so often, so many at a time, and gives how many it did in a second.
func many(ctx context.Context, times, atOnce int, do func(context.Context) error) (float64, error) {
	var left atomic.Int64
	left.Store(int64(times))
	var workers sync.WaitGroup
	errs := make([]error, atOnce)
	begun := time.Now()
	for i := range atOnce {
		workers.Go(func() {
			for errs[i] == nil && left.Add(-1) >= 0 {
				errs[i] = do(ctx)
			}
		})
	}
	workers.Wait()
	return float64(times) / time.Since(begun).Seconds(), errors.Join(errs...)
}

func throughput(ctx context.Context, b *bed, r *report) error {
	const atOnce = 64
	if _, err := b.template.release(ctx); err != nil {
		return err
	}
	old := b.cli(b.template)
	viaCLI := func(ctx context.Context) error {
		_, _, err := old.ensure(ctx)
		return err
	}
	if err := errors.Join(hit(ctx), viaCLI(ctx)); err != nil { // the images
		return err
	}
	hits := b.runs(10_000, 500)
	var ours, theirs []float64
	for range b.runs(3, 1) {
		n, err := many(ctx, hits, atOnce, hit)
		if err != nil {
			return err
		}
		ours = append(ours, n)
		if n, err = many(ctx, b.runs(256, 64), atOnce, viaCLI); err != nil {
			return err
		}
		theirs = append(theirs, n)
	}
	r.throughput(fmt.Sprintf("%d warm hits, %d at a time", hits, atOnce), ours, theirs, 20)

	// Once more past fronts, which count the connections.
	engine, err := unixFront(filepath.Join(b.work, "front.sock"), b.socket)
	if err != nil {
		return err
	}
	defer engine.close()
	api, err := newFront("tcp", "127.0.0.1:0", b.serverURL[len("http://"):])
	if err != nil {
		return err
	}
	defer api.close()
	options := b.template.options("unix://" + engine.address())
	options.RepoPrefix = "http://" + api.address() + "/" + b.template.org + "/molecule-ai-workspace-template-"
	client, err := mol.New(options)
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := many(ctx, hits, atOnce, func(ctx context.Context) error {
		_, err := client.EnsureLocalImage(ctx, runtime)
		return err
	}); err != nil {
		return err
	}
	what := fmt.Sprintf("%d warm hits, %d at a time: connections to the ", hits, atOnce)
	for name, f := range map[string]*front{"API": api, "engine": engine} {
		connections, _ := f.seen()
		r.limit(what+name, []float64{float64(connections)}, count, atOnce)
	}
	return b.forget(ctx)
}

func library(ctx context.Context, b *bed, r *report) error {
	if b.settings.library != "" {
		stripped := filepath.Join(b.work, "libmol.so")
		if output, err := exec.CommandContext(ctx, "strip", "-o", stripped, b.settings.library).CombinedOutput(); err != nil {
			return fmt.Errorf("strip: %w: %s", err, output)
		}
		info, err := os.Stat(stripped)
		if err != nil {
			return err
		}
		r.limit("libmol.so, stripped", []float64{float64(info.Size())}, mebibytes, 12<<20)
	}
	if b.buildSeconds > 0 {
		r.limit("clean release build", []float64{b.buildSeconds}, seconds, 300)
	}
	return nil
}
