// The sample workspace: a server that answers /health on port 8000 with a list of its files.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	// The first process of a container has no default signal handlers. Without these, stopping the
	// container would always take the engine's whole grace period.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	http.HandleFunc("GET /health", health)
	failed := make(chan error, 1)
	go func() { failed <- http.ListenAndServe(":8000", nil) }()
	select {
	case <-ctx.Done():
	case err := <-failed:
		fmt.Fprintln(os.Stderr, "workspace:", err)
		os.Exit(1)
	}
}

type file struct {
	Path string `json:"path"`
	Mode string `json:"mode"`           // octal permissions, as "0644"
	Link string `json:"link,omitempty"` // target of a symbolic link
}

func health(w http.ResponseWriter, r *http.Request) {
	version, err := os.ReadFile("VERSION")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	files, err := list(".")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{
		"status":  "ok",
		"runtime": os.Getenv("RUNTIME"),
		"version": strings.TrimSpace(string(version)),
		"files":   files,
	})
}

// list returns the files sorted by name, so that answers can be compared.
func list(root string) ([]file, error) {
	var files []file
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		item := file{Path: path, Mode: fmt.Sprintf("%04o", info.Mode().Perm())}
		if info.Mode()&fs.ModeSymlink != 0 {
			if item.Link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		files = append(files, item)
		return nil
	})
	return files, err
}
