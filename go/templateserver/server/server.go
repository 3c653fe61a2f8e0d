// Package server is a small Gitea on loopback, for the demo and the tests: the two API calls that
// libmol makes, and those it makes where something is wrong, git smart HTTP, and a control surface with which a test moves branches and makes
// the server misbehave.
//
// What it answers has the shape of a real Gitea's (1.23), field for field: a test compares it with
// tests/vectors/gitea, which `tests/run gitea` records. The git side is git's own
// git-http-backend over bare repositories, so what is fetched is what git serves.
//
// The control surface is for tests in any language; each call is also a method of Server. Bodies
// are JSON, and the types named here are their documentation:
//
//	PUT    /_control/repos/{org}/{repo}          make or change a repository (Repo)
//	DELETE /_control/repos/{org}/{repo}          remove it
//	POST   /_control/repos/{org}/{repo}/commits  make a commit (Commit), answered by {"sha":"…"}
//	GET    /_control/requests                    what was asked so far ([]Request); DELETE clears it
//	PUT    /_control/faults                      how to misbehave ([]Fault); DELETE clears it
//
// The same commits have the same ids at every run: dates count from a fixed day, by the commit.
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

// RepoNamePrefix comes before the runtime's name in the name of a template repository.
const RepoNamePrefix = "molecule-ai-workspace-template-"

// Options say what a server serves. The zero value is an empty server on a free port.
type Options struct {
	// Listen is the address, on loopback; "127.0.0.1:0" when empty.
	Listen string
	// Root holds the repositories as <org>/<name>.git. When empty, a temporary folder that Close
	// removes.
	Root string
	// Templates is a folder of templates: each folder <runtime> in it is published as the
	// repository <Org>/molecule-ai-workspace-template-<runtime>. Empty: none.
	Templates string
	// Org owns the published templates; "molecule-ai" when empty.
	Org string
	// Token, when set, is needed for every API and git request.
	Token string
	// BasePath serves everything below a path, as a Gitea with a ROOT_URL of its own does.
	BasePath string
	// Compact leaves out the white space in API answers, as Gitea itself does.
	Compact bool
	// SortedKeys sends API answers with their keys in alphabetical order and an "id" in every user
	// object: commit.author and commit.committer, with their ids, then come before commit.id.
	SortedKeys bool
	// Log gets what goes wrong inside; nil discards it.
	Log io.Writer
}

// Server is a running template server. Its methods may be called from several goroutines.
type Server struct {
	options  Options
	origin   string // "http://127.0.0.1:PORT", without the base path
	base     string // "" or "/path", no slash at the end
	tempRoot string // removed by Close, when not ""

	store  *store
	faults faults
	log    requestLog
	errors *log.Logger

	http   *http.Server
	stop   context.CancelFunc
	served chan struct{}
	once   sync.Once

	// active is held for reading by every request, and for writing by Close.
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
			return fmt.Errorf("cannot make a folder for the repositories: %w", err)
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

// checkLoopback refuses an address that another machine could reach: who can reach the control
// surface can write files.
func checkLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is no address to listen on: %w", address, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("%q is not on loopback; listen on 127.0.0.1, [::1] or localhost", address)
	}
	return nil
}

// URL is the address of the server, base path included, without a slash at the end.
func (s *Server) URL() string { return s.origin + s.base }

// RepoPrefix is what comes before the runtime's name in the URL of a template repository: the
// value for MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX.
func (s *Server) RepoPrefix() string {
	return s.URL() + "/" + s.options.Org + "/" + RepoNamePrefix
}

// Root is the folder of the repositories.
func (s *Server) Root() string { return s.store.root }

// Close ends all connections and waits until every request's git process is gone. It may be called
// more than once.
func (s *Server) Close() error {
	var err error
	s.once.Do(func() {
		s.stop()
		err = s.http.Close()
		<-s.served
		s.active.Lock() // waits for the requests under way
		s.closed = true
		s.active.Unlock()
		if s.tempRoot != "" {
			err = errors.Join(err, os.RemoveAll(s.tempRoot))
		}
	})
	return err
}

// ServeHTTP takes a request to the control surface, to a fault that was asked for, or to the
// service that it is for.
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

	// Read first: only then does the context end when the client goes away, a fault may depend on it, and CGI
	// takes no chunked body.
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

// stripBase removes the base path. The control surface answers with and without it.
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

// Services, as the request log names them.
const (
	serviceAPI   = "api"
	serviceGit   = "git"
	serviceOther = "other"
)

// requestRoute is a request's path taken apart.
type requestRoute struct {
	service   string
	org, repo string
	rest      string // after the repository: "/branches/main" (decoded) or "/info/refs"
}

var gitPath = regexp.MustCompile(`^/(info/refs|git-upload-pack|git-receive-pack|HEAD|objects/.+)$`)

// parseRoute takes an escaped path apart. A slash within a branch name may arrive as "/" or "%2F";
// Gitea takes both.
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

// statusWriter remembers the status for the request log.
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

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// authorized tells whether a request carries the server's token, in any of the forms that Gitea
// takes: "token T", "Bearer T", or T as the user name or the password of Basic.
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

// visible tells whether a repository exists for the client: a private one needs a token, which
// only a server with a token can check.
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
