//! Limits the memory that all fetches of the process use together (promise P9).
//!
//! Before a fetch uses memory, it reserves it; the amount is computed from checked sizes. If that much is not free, the
//! fetch waits for others; if it exceeds the pool, the fetch fails. There are two pools. Each fetch reserves from
//! `Objects` before `Step`, so two fetches cannot wait for each other.

use std::sync::{LazyLock, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::error::{Code, Error, Result};
use crate::event::human_bytes;
use crate::process;

/// The default limit of the library's memory, in MiB.
pub(crate) const DEFAULT_MIB: u64 = 512;

/// The lowest allowed limit, in MiB. Much less is not enough for one thread that converts files: see
/// `checkout::memory`.
pub(crate) const LEAST_MIB: u64 = 256;

/// What the memory is used for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pool {
    /// The table of objects, for the whole fetch.
    Objects,
    /// One step of the fetch: resolving deltas, or writing files.
    Step,
}

/// The pools' shares of the limit, in sixteenths. The remaining three are for everything else.
const SHARES: [u64; 2] = [4, 9];

#[derive(Debug, Default)]
struct Ledger {
    used: Mutex<[u64; 2]>,
    freed: Notify,
}

static LEDGER: LazyLock<Ledger> = LazyLock::new(Ledger::default);

/// Reserved memory. Dropping it releases the memory.
#[derive(Debug)]
pub(crate) struct Reserved {
    pool: Pool,
    bytes: u64,
}

/// The size of a pool in bytes, if the library's limit is `limit` bytes.
pub(crate) fn size(pool: Pool, limit: u64) -> u64 {
    limit / 16 * SHARES[pool as usize]
}

/// Reserves `bytes` of a pool, if the library's limit is `limit` bytes. Waits until they are free. `what` names the use
/// in an error.
///
/// # Errors
///
/// [`Code::Fetch`] if `bytes` is more than the whole pool.
pub(crate) async fn reserve(pool: Pool, bytes: u64, limit: u64, what: &str) -> Result<Reserved> {
    let size = size(pool, limit);
    if bytes > size {
        return Err(Error::new(
            Code::Fetch,
            format!(
                "{what} needs {} of memory, but the limit for it is {} (of {} for the library)",
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
        process::lock(&self.used)
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
    use crate::process::executor::block_on;

    use futures_util::FutureExt;

    #[test]
    fn a_reservation_waits_until_the_memory_is_free() {
        /// So large that the pool has room for all other tests.
        const LIMIT: u64 = 16 << 40;
        let pool = size(Pool::Step, LIMIT);
        let step = |bytes| reserve(Pool::Step, bytes, LIMIT, "a test");
        block_on(async {
            let most = step(pool / 9 * 8).await.unwrap();
            let mut waits = Box::pin(step(pool / 2));
            assert!((&mut waits).now_or_never().is_none());
            // The other pool is not affected.
            let other = reserve(Pool::Objects, 1, LIMIT, "a test").now_or_never();
            assert!(other.unwrap().is_ok());
            drop(most);
            waits.await.unwrap();
        });
    }

    #[test]
    fn a_reservation_larger_than_the_pool_is_an_error() {
        let error = reserve(Pool::Objects, 129 << 20, 512 << 20, "the list of objects");
        let error = error.now_or_never().unwrap().unwrap_err();
        assert_eq!(error.code, Code::Fetch);
        for text in ["the list of objects", "129.0 MiB", "128.0 MiB", "512.0 MiB"] {
            assert!(error.message().contains(text), "{error:?}");
        }
        assert!(error.hint.contains("MOLECULE_BUILD_MEMORY_MIB"));
    }
}
