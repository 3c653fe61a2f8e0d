package mol

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// EnsureLocalImage is [Client.EnsureLocalImage] with the options of the environment, which is read at each call
// ([OptionsFromEnv]). It returns the reference of the image to start. It is meant as a hook in a server's Start:
//
//	var ensureLocalImageHook = mol.EnsureLocalImage
//
// All calls share one client. When the environment changes, later calls use a new client, and the old one is closed
// when its last call returns. Events and results are logged; see [SetLogger].
func EnsureLocalImage(ctx context.Context, runtime string) (string, error) {
	image, err := ensureLocalImage(ctx, runtime)
	logResult(image, err)
	return image.Ref, err
}

func ensureLocalImage(ctx context.Context, runtime string) (Image, error) {
	// Checked before there is a client, because creating one reads the machine's certificates.
	token := os.Getenv(envToken)
	if err := (Options{Token: token}).CheckRuntime(runtime); err != nil {
		return Image{}, err
	}
	if ctx.Err() != nil {
		return Image{}, contextError(ctx, runtime, nil, masker(token))
	}
	return withShared(ctx, func(c *Client, ctx context.Context) (Image, error) { return c.EnsureLocalImage(ctx, runtime) })
}

// EngineHost is [Client.EngineHost] with the options of the environment: the engine that [EnsureLocalImage] uses. A
// server that takes its engine from DOCKER_HOST alone, as client.FromEnv of Docker's Go client does, finds no docker
// contexts and no rootless engines. Docker's Go client takes the address with
//
//	client.NewClientWithOpts(client.WithHost(host), …)
func EngineHost(ctx context.Context) (string, error) {
	return withShared(ctx, (*Client).EngineHost)
}

// withShared calls do with the shared client for the options of the environment.
func withShared[T any](ctx context.Context, do func(*Client, context.Context) (T, error)) (T, error) {
	shared, err := acquireShared()
	if err != nil {
		var none T
		return none, err
	}
	defer sharedClients.release(shared)
	return do(shared.Client, ctx)
}

// acquireShared returns the client of all functions of this package that read the environment. Each of them may be the
// first one, so all of them open it with the same options.
func acquireShared() (*sharedClient, error) { return sharedClients.acquire(sharedOptions()) }

func sharedOptions() Options {
	o := OptionsFromEnv()
	o.logger = packageLogger
	// The library refuses a path that begins with ~.
	if o.CacheDir != "" && !filepath.IsAbs(o.CacheDir) && !strings.HasPrefix(o.CacheDir, "~") {
		if dir, err := firstWorkingDirectory(); err == nil {
			o.CacheDir = filepath.Join(dir, o.CacheDir)
		}
	}
	return o
}

// firstWorkingDirectory is the working directory of the first call. A relative cache folder is relative to it, so that
// the cache stays the same when the server changes its working directory.
var firstWorkingDirectory = sync.OnceValues(os.Getwd)

// logResult logs the result of a call; the client logs its events. The handler is code of the server: a panic in it is
// caught, and a call waits for a slow one no longer than for its events.
func logResult(image Image, err error) {
	logger := packageLogger()
	if logger == nil {
		return
	}
	level, text, attrs := resultRecord(image, err)
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		defer func() { _ = recover() }()
		logger.LogAttrs(context.Background(), level, text, attrs...)
	}()
	timer := time.NewTimer(eventGrace)
	defer timer.Stop()
	select {
	case <-logged:
	case <-timer.C:
	}
}

// resultRecord returns the log record for the result of a call, with the fields that are set. A call that its caller has
// cancelled is not a failure.
func resultRecord(image Image, err error) (slog.Level, string, []slog.Attr) {
	if err == nil {
		return slog.LevelInfo, "the workspace image is ready", []slog.Attr{
			slog.String("runtime", image.Runtime), slog.String("ref", image.Ref), slog.Bool("cache_hit", image.CacheHit),
			slog.Duration("duration", image.Timings.Total),
		}
	}
	detail := &Error{Code: CodeInternal}
	if !errors.As(err, &detail) {
		detail.Message = err.Error()
	}
	level := slog.LevelWarn
	if detail.Code == CodeCanceled {
		level = slog.LevelInfo
	}
	var attrs []slog.Attr
	for _, field := range []struct{ name, value string }{
		{"runtime", detail.Runtime}, {"code", detail.Code.String()}, {"url", detail.URL}, {"step", detail.Step},
		{"hint", detail.Hint},
	} {
		if field.value != "" {
			attrs = append(attrs, slog.String(field.name, field.value))
		}
	}
	return level, "there is no workspace image: " + detail.headline(), attrs
}

// Clients are closed in the background: Close waits.
var sharedClients = clientPool{open: New, close: func(c *Client) { go func() { _ = c.Close() }() }}

// clientPool keeps the client of the most recently used options.
type clientPool struct {
	open  func(Options) (*Client, error)
	close func(*Client)

	mu      sync.Mutex
	current *sharedClient
}

type sharedClient struct {
	*Client
	settings []setting
	uses     int
}

func (p *clientPool) acquire(options Options) (*sharedClient, error) {
	settings, err := options.settings()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil || !slices.Equal(p.current.settings, settings) {
		c, err := p.open(options)
		if err != nil {
			return nil, err
		}
		old := p.current
		p.current = &sharedClient{Client: c, settings: settings}
		p.closeIfUnused(old)
	}
	p.current.uses++
	return p.current, nil
}

func (p *clientPool) release(c *sharedClient) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.uses--
	p.closeIfUnused(c)
}

// closeIfUnused closes a client that is no longer current and has no calls.
func (p *clientPool) closeIfUnused(c *sharedClient) {
	if c != nil && c != p.current && c.uses == 0 {
		p.close(c.Client)
	}
}
