//! The log of the last build of a runtime.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use crate::cache::files::open_own;
use crate::cache::{Cache, Lock, temp_prefix};
use crate::names::commit::CommitSha;

const LOG: &str = ".build.log";

/// Upper bound of a log, in bytes. `job/recorder.rs` never writes more, and no more is read.
pub(crate) const MAX_LOG: usize = 2 << 20;

impl Cache {
    /// Returns the path, time and text of the last build's log.
    pub(crate) fn log(&self) -> Option<(PathBuf, SystemTime, Vec<u8>)> {
        let path = self.folder.join(LOG);
        let file = open_own(&path).ok()??;
        let found = file.metadata().ok()?;
        let mut text = Vec::new();
        file.take(MAX_LOG as u64).read_to_end(&mut text).ok()?;
        Some((path, found.modified().ok()?, text))
    }

    /// Replaces the log of the last build, atomically.
    pub(crate) fn write_log(&self, commit: &CommitSha, _lock: &Lock, text: &str) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(&temp_prefix(commit))
            .tempfile_in(&self.folder)?;
        file.write_all(text.as_bytes())?;
        file.persist(self.folder.join(LOG))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::MAX_LOG;
    use crate::cache::TEMP_PREFIX;
    use crate::cache::tests::{cache, commit, locked};

    #[test]
    fn only_the_start_of_a_too_long_log_is_read() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let lock = locked(&cache);
        let long = "0123456789".repeat(MAX_LOG / 10 + 1);
        cache.write_log(&commit(), &lock, &long).unwrap();
        assert_eq!(cache.log().unwrap().2, long.as_bytes()[..MAX_LOG]);
    }

    #[test]
    fn a_log_replaces_the_last_one_and_leaves_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let lock = locked(&cache);
        for text in ["first", "second"] {
            cache.write_log(&commit(), &lock, text).unwrap();
        }
        assert_eq!(cache.log().unwrap().2, b"second");
        assert_eq!(cache.with_prefix(TEMP_PREFIX).count(), 0);
    }
}
