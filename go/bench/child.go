package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// job is what a process of its own does: so many callers ask for one image at once.
type job struct {
	Prefix, Engine string
	Callers        int
}

// outcome is what it says of it. Growth is against the process before it made its client.
type outcome struct {
	Seconds       float64 // until the last caller had the image
	Spread        float64 // seconds from the first return to the last
	MemoryGrowth  float64 // bytes, at the peak, files that are mapped included
	OwnGrowth     float64 // without those, whose memory the kernel can take back at any time
	ThreadsGrowth int     // at the peak
}

// inChild does a job in a process that does nothing else.
func (b *bed) inChild(ctx context.Context, j job) (outcome, error) {
	var o outcome
	input, err := json.Marshal(j)
	if err != nil {
		return o, err
	}
	command := exec.CommandContext(ctx, b.self, "child")
	command.Stdin, command.Stderr = bytes.NewReader(input), os.Stderr
	output, err := command.Output()
	if err != nil {
		return o, err
	}
	return o, json.Unmarshal(output, &o)
}

func child(ctx context.Context, in io.Reader, out io.Writer) error {
	var j job
	if err := json.NewDecoder(in).Decode(&j); err != nil {
		return err
	}
	debug.FreeOSMemory()
	// From here on the peak counts anew; see proc(5), clear_refs.
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		return err
	}
	memory, err := status("VmRSS")
	if err != nil {
		return err
	}
	threads, own := watch("Threads"), watch("RssAnon")

	options := mol.OptionsFromEnv()
	options.RepoPrefix, options.DockerHost = j.Prefix, j.Engine
	client, err := mol.New(options)
	if err != nil {
		return err
	}
	ended := make([]time.Time, j.Callers)
	failed := make([]error, j.Callers)
	var callers sync.WaitGroup
	begun := time.Now()
	for i := range j.Callers {
		callers.Go(func() {
			_, failed[i] = client.EnsureLocalImage(ctx, runtime)
			ended[i] = time.Now()
		})
	}
	callers.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	peak, err := status("VmHWM")
	if err != nil {
		return err
	}
	first, last := ended[0], ended[0]
	for _, at := range ended {
		if at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
	}
	return json.NewEncoder(out).Encode(outcome{
		Seconds:       last.Sub(begun).Seconds(),
		Spread:        last.Sub(first).Seconds(),
		MemoryGrowth:  float64(peak-memory) * 1024,
		OwnGrowth:     float64(own()) * 1024,
		ThreadsGrowth: threads(),
	})
}

// status is a number of /proc/self/status: memory in KiB.
func status(name string) (int, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strconv.Atoi(strings.Fields(value)[0])
		}
	}
	return 0, fmt.Errorf("the kernel does not say %s", name)
}

// watch looks at a number of /proc/self/status until it is asked how much that grew.
func watch(name string) (growth func() int) {
	before, _ := status(name)
	most := before
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			now, _ := status(name)
			most = max(most, now)
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	return func() int {
		close(stop)
		<-stopped
		return most - before
	}
}
