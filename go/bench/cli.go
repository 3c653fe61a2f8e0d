package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"time"
)

// cli builds images without libmol, the CLI way: it looks the commit up over HTTP and runs docker and git for the rest.
type cli struct {
	docker string
	http   *http.Client
	t      template
	engine string // "" for the engine of the environment
}

func (env *testEnv) cli(t template) *cli {
	return &cli{docker: env.docker, http: &http.Client{Timeout: 30 * time.Second}, t: t}
}

// steps has the start times of steps.
type steps struct {
	clone time.Time // git was started
}

// ensure returns the image for the head of the template, and builds it if the engine does not have it.
func (c *cli) ensure(ctx context.Context) (ref string, s steps, err error) {
	sha, err := c.head(ctx)
	if err != nil {
		return "", s, err
	}
	pinned, moving := reference(sha, cliIsolation), latest(cliIsolation)
	if c.run(ctx, c.docker, "image", "inspect", pinned) == nil {
		return pinned, s, c.run(ctx, c.docker, "tag", pinned, moving)
	}
	tree, err := os.MkdirTemp("", "clone-")
	if err != nil {
		return "", s, err
	}
	defer os.RemoveAll(tree)
	s.clone = time.Now()
	if err := c.run(ctx, "git", "clone", "--quiet", "--depth=1", "--branch=main", c.t.cloneURL(), tree); err != nil {
		return "", s, err
	}
	if err := c.run(ctx, c.docker, "build", "--quiet", "--platform=linux/amd64", "--tag="+pinned, tree); err != nil {
		return "", s, err
	}
	return pinned, s, c.run(ctx, c.docker, "tag", pinned, moving)
}

func (c *cli) head(ctx context.Context) (string, error) {
	request, err := http.NewRequestWithContext(ctx, "GET", c.t.branchURL(), nil)
	if err != nil {
		return "", err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var branch struct {
		Commit struct{ ID string }
	}
	if err := json.NewDecoder(response.Body).Decode(&branch); err != nil {
		return "", err
	}
	if len(branch.Commit.ID) < 12 {
		return "", fmt.Errorf("no commit in the answer: %s", response.Status)
	}
	return branch.Commit.ID, nil
}

func (c *cli) run(ctx context.Context, program string, args ...string) error {
	command := exec.CommandContext(ctx, program, args...)
	if c.engine != "" {
		command.Env = append(os.Environ(), "DOCKER_HOST="+c.engine)
	}
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, args[0], err, output)
	}
	return nil
}
