// Command goproxy writes one version of a Go module into a folder that has the layout of a Go module proxy.
//
//	goproxy -out FOLDER -module PATH -version v1.2.3 -time 2026-01-02T15:04:05Z SOURCE
//
// SOURCE is the module's root folder. Any web server can serve the result, and `GOPROXY=file://…` reads it as it is:
// https://go.dev/ref/mod#goproxy-protocol. The same files give the same bytes: golang.org/x/mod/zip writes no times.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

func main() {
	out := flag.String("out", "", "folder of the proxy")
	path := flag.String("module", "", "module path")
	name := flag.String("version", "", "version, with a leading v")
	at := flag.String("time", "", "time of the version, in RFC 3339")
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := write(*out, module.Version{Path: *path, Version: *name}, *at, flag.Arg(0)); err != nil {
		fmt.Fprintf(os.Stderr, "goproxy: %s@%s: %v\n", *path, *name, err)
		os.Exit(1)
	}
}

func write(out string, version module.Version, at, source string) error {
	if err := module.Check(version.Path, version.Version); err != nil {
		return err
	}
	when, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return err
	}
	escaped, err := module.EscapePath(version.Path)
	if err != nil {
		return err
	}
	mod, err := os.ReadFile(filepath.Join(source, "go.mod"))
	if err != nil {
		return err
	}
	if declared := modfile.ModulePath(mod); declared != version.Path {
		return fmt.Errorf("%s/go.mod declares %s", source, declared)
	}
	info, err := json.Marshal(struct {
		Version string
		Time    time.Time
	}{version.Version, when.UTC()})
	if err != nil {
		return err
	}

	folder := filepath.Join(out, filepath.FromSlash(escaped), "@v")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	base := filepath.Join(folder, version.Version)
	if err := writeZip(base+".zip", version, source); err != nil {
		return err
	}
	if err := os.WriteFile(base+".mod", mod, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(base+".info", info, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "list"), []byte(version.Version+"\n"), 0o644)
}

func writeZip(name string, version module.Version, source string) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(zip.CreateFromDir(file, version, source), file.Close())
}
