package mol

import (
	"context"
	"os"
	"sync"
)

// EnsureLocalImage is [Client.EnsureLocalImage] with the options of the environment, which is read at each
// call ([OptionsFromEnv]), and gives the reference of the image to start. It is made for a server's Start:
//
//	var ensureLocalImageHook = mol.EnsureLocalImage
//
// All calls share one client. When the environment changes, later calls get a new one, and the old one is
// closed when its last call ends.
func EnsureLocalImage(ctx context.Context, runtime string) (string, error) {
	// Neither needs a client, and the first call of a process would make one.
	if !IsKnownRuntime(runtime) {
		return "", unknownRuntime(MaskTokenInString(runtime, os.Getenv("MOLECULE_GITEA_TOKEN")))
	}
	if ctx.Err() != nil {
		return "", contextError(ctx, runtime, nil)
	}
	shared, err := sharedClients.acquire(OptionsFromEnv())
	if err != nil {
		return "", err
	}
	defer sharedClients.release(shared)
	image, err := shared.EnsureLocalImage(ctx, runtime)
	if err != nil {
		return "", err
	}
	return image.Ref, nil
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
	key  optionsKey
	uses int
}

// optionsKey is what Options from the environment consist of. It can be compared, which Options cannot
// because of OnEvent.
type optionsKey struct {
	texts    [7]string
	switches [2]bool
	numbers  [3]int64
	env      environment
}

func (o *Options) key() optionsKey {
	return optionsKey{
		texts:    [...]string{o.RepoPrefix, o.Branch, o.Token, o.CacheDir, o.Platform, o.Isolation, o.DockerHost},
		switches: [...]bool{o.Offline, o.RuntimeVersionPin},
		numbers:  [...]int64{int64(o.StallGrace), int64(o.Ceiling), int64(o.MemoryMiB)},
		env:      o.env,
	}
}

func (p *clientPool) acquire(options Options) (*sharedClient, error) {
	key := options.key()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil || p.current.key != key {
		c, err := p.open(options)
		if err != nil {
			return nil, err
		}
		old := p.current
		p.current = &sharedClient{Client: c, key: key}
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
