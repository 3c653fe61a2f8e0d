package mol

import (
	"context"
	goruntime "runtime"
	"time"
)

// BuildLog is the log of a runtime's last build. Its texts are masked.
type BuildLog struct {
	// Runtime is the runtime that was built.
	Runtime string `json:"runtime"`
	// Path is the file that holds the log.
	Path string `json:"path"`
	// EndedUnix is [BuildLog.Ended] in seconds since 1970.
	EndedUnix int64 `json:"ended_unix"`
	// Text is the log, one line per line of output. Of a very long log it has the beginning and the end, about 1 MiB,
	// and a line with the number of lines left out.
	Text string `json:"text"`
}

// Ended is when the build ended, to the second.
func (l BuildLog) Ended() time.Time { return time.Unix(l.EndedUnix, 0) }

// BuildLog returns the log of the last build of a runtime with this cache, by any process and with any result. If there
// is none, errors.Is holds for [ErrCache]. The context is as for [Client.EnsureLocalImage].
func (c *Client) BuildLog(ctx context.Context, runtime string) (BuildLog, error) {
	var log BuildLog
	err := c.inner.report(ctx, task{kind: taskBuildLog, runtime: runtime}, &log)
	goruntime.KeepAlive(c)
	if err != nil {
		return BuildLog{}, err
	}
	return log, nil
}
