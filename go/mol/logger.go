package mol

import (
	"log/slog"
	"sync/atomic"
)

// SetLogger sets the logger of [EnsureLocalImage]. Lookup, hit or miss, fetch, build, result, and calls cancelled by
// their caller are logged at level Info, warnings and failures at Warn, and each line of a build's output at Debug. The
// default is [slog.Default]; nil switches logging off. The logger applies to all calls, including running ones.
//
// The handler is called from goroutines of this package. A call waits for it for a fifth of a second at most, and a panic
// in it is caught.
//
// A [Client] has its own logger, [Options.Logger].
func SetLogger(l *slog.Logger) { chosenLogger.Store(&l) }

// chosenLogger is the argument of the last SetLogger.
var chosenLogger atomic.Pointer[*slog.Logger]

// packageLogger returns the logger of [EnsureLocalImage], or nil. It is called for each record, because a server may call
// SetLogger or slog.SetDefault at any time.
func packageLogger() *slog.Logger {
	if chosen := chosenLogger.Load(); chosen != nil {
		return *chosen
	}
	return slog.Default()
}
