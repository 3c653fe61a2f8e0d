//! Signals: what the threads of the library block, and what the programs that they start do not.
//!
//! Writing to a pipe or a socket that nobody reads raises SIGPIPE, and writing a file beyond the limit of
//! the process (RLIMIT_FSIZE) raises SIGXFSZ. Both end the host unless it has said otherwise. How the host
//! handles a signal is not for the library to change (promise P7), so its own threads block the two: a
//! write fails with EPIPE or EFBIG, and a signal that is pending for a thread ends with the thread. The threads that a dependency starts inherit the mask from the one that starts them.

use std::io;
use std::sync::OnceLock;

use nix::sys::signal::{SigSet, Signal};

/// The mask of the thread that has made the runtime: the host's.
static HOST: OnceLock<SigSet> = OnceLock::new();

/// Keeps the mask of this thread, which is the host's, for the programs that are started later.
pub(crate) fn remember_host() {
    HOST.get_or_init(|| SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty()));
}

/// Blocks the signals that a write can raise on this thread, for good. Every thread of the library begins
/// with it.
pub(crate) fn block_writes() {
    let set: SigSet = [Signal::SIGPIPE, Signal::SIGXFSZ].into_iter().collect();
    // It only fails for a set or an operation that there is not.
    let _ = set.thread_block();
}

/// Gives this thread the host's mask. A program inherits that of the thread that starts it, and one
/// with SIGPIPE blocked would go on writing where others end.
pub(crate) fn unblock_as_host() -> io::Result<()> {
    let host = HOST.get().copied().unwrap_or_else(SigSet::empty);
    Ok(host.thread_set_mask()?)
}
