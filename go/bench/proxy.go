package main

import (
	"bytes"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// front stands before a server, hands everything on, and sees what a client does: how many connections it
// opens, when it asks for a build, and when the bytes that it sends are through.
type front struct {
	listener          net.Listener
	network, upstream string
	done              sync.WaitGroup

	mu          sync.Mutex
	connections int
	builds      []time.Time
	sent        []passed
	live        map[net.Conn]bool
}

// passed is how much had been sent at a time.
type passed struct {
	at    time.Time
	bytes int64
}

func newFront(network, listen, upstream string) (*front, error) {
	listener, err := net.Listen(network, listen)
	if err != nil {
		return nil, err
	}
	f := &front{listener: listener, network: network, upstream: upstream, live: map[net.Conn]bool{}}
	f.done.Go(f.serve)
	return f, nil
}

func (f *front) address() string { return f.listener.Addr().String() }

func (f *front) close() {
	_ = f.listener.Close()
	f.mu.Lock()
	for conn := range f.live {
		_ = conn.Close()
	}
	f.mu.Unlock()
	f.done.Wait()
}

// reset forgets what was seen so far.
func (f *front) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.connections, f.builds, f.sent = 0, nil, nil
}

// seen is how many connections were opened and how many builds asked for.
func (f *front) seen() (connections, builds int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.connections, len(f.builds)
}

// firstBuild is when the first build was asked for.
func (f *front) firstBuild() (time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.builds) == 0 {
		return time.Time{}, errors.New("no build was asked for")
	}
	return f.builds[0], nil
}

// contextTime is how long it took from the request for the build until all but a thousandth of what the
// client sent was through: the rest is what it says while the engine builds.
func (f *front) contextTime() (time.Duration, error) {
	begun, err := f.firstBuild()
	if err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.sent[len(f.sent)-1].bytes
	for _, p := range f.sent {
		if p.bytes >= all-all/1000 {
			return p.at.Sub(begun), nil
		}
	}
	return 0, errors.New("nothing was sent")
}

func (f *front) serve() {
	for {
		client, err := f.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial(f.network, f.upstream)
		if err != nil {
			_ = client.Close()
			continue
		}
		f.mu.Lock()
		f.connections++
		f.live[client], f.live[server] = true, true
		f.mu.Unlock()
		f.done.Go(func() {
			var both sync.WaitGroup
			both.Go(func() { f.pass(server, client, f.note) })
			both.Go(func() { f.pass(client, server, nil) })
			both.Wait()
			_ = client.Close()
			_ = server.Close()
			f.mu.Lock()
			delete(f.live, client)
			delete(f.live, server)
			f.mu.Unlock()
		})
	}
}

func (f *front) pass(to, from net.Conn, note func([]byte)) {
	buffer := make([]byte, 128<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if note != nil {
				note(buffer[:n])
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				_ = from.Close()
				return
			}
		}
		if err != nil {
			if half, ok := to.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
			return
		}
	}
}

// note is told of every piece that a client sends. A request begins at the beginning of a piece: no client
// of these sends two at once.
func (f *front) note(piece []byte) {
	now := time.Now()
	line, _, _ := bytes.Cut(piece[:min(len(piece), 256)], []byte("\n"))
	build := bytes.HasPrefix(line, []byte("POST /")) && bytes.Contains(line, []byte("/build?"))
	f.mu.Lock()
	defer f.mu.Unlock()
	if build {
		f.builds = append(f.builds, now)
	}
	bytes := int64(len(piece))
	if n := len(f.sent); n > 0 {
		bytes += f.sent[n-1].bytes
	}
	f.sent = append(f.sent, passed{now, bytes})
}

// unixFront is a front before the engine.
func unixFront(path, upstream string) (*front, error) {
	_ = os.Remove(path)
	return newFront("unix", path, upstream)
}
