package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"
)

// Where a setting is read from, highest precedence first: its flag, its variable, the project's file, the user's file,
// the default.

// projectFile is the name of a project's file, in the working directory or the nearest folder above it.
const projectFile = ".mol.toml"

// A setting is a key of the configuration files, with its variable. The token has no key and no flag: all users can see
// flags, in ps and /proc, and projects and backups are shared.
type setting struct {
	key, env string
	usage    string // with the name of a flag's value in backquotes, as pflag has it
	flag     bool   // --key exists
	// defaultText describes the default.
	defaultText string
	// kind is the type of the value in a file: "true or false", or "" for text or a whole number.
	kind string
	// userFileOnly settings are not read from a project's file: whoever wrote the project could send the user's token to
	// another server, or the user's files to another engine or registry.
	userFileOnly bool
	// path settings are paths: in a file, relative to its folder.
	path bool
	// belongsTo is the variable that this setting belongs to, "" for none; see isOverridden.
	belongsTo string
}

// settings are the keys, in the order of mol config.
var settings = []setting{
	{key: "repo-prefix", env: "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", userFileOnly: true, defaultText: "https://git.moleculesai.app/molecule-ai/molecule-ai-workspace-template-",
		flag: true, usage: "`URL` of the template repositories, up to the runtime's name"},
	{key: "branch", env: "MOLECULE_LOCAL_TEMPLATE_BRANCH", defaultText: "main, else the default branch of the repository", flag: true, usage: "`branch` of the template to build"},
	{key: "platform", env: "MOLECULE_IMAGE_PLATFORM", defaultText: "linux/amd64", flag: true, usage: "`os/arch` to build for, or native"},
	{key: "isolation", env: "MOLECULE_LOCAL_IMAGE_ISOLATION", defaultText: "none", flag: true, usage: "`suffix` of the tags, to separate these images from others"},
	{key: "cache-dir", env: cacheEnv, userFileOnly: true, path: true, defaultText: "below the user's cache folder", flag: true,
		usage: "`folder` for fetched templates; a relative path is relative to the working directory or, in a configuration file, to that file's folder"},
	{key: "docker-host", env: hostEnv, userFileOnly: true, defaultText: "the docker context, else the first well-known socket that answers", flag: true,
		usage: "`address` of the container engine"},
	{key: "builder", env: builderEnv, userFileOnly: true, defaultText: "the engine's own", flag: true,
		usage: "`address` of a BuildKit daemon to build with, or the name of a buildx builder"},
	{key: "builder-ca", env: "MOLECULE_LOCAL_BUILDER_CA", userFileOnly: true, path: true, belongsTo: builderEnv, defaultText: "none",
		usage: "PEM file of the certificates to trust for a builder at a tcp:// address: the CA's, or the builder's own"},
	{key: "builder-cert", env: "MOLECULE_LOCAL_BUILDER_CERT", userFileOnly: true, path: true, belongsTo: builderEnv, defaultText: "none",
		usage: "PEM file of the client's certificate for the builder"},
	{key: "builder-key", env: "MOLECULE_LOCAL_BUILDER_KEY", userFileOnly: true, path: true, belongsTo: builderEnv, defaultText: "none",
		usage: "PEM file of the key of that certificate"},
	{key: "builder-server-name", env: "MOLECULE_LOCAL_BUILDER_SERVER_NAME", userFileOnly: true, belongsTo: builderEnv,
		defaultText: "the host of the builder's address", usage: "name in the builder's certificate"},
	{key: "shared-cache", env: sharedCacheEnv, userFileOnly: true, defaultText: "none", flag: true,
		usage: "`registry/path` of a build cache that several machines share"},
	{key: "shared-cache-mode", env: sharedCacheModeEnv, userFileOnly: true, belongsTo: sharedCacheEnv, defaultText: "ro",
		usage: "ro: the shared cache is only read; rw: builds also write it"},
	{key: "offline", env: offlineEnv, kind: "true or false", defaultText: "false", flag: true, usage: "no network: the newest local image"},
	{key: "runtime-version-pin", env: "MOLECULE_LOCAL_RUNTIME_VERSION_PIN", kind: "true or false", defaultText: "false",
		usage: "pass the template's .runtime-version to the build as the build argument RUNTIME_VERSION"},
	{key: "stall-grace", env: "MOLECULE_BUILD_STALL_GRACE_S", defaultText: "4m", usage: "how long a fetch or a build may run without progress: seconds, or a duration such as 4m"},
	{key: "ceiling", env: "MOLECULE_BUILD_CEILING_S", defaultText: "30m", usage: "time limit of a call without --timeout: seconds, or a duration such as 30m"},
	{key: "memory-mib", env: "MOLECULE_BUILD_MEMORY_MIB", defaultText: "512", usage: "memory limit of the library, in MiB"},
}

// userFile is the path of the user's file, "" if the user has no folder for it.
func userFile() string {
	folder := os.Getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(folder) { // the XDG specification ignores a relative one
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		folder = filepath.Join(home, ".config")
	}
	return filepath.Join(folder, "molecule", "mol.toml")
}

// findProjectFile returns the path of the project's file, "" if there is none.
func findProjectFile() string {
	folder, err := os.Getwd()
	if err != nil {
		return ""
	}
	for {
		path := filepath.Join(folder, projectFile)
		// Like git's safe.directory check: ignore a file or a symbolic link of another user, because anyone can create
		// one in a shared folder such as /tmp.
		link, err := os.Lstat(path)
		if err == nil && ownedByUs(link) {
			if file, err := os.Stat(path); err == nil && ownedByUs(file) {
				return path
			}
		}
		above := filepath.Dir(folder)
		if above == folder {
			return ""
		}
		folder = above
	}
}

// ownedByUs reports whether a file belongs to this user or to root.
func ownedByUs(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && (int(stat.Uid) == os.Geteuid() || stat.Uid == 0)
}

// loadConfig reads the files and sets the environment variable of each setting in them, unless it is set already: all
// values, also those of flags, are later read from the environment. It records where each value comes from.
func (a *app) loadConfig() error {
	a.from = map[string]string{}
	for _, s := range settings {
		switch {
		case os.Getenv(s.env) != "":
			a.from[s.env] = s.env
		case s.env == hostEnv && os.Getenv(contextEnv) != "":
			a.from[s.env] = contextEnv
		case s.env == builderEnv && os.Getenv(buildxEnv) != "":
			a.from[s.env] = buildxEnv
		}
	}
	user := userFile()
	for _, path := range []string{findProjectFile(), user} {
		if path == "" {
			continue
		}
		values, err := readConfig(path, path != user)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, s := range settings {
			if value, ok := values[s.key]; ok && a.from[s.env] == "" && !a.isOverridden(s, path) {
				a.from[s.env] = path
				if err := os.Setenv(s.env, value); err != nil {
					return fmt.Errorf("%s: %s: %w", path, s.key, err)
				}
			}
		}
	}
	return nil
}

// isOverridden reports whether a setting is ignored because the builder or the shared cache that it belongs to comes from
// another source, such as a flag. TLS files are ignored for a builder without a tcp:// address, where they would be an
// error. The mode of a shared cache in a file applies only to the cache of the same file.
func (a *app) isOverridden(s setting, source string) bool {
	from := a.from[s.belongsTo]
	if from == "" || from == source {
		return false
	}
	value := strings.TrimSpace(os.Getenv(s.belongsTo))
	switch s.belongsTo {
	case builderEnv:
		return !strings.HasPrefix(value, "tcp://")
	case sharedCacheEnv:
		return value == "" || source != s.env
	}
	return false
}

// readConfig reads a file: the values of the variables, by key.
func readConfig(path string, project bool) (map[string]string, error) {
	text, err := readSmallFile(path)
	if err != nil {
		return nil, err
	}
	var found map[string]any
	if err := toml.Unmarshal(text, &found); err != nil {
		var syntax *toml.DecodeError
		if errors.As(err, &syntax) {
			row, column := syntax.Position()
			return nil, fmt.Errorf("%s:%d:%d: %s", path, row, column, strings.TrimPrefix(syntax.Error(), "toml: "))
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	values := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(found)) { // always the same error first
		i := slices.IndexFunc(settings, func(s setting) bool { return s.key == key })
		if i < 0 {
			return nil, fmt.Errorf("%s: unknown setting %q; the settings are %s", path, key, strings.Join(keys(), ", "))
		}
		s := settings[i]
		if project && s.userFileOnly {
			return nil, fmt.Errorf("%s: %s is not read from a project's file, because it decides where your token and your files go: "+
				"move it to %s, or set %s", path, key, userFile(), s.env)
		}
		text, err := settingText(s, found[key])
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", path, key, err)
		}
		if s.path {
			text = absolute(text, filepath.Dir(path))
		}
		values[key] = text
	}
	return values, nil
}

// readSmallFile reads a regular file of at most 64 KiB. It does not wait for a FIFO.
func readSmallFile(path string) ([]byte, error) {
	const most = 64 << 10
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("%s must be a regular file of at most 64 KiB", path)
	}
	return io.ReadAll(io.LimitReader(file, most))
}

// absolute makes the path of a file's setting absolute: relative to the folder of the file, or to the home folder.
func absolute(path, folder string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if home, err := os.UserHomeDir(); err == nil {
			return filepath.Join(home, rest)
		}
	}
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(folder, path)
}

// settingText returns a value as its variable has it.
func settingText(s setting, value any) (string, error) {
	switch value := value.(type) {
	case bool:
		if s.kind == "" {
			return "", errors.New("use text in quotes")
		}
		if value {
			return "1", nil
		}
		return "0", nil
	case string:
		if s.kind != "" {
			return "", errors.New("use " + s.kind + ", without quotes")
		}
		return value, nil
	case int64:
		if s.kind != "" {
			return "", errors.New("use " + s.kind)
		}
		return fmt.Sprint(value), nil
	}
	return "", errors.New("use text in quotes, a whole number, true or false")
}

func keys() []string {
	var keys []string
	for _, s := range settings {
		keys = append(keys, s.key)
	}
	return keys
}
