// Command bench compares libmol with the git and docker commands that it replaces (the CLI way, cli.go), and with the
// fewest requests that a cache hit needs, sent directly (the floor, [testEnv.floor]): `make bench`.
//
// All use the same machine, engine and template server, and run in turns. Other load on the machine then affects all of
// them equally, so only the ratios are meaningful.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// settings are the flags of a run.
type settings struct {
	engine       string  // address of the engine, unix://…
	docker       string  // the docker program
	work         string  // folder for all temporary data; the caller removes it
	library      string  // path of libmol.so
	buildSeconds float64 // duration of a clean release build; 0 if it was not measured
	bloat        string  // file with the output of cargo bloat, or ""
	docs         string  // folder of benchmarks.md and the plots; "" to only print the results
	only         string  // name of the only section to run; "" for all
	short        bool    // few runs with small templates, to check that the benchmark works
	plots        bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	// The program runs itself for tasks that need a separate process.
	if len(args) > 0 && args[0] == "serve" {
		return serve(args[1:])
	}
	if len(args) > 0 && args[0] == "child" {
		return child(ctx, os.Stdin, os.Stdout)
	}

	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&s.engine, "engine", "", "`address` of an engine whose images and build cache may be deleted, unix://… (required)")
	flags.StringVar(&s.docker, "docker", "/usr/bin/docker", "the docker `program`")
	flags.StringVar(&s.work, "work", "", "empty `folder` for temporary data (required)")
	flags.StringVar(&s.library, "library", "", "`path` of libmol.so")
	flags.Float64Var(&s.buildSeconds, "build-seconds", 0, "`seconds` of a clean release build")
	flags.StringVar(&s.bloat, "bloat", "", "`file` with the output of cargo bloat")
	flags.StringVar(&s.docs, "docs", "", "`folder` of benchmarks.md, to update its figures")
	flags.StringVar(&s.only, "only", "", "run only this `section`: "+strings.Join(sectionNames(), ", "))
	flags.BoolVar(&s.short, "short", false, "few runs with small templates")
	flags.BoolVar(&s.plots, "plots", false, "draw the plots")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if s.engine == "" || s.work == "" || flags.NArg() > 0 {
		flags.Usage()
		return errors.New("-engine and -work are required, and arguments are not allowed")
	}
	if s.docs != "" && (s.short || s.only != "") {
		return errors.New("-docs needs a full run: omit -short and -only, or -docs")
	}
	if s.only != "" && !slices.Contains(sectionNames(), s.only) {
		return fmt.Errorf("unknown section %q: use %s", s.only, strings.Join(sectionNames(), ", "))
	}
	work, err := filepath.Abs(s.work)
	if err != nil {
		return err
	}
	s.work = work

	env, err := newTestEnv(ctx, s)
	if err != nil {
		return err
	}
	defer env.close()

	report := &report{machine: env.machine()}
	for _, section := range sections {
		if s.only != "" && s.only != section.name {
			continue
		}
		fmt.Fprintf(os.Stderr, "== %s\n", section.name)
		if err := section.run(ctx, env, report); err != nil {
			return fmt.Errorf("%s: %w", section.name, err)
		}
	}
	var plots []plot
	if s.plots {
		if plots, err = measurePlots(ctx, env); err != nil {
			return err
		}
	}
	fmt.Print(report.text())
	if s.docs == "" {
		return nil
	}
	if s.bloat != "" {
		bloat, err := os.ReadFile(s.bloat)
		if err != nil {
			return err
		}
		report.bloat = strings.TrimRight(string(bloat), "\n")
	}
	for _, p := range plots {
		if err := p.save(s.docs); err != nil {
			return err
		}
	}
	return report.write(filepath.Join(s.docs, "benchmarks.md"))
}
