// The sample workspace: a server that answers /health on port 8000.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/signal"
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

func health(w http.ResponseWriter, r *http.Request) {
	// VERSION is a file of the template. It shows which commit the image was built from.
	version, err := os.ReadFile("VERSION")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]string{
		"status":  "ok",
		"runtime": os.Getenv("RUNTIME"),
		"version": strings.TrimSpace(string(version)),
	})
}
