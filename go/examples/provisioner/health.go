package provisioner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
)

const (
	defaultReadyTimeout = 2 * time.Minute
	firstDelay          = 20 * time.Millisecond // between two questions,
	longestDelay        = time.Second           // growing up to this
	answerTimeout       = 2 * time.Second       // for one answer
)

// ErrNotReady is in the error of a Start whose container ran, but did not answer
// in time or ended before it did.
var ErrNotReady = errors.New("the workspace did not become ready")

// health asks containers directly: a proxy for the outside world is not for
// them, and a redirect of theirs is not followed to anywhere.
var health = &http.Client{
	Timeout:       answerTimeout,
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// waitUntilHealthy asks the workspace, ever less often, until it answers, its
// container ends, or time is up.
func (p *Provisioner) waitUntilHealthy(ctx context.Context, cfg WorkspaceConfig, ws *Workspace) error {
	timeout := cfg.ReadyTimeout
	if timeout <= 0 {
		timeout = defaultReadyTimeout
	}
	waiting, cancel := context.WithTimeoutCause(ctx, timeout, ErrNotReady)
	defer cancel()

	var last error
	for delay := firstDelay; ; delay = min(delay*3/2, longestDelay) {
		answer := ask(waiting, ws.HealthURL)
		if answer == nil {
			return nil
		}
		if waiting.Err() == nil {
			last = answer
			found, err := p.engine.ContainerInspect(waiting, ws.ContainerID, client.ContainerInspectOptions{})
			if err == nil && !found.Container.State.Running {
				return p.exited(ctx, found.Container.State.ExitCode, ws.ContainerID)
			}
		}
		select {
		case <-time.After(delay):
		case <-waiting.Done():
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("waiting for %s: %w", ws.HealthURL, err)
			}
			return fmt.Errorf("%w: no good answer from %s in %s, the last was: %w%s", ErrNotReady, ws.HealthURL, timeout, last, p.lastLines(ctx, ws.ContainerID))
		}
	}
}

// ask returns nil when the address answers with a 2xx status.
func ask(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := health.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("http status %s", resp.Status)
	}
	return nil
}

// exited describes a container that ended by itself, with its last words.
func (p *Provisioner) exited(ctx context.Context, code int, id string) error {
	return fmt.Errorf("%w: it ended with exit code %d%s", ErrNotReady, code, p.lastLines(ctx, id))
}

// lastLines is the end of the container's log, for an error message; it is empty
// when the container said nothing or the engine does not tell.
func (p *Provisioner) lastLines(ctx context.Context, id string) string {
	logs, err := p.engine.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: "20"})
	if err != nil {
		return ""
	}
	defer func() { _ = logs.Close() }()
	var text bytes.Buffer
	// Twenty lines, but nobody promised that lines are short.
	_, _ = stdcopy.StdCopy(&text, &text, io.LimitReader(logs, 16<<10))
	if text.Len() == 0 {
		return "; it logged nothing"
	}
	return "; its last lines:\n" + strings.TrimRight(text.String(), "\n")
}
