//! Removing what calls have left that nobody needs any more.
//!
//! A killed process leaves its partial fetch. Each commit, also one that the server does not have, leaves a lock
//! file and a record of its last use.

use std::fs::{self, Metadata};

use crate::cache::files::{DAY, is_older, remove};
use crate::cache::{Cache, TEMP_PREFIX, lock_file, usage};
use crate::names::commit::is_short;

impl Cache {
    /// Removes leftovers of all commits. Errors are ignored: the next sweep retries.
    pub(super) fn sweep(&self) {
        for leftover in self.with_prefix(TEMP_PREFIX) {
            if leftover.metadata().is_ok_and(|found| is_older(&found, DAY)) {
                let _ = remove(&leftover.path());
            }
        }
        for entry in self.with_prefix(".") {
            let name = entry.file_name();
            let parts = name
                .to_str()
                .and_then(|name| name.strip_prefix('.')?.split_once('.'));
            let (short, expired): (_, fn(&Metadata) -> bool) = match parts {
                Some((short, "lock")) => (short, |lock| is_older(lock, DAY)),
                Some((short, "used")) => (short, usage::is_expired),
                _ => continue,
            };
            // Checked before locking too: otherwise every sweep would lock every file, and calls would find them
            // locked.
            let unneeded = is_short(short)
                && fs::symlink_metadata(self.tree_path(short)).is_err()
                && entry.metadata().is_ok_and(|found| expired(&found));
            if unneeded {
                let _ = lock_file::remove_unlocked(&entry.path(), expired);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::cache::tests::{SHORT, cache, locked};

    use crate::names::runtimes::known;

    fn age(path: &Path, age: Duration) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn old_lock_and_usage_files_of_commits_without_a_tree_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let (lock, used) = (cache.lock_path(SHORT), cache.used_path(SHORT));
        let left = || {
            cache.sweep();
            (lock.exists(), used.exists())
        };
        drop(locked(&cache));
        Cache::mark_used(root.path(), &known("hermes"), SHORT).unwrap();
        assert_eq!(left(), (true, true), "young");

        age(&lock, 2 * DAY);
        age(&used, 366 * DAY);
        fs::create_dir(cache.tree_path(SHORT)).unwrap();
        assert_eq!(left(), (true, true), "of a tree");

        fs::remove_dir(cache.tree_path(SHORT)).unwrap();
        let held = locked(&cache);
        age(&lock, 2 * DAY);
        assert_eq!(left(), (true, false), "locked");

        drop(held);
        assert_eq!(left(), (false, false));
    }

    #[test]
    fn a_recorded_use_is_kept_longer_than_an_empty_record() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let used = cache.used_path(SHORT);
        for (recorded, days, kept) in [
            (false, 0, true),
            (false, 2, false),
            (true, 2, true),
            (true, 364, true),
            (true, 366, false),
        ] {
            match recorded {
                true => {
                    Cache::mark_used(root.path(), &known("hermes"), SHORT).unwrap();
                }
                false => drop(cache.try_lock_unused(SHORT, None).unwrap()),
            }
            age(&used, days * DAY);
            cache.sweep();
            assert_eq!(used.exists(), kept, "{recorded} {days}");
        }
    }

    #[test]
    fn a_use_recorded_in_a_file_that_was_swept_is_not_taken_as_recorded() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        Cache::mark_used(root.path(), &known("hermes"), SHORT).unwrap();
        let used = cache.used_path(SHORT);
        age(&used, 366 * DAY);
        let opened_before = lock_file::open(&used).unwrap();
        cache.sweep();
        let recorded = usage::record(opened_before, &used).unwrap();
        assert_eq!(recorded, lock_file::SharedLockResult::Removed);
    }

    #[test]
    fn a_waiter_with_a_swept_lock_file_waits_for_its_successor() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let lock = cache.lock_path(SHORT);
        let waiter = lock_file::open(&lock).unwrap();
        age(&lock, 2 * DAY);
        cache.sweep();
        assert!(!lock.exists());
        let newcomer = locked(&cache);
        let waiter = lock_file::try_lock(waiter, &lock).unwrap().unwrap_err();
        drop(newcomer);
        assert!(lock_file::try_lock(waiter, &lock).unwrap().is_ok());
    }
}
