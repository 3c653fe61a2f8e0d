// Command templateserver serves workspace templates on loopback with Gitea's API, for the demo and the
// tests; see package server.
//
// It prints one line of JSON when it listens. It stops on SIGINT and SIGTERM, and when its standard input
// is closed, so that it does not outlive the program that started it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"git.moleculesai.app/molecule-ai/libmol/go/templateserver/server"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "templateserver:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("templateserver", flag.ContinueOnError)
	flags.SetOutput(stderr)
	options := server.Options{Log: stderr}
	flags.StringVar(&options.Listen, "listen", "127.0.0.1:0", "`address` on loopback")
	flags.StringVar(&options.Root, "root", "", "`folder` for the repositories (required)")
	flags.StringVar(&options.Templates, "templates", "", "`folder` of templates to publish")
	flags.StringVar(&options.Org, "org", "molecule-ai", "`organization` that owns the templates")
	flags.StringVar(&options.Token, "token", "", "`token` that every request must have")
	flags.StringVar(&options.BasePath, "base-path", "", "`path` below which everything is served")
	flags.BoolVar(&options.Compact, "compact", false, "no white space in API answers")
	flags.BoolVar(&options.SortedKeys, "sorted-keys", false, "keys in alphabetical order, with other ids before commit.id")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if options.Root == "" || flags.NArg() > 0 {
		flags.Usage()
		return errors.New("--root is required, and arguments are not allowed")
	}

	s, err := server.Start(options)
	if err != nil {
		return err
	}
	defer s.Close()
	listening := struct {
		URL        string `json:"url"`
		RepoPrefix string `json:"repo_prefix"`
	}{s.URL(), s.RepoPrefix()}
	if err := json.NewEncoder(stdout).Encode(listening); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		io.Copy(io.Discard, stdin)
	}()
	select {
	case <-ctx.Done():
	case <-ended:
	}
	return s.Close()
}
