package mol

import (
	"log/slog"
	"sync/atomic"
)

// SetLogger sets where [EnsureLocalImage] logs what it does: lookup, hit or miss, fetch, build, result, and a call that
// its caller cancelled, at level Info; warnings and failures at Warn; each line of a build's output at Debug. Without
// SetLogger that is [slog.Default]. With nil nothing is logged. It holds for all calls, also for those that are running.
//
// The handler is called from goroutines of this package. A call waits a fifth of a second for it at most, and a panic in
// it is caught.
//
// A [Client] has a logger of its own, [Options.Logger].
func SetLogger(l *slog.Logger) { chosenLogger.Store(&l) }

// chosenLogger is what SetLogger was given last.
var chosenLogger atomic.Pointer[*slog.Logger]

// packageLogger is the logger of the function without a client; nil for none. It is asked for at each record, because
// a server may call SetLogger or slog.SetDefault at any time.
func packageLogger() *slog.Logger {
	if chosen := chosenLogger.Load(); chosen != nil {
		return *chosen
	}
	return slog.Default()
}
