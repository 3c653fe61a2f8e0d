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
	"unicode/utf8"
)

// Options are the settings of a [Client]. The zero value works and has the defaults, as with an environment without
// MOLECULE_ variables.
//
// The token is masked when Options are printed or logged, also as an exported field of another struct. The fmt package
// calls no method for an unexported field or for the verb %p, so do not print Options in these ways.
type Options struct {
	// RepoPrefix is the URL of the template repositories without the runtime name, which is appended.
	// "": https://git.moleculesai.app/molecule-ai/molecule-ai-workspace-template-.
	// Environment: MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX.
	RepoPrefix string
	// Branch is the branch whose head is built. "": main, or the repository's default branch if there is no main.
	// Environment: MOLECULE_LOCAL_TEMPLATE_BRANCH.
	Branch string
	// Token is a Gitea access token for private templates. It is sent only to the origin of RepoPrefix. It has 8 to
	// 1024 visible ASCII characters. Environment: MOLECULE_GITEA_TOKEN.
	Token string
	// CacheDir is the folder for fetched templates. A relative path is relative to the working directory at the time of
	// [New]. "": molecule/workspace-template-build in the user's cache folder.
	// Environment: MOLECULE_LOCAL_BUILD_CACHE.
	CacheDir string
	// Platform is the platform of the images: os/arch[/variant], or "native" for that of the engine. "": linux/amd64.
	// [Image.Platform] has the result. Environment: MOLECULE_IMAGE_PLATFORM.
	Platform string
	// Isolation is appended to every tag as --<token>, so that two servers on one engine have separate images:
	// [a-z0-9][a-z0-9_.-]*, at most 48 characters. Surrounding white space is removed. "": nothing is appended.
	// Environment: MOLECULE_LOCAL_IMAGE_ISOLATION.
	Isolation string
	// DockerHost is the engine's address as in DOCKER_HOST: unix://, tcp:// or ssh://. "": the engine that the docker
	// command would use, or else the first of the well-known sockets that answers. Environment: DOCKER_HOST.
	DockerHost string
	// Builder is where images are built: the address of a BuildKit daemon, as unix:///path or tcp://host:port, or the
	// name of a buildx builder with the driver remote or docker-container. "": the engine's own builder, or the one that
	// BUILDX_BUILDER names; "default" is always the engine's own. The image always ends up in the engine. There is no
	// fallback to another builder: a call fails with [ErrBuilderUnreachable] if no node of this one can be used.
	// Environment: MOLECULE_LOCAL_BUILDER.
	Builder string
	// BuilderTLS is the TLS of a Builder with a tcp:// address. Zero: no TLS, which is allowed only for localhost and
	// loopback addresses. A buildx builder has TLS files of its own.
	BuilderTLS BuilderTLS
	// SharedCache is a build cache in a registry, which several machines share: host[:port]/path in lower case, without a
	// scheme and a tag, such as registry.example/team/cache. Each runtime and platform has a reference of its own below
	// it. A build takes only the results of its steps from the cache, never a whole image. If the cache cannot be used,
	// the build warns and runs the steps. Only BuildKit uses it, not the classic builder or Podman. "": none.
	// Environment: MOLECULE_LOCAL_SHARED_CACHE.
	SharedCache string
	// SharedCacheMode says whether builds also write SharedCache. "": [SharedCacheReadOnly].
	// Environment: MOLECULE_LOCAL_SHARED_CACHE_MODE.
	SharedCacheMode SharedCacheMode
	// Offline returns the newest local image of the runtime, without any network access.
	// Environment: MOLECULE_LOCAL_OFFLINE.
	Offline bool
	// Runtimes replaces the default allowlist ([KnownRuntimes]) in everything that takes or lists runtimes. A name
	// matches [a-z0-9][a-z0-9-]*, has at most 64 characters and no hyphen at the end. nil: the default list. It is not
	// read from the environment.
	Runtimes []string
	// Pins maps runtimes to commits to use instead of a branch's head, each with all 40 or 64 hexadecimal digits. For
	// such a runtime [Client.EnsureLocalImage] does what [Client.EnsureCommit] does. It is not read from the environment.
	Pins map[string]string
	// TagArch says which tags contain the architecture. "": [TagArchAuto]. It is not read from the environment.
	TagArch TagArch
	// RuntimeVersionPin passes the template's .runtime-version to its build as the build argument RUNTIME_VERSION.
	// Environment: MOLECULE_LOCAL_RUNTIME_VERSION_PIN.
	RuntimeVersionPin bool
	// StallGrace is how long a fetch or a build may run without progress, rounded up to whole milliseconds. 0: 240 s;
	// otherwise 1 ms to 365 days. Environment: MOLECULE_BUILD_STALL_GRACE_S, in whole seconds, or in hours, minutes,
	// seconds and milliseconds such as 1m30s.
	StallGrace time.Duration
	// Ceiling is the time limit of a call whose context has no deadline, rounded up to whole milliseconds. 0: 1800 s;
	// otherwise 1 ms to 365 days. Environment: MOLECULE_BUILD_CEILING_S, as for StallGrace.
	Ceiling time.Duration
	// MemoryMiB is the library's memory limit in MiB, shared by all clients of the process. A template that needs more is
	// an error. 0: 512; otherwise at least 256.
	// Environment: MOLECULE_BUILD_MEMORY_MIB.
	MemoryMiB int

	// Logger, if set, gets every event as a log record: the main steps at level Info, warnings at Warn, and the rest,
	// such as each line of a build's output, at Debug. nil: nothing is logged.
	Logger *slog.Logger
	// OnEvent, if set, is called for every event, in order and from one goroutine, so it needs no lock. A call returns
	// after its events have been delivered, but waits for a slow OnEvent no longer than a tenth of a second. While OnEvent
	// is more than about a thousand events behind, lines of build output and progress events are left out; an event of
	// kind [EventThinned] says how many. A panic in OnEvent is caught and logged to Logger. OnEvent should not call
	// [Client.Close], which would wait for it.
	OnEvent func(Event)

	// Values of the environment that have no public field.
	env environment
	// logger, if set, replaces Logger; its result may change while the client exists.
	logger func() *slog.Logger
}

// TagArch says which tags of an image contain its architecture.
type TagArch string

const (
	// TagArchAuto adds -<arch>[-<variant>] to both tags, for every platform but linux/amd64.
	TagArchAuto TagArch = "auto"
	// TagArchAlways adds -<arch>, without the variant, to every tag with a commit, and nothing to the moving tag. Images
	// for two variants of one architecture then share a tag; an image for the other variant is built again.
	TagArchAlways TagArch = "always"
)

// SharedCacheMode says what builds do with [Options.SharedCache].
type SharedCacheMode string

const (
	// SharedCacheReadOnly only reads the shared cache.
	SharedCacheReadOnly SharedCacheMode = "ro"
	// SharedCacheReadWrite also writes the shared cache, after each build on the builder in [Options.Builder]. The
	// image then goes from that builder into the engine through the cache's registry. The engine's own builder cannot
	// write the cache, and warns. Without [Options.SharedCache], this mode is an error ([ErrInvalidOption]). Whoever
	// may write a shared cache can change the images of all who read it.
	SharedCacheReadWrite SharedCacheMode = "rw"
)

// BuilderTLS has the PEM files and the name for the TLS connection to a builder. The files are read at each build; a
// relative path is relative to the working directory at that time. With another kind of builder than a tcp:// address,
// any of them is an error ([ErrInvalidOption]).
type BuilderTLS struct {
	// CA is the file of the certificates to trust: the CA's, or the builder's own. "": no TLS.
	// Environment: MOLECULE_LOCAL_BUILDER_CA.
	CA string
	// Cert is the file of this client's certificate, if the builder requires one. It needs Key and CA.
	// Environment: MOLECULE_LOCAL_BUILDER_CERT.
	Cert string
	// Key is the file of the key of Cert. Environment: MOLECULE_LOCAL_BUILDER_KEY.
	Key string
	// ServerName is the host name or IP address in the builder's certificate. It needs CA. "": the host of the address.
	// Environment: MOLECULE_LOCAL_BUILDER_SERVER_NAME.
	ServerName string
}

// environment has the library's other settings, in the syntax of the environment variables.
type environment struct {
	// machine has the values of machineVariables; nil if they were not read.
	machine map[string]string

	// invalid has the values of variables that their field cannot hold. The library refuses them with an error that quotes
	// the value.
	invalid map[string]string
}

// machineVariables are about the machine and have no field in [Options].
var machineVariables = []string{
	"DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_BUILDKIT",
	"BUILDX_BUILDER", "BUILDX_CONFIG",
	"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "TMPDIR", "PATH",
}

// envOption is an option that has a field and a variable.
type envOption struct {
	variable, field string
	value           func(*Options) any // a pointer to the field
}

// envOptions are all of them, in the order in which they are shown.
var envOptions = []envOption{
	{"MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", "RepoPrefix", func(o *Options) any { return &o.RepoPrefix }},
	{"MOLECULE_LOCAL_TEMPLATE_BRANCH", "Branch", func(o *Options) any { return &o.Branch }},
	{envToken, "Token", func(o *Options) any { return &o.Token }},
	{"MOLECULE_LOCAL_BUILD_CACHE", "CacheDir", func(o *Options) any { return &o.CacheDir }},
	{envPlatform, "Platform", func(o *Options) any { return &o.Platform }},
	{envIsolation, "Isolation", func(o *Options) any { return &o.Isolation }},
	{"DOCKER_HOST", "DockerHost", func(o *Options) any { return &o.DockerHost }},
	{"MOLECULE_LOCAL_BUILDER", "Builder", func(o *Options) any { return &o.Builder }},
	{"MOLECULE_LOCAL_BUILDER_CA", "BuilderTLS.CA", func(o *Options) any { return &o.BuilderTLS.CA }},
	{"MOLECULE_LOCAL_BUILDER_CERT", "BuilderTLS.Cert", func(o *Options) any { return &o.BuilderTLS.Cert }},
	{"MOLECULE_LOCAL_BUILDER_KEY", "BuilderTLS.Key", func(o *Options) any { return &o.BuilderTLS.Key }},
	{"MOLECULE_LOCAL_BUILDER_SERVER_NAME", "BuilderTLS.ServerName", func(o *Options) any { return &o.BuilderTLS.ServerName }},
	{"MOLECULE_LOCAL_SHARED_CACHE", "SharedCache", func(o *Options) any { return &o.SharedCache }},
	{"MOLECULE_LOCAL_SHARED_CACHE_MODE", "SharedCacheMode", func(o *Options) any { return (*string)(&o.SharedCacheMode) }},
	{"MOLECULE_LOCAL_OFFLINE", "Offline", func(o *Options) any { return &o.Offline }},
	{"MOLECULE_LOCAL_RUNTIME_VERSION_PIN", "RuntimeVersionPin", func(o *Options) any { return &o.RuntimeVersionPin }},
	{"MOLECULE_BUILD_STALL_GRACE_S", "StallGrace", func(o *Options) any { return &o.StallGrace }},
	{envCeiling, "Ceiling", func(o *Options) any { return &o.Ceiling }},
	{"MOLECULE_BUILD_MEMORY_MIB", "MemoryMiB", func(o *Options) any { return &o.MemoryMiB }},
}

// parse sets the field to the value of the variable. If the field cannot hold it, the field is zero, and the result is
// false.
func (e envOption) parse(o *Options, text string) bool {
	ok := true
	switch field := e.value(o).(type) {
	case *string:
		*field = text
	case *bool:
		*field, ok = parseSwitch(text)
	case *time.Duration:
		*field, ok = parseDuration(text)
	case *int:
		*field, ok = parseNumber(text)
	}
	return ok
}

// text returns the value of the field as the variable has it, or the invalid value of the variable. "" is not set.
func (e envOption) text(o *Options) string {
	switch field := e.value(o).(type) {
	case *string:
		return *field
	case *bool:
		if *field {
			return "1"
		}
	case *time.Duration:
		if *field != 0 {
			return durationText(*field)
		}
	case *int:
		if *field != 0 {
			return strconv.Itoa(*field)
		}
	}
	return o.env.invalid[e.variable]
}

// OptionsFromEnv reads the environment: the MOLECULE_ variables, and those about the machine (DOCKER_*, BUILDX_*, proxies,
// certificates, home and temporary folders). An invalid value, such as a malformed number, makes [New] fail. Its field is
// zero; a non-zero value in the field replaces the invalid one.
//
// For other Options, New reads DOCKER_*, BUILDX_*, proxies, certificates and folders itself, and DOCKER_HOST only if the
// field DockerHost is empty.
func OptionsFromEnv() Options {
	o := Options{env: environment{invalid: map[string]string{}}}
	for _, option := range envOptions {
		if text := os.Getenv(option.variable); text != "" && !option.parse(&o, text) {
			o.env.invalid[option.variable] = text
		}
	}
	o.env.capture()
	return o
}

const (
	envToken     = "MOLECULE_GITEA_TOKEN"
	envPlatform  = "MOLECULE_IMAGE_PLATFORM"
	envIsolation = "MOLECULE_LOCAL_IMAGE_ISOLATION"
	envCeiling   = "MOLECULE_BUILD_CEILING_S"
)

// DefaultProvisionCeiling returns the time limit of a call whose context has no deadline: MOLECULE_BUILD_CEILING_S, or
// 30 minutes. An invalid value (see [Options.StallGrace]) counts as unset here; [New] and [EnsureLocalImage] refuse it.
func DefaultProvisionCeiling() time.Duration {
	if ceiling, ok := parseDuration(os.Getenv(envCeiling)); ok {
		return ceiling
	}
	return 30 * time.Minute
}

// LocalImageIsolation returns MOLECULE_LOCAL_IMAGE_ISOLATION without surrounding white space, or "" for no isolation. It
// does not check the token: [New] and [EnsureLocalImage] refuse an invalid one.
func LocalImageIsolation() string { return strings.TrimSpace(os.Getenv(envIsolation)) }

// capture reads the variables that have no field.
func (e *environment) capture() {
	e.machine = make(map[string]string, len(machineVariables))
	for _, name := range machineVariables {
		e.machine[name] = os.Getenv(name)
	}
	for _, name := range []string{"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"} {
		e.machine[name] = proxyFromEnv(name)
	}
}

// proxyFromEnv prefers the lower-case name, as curl does. A variable that is set but empty switches the proxy off.
func proxyFromEnv(name string) string {
	if value, set := os.LookupEnv(strings.ToLower(name)); set {
		return value
	}
	return os.Getenv(name)
}

func parseSwitch(text string) (on, ok bool) {
	switch text {
	case "0", "false":
		return false, true
	case "1", "true":
		return true, true
	}
	return false, false
}

// parseDuration reads whole seconds, or a duration in hours, minutes, seconds and milliseconds, from a millisecond to
// 365 days, as the library does.
func parseDuration(text string) (time.Duration, bool) {
	switch {
	case wholeSeconds.MatchString(text):
		text += "s"
	case !unitDuration.MatchString(text):
		return 0, false
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Millisecond || d > longestDuration {
		return 0, false
	}
	return d, true
}

var (
	wholeSeconds = regexp.MustCompile(`^[0-9]+$`)
	unitDuration = regexp.MustCompile(`^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$`)
)

const longestDuration = 365 * 24 * time.Hour

// parseNumber reads a positive number without a sign or leading zeros.
func parseNumber(text string) (int, bool) {
	n, err := strconv.Atoi(text)
	if err != nil || n <= 0 || strconv.Itoa(n) != text {
		return 0, false
	}
	return n, true
}

// setting is one option as the library takes it.
type setting struct {
	// name is the library's name of the option: its environment variable's, if it has one.
	name string
	// field is what errors call it.
	field string
	// value has the syntax of the environment variable.
	value string
}

func (o *Options) settings() ([]setting, error) {
	if o.env.machine == nil {
		o.env.capture()
		if o.DockerHost == "" {
			o.DockerHost = os.Getenv("DOCKER_HOST")
		}
	}
	runtimes, err := runtimesSetting(o.Runtimes, masker(o.Token))
	if err != nil {
		return nil, err
	}
	pins, err := pinsSetting(o.Pins, masker(o.Token))
	if err != nil {
		return nil, err
	}
	var all []setting
	for _, option := range envOptions {
		all = append(all, setting{option.variable, option.field, option.text(o)})
	}
	all = append(all, []setting{
		{"runtimes", "Runtimes", runtimes},
		{"tag_arch", "TagArch", string(o.TagArch)},
		{"pins", "Pins", pins},
	}...)
	for _, name := range machineVariables {
		all = append(all, setting{name, name, o.env.machine[name]})
	}
	set := all[:0]
	for _, s := range all {
		if err := checkText(s); err != nil {
			return nil, err
		}
		if s.value != "" {
			set = append(set, s)
		}
	}
	return set, nil
}

// checkText refuses a value that a C string cannot hold, or that is not the UTF-8 that the library takes.
func checkText(s setting) error {
	switch {
	case strings.IndexByte(s.value, 0) >= 0:
		return &Error{
			Code:    CodeInvalidOption,
			Message: fmt.Sprintf("option %s contains a NUL byte", s.field),
			Hint:    "remove it",
		}
	case !utf8.ValidString(s.value):
		return &Error{
			Code:    CodeInvalidOption,
			Message: fmt.Sprintf("option %s is not valid UTF-8", s.field),
			Hint:    "encode it as UTF-8",
		}
	}
	return nil
}

// durationText returns a duration as the variables have it, rounded up to whole milliseconds. What the library refuses is
// not rounded: a negative duration, and one above the maximum.
func durationText(d time.Duration) string {
	if d < 0 || d > longestDuration {
		return d.String()
	}
	rounded := d.Truncate(time.Millisecond)
	if rounded < d {
		rounded += time.Millisecond
	}
	return rounded.String()
}

// redacted returns the names and values of the options that are set, with secrets masked.
func (o Options) redacted() (names, values []string) {
	add := func(name, value string) {
		if value != "" {
			names, values = append(names, name), append(values, MaskTokenInString(maskUserinfo(value), o.Token))
		}
	}
	for _, option := range envOptions {
		if option.variable == envToken && o.Token != "" {
			names, values = append(names, option.field), append(values, mask)
			continue
		}
		add(option.field, option.text(&o))
	}
	add("Runtimes", strings.Join(o.Runtimes, ","))
	for _, runtime := range slices.Sorted(maps.Keys(o.Pins)) {
		add("Pins["+MaskTokenInString(runtime, o.Token)+"]", o.Pins[runtime])
	}
	add("TagArch", string(o.TagArch))
	return names, values
}

// maskUserinfo is MaskTokenInURL for a value that should be a URL but may lack its scheme.
func maskUserinfo(value string) string {
	if masked := MaskTokenInURL(value); masked != value || strings.Contains(value, "://") {
		return masked
	}
	if at := strings.LastIndexByte(value, '@'); at >= 0 {
		return mask + value[at:]
	}
	return value
}

// String returns the options that are set, with *** for the token and for the userinfo of URLs.
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

// GoString is [Options.String], so that %#v shows no more than the other verbs.
func (o Options) GoString() string { return o.String() }

// Format prints [Options.String] for every verb, also for those that would print the fields.
func (o Options) Format(f fmt.State, _ rune) { fmt.Fprint(f, o.String()) }

// LogValue returns the options that are set as a group, with *** for the token and for the userinfo of URLs.
func (o Options) LogValue() slog.Value {
	names, values := o.redacted()
	attrs := make([]slog.Attr, len(names))
	for i := range names {
		attrs[i] = slog.String(names[i], values[i])
	}
	return slog.GroupValue(attrs...)
}
