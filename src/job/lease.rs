//! Leases: pruning does not remove an image that a call has used recently.
//!
//! A call takes a lease on an image before it asks the engine for it. Pruning checks the leases right before it
//! removes the image. Neither can miss the other, because each writes its own record before it reads the other's:
//!
//! ```text
//! a call    1. records the lease         2. waits while the image is being removed   3. asks the engine
//! pruning   1. records that it removes   2. checks the leases                        3. inspects again, removes
//! ```
//!
//! The records are in two places. Processes that share a cache use the file `.<sha12>.used` in it
//! ([`Cache::mark_used`]). Clients of one process use a table in memory, also if their caches differ. Two processes
//! that share an engine but no cache have only the engine's time of the last tag, which [`find`] renews if the
//! engine has one.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::cache::Cache;
use crate::engine::{Engine, Found};
use crate::error::Result;
use crate::event::{Event, Sink};
use crate::job::shared::Shared;
use crate::names::reference::References;
use crate::names::runtimes::Runtime;
use crate::process::executor::blocking;

/// How long a lease is valid. A call under a valid lease writes nothing, so that a hit stays cheap. Therefore pruning
/// keeps an image for this much longer than the caller asked for.
const LEASE: Duration = Duration::from_secs(5);

/// How long a call waits for the removal of its image. A removal is short, but the process that removes the image
/// can be suspended.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a call waits for the cache's disk. A call continues without a record rather than hang.
const MARK_TIMEOUT: Duration = Duration::from_secs(1);

/// Upper bound of threads that a hanging disk can block.
const MARKS_AT_ONCE: usize = 4;

/// How often an image is looked up, if its lease ends or the image is removed while the engine answers.
const ATTEMPTS: u32 = 3;

/// When the ledger has this many entries, those older than [`LEDGER_AGE`] are dropped.
const LEDGER_ENTRIES: usize = 1024;
const LEDGER_AGE: Duration = Duration::from_secs(24 * 3600);

/// The images that this process has used or is removing, by pinned reference.
static LEDGER: LazyLock<Mutex<Ledger>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct Ledger {
    used: HashMap<String, Instant>,
    /// How many prune calls are removing the image.
    removing: HashMap<String, u32>,
}

/// The leases of one client: when each ends, by pinned reference.
#[derive(Debug)]
pub(crate) struct Leases {
    ends: Mutex<HashMap<String, Instant>>,
    marking: Arc<Semaphore>,
}

impl Default for Leases {
    fn default() -> Self {
        Self {
            ends: Mutex::default(),
            marking: Arc::new(Semaphore::new(MARKS_AT_ONCE)),
        }
    }
}

impl Leases {
    fn is_valid(&self, pinned: &str) -> bool {
        lock(&self.ends)
            .get(pinned)
            .is_some_and(|end| Instant::now() < *end)
    }

    fn add(&self, pinned: &str, end: Instant) {
        let now = Instant::now();
        let mut ends = lock(&self.ends);
        ends.retain(|_, end| now < *end);
        ends.insert(pinned.to_owned(), end);
    }
}

/// Pruning keeps everything that was used within this time. `None` if recent use does not matter.
pub(crate) fn window(recent: Duration) -> Option<Duration> {
    (!recent.is_zero()).then(|| recent.saturating_add(LEASE))
}

/// Looks up an image in the engine, under a lease: from now on pruning keeps it. `None` if the engine has no image of
/// that name.
pub(crate) async fn find(
    shared: &Shared,
    runtime: &Runtime,
    references: &References,
    emit: &Sink,
) -> Result<Option<Found>> {
    let engine = shared.engine().await?;
    let mut attempt = 1;
    loop {
        let new = acquire(shared, runtime, references, emit).await;
        let found = engine.find(&references.pinned).await?;
        let Some(image) = &found else {
            return Ok(None);
        };
        let exists = !new || renew(shared, engine, image, references).await;
        if (exists && shared.leases.is_valid(&references.pinned)) || attempt == ATTEMPTS {
            return Ok(found);
        }
        attempt += 1;
    }
}

/// Takes a lease; false if the client has a valid one. It never fails: if the cache is not writable, only the other
/// processes do not see the lease.
async fn acquire(shared: &Shared, runtime: &Runtime, references: &References, emit: &Sink) -> bool {
    let pinned = &references.pinned;
    if shared.leases.is_valid(pinned) {
        return false;
    }
    let started = Instant::now();
    let (mut reported, mut pause) = (false, Duration::from_millis(5));
    loop {
        let marked = Instant::now();
        let in_process = mark(pinned);
        let in_cache = mark_in_cache(shared, runtime, references.short()).await;
        if (in_process && in_cache) || started.elapsed() > REMOVAL_TIMEOUT {
            shared.leases.add(pinned, marked + LEASE);
            return true;
        }
        if !reported {
            emit(Event::waiting_for_prune(pinned));
            reported = true;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Tags the image again, so that the engine's time of its last tag is the time of its last use. Docker keeps that
/// time, except with the containerd image store; Podman does not. False if the image no longer exists.
///
/// An image that does not have `:latest` is skipped: the caller tags it, with the same effect.
async fn renew(shared: &Shared, engine: &Engine, image: &Found, references: &References) -> bool {
    let References { pinned, latest } = references;
    let tagged_by_caller = !shared.settings.offline && !image.is_known_as(latest);
    tagged_by_caller || image.tagged.is_none() || engine.tag(pinned, pinned).await.is_ok()
}

/// Records the use in the cache. False while another process, or another client, removes the image.
async fn mark_in_cache(shared: &Shared, runtime: &Runtime, short: &str) -> bool {
    let (root, runtime, short) = (
        shared.settings.cache_dir.clone(),
        runtime.clone(),
        short.to_owned(),
    );
    let turn = Arc::clone(&shared.leases.marking).acquire_owned();
    let marked = async {
        let turn = turn.await;
        blocking(&shared.tasks, move || {
            let _turn = turn;
            Cache::mark_used(&root, &runtime, &short)
        })
        .await
    };
    let marked = tokio::time::timeout(MARK_TIMEOUT, marked).await;
    !matches!(marked, Ok(Ok(false)))
}

/// Records the use in this process. False while the image is being removed.
fn mark(pinned: &str) -> bool {
    let mut ledger = lock(&LEDGER);
    if ledger.used.len() >= LEDGER_ENTRIES {
        ledger.used.retain(|_, used| used.elapsed() < LEDGER_AGE);
    }
    ledger.used.insert(pinned.to_owned(), Instant::now());
    !ledger.removing.contains_key(pinned)
}

/// While this value exists, no client of this process gets a lease on the image.
#[derive(Debug)]
pub(crate) struct Removing {
    pinned: String,
}

impl Removing {
    /// `None` if this process has used the image within the window.
    pub(crate) fn begin(pinned: &str, window: Option<Duration>) -> Option<Self> {
        let mut ledger = lock(&LEDGER);
        if is_used(&ledger, pinned, window) {
            return None;
        }
        *ledger.removing.entry(pinned.to_owned()).or_default() += 1;
        Some(Self {
            pinned: pinned.to_owned(),
        })
    }

    /// Whether this process has used the image within the window, so that [`Removing::begin`] would refuse.
    pub(crate) fn is_used(pinned: &str, window: Option<Duration>) -> bool {
        is_used(&lock(&LEDGER), pinned, window)
    }
}

impl Drop for Removing {
    fn drop(&mut self) {
        let mut ledger = lock(&LEDGER);
        if let Some(n) = ledger.removing.get_mut(&self.pinned) {
            *n -= 1;
            if *n == 0 {
                ledger.removing.remove(&self.pinned);
            }
        }
    }
}

fn is_used(ledger: &Ledger, pinned: &str, window: Option<Duration>) -> bool {
    let used = ledger.used.get(pinned);
    used.zip(window)
        .is_some_and(|(used, window)| used.elapsed() < window)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_used_within_the_window_is_not_removed() {
        let pinned = "used within the window";
        assert!(Removing::begin(pinned, Some(Duration::MAX)).is_some());
        assert!(mark(pinned));
        assert!(Removing::begin(pinned, Some(Duration::MAX)).is_none());
        assert!(Removing::is_used(pinned, Some(Duration::MAX)));
        assert!(Removing::begin(pinned, Some(Duration::ZERO)).is_some());
        assert!(
            Removing::begin(pinned, None).is_some(),
            "recent use does not matter"
        );
    }

    #[test]
    fn no_lease_is_granted_while_the_image_is_being_removed() {
        let pinned = "being removed";
        let (first, second) = (
            Removing::begin(pinned, None).unwrap(),
            Removing::begin(pinned, None).unwrap(),
        );
        assert!(!mark(pinned));
        drop(first);
        assert!(!mark(pinned), "the other removal continues");
        drop(second);
        assert!(mark(pinned));
        // The use that was recorded meanwhile counts for the next prune.
        assert!(Removing::begin(pinned, Some(Duration::MAX)).is_none());
    }

    #[test]
    fn the_window_is_one_lease_longer_than_the_option() {
        assert_eq!(window(Duration::ZERO), None);
        assert_eq!(
            window(Duration::from_secs(600)),
            Some(Duration::from_secs(605))
        );
        assert_eq!(window(Duration::MAX), Some(Duration::MAX));
    }

    #[test]
    fn expired_leases_are_dropped() {
        let leases = Leases::default();
        leases.add("old", Instant::now());
        leases.add("new", Instant::now() + LEASE);
        assert!(!leases.is_valid("old") && leases.is_valid("new"));
        assert_eq!(lock(&leases.ends).len(), 1);
    }
}
