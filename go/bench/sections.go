package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
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
	run  func(context.Context, *testEnv, *report) error
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

// runs returns long, or short in a short run.
func (env *testEnv) runs(long, short int) int {
	if env.short {
		return short
	}
	return long
}

// timed is a measured function, with the seconds of each run.
type timed struct {
	do    func(context.Context) error
	took  []float64
	after func(context.Context) error // called after each run, not measured; may be nil
}

// fewRounds is the number of rounds up to which there is no warm-up round. Such runs take long, and earlier sections have
// warmed up the engine.
const fewRounds = 2

// firstRound is 0, a round for warming up that is not counted; or 1, if there are only a few rounds.
func firstRound(rounds int) int {
	if rounds <= fewRounds {
		return 1
	}
	return 0
}

// inTurns runs all ways in each round, one after the other. Each round begins with another way.
func inTurns(ctx context.Context, rounds int, ways ...*timed) error {
	for round := firstRound(rounds); round <= rounds; round++ {
		for i := range ways {
			way := ways[(i+round)%len(ways)]
			started := time.Now()
			if err := way.do(ctx); err != nil {
				return err
			}
			if took := time.Since(started).Seconds(); round > 0 {
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

// hit is the main call of libmol, as a server makes it.
func hit(ctx context.Context) error {
	_, err := mol.EnsureLocalImage(ctx, runtime)
	return err
}

// floor returns a function that sends the two requests that a hit needs at least, over kept-alive connections.
func (env *testEnv) floor(ctx context.Context, sha string) func(context.Context) error {
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
		return errors.Join(get(api, env.template.branchURL()), get(env.engine, inspect))
	}
}

func warm(ctx context.Context, env *testEnv, r *report) error {
	sha, err := env.template.release(ctx)
	if err != nil {
		return err
	}
	old := env.cli(env.template)
	withCLI := &timed{do: func(ctx context.Context) error {
		_, _, err := old.ensure(ctx)
		return err
	}}
	withMol, floor := &timed{do: hit}, &timed{do: env.floor(ctx, sha)}
	if err := errors.Join(hit(ctx), withCLI.do(ctx)); err != nil { // build the images
		return err
	}
	if err := inTurns(ctx, env.runs(200, 20), withMol, withCLI); err != nil {
		return err
	}
	r.faster("warm hit against the CLI way", withMol.took, withCLI.took, 30)
	withMol.took = nil
	if err := inTurns(ctx, env.runs(3000, 200), withMol, floor); err != nil {
		return err
	}
	r.atMost("warm hit against the floor", withMol.took, floor.took, 1.5)
	return env.forget(ctx)
}

// coldTimes are the seconds of cold builds, with libmol and with the CLI way in turns, each from a new commit. A proxy in
// front of the engine measures when the steps happen.
type coldTimes struct {
	total, start, context [2][]float64 // index 0: libmol, index 1: the CLI way
}

func (env *testEnv) measureCold(ctx context.Context, t template, rounds int) (coldTimes, error) {
	var r coldTimes
	p, err := newEngineProxy(filepath.Join(env.work, "proxy.sock"), env.socket)
	if err != nil {
		return r, err
	}
	defer p.close()
	engine := "unix://" + p.address()
	client, err := mol.New(t.options(engine))
	if err != nil {
		return r, err
	}
	defer client.Close()
	old := env.cli(t)
	old.engine = engine

	for round := firstRound(rounds); round <= rounds; round++ { // as in inTurns
		if _, err := t.release(ctx); err != nil {
			return r, err
		}
		for i := range 2 {
			way := (i + round) % 2
			p.reset()
			started := time.Now()
			from := started
			if way == 0 {
				_, err = client.EnsureLocalImage(ctx, runtime)
			} else {
				var s steps
				_, s, err = old.ensure(ctx)
				from = s.clone
			}
			total := time.Since(started)
			if err != nil {
				return r, err
			}
			build, err := p.firstBuild()
			if err != nil {
				return r, err
			}
			sent, err := p.contextTime()
			if err != nil {
				return r, err
			}
			if round > 0 {
				r.total[way] = append(r.total[way], total.Seconds())
				r.start[way] = append(r.start[way], build.Sub(from).Seconds())
				r.context[way] = append(r.context[way], sent.Seconds())
			}
			if err := env.forget(ctx); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

func cold(ctx context.Context, env *testEnv, r *report) error {
	found, err := env.measureCold(ctx, env.template, env.runs(20, 3))
	if err != nil {
		return err
	}
	r.atMost("cold path up to the build request, against git clone and the start of the docker CLI",
		found.start[0], found.start[1], 0.5)
	r.atMost("whole cold path, small template", found.total[0], found.total[1], 1)
	return nil
}

func files(ctx context.Context, env *testEnv, r *report) error {
	n := env.runs(20_000, 500)
	t, err := env.newTemplate(ctx, "files", n, 1<<10)
	if err != nil {
		return err
	}
	found, err := env.measureCold(ctx, t, env.runs(2, 1))
	if err != nil {
		return err
	}
	r.atMost(fmt.Sprintf("%d files: sending the context to the engine", n), found.context[0], found.context[1], 0.7)
	r.note(fmt.Sprintf("%d files: whole cold path", n), found.total[0], found.total[1])
	r.note(fmt.Sprintf("%d files: cold path up to the build request", n), found.start[0], found.start[1])
	return t.remove(ctx)
}

// large compares the times and measures libmol's memory in a separate process.
func large(ctx context.Context, env *testEnv, r *report) error {
	mib := env.runs(1024, 16)
	t, err := env.newTemplate(ctx, "large", mib, 1<<20)
	if err != nil {
		return err
	}
	var ours, theirs, memory, own []float64
	old := env.cli(t)
	for round := range env.runs(2, 1) {
		if _, err := t.release(ctx); err != nil {
			return err
		}
		for i := range 2 {
			if (i+round)%2 == 0 {
				o, err := env.inChild(ctx, job{Prefix: t.prefix(), Engine: env.settings.engine, Callers: 1})
				if err != nil {
					return err
				}
				ours, memory, own = append(ours, o.Seconds), append(memory, o.MemoryGrowth), append(own, o.OwnGrowth)
			} else {
				started := time.Now()
				if _, _, err := old.ensure(ctx); err != nil {
					return err
				}
				theirs = append(theirs, time.Since(started).Seconds())
			}
			if err := env.forget(ctx); err != nil {
				return err
			}
		}
	}
	env.largest = measurement{mib, ours, theirs}
	what := fmt.Sprintf("%d MiB in files of 1 MiB: ", mib)
	r.atMost(what+"time", ours, theirs, 1)
	r.limit(what+"peak memory growth", memory, mebibytes, 64<<20)
	r.fact(what+"peak memory growth without mapped files", spread(own, mebibytes))
	if err := t.remove(ctx); err != nil || env.short {
		return err
	}
	// No goal, but useful to know.
	const single = 256
	if t, err = env.newTemplate(ctx, "single", 1, single<<20); err != nil {
		return err
	}
	o, err := env.inChild(ctx, job{Prefix: t.prefix(), Engine: env.settings.engine, Callers: 1})
	if err != nil {
		return err
	}
	what = fmt.Sprintf("%d MiB in one file: ", single)
	r.fact(what+"peak memory growth", mebibytes(o.MemoryGrowth))
	r.fact(what+"peak memory growth without mapped files", mebibytes(o.OwnGrowth))
	return errors.Join(env.forget(ctx), t.remove(ctx))
}

// waiters measures 10,000 callers that wait for one build. Its fetch is delayed, so that all callers arrive before it ends.
func waiters(ctx context.Context, env *testEnv, r *report) error {
	n := env.runs(10_000, 200)
	p, err := newEngineProxy(filepath.Join(env.work, "proxy.sock"), env.socket)
	if err != nil {
		return err
	}
	defer p.close()
	if _, err := env.template.release(ctx); err != nil {
		return err
	}
	faults := []server.Fault{{Match: `git-upload-pack$`, Times: 1, DelayMS: n + 1000}}
	if err := env.control(ctx, "PUT", "faults", faults, nil); err != nil {
		return err
	}
	o, err := env.inChild(ctx, job{Prefix: env.template.prefix(), Engine: "unix://" + p.address(), Callers: n})
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d goroutines waiting for one cold build: ", n)
	_, builds := p.seen()
	r.limit(what+"builds", []float64{float64(builds)}, count, 1)
	r.limit(what+"additional OS threads", []float64{float64(o.ThreadsGrowth)}, count, 64)
	r.limit(what+"peak memory growth", []float64{o.MemoryGrowth}, mebibytes, 64<<20)
	r.fact(what+"peak memory growth without mapped files", mebibytes(o.OwnGrowth))
	r.limit(what+"from the first return to the last", []float64{o.Spread}, seconds, 0.1)
	return errors.Join(env.forget(ctx), env.control(ctx, "DELETE", "faults", nil, nil))
}

// many calls do times times, with atOnce calls in parallel, and returns the calls per second.
func many(ctx context.Context, times, atOnce int, do func(context.Context) error) (float64, error) {
	var left atomic.Int64
	left.Store(int64(times))
	var workers sync.WaitGroup
	errs := make([]error, atOnce)
	started := time.Now()
	for i := range atOnce {
		workers.Go(func() {
			for errs[i] == nil && left.Add(-1) >= 0 {
				errs[i] = do(ctx)
			}
		})
	}
	workers.Wait()
	return float64(times) / time.Since(started).Seconds(), errors.Join(errs...)
}

func throughput(ctx context.Context, env *testEnv, r *report) error {
	const atOnce = 64
	if _, err := env.template.release(ctx); err != nil {
		return err
	}
	old := env.cli(env.template)
	withCLI := func(ctx context.Context) error {
		_, _, err := old.ensure(ctx)
		return err
	}
	if err := errors.Join(hit(ctx), withCLI(ctx)); err != nil { // build the images
		return err
	}
	hits := env.runs(10_000, 500)
	var ours, theirs []float64
	for range env.runs(3, 1) {
		n, err := many(ctx, hits, atOnce, hit)
		if err != nil {
			return err
		}
		ours = append(ours, n)
		if n, err = many(ctx, env.runs(256, 64), atOnce, withCLI); err != nil {
			return err
		}
		theirs = append(theirs, n)
	}
	r.throughput(fmt.Sprintf("%d warm hits, %d at a time", hits, atOnce), ours, theirs, 20)

	// Again through proxies, which count the connections.
	engine, err := newEngineProxy(filepath.Join(env.work, "proxy.sock"), env.socket)
	if err != nil {
		return err
	}
	defer engine.close()
	api, err := newRecordingProxy("tcp", "127.0.0.1:0", env.serverURL[len("http://"):])
	if err != nil {
		return err
	}
	defer api.close()
	options := env.template.options("unix://" + engine.address())
	options.RepoPrefix = "http://" + api.address() + "/" + env.template.org + "/molecule-ai-workspace-template-"
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
	for _, to := range []struct {
		name  string
		proxy *recordingProxy
	}{{"API", api}, {"engine", engine}} {
		connections, _ := to.proxy.seen()
		r.limit(what+to.name, []float64{float64(connections)}, count, atOnce)
	}
	return env.forget(ctx)
}

func library(ctx context.Context, env *testEnv, r *report) error {
	if env.settings.library != "" {
		info, err := os.Stat(env.settings.library)
		if err != nil {
			return err
		}
		r.limit("libmol.so", []float64{float64(info.Size())}, mebibytes, 23<<19) // 11.5 MiB
	}
	if env.buildSeconds > 0 {
		r.limit("clean release build", []float64{env.buildSeconds}, seconds, 300)
	}
	return nil
}
