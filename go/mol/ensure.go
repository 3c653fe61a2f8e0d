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

// EnsureLocalImage is [Client.EnsureLocalImage] with the options of the environment, which is read at each
// call ([OptionsFromEnv]), and gives the reference of the image to start. It is made for a server's Start:
//
//	var ensureLocalImageHook = mol.EnsureLocalImage
//
// All calls share one client. When the environment changes, later calls get a new one, and the old one is
// closed when its last call ends. What they do is logged; see [SetLogger].
func EnsureLocalImage(ctx context.Context, runtime string) (string, error) {
	image, err := ensureLocalImage(ctx, runtime)
	logResult(image, err)
	return image.Ref, err
}

func ensureLocalImage(ctx context.Context, runtime string) (Image, error) {
	// This comes first: every other error shows the name as it is. It needs no client, and so no file.
	if err := (Options{Token: os.Getenv(envToken)}).CheckRuntime(runtime); err != nil {
		return Image{}, err
	}
	if ctx.Err() != nil {
		return Image{}, contextError(ctx, runtime, nil)
	}
	shared, err := sharedClients.acquire(hookOptions())
	if err != nil {
		return Image{}, err
	}
	defer sharedClients.release(shared)
	return shared.EnsureLocalImage(ctx, runtime)
}

// EngineHost is [Client.EngineHost] with the options of the environment: the engine that [EnsureLocalImage] uses. A
// server that finds its engine by DOCKER_HOST alone, as client.FromEnv of Docker's Go client does, knows nothing of docker
// contexts and of rootless engines; it is told where to look with
//
//	client.NewClientWithOpts(client.WithHost(host), …)
func EngineHost(ctx context.Context) (string, error) {
	shared, err := sharedClients.acquire(hookOptions())
	if err != nil {
		return "", err
	}
	defer sharedClients.release(shared)
	return shared.EngineHost(ctx)
}

// hookOptions are the options of the functions without a client.
func hookOptions() Options {
	o := OptionsFromEnv()
	o.logger = packageLogger
	// A path that begins with ~ stays as it is, for the library to refuse.
	if o.CacheDir != "" && !filepath.IsAbs(o.CacheDir) && !strings.HasPrefix(o.CacheDir, "~") {
		if dir, err := firstWorkingDirectory(); err == nil {
			o.CacheDir = filepath.Join(dir, o.CacheDir)
		}
	}
	return o
}

// firstWorkingDirectory is where a relative cache folder begins: a server that changes its working directory must not
// change its cache with it.
var firstWorkingDirectory = sync.OnceValues(os.Getwd)

// logResult logs how a call ended. What happened on the way is logged by the client. The handler is the server's code: it
// may panic, which nobody else would catch, and a call does not wait for a slow one longer than for its events.
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

// resultRecord is how a call ended, as a log record with the fields that are set. A call that its caller cancelled is no
// failure.
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
	return level, "there is no workspace image: " + detail.Message, attrs
}

// Nobody waits for a client to close.
var sharedClients = clientPool{open: New, close: func(c *Client) { go func() { _ = c.Close() }() }}

// clientPool keeps the client of the options that were asked for last.
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

// closeIfUnused closes a client that is not current any more.
func (p *clientPool) closeIfUnused(c *sharedClient) {
	if c != nil && c != p.current && c.uses == 0 {
		p.close(c.Client)
	}
}
