//! Signal masks: what the library's threads block, and what the programs that they start inherit.
//!
//! Writing to a closed pipe or socket raises SIGPIPE, and writing a file beyond the process limit (RLIMIT_FSIZE) raises
//! SIGXFSZ. By default both end the host. The library must not change the host's signal handlers (promise P7), so its
//! own threads block the two signals: a write then fails with EPIPE or EFBIG, and a pending signal is discarded with the
//! thread. Threads of a dependency inherit the mask from the thread that starts them.

use std::io;
use std::sync::OnceLock;

use nix::sys::signal::{SigSet, Signal};

/// The host's mask: that of the thread that started the runtime.
static HOST: OnceLock<SigSet> = OnceLock::new();

/// Stores the signal mask of this thread, which must be a thread of the host, for programs that are started later.
pub(crate) fn remember_host() {
    HOST.get_or_init(|| SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty()));
}

/// Permanently blocks the signals that a write can raise on this thread. Each thread of the library starts with it.
pub(crate) fn block_write_signals() {
    let set: SigSet = [Signal::SIGPIPE, Signal::SIGXFSZ].into_iter().collect();
    // It only fails for an invalid set or operation.
    let _ = set.thread_block();
}

/// Sets the host's mask on this thread. A program inherits the mask of the thread that starts it; with SIGPIPE blocked it
/// would not end when its output is closed.
pub(crate) fn set_host_mask() -> io::Result<()> {
    let host = HOST.get().copied().unwrap_or_else(SigSet::empty);
    Ok(host.thread_set_mask()?)
}
