package mol

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options say where templates come from, where images go and who is told about it. The zero value works: it
// is what an environment without any MOLECULE_ variable gives.
//
// The token does not show when Options are printed or logged, also as an exported field of something else.
// The fmt package does not ask for that where Options are in an unexported field, or for the verb %p, so do
// not print those.
type Options struct {
	// RepoPrefix is the URL that a template's repository begins with; the runtime name is appended.
	// "": https://git.moleculesai.app/molecule-ai/molecule-ai-workspace-template-.
	// Environment: MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX.
	RepoPrefix string
	// Branch is the branch whose head is built. "": main, or where that does not exist the repository's
	// default branch. Environment: MOLECULE_LOCAL_TEMPLATE_BRANCH.
	Branch string
	// Token is a Gitea access token for templates that are not public. It goes to the origin of RepoPrefix
	// and to nobody else. It has 8 to 1024 visible ASCII characters. Environment: MOLECULE_GITEA_TOKEN.
	Token string
	// CacheDir is the folder for fetched templates. A relative path begins at the working directory that the process has
	// in [New]. "": molecule/workspace-template-build in the user's cache folder.
	// Environment: MOLECULE_LOCAL_BUILD_CACHE.
	CacheDir string
	// Platform is what images are built for: os/arch[/variant], or "native" for the engine's own.
	// "": linux/amd64. [Image.Platform] says what it came to. Environment: MOLECULE_IMAGE_PLATFORM.
	Platform string
	// Isolation is appended to every tag as --<token>, so that two servers on one engine keep their images
	// apart: [a-z0-9][a-z0-9_.-]*, at most 48 characters. White space around it is dropped. "": nothing is appended.
	// Environment: MOLECULE_LOCAL_IMAGE_ISOLATION.
	Isolation string
	// DockerHost is the engine's address as in DOCKER_HOST: unix:// or tcp://. "": the one that the docker
	// command would use, else the first of the well-known sockets that answers. Environment: DOCKER_HOST.
	DockerHost string
	// Offline asks for the newest local image of the runtime, with no network at all.
	// Environment: MOLECULE_LOCAL_OFFLINE.
	Offline bool
	// Runtimes is the allowlist, in place of the default one ([KnownRuntimes]). It decides for everything that takes or
	// lists runtimes. A name matches [a-z0-9][a-z0-9-]*, has at most 64 characters and no hyphen at the end. nil: the
	// default list. It is not read from the environment.
	Runtimes []string
	// Pins has commits to use in place of a branch's head, by runtime, each with all 40 or 64 hexadecimal digits.
	// [Client.EnsureLocalImage] then does for such a runtime what [Client.EnsureCommit] does. It is not read from the
	// environment.
	Pins map[string]string
	// TagArch says which tags have the architecture in them. "": [TagArchAuto]. It is not read from the environment.
	TagArch TagArch
	// RuntimeVersionPin hands the template's .runtime-version to its build as the build arg RUNTIME_VERSION.
	// Environment: MOLECULE_LOCAL_RUNTIME_VERSION_PIN.
	RuntimeVersionPin bool
	// StallGrace is how long a fetch or a build may go on without any output, rounded up to whole milliseconds.
	// 0: 240 s; else from 1 ms to 365 days. Environment: MOLECULE_BUILD_STALL_GRACE_S, whole seconds, or hours, minutes,
	// seconds and milliseconds such as 1m30s.
	StallGrace time.Duration
	// Ceiling is how long a call may take whose context has no deadline, rounded up to whole milliseconds.
	// 0: 1800 s; else from 1 ms to 365 days. Environment: MOLECULE_BUILD_CEILING_S, as for StallGrace.
	Ceiling time.Duration
	// MemoryMiB is the most memory that the library takes, in MiB, whatever a template holds: a template that
	// needs more is an error. It is shared by all clients of the process. 0: 512; else at least 256.
	// Environment: MOLECULE_BUILD_MEMORY_MIB.
	MemoryMiB int

	// Logger, if set, gets every event as a log record: what an operator wants to see of every workspace
	// that boots at level Info, the rest, such as each line of a build's output, at Debug. Without it
	// nothing is logged anywhere.
	Logger *slog.Logger
	// OnEvent, if set, is called for every event, in order and from one goroutine, so it needs no lock of
	// its own. When a call returns, its events have been handed over; only where OnEvent is slow the call does
	// not wait, for more than a tenth of a second, until it has caught up. While it is more than about a
	// thousand events behind, lines of build output are left out, which an event of kind [EventThinned]
	// counts. A panic in it is caught and goes to Logger. It should not call [Client.Close], which would wait
	// for it.
	OnEvent func(Event)

	// What the environment says and no public field holds.
	env environment
	// logger stands for Logger where that may change in the life of the client.
	logger func() *slog.Logger
}

// TagArch says which tags of an image have its architecture in them.
type TagArch string

const (
	// TagArchAuto puts -<arch>[-<variant>] into both tags for every platform but linux/amd64.
	TagArchAuto TagArch = "auto"
	// TagArchAlways puts -<arch> into every pinned tag, without the variant, and nothing into the moving tag. Images for
	// two variants of one architecture share a tag then; one that was built for the other variant is built again.
	TagArchAlways TagArch = "always"
)

// environment is what the library is told besides the public fields, in the variables' own syntax.
type environment struct {
	captured bool

	// What a public field cannot hold because it is no number or no switch. The library judges it, so that
	// a mistyped value is an error that shows it, and not the default.
	offline, runtimeVersionPin, stallGrace, ceiling, memory string

	dockerContext, dockerConfig, dockerTLSVerify, dockerCertPath, dockerBuildKit string
	httpsProxy, httpProxy, noProxy                                               string
	sslCertFile, sslCertDir                                                      string
	home, xdgCacheHome, xdgRuntimeDir, tmpDir, searchPath                        string
}

// OptionsFromEnv reads the environment: the MOLECULE_ variables, and what else the library needs to know of
// the machine (DOCKER_*, proxies, certificates, home and temporary folders). A value that cannot be used,
// such as a number that is none, is kept as it is and makes [New] fail; its field is zero, and setting the field takes
// its place.
//
// For Options that do not come from here, New reads DOCKER_*, proxies, certificates and folders itself;
// DOCKER_HOST only where the field DockerHost is empty.
func OptionsFromEnv() Options {
	o := Options{
		RepoPrefix: os.Getenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX"),
		Branch:     os.Getenv("MOLECULE_LOCAL_TEMPLATE_BRANCH"),
		Token:      os.Getenv(envToken),
		CacheDir:   os.Getenv("MOLECULE_LOCAL_BUILD_CACHE"),
		Platform:   os.Getenv(envPlatform),
		Isolation:  os.Getenv(envIsolation),
	}
	o.env.capture()
	o.DockerHost = os.Getenv("DOCKER_HOST")
	o.Offline, o.env.offline = switchFromEnv("MOLECULE_LOCAL_OFFLINE")
	o.RuntimeVersionPin, o.env.runtimeVersionPin = switchFromEnv("MOLECULE_LOCAL_RUNTIME_VERSION_PIN")
	o.StallGrace, o.env.stallGrace = durationFromEnv("MOLECULE_BUILD_STALL_GRACE_S")
	o.Ceiling, o.env.ceiling = durationFromEnv(envCeiling)
	o.MemoryMiB, o.env.memory = memoryFromEnv("MOLECULE_BUILD_MEMORY_MIB")
	return o
}

const (
	envToken     = "MOLECULE_GITEA_TOKEN"
	envPlatform  = "MOLECULE_IMAGE_PLATFORM"
	envIsolation = "MOLECULE_LOCAL_IMAGE_ISOLATION"
	envCeiling   = "MOLECULE_BUILD_CEILING_S"
)

// DefaultProvisionCeiling returns how long a call may take whose context has no deadline: MOLECULE_BUILD_CEILING_S, or
// 30 minutes. A value that is not allowed (see [Options.StallGrace]) counts as unset here; [New] and [EnsureLocalImage]
// refuse it.
func DefaultProvisionCeiling() time.Duration {
	if ceiling, _ := durationFromEnv(envCeiling); ceiling > 0 {
		return ceiling
	}
	return 30 * time.Minute
}

// LocalImageIsolation returns the isolation token in force, MOLECULE_LOCAL_IMAGE_ISOLATION without white space around
// it, or "" for none. It does not check the token: [New] and [EnsureLocalImage] refuse an invalid one.
func LocalImageIsolation() string { return strings.TrimSpace(os.Getenv(envIsolation)) }

// capture reads what has no public field.
func (e *environment) capture() {
	e.captured = true
	e.dockerContext = os.Getenv("DOCKER_CONTEXT")
	e.dockerConfig = os.Getenv("DOCKER_CONFIG")
	e.dockerTLSVerify = os.Getenv("DOCKER_TLS_VERIFY")
	e.dockerCertPath = os.Getenv("DOCKER_CERT_PATH")
	e.dockerBuildKit = os.Getenv("DOCKER_BUILDKIT")
	e.httpsProxy = proxyFromEnv("HTTPS_PROXY")
	e.httpProxy = proxyFromEnv("HTTP_PROXY")
	e.noProxy = proxyFromEnv("NO_PROXY")
	e.sslCertFile = os.Getenv("SSL_CERT_FILE")
	e.sslCertDir = os.Getenv("SSL_CERT_DIR")
	e.home = os.Getenv("HOME")
	e.xdgCacheHome = os.Getenv("XDG_CACHE_HOME")
	e.xdgRuntimeDir = os.Getenv("XDG_RUNTIME_DIR")
	e.tmpDir = os.Getenv("TMPDIR")
	e.searchPath = os.Getenv("PATH")
}

// proxyFromEnv prefers the lower-case name, as curl does; empty is a value too, and switches a proxy off.
func proxyFromEnv(name string) string {
	if value, set := os.LookupEnv(strings.ToLower(name)); set {
		return value
	}
	return os.Getenv(name)
}

// switchFromEnv reads a variable that is "1" or unset; what is no switch at all comes back raw.
func switchFromEnv(name string) (on bool, raw string) {
	switch value := os.Getenv(name); value {
	case "", "0", "false":
		return false, ""
	case "1", "true":
		return true, ""
	default:
		return false, value
	}
}

// durationFromEnv reads whole seconds, or a duration in hours, minutes, seconds and milliseconds, from a millisecond to
// 365 days: what the library takes. Anything else comes back raw, so that its error quotes it as it was set.
func durationFromEnv(name string) (time.Duration, string) {
	value := os.Getenv(name)
	text := value
	switch {
	case wholeSeconds.MatchString(text):
		text += "s"
	case !unitDuration.MatchString(text):
		return 0, value
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Millisecond || d > longestDuration {
		return 0, value
	}
	return d, ""
}

var (
	wholeSeconds = regexp.MustCompile(`^[0-9]+$`)
	unitDuration = regexp.MustCompile(`^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$`)
)

const longestDuration = 365 * 24 * time.Hour

// memoryFromEnv reads a number of MiB; what is not one comes back raw.
func memoryFromEnv(name string) (int, string) {
	value := os.Getenv(name)
	n, err := strconv.Atoi(value)
	if err != nil || n <= 0 || strconv.Itoa(n) != value {
		return 0, value
	}
	return n, ""
}

// option names a mol_option of mol.h; the numbers there are its own, and only bridge_cgo.go knows them.
type option int

const (
	optionRepoPrefix option = iota
	optionBranch
	optionToken
	optionCacheDir
	optionPlatform
	optionIsolation
	optionDockerHost
	optionOffline
	optionRuntimeVersionPin
	optionStallGraceS
	optionCeilingS
	optionDockerContext
	optionDockerConfig
	optionDockerTLSVerify
	optionDockerCertPath
	optionDockerBuildKit
	optionHTTPSProxy
	optionHTTPProxy
	optionNoProxy
	optionSSLCertFile
	optionSSLCertDir
	optionHome
	optionXDGCacheHome
	optionXDGRuntimeDir
	optionTmpDir
	optionSearchPath
	optionMemoryMiB
	optionRuntimes
	optionTagArch
	optionPins
)

// setting is one option as the library takes it: a string in the syntax of the environment variable.
type setting struct {
	option option
	// name is what an error calls it.
	name  string
	value string
}

// settings are the options that are set, or the reason why they cannot be handed over.
func (o *Options) settings() ([]setting, error) {
	if !o.env.captured {
		o.env.capture()
		if o.DockerHost == "" {
			o.DockerHost = os.Getenv("DOCKER_HOST")
		}
	}
	stallGrace, err := durationSetting("StallGrace", o.StallGrace, o.env.stallGrace)
	if err != nil {
		return nil, err
	}
	ceiling, err := durationSetting("Ceiling", o.Ceiling, o.env.ceiling)
	if err != nil {
		return nil, err
	}
	runtimes, err := runtimesSetting(o.Runtimes, masker(o.Token))
	if err != nil {
		return nil, err
	}
	pins, err := pinsSetting(o.Pins, masker(o.Token))
	if err != nil {
		return nil, err
	}
	all := []setting{
		{optionRepoPrefix, "RepoPrefix", o.RepoPrefix},
		{optionBranch, "Branch", o.Branch},
		{optionToken, "Token", o.Token},
		{optionCacheDir, "CacheDir", o.CacheDir},
		{optionPlatform, "Platform", o.Platform},
		{optionIsolation, "Isolation", o.Isolation},
		{optionDockerHost, "DockerHost", o.DockerHost},
		{optionOffline, "Offline", switchSetting(o.Offline, o.env.offline)},
		{optionRuntimeVersionPin, "RuntimeVersionPin", switchSetting(o.RuntimeVersionPin, o.env.runtimeVersionPin)},
		{optionStallGraceS, "StallGrace", stallGrace},
		{optionCeilingS, "Ceiling", ceiling},
		{optionDockerContext, "DOCKER_CONTEXT", o.env.dockerContext},
		{optionDockerConfig, "DOCKER_CONFIG", o.env.dockerConfig},
		{optionDockerTLSVerify, "DOCKER_TLS_VERIFY", o.env.dockerTLSVerify},
		{optionDockerCertPath, "DOCKER_CERT_PATH", o.env.dockerCertPath},
		{optionDockerBuildKit, "DOCKER_BUILDKIT", o.env.dockerBuildKit},
		{optionHTTPSProxy, "HTTPS_PROXY", o.env.httpsProxy},
		{optionHTTPProxy, "HTTP_PROXY", o.env.httpProxy},
		{optionNoProxy, "NO_PROXY", o.env.noProxy},
		{optionSSLCertFile, "SSL_CERT_FILE", o.env.sslCertFile},
		{optionSSLCertDir, "SSL_CERT_DIR", o.env.sslCertDir},
		{optionHome, "HOME", o.env.home},
		{optionXDGCacheHome, "XDG_CACHE_HOME", o.env.xdgCacheHome},
		{optionXDGRuntimeDir, "XDG_RUNTIME_DIR", o.env.xdgRuntimeDir},
		{optionTmpDir, "TMPDIR", o.env.tmpDir},
		{optionSearchPath, "PATH", o.env.searchPath},
		{optionMemoryMiB, "MemoryMiB", memorySetting(o.MemoryMiB, o.env.memory)},
		{optionRuntimes, "Runtimes", runtimes},
		{optionTagArch, "TagArch", string(o.TagArch)},
		{optionPins, "Pins", pins},
	}
	set := all[:0]
	for _, s := range all {
		if strings.IndexByte(s.value, 0) >= 0 {
			// It would reach the library cut short.
			return nil, &Error{
				Code:    CodeInvalidOption,
				Message: fmt.Sprintf("option %s holds a NUL byte", s.name),
				Hint:    "remove it",
			}
		}
		if s.value != "" {
			set = append(set, s)
		}
	}
	return set, nil
}

func switchSetting(on bool, raw string) string {
	if on {
		return "1"
	}
	return raw
}

func durationSetting(name string, d time.Duration, raw string) (string, error) {
	switch {
	case d < 0:
		return "", &Error{
			Code:    CodeInvalidOption,
			Message: fmt.Sprintf("option %s is negative: %s", name, d),
			Hint:    "give a positive duration, or 0 for the default",
		}
	case d == 0:
		return raw, nil
	}
	if d%time.Second == 0 {
		return strconv.FormatInt(int64(d/time.Second), 10), nil
	}
	ms := int64(d / time.Millisecond)
	if d%time.Millisecond != 0 {
		ms++
	}
	return strconv.FormatInt(ms, 10) + "ms", nil
}

// memorySetting leaves what is too little to the library, which knows the least.
func memorySetting(mib int, raw string) string {
	if mib == 0 {
		return raw
	}
	return strconv.Itoa(mib)
}

// redacted gives the options as pairs of name and value, without what is unset, and without secrets.
func (o Options) redacted() (names, values []string) {
	add := func(name, value string) {
		if value != "" {
			names, values = append(names, name), append(values, MaskTokenInString(maskUserinfo(value), o.Token))
		}
	}
	add("RepoPrefix", o.RepoPrefix)
	add("Branch", o.Branch)
	if o.Token != "" {
		names, values = append(names, "Token"), append(values, mask)
	}
	add("CacheDir", o.CacheDir)
	add("Platform", o.Platform)
	add("Isolation", o.Isolation)
	add("Runtimes", strings.Join(o.Runtimes, ","))
	for _, runtime := range slices.Sorted(maps.Keys(o.Pins)) {
		add("Pins["+MaskTokenInString(runtime, o.Token)+"]", o.Pins[runtime])
	}
	add("TagArch", string(o.TagArch))
	add("DockerHost", o.DockerHost)
	add("Offline", switchSetting(o.Offline, o.env.offline))
	add("RuntimeVersionPin", switchSetting(o.RuntimeVersionPin, o.env.runtimeVersionPin))
	add("StallGrace", durationText(o.StallGrace, o.env.stallGrace))
	add("Ceiling", durationText(o.Ceiling, o.env.ceiling))
	add("MemoryMiB", memorySetting(o.MemoryMiB, o.env.memory))
	return names, values
}

// maskUserinfo is MaskTokenInURL for what should be a URL but may have lost its scheme.
func maskUserinfo(value string) string {
	if masked := MaskTokenInURL(value); masked != value || strings.Contains(value, "://") {
		return masked
	}
	if at := strings.LastIndexByte(value, '@'); at >= 0 {
		return mask + value[at:]
	}
	return value
}

func durationText(d time.Duration, raw string) string {
	if d == 0 {
		return raw
	}
	return d.String()
}

// String gives the options that are set, with *** for the token and for the userinfo of URLs.
func (o Options) String() string {
	names, values := o.redacted()
	var b strings.Builder
	b.WriteString("mol.Options{")
	for i := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(names[i])
		b.WriteString(": ")
		b.WriteString(strconv.Quote(values[i]))
	}
	b.WriteString("}")
	return b.String()
}

// GoString is [Options.String]: %#v shows no more than the other verbs.
func (o Options) GoString() string { return o.String() }

// Format is [Options.String] for every verb, those included that would print the fields one by one.
func (o Options) Format(f fmt.State, _ rune) { fmt.Fprint(f, o.String()) }

// LogValue gives the options that are set as a group, with *** for the token and for the userinfo of URLs.
func (o Options) LogValue() slog.Value {
	names, values := o.redacted()
	attrs := make([]slog.Attr, len(names))
	for i := range names {
		attrs[i] = slog.String(names[i], values[i])
	}
	return slog.GroupValue(attrs...)
}
