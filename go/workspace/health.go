package workspace

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
	firstDelay          = 20 * time.Millisecond // between requests, growing
	longestDelay        = time.Second           // up to this
	answerTimeout       = 2 * time.Second       // for one request
)

// ErrNotReady is wrapped by the error of Start when the engine cannot start the
// container, or when the container does not answer in time or exits before it does.
var ErrNotReady = errors.New("the workspace did not become ready")

// health connects to containers directly, without a proxy, and does not follow
// redirects.
var health = &http.Client{
	Timeout:       answerTimeout,
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// waitUntilHealthy requests the health URL, with growing delays, until it answers,
// the container exits, or the timeout has passed.
func waitUntilHealthy(ctx context.Context, engine *client.Client, ws *Workspace, timeout time.Duration) error {
	if timeout <= 0 {
		timeout = defaultReadyTimeout
	}
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	var last error
	for delay := firstDelay; ; delay = min(delay*3/2, longestDelay) {
		answer := ask(waiting, ws.HealthURL)
		if answer == nil {
			return nil
		}
		if last == nil {
			last = answer // also if the timeout ended the first request
		}
		if waiting.Err() == nil {
			last = answer
			found, err := engine.ContainerInspect(waiting, ws.ContainerID, client.ContainerInspectOptions{})
			if err == nil && !found.Container.State.Running {
				return exited(ctx, engine, found.Container.State.ExitCode, ws.ContainerID)
			}
		}
		select {
		case <-time.After(delay):
		case <-waiting.Done():
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("waiting for %s: %w", ws.HealthURL, err)
			}
			return fmt.Errorf("%w: no successful answer from %s within %s, last error: %v%s", ErrNotReady, ws.HealthURL, timeout, last, lastLines(ctx, engine, ws.ContainerID))
		}
	}
}

// ask returns nil if the URL answers with a 2xx status.
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

// exited returns the error for a container that exited by itself, with the end of
// its log.
func exited(ctx context.Context, engine *client.Client, code int, id string) error {
	return fmt.Errorf("%w: it exited with code %d%s", ErrNotReady, code, lastLines(ctx, engine, id))
}

// lastLines returns the end of the container's log as the end of an error message.
// It is empty if the engine cannot read the log.
func lastLines(ctx context.Context, engine *client.Client, id string) string {
	logs, err := engine.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: "20"})
	if err != nil {
		return ""
	}
	defer func() { _ = logs.Close() }()
	const longest = 16 << 10 // for the message
	var text bytes.Buffer
	_, _ = stdcopy.StdCopy(&text, &text, io.LimitReader(logs, 1<<20)) // lines may be long
	if text.Len() == 0 {
		return "; it logged nothing"
	}
	text.Next(max(text.Len()-longest, 0))
	return "; its last lines:\n" + strings.TrimRight(text.String(), "\n")
}
