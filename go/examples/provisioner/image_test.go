package provisioner

import (
	"context"
	"errors"
	"strings"
	"testing"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"git.moleculesai.app/molecule-ai/libmol/go/workspace"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// local is a reference as libmol returns it.
const local = "molecule-local/workspace-template-hermes:0123456789ab"

var hermes = workspace.Config{Runtime: "hermes"}

// hookAnswers replaces the hook for one test and returns the runtimes of its
// calls.
func hookAnswers(t *testing.T, ref string, err error) *[]string {
	t.Helper()
	var asked []string
	before := ensureLocalImageHook
	ensureLocalImageHook = func(_ context.Context, runtime string) (string, error) {
		asked = append(asked, runtime)
		return ref, err
	}
	t.Cleanup(func() { ensureLocalImageHook = before })
	return &asked
}

func TestChooseFollowsImageThenRegistryMode(t *testing.T) {
	tests := []struct {
		name     string
		registry string
		cfg      WorkspaceConfig
		want     source
		asked    []string // runtimes of the hook's calls
	}{
		{
			name:  "local mode builds on this machine",
			cfg:   WorkspaceConfig{Config: hermes},
			want:  source{local, pullNever},
			asked: []string{"hermes"},
		},
		{
			name:     "saas mode pulls from the operator's registry",
			registry: "registry.example.com/molecule",
			cfg:      WorkspaceConfig{Config: hermes},
			want:     source{"registry.example.com/molecule/workspace-template-hermes:latest", pullAlways},
		},
		{
			name: "an explicit image has priority in local mode",
			cfg:  WorkspaceConfig{Config: hermes, Image: "example.com/mine:1"},
			want: source{"example.com/mine:1", pullMissing},
		},
		{
			name:     "an explicit image has priority in saas mode",
			registry: "registry.example.com/molecule",
			cfg:      WorkspaceConfig{Config: hermes, Image: "example.com/mine:1"},
			want:     source{"example.com/mine:1", pullMissing},
		},
		{
			name: "an explicit image needs no runtime",
			cfg:  WorkspaceConfig{Image: "example.com/mine:1"},
			want: source{"example.com/mine:1", pullMissing},
		},
		{
			name: "an explicit local image is never pulled",
			cfg:  WorkspaceConfig{Image: local},
			want: source{local, pullNever},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("MOLECULE_IMAGE_REGISTRY", tt.registry)
			asked := hookAnswers(t, local, nil)

			got, err := New(nil).choose(t.Context(), tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("choose() = %+v, want %+v", got, tt.want)
			}
			if diff := cmp.Diff(tt.asked, *asked); diff != "" {
				t.Errorf("runtimes of the hook's calls (-want +got):\n%s", diff)
			}
		})
	}
}

func TestChooseFails(t *testing.T) {
	broken := errors.New("the template's Dockerfile is broken")

	t.Run("no pull after a failed build", func(t *testing.T) {
		t.Setenv("MOLECULE_IMAGE_REGISTRY", "")
		hookAnswers(t, "", broken)
		got, err := New(nil).choose(t.Context(), WorkspaceConfig{Config: hermes})
		if !errors.Is(err, broken) || got != (source{}) {
			t.Errorf("choose() = %+v, %v; want nothing and the hook's error", got, err)
		}
	})
	t.Run("saas mode has the same allowlist as local mode", func(t *testing.T) {
		t.Setenv("MOLECULE_IMAGE_REGISTRY", "registry.example.com/molecule")
		for _, runtime := range []string{"Hermes", "hermes ", "../hermes", "hermes:1"} {
			if got, err := New(nil).choose(t.Context(), WorkspaceConfig{Config: workspace.Config{Runtime: runtime}}); !errors.Is(err, mol.ErrUnknownRuntime) {
				t.Errorf("choose(%q) = %+v, %v; want ErrUnknownRuntime", runtime, got, err)
			}
		}
	})
	t.Run("saas mode uses the field Runtimes", func(t *testing.T) {
		t.Setenv("MOLECULE_IMAGE_REGISTRY", "registry.example.com/molecule")
		p := New(nil)
		p.Runtimes = []string{"google-adk"}
		if got, err := p.choose(t.Context(), WorkspaceConfig{Config: workspace.Config{Runtime: "google-adk"}}); err != nil {
			t.Errorf("choose() = %+v, %v", got, err)
		}
		_, err := p.choose(t.Context(), WorkspaceConfig{Config: hermes})
		if !errors.Is(err, mol.ErrUnknownRuntime) || !strings.HasSuffix(err.Error(), `unknown runtime "hermes"; the known runtimes are google-adk`) {
			t.Errorf("choose() = %v; want ErrUnknownRuntime and the list", err)
		}
	})
	t.Run("without a runtime or an image", func(t *testing.T) {
		asked := hookAnswers(t, local, nil)
		if got, err := New(nil).choose(t.Context(), WorkspaceConfig{}); err == nil {
			t.Errorf("choose() = %+v, want an error", got)
		}
		if len(*asked) != 0 {
			t.Errorf("the hook was called for %q", *asked)
		}
	})
}

func TestEnsureLocalImageFieldReplacesTheHook(t *testing.T) {
	t.Setenv("MOLECULE_IMAGE_REGISTRY", "")
	asked := hookAnswers(t, "", errors.New("the hook was called"))
	p := New(nil)
	p.EnsureLocalImage = func(context.Context, string) (string, error) { return local, nil }

	got, err := p.choose(t.Context(), WorkspaceConfig{Config: hermes})
	if err != nil || got.ref != local || len(*asked) != 0 {
		t.Errorf("choose() = %+v, %v; want %s", got, err, local)
	}
}

func TestImagePlatform(t *testing.T) {
	tests := []struct {
		env  string
		want *ocispec.Platform
	}{
		{"", &ocispec.Platform{OS: "linux", Architecture: "amd64"}},
		{"native", nil},
		{"linux/arm64", &ocispec.Platform{OS: "linux", Architecture: "arm64"}},
		{"linux/arm/v7", &ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}},
	}
	for _, tt := range tests {
		t.Setenv("MOLECULE_IMAGE_PLATFORM", tt.env)
		got, err := imagePlatform()
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("MOLECULE_IMAGE_PLATFORM=%q: %v (-want +got):\n%s", tt.env, err, diff)
		}
	}
	for _, env := range []string{"arm64", "linux/arm/v7/x"} {
		t.Setenv("MOLECULE_IMAGE_PLATFORM", env)
		if got, err := imagePlatform(); !errors.Is(err, mol.ErrInvalidOption) {
			t.Errorf("MOLECULE_IMAGE_PLATFORM=%q: %v, %v; want ErrInvalidOption", env, got, err)
		}
	}
}
