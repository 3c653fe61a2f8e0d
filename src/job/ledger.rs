//! What this process knows of the use of images: the leases of each client, and which images were used or are being
//! removed. [`lease`](crate::job::lease) says in which order they are recorded and read.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::process;

/// How long a lease is valid. A call under a valid lease writes nothing, so that a hit stays cheap. Therefore pruning
/// keeps an image for this much longer than the caller asked for.
pub(super) const LEASE: Duration = Duration::from_secs(5);

/// Upper bound of threads that a hanging disk can block.
const MARKS_AT_ONCE: usize = 4;

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
    pub(super) marking: Arc<Semaphore>,
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
    pub(super) fn is_valid(&self, pinned: &str) -> bool {
        process::lock(&self.ends)
            .get(pinned)
            .is_some_and(|end| Instant::now() < *end)
    }

    pub(super) fn add(&self, pinned: &str, end: Instant) {
        let now = Instant::now();
        let mut ends = process::lock(&self.ends);
        ends.retain(|_, end| now < *end);
        ends.insert(pinned.to_owned(), end);
    }
}

/// Pruning keeps everything that was used within this time. `None` if recent use does not matter.
pub(crate) fn window(recent: Duration) -> Option<Duration> {
    (!recent.is_zero()).then(|| recent.saturating_add(LEASE))
}

/// Records the use in this process. False while the image is being removed.
pub(super) fn mark(pinned: &str) -> bool {
    let mut ledger = process::lock(&LEDGER);
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
        let mut ledger = process::lock(&LEDGER);
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
        is_used(&process::lock(&LEDGER), pinned, window)
    }
}

impl Drop for Removing {
    fn drop(&mut self) {
        let mut ledger = process::lock(&LEDGER);
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
        assert_eq!(process::lock(&leases.ends).len(), 1);
    }
}
