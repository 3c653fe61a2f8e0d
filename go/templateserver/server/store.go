package server

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// epoch is the base of all dates. The n-th commit of a repository is n minutes later, so that the same
// commits have the same ids in every run.
var epoch = time.Date(2026, time.January, 5, 9, 0, 0, 0, time.UTC)

const (
	authorName  = "Template Author"
	authorEmail = "templates@example.com"
)

// store is the folder of repositories.
type store struct {
	root string

	mutex sync.Mutex
	repos map[string]*repository
}

// repository is one bare repository.
type repository struct {
	org, name, dir string

	// write is locked while the repository changes, because dates depend on the number of commits.
	write   sync.Mutex
	commits int

	mutex sync.Mutex
	set   settings
	// tips caches the commit of each branch, as git last reported it.
	tips map[string]*tip
}

type settings struct{ private, forbidden bool }

func openStore(root string) (*store, error) {
	root, err := absolute(root)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("cannot create the folder for the repositories: %w", err)
	}
	if _, err := exec.LookPath("git"); err != nil {
		return nil, fmt.Errorf("the template server needs git: %w", err)
	}
	return &store{root: root, repos: map[string]*repository{}}, nil
}

var goodName = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

func checkName(name string) error {
	if !goodName.MatchString(name) || name == "." || name == ".." || strings.HasSuffix(name, ".git") {
		return fmt.Errorf("%q is not a valid name for an organization or a repository", name)
	}
	return nil
}

// repository returns an existing repository, also one that was added to the folder by hand, or nil.
func (s *store) repository(org, name string) *repository {
	if checkName(org) != nil || checkName(name) != nil {
		return nil
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.repositoryLocked(org, name)
}

// repositoryLocked is repository with the mutex locked and names that are valid.
func (s *store) repositoryLocked(org, name string) *repository {
	dir := s.dir(org, name)
	if _, err := os.Stat(filepath.Join(dir, "HEAD")); err != nil {
		return nil
	}
	repo := s.repos[org+"/"+name]
	if repo == nil {
		repo = &repository{org: org, name: name, dir: dir, commits: -1}
		s.repos[org+"/"+name] = repo
	}
	return repo
}

func (s *store) dir(org, name string) string { return filepath.Join(s.root, org, name+".git") }

// create creates a repository, or returns the existing one.
func (s *store) create(org, name string) (*repository, error) {
	if err := errors.Join(checkName(org), checkName(name)); err != nil {
		return nil, err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if repo := s.repositoryLocked(org, name); repo != nil {
		return repo, nil
	}
	repo := s.repos[org+"/"+name]
	if repo == nil { // a known repository has no files for a moment while its history is removed
		repo = &repository{org: org, name: name, dir: s.dir(org, name)}
		s.repos[org+"/"+name] = repo
	}
	return repo, initRepository(repo.dir, "main")
}

func (s *store) remove(org, name string) error {
	repo := s.repository(org, name)
	if repo == nil {
		return fmt.Errorf("there is no repository %s/%s", org, name)
	}
	repo.write.Lock()
	defer repo.write.Unlock()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	delete(s.repos, org+"/"+name)
	return os.RemoveAll(repo.dir)
}

// config has Gitea's settings: any commit can be fetched by its id, and partial clones work.
const config = `[core]
	repositoryformatversion = 0
	bare = true
	fsync = none
	compression = 1
[uploadpack]
	allowAnySHA1InWant = true
	allowFilter = true
[http]
	receivepack = false
[gc]
	auto = 0
`

// initRepository creates a bare repository, like git init. A test creates several, so it does not run git.
func initRepository(dir, branch string) error {
	return errors.Join(
		os.MkdirAll(filepath.Join(dir, "objects"), 0o755),
		os.MkdirAll(filepath.Join(dir, "refs", "heads"), 0o755),
		os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o644),
		// Last: a folder with this file is a repository.
		os.WriteFile(filepath.Join(dir, "HEAD"), []byte("ref: refs/heads/"+branch+"\n"), 0o644),
	)
}

func (r *repository) settings() settings {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.set
}

// empty removes all branches and their history.
func (r *repository) empty() error {
	r.write.Lock()
	defer r.write.Unlock()
	info, err := r.info()
	if err != nil {
		return err
	}
	if err := os.RemoveAll(r.dir); err != nil {
		return err
	}
	r.commits = 0
	return initRepository(r.dir, info.defaultBranch)
}

func (r *repository) setDefaultBranch(name string) error {
	r.write.Lock()
	defer r.write.Unlock()
	_, err := git(r.dir, nil, "symbolic-ref", "HEAD", "refs/heads/"+name)
	return err
}

type repositoryInfo struct {
	empty         bool
	defaultBranch string
}

func (r *repository) info() (repositoryInfo, error) {
	head, err := git(r.dir, nil, "symbolic-ref", "HEAD")
	if err != nil {
		return repositoryInfo{}, err
	}
	refs, err := git(r.dir, nil, "for-each-ref", "--count=1", "refs/heads/")
	return repositoryInfo{
		empty:         len(refs) == 0,
		defaultBranch: strings.TrimPrefix(strings.TrimSpace(string(head)), "refs/heads/"),
	}, err
}

// tip is the commit of a branch.
type tip struct {
	sha, tree, message            string
	authorName, authorEmail       string
	committerName, committerEmail string
	authorDate                    time.Time
}

// tip returns the commit of a branch, or nil if the branch does not exist. git runs only once for each commit:
// the content of a commit never changes, and the branch's file has the current commit id.
func (r *repository) tip(branch string) (*tip, error) {
	sha := r.looseRef(branch)
	if sha == "" {
		if _, err := os.Stat(filepath.Join(r.dir, "packed-refs")); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
	}
	r.mutex.Lock()
	known := r.tips[branch]
	r.mutex.Unlock()
	if known != nil && known.sha == sha {
		return known, nil
	}
	found, err := r.readTip(branch)
	if err != nil || found == nil {
		return nil, err
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.tips == nil {
		r.tips = map[string]*tip{}
	}
	r.tips[branch] = found
	return found, nil
}

// looseRef returns the commit id in a branch's file, or "" if only git can tell, as for a packed branch.
func (r *repository) looseRef(branch string) string {
	if !filepath.IsLocal(branch) {
		return ""
	}
	text, err := os.ReadFile(filepath.Join(r.dir, "refs", "heads", branch))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func (r *repository) readTip(branch string) (*tip, error) {
	const format = "%(refname)%00%(objectname)%00%(tree)%00%(authorname)%00%(authoremail:trim)%00" +
		"%(committername)%00%(committeremail:trim)%00%(authordate:iso-strict)%00%(contents)%00"
	ref := "refs/heads/" + branch
	out, err := git(r.dir, nil, "for-each-ref", "--format="+format, ref)
	if err != nil {
		return nil, err
	}
	// The pattern also matches names below it: "a" matches the branch "a/b" if there is no "a".
	fields := strings.Split(string(out), "\x00")
	if len(fields) < 9 || fields[0] != ref {
		return nil, nil
	}
	date, err := time.Parse(time.RFC3339, fields[7])
	if err != nil {
		return nil, fmt.Errorf("cannot read the date of %s: %w", ref, err)
	}
	return &tip{
		sha: fields[1], tree: fields[2], message: fields[8],
		authorName: fields[3], authorEmail: fields[4],
		committerName: fields[5], committerEmail: fields[6], authorDate: date,
	}, nil
}

// reference is a ref with its commit.
type reference struct{ name, sha string }

// references returns the refs with a prefix.
func (r *repository) references(prefix string) ([]reference, error) {
	out, err := git(r.dir, nil, "for-each-ref", "--format=%(objectname) %(refname)")
	if err != nil {
		return nil, err
	}
	var found []reference
	for _, line := range strings.Split(string(out), "\n") {
		sha, name, _ := strings.Cut(line, " ")
		if strings.HasPrefix(name, prefix) {
			found = append(found, reference{name, sha})
		}
	}
	return found, nil
}

// tree is the files of a commit, of which only the first is known.
type tree struct {
	commit string
	files  int
	first  apiTreeEntry
}

// tree returns the files of a ref's commit.
func (r *repository) tree(ref string) (tree, error) {
	commit, err := git(r.dir, nil, "rev-parse", "--verify", "--end-of-options", ref+"^{commit}")
	if err != nil {
		return tree{}, err
	}
	out, err := git(r.dir, nil, "ls-tree", "--long", strings.TrimSpace(string(commit)))
	if err != nil {
		return tree{}, err
	}
	entries := strings.Split(strings.TrimSpace(string(out)), "\n")
	details, path, _ := strings.Cut(entries[0], "\t")
	fields := strings.Fields(details)
	if len(fields) != 4 {
		return tree{}, fmt.Errorf("%s: no files", ref)
	}
	size, _ := strconv.ParseInt(fields[3], 10, 64) // "-" for a folder
	first := apiTreeEntry{Path: path, Mode: fields[0], Type: fields[1], SHA: fields[2], Size: size}
	return tree{strings.TrimSpace(string(commit)), len(entries), first}, nil
}

var fullID = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

func (r *repository) hasCommit(sha string) bool {
	if !fullID.MatchString(sha) {
		return false
	}
	_, err := git(r.dir, nil, "cat-file", "-e", sha+"^{commit}")
	return err == nil
}

// Commit is a change to a branch.
type Commit struct {
	// Branch is created if it does not exist. The default is the repository's default branch.
	Branch string `json:"branch,omitempty"`
	// Message is optional.
	Message string `json:"message,omitempty"`
	// Files are the files to write, by path.
	Files map[string]File `json:"files,omitempty"`
	// Delete are paths to remove, folders included, before Files are written.
	Delete []string `json:"delete,omitempty"`
	// Reset starts from an empty tree instead of the branch's.
	Reset bool `json:"reset,omitempty"`
	// Orphan creates a commit without a parent, as a force-push would.
	Orphan bool `json:"orphan,omitempty"`
}

// File is the content of a path: Text, or Base64 for binary content. For mode 120000 the content is the
// target of the symbolic link.
type File struct {
	Text   string `json:"text,omitempty"`
	Base64 string `json:"base64,omitempty"`
	Mode   string `json:"mode,omitempty"` // 100644 (default), 100755 or 120000
}

// content is a file of a commit.
type content struct {
	path, mode string
	data       []byte
	file       string // read from this path if data is nil
}

func (c Commit) contents() ([]content, error) {
	list := make([]content, 0, len(c.Files))
	for path, file := range c.Files {
		entry := content{path: path, mode: file.Mode, data: []byte(file.Text)}
		switch entry.mode {
		case "":
			entry.mode = "100644"
		case "100644", "100755", "120000":
		default:
			return nil, fmt.Errorf("%q has the mode %q; use 100644, 100755 or 120000", path, file.Mode)
		}
		if file.Base64 != "" {
			if file.Text != "" {
				return nil, fmt.Errorf("%q has both text and base64", path)
			}
			data, err := base64.StdEncoding.DecodeString(file.Base64)
			if err != nil {
				return nil, fmt.Errorf("the base64 of %q: %w", path, err)
			}
			entry.data = data
		}
		list = append(list, entry)
	}
	return list, nil
}

// commit creates a commit and returns its id.
func (r *repository) commit(c Commit) (string, error) {
	contents, err := c.contents()
	if err != nil {
		return "", err
	}
	r.write.Lock()
	defer r.write.Unlock()
	return r.commitLocked(c, contents)
}

// plainBranch matches names that are valid without asking git.
var plainBranch = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

func (r *repository) commitLocked(c Commit, contents []content) (string, error) {
	if c.Branch == "" {
		info, err := r.info()
		if err != nil {
			return "", err
		}
		c.Branch = info.defaultBranch
	}
	if !plainBranch.MatchString(c.Branch) {
		if _, err := git(".", nil, "check-ref-format", "refs/heads/"+c.Branch); err != nil {
			return "", fmt.Errorf("%q is not a valid branch name", c.Branch)
		}
	}
	if c.Message == "" {
		c.Message = "Change the template"
	}
	if r.commits < 0 { // the repository was found on disk
		out, err := git(r.dir, nil, "rev-list", "--count", "--all")
		if err != nil {
			return "", err
		}
		if r.commits, err = strconv.Atoi(strings.TrimSpace(string(out))); err != nil {
			return "", err
		}
	}
	old, err := r.tip(c.Branch)
	if err != nil {
		return "", err
	}
	sort.Slice(contents, func(i, j int) bool { return contents[i].path < contents[j].path })

	who := fmt.Sprintf("%s <%s> %d +0000", authorName, authorEmail, epoch.Add(time.Duration(r.commits)*time.Minute).Unix())
	message := strings.TrimRight(c.Message, "\n") + "\n"
	read, write := io.Pipe()
	go func() {
		out := bufio.NewWriter(write)
		fmt.Fprintf(out, "commit refs/heads/%s\nmark :1\nauthor %s\ncommitter %s\ndata %d\n%s\n", c.Branch, who, who, len(message), message)
		if old != nil && !c.Orphan {
			fmt.Fprintf(out, "from %s\n", old.sha)
		}
		switch {
		case c.Reset:
			fmt.Fprint(out, "deleteall\n")
		case old != nil && c.Orphan:
			fmt.Fprintf(out, "M 040000 %s \"\"\n", old.tree)
		}
		for _, path := range c.Delete {
			fmt.Fprintf(out, "D %s\n", quotePath(path))
		}
		var err error
		for _, entry := range contents {
			if err = writeContent(out, entry); err != nil {
				break
			}
		}
		fmt.Fprint(out, "\nget-mark :1\ndone\n")
		write.CloseWithError(errors.Join(err, out.Flush()))
	}()
	// --force: the new commit need not contain the old one.
	sha, err := git(r.dir, read, "fast-import", "--quiet", "--force", "--done")
	read.CloseWithError(err)
	if err != nil {
		return "", err
	}
	r.commits++
	return strings.TrimSpace(string(sha)), nil
}

func writeContent(out *bufio.Writer, entry content) error {
	if entry.file == "" {
		fmt.Fprintf(out, "M %s inline %s\ndata %d\n", entry.mode, quotePath(entry.path), len(entry.data))
		out.Write(entry.data)
		return out.WriteByte('\n')
	}
	file, err := os.Open(entry.file)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "M %s inline %s\ndata %d\n", entry.mode, quotePath(entry.path), info.Size())
	n, err := io.Copy(out, io.LimitReader(file, info.Size()))
	if err != nil {
		return err
	}
	if n != info.Size() {
		return fmt.Errorf("%s changed while it was read: %w", entry.file, io.ErrUnexpectedEOF)
	}
	return out.WriteByte('\n')
}

// quotePath quotes a path for fast-import.
func quotePath(path string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(path) + `"`
}

// publishAll publishes each folder in dir as a repository.
func (s *store) publishAll(org, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cannot read the templates: %w", err)
	}
	for _, entry := range entries {
		if !entry.IsDir() || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		if err := s.publish(org, RepoNamePrefix+entry.Name(), filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("cannot publish the template %q: %w", entry.Name(), err)
		}
	}
	return nil
}

// publish commits a folder: the Dockerfile first, then the rest. An existing repository gets one more commit
// if the folder differs from its default branch.
func (s *store) publish(org, name, dir string) error {
	contents, err := readFolder(dir)
	if err != nil {
		return err
	}
	if len(contents) == 0 {
		return errors.New("the folder is empty")
	}
	repo, err := s.create(org, name)
	if err != nil {
		return err
	}
	repo.write.Lock()
	defer repo.write.Unlock()
	info, err := repo.info()
	if err != nil {
		return err
	}
	if info.empty {
		first := contents[0]
		for _, entry := range contents {
			if entry.path == "Dockerfile" {
				first = entry
			}
		}
		if _, err := repo.commitLocked(Commit{Message: "Start the template"}, []content{first}); err != nil {
			return err
		}
		_, err := repo.commitLocked(Commit{Message: "Add the workspace", Reset: true}, contents)
		return err
	}
	old, err := repo.tip(info.defaultBranch)
	if err != nil {
		return err
	}
	// Commit to a draft branch first, to compare the trees.
	const draft = "templateserver-draft"
	if _, err := repo.commitLocked(Commit{Branch: draft, Orphan: true, Reset: true}, contents); err != nil {
		return err
	}
	repo.commits-- // the draft is removed again
	fresh, err := repo.tip(draft)
	if err != nil {
		return err
	}
	if _, err := git(repo.dir, nil, "update-ref", "-d", "refs/heads/"+draft); err != nil {
		return err
	}
	if old != nil && old.tree == fresh.tree {
		return nil
	}
	_, err = repo.commitLocked(Commit{Message: "Update the template", Reset: true}, contents)
	return err
}

// readFolder lists a folder as git would add it: regular files with their executable bit, and
// symbolic links; no empty folders, and nothing below .git.
func readFolder(dir string) ([]content, error) {
	var contents []content
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.Name() == ".git" {
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if entry.IsDir() {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		item := content{path: filepath.ToSlash(relative), mode: "100644", file: path}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			item.mode, item.file, item.data = "120000", "", []byte(target)
		case !info.Mode().IsRegular():
			return fmt.Errorf("%s is neither a file, a folder nor a symbolic link", path)
		case info.Mode()&0o100 != 0:
			item.mode = "100755"
		}
		contents = append(contents, item)
		return nil
	})
	return contents, err
}

// git runs git without the user's configuration.
func git(dir string, stdin io.Reader, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, gitEnv(), stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("git %s in %s: %w: %s", args[0], dir, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

func gitEnv() []string {
	var env []string
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "GIT_") {
			env = append(env, variable)
		}
	}
	return append(env, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull, "LC_ALL=C")
}
