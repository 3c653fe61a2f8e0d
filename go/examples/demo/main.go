// Command demo is `make demo`: it starts a workspace from a template repository
// three times: with a cold build, with a cache hit, and after a new commit. It uses
// a real git repository behind Gitea's API, a real container engine and a container
// that answers. It checks what it shows and removes what it created.
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

func main() {
	root := flag.String("root", ".", "the root `folder` of libmol's source tree")
	flag.Parse()
	os.Exit(run(*root))
}

func run(root string) int {
	// The first signal stops the demo with a clean-up, a second one immediately.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop)

	out := newPrinter(os.Stdout)
	var after cleanup
	err := demo(ctx, out, &after, root)
	if err != nil && ctx.Err() != nil {
		err = errors.New("stopped")
	}
	if err != nil {
		out.failure(err)
	}
	if failed := after.run(); failed != nil {
		out.failure(fmt.Errorf("cleaning up: %w", failed))
		err = failed
	} else if what := after.String(); what != "" {
		out.line("\n%s", out.bold("cleaned up: "+what))
		if after.note != "" {
			out.line("%s", out.dim(after.note))
		}
	}
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		return 130 // as in a shell after ctrl-C
	}
	return 1
}

func demo(ctx context.Context, out *printer, after *cleanup, root string) error {
	out.heading("start a workspace from its template repository")

	dir, err := os.MkdirTemp("", "mol-demo-")
	if err != nil {
		return err
	}
	after.add(func(context.Context) error { return os.RemoveAll(dir) })
	// The demo ignores the user's settings.
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "MOLECULE_") || name == "BUILDX_BUILDER" {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	if err := os.Setenv("MOLECULE_LOCAL_BUILD_CACHE", filepath.Join(dir, "cache")); err != nil {
		return err
	}

	eng, err := findEngine(ctx, out, after, root, filepath.Join(dir, "engine"))
	if err != nil {
		return err
	}
	out.fact("engine", eng.String())
	after.made("cache")
	tpl, err := startTemplates(ctx, after, root, filepath.Join(dir, "templates"))
	if err != nil {
		return err
	}
	out.fact("templates", tpl.RepoPrefix()+"<runtime>")

	d := &demonstration{out: out, engine: eng, templates: tpl, after: after}
	return d.show(ctx)
}
