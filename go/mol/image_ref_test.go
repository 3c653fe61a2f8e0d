package mol

import (
	"regexp"
	"runtime"
	"strings"
	"testing"
)

func TestLocalImageTagsFollowPlatformAndIsolation(t *testing.T) {
	type vector struct {
		vectorName
		Runtime   string `json:"runtime"`
		SHA       string `json:"sha"`
		Platform  string `json:"platform"`
		Isolation string `json:"isolation"`
		TagArch   string `json:"tag_arch"`
		Ref       string `json:"ref"`
		LatestRef string `json:"latest_ref"`
		Error     string `json:"error"`
	}
	// The tag grammar of the distribution spec, section "Pulling manifests".
	tag := regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	eachVector(t, "image_refs.json", func(t *testing.T, v vector) {
		o := Options{Platform: v.Platform, Isolation: v.Isolation, TagArch: TagArch(v.TagArch)}
		// In case of an error the reference is "".
		type pair struct{ got, want string }
		refs := []pair{{o.LocalImageTag(v.Runtime, v.SHA), v.Ref}, {o.LocalImageLatestTag(v.Runtime), v.LatestRef}}
		if v.TagArch == "" {
			t.Setenv("MOLECULE_IMAGE_PLATFORM", v.Platform)
			t.Setenv("MOLECULE_LOCAL_IMAGE_ISOLATION", v.Isolation)
			refs = append(refs, pair{LocalImageTag(v.Runtime, v.SHA), v.Ref}, pair{LocalImageLatestTag(v.Runtime), v.LatestRef})
		}
		for _, ref := range refs {
			if ref.got != ref.want {
				t.Errorf("got %q, want %q", ref.got, ref.want)
			}
			if _, text, _ := strings.Cut(ref.got, ":"); v.Error == "" && !tag.MatchString(text) {
				t.Errorf("invalid tag %q", text)
			}
			if IsLocalBuildImage(ref.got) != (v.Error == "") {
				t.Errorf("IsLocalBuildImage(%q) is %v", ref.got, IsLocalBuildImage(ref.got))
			}
		}
	})
}

func TestLocalImageTagResolvesNativeToThisArchitecture(t *testing.T) {
	t.Setenv("MOLECULE_LOCAL_IMAGE_ISOLATION", "")
	t.Setenv("MOLECULE_IMAGE_PLATFORM", "linux/"+runtime.GOARCH)
	want := LocalImageTag("hermes", "0123456789ab")
	t.Setenv("MOLECULE_IMAGE_PLATFORM", "native")
	if got := LocalImageTag("hermes", "0123456789ab"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAnUnknownTagArchGivesNoReference(t *testing.T) {
	o := Options{TagArch: "sometimes"}
	if got := o.LocalImageTag("hermes", "0123456789ab") + o.LocalImageLatestTag("hermes"); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestLocalImageTagKeepsAShortSHA(t *testing.T) {
	clearEnv(t)
	if got := LocalImageTag("hermes", "abc"); got != "molecule-local/workspace-template-hermes:abc" {
		t.Errorf("got %q", got)
	}
}

func TestTheLongestTagHas128Characters(t *testing.T) {
	part := strings.Repeat("a", maxPlatformPartLen)
	o := Options{Platform: "linux/" + part + "/" + part, Isolation: strings.Repeat("a", maxIsolationLen)}
	ref := o.LocalImageTag("hermes", strings.Repeat("0", shortSHALen))
	if _, tag, _ := strings.Cut(ref, ":"); len(tag) != 128 {
		t.Errorf("the tag has %d characters: %q", len(tag), ref)
	}
}

func TestLocalImagePrefixIsNotAHost(t *testing.T) {
	if prefix := LocalImagePrefix(); prefix != "molecule-local" || strings.ContainsAny(prefix, ".:/") {
		t.Errorf("got %q", prefix)
	}
}

func TestIsLocalBuildImageChecksThePrefix(t *testing.T) {
	type vector struct {
		vectorName
		Ref   string `json:"ref"`
		Local bool   `json:"local"`
	}
	eachVector(t, "is_local_image.json", func(t *testing.T, v vector) {
		if got := IsLocalBuildImage(v.Ref); got != v.Local {
			t.Errorf("IsLocalBuildImage(%q) is %v", v.Ref, got)
		}
	})
}

func TestCacheKeyIsStable(t *testing.T) {
	type vector struct {
		vectorName
		Runtime    string `json:"runtime"`
		SHA        string `json:"sha"`
		RepoPrefix string `json:"repo_prefix"`
		Want       string `json:"want"`
	}
	eachVector(t, "cache_key.json", func(t *testing.T, v vector) {
		if got := CacheKey(v.Runtime, v.SHA, v.RepoPrefix); got != v.Want {
			t.Errorf("got %q, want %q", got, v.Want)
		}
	})
}
