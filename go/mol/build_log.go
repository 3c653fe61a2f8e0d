package mol

import (
	"context"
	goruntime "runtime"
	"time"
)

// BuildLog is the log of a runtime's last build. Its texts are masked.
type BuildLog struct {
	// Runtime is the runtime.
	Runtime string `json:"runtime"`
	// Path is the file.
	Path string `json:"path"`
	// EndedUnix is [BuildLog.Ended] in seconds since 1970.
	EndedUnix int64 `json:"ended_unix"`
	// Text has its lines: of a very long log the beginning and the end, about a mebibyte, and a line that says
	// how many were left out.
	Text string `json:"text"`
}

// Ended is when the build ended, to the second.
func (l BuildLog) Ended() time.Time { return time.Unix(l.EndedUnix, 0) }

// BuildLog gives the log of the last build of a runtime that was made with this cache, in whatever process, and
// however it ended. Without one the error answers to [ErrCache]. The context is as for [Client.EnsureLocalImage].
func (c *Client) BuildLog(ctx context.Context, runtime string) (BuildLog, error) {
	var log BuildLog
	err := c.inner.report(ctx, task{kind: taskBuildLog, runtime: runtime}, &log)
	goruntime.KeepAlive(c)
	if err != nil {
		return BuildLog{}, err
	}
	return log, nil
}
