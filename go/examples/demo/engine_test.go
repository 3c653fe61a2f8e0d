package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
	"github.com/moby/moby/client"
)

func TestCleanupRestoresTheUsersLatestImage(t *testing.T) {
	host := os.Getenv("MOL_TEST_ENGINE")
	if host == "" {
		t.Fatal("MOL_TEST_ENGINE is not set: run `make test`, which starts a private engine")
	}
	c, err := client.New(client.WithHost(host))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	t.Setenv("MOLECULE_LOCAL_IMAGE_ISOLATION", fmt.Sprintf("demo-%d", time.Now().UnixNano()))
	latest := mol.LocalImageLatestTag(runtime)
	for name, built := range map[string]bool{"the demo ends before a build": false, "after a build": true} {
		t.Run(name, func(t *testing.T) {
			e := &engine{client: c}
			importImage(t, c, latest)
			before, err := e.imageID(t.Context(), latest)
			if err != nil {
				t.Fatal(err)
			}
			var after cleanup
			if err := e.keepLatest(t.Context(), &after); err != nil {
				t.Fatal(err)
			}
			if built {
				importImage(t, c, latest)
			}
			if err := after.run(); err != nil {
				t.Error(err)
			}
			if now, err := e.imageID(t.Context(), latest); now != before || err != nil {
				t.Errorf("%s is %q, %v; want %s", latest, now, err, before)
			}
			if err := e.untag(context.WithoutCancel(t.Context()), latest); err != nil {
				t.Error(err)
			}
		})
	}
}

// importImage creates an image that has only this reference.
func importImage(t *testing.T, c *client.Client, ref string) {
	t.Helper()
	var files bytes.Buffer
	archive := tar.NewWriter(&files)
	if err := archive.WriteHeader(&tar.Header{Name: fmt.Sprint(time.Now().UnixNano()), Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	imported, err := c.ImageImport(t.Context(), client.ImageImportSource{Source: &files, SourceName: "-"}, ref,
		client.ImageImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = imported.Close() }()
	if _, err := new(bytes.Buffer).ReadFrom(imported); err != nil {
		t.Fatal(err)
	}
}
