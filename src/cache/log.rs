//! The log of the last build of a runtime.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::cache::files::open_own;
use crate::cache::{Cache, Lock};
use crate::names::reference::CommitSha;

const LOG: &str = ".build.log";

impl Cache {
    /// Returns the path, time and text of the last build's log. Reads at most `max` bytes; longer logs are not
    /// written by this library.
    pub(crate) fn log(&self, max: usize) -> Option<(PathBuf, SystemTime, Vec<u8>)> {
        let path = self.folder.join(LOG);
        let file = open_own(&path)?;
        let found = file.metadata().ok()?;
        let mut text = Vec::new();
        file.take(max as u64).read_to_end(&mut text).ok()?;
        Some((path, found.modified().ok()?, text))
    }

    /// Replaces the log of the last build, atomically. The lock is the commit's: only its holder writes the
    /// temporary file.
    pub(crate) fn write_log(&self, commit: &CommitSha, _lock: &Lock, text: &str) -> io::Result<()> {
        let new = self.folder.join(format!(".{}.log", commit.short()));
        // A killed process may have left one.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(new, self.folder.join(LOG))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::cache::tests::{SHORT, cache, commit, locked};

    #[test]
    fn at_most_max_bytes_of_a_log_are_read() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let lock = locked(&cache);
        cache.write_log(&commit(), &lock, "0123456789").unwrap();
        assert_eq!(cache.log(4).unwrap().2, b"0123");
        assert_eq!(cache.log(100).unwrap().2, b"0123456789");
    }

    #[test]
    fn a_log_replaces_the_partial_one_of_a_killed_process() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let lock = locked(&cache);
        let partial = cache.folder.join(format!(".{SHORT}.log"));
        fs::write(&partial, "par").unwrap();
        cache.write_log(&commit(), &lock, "complete").unwrap();
        assert_eq!(cache.log(100).unwrap().2, b"complete");
        assert!(!partial.exists());
    }
}
