// Package server is a small server on loopback with Gitea's API, for the demo and the tests. It has the API
// calls that libmol makes for an image (a branch, a repository, references, a tree, a commit), git smart HTTP, and a
// control API, with which a test moves branches and simulates errors.
//
// Its answers have the same fields as those of a real Gitea (1.23): a test compares them with
// tests/vectors/gitea, which `tests/run gitea` records. git's own git-http-backend serves the bare
// repositories, so fetches get what git serves.
//
// The control API is for tests in any language. Each call is also a method of Server. Bodies are JSON; the
// types named here document them:
//
//	PUT    /_control/repos/{org}/{repo}          create or change a repository (Repo)
//	DELETE /_control/repos/{org}/{repo}          remove it
//	POST   /_control/repos/{org}/{repo}/commits  create a commit (Commit); the answer is {"sha":"…"}
//	GET    /_control/requests                    the requests so far ([]Request); DELETE clears them
//	PUT    /_control/faults                      the simulated errors ([]Fault); DELETE clears them
//
// The same commits have the same ids in every run, because dates are counted from a fixed day.
package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// RepoNamePrefix is the part of a template repository's name before the runtime's name.
const RepoNamePrefix = "molecule-ai-workspace-template-"

// Options are the settings of a server. The zero value is an empty server on a free port.
type Options struct {
	// Listen is the address, on loopback. The default is "127.0.0.1:0".
	Listen string
	// Root is the folder of the repositories, <org>/<name>.git. The default is a temporary folder that
	// Close removes.
	Root string
	// Templates is a folder of templates: each folder <runtime> in it is published as the
	// repository <Org>/molecule-ai-workspace-template-<runtime>.
	Templates string
	// Org owns the published templates. The default is "molecule-ai".
	Org string
	// Token, if set, is required for every API and git request.
	Token string
	// BasePath is the path below which everything is served, as in the ROOT_URL of a Gitea.
	BasePath string
	// Compact omits the white space in API answers, as Gitea does.
	Compact bool
	// SortedKeys sends API answers with their keys in alphabetical order and an "id" in every user
	// object: commit.author and commit.committer, with their ids, then come before commit.id.
	SortedKeys bool
	// Log receives internal errors; nil discards them.
	Log io.Writer
}

// Server is a running template server. Its methods are safe for concurrent use.
type Server struct {
	options  Options
	origin   string // "http://127.0.0.1:PORT", without the base path
	base     string // "" or "/path", without a trailing slash
	tempRoot string // removed by Close, unless ""

	store  *store
	faults faults
	log    requestLog
	errors *log.Logger

	http   *http.Server
	stop   context.CancelFunc
	served chan struct{}
	once   sync.Once

	// active is locked for reading by each request, and for writing by Close.
	active sync.RWMutex
	closed bool
}

// Start publishes the templates and listens. The caller closes the server.
func Start(options Options) (*Server, error) {
	if options.Listen == "" {
		options.Listen = "127.0.0.1:0"
	}
	if options.Org == "" {
		options.Org = "molecule-ai"
	}
	if options.Log == nil {
		options.Log = io.Discard
	}
	if err := checkLoopback(options.Listen); err != nil {
		return nil, err
	}
	s := &Server{
		options: options,
		errors:  log.New(options.Log, "templateserver: ", 0),
		served:  make(chan struct{}),
	}
	if base := strings.Trim(options.BasePath, "/"); base != "" {
		s.base = "/" + base
	}
	if err := s.start(); err != nil {
		if s.tempRoot != "" {
			os.RemoveAll(s.tempRoot)
		}
		return nil, err
	}
	return s, nil
}

func (s *Server) start() error {
	root := s.options.Root
	if root == "" {
		dir, err := os.MkdirTemp("", "templateserver-")
		if err != nil {
			return fmt.Errorf("cannot create a folder for the repositories: %w", err)
		}
		s.tempRoot, root = dir, dir
	}
	store, err := openStore(root)
	if err != nil {
		return err
	}
	s.store = store
	if s.options.Templates != "" {
		if err := store.publishAll(s.options.Org, s.options.Templates); err != nil {
			return err
		}
	}

	listener, err := net.Listen("tcp", s.options.Listen)
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	s.origin = "http://" + listener.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.http = &http.Server{
		Handler:           s,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          s.errors,
		ReadHeaderTimeout: time.Minute,
	}
	go func() {
		defer close(s.served)
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.errors.Print(err)
		}
	}()
	return nil
}

// checkLoopback rejects an address that other machines can reach, because the control API can write files.
func checkLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not a valid address: %w", address, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("%q is not on loopback; listen on 127.0.0.1, [::1] or localhost", address)
	}
	return nil
}

// URL returns the address of the server with the base path, without a trailing slash.
func (s *Server) URL() string { return s.origin + s.base }

// RepoPrefix returns the URL of the template repositories up to the runtime's name, the value for
// MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX.
func (s *Server) RepoPrefix() string {
	return s.URL() + "/" + s.options.Org + "/" + RepoNamePrefix
}

// Root returns the folder of the repositories.
func (s *Server) Root() string { return s.store.root }

// Close closes all connections and waits for the git process of each request. It may be called more than
// once.
func (s *Server) Close() error {
	var err error
	s.once.Do(func() {
		s.stop()
		err = s.http.Close()
		<-s.served
		s.active.Lock() // waits for the running requests
		s.closed = true
		s.active.Unlock()
		if s.tempRoot != "" {
			err = errors.Join(err, os.RemoveAll(s.tempRoot))
		}
	})
	return err
}

// ServeHTTP passes a request to the control API, to a matching fault, or to its service.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.active.RLock()
	defer s.active.RUnlock()
	if s.closed {
		return
	}

	path, inBase := s.stripBase(r.URL.EscapedPath())
	if rest, ok := strings.CutPrefix(path, controlPrefix); ok {
		s.serveControl(w, r, rest)
		return
	}

	route := parseRoute(path)
	if !inBase {
		route = requestRoute{service: serviceOther}
	}
	answer := &statusWriter{ResponseWriter: w}
	entry := s.log.begin(r, route.service)
	defer func() { s.log.end(entry, answer.status) }()

	// Read the body first: only then does the context end when the client disconnects. A fault may depend on
	// the body, and CGI does not support chunked bodies.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(answer, err.Error(), http.StatusBadRequest)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength, r.TransferEncoding = int64(len(body)), nil

	if fault := s.faults.take(requestTarget(r), body); fault != nil {
		s.serveFault(answer, r, route, fault)
		return
	}
	s.serve(answer, r, route)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, route requestRoute) {
	switch route.service {
	case serviceAPI:
		s.serveAPI(w, r, route)
	case serviceGit:
		s.serveGit(w, r, route)
	default:
		http.Error(w, "Not found.", http.StatusNotFound)
	}
}

// stripBase removes the base path. The control API answers with and without it.
func (s *Server) stripBase(path string) (string, bool) {
	if s.base == "" {
		return path, true
	}
	if rest, ok := strings.CutPrefix(path, s.base+"/"); ok {
		return "/" + rest, true
	}
	return path, false
}

func requestTarget(r *http.Request) string {
	if r.URL.RawQuery == "" {
		return r.URL.EscapedPath()
	}
	return r.URL.EscapedPath() + "?" + r.URL.RawQuery
}

// The names of the services in the request log.
const (
	serviceAPI   = "api"
	serviceGit   = "git"
	serviceOther = "other"
)

// requestRoute is a parsed request path.
type requestRoute struct {
	service   string
	org, repo string
	rest      string // the path after the repository: "/branches/main" (decoded) or "/info/refs"
}

var gitPath = regexp.MustCompile(`^/(info/refs|git-upload-pack|git-receive-pack|HEAD|objects/.+)$`)

// parseRoute parses an escaped path. A slash in a branch name may be "/" or "%2F"; Gitea accepts both.
func parseRoute(escaped string) requestRoute {
	if api, ok := strings.CutPrefix(escaped, "/api/v1/"); ok {
		route := requestRoute{service: serviceAPI}
		if repo, ok := strings.CutPrefix(api, "repos/"); ok {
			route.org, route.repo, route.rest = splitRepo(repo)
		}
		return route
	}
	org, repo, rest := splitRepo(strings.TrimPrefix(escaped, "/"))
	repo = strings.TrimSuffix(repo, ".git")
	if org != "" && repo != "" && gitPath.MatchString(rest) {
		return requestRoute{service: serviceGit, org: org, repo: repo, rest: rest}
	}
	return requestRoute{service: serviceOther}
}

func splitRepo(escaped string) (org, repo, rest string) {
	org, after, _ := strings.Cut(escaped, "/")
	repo, tail, found := strings.Cut(after, "/")
	if found {
		rest = "/" + tail
	}
	return unescape(org), unescape(repo), unescape(rest)
}

func unescape(part string) string {
	if plain, err := url.PathUnescape(part); err == nil {
		return plain
	}
	return part
}

// statusWriter records the status for the request log.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap gives http.ResponseController access to the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// authorized reports whether a request has the server's token, in any form that Gitea accepts: "token T",
// "Bearer T", or T as the user name or the password of Basic.
func (s *Server) authorized(r *http.Request) bool {
	if s.options.Token == "" {
		return true
	}
	if user, password, ok := r.BasicAuth(); ok {
		return user == s.options.Token || password == s.options.Token
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return (strings.EqualFold(scheme, "token") || strings.EqualFold(scheme, "bearer")) &&
		token == s.options.Token
}

// visible reports whether a repository exists for the client. A private one needs a token, which only a
// server with a token can check.
func (s *Server) visible(repo *repository) bool {
	return repo != nil && (!repo.settings().private || s.options.Token != "")
}

func absolute(path string) (string, error) {
	full, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("cannot use the folder %q: %w", path, err)
	}
	return full, nil
}
