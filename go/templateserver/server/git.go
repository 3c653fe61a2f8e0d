package server

import (
	"io"
	"net/http"
	"net/http/cgi"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

// maxBody limits a request's body, in bytes. Those of a fetch are much smaller.
const maxBody = 64 << 20

var httpBackend = sync.OnceValues(func() (string, error) {
	path, err := git(".", nil, "--exec-path")
	return filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"), err
})

var goodProtocol = regexp.MustCompile(`^[0-9a-zA-Z]+=[0-9a-zA-Z]+(:[0-9a-zA-Z]+=[0-9a-zA-Z]+)*$`)

// serveGit serves git smart HTTP with git's own CGI program. Like Gitea, it asks for credentials also if
// the repository does not exist.
func (s *Server) serveGit(w http.ResponseWriter, r *http.Request, route requestRoute) {
	repo := s.store.repository(route.org, route.repo)
	signedIn := r.Header.Get("Authorization") != ""
	if signedIn && !s.authorized(r) {
		http.Error(w, "Verify", http.StatusUnauthorized)
		return
	}
	if !signedIn && (!s.authorized(r) || !s.visible(repo)) {
		w.Header().Set("WWW-Authenticate", `Basic realm="Gitea"`)
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
		return
	}
	if !s.visible(repo) {
		plain(w, http.StatusNotFound, "Repository not found")
		return
	}
	if repo.settings().forbidden {
		http.Error(w, "Forbidden", http.StatusForbidden)
		return
	}
	program, err := httpBackend()
	if err != nil {
		s.errors.Print(err)
		plain(w, http.StatusInternalServerError, err.Error())
		return
	}
	request := r.Clone(r.Context())
	request.Header.Del("Authorization") // the child process does not need it
	request.URL.Path = "/" + repo.org + "/" + repo.name + ".git" + route.rest
	request.URL.RawPath = ""

	env := []string{
		"GIT_PROJECT_ROOT=" + s.store.root, "GIT_HTTP_EXPORT_ALL=1",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "LC_ALL=C",
	}
	if protocol := r.Header.Get("Git-Protocol"); goodProtocol.MatchString(protocol) {
		env = append(env, "GIT_PROTOCOL="+protocol)
	}
	handler := cgi.Handler{
		Path: program, Dir: s.store.root, Root: "/", Env: env,
		Logger: s.errors, Stderr: s.errors.Writer(),
	}
	handler.ServeHTTP(w, request)
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain;charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, text)
}
