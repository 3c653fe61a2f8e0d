package mol

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
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
	if dir, err := firstWorkingDirectory(); err == nil && o.CacheDir != "" && !filepath.IsAbs(o.CacheDir) {
		o.CacheDir = filepath.Join(dir, o.CacheDir)
	}
	return o
}

// firstWorkingDirectory is where a relative cache folder begins: a server that changes its working directory must not
// change its cache with it.
var firstWorkingDirectory = sync.OnceValues(os.Getwd)

// logResult logs how a call ended. What happened on the way is logged by the client.
func logResult(image Image, err error) {
	logger := packageLogger()
	if logger == nil {
		return
	}
	if err == nil {
		logger.Info("the workspace image is ready", "runtime", image.Runtime, "ref", image.Ref,
			"cache_hit", image.CacheHit, "duration", image.Timings.Total)
		return
	}
	var detail *Error
	if errors.As(err, &detail) {
		logger.Warn("there is no workspace image: "+detail.Message, "runtime", detail.Runtime,
			"code", detail.Code.String(), "url", detail.URL, "hint", detail.Hint)
	}
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
