package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/http"
	"strings"
	"time"
)

// The types below are Gitea's, in its field order; see modules/structs/{user,repo,repo_branch,hook}.go.

type apiUser struct {
	ID                int64     `json:"id"`
	Login             string    `json:"login"`
	LoginName         string    `json:"login_name"`
	SourceID          int64     `json:"source_id"`
	FullName          string    `json:"full_name"`
	Email             string    `json:"email"`
	AvatarURL         string    `json:"avatar_url"`
	HTMLURL           string    `json:"html_url"`
	Language          string    `json:"language"`
	IsAdmin           bool      `json:"is_admin"`
	LastLogin         time.Time `json:"last_login"`
	Created           time.Time `json:"created"`
	Restricted        bool      `json:"restricted"`
	Active            bool      `json:"active"`
	ProhibitLogin     bool      `json:"prohibit_login"`
	Location          string    `json:"location"`
	Website           string    `json:"website"`
	Description       string    `json:"description"`
	Visibility        string    `json:"visibility"`
	FollowersCount    int       `json:"followers_count"`
	FollowingCount    int       `json:"following_count"`
	StarredReposCount int       `json:"starred_repos_count"`
	Username          string    `json:"username"`
}

type apiPermission struct {
	Admin bool `json:"admin"`
	Push  bool `json:"push"`
	Pull  bool `json:"pull"`
}

type apiInternalTracker struct {
	EnableTimeTracker                bool `json:"enable_time_tracker"`
	AllowOnlyContributorsToTrackTime bool `json:"allow_only_contributors_to_track_time"`
	EnableIssueDependencies          bool `json:"enable_issue_dependencies"`
}

type apiRepository struct {
	ID                            int64               `json:"id"`
	Owner                         *apiUser            `json:"owner"`
	Name                          string              `json:"name"`
	FullName                      string              `json:"full_name"`
	Description                   string              `json:"description"`
	Empty                         bool                `json:"empty"`
	Private                       bool                `json:"private"`
	Fork                          bool                `json:"fork"`
	Template                      bool                `json:"template"`
	Mirror                        bool                `json:"mirror"`
	Size                          int                 `json:"size"`
	Language                      string              `json:"language"`
	LanguagesURL                  string              `json:"languages_url"`
	HTMLURL                       string              `json:"html_url"`
	URL                           string              `json:"url"`
	Link                          string              `json:"link"`
	SSHURL                        string              `json:"ssh_url"`
	CloneURL                      string              `json:"clone_url"`
	OriginalURL                   string              `json:"original_url"`
	Website                       string              `json:"website"`
	StarsCount                    int                 `json:"stars_count"`
	ForksCount                    int                 `json:"forks_count"`
	WatchersCount                 int                 `json:"watchers_count"`
	OpenIssuesCount               int                 `json:"open_issues_count"`
	OpenPRCounter                 int                 `json:"open_pr_counter"`
	ReleaseCounter                int                 `json:"release_counter"`
	DefaultBranch                 string              `json:"default_branch"`
	Archived                      bool                `json:"archived"`
	CreatedAt                     time.Time           `json:"created_at"`
	UpdatedAt                     time.Time           `json:"updated_at"`
	ArchivedAt                    time.Time           `json:"archived_at"`
	Permissions                   *apiPermission      `json:"permissions,omitempty"`
	HasIssues                     bool                `json:"has_issues"`
	InternalTracker               *apiInternalTracker `json:"internal_tracker,omitempty"`
	HasWiki                       bool                `json:"has_wiki"`
	HasPullRequests               bool                `json:"has_pull_requests"`
	HasProjects                   bool                `json:"has_projects"`
	ProjectsMode                  string              `json:"projects_mode"`
	HasReleases                   bool                `json:"has_releases"`
	HasPackages                   bool                `json:"has_packages"`
	HasActions                    bool                `json:"has_actions"`
	IgnoreWhitespaceConflicts     bool                `json:"ignore_whitespace_conflicts"`
	AllowMergeCommits             bool                `json:"allow_merge_commits"`
	AllowRebase                   bool                `json:"allow_rebase"`
	AllowRebaseExplicit           bool                `json:"allow_rebase_explicit"`
	AllowSquashMerge              bool                `json:"allow_squash_merge"`
	AllowFastForwardOnlyMerge     bool                `json:"allow_fast_forward_only_merge"`
	AllowRebaseUpdate             bool                `json:"allow_rebase_update"`
	DefaultDeleteBranchAfterMerge bool                `json:"default_delete_branch_after_merge"`
	DefaultMergeStyle             string              `json:"default_merge_style"`
	DefaultAllowMaintainerEdit    bool                `json:"default_allow_maintainer_edit"`
	AvatarURL                     string              `json:"avatar_url"`
	Internal                      bool                `json:"internal"`
	MirrorInterval                string              `json:"mirror_interval"`
	ObjectFormatName              string              `json:"object_format_name"`
	MirrorUpdated                 time.Time           `json:"mirror_updated"`
	Topics                        []string            `json:"topics"`
	Licenses                      []string            `json:"licenses"`
	// Set for a fork, and for a repository that is being transferred to another owner.
	Parent       *apiRepository `json:"parent"`
	RepoTransfer *struct{}      `json:"repo_transfer"`
}

type apiPayloadUser struct {
	Name     string `json:"name"`
	Email    string `json:"email"`
	Username string `json:"username"`
}

type apiVerification struct {
	Verified  bool            `json:"verified"`
	Reason    string          `json:"reason"`
	Signature string          `json:"signature"`
	Signer    *apiPayloadUser `json:"signer"`
	Payload   string          `json:"payload"`
}

type apiCommit struct {
	ID           string           `json:"id"`
	Message      string           `json:"message"`
	URL          string           `json:"url"`
	Author       *apiPayloadUser  `json:"author"`
	Committer    *apiPayloadUser  `json:"committer"`
	Verification *apiVerification `json:"verification"`
	Timestamp    time.Time        `json:"timestamp"`
	Added        []string         `json:"added"`
	Removed      []string         `json:"removed"`
	Modified     []string         `json:"modified"`
}

type apiBranch struct {
	Name                          string     `json:"name"`
	Commit                        *apiCommit `json:"commit"`
	Protected                     bool       `json:"protected"`
	RequiredApprovals             int64      `json:"required_approvals"`
	EnableStatusCheck             bool       `json:"enable_status_check"`
	StatusCheckContexts           []string   `json:"status_check_contexts"`
	UserCanPush                   bool       `json:"user_can_push"`
	UserCanMerge                  bool       `json:"user_can_merge"`
	EffectiveBranchProtectionName string     `json:"effective_branch_protection_name"`
}

type apiError struct {
	Message string `json:"message"`
	URL     string `json:"url,omitempty"`
}

type apiObject struct {
	Type string `json:"type"`
	SHA  string `json:"sha"`
	URL  string `json:"url"`
}

type apiReference struct {
	Ref    string     `json:"ref"`
	URL    string     `json:"url"`
	Object *apiObject `json:"object"`
}

type apiTree struct {
	SHA        string         `json:"sha"`
	URL        string         `json:"url"`
	Tree       []apiTreeEntry `json:"tree"`
	Truncated  bool           `json:"truncated"`
	Page       int            `json:"page"`
	TotalCount int            `json:"total_count"`
}

type apiTreeEntry struct {
	Path string `json:"path"`
	Mode string `json:"mode"`
	Type string `json:"type"`
	Size int64  `json:"size"`
	SHA  string `json:"sha"`
	URL  string `json:"url"`
}

// apiNotFound has its keys in the order in which Gitea sends them.
type apiNotFound struct {
	Errors  []string `json:"errors"`
	Message string   `json:"message"`
	URL     string   `json:"url"`
}

func (s *Server) serveAPI(w http.ResponseWriter, r *http.Request, route requestRoute) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
		return
	}
	if !s.authorized(r) {
		if r.Header.Get("Authorization") != "" {
			s.answer(w, http.StatusUnauthorized, s.apiError("user does not exist [uid: 0, name: ]"))
			return
		}
		s.answer(w, http.StatusForbidden, &apiError{Message: "Only signed in user is allowed to call APIs."})
		return
	}
	repo := s.store.repository(route.org, route.repo)
	if !s.visible(repo) {
		s.answerNotFound(w, notFound)
		return
	}
	if repo.settings().forbidden {
		s.answer(w, http.StatusForbidden, s.apiError("token does not have at least one of required scope(s), "+
			"required=[read:repository], token scope=read:user"))
		return
	}
	branch, isBranch := strings.CutPrefix(route.rest, "/branches/")
	ref, isRef := strings.CutPrefix(route.rest, "/git/refs/")
	commit, isCommit := strings.CutPrefix(route.rest, "/git/commits/")
	tree, isTree := strings.CutPrefix(route.rest, "/git/trees/")
	switch {
	case route.rest == "" || route.rest == "/":
		s.answerRepository(w, repo)
	case isBranch:
		s.answerBranch(w, repo, branch)
	case isRef:
		s.answerReferences(w, repo, "refs/"+ref)
	case isCommit:
		s.answerCommit(w, repo, commit)
	case isTree:
		s.answerTree(w, repo, tree)
	default:
		s.answerNotFound(w, notFound)
	}
}

// answerReferences answers with all references that have this prefix. Gitea's code intends to answer with a
// single object if only one matches, but never does: it compares "heads/main" with "refs/heads/main".
func (s *Server) answerReferences(w http.ResponseWriter, repo *repository, prefix string) {
	references, err := repo.references(prefix)
	if err != nil {
		s.answerInternal(w, err)
		return
	}
	if len(references) == 0 {
		s.answerNotFound(w, notFound)
		return
	}
	api := s.URL() + "/api/v1/repos/" + repo.org + "/" + repo.name + "/git/"
	list := make([]*apiReference, 0, len(references))
	for _, ref := range references {
		list = append(list, &apiReference{
			Ref: ref.name, URL: api + ref.name,
			Object: &apiObject{Type: "commit", SHA: ref.sha, URL: api + "commits/" + ref.sha},
		})
	}
	s.answer(w, http.StatusOK, list)
}

// answerCommit answers with a commit if it exists. Of the fields in Gitea's answer it has only the ids.
func (s *Server) answerCommit(w http.ResponseWriter, repo *repository, sha string) {
	if !repo.hasCommit(sha) {
		s.answerNotFound(w, sha)
		return
	}
	url := s.URL() + "/api/v1/repos/" + repo.org + "/" + repo.name + "/git/commits/" + sha
	s.answer(w, http.StatusOK, struct {
		URL string `json:"url"`
		SHA string `json:"sha"`
	}{url, sha})
}

// answerTree answers with the first file of a branch, and with the commit that the branch's name stands for.
func (s *Server) answerTree(w http.ResponseWriter, repo *repository, ref string) {
	tree, err := repo.tree(ref)
	if err != nil {
		s.answer(w, http.StatusBadRequest, s.apiError("sha not found ["+ref+"]"))
		return
	}
	api := s.URL() + "/api/v1/repos/" + repo.org + "/" + repo.name + "/git/"
	tree.first.URL = api + "blobs/" + tree.first.SHA
	s.answer(w, http.StatusOK, &apiTree{
		SHA: tree.commit, URL: api + "trees/" + tree.commit,
		Tree: []apiTreeEntry{tree.first}, Page: 1, TotalCount: tree.files,
	})
}

func (s *Server) answerRepository(w http.ResponseWriter, repo *repository) {
	info, err := repo.info()
	if err != nil {
		s.answerInternal(w, err)
		return
	}
	html := s.URL() + "/" + repo.org + "/" + repo.name
	api := s.URL() + "/api/v1/repos/" + repo.org + "/" + repo.name
	s.answer(w, http.StatusOK, &apiRepository{
		ID: number(repo.org + "/" + repo.name),
		Owner: &apiUser{
			ID: number(repo.org), Login: repo.org, Email: repo.org + "@noreply.localhost",
			AvatarURL: s.URL() + "/avatars/" + repo.org, HTMLURL: s.URL() + "/" + repo.org,
			Created: epoch, Visibility: "public", Username: repo.org,
		},
		Name: repo.name, FullName: repo.org + "/" + repo.name,
		Empty: info.empty, Private: repo.settings().private, Size: 24,
		Language: "Dockerfile", LanguagesURL: api + "/languages",
		HTMLURL: html, URL: api, SSHURL: "git@localhost:" + repo.org + "/" + repo.name + ".git", CloneURL: html + ".git",
		StarsCount: 3, ForksCount: 1, WatchersCount: 2,
		DefaultBranch: info.defaultBranch, CreatedAt: epoch, UpdatedAt: epoch.Add(time.Hour), ArchivedAt: time.Unix(0, 0).UTC(),
		Permissions: &apiPermission{Pull: true},
		HasIssues:   true, InternalTracker: &apiInternalTracker{true, true, true},
		HasWiki: true, HasPullRequests: true, HasProjects: true, ProjectsMode: "all", HasReleases: true, HasPackages: true, HasActions: true,
		AllowMergeCommits: true, AllowRebase: true, AllowRebaseExplicit: true, AllowSquashMerge: true,
		AllowFastForwardOnlyMerge: true, AllowRebaseUpdate: true, DefaultMergeStyle: "merge",
		ObjectFormatName: "sha1", Topics: []string{},
	})
}

func (s *Server) answerBranch(w http.ResponseWriter, repo *repository, name string) {
	tip, err := repo.tip(name)
	if err != nil {
		s.answerInternal(w, err)
		return
	}
	if tip == nil {
		s.answerNotFound(w, notFound, fmt.Sprintf("branch does not exist [name: %s]", name))
		return
	}
	s.answer(w, http.StatusOK, &apiBranch{
		Name: name,
		Commit: &apiCommit{
			ID: tip.sha, Message: tip.message, URL: s.URL() + "/" + repo.org + "/" + repo.name + "/commit/" + tip.sha,
			Author:       &apiPayloadUser{tip.authorName, tip.authorEmail, "template-author"},
			Committer:    &apiPayloadUser{tip.committerName, tip.committerEmail, "template-author"},
			Verification: &apiVerification{Reason: "gpg.error.not_signed_commit"},
			Timestamp:    tip.authorDate,
		},
		StatusCheckContexts: []string{},
	})
}

func (s *Server) apiError(message string) *apiError {
	return &apiError{Message: message, URL: s.URL() + "/api/swagger"}
}

// notFound is Gitea's message for nearly everything that does not exist.
const notFound = "The target couldn't be found."

func (s *Server) answerNotFound(w http.ResponseWriter, message string, reasons ...string) {
	s.answer(w, http.StatusNotFound, &apiNotFound{Errors: reasons, Message: message, URL: s.URL() + "/api/swagger"})
}

// answerInternal reports an error of this server, not a simulated one. The log has the cause.
func (s *Server) answerInternal(w http.ResponseWriter, err error) {
	s.errors.Print(err)
	s.answer(w, http.StatusInternalServerError, s.apiError(err.Error()))
}

func (s *Server) answer(w http.ResponseWriter, status int, value any) {
	body, err := s.encode(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	header := w.Header()
	header.Set("Content-Type", "application/json;charset=utf-8")
	header.Set("Cache-Control", "max-age=0, private, must-revalidate, no-transform")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "SAMEORIGIN")
	header.Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

func (s *Server) encode(value any) ([]byte, error) {
	if s.options.SortedKeys {
		body, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		decoder := json.NewDecoder(bytes.NewReader(body))
		decoder.UseNumber()
		value = nil
		if err := decoder.Decode(&value); err != nil {
			return nil, err
		}
		addUserIDs(value)
	}
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	if !s.options.Compact {
		encoder.SetIndent("", "  ")
	}
	err := encoder.Encode(value)
	return body.Bytes(), err
}

// addUserIDs adds an id to each user object, as other answers of Gitea have.
func addUserIDs(value any) {
	object, _ := value.(map[string]any)
	for _, inner := range object {
		addUserIDs(inner)
	}
	if name, ok := object["username"].(string); ok {
		object["id"] = number(name)
	}
}

// number returns an id that is the same in every run.
func number(name string) int64 { return int64(crc32.ChecksumIEEE([]byte(name)) % 100000) }
