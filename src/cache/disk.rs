//! The room on a disk: how much there is, and what to say where it is too little.
//!
//! Nobody can tell beforehand how much a fetch will need: the one question that is asked of the
//! template server does not cover it. So a disk that is as good as full is refused before the fetch, a
//! tree that cannot fit before its checkout, and everything else when the disk says so.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::error::{Code, Error, Result, causes};
use crate::event::human_bytes;

/// Less than this, and not even the smallest template can be worked on: a repository of its own, its
/// pack with the index, the tree, and what vouches for it, each in whole blocks of the disk.
pub(crate) const LEAST: u64 = 4 << 20;

/// What is free on a disk, for this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Free {
    pub(crate) bytes: u64,
    /// No file can be made, however many bytes there are.
    pub(crate) out_of_inodes: bool,
}

impl fmt::Display for Free {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} free", human_bytes(self.bytes))?;
        if self.out_of_inodes {
            f.write_str(", but no more files can be made (inodes)")?;
        }
        Ok(())
    }
}

/// The disk under a folder, as it is when the work there begins.
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

    /// Checks that this many bytes are free now. A disk that does not tell has room.
    ///
    /// # Errors
    ///
    /// [`Code::Cache`], with how much is there and how much is needed.
    pub(crate) fn require(&self, needed: u64, what: &str) -> Result<()> {
        match free(&self.folder) {
            Some(free) if free.bytes < needed || free.out_of_inodes => Err(too_little(format!(
                "{}: {free}, and {} needed for {what}",
                self.folder.display(),
                human_bytes(needed)
            ))),
            _ => Ok(()),
        }
    }

    /// What to say if the work has failed because the disk ran full; `None` if that is not why.
    /// `written` is what had been, or was to be, written.
    pub(crate) fn ran_full(
        &self,
        error: &(dyn StdError + 'static),
        written: &str,
    ) -> Option<Error> {
        let why = shortage(error)?;
        let told = |free: Option<Free>| free.map_or("unknown".to_owned(), |free| free.to_string());
        Some(too_little(format!(
            "{}: {why}, {written}; at the start {}, now {}",
            self.folder.display(),
            told(self.before),
            told(free(&self.folder))
        )))
    }
}

/// The same, for a single write to `path`.
pub(crate) fn full(path: &Path, error: &io::Error) -> Option<Error> {
    let why = shortage(error)?;
    let free = free(path).map_or_else(String::new, |free| format!(" ({free})"));
    Some(too_little(format!("{}: {why}{free}", path.display())))
}

fn too_little(what: String) -> Error {
    Error::new(
        Code::Cache,
        format!("the disk of the cache is full: {what}"),
    )
    .hint("free some space there, or set MOLECULE_LOCAL_BUILD_CACHE to a folder on another disk")
}

/// Is it, or was it caused by, an error that means "no room"? In its words, then.
fn shortage(error: &(dyn StdError + 'static)) -> Option<&'static str> {
    causes(error).find_map(|cause| match cause.downcast_ref::<io::Error>()?.kind() {
        ErrorKind::StorageFull => Some("no space left"),
        ErrorKind::QuotaExceeded => Some("the quota of this user is used up"),
        _ => None,
    })
}

/// What is free on the disk that `path` is on, or will be on. `None` if the disk does not tell.
pub(crate) fn free(path: &Path) -> Option<Free> {
    let disk = path
        .ancestors()
        .find_map(|folder| rustix::fs::statvfs(folder).ok())?;
    // Some file systems (btrfs) count no inodes and say 0 of 0; those of the network may say nothing.
    (disk.f_blocks > 0).then(|| {
        // A part is kept for the superuser.
        let (blocks, inodes) = match rustix::process::geteuid().is_root() {
            true => (disk.f_bfree, disk.f_ffree),
            false => (disk.f_bavail, disk.f_favail),
        };
        Free {
            bytes: blocks.saturating_mul(disk.f_frsize),
            out_of_inodes: disk.f_files > 0 && inodes == 0,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_found_wherever_it_is_wrapped() {
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
    fn a_shortage_is_no_matter_of_words() {
        // A server may say anything, also this.
        assert!(shortage(&io::Error::other("No space left on device")).is_none());
    }

    #[test]
    fn the_disk_of_a_folder_that_is_not_there_yet_is_the_one_it_will_be_on() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free(&dir.path().join("a/b/c")).is_some_and(|free| free.bytes > 0));
        let disk = Disk::of(dir.path());
        disk.require(1, "a byte").unwrap();
        let error = disk.require(u64::MAX, "all there is").unwrap_err();
        assert_eq!(error.code, Code::Cache);
        assert!(error.message.contains("all there is"), "{error:?}");
    }
}
