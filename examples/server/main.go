// Command server is a workspace server that has only the part with libmol: GET /image/RUNTIME answers with the
// image to start.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

func main() {
	if err := run(); err != nil {
		slog.Error("the server failed", "error", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	options := mol.OptionsFromEnv()
	options.Logger = slog.Default()
	client, err := mol.New(options) // fails if a setting is invalid or the library is not linked in
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()

	listener, err := net.Listen("tcp", os.Getenv("LISTEN")) // "": a free port on all addresses
	if err != nil {
		return err
	}
	slog.Info("the server is listening", "address", listener.Addr().String(), "libmol", mol.LibraryVersion(),
		"mode", mol.Resolve().Mode)

	server := &http.Server{Handler: handler(client.EnsureLocalImage), ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	stop()             // a second signal ends the process at once
	_ = client.Close() // cancels the running calls, so that their requests end
	ending, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return server.Shutdown(ending)
}

// An answer is the image to start. With Pull, the image must be pulled first, and only Ref is set.
type answer struct {
	Ref      string `json:"ref"`
	Pull     bool   `json:"pull"`
	Platform string `json:"platform,omitempty"`
	Endpoint string `json:"endpoint,omitempty"` // the engine that has the image
	CacheHit bool   `json:"cache_hit"`
}

// handler serves GET /image/RUNTIME. It builds images with ensure, which is [mol.Client.EnsureLocalImage] except in tests.
func handler(ensure func(ctx context.Context, runtime string) (mol.Image, error)) http.Handler {
	choose := func(ctx context.Context, runtime string) (answer, error) {
		registry := mol.Resolve()
		if registry.Mode == mol.RegistryModeSaaS {
			if err := (mol.Options{}).CheckRuntime(runtime); err != nil {
				return answer{}, err
			}
			return answer{Ref: registry.Prefix + "/workspace-template-" + runtime + ":latest", Pull: true}, nil
		}
		image, err := ensure(ctx, runtime)
		return answer{Ref: image.Ref, Platform: image.Platform, Endpoint: image.Endpoint, CacheHit: image.CacheHit}, err
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /image/{runtime}", func(w http.ResponseWriter, r *http.Request) {
		// The request's context has no deadline. It ends when the client disconnects, which also stops the build.
		found, err := choose(r.Context(), r.PathValue("runtime"))
		if err != nil {
			slog.Warn("no image", "runtime", r.PathValue("runtime"), "error", err)
		}
		switch {
		case errors.Is(err, mol.ErrUnknownRuntime):
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadGateway)
		default:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(found)
		}
	})
	return mux
}
