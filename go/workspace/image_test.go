package workspace

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/jsonstream"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestParsePlatform(t *testing.T) {
	tests := []struct {
		name string
		want *ocispec.Platform
	}{
		{"native", nil},
		{"linux/arm64", &ocispec.Platform{OS: "linux", Architecture: "arm64"}},
		{"linux/arm/v7", &ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}},
	}
	for _, tt := range tests {
		got, err := ParsePlatform(tt.name)
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("ParsePlatform(%q): %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
	for _, name := range []string{"", "arm64", "linux/arm/v7/x", "linux/", "/amd64", "linux//v7"} {
		if got, err := ParsePlatform(name); err == nil {
			t.Errorf("ParsePlatform(%q) = %v, want an error", name, got)
		}
	}
}

func TestLayerProgress(t *testing.T) {
	for line, want := range map[string]LayerProgress{
		`{"status":"Downloading","progressDetail":{"current":3,"total":7},"id":"a1"}`:  {Layer: "a1", Bytes: 3, Total: 7},
		`{"status":"Extracting","progressDetail":{"current":3,"total":7},"id":"a1"}`:   {Layer: "a1", Extracting: true, Bytes: 3, Total: 7},
		`{"status":"Extracting","progressDetail":{"current":3,"units":"s"},"id":"a1"}`: {Layer: "a1", Extracting: true},
	} {
		var message jsonstream.Message
		if err := json.Unmarshal([]byte(line), &message); err != nil {
			t.Fatal(err)
		}
		if got, ok := layerProgress(message); !ok || got != want {
			t.Errorf("%s: %+v, %t, want %+v", line, got, ok, want)
		}
	}
	for _, message := range []jsonstream.Message{{Status: "Downloading"}, {Status: "Pull complete", ID: "a1"}} {
		if got, ok := layerProgress(message); ok {
			t.Errorf("%+v: %+v", message, got)
		}
	}
}

func TestWorkspacePort(t *testing.T) {
	exposes := func(ports ...string) Image {
		set := map[string]struct{}{}
		for _, port := range ports {
			set[port] = struct{}{}
		}
		return Image{Ref: "example.com/image", Config: &ocispec.ImageConfig{ExposedPorts: set}}
	}
	tests := []struct {
		name string
		img  Image
		cfg  Config
		want string
	}{
		{"the port that the image exposes", exposes("8080/tcp"), Config{}, "8080/tcp"},
		{"the lowest of several", exposes("9000/tcp", "8080", "80/udp"), Config{}, "8080/tcp"},
		{"the configuration overrides the image", exposes("8080/tcp"), Config{Port: 7000}, "7000/tcp"},
		{"an image without ports", exposes(), Config{Port: 7000}, "7000/tcp"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := workspacePort(tt.img, tt.cfg)
			if err != nil || got.String() != tt.want {
				t.Errorf("workspacePort() = %v, %v; want %s", got, err, tt.want)
			}
		})
	}
	if got, err := workspacePort(exposes("53/udp"), Config{}); err == nil {
		t.Errorf("an image that exposes no TCP port: %v, want an error", got)
	}
}
