//! Opening and removing files in the cache, without following links and without using other users' files.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use crate::cache::{disk, ownership};
use crate::error::{Code, Error, Result};
use crate::process::limits;

/// O_NONBLOCK: opening a FIFO that somebody has put there must not block.
pub(super) const FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// Opens a file for reading; `None` if it does not exist, or is not a regular file of this user's own that can be read.
/// Any other error says nothing about the file: a process without free file descriptors must not take it for missing.
pub(super) fn open_own(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().read(true).custom_flags(FLAGS).open(path);
    match file {
        Ok(file) => Ok(Some(file).filter(ownership::is_own_file)),
        Err(error) => match Errno::from_io_error(&error) {
            // It does not exist; it is a link; it is a socket; it is another user's.
            Some(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::ACCESS) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Reads a small file, like [`open_own`].
pub(super) fn read_own(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = open_own(path)? else {
        return Ok(None);
    };
    let mut text = Vec::new();
    file.take(4096).read_to_end(&mut text)?;
    Ok(Some(text))
}

/// Removes a file, a folder or a link, without following the link. It need not exist.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(path, "cannot be removed", &error))
        }
        _ => Ok(()),
    }
}

/// Whether a file was last changed more than `age` ago. False for a time in the future.
pub(super) fn is_older(found: &Metadata, age: Duration) -> bool {
    let changed = found.modified();
    changed.is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age))
}

/// The hint for a folder or file of the cache that cannot be used.
pub(crate) const HINT_PERMISSIONS: &str =
    "check its permissions, or set MOLECULE_LOCAL_BUILD_CACHE to another folder";

/// The error for an operation on `path`: a process limit or a full disk, if that was the cause.
pub(super) fn failed(path: &Path, what: &str, error: &io::Error) -> Error {
    let known = limits::reached(error).or_else(|| disk::full(path, error));
    known.unwrap_or_else(|| {
        Error::new(
            Code::Cache,
            format!("the cache: {} {what}: {error}", path.display()),
        )
        .hint(HINT_PERMISSIONS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_is_removed_and_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let (file, folder, link) = (
            dir.path().join("file"),
            dir.path().join("folder"),
            dir.path().join("link"),
        );
        fs::write(&file, "").unwrap();
        fs::create_dir_all(folder.join("in/side")).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        // A path through a file cannot exist, which is not the same as a path that does not.
        assert_eq!(remove(&file.join("in")).unwrap_err().code, Code::Cache);
        remove(&link).unwrap();
        assert!(file.exists());
        for path in [&file, &folder] {
            remove(path).unwrap();
            remove(path).unwrap();
            assert!(!path.exists());
        }
    }
}
