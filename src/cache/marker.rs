//! Completion markers: a tree counts only with a file beside it that names its commit.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::files::{failed, read_own};
use crate::cache::{Cache, temp_prefix};
use crate::error::Result;
use crate::names::commit::CommitSha;

/// The content of a marker.
#[derive(Serialize, Deserialize)]
pub(super) struct Marker {
    pub(super) commit: String,
    pub(super) commit_time: i64,
}

impl Cache {
    /// Syncs the tree of `commit` to the disk, and then marks it complete.
    pub(crate) fn mark_complete(&self, commit: &CommitSha, commit_time: i64) -> Result<()> {
        let path = self.marker_path(commit.short());
        let write = || -> io::Result<()> {
            sync_tree(&self.tree_path(commit.short()))?;
            point!("tree-synced");
            let marker = serde_json::to_vec(&Marker {
                commit: commit.to_string(),
                commit_time,
            })?;
            let mut file = tempfile::Builder::new()
                .prefix(&temp_prefix(commit))
                .tempfile_in(&self.folder)?;
            file.write_all(&marker)?;
            point!("marker-written");
            file.as_file().sync_all()?;
            file.persist(&path)?;
            point!("marker-renamed");
            File::open(&self.folder)?.sync_all()?;
            point!("cache-synced");
            Ok(())
        };
        write().map_err(|error| failed(&path, "cannot be written", &error))
    }

    pub(super) fn marker_path(&self, short: &str) -> PathBuf {
        self.folder.join(format!(".{short}.json"))
    }

    /// Reads a marker; `None` if it does not exist or is not a valid marker.
    pub(super) fn marker(&self, short: &str) -> io::Result<Option<Marker>> {
        let text = read_own(&self.marker_path(short))?;
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
    }
}

/// Syncs a folder and everything below it to the disk.
#[cfg(target_os = "linux")]
fn sync_tree(folder: &Path) -> io::Result<()> {
    // One call for the whole file system costs less than one for each of thousands of files.
    Ok(rustix::fs::syncfs(File::open(folder)?)?)
}

/// Syncs a folder and everything below it to the disk.
#[cfg(not(target_os = "linux"))]
fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::cache::tests::{SHORT, cache, commit, unmarked};

    #[test]
    fn a_marker_of_another_commit_does_not_complete_a_tree() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let entry = unmarked(&cache);
        for other in ["b".repeat(40), format!("{SHORT}{}", "1".repeat(28))] {
            let marker = format!(r#"{{"commit":"{other}","commit_time":1}}"#);
            fs::write(cache.marker_path(SHORT), marker).unwrap();
            // The list compares the first twelve digits, a call the whole id.
            let listed = other.starts_with(SHORT);
            assert_eq!(cache.entries()[0].commit.is_some(), listed, "{other}");
            assert!(cache.tree(&commit()).unwrap().is_none());
            assert!(!entry.path.exists());
            fs::create_dir(&entry.path).unwrap();
        }
    }
}
