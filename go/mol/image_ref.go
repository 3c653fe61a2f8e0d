package mol

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"runtime"
	"strings"
)

// The host of a registry contains a dot or a colon, or is "localhost". This is none of these, so no engine treats it as a
// host, and it is never resolved through DNS.
const localImagePrefix = "molecule-local"

const (
	imageNamePrefix = "workspace-template-"
	defaultPlatform = "linux/amd64"
	nativePlatform  = "native"

	shortSHALen     = 12
	maxIsolationLen = 48
	// Keeps a tag within the 128 characters of the distribution spec (section "Pulling manifests"):
	// 12 + "-" + 32 + "-" + 32 + "--" + 48.
	maxPlatformPartLen = 32
)

// LocalImagePrefix returns the prefix of the references of locally built images, "molecule-local".
func LocalImagePrefix() string { return localImagePrefix }

// LocalImageTag returns the reference of the image for a commit:
//
//	molecule-local/workspace-template-<runtime>:<sha12>[-<arch>[-<variant>]][--<isolation>]
//
// <sha12> are the first 12 characters of sha (all of it, if it is shorter). Architecture and variant are present if
// MOLECULE_IMAGE_PLATFORM is anything but linux/amd64, so that an image for one platform is never used for another.
// "native" is the architecture of this process, which may differ from that of the engine; [Image.Ref] has the right one.
// The isolation is MOLECULE_LOCAL_IMAGE_ISOLATION. Both variables are read at each call. If one of them is invalid, the
// result is "", which is not a reference, so that no image of another server is used.
//
// Runtime and sha are not checked; [EnsureLocalImage] does that.
func LocalImageTag(runtime, sha string) string {
	return tagRules{platform: os.Getenv(envPlatform), isolation: os.Getenv(envIsolation)}.pinned(runtime, sha)
}

// LocalImageTag is the function of the same name for these options instead of the environment. With [TagArchAlways] in
// [Options.TagArch], the result is
//
//	molecule-local/workspace-template-<runtime>:<sha12>-<arch>[--<isolation>]
//
// The platform "native" is the architecture of this process, which may differ from that of the engine; [Image.Ref] has
// the right one. With an invalid TagArch the result is "" too.
func (o Options) LocalImageTag(runtime, sha string) string {
	return tagRules{o.Platform, o.Isolation, o.TagArch}.pinned(runtime, sha)
}

// LocalImageLatestTag is the function of the same name for these options instead of the environment. With
// [TagArchAlways] in [Options.TagArch], the result is
//
//	molecule-local/workspace-template-<runtime>:latest[--<isolation>]
//
// With [TagArchAuto], "native" is the architecture of this process, which may differ from that of the engine;
// [Image.LatestRef] has the right one. With an invalid TagArch the result is "" too.
func (o Options) LocalImageLatestTag(runtime string) string {
	return tagRules{o.Platform, o.Isolation, o.TagArch}.latest(runtime)
}

// LocalImageLatestTag returns the moving reference of a runtime's newest image:
//
//	molecule-local/workspace-template-<runtime>:latest[-<arch>[-<variant>]][--<isolation>]
//
// The suffixes are those of [LocalImageTag]. If the environment is invalid, the result is "" too.
func LocalImageLatestTag(runtime string) string {
	return tagRules{platform: os.Getenv(envPlatform), isolation: os.Getenv(envIsolation)}.latest(runtime)
}

// IsLocalBuildImage reports whether a reference is that of a locally built image, which cannot be pulled: it begins with
// "molecule-local/".
func IsLocalBuildImage(ref string) bool {
	rest, found := strings.CutPrefix(ref, localImagePrefix+"/")
	return found && rest != ""
}

// CacheKey returns a short, stable key for a commit of a template: the first 8 bytes of the SHA-256 of
// "runtime|sha|repoPrefix", as 16 hex digits.
func CacheKey(runtime, sha, repoPrefix string) string {
	sum := sha256.Sum256([]byte(runtime + "|" + sha + "|" + repoPrefix))
	return hex.EncodeToString(sum[:8])
}

// tagRules are the settings that decide the suffixes of tags.
type tagRules struct {
	platform, isolation string
	arch                TagArch
}

func (r tagRules) pinned(runtime, sha string) string {
	suffix, _, ok := r.suffixes()
	if len(sha) > shortSHALen {
		sha = sha[:shortSHALen]
	}
	return reference(runtime, sha+suffix, ok)
}

func (r tagRules) latest(runtime string) string {
	_, suffix, ok := r.suffixes()
	return reference(runtime, "latest"+suffix, ok)
}

// reference returns "" if the rules for its tag are not valid.
func reference(runtime, tag string, valid bool) string {
	if !valid {
		return ""
	}
	return localImagePrefix + "/" + imageNamePrefix + runtime + ":" + tag
}

// suffixes returns what follows the commit in the pinned tag, what follows "latest" in the moving one, and whether
// the rules are valid.
func (r tagRules) suffixes() (pinned, latest string, ok bool) {
	platform, ok := parsePlatform(r.platform)
	isolation := strings.TrimSpace(r.isolation)
	if !ok || (isolation != "" && !validIsolation(isolation)) {
		return "", "", false
	}
	switch r.arch {
	case TagArchAlways:
		pinned = "-" + platform[1]
	case TagArchAuto, "":
		if strings.Join(platform, "/") != defaultPlatform {
			pinned = "-" + strings.Join(platform[1:], "-")
			latest = pinned
		}
	default:
		return "", "", false
	}
	if isolation != "" {
		isolation = "--" + isolation
	}
	return pinned + isolation, latest + isolation, true
}

// parsePlatform splits os/arch[/variant], and reports whether it is valid.
func parsePlatform(platform string) (parts []string, ok bool) {
	switch platform {
	case "":
		platform = defaultPlatform
	case nativePlatform:
		platform = "linux/" + runtime.GOARCH
	}
	parts = strings.Split(platform, "/")
	if len(parts) != 2 && len(parts) != 3 {
		return nil, false
	}
	for _, part := range parts {
		if !validPlatformPart(part) {
			return nil, false
		}
	}
	switch parts[1] {
	case "aarch64", "i386", "armhf", "armel":
		// Docker accepts these and the library refuses them, because tags have Go's names.
		return nil, false
	}
	return parts, true
}

// validPlatformPart reports whether part matches [a-z0-9]{1,32}.
func validPlatformPart(part string) bool {
	if part == "" || len(part) > maxPlatformPartLen {
		return false
	}
	for i := range len(part) {
		if c := part[i]; !isLowerAlnum(c) {
			return false
		}
	}
	return true
}

// validIsolation reports whether isolation matches [a-z0-9][a-z0-9_.-]{0,47}.
func validIsolation(isolation string) bool {
	if isolation == "" || len(isolation) > maxIsolationLen || !isLowerAlnum(isolation[0]) {
		return false
	}
	for i := range len(isolation) {
		if c := isolation[i]; !isLowerAlnum(c) && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

func isLowerAlnum(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
