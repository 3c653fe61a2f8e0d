package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"git.moleculesai.app/molecule-ai/libmol/go/templateserver/server"
)

// templates is the template server with the sample templates.
type templates struct{ *server.Server }

func startTemplates(ctx context.Context, after *cleanup, root, dir string) (*templates, error) {
	prepare := exec.CommandContext(ctx, filepath.Join(root, "examples/templates/prepare"), dir)
	if text, err := prepare.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("prepare the sample templates: %w\n%s", err, text)
	}
	s, err := server.Start(server.Options{Templates: dir})
	if err != nil {
		return nil, fmt.Errorf("start the template server: %w", err)
	}
	after.made("template server")
	after.add(func(context.Context) error { return s.Close() })
	// The server is on loopback, so no proxy may be used.
	if err := os.Setenv("NO_PROXY", "127.0.0.1,"+os.Getenv("NO_PROXY")); err != nil {
		return nil, err
	}
	return &templates{s}, os.Setenv("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", s.RepoPrefix())
}

// release commits a new version of the template to its main branch.
func (t *templates) release(version string) (sha string, err error) {
	return t.Commit("molecule-ai/molecule-ai-workspace-template-"+runtime, server.Commit{
		Branch:  "main",
		Message: "Release " + version,
		Files:   map[string]server.File{"VERSION": {Text: version + "\n"}},
	})
}
