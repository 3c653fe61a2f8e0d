package mol

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"
)

// settingsOf returns the settings that are set, by the name of the option.
func settingsOf(t *testing.T, o Options) map[string]string {
	t.Helper()
	settings, err := o.settings()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]string)
	for _, s := range settings {
		values[s.field] = s.value
	}
	return values
}

func TestEveryVariableReachesTheLibrary(t *testing.T) {
	for _, c := range []struct{ variable, value, option, want string }{
		{"MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", "https://host/org/tpl-", "RepoPrefix", ""},
		{"MOLECULE_LOCAL_TEMPLATE_BRANCH", "feature/x", "Branch", ""},
		{"MOLECULE_GITEA_TOKEN", testToken, "Token", ""},
		{"MOLECULE_LOCAL_BUILD_CACHE", "/var/cache/x", "CacheDir", ""},
		{"MOLECULE_IMAGE_PLATFORM", "linux/arm64", "Platform", ""},
		{"MOLECULE_LOCAL_IMAGE_ISOLATION", "ci-1", "Isolation", ""},
		{"MOLECULE_LOCAL_OFFLINE", "1", "Offline", ""},
		{"MOLECULE_LOCAL_OFFLINE", "true", "Offline", "1"},
		{"MOLECULE_LOCAL_OFFLINE", "yes", "Offline", ""},
		{"MOLECULE_LOCAL_RUNTIME_VERSION_PIN", "1", "RuntimeVersionPin", ""},
		{"MOLECULE_LOCAL_RUNTIME_VERSION_PIN", " 1", "RuntimeVersionPin", ""},
		{"MOLECULE_BUILD_STALL_GRACE_S", "7", "StallGrace", "7s"},
		{"MOLECULE_BUILD_STALL_GRACE_S", "0", "StallGrace", ""},
		{"MOLECULE_BUILD_STALL_GRACE_S", "soon", "StallGrace", ""},
		{"MOLECULE_BUILD_STALL_GRACE_S", "4m", "StallGrace", "4m0s"},
		{"MOLECULE_BUILD_STALL_GRACE_S", "1m0.5s", "StallGrace", ""},
		{"MOLECULE_BUILD_STALL_GRACE_S", "0s", "StallGrace", ""},
		{"MOLECULE_BUILD_STALL_GRACE_S", "4us", "StallGrace", ""},
		{"MOLECULE_BUILD_STALL_GRACE_S", "+4m", "StallGrace", ""},
		{"MOLECULE_BUILD_CEILING_S", "1h30m", "Ceiling", "1h30m0s"},
		{"MOLECULE_BUILD_CEILING_S", "9000h", "Ceiling", ""}, // above the maximum: passed on, so that the error quotes it
		{"MOLECULE_BUILD_STALL_GRACE_S", "1.5", "StallGrace", ""},
		{"MOLECULE_BUILD_STALL_GRACE_S", "99999999999999999999", "StallGrace", ""},
		{"MOLECULE_BUILD_STALL_GRACE_S", "9223372036854775807", "StallGrace", ""},
		{"MOLECULE_BUILD_MEMORY_MIB", "1024", "MemoryMiB", ""},
		{"MOLECULE_BUILD_MEMORY_MIB", "-1", "MemoryMiB", ""},
		{"MOLECULE_BUILD_MEMORY_MIB", "1 GiB", "MemoryMiB", ""},
		{"MOLECULE_BUILD_CEILING_S", "3600", "Ceiling", "1h0m0s"},
		{"MOLECULE_BUILD_CEILING_S", "-1", "Ceiling", ""},
		{"MOLECULE_BUILD_CEILING_S", "+5", "Ceiling", ""},
		{"MOLECULE_BUILD_CEILING_S", " ", "Ceiling", ""},
		{"DOCKER_HOST", "unix:///run/x.sock", "DockerHost", ""},
		{"DOCKER_CONTEXT", "rootless", "DOCKER_CONTEXT", ""},
		{"DOCKER_CONFIG", "/etc/docker-config", "DOCKER_CONFIG", ""},
		{"DOCKER_TLS_VERIFY", "1", "DOCKER_TLS_VERIFY", ""},
		{"DOCKER_CERT_PATH", "/certs", "DOCKER_CERT_PATH", ""},
		{"DOCKER_BUILDKIT", "0", "DOCKER_BUILDKIT", ""},
		{"MOLECULE_LOCAL_BUILDER", "tcp://builder:1234", "Builder", ""},
		{"MOLECULE_LOCAL_BUILDER_CA", "/certs/ca.pem", "BuilderTLS.CA", ""},
		{"MOLECULE_LOCAL_BUILDER_CERT", "/certs/cert.pem", "BuilderTLS.Cert", ""},
		{"MOLECULE_LOCAL_BUILDER_KEY", "/certs/key.pem", "BuilderTLS.Key", ""},
		{"MOLECULE_LOCAL_BUILDER_SERVER_NAME", "builder.example", "BuilderTLS.ServerName", ""},
		{"MOLECULE_LOCAL_SHARED_CACHE", "registry.example/team/cache", "SharedCache", ""},
		{"MOLECULE_LOCAL_SHARED_CACHE_MODE", "rw", "SharedCacheMode", ""},
		{"MOLECULE_LOCAL_SHARED_CACHE_MODE", "always", "SharedCacheMode", ""},
		{"BUILDX_BUILDER", "farm", "BUILDX_BUILDER", ""},
		{"BUILDX_CONFIG", "/etc/buildx", "BUILDX_CONFIG", ""},
		{"HTTPS_PROXY", "http://proxy:3128", "HTTPS_PROXY", ""},
		{"https_proxy", "http://proxy:3128", "HTTPS_PROXY", ""},
		{"HTTP_PROXY", "http://proxy:3128", "HTTP_PROXY", ""},
		{"http_proxy", "http://proxy:3128", "HTTP_PROXY", ""},
		{"NO_PROXY", "localhost,.example", "NO_PROXY", ""},
		{"no_proxy", "localhost,.example", "NO_PROXY", ""},
		{"SSL_CERT_FILE", "/ca.pem", "SSL_CERT_FILE", ""},
		{"SSL_CERT_DIR", "/ca", "SSL_CERT_DIR", ""},
		{"HOME", "/home/dev", "HOME", ""},
		{"XDG_CACHE_HOME", "/home/dev/.cache", "XDG_CACHE_HOME", ""},
		{"XDG_RUNTIME_DIR", "/run/user/1000", "XDG_RUNTIME_DIR", ""},
		{"TMPDIR", "/var/tmp", "TMPDIR", ""},
		{"PATH", "/usr/bin", "PATH", ""},
	} {
		t.Run(c.variable+"="+c.value, func(t *testing.T) {
			clearEnv(t)
			t.Setenv(c.variable, c.value)
			want := c.want
			if want == "" {
				want = c.value
			}
			if got := settingsOf(t, OptionsFromEnv()); len(got) != 1 || got[c.option] != want {
				t.Errorf("got %q, want %s=%q and nothing else", got, c.option, want)
			}
		})
	}
}

func TestAnEmptyEnvironmentSetsNothing(t *testing.T) {
	clearEnv(t)
	if got := settingsOf(t, OptionsFromEnv()); len(got) != 0 {
		t.Errorf("got %q", got)
	}
	if got := settingsOf(t, Options{}); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

func TestTheLowerCaseProxyVariableWinsEvenIfEmpty(t *testing.T) {
	clearEnv(t)
	t.Setenv("HTTPS_PROXY", "http://upper")
	t.Setenv("https_proxy", "")
	if got := settingsOf(t, OptionsFromEnv()); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

func TestAFieldSetByTheCallerWinsOverTheEnvironment(t *testing.T) {
	clearEnv(t)
	t.Setenv("MOLECULE_BUILD_STALL_GRACE_S", "soon")
	t.Setenv("MOLECULE_LOCAL_OFFLINE", "maybe")
	t.Setenv("MOLECULE_GITEA_TOKEN", testToken)
	o := OptionsFromEnv()
	o.StallGrace, o.Offline, o.Token = time.Minute, true, ""
	got := settingsOf(t, o)
	if len(got) != 2 || got["StallGrace"] != "1m0s" || got["Offline"] != "1" {
		t.Errorf("got %q", got)
	}
}

func TestOptionsOfTheCallerReadOnlyMachineVariables(t *testing.T) {
	clearEnv(t)
	t.Setenv("MOLECULE_GITEA_TOKEN", testToken)
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_BRANCH", "other")
	t.Setenv("MOLECULE_LOCAL_BUILDER", "other")
	t.Setenv("MOLECULE_LOCAL_BUILDER_CA", "/other.pem")
	t.Setenv("MOLECULE_LOCAL_SHARED_CACHE", "registry.example/other")
	t.Setenv("DOCKER_HOST", "unix:///run/env.sock")
	t.Setenv("BUILDX_BUILDER", "farm")
	t.Setenv("HOME", "/home/dev")
	got := settingsOf(t, Options{})
	if len(got) != 3 || got["DockerHost"] != "unix:///run/env.sock" || got["BUILDX_BUILDER"] != "farm" || got["HOME"] != "/home/dev" {
		t.Errorf("got %q", got)
	}
	if got := settingsOf(t, Options{DockerHost: "tcp://h:1"}); got["DockerHost"] != "tcp://h:1" {
		t.Errorf("got %q", got)
	}
}

func TestDurationsAreRoundedUpToMilliseconds(t *testing.T) {
	clearEnv(t)
	for d, want := range map[time.Duration]string{
		1: "1ms", time.Second: "1s", time.Second + 1: "1.001s", 1500 * time.Millisecond: "1.5s", time.Hour: "1h0m0s",
		math.MaxInt64: "2562047h47m16.854775807s", // above the maximum: refused as it is
	} {
		if got := settingsOf(t, Options{StallGrace: d, Ceiling: d}); got["StallGrace"] != want || got["Ceiling"] != want {
			t.Errorf("%v: got %q, want %s", d, got, want)
		}
	}
}

func TestANULByteIsRefused(t *testing.T) {
	for _, o := range []Options{
		{RepoPrefix: "https://host/org/tpl-\x00evil"}, {Branch: "main\x00"}, {Token: "secret-token\x00"},
		{CacheDir: "/a\x00b"}, {Platform: "linux/amd64\x00"}, {Isolation: "a\x00"}, {DockerHost: "unix:///a\x00"},
		{Builder: "unix:///a\x00"}, {BuilderTLS: BuilderTLS{Key: "/key\x00"}},
		{SharedCache: "registry.example/a\x00"}, {SharedCache: "registry.example/a", SharedCacheMode: "rw\x00"},
	} {
		_, err := New(o)
		if !errors.Is(err, ErrInvalidOption) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v: got %v", o, err)
		}
	}
}

func TestAnOptionThatIsNotUTF8IsRefusedByName(t *testing.T) {
	clearEnv(t)
	for field, o := range map[string]Options{
		"CacheDir": {CacheDir: "/a\xff"}, "Token": {Token: "secret-token\xff"}, "BuilderTLS.CA": {BuilderTLS: BuilderTLS{CA: "\xc3"}},
		"Runtimes": {Runtimes: []string{"hermes\xff"}}, "Pins": {Pins: map[string]string{"hermes": "\xff"}},
	} {
		_, err := New(o)
		want := "option " + field + " is not valid UTF-8; encode it as UTF-8"
		if !errors.Is(err, ErrInvalidOption) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	t.Setenv("DOCKER_CONFIG", "/a\xff")
	if _, err := New(Options{}); !errors.Is(err, ErrInvalidOption) || !strings.Contains(err.Error(), "DOCKER_CONFIG") {
		t.Errorf("got %v", err)
	}
}

func TestOptionsNeverShowASecret(t *testing.T) {
	clearEnv(t)
	t.Setenv("HTTPS_PROXY", "http://u:proxy-password@proxy:3128")
	t.Setenv("MOLECULE_GITEA_TOKEN", testToken)
	t.Setenv("MOLECULE_LOCAL_TEMPLATE_BRANCH", "branch-"+testToken)
	o := OptionsFromEnv()
	o.RepoPrefix = "https://u:prefix-password@host/org/tpl-"
	o.DockerHost = "tcp://u:engine-password@host:2376"
	o.Builder = "tcp://u:builder-password@host:1234"
	o.BuilderTLS = BuilderTLS{CA: "/" + testToken, Cert: "/" + testToken, Key: "/" + testToken, ServerName: testToken}
	o.SharedCache, o.SharedCacheMode = "u:cache-password@registry.example/"+testToken, SharedCacheMode(testToken)
	o.Runtimes = []string{testToken}
	o.Pins = map[string]string{"my-" + testToken: testToken}
	holder := struct{ Options Options }{o}

	var log bytes.Buffer
	for _, logger := range []*slog.Logger{
		slog.New(slog.NewTextHandler(&log, nil)), slog.New(slog.NewJSONHandler(&log, nil)),
	} {
		logger.Info("options", "options", o, "pointer", &o, "holder", holder)
	}
	texts := []string{o.String(), o.GoString(), fmt.Sprint(o), log.String(), fmt.Sprint(errors.New(o.String()))}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "%t", "%T", "%10v", "%!"} {
		texts = append(texts, fmt.Sprintf(verb, o), fmt.Sprintf(verb, &o), fmt.Sprintf(verb, holder),
			fmt.Sprintf(verb, []Options{o}), fmt.Sprintf(verb, map[string]Options{"o": o}))
	}
	for _, text := range texts {
		for _, secret := range []string{
			testToken, "proxy-password", "prefix-password", "engine-password", "builder-password", "cache-password",
		} {
			if strings.Contains(text, secret) || strings.Contains(strings.ToLower(text), fmt.Sprintf("%x", secret)) {
				t.Errorf("%q shows %q", text, secret)
			}
		}
	}
	if want := `Token: "***"`; !strings.Contains(o.String(), want) {
		t.Errorf("%q does not show that a token is set", o)
	}
}

func TestTheTokenIsMaskedInErrorsAboutRuntimesAndPins(t *testing.T) {
	clearEnv(t)
	cut := strings.Repeat("x", 75) + testToken // the error quotes only the beginning
	for _, o := range []Options{
		{Runtimes: []string{"hermes," + testToken}}, {Runtimes: []string{cut + ","}},
		{Pins: map[string]string{testToken + "=": ""}}, {Pins: map[string]string{"hermes": testToken + ","}},
		{Pins: map[string]string{cut: ","}}, {Pins: map[string]string{",": cut}},
	} {
		o.Token = testToken
		_, err := New(o)
		if !errors.Is(err, ErrInvalidOption) || strings.Contains(err.Error(), testToken[:4]) {
			t.Errorf("got %v", err)
		}
	}
}

func TestAPrefixWithoutASchemeDoesNotShowItsUserinfo(t *testing.T) {
	o := Options{RepoPrefix: "user:password@host/org/tpl-", DockerHost: "user:password@host"}
	if strings.Contains(o.String(), "password") {
		t.Errorf("got %q", o)
	}
}

func TestOptionsStringListsWhatIsSet(t *testing.T) {
	for _, c := range []struct {
		options Options
		want    string
	}{
		{Options{Branch: "main", Offline: true, StallGrace: 90 * time.Second},
			`mol.Options{Branch: "main", Offline: "1", StallGrace: "1m30s"}`},
		{Options{Builder: "tcp://b:1", BuilderTLS: BuilderTLS{CA: "ca", Cert: "cert", Key: "key", ServerName: "b.example"}},
			`mol.Options{Builder: "tcp://b:1", BuilderTLS.CA: "ca", BuilderTLS.Cert: "cert", BuilderTLS.Key: "key", ` +
				`BuilderTLS.ServerName: "b.example"}`},
		{Options{SharedCache: "registry.example/cache", SharedCacheMode: SharedCacheReadWrite},
			`mol.Options{SharedCache: "registry.example/cache", SharedCacheMode: "rw"}`},
	} {
		if got := c.options.String(); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
	if got := (Options{}).String(); got != "mol.Options{}" {
		t.Errorf("got %s", got)
	}
}

func TestDefaultProvisionCeilingAndLocalImageIsolation(t *testing.T) {
	clearEnv(t)
	if got := DefaultProvisionCeiling(); got != 30*time.Minute {
		t.Errorf("got %s", got)
	}
	if got := LocalImageIsolation(); got != "" {
		t.Errorf("got %q", got)
	}
	for value, want := range map[string]time.Duration{
		"600": 10 * time.Minute, "1h30m": 90 * time.Minute, "soon": 30 * time.Minute, "0": 30 * time.Minute, "-4m": 30 * time.Minute,
	} {
		t.Setenv("MOLECULE_BUILD_CEILING_S", value)
		if got := DefaultProvisionCeiling(); got != want {
			t.Errorf("%s: got %s", value, got)
		}
	}
	t.Setenv("MOLECULE_LOCAL_IMAGE_ISOLATION", " ci-1\n")
	if got := LocalImageIsolation(); got != "ci-1" {
		t.Errorf("got %q", got)
	}
}

func TestDurationVariablesMatchTheLibrary(t *testing.T) {
	type vector struct {
		vectorName
		Text  string `json:"text"`
		MS    int64  `json:"ms"`
		Error string `json:"error"`
	}
	eachVector(t, "durations.json", func(t *testing.T, v vector) {
		clearEnv(t)
		t.Setenv("MOLECULE_BUILD_STALL_GRACE_S", v.Text)
		t.Setenv("MOLECULE_BUILD_CEILING_S", v.Text)
		want, raw, ceiling := time.Duration(v.MS)*time.Millisecond, "", time.Duration(v.MS)*time.Millisecond
		if v.Error != "" {
			want, raw, ceiling = 0, v.Text, 30*time.Minute
		}
		o := OptionsFromEnv()
		if o.StallGrace != want || o.Ceiling != want || o.env.invalid["MOLECULE_BUILD_STALL_GRACE_S"] != raw ||
			o.env.invalid["MOLECULE_BUILD_CEILING_S"] != raw {
			t.Errorf("got %s and %s, invalid: %q", o.StallGrace, o.Ceiling, o.env.invalid)
		}
		if got := DefaultProvisionCeiling(); got != ceiling {
			t.Errorf("the ceiling is %s", got)
		}
	})
}

func TestRuntimesAndPinsRefuseSeparatorsInTheirValues(t *testing.T) {
	clearEnv(t)
	sha := strings.Repeat("a", 40)
	o := Options{Runtimes: []string{"b", "a"}, Pins: map[string]string{"b": sha, "a": sha}, TagArch: TagArchAlways}
	got := settingsOf(t, o)
	if len(got) != 3 || got["Runtimes"] != "b,a" || got["Pins"] != "a="+sha+",b="+sha || got["TagArch"] != "always" {
		t.Errorf("got %q", got)
	}
	if known := o.KnownRuntimes(); len(known) != 2 || known[0] != "a" || !o.IsKnownRuntime("b") || o.IsKnownRuntime("hermes") {
		t.Errorf("got %q", known)
	}
	for name, o := range map[string]Options{
		"an empty list":       {Runtimes: []string{}},
		"an empty name":       {Runtimes: []string{""}},
		"two names in one":    {Runtimes: []string{"a,b"}},
		"two pins in a key":   {Pins: map[string]string{"a=" + sha + ",b": sha}},
		"two pins in a value": {Pins: map[string]string{"a": sha + ",b=" + sha}},
	} {
		if _, err := o.settings(); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
