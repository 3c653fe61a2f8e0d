//! Free space on a disk, and the errors for a full one.
//!
//! How much a fetch needs is not known before: the lookup does not return it. So an almost full disk is refused
//! before the fetch, a tree that does not fit before its checkout, and anything else fails when the disk is full.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::fs::StatVfs;

use crate::error::{Code, Error, Result, causes};
use crate::event::human_bytes;

/// The least that the smallest template needs, in bytes: its pack, the resolved deltas, the tree and its marker, each
/// in whole blocks of the disk.
pub(crate) const LEAST: u64 = 4 << 20;

/// What to do about a full disk of the cache.
pub(crate) const HINT_FULL: &str =
    "free some space there, or set MOLECULE_LOCAL_BUILD_CACHE to a folder on another disk";

/// The free space on a disk, for this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Free {
    pub(crate) bytes: u64,
    /// No more files can be created, however many bytes are free.
    pub(crate) out_of_inodes: bool,
}

impl Free {
    /// `None` if the file system does not report its space.
    fn of(disk: &StatVfs, is_root: bool) -> Option<Self> {
        // A network file system may report no blocks. btrfs and others do not count inodes, and report 0 of 0.
        (disk.f_blocks > 0).then(|| {
            // Part of the space is reserved for root.
            let (blocks, inodes) = match is_root {
                true => (disk.f_bfree, disk.f_ffree),
                false => (disk.f_bavail, disk.f_favail),
            };
            Free {
                bytes: blocks.saturating_mul(disk.f_frsize),
                out_of_inodes: disk.f_files > 0 && inodes == 0,
            }
        })
    }
}

impl fmt::Display for Free {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} free", human_bytes(self.bytes))?;
        if self.out_of_inodes {
            f.write_str(", but no more files can be created (inodes)")?;
        }
        Ok(())
    }
}

/// The disk of a folder, with its free space when the work there began.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
    before: Option<Free>,
}

impl Disk {
    pub(crate) fn of(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            before: free(folder),
        }
    }

    /// Checks that this many bytes are free now. If the free space is unknown, the check passes.
    ///
    /// # Errors
    ///
    /// [`Code::Cache`], with how much is free and how much is needed.
    pub(crate) fn require(&self, needed: u64, what: &str) -> Result<()> {
        match free(&self.folder) {
            Some(free) if free.bytes < needed || free.out_of_inodes => Err(disk_full(format!(
                "{}: {free}, and {} needed for {what}",
                self.folder.display(),
                human_bytes(needed)
            ))),
            _ => Ok(()),
        }
    }

    /// Returns the error for a full disk, if that caused `error`. `written` says what was or was to be written.
    pub(crate) fn ran_full(
        &self,
        error: &(dyn StdError + 'static),
        written: &str,
    ) -> Option<Error> {
        let why = shortage(error)?;
        let shown = |free: Option<Free>| free.map_or("unknown".to_owned(), |free| free.to_string());
        Some(disk_full(format!(
            "{}: {why}, {written}; at the start {}, now {}",
            self.folder.display(),
            shown(self.before),
            shown(free(&self.folder))
        )))
    }
}

/// The same as [`Disk::ran_full`], for a single write to `path`.
pub(crate) fn full(path: &Path, error: &io::Error) -> Option<Error> {
    let why = shortage(error)?;
    let free = free(path).map_or_else(String::new, |free| format!(" ({free})"));
    Some(disk_full(format!("{}: {why}{free}", path.display())))
}

fn disk_full(what: String) -> Error {
    Error::new(
        Code::Cache,
        format!("the disk of the cache is full: {what}"),
    )
    .hint(HINT_FULL)
}

/// Returns a description if the error, or one of its causes, is ENOSPC or EDQUOT.
fn shortage(error: &(dyn StdError + 'static)) -> Option<&'static str> {
    causes(error).find_map(|cause| match cause.downcast_ref::<io::Error>()?.kind() {
        ErrorKind::StorageFull => Some("no space left"),
        ErrorKind::QuotaExceeded => Some("this user's disk quota is used up"),
        _ => None,
    })
}

/// Returns the free space of the disk that `path` is on, or will be created on. `None` if it is unknown.
pub(crate) fn free(path: &Path) -> Option<Free> {
    let disk = path
        .ancestors()
        .find_map(|folder| rustix::fs::statvfs(folder).ok())?;
    Free::of(&disk, rustix::process::geteuid().is_root())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enospc_and_edquot_are_found_in_any_wrapper() {
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        let quota = || io::Error::from_raw_os_error(libc::EDQUOT);
        assert!(shortage(&full()).is_some_and(|why| why.contains("space")));
        assert!(shortage(&quota()).is_some_and(|why| why.contains("quota")));
        assert!(shortage(&io::Error::other(io::Error::other(full()))).is_some());

        #[derive(Debug, thiserror::Error)]
        #[error("the pack cannot be written")]
        struct Outer(#[source] io::Error);
        assert!(shortage(&Outer(io::Error::other(Outer(full())))).is_some());
        assert!(shortage(&Outer(io::Error::from_raw_os_error(libc::EACCES))).is_none());
    }

    #[test]
    fn enospc_is_detected_by_kind_not_text() {
        // A server's text may contain it.
        assert!(shortage(&io::Error::other("No space left on device")).is_none());
    }

    #[test]
    fn a_missing_folder_has_the_disk_of_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free(&dir.path().join("a/b/c")).is_some_and(|free| free.bytes > 0));
        let disk = Disk::of(dir.path());
        disk.require(1, "a byte").unwrap();
        let error = disk.require(u64::MAX, "everything").unwrap_err();
        assert_eq!(error.code, Code::Cache);
        assert!(error.message().contains("everything"), "{error:?}");
    }

    #[test]
    fn the_space_and_the_inodes_that_this_process_may_use_are_free() {
        let ext4 = StatVfs {
            f_bsize: 4096,
            f_frsize: 1024,
            f_blocks: 1000,
            f_bfree: 300,
            f_bavail: 200,
            f_files: 10,
            f_ffree: 5,
            f_favail: 0,
            f_fsid: 0,
            f_flag: rustix::fs::StatVfsMountFlags::empty(),
            f_namemax: 255,
        };
        let shown = |disk: &StatVfs, is_root| Free::of(disk, is_root).map(|free| free.to_string());
        let root = shown(&ext4, true);
        assert_eq!(root.as_deref(), Some("300.0 KiB free"));
        let user = shown(&ext4, false).unwrap();
        assert_eq!(
            user,
            "200.0 KiB free, but no more files can be created (inodes)"
        );
        let btrfs = StatVfs { f_files: 0, ..ext4 };
        assert_eq!(shown(&btrfs, false).as_deref(), Some("200.0 KiB free"));
        let unknown = StatVfs {
            f_blocks: 0,
            ..ext4
        };
        assert_eq!(shown(&unknown, true), None);
    }

    #[test]
    fn the_error_for_a_full_disk_says_what_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let error = io::Error::from_raw_os_error(libc::ENOSPC);
        let at_once = full(dir.path(), &error).unwrap();
        let later = Disk::of(dir.path()).ran_full(&error, "with 2 MiB received");
        let later = later.unwrap().message();
        assert_eq!(at_once.code, Code::Cache);
        assert!(at_once.message().ends_with(" free)"), "{at_once:?}");
        assert!(
            later.contains("no space left, with 2 MiB received; at the start "),
            "{later}"
        );
        let other = io::Error::from_raw_os_error(libc::EACCES);
        assert!(full(dir.path(), &other).is_none());
    }
}
