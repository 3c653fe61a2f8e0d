// Dockercontext lists the files of a folder that docker would send as the build context: the docker CLI with the classic
// builder, and buildx with BuildKit. It is the reference for the tests of .dockerignore: it runs the code of the current
// docker CLI (the packages that its build command calls, in the same order) and of buildx (the file system that its
// session serves).
//
// It reads one folder path per line and answers each with one line of JSON.
package main

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/docker/cli/cli/command/image/build"
	"github.com/moby/go-archive"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/tonistiigi/fsutil"
)

// Answer has the choices of both builders.
type Answer struct {
	// Patterns are the lines of the ignore file as BuildKit sends them to buildx.
	Patterns []string `json:"patterns"`
	Classic  Choice   `json:"classic"`
	BuildKit Choice   `json:"buildkit"`
}

// Choice has the files that a builder would get, or the error.
type Choice struct {
	// Paths are sorted. The paths of folders end with a slash.
	Paths []string `json:"paths"`
	Error string   `json:"error,omitempty"`
}

func main() {
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "dockercontext:", err)
		os.Exit(1)
	}
}

func serve(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	answers := json.NewEncoder(out)
	for lines.Scan() {
		folder := lines.Text()
		answer := Answer{Classic: choice(classic(folder))}
		patterns, err := readPatterns(folder)
		if err != nil {
			answer.BuildKit = choice(nil, err)
		} else {
			answer.Patterns = patterns
			answer.BuildKit = choice(buildKit(context.Background(), folder, patterns))
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

func choice(paths []string, err error) Choice {
	if err != nil {
		return Choice{Error: err.Error()}
	}
	sort.Strings(paths)
	return Choice{Paths: paths}
}

// classic selects files like the docker CLI's build command for the classic builder.
func classic(folder string) ([]string, error) {
	const dockerfile = "Dockerfile"
	excludes, err := build.ReadDockerignore(folder)
	if err != nil {
		return nil, err
	}
	if err := build.ValidateContextDirectory(folder, excludes); err != nil {
		return nil, fmt.Errorf("checking context: %w", err)
	}
	excludes = build.TrimBuildFilesFromExcludes(excludes, dockerfile, false)
	stream, err := archive.TarWithOptions(folder, &archive.TarOptions{
		ExcludePatterns: excludes,
		ChownOpts:       &archive.ChownOpts{},
	})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var paths []string
	entries := tar.NewReader(stream)
	for {
		entry, err := entries.Next()
		switch {
		case errors.Is(err, io.EOF):
			return paths, nil
		case err != nil:
			return nil, err
		}
		path := strings.TrimSuffix(entry.Name, "/")
		if entry.Typeflag == tar.TypeDir {
			path += "/"
		}
		paths = append(paths, path)
	}
}

// readPatterns reads .dockerignore like BuildKit's frontend. Without the file there are no patterns.
func readPatterns(folder string) ([]string, error) {
	file, err := os.Open(filepath.Join(folder, ".dockerignore"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return ignorefile.ReadAll(file)
}

// buildKit selects files like buildx, which serves the folder to BuildKit without the excluded files.
func buildKit(ctx context.Context, folder string, excludes []string) ([]string, error) {
	root, err := fsutil.NewFS(folder)
	if err != nil {
		return nil, err
	}
	filtered, err := fsutil.NewFilterFS(root, &fsutil.FilterOpt{ExcludePatterns: excludes})
	if err != nil {
		return nil, err
	}
	var paths []string
	err = filtered.Walk(ctx, "", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			path += "/"
		}
		paths = append(paths, path)
		return nil
	})
	return paths, err
}
