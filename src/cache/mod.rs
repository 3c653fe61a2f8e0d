//! The cache on disk: one checked-out tree per commit, shared by all processes of one user.
//!
//! ```text
//! <cache>/<runtime>/<sha12>/                the tree
//! <cache>/<runtime>/.<sha12>.json           its completion marker: written last, names the commit
//! <cache>/<runtime>/.<sha12>.lock           locked while the commit is fetched or built
//! <cache>/<runtime>/.<sha12>.used           when a call last used the commit's image; locked while that is removed
//! <cache>/<runtime>/.work-<sha12>-XXXXXX    a fetch, a marker or a log that is not complete
//! <cache>/<runtime>/.build.log              the log of the last build
//! ```
//!
//! A tree is written to a folder of its own, renamed to its place, synced to the disk, and then marked
//! complete; a build reads it as soon as it is in place. A crash at any moment leaves either a complete tree
//! with its marker, or something without a marker, which the next call removes (promise P5).
//!
//! Other users of the machine cannot plant anything here: [`ownership`] refuses a cache folder that they could
//! change, and only files and folders of this user count.
//!
//! | file | holds |
//! | --- | --- |
//! | `mod.rs` | the folder, and the trees in it |
//! | `marker.rs` | completion markers |
//! | `lock.rs` | the lock of a commit |
//! | `lock_file.rs` | lock files that may be removed |
//! | `usage.rs` | the record of when a commit's image was last used |
//! | `inventory.rs` | listing and removing trees |
//! | `sweep.rs` | removing what killed processes and old commits have left |
//! | `log.rs` | the log of the last build |
//! | `files.rs` | opening and removing files safely, and their age |
//! | `disk.rs` | free space, and errors for a full disk |
//! | `ownership.rs` | who can change a file or a folder |
//!
//! A crate for a cache of files (cacache) does not fit: it stores single files by their hash, and a build needs
//! a folder with modes and links.

pub(crate) mod disk;
mod files;
mod inventory;
mod lock;
mod lock_file;
mod log;
mod marker;
pub(crate) mod ownership;
mod sweep;
mod usage;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::cache::disk::Disk;
use crate::cache::files::{failed, remove};
use crate::error::Result;
use crate::names::commit::CommitSha;
use crate::names::runtimes::Runtime;

pub(crate) use crate::cache::files::HINT_PERMISSIONS;
pub(crate) use crate::cache::inventory::CacheEntry;
pub(crate) use crate::cache::lock::Lock;
pub(crate) use crate::cache::log::MAX_LOG;
pub(crate) use crate::cache::usage::UnusedLock;

/// Prefix of temporary names: fetches, and markers and logs before they are renamed.
const TEMP_PREFIX: &str = ".work-";

/// The cache's folder for one runtime.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
}

/// A tree with all its files.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) path: PathBuf,
    pub(crate) commit_time: i64,
}

/// An empty folder for a fetch. It is removed on drop, and holds the commit's lock until then: the next holder
/// finds no partial fetch.
#[derive(Debug)]
pub(crate) struct FetchDir {
    // Dropped before the lock.
    folder: TempDir,
    disk: Disk,
    _lock: Lock,
}

impl FetchDir {
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The disk that it is on.
    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }
}

impl Cache {
    /// Opens the folder. Creates it, readable by its owner only, if it does not exist.
    pub(crate) fn open(root: &Path, runtime: &Runtime) -> Result<Self> {
        let cache = Self::create(root, runtime)?;
        cache.sweep();
        Ok(cache)
    }

    fn create(root: &Path, runtime: &Runtime) -> Result<Self> {
        let folder = root.join(runtime.as_str());
        // Also before: nothing is to be created through another user's link.
        ownership::check(root)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| failed(&folder, "cannot be created", &error))?;
        ownership::check(root)?;
        ownership::check(&folder)?;
        Ok(Self { folder })
    }

    /// Opens the folder without creating anything. `None` if it does not exist or belongs to another user.
    pub(crate) fn existing(root: &Path, runtime: &Runtime) -> Result<Option<Self>> {
        let folder = root.join(runtime.as_str());
        ownership::check(root)?;
        // Also through a link of this user, as when it is created.
        if !fs::canonicalize(&folder).is_ok_and(|folder| ownership::is_own_folder(&folder)) {
            return Ok(None);
        }
        ownership::check(&folder)?;
        Ok(Some(Self { folder }))
    }

    /// Returns the tree of `commit`, if it is complete. Removes an incomplete tree, and what a killed process has
    /// left of its fetch. The caller must hold the commit's lock.
    pub(crate) fn tree(&self, commit: &CommitSha) -> Result<Option<Tree>> {
        for leftover in self.with_prefix(&temp_prefix(commit)) {
            remove(&leftover.path())?;
        }
        let path = self.tree_path(commit.short());
        let marker_path = self.marker_path(commit.short());
        let marker = self
            .marker(commit.short())
            .map_err(|error| failed(&marker_path, "cannot be read", &error))?;
        if let Some(marker) = marker.filter(|marker| marker.commit == commit.as_str())
            && ownership::is_own_folder(&path)
        {
            return Ok(Some(Tree {
                path,
                commit_time: marker.commit_time,
            }));
        }
        // The marker first: a tree that is partly removed must not be marked complete.
        remove(&marker_path)?;
        remove(&path)?;
        Ok(None)
    }

    /// Creates an empty folder for a fetch.
    ///
    /// # Errors
    ///
    /// [`Code::Cache`](crate::error::Code::Cache), also if the disk is almost full.
    pub(crate) fn fetch_dir(&self, commit: &CommitSha, lock: &Lock) -> Result<FetchDir> {
        let disk = Disk::of(&self.folder);
        disk.require(disk::LEAST, "any template")?;
        let folder = tempfile::Builder::new()
            .prefix(&temp_prefix(commit))
            .tempdir_in(&self.folder)
            .map_err(|error| failed(&self.folder, "cannot be written", &error))?;
        Ok(FetchDir {
            folder,
            disk,
            _lock: lock.clone(),
        })
    }

    /// Renames `tree` in the fetch folder to the place of the commit's tree. A build can read it at once; the next
    /// call uses it only once it is marked complete.
    pub(crate) fn place(
        &self,
        commit: &CommitSha,
        commit_time: i64,
        fetched: &FetchDir,
    ) -> Result<Tree> {
        let path = self.tree_path(commit.short());
        fs::rename(fetched.path().join("tree"), &path)
            .map_err(|error| failed(&path, "cannot be written", &error))?;
        point!("tree-renamed");
        Ok(Tree { path, commit_time })
    }

    fn tree_path(&self, short: &str) -> PathBuf {
        self.folder.join(short)
    }

    /// The entries of the folder whose names begin with `prefix`.
    fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = fs::DirEntry> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter(move |entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(prefix.as_bytes())
        })
    }
}

/// Prefix of the temporary names of one commit.
fn temp_prefix(commit: &CommitSha) -> String {
    format!("{TEMP_PREFIX}{}-", commit.short())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::error::Code;
    use crate::names::runtimes::known;

    pub(super) const SHORT: &str = "0123456789ab";

    pub(super) fn cache(root: &Path) -> Cache {
        Cache::open(root, &known("hermes")).unwrap()
    }

    pub(super) fn commit() -> CommitSha {
        CommitSha::parse(&format!("{SHORT}{}", "0".repeat(28))).unwrap()
    }

    pub(super) fn locked(cache: &Cache) -> Lock {
        cache.try_lock(SHORT).unwrap().unwrap()
    }

    /// A tree without a marker, as pruning lists it.
    pub(super) fn unmarked(cache: &Cache) -> CacheEntry {
        fs::create_dir(cache.tree_path(SHORT)).unwrap();
        let entry = cache.entries().pop().unwrap();
        assert_eq!((&*entry.short, &entry.commit), (SHORT, &None));
        entry
    }

    #[test]
    fn a_runtime_folder_that_is_a_link_is_used_and_found() {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("disk");
        DirBuilder::new().mode(0o700).create(&disk).unwrap();
        std::os::unix::fs::symlink(&disk, root.path().join("hermes")).unwrap();
        unmarked(&cache(root.path()));
        let found = Cache::existing(root.path(), &known("hermes")).unwrap();
        assert_eq!(found.unwrap().entries().len(), 1);
    }

    #[test]
    fn the_next_call_for_a_commit_removes_a_killed_fetch_of_it() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let left = |short: &str| {
            let path = cache.folder.join(format!("{TEMP_PREFIX}{short}-Xy12Zw"));
            fs::create_dir(&path).unwrap();
            path
        };
        let (own, other) = (left(SHORT), left("ba9876543210"));
        assert!(cache.tree(&commit()).unwrap().is_none());
        assert!(!own.exists() && other.exists());
    }

    /// Runs in a process of its own, because the limit is the process's.
    #[test]
    fn without_file_descriptors_a_complete_tree_is_not_taken_for_incomplete() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        use std::process::Command;

        const NAME: &str =
            "cache::tests::without_file_descriptors_a_complete_tree_is_not_taken_for_incomplete";
        const CHILD: &str = "MOL_TEST_CHILD";
        if std::env::var_os(CHILD).is_none() {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child
                .args(["--exact", NAME, "--test-threads=1"])
                .env(CHILD, "1");
            let output = child.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("1 passed"), "{said}");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let entry = unmarked(&cache);
        cache.mark_complete(&commit(), 1).unwrap();
        let limit = getrlimit(Resource::Nofile);
        let none = Rlimit {
            current: Some(0),
            ..limit
        };
        setrlimit(Resource::Nofile, none).unwrap();
        let found = cache.tree(&commit()).map(drop);
        let discarded = cache.discard(&entry);
        setrlimit(Resource::Nofile, limit).unwrap();
        assert_eq!(found.unwrap_err().code, Code::ProcessLimit);
        assert_eq!(discarded.unwrap_err().code, Code::ProcessLimit);
        assert!(cache.tree(&commit()).unwrap().is_some());
    }
}
