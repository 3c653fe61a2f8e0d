package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

// inProject changes to a folder below one with this project's file, and sets a separate folder for the user's file.
func inProject(t *testing.T, project, user string) {
	t.Helper()
	cleanEnv(t)
	root := t.TempDir()
	below := filepath.Join(root, "a", "b")
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(root, "config"))
	for _, folder := range []string{below, filepath.Dir(userFile())} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range map[string]string{filepath.Join(root, projectFile): project, userFile(): user} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(below)
}

// effective returns the settings of mol config, by key.
func effective(t *testing.T) map[string]settingValue {
	t.Helper()
	for _, s := range settings { // what another run in this process has set
		if os.Getenv(s.env) != "of-the-variable" {
			_ = os.Unsetenv(s.env)
		}
	}
	code, stdout, stderr := runHere(t.Context(), &fakeClient{}, "config", "--json")
	var got configResult
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v: %s%s", code, err, stdout, stderr)
	}
	values := map[string]settingValue{}
	for _, s := range got.Settings {
		values[s.Key] = s
	}
	return values
}

func TestPrecedenceOfSettings(t *testing.T) {
	inProject(t, "branch = \"of-the-project\"\nplatform = \"linux/arm64\"\noffline = true\n",
		"branch = \"of-the-user\"\nplatform = \"linux/386\"\nmemory-mib = 256\nstall-grace = \"2m\"\nisolation = \"me\"\n")
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_BRANCH", "of-the-variable")
	values := effective(t)
	for key, want := range map[string][2]string{
		"branch":      {"of-the-variable", "MOLECULE_LOCAL_TEMPLATE_BRANCH"},
		"platform":    {"linux/arm64", projectFile},
		"offline":     {"1", projectFile},
		"memory-mib":  {"256", "mol.toml"},
		"stall-grace": {"2m", "mol.toml"},
		"ceiling":     {"30m", "default"},
	} {
		if got := values[key]; got.Value != want[0] || filepath.Base(got.From) != want[1] {
			t.Errorf("%s is %q from %s, want %q from %s", key, got.Value, got.From, want[0], want[1])
		}
	}

	// The library gets these, and a flag comes before all of them.
	f := &fakeClient{img: scriptImage()}
	if code, _, stderr := runHere(t.Context(), f, "ensure", "hermes", "--branch", "of-the-flag"); code != 0 {
		t.Fatal(stderr)
	}
	if o := f.opts; o.Branch != "of-the-flag" || o.Platform != "linux/arm64" || o.MemoryMiB != 256 || o.Isolation != "me" || !o.Offline {
		t.Errorf("the library gets %+v", o)
	}
}

func TestAnInvalidFileIsAUsageErrorThatNamesIt(t *testing.T) {
	for project, want := range map[string]string{
		"platform = x":                   projectFile + ":1:12: ",
		"platfrom = \"linux/arm64\"":     projectFile + `: unknown setting "platfrom"; the settings are repo-prefix, branch, platform,`,
		"offline = \"yes\"":              projectFile + ": offline: use true or false, without quotes",
		"branch = true":                  projectFile + ": branch: use text in quotes",
		"branch = [\"main\"]":            projectFile + ": branch: use text in quotes, a whole number, true or false",
		"token = \"t\"":                  projectFile + `: unknown setting "token"`,
		"builder = \"tcp://x:1\"":        projectFile + ": builder is not read from a project's file",
		"shared-cache = \"x.example/y\"": projectFile + ": shared-cache is not read from a project's file",
		"shared-cache-mode = \"rw\"":     projectFile + ": shared-cache-mode is not read from a project's file",
		"docker-host = \"tcp://x:1\"":    projectFile + ": docker-host is not read from a project's file, because it decides where your token",
		"repo-prefix = \"https://x\"":    "or set MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX",
	} {
		inProject(t, project, "")
		code, _, stderr := runHere(t.Context(), &fakeClient{}, "list")
		if code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, %s", project, code, stderr)
		}
	}
}

func TestInitWritesAFileThatChangesNothing(t *testing.T) {
	inProject(t, "", "")
	before := effective(t)
	for _, args := range [][]string{{"init"}, {"init", "--project"}} {
		code, path, stderr := runHere(t.Context(), &fakeClient{}, args...)
		if code != 0 {
			t.Fatal(stderr)
		}
		text, err := os.ReadFile(strings.TrimSpace(path))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range settings {
			if has := strings.Contains(string(text), "\n# "+s.key+" = "); has == (s.userFileOnly && len(args) == 2) {
				t.Errorf("mol %s: %s is there: %v", strings.Join(args, " "), s.key, has)
			}
		}
		if code, _, stderr := runHere(t.Context(), &fakeClient{}, args...); code == 0 || !strings.Contains(stderr, "exists already") {
			t.Errorf("an existing file: exit code %d, %s", code, stderr)
		}
		// Every example is valid.
		text = []byte(strings.ReplaceAll(string(text), "\n# ", "\n#"))
		var lines []string
		for line := range strings.Lines(string(text)) {
			if key, _, ok := strings.Cut(strings.TrimPrefix(line, "#"), " = "); ok && !strings.Contains(key, " ") {
				lines = append(lines, strings.TrimPrefix(line, "#"))
			}
		}
		valid := filepath.Join(t.TempDir(), "valid.toml")
		if err := os.WriteFile(valid, []byte(strings.Join(lines, "")), 0o644); err != nil {
			t.Fatal(err)
		}
		if values, err := readConfig(valid, len(args) == 2); err != nil || len(values) != len(lines) || len(lines) < 7 {
			t.Errorf("the examples of mol %s: %d of %d values, %v", strings.Join(args, " "), len(values), len(lines), err)
		}
	}
	after := effective(t)
	for key := range before {
		if before[key] != after[key] {
			t.Errorf("%s was %+v and is %+v", key, before[key], after[key])
		}
	}
}

func TestErrorsNameTheFlagOrFileThatSetsAVariable(t *testing.T) {
	inProject(t, "branch = \"x\"\n", "")
	t.Setenv("MOLECULE_LOCAL_IMAGE_ISOLATION", "mine")
	const message = "MOLECULE_LOCAL_BUILDER_CA is set, MOLECULE_IMAGE_PLATFORM and MOLECULE_LOCAL_IMAGE_ISOLATION are wrong"
	const hint = "unset MOLECULE_LOCAL_TEMPLATE_BRANCH once"
	inFile := "branch in " + findProjectFile()
	for _, err := range []error{
		&mol.Error{Code: mol.CodeInvalidOption, Message: message, Hint: hint},
		hinted{errors.New(message), hint},
	} {
		args := []string{"ensure", "hermes", "--platform", "y", "--builder", "z"}
		_, _, stderr := runHere(t.Context(), &fakeClient{err: err}, args...)
		want := "mol: " + message + "\nhint: " + hint + "\nnote: --platform sets MOLECULE_IMAGE_PLATFORM\n" +
			"note: " + inFile + " sets MOLECULE_LOCAL_TEMPLATE_BRANCH\n"
		if stderr != want {
			t.Errorf("got\n%swant\n%s", stderr, want)
		}

		_ = os.Unsetenv("MOLECULE_LOCAL_TEMPLATE_BRANCH") // which the run before has set
		_ = os.Unsetenv("MOLECULE_IMAGE_PLATFORM")
		_, stdout, _ := runHere(t.Context(), &fakeClient{err: err}, append(args, "--json")...)
		var got result
		if err := json.Unmarshal([]byte(stdout), &got); err != nil {
			t.Fatal(err)
		}
		setBy := map[string]string{"MOLECULE_IMAGE_PLATFORM": "--platform", "MOLECULE_LOCAL_TEMPLATE_BRANCH": inFile}
		if got.Error.Message != message || got.Error.Hint != hint || !maps.Equal(got.Error.SetBy, setBy) {
			t.Errorf("with --json: %s", stdout)
		}
		_ = os.Unsetenv("MOLECULE_LOCAL_TEMPLATE_BRANCH")
	}
	_, stdout, _ := runHere(t.Context(), &fakeClient{err: errors.New("x")}, "ensure", "hermes", "--json")
	if strings.Contains(stdout, "set_by") {
		t.Errorf("without a variable: %s", stdout)
	}
}

// Only commands that use settings depend on the files.
func TestAnInvalidFileDoesNotPreventHelpAndInit(t *testing.T) {
	for _, args := range []string{"help", "help exit-codes", "man", "completion bash", "resolve", "version", "init --project"} {
		inProject(t, "", "platfrom = \"linux/arm64\"\n")
		t.Setenv(hostEnv, "unix:///nowhere/docker.sock")
		if code, _, stderr := runHere(t.Context(), &fakeClient{}, strings.Fields(args)...); code != 0 {
			t.Errorf("mol %s: exit code %d: %s", args, code, stderr)
		}
	}
}

func TestConfigShowsNoSecret(t *testing.T) {
	inProject(t, "", "")
	t.Setenv(tokenEnv, "t0ken-of-4-nobody")
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", "https://me:hunter2@git.example.com/x-t0ken-of-4-nobody")
	for _, args := range [][]string{{"config"}, {"config", "--json"}} {
		_, stdout, stderr := runHere(t.Context(), &fakeClient{}, args...)
		if !strings.Contains(stdout, "git.example.com") || strings.Contains(stdout+stderr, "hunter2") || strings.Contains(stdout+stderr, "t0ken") {
			t.Errorf("mol %s:\n%s%s", strings.Join(args, " "), stdout, stderr)
		}
	}
}

// Anyone can write a file into a shared folder such as /tmp.
func TestAProjectFileOfAnotherUserIsIgnored(t *testing.T) {
	inProject(t, "branch = \"of-the-project\"\n", "branch = \"of-the-user\"\n")
	path := findProjectFile()
	if path == "" {
		t.Fatal("the user's own file is not found")
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !ownedByUs(info) {
		t.Error("the user's own file counts as another's")
	}
	if ownedByUs(anothersFile{info}) {
		t.Error("the file of another user counts as the user's own")
	}
	if os.Geteuid() != 0 {
		return
	}
	if err := os.Chown(path, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	if got := findProjectFile(); got != "" {
		t.Errorf("the file of another user is read: %s", got)
	}
	if err := errors.Join(os.Remove(path), os.Symlink(userFile(), path), os.Lchown(path, 12345, 12345)); err != nil {
		t.Fatal(err)
	}
	if got := findProjectFile(); got != "" {
		t.Errorf("a symbolic link of another user is followed: %s", got)
	}
	if err := os.Lchown(path, 0, 0); err != nil {
		t.Fatal(err)
	}
	if got := findProjectFile(); got != path {
		t.Errorf("the user's own symbolic link is not followed: %q", got)
	}
}

// anothersFile belongs to a user who is neither this one nor root.
type anothersFile struct{ fs.FileInfo }

func (anothersFile) Sys() any { return &syscall.Stat_t{Uid: 12345} }

func TestAFIFOAsConfigFileIsRefused(t *testing.T) {
	inProject(t, "", "")
	if err := syscall.Mkfifo(projectFile, 0o644); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := runHere(t.Context(), &fakeClient{}, "list")
	if code != exitUsage || !strings.Contains(stderr, "must be a regular file of at most 64 KiB") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestPathsInAFileDoNotDependOnTheWorkingDirectory(t *testing.T) {
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]string{"~/mol": filepath.Join(home, "mol"), "/a/b": "/a/b", "cache": ""} {
		inProject(t, "", "cache-dir = \""+value+"\"\n")
		if value == "cache" {
			want = filepath.Join(filepath.Dir(userFile()), value)
		}
		if got := effective(t)["cache-dir"].Value; got != want {
			t.Errorf("cache-dir = %q is %q, want %q", value, got, want)
		}
	}
}

func TestADockerContextComesBeforeTheHostOfAFile(t *testing.T) {
	inProject(t, "", "docker-host = \"tcp://10.0.0.1:2375\"\n")
	if got := effective(t)["docker-host"]; got.Value != "tcp://10.0.0.1:2375" {
		t.Errorf("without a context: %+v", got)
	}
	t.Setenv(contextEnv, "other")
	if got := effective(t)["docker-host"]; got.From != contextEnv || got.Value != "the context other" || os.Getenv(hostEnv) != "" {
		t.Errorf("with a context: %+v", got)
	}
	a := &app{from: map[string]string{hostEnv: contextEnv}}
	if got := a.setBy("set DOCKER_HOST"); len(got) > 0 {
		t.Errorf("a hint with a context: %s", got)
	}
}

func TestABuildxBuilderComesBeforeTheBuilderOfAFile(t *testing.T) {
	inProject(t, "", "builder = \"tcp://10.0.0.1:1234\"\nbuilder-ca = \"ca.pem\"\n")
	ca := filepath.Join(filepath.Dir(userFile()), "ca.pem")
	values := effective(t)
	if values["builder"].Value != "tcp://10.0.0.1:1234" || values["builder-ca"].Value != ca {
		t.Errorf("without a variable: %+v", values)
	}
	t.Setenv(buildxEnv, "farm")
	values = effective(t)
	if got := values["builder"]; got.From != buildxEnv || got.Value != "the buildx builder farm" || os.Getenv(builderEnv) != "" {
		t.Errorf("with a variable: %+v", got)
	}
	if got := values["builder-ca"]; got.From != "default" {
		t.Errorf("the TLS files of another builder: %+v", got)
	}
	a := &app{from: map[string]string{builderEnv: buildxEnv}}
	if got := a.setBy("set MOLECULE_LOCAL_BUILDER"); len(got) > 0 {
		t.Errorf("a hint with a variable: %s", got)
	}
}

func TestTLSFilesStayWithTheirBuilder(t *testing.T) {
	file := mol.BuilderTLS{CA: "/of-the-file.pem", ServerName: "b.example"}
	for _, c := range []struct {
		flag, variable string
		builder        string
		tls            mol.BuilderTLS
	}{
		{"", "", "tcp://10.0.0.1:1234", file},
		{"tcp://10.0.0.2:1234", "", "tcp://10.0.0.2:1234", file},
		{" tcp://10.0.0.2:1234", "", " tcp://10.0.0.2:1234", file},
		{"unix:///b.sock", "", "unix:///b.sock", mol.BuilderTLS{}},
		{"default", "tcp://10.0.0.3:1234", "default", mol.BuilderTLS{}},
		{"", "farm", "farm", mol.BuilderTLS{}},
		{"", "tcp://10.0.0.3:1234", "tcp://10.0.0.3:1234", file},
	} {
		inProject(t, "", "builder = \"tcp://10.0.0.1:1234\"\nbuilder-ca = \"/of-the-file.pem\"\nbuilder-server-name = \"b.example\"\n")
		t.Setenv(builderEnv, c.variable)
		args := []string{"ensure", "hermes"}
		if c.flag != "" {
			args = append(args, "--builder", c.flag)
		}
		f := &fakeClient{img: scriptImage()}
		if code, _, stderr := runHere(t.Context(), f, args...); code != 0 {
			t.Fatal(stderr)
		}
		if f.opts.Builder != c.builder || f.opts.BuilderTLS != c.tls {
			t.Errorf("--builder %q and the variable %q: the library gets %v", c.flag, c.variable, f.opts)
		}
	}

	// Together they are wrong, and the library says so.
	inProject(t, "", "builder = \"unix:///b.sock\"\nbuilder-ca = \"/of-the-file.pem\"\n")
	f := &fakeClient{img: scriptImage()}
	if _, _, stderr := runHere(t.Context(), f, "ensure", "hermes"); f.opts.BuilderTLS.CA != "/of-the-file.pem" {
		t.Errorf("the library gets %v: %s", f.opts, stderr)
	}
}

func TestSharedCacheModeOfAFileAppliesOnlyToItsCache(t *testing.T) {
	const own, other = "registry.example/own", "registry.example/other"
	for _, c := range []struct {
		file, variable, mode string // the cache in the file and in the variable, the mode in the variable
		flags                []string
		cache                string
		want                 mol.SharedCacheMode
	}{
		{own, "", "", nil, own, "rw"},
		{own, "", "ro", nil, own, "ro"},
		{own, other, "", nil, other, ""},
		{own, other, "rw", nil, other, "rw"},
		{own, "", "", []string{"--shared-cache", other}, other, ""},
		{own, "", "rw", []string{"--shared-cache", other}, other, "rw"},
		{own, "", "", []string{"--shared-cache", ""}, "", ""},
		{own, "", "rw", []string{"--shared-cache", ""}, "", ""},
		// Together they are wrong, and the library says so.
		{"", "", "", nil, "", "rw"},
	} {
		file := "shared-cache-mode = \"rw\"\n"
		if c.file != "" {
			file += "shared-cache = \"" + c.file + "\"\n"
		}
		inProject(t, "", file)
		t.Setenv(sharedCacheEnv, c.variable)
		t.Setenv(sharedCacheModeEnv, c.mode)
		f := &fakeClient{img: scriptImage()}
		if code, _, stderr := runHere(t.Context(), f, append([]string{"ensure", "hermes"}, c.flags...)...); code != 0 {
			t.Fatal(stderr)
		}
		if f.opts.SharedCache != c.cache || f.opts.SharedCacheMode != c.want {
			t.Errorf("%+v: the library gets %v", c, f.opts)
		}
	}
}

func TestFoldersOfVolumesAreAbsolute(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	volumes := []string{"./a:/x", "b/c:/x:ro", "/d:/x", "named:/x"}
	if err := absoluteFolders(volumes); err != nil {
		t.Fatal(err)
	}
	want := []string{here + "/a:/x", here + "/b/c:/x:ro", "/d:/x", "named:/x"}
	if !slices.Equal(volumes, want) {
		t.Errorf("got %q, want %q", volumes, want)
	}
}
