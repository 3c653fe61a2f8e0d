//! The one runtime, for the life of the process.

use once_cell::sync::OnceCell;
use tokio::runtime::{Builder, Runtime};
use tokio_util::task::TaskTracker;

use crate::error::{Code, Error, Result};
use crate::panics;

static RUNTIME: OnceCell<Runtime> = OnceCell::new();

/// The work here waits for networks and engines; two threads carry thousands of calls.
const WORKERS: usize = 2;

/// Fetches, archives and the disk. Each build uses two of them for a part of its time.
const BLOCKING_THREADS: usize = 64;

/// The runtime; it is started by the first call.
///
/// # Errors
///
/// [`Code::Internal`] if the operating system gives no thread. The next call tries again.
pub(crate) fn runtime() -> Result<&'static Runtime> {
    RUNTIME.get_or_try_init(|| {
        Builder::new_multi_thread()
            // Set, so that tokio does not look for its number in the environment.
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("libmol")
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| {
                Error::new(Code::Internal, format!("no thread can be started: {error}"))
                    .hint("raise the process's limit of threads (ulimit -u)")
            })
    })
}

/// Does what waits for the disk on a thread that may wait. It begins at once, and goes on to its end
/// when the future is dropped, so it owns what it needs, and `tasks` counts it until then.
pub(crate) fn blocking<T, W>(
    tasks: &TaskTracker,
    work: W,
) -> impl Future<Output = Result<T>> + Send + use<T, W>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T> + Send + 'static,
{
    let work = tasks.spawn_blocking(|| panics::caught(work));
    async { work.await.unwrap_or_else(|_| Err(Error::canceled())) }
}
