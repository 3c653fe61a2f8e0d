//! How much memory all fetches of the process take together (promise P9).
//!
//! A fetch says what it is going to need before it takes it, from sizes that were checked. Where that is not
//! free, it waits for the others; where it is more than there may ever be, it fails. There are two pools, and
//! a fetch takes from the first one first. So no two fetches wait for each other.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::error::{Code, Error, Result};
use crate::event::human_bytes;

/// What the library takes of memory at most, in MiB, unless it is set.
pub(crate) const DEFAULT_MIB: u64 = 512;

/// Less is not enough for the largest file that is converted: see `checkout::memory`.
pub(crate) const LEAST_MIB: u64 = 256;

/// What a fetch needs memory for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pool {
    /// The table of its objects, for as long as it takes.
    Objects,
    /// One step of it: resolving deltas, or writing files.
    Step,
}

/// The shares of the limit, in sixteenths. The rest is for everything else.
const SHARES: [u64; 2] = [4, 9];

#[derive(Debug, Default)]
struct Ledger {
    used: Mutex<[u64; 2]>,
    freed: Notify,
}

/// One for the process, as the memory is.
static LEDGER: LazyLock<Ledger> = LazyLock::new(Ledger::default);

/// Memory that was set aside; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Reserved {
    pool: Pool,
    bytes: u64,
}

/// How large a pool is, under `limit` bytes for the library.
pub(crate) fn size(pool: Pool, limit: u64) -> u64 {
    limit / 16 * SHARES[pool as usize]
}

/// Sets `bytes` aside, under `limit` bytes for the library. Waits until they are free.
///
/// # Errors
///
/// [`Code::Fetch`] if the pool is smaller than that; `what` is what the memory is for.
pub(crate) async fn reserve(pool: Pool, bytes: u64, limit: u64, what: &str) -> Result<Reserved> {
    let size = size(pool, limit);
    if bytes > size {
        return Err(Error::new(
            Code::Fetch,
            format!(
                "{what} would take {} of memory, and {} of the {} for the library are for that",
                human_bytes(bytes),
                human_bytes(size),
                human_bytes(limit)
            ),
        )
        .hint("make the template smaller, or raise MOLECULE_BUILD_MEMORY_MIB"));
    }
    loop {
        let freed = LEDGER.freed.notified();
        {
            let used = &mut LEDGER.lock()[pool as usize];
            if *used + bytes <= size {
                *used += bytes;
                return Ok(Reserved { pool, bytes });
            }
        }
        freed.await;
    }
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, [u64; 2]> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        LEDGER.lock()[self.pool as usize] -= self.bytes;
        LEDGER.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use futures_util::FutureExt;

    const LIMIT: u64 = 16 << 40;

    /// A part of the pool for steps, which is larger than what any test takes.
    fn step(part: u64) -> impl Future<Output = Result<Reserved>> {
        reserve(Pool::Step, 9 * (LIMIT / 16) / part, LIMIT, "a test")
    }

    #[test]
    fn memory_that_is_not_free_is_waited_for() {
        crate::process::executor::runtime()
            .unwrap()
            .block_on(async {
                let most = reserve(Pool::Step, 8 * (LIMIT / 16), LIMIT, "a test")
                    .await
                    .unwrap();
                let mut waits = Box::pin(step(2));
                assert!((&mut waits).now_or_never().is_none());
                // The other pool is another matter.
                let other = reserve(Pool::Objects, 1, LIMIT, "a test").now_or_never();
                assert!(other.unwrap().is_ok());
                drop(most);
                waits.await.unwrap();
            });
    }

    #[test]
    fn more_than_there_may_ever_be_is_an_error_with_the_figures() {
        let error = reserve(Pool::Objects, 129 << 20, 512 << 20, "the list of objects");
        let error = error.now_or_never().unwrap().unwrap_err();
        assert_eq!(error.code, Code::Fetch);
        for text in ["the list of objects", "129.0 MiB", "128.0 MiB", "512.0 MiB"] {
            assert!(error.message.contains(text), "{error:?}");
        }
        assert!(error.hint.contains("MOLECULE_BUILD_MEMORY_MIB"));
    }
}
