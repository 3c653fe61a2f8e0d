//! When a commit's image was last used, for pruning in other processes (see `job/lease.rs`).
//!
//! The record is the time of a file. A call writes it and then tries the lock; pruning takes the lock and then
//! reads it. So at least one of the two sees the other.

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::cache::Cache;
use crate::cache::files::{DAY, failed, is_older, open_own};
use crate::cache::lock_file::{self, Locked, SharedLockResult};
use crate::error::Result;
use crate::names::runtimes::Runtime;

/// Exclusive permission to remove what was built from a commit: calls wait until it is released before they use it.
#[derive(Debug)]
pub(crate) struct UnusedLock {
    _file: Locked,
}

impl Cache {
    /// Records that a call uses the image of a commit now. Returns false while somebody removes the image: the
    /// caller repeats this until it is true.
    pub(crate) fn mark_used(root: &Path, runtime: &Runtime, short: &str) -> Result<bool> {
        let path = Self::create(root, runtime)?.used_path(short);
        loop {
            match record(lock_file::open(&path)?, &path)? {
                SharedLockResult::Free => return Ok(true),
                SharedLockResult::Held => return Ok(false),
                SharedLockResult::Removed => {}
            }
        }
    }

    /// Takes the permission to remove what was built from a commit. `None` if a call has used it within the window, or
    /// somebody else has the permission. Without a window, uses do not count. The caller must hold the commit's lock.
    pub(crate) fn try_lock_unused(
        &self,
        short: &str,
        window: Option<Duration>,
    ) -> Result<Option<UnusedLock>> {
        let path = self.used_path(short);
        let Ok(file) = lock_file::try_lock(lock_file::open(&path)?, &path)? else {
            return Ok(None);
        };
        let last = last_use(&file, window);
        if matches!(last, Some(LastUse::InTheFuture)) {
            // The clock was set back since. From now on the record ages as others do.
            let _ = file.set_modified(SystemTime::now());
        }
        Ok(last.is_none().then_some(UnusedLock { _file: file }))
    }

    /// Whether a call has used the commit within the window, or may have, checked without changing anything. Without a
    /// window, uses do not count.
    pub(crate) fn is_used(&self, short: &str, window: Option<Duration>) -> bool {
        match open_own(&self.used_path(short)) {
            Ok(file) => file.is_some_and(|file| last_use(&file, window).is_some()),
            Err(_) => true,
        }
    }

    pub(super) fn used_path(&self, short: &str) -> PathBuf {
        self.folder.join(format!(".{short}.used"))
    }
}

/// Records a use now in the file, and then tries its lock.
pub(super) fn record(file: File, path: &Path) -> Result<SharedLockResult> {
    // One byte: an empty file was created by pruning, and records no use. The time is set by this machine's clock,
    // because a file server's may differ.
    let recorded = file
        .set_len(1)
        .and_then(|()| file.set_modified(SystemTime::now()));
    recorded.map_err(|error| failed(path, "cannot be written", &error))?;
    lock_file::try_lock_shared(file, path)
}

/// Whether a record can be removed: it is empty and over a day old, or its use is over a year ago. A use is kept that
/// long because pruning can be given a window of any length, and also checks images that have no tree here.
pub(super) fn is_expired(record: &Metadata) -> bool {
    let keep = match record.len() {
        0 => DAY,
        _ => 365 * DAY,
    };
    is_older(record, keep)
}

/// A use that pruning must respect.
enum LastUse {
    /// Also if the record cannot be read.
    WithinWindow,
    /// The clock was set back, so it may have been a moment ago.
    InTheFuture,
}

/// Reads the last use; `None` if there was none within the window.
fn last_use(file: &File, window: Option<Duration>) -> Option<LastUse> {
    let window = window?;
    let read = file
        .metadata()
        .and_then(|found| Ok((found.len(), found.modified()?)));
    let Ok((length, at)) = read else {
        return Some(LastUse::WithinWindow);
    };
    match at.elapsed() {
        _ if length == 0 => None,
        Ok(age) => (age < window).then_some(LastUse::WithinWindow),
        Err(_) => Some(LastUse::InTheFuture),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cache::tests::{SHORT, cache};

    use crate::names::runtimes::known;

    const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

    fn mark(root: &Path) -> bool {
        Cache::mark_used(root, &known("hermes"), SHORT).unwrap()
    }

    fn set_time(cache: &Cache, to: SystemTime) {
        let file = open_own(&cache.used_path(SHORT)).unwrap().unwrap();
        file.set_modified(to).unwrap();
    }

    #[test]
    fn checking_an_unused_commit_does_not_mark_it_used() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        assert!(!cache.is_used(SHORT, MINUTE));
        for _ in 0..2 {
            assert!(cache.try_lock_unused(SHORT, MINUTE).unwrap().is_some());
        }
    }

    #[test]
    fn a_commit_stays_used_for_the_window() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        assert!(mark(root.path()) && cache.is_used(SHORT, MINUTE));
        assert!(cache.try_lock_unused(SHORT, MINUTE).unwrap().is_none());
        assert!(cache.try_lock_unused(SHORT, None).unwrap().is_some());
        set_time(&cache, SystemTime::now() - Duration::from_secs(61));
        assert!(!cache.is_used(SHORT, MINUTE));
        assert!(cache.try_lock_unused(SHORT, MINUTE).unwrap().is_some());
    }

    #[test]
    fn a_commit_cannot_be_marked_used_while_it_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let unused = cache.try_lock_unused(SHORT, MINUTE).unwrap().unwrap();
        assert!(!mark(root.path()));
        assert!(cache.try_lock_unused(SHORT, None).unwrap().is_none());
        drop(unused);
        assert!(mark(root.path()));
    }

    #[test]
    fn a_use_in_the_future_counts_and_ages_from_the_next_check() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        mark(root.path());
        set_time(
            &cache,
            SystemTime::now() + Duration::from_secs(3600 * 24 * 365),
        );
        assert!(cache.is_used(SHORT, MINUTE));
        assert!(cache.try_lock_unused(SHORT, MINUTE).unwrap().is_none());
        let recorded = fs::metadata(cache.used_path(SHORT)).unwrap().modified();
        assert!(recorded.unwrap() <= SystemTime::now());
    }
}
