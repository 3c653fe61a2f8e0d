package main

import (
	"bytes"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// recordingProxy forwards connections to a server and records how many connections a client opens, when it requests
// builds, and when the bytes that it sends have been forwarded.
type recordingProxy struct {
	listener          net.Listener
	network, upstream string
	done              sync.WaitGroup

	mu          sync.Mutex
	connections int
	builds      []time.Time
	sent        []sentBytes
	live        map[net.Conn]bool
}

// sentBytes is the total number of bytes sent until a time.
type sentBytes struct {
	at    time.Time
	bytes int64
}

func newRecordingProxy(network, listen, upstream string) (*recordingProxy, error) {
	listener, err := net.Listen(network, listen)
	if err != nil {
		return nil, err
	}
	p := &recordingProxy{listener: listener, network: network, upstream: upstream, live: map[net.Conn]bool{}}
	p.done.Go(p.serve)
	return p, nil
}

func (p *recordingProxy) address() string { return p.listener.Addr().String() }

func (p *recordingProxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	for conn := range p.live {
		_ = conn.Close()
	}
	p.mu.Unlock()
	p.done.Wait()
}

// reset deletes all records.
func (p *recordingProxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.connections, p.builds, p.sent = 0, nil, nil
}

// seen returns the number of connections and of build requests.
func (p *recordingProxy) seen() (connections, builds int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connections, len(p.builds)
}

// firstBuild returns the time of the first build request.
func (p *recordingProxy) firstBuild() (time.Time, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.builds) == 0 {
		return time.Time{}, errors.New("no build was requested")
	}
	return p.builds[0], nil
}

// contextTime returns the time from the build request until 99.9 % of the client's bytes were sent. The client sends the
// rest while the engine builds.
func (p *recordingProxy) contextTime() (time.Duration, error) {
	started, err := p.firstBuild()
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	total := p.sent[len(p.sent)-1].bytes
	for _, sent := range p.sent {
		if sent.bytes >= total-total/1000 {
			return sent.at.Sub(started), nil
		}
	}
	return 0, errors.New("nothing was sent")
}

func (p *recordingProxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial(p.network, p.upstream)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.connections++
		p.live[client], p.live[server] = true, true
		p.mu.Unlock()
		p.done.Go(func() {
			var both sync.WaitGroup
			both.Go(func() { p.pass(server, client, p.record) })
			both.Go(func() { p.pass(client, server, nil) })
			both.Wait()
			_ = client.Close()
			_ = server.Close()
			p.mu.Lock()
			delete(p.live, client)
			delete(p.live, server)
			p.mu.Unlock()
		})
	}
}

func (p *recordingProxy) pass(to, from net.Conn, record func([]byte)) {
	buffer := make([]byte, 128<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if record != nil {
				record(buffer[:n])
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

// record records a chunk that a client sent. A request begins at the start of a chunk, because these clients do not
// pipeline requests.
func (p *recordingProxy) record(chunk []byte) {
	now := time.Now()
	line, _, _ := bytes.Cut(chunk[:min(len(chunk), 256)], []byte("\n"))
	build := bytes.HasPrefix(line, []byte("POST /")) && bytes.Contains(line, []byte("/build?"))
	p.mu.Lock()
	defer p.mu.Unlock()
	if build {
		p.builds = append(p.builds, now)
	}
	bytes := int64(len(chunk))
	if n := len(p.sent); n > 0 {
		bytes += p.sent[n-1].bytes
	}
	p.sent = append(p.sent, sentBytes{now, bytes})
}

// newEngineProxy returns a proxy for the engine's socket.
func newEngineProxy(path, upstream string) (*recordingProxy, error) {
	_ = os.Remove(path)
	return newRecordingProxy("unix", path, upstream)
}
