//! The trees in the cache, complete or not: listing them, and removing one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cache::files::{failed, remove};
use crate::cache::{Cache, TEMP_PREFIX, ownership};
use crate::error::Result;
use crate::names::commit::{CommitSha, is_short};

/// A tree in the cache, complete or not.
#[derive(Debug)]
pub(crate) struct CacheEntry {
    pub(crate) path: PathBuf,
    /// The first twelve digits of its commit.
    pub(crate) short: String,
    /// Its commit, if it is marked complete.
    pub(crate) commit: Option<CommitSha>,
    /// What it takes on the disk.
    pub(crate) bytes: u64,
    pub(crate) made: SystemTime,
}

impl Cache {
    /// Lists the trees, complete or not, under the names that this library gives. Skips links, what belongs to other
    /// users, and trees whose completion marker cannot be read.
    pub(crate) fn entries(&self) -> Vec<CacheEntry> {
        let entries = self.with_prefix("").filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let temp = name.strip_prefix(TEMP_PREFIX).and_then(|rest| {
                let (short, end) = rest.split_once('-')?;
                (!end.is_empty()).then_some(short)
            });
            let short = temp.unwrap_or(&name);
            if !is_short(short) {
                return None;
            }
            let (short, path) = (short.to_owned(), entry.path());
            let found = fs::symlink_metadata(&path).ok()?;
            // The temporary file of a marker or of a log also has the prefix.
            let ours = ownership::is_own_folder(&path) || (temp.is_some() && found.is_file());
            if !ours {
                return None;
            }
            let commit = self.marked(&short).ok()?.filter(|_| temp.is_none());
            let entry = CacheEntry {
                short,
                commit,
                bytes: used_bytes(&path),
                made: SystemTime::UNIX_EPOCH,
                path,
            };
            let made = self.made(&entry).unwrap_or(entry.made);
            Some(CacheEntry { made, ..entry })
        });
        entries.collect()
    }

    /// The commit that a tree is marked complete for. `None` without a valid marker of this tree.
    fn marked(&self, short: &str) -> io::Result<Option<CommitSha>> {
        let marker = self.marker(short)?;
        Ok(marker
            .and_then(|marker| CommitSha::parse(&marker.commit))
            .filter(|commit| commit.short() == short))
    }

    /// When a tree was marked complete, or, for an incomplete tree, when its folder was last changed. Read from the
    /// disk again, because the entry may be out of date.
    pub(crate) fn made(&self, entry: &CacheEntry) -> Option<SystemTime> {
        let marker = entry
            .commit
            .as_ref()
            .map(|_| self.marker_path(&entry.short));
        fs::symlink_metadata(marker.as_ref().unwrap_or(&entry.path))
            .and_then(|found| found.modified())
            .ok()
    }

    /// Removes a tree. Returns false, and leaves it, if it has become complete since it was listed. The caller must
    /// hold the commit's lock.
    pub(crate) fn discard(&self, entry: &CacheEntry) -> Result<bool> {
        if entry.path == self.tree_path(&entry.short) {
            let marker = self.marker_path(&entry.short);
            if entry.commit.is_none() {
                let marked = self.marked(&entry.short);
                let marked = marked.map_err(|error| failed(&marker, "cannot be read", &error))?;
                if marked.is_some() {
                    return Ok(false);
                }
            }
            // The marker first: a tree that is partly removed must not be marked complete.
            remove(&marker)?;
        }
        remove(&entry.path)?;
        Ok(true)
    }
}

/// What a file or a folder takes on the disk, in bytes. Links are not followed.
fn used_bytes(path: &Path) -> u64 {
    let (mut bytes, mut paths) = (0, vec![path.to_owned()]);
    while let Some(path) = paths.pop() {
        let Ok(found) = fs::symlink_metadata(&path) else {
            continue;
        };
        // st_blocks counts units of 512 bytes on Linux and macOS, whatever the file system's block size is (stat(2)).
        bytes += found.blocks() * 512;
        if found.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            paths.extend(entries.map(|entry| entry.path()));
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::cache::tests::{SHORT, cache, commit, unmarked};

    #[test]
    fn a_tree_completed_since_it_was_listed_is_not_removed() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let entry = unmarked(&cache);
        cache.mark_complete(&commit(), 1).unwrap();
        assert!(!cache.discard(&entry).unwrap());
        assert!(cache.tree(&commit()).unwrap().is_some());
    }

    #[test]
    fn a_tree_with_an_invalid_marker_is_removed_with_it() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let other = format!(r#"{{"commit":"{}","commit_time":1}}"#, "b".repeat(40));
        // After a power failure, a file can be empty or consist of NUL bytes.
        for marker in ["", &"\0".repeat(80), &other] {
            fs::write(cache.marker_path(SHORT), marker).unwrap();
            let entry = unmarked(&cache);
            assert!(cache.discard(&entry).unwrap(), "{marker:?}");
            assert!(!entry.path.exists() && !cache.marker_path(SHORT).exists());
        }
    }
}
