// Command bench measures libmol against the way that it replaces, and against the floor, side by side on
// one machine: `make bench`.
//
// The way that it replaces (cli.go) looks the commit up with net/http and starts the docker and git
// programs for the rest. The floor is the calls that cannot be saved, made bare. All of them speak to the
// same engine and the same template server, and take turns: the machine's other work meets all of them
// alike, so only the ratios count.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// settings are what a run was asked for.
type settings struct {
	engine       string  // address of the engine, unix://…
	docker       string  // the docker program
	work         string  // folder for everything that is made, removed by whoever made it
	library      string  // libmol.so
	buildSeconds float64 // how long a clean release build took; 0: not measured
	bloat        string  // file with the output of cargo bloat; "": none
	docs         string  // folder of benchmarks.md and the plots; "": only print
	only         string  // name of the one section to run; "": all
	short        bool    // few runs, small templates: to see that it works
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
	// The program starts itself for what needs a process of its own.
	if len(args) > 0 && args[0] == "serve" {
		return serve(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == "child" {
		return child(ctx, os.Stdin, os.Stdout)
	}

	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&s.engine, "engine", "", "`address` of an engine that may be filled and pruned, unix://… (required)")
	flags.StringVar(&s.docker, "docker", "/usr/bin/docker", "the docker `program`")
	flags.StringVar(&s.work, "work", "", "empty `folder` for what is made (required)")
	flags.StringVar(&s.library, "library", "", "`path` of libmol.so")
	flags.Float64Var(&s.buildSeconds, "build-seconds", 0, "how long a clean release build took")
	flags.StringVar(&s.bloat, "bloat", "", "`file` with the output of cargo bloat")
	flags.StringVar(&s.docs, "docs", "", "`folder` of benchmarks.md, to write the figures into it")
	flags.StringVar(&s.only, "only", "", "run this `section` alone: "+strings.Join(sectionNames(), ", "))
	flags.BoolVar(&s.short, "short", false, "few runs of small templates")
	flags.BoolVar(&s.plots, "plots", false, "draw how the cost grows")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if s.engine == "" || s.work == "" || flags.NArg() > 0 {
		flags.Usage()
		return errors.New("-engine and -work are required, and nothing but flags is taken")
	}
	if s.docs != "" && (s.short || s.only != "") {
		return errors.New("what is written down comes from a whole run: leave -short and -only out, or -docs")
	}
	work, err := filepath.Abs(s.work)
	if err != nil {
		return err
	}
	s.work = work

	b, err := newBed(ctx, s)
	if err != nil {
		return err
	}
	defer b.close()

	report := &report{machine: b.machine()}
	for _, section := range sections {
		if s.only != "" && s.only != section.name {
			continue
		}
		fmt.Fprintf(os.Stderr, "== %s\n", section.name)
		if err := section.run(ctx, b, report); err != nil {
			return fmt.Errorf("%s: %w", section.name, err)
		}
	}
	var plots []plot
	if s.plots {
		if plots, err = drawn(ctx, b); err != nil {
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
