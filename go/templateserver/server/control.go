package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

const controlPrefix = "/_control/"

// Repo has the settings of a repository.
type Repo struct {
	// DefaultBranch, if set, becomes the default branch. It need not exist.
	DefaultBranch string `json:"default_branch,omitempty"`
	// Private hides the repository from clients without a token.
	Private bool `json:"private,omitempty"`
	// Forbidden answers 403, as Gitea does for a token without the scope read:repository.
	Forbidden bool `json:"forbidden,omitempty"`
	// Empty removes all branches. A new repository is always empty.
	Empty bool `json:"empty,omitempty"`
}

// PutRepo creates the repository "org/name" or changes its settings.
func (s *Server) PutRepo(name string, wanted Repo) error {
	org, repoName, _ := strings.Cut(name, "/")
	repo, err := s.store.create(org, repoName)
	if err != nil {
		return err
	}
	if wanted.DefaultBranch != "" {
		if err := repo.setDefaultBranch(wanted.DefaultBranch); err != nil {
			return err
		}
	}
	if wanted.Empty {
		if err := repo.empty(); err != nil {
			return err
		}
	}
	repo.mutex.Lock()
	repo.set = settings{private: wanted.Private, forbidden: wanted.Forbidden}
	repo.mutex.Unlock()
	return nil
}

// DeleteRepo removes the repository "org/name".
func (s *Server) DeleteRepo(name string) error {
	org, repoName, _ := strings.Cut(name, "/")
	return s.store.remove(org, repoName)
}

// Commit creates a commit in the repository "org/name" and returns its id. It creates the repository
// if it does not exist.
func (s *Server) Commit(name string, commit Commit) (string, error) {
	org, repoName, _ := strings.Cut(name, "/")
	repo, err := s.store.create(org, repoName)
	if err != nil {
		return "", err
	}
	return repo.commit(commit)
}

// SetFaults replaces the list of faults. The first one that matches a request is applied.
func (s *Server) SetFaults(list ...Fault) error { return s.faults.set(list) }

// Requests returns the requests since the start, or since ClearRequests, in the order of arrival, without
// those to the control API.
func (s *Server) Requests() []Request { return s.log.list() }

// ClearRequests clears the list of requests.
func (s *Server) ClearRequests() { s.log.clear() }

func (s *Server) serveControl(w http.ResponseWriter, r *http.Request, path string) {
	result, err := s.control(r, path)
	switch {
	case errors.Is(err, errNoSuchControl):
		controlAnswer(w, http.StatusNotFound, map[string]string{"error": err.Error()})
	case err != nil:
		controlAnswer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
	case result == nil:
		w.WriteHeader(http.StatusNoContent)
	default:
		controlAnswer(w, http.StatusOK, result)
	}
}

var errNoSuchControl = errors.New("the control API has no such call")

func (s *Server) control(r *http.Request, path string) (any, error) {
	if name, ok := strings.CutPrefix(path, "repos/"); ok {
		return s.controlRepo(r, strings.TrimSuffix(name, "/"))
	}
	switch r.Method + " " + path {
	case "GET requests":
		return s.Requests(), nil
	case "DELETE requests":
		s.ClearRequests()
		return nil, nil
	case "PUT faults":
		var list []Fault
		if err := decode(r, &list); err != nil {
			return nil, err
		}
		return nil, s.SetFaults(list...)
	case "DELETE faults":
		return nil, s.SetFaults()
	}
	return nil, fmt.Errorf("%w: %s %s%s", errNoSuchControl, r.Method, controlPrefix, path)
}

func (s *Server) controlRepo(r *http.Request, path string) (any, error) {
	name, commits := strings.CutSuffix(path, "/commits")
	switch {
	case commits && r.Method == http.MethodPost:
		var commit Commit
		if err := decode(r, &commit); err != nil {
			return nil, err
		}
		sha, err := s.Commit(name, commit)
		if err != nil {
			return nil, err
		}
		return map[string]string{"sha": sha}, nil
	case !commits && r.Method == http.MethodPut:
		var repo Repo
		if err := decode(r, &repo); err != nil {
			return nil, err
		}
		return nil, s.PutRepo(name, repo)
	case !commits && r.Method == http.MethodDelete:
		return nil, s.DeleteRepo(name)
	}
	return nil, fmt.Errorf("%w: %s %srepos/%s", errNoSuchControl, r.Method, controlPrefix, path)
}

// decode reads a request's JSON. An unknown field is an error: a misspelled field would be ignored, and
// the test would prove nothing.
func decode(r *http.Request, into any) error {
	decoder := json.NewDecoder(io.LimitReader(r.Body, maxBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("cannot read the request: %w", err)
	}
	return nil
}

func controlAnswer(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(value)
}

// Request is an entry of the request log.
type Request struct {
	Method        string `json:"method"`
	Path          string `json:"path"` // as sent: escaped, with the base path
	Query         string `json:"query"`
	Service       string `json:"service"`       // api, git or other
	Authorization string `json:"authorization"` // the header
	Status        int    `json:"status"`        // 0 if there is no answer (yet)
	UserAgent     string `json:"user_agent"`
	Peer          string `json:"peer"` // the address of the client's end of the connection
}

type requestLog struct {
	mutex   sync.Mutex
	entries []*Request
}

func (l *requestLog) begin(r *http.Request, service string) *Request {
	entry := &Request{
		Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Service: service,
		Authorization: r.Header.Get("Authorization"), UserAgent: r.UserAgent(),
		Peer: r.RemoteAddr,
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.entries = append(l.entries, entry)
	return entry
}

func (l *requestLog) end(entry *Request, status int) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	entry.Status = status
}

func (l *requestLog) list() []Request {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	list := make([]Request, 0, len(l.entries))
	for _, entry := range l.entries {
		list = append(list, *entry)
	}
	return list
}

func (l *requestLog) clear() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.entries = nil
}
