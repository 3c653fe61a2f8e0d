//! What was used a moment ago, which pruning must leave alone.
//!
//! A call takes a lease on an image before it asks the engine for it; pruning looks for leases right before it
//! removes the image. Neither can miss the other, because each announces itself before it looks:
//!
//! ```text
//! a call    1. notes the time of the lease   2. waits while the image is being removed   3. asks the engine
//! pruning   1. says that it is removing      2. looks for leases                         3. looks again, and removes
//! ```
//!
//! It is kept in two places. Processes that share a cache see each other through the file `.<sha12>.used` in it
//! ([`Cache::mark_used`]). Clients of one process see each other here, whatever cache each of them has. Two
//! processes that share an engine and no cache have only the engine's own time of the last tag, which
//! [`find`] renews where the engine keeps one.

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
use crate::process::panics;

/// How long a lease lasts. A call under a lease that still lasts notes nothing, so that a hit stays cheap; pruning
/// adds this to the time for which it leaves an image alone.
const LEASE: Duration = Duration::from_secs(5);

/// How long a call waits for whoever removes its image. Removing takes moments; a process that was stopped in the
/// middle of it must not stop others.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a call waits for the cache's disk. The note is worth less than the call.
const MARK_TIMEOUT: Duration = Duration::from_secs(1);

/// Upper bound of threads that a disk that hangs can take from the others.
const MARKS_AT_ONCE: usize = 4;

/// How often an image is looked up again because its lease ended, or it went, while the engine answered.
const LOOKS: u32 = 3;

/// Entries of the process's ledger from which on those that are older than [`LEDGER_AGE`] are dropped.
const LEDGER_ENTRIES: usize = 1024;
const LEDGER_AGE: Duration = Duration::from_secs(24 * 3600);

/// What this process has used and is removing, by pinned reference.
static LEDGER: LazyLock<Mutex<Ledger>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct Ledger {
    used: HashMap<String, Instant>,
    /// How many are at it.
    removing: HashMap<String, u32>,
}

/// The leases of one client, by pinned reference, with their ends.
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
    fn lasts(&self, pinned: &str) -> bool {
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

/// What pruning leaves alone: everything that was used within this time. `None` where nothing is asked for.
pub(crate) fn window(recent: Duration) -> Option<Duration> {
    (!recent.is_zero()).then(|| recent.saturating_add(LEASE))
}

/// Looks an image up to return it: from here on pruning leaves it alone. `None` if there is none of that name.
pub(crate) async fn find(
    shared: &Shared,
    runtime: &Runtime,
    references: &References,
    emit: &Sink,
) -> Result<Option<Found>> {
    let engine = shared.engine().await?;
    let mut looks = 1;
    loop {
        let begun = lease(shared, runtime, references, emit).await;
        let found = engine.find(&references.pinned).await?;
        let Some(image) = &found else {
            return Ok(None);
        };
        let stays = !begun || renew(shared, engine, image, references).await;
        if (stays && shared.leases.lasts(&references.pinned)) || looks == LOOKS {
            return Ok(found);
        }
        looks += 1;
    }
}

/// Takes a lease, unless one still lasts. It never fails: without a cache that can be written only the other
/// processes are not told.
async fn lease(shared: &Shared, runtime: &Runtime, references: &References, emit: &Sink) -> bool {
    let pinned = &references.pinned;
    if shared.leases.lasts(pinned) {
        return false;
    }
    let begun = Instant::now();
    let (mut told, mut pause) = (false, Duration::from_millis(5));
    loop {
        let noted = Instant::now();
        let here = mark(pinned);
        let elsewhere = mark_in_cache(shared, runtime, references.short()).await;
        if (here && elsewhere) || begun.elapsed() > REMOVAL_TIMEOUT {
            shared.leases.add(pinned, noted + LEASE);
            return true;
        }
        if !told {
            emit(Event::waiting_for_prune(pinned));
            told = true;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Has the engine keep the image's last use too, as the time of its last tag, where it keeps that: Docker does,
/// but for the containerd image store; Podman does not. False if the image has gone.
///
/// The caller moves `:latest` to an image that does not have it, which has the same effect.
async fn renew(shared: &Shared, engine: &Engine, image: &Found, references: &References) -> bool {
    let References { pinned, latest } = references;
    let tagged_anyway = !shared.settings.offline && !image.is_known_as(latest);
    tagged_anyway || image.tagged.is_none() || engine.tag(pinned, pinned).await.is_ok()
}

/// Notes it in the cache. False while another process, or another client, removes the image.
async fn mark_in_cache(shared: &Shared, runtime: &Runtime, short: &str) -> bool {
    let (root, runtime, short) = (
        shared.settings.cache_dir.clone(),
        runtime.clone(),
        short.to_owned(),
    );
    let turn = Arc::clone(&shared.leases.marking).acquire_owned();
    let marked = async {
        let turn = turn.await;
        // Without a free thread this panics, and then there is no note.
        let begun = panics::catch(|| {
            Ok(blocking(&shared.tasks, move || {
                let _turn = turn;
                Cache::mark_used(&root, &runtime, &short)
            }))
        });
        begun?.await
    };
    let marked = tokio::time::timeout(MARK_TIMEOUT, marked).await;
    !matches!(marked, Ok(Ok(false)))
}

/// Notes it for this process. False while the image is being removed.
fn mark(pinned: &str) -> bool {
    let mut ledger = lock(&LEDGER);
    if ledger.used.len() >= LEDGER_ENTRIES {
        ledger.used.retain(|_, used| used.elapsed() < LEDGER_AGE);
    }
    ledger.used.insert(pinned.to_owned(), Instant::now());
    !ledger.removing.contains_key(pinned)
}

/// While it is there, no client of this process takes a lease on the image.
#[derive(Debug)]
pub(crate) struct Removing {
    pinned: String,
}

impl Removing {
    /// `None` if this process has used the image within the window.
    pub(crate) fn begin(pinned: &str, window: Option<Duration>) -> Option<Self> {
        let mut ledger = lock(&LEDGER);
        if used_here(&ledger, pinned, window) {
            return None;
        }
        *ledger.removing.entry(pinned.to_owned()).or_default() += 1;
        Some(Self {
            pinned: pinned.to_owned(),
        })
    }

    /// Would [`Removing::begin`] refuse?
    pub(crate) fn would_not(pinned: &str, window: Option<Duration>) -> bool {
        used_here(&lock(&LEDGER), pinned, window)
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

fn used_here(ledger: &Ledger, pinned: &str, window: Option<Duration>) -> bool {
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
        assert!(Removing::would_not(pinned, Some(Duration::MAX)));
        assert!(Removing::begin(pinned, Some(Duration::ZERO)).is_some());
        assert!(
            Removing::begin(pinned, None).is_some(),
            "nothing is asked for"
        );
    }

    #[test]
    fn no_lease_begins_while_the_image_is_being_removed() {
        let pinned = "being removed";
        let (first, second) = (
            Removing::begin(pinned, None).unwrap(),
            Removing::begin(pinned, None).unwrap(),
        );
        assert!(!mark(pinned));
        drop(first);
        assert!(!mark(pinned), "the other one is still at it");
        drop(second);
        assert!(mark(pinned));
        // What was noted meanwhile counts for the next prune.
        assert!(Removing::begin(pinned, Some(Duration::MAX)).is_none());
    }

    #[test]
    fn the_window_is_longer_than_asked_by_one_lease() {
        assert_eq!(window(Duration::ZERO), None);
        assert_eq!(
            window(Duration::from_secs(600)),
            Some(Duration::from_secs(605))
        );
        assert_eq!(window(Duration::MAX), Some(Duration::MAX));
    }

    #[test]
    fn leases_that_have_ended_are_dropped() {
        let leases = Leases::default();
        leases.add("old", Instant::now());
        leases.add("new", Instant::now() + LEASE);
        assert!(!leases.lasts("old") && leases.lasts("new"));
        assert_eq!(lock(&leases.ends).len(), 1);
    }
}
