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
	"sync"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// job is the task of a child process: a number of callers request one image at the same time.
type job struct {
	Prefix, Engine string
	Callers        int
}

// outcome is the result of a job. Growth is relative to the process before it created its client.
type outcome struct {
	Seconds       float64 // until the last caller had the image
	Spread        float64 // seconds from the first return to the last
	MemoryGrowth  float64 // bytes at the peak, including mapped files
	OwnGrowth     float64 // bytes at the peak, without mapped files, whose memory the kernel can reclaim at any time
	ThreadsGrowth int     // at the peak
}

// inChild runs a job in a new process.
func (env *testEnv) inChild(ctx context.Context, j job) (outcome, error) {
	var o outcome
	input, err := json.Marshal(j)
	if err != nil {
		return o, err
	}
	command := exec.CommandContext(ctx, env.self, "child")
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
	// Reset the peak; see clear_refs in proc(5).
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		return err
	}
	memory, err := status("VmRSS")
	if err != nil {
		return err
	}
	threads, err := watch("Threads")
	if err != nil {
		return err
	}
	own, err := watch("RssAnon")
	if err != nil {
		return err
	}

	options := mol.OptionsFromEnv()
	options.RepoPrefix, options.DockerHost = j.Prefix, j.Engine
	client, err := mol.New(options)
	if err != nil {
		return err
	}
	ended := make([]time.Time, j.Callers)
	failed := make([]error, j.Callers)
	var callers sync.WaitGroup
	started := time.Now()
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
	mostThreads, err := threads()
	if err != nil {
		return err
	}
	mostOwn, err := own()
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
		Seconds:       last.Sub(started).Seconds(),
		Spread:        last.Sub(first).Seconds(),
		MemoryGrowth:  float64(peak-memory) * 1024,
		OwnGrowth:     float64(mostOwn) * 1024,
		ThreadsGrowth: mostThreads,
	})
}

// status returns a number of /proc/self/status; memory is in KiB.
func status(name string) (int, error) {
	file, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return readStatus(file, make([]byte, 4096), name)
}

// readStatus is status with an open file and a buffer, which can be reused.
func readStatus(file *os.File, buffer []byte, name string) (int, error) {
	n, err := file.ReadAt(buffer, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	_, text, found := bytes.Cut(buffer[:n], []byte("\n"+name+":"))
	if !found {
		return 0, fmt.Errorf("/proc/self/status has no %s", name)
	}
	number := 0
	for _, c := range bytes.TrimLeft(text, "\t ") {
		if c < '0' || c > '9' {
			break
		}
		number = number*10 + int(c-'0')
	}
	return number, nil
}

// watch samples a number of /proc/self/status until growth is called, which returns how much it grew. It allocates no
// memory, which would be counted as the library's.
func watch(name string) (growth func() (int, error), err error) {
	file, err := os.Open("/proc/self/status")
	if err != nil {
		return nil, err
	}
	buffer := make([]byte, 4096)
	before, err := readStatus(file, buffer, name)
	if err != nil {
		return nil, err
	}
	most := before
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for err == nil {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
			var now int
			now, err = readStatus(file, buffer, name)
			most = max(most, now)
		}
	}()
	return func() (int, error) {
		close(stop)
		<-stopped
		return most - before, errors.Join(err, file.Close())
	}, nil
}
