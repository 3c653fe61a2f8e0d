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
            let made = self.changed(&short, &path, commit.is_some());
            Some(CacheEntry {
                commit,
                bytes: used_bytes(&path),
                made: made.unwrap_or(SystemTime::UNIX_EPOCH),
                short,
                path,
            })
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
        self.changed(&entry.short, &entry.path, entry.commit.is_some())
    }

    fn changed(&self, short: &str, tree: &Path, is_complete: bool) -> Option<SystemTime> {
        let found = match is_complete {
            true => fs::symlink_metadata(self.marker_path(short)),
            false => fs::symlink_metadata(tree),
        };
        found.and_then(|found| found.modified()).ok()
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
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;
    use std::time::{Duration, SystemTime};

    use super::TEMP_PREFIX;
    use crate::cache::tests::{SHORT, cache, commit, unmarked};

    #[test]
    fn a_tree_is_listed_with_its_size_and_when_it_was_completed() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let tree = cache.tree_path(SHORT);
        fs::create_dir_all(tree.join("folder")).unwrap();
        fs::write(tree.join("folder/file"), vec![1; 1 << 20]).unwrap();
        let second = |number| SystemTime::UNIX_EPOCH + Duration::from_secs(number);
        let (changed, completed) = (second(1_000_000), second(2_000_000));
        File::open(&tree).unwrap().set_modified(changed).unwrap();
        let entry = cache.entries().pop().unwrap();
        assert_eq!((entry.commit, entry.made), (None, changed));

        cache.mark_complete(&commit(), 1).unwrap();
        let marker = File::open(cache.marker_path(SHORT)).unwrap();
        marker.set_modified(completed).unwrap();
        let entry = cache.entries().pop().unwrap();
        assert_eq!(cache.made(&entry), Some(completed));
        assert_eq!((entry.commit, entry.made), (Some(commit()), completed));
        let parts = [tree.clone(), tree.join("folder"), tree.join("folder/file")];
        let blocks = parts.map(|part| fs::symlink_metadata(part).unwrap().blocks());
        assert_eq!(entry.bytes, 512 * blocks.iter().sum::<u64>());
    }

    #[test]
    fn only_folders_and_temporary_files_are_listed() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        fs::write(cache.tree_path(SHORT), "").unwrap();
        fs::write(cache.folder.join("abc"), "").unwrap();
        assert!(cache.entries().is_empty());
        fs::write(
            cache.folder.join(format!("{TEMP_PREFIX}{SHORT}-marker")),
            "",
        )
        .unwrap();
        assert_eq!(cache.entries().len(), 1);
    }

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
