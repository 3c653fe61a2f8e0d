//! Lock files, which may be removed while others have them open.
//!
//! Two rules keep a lock exclusive all the same:
//!
//! 1. A lock file is removed only by the process that holds its exclusive lock.
//! 2. After locking a file, a process opens the path again. If that is another file, the locked one was removed
//!    in between: the process starts over with the new one.
//!
//! Rule 2 compares files and not link counts, because of NFS: a file that is removed while it is open there is
//! renamed and keeps its link, and only an open asks the server again (nfs(5), "Close-to-open cache consistency").

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::cache::files::{FLAGS, failed};
use crate::cache::ownership;
use crate::error::{Code, Error, Result};

/// Opens a lock file, and creates it if it does not exist.
pub(super) fn open(path: &Path) -> Result<File> {
    let file = options()
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| failed(path, "cannot be opened", &error))?;
    if ownership::is_own_file(&file) {
        return Ok(file);
    }
    Err(Error::new(
        Code::Cache,
        format!("the cache: {} is not this user's lock file", path.display()),
    )
    .hint("check who created it, then remove it"))
}

/// For writing too: NFS grants an exclusive lock only on a file that is open for writing (flock(2)).
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(FLAGS);
    options
}

/// A file with a lock, which is released when it is dropped. Closing the file would not be enough: a child that the host
/// has forked has it open too, until it calls exec, and the kernel keeps the lock for it.
#[derive(Debug)]
pub(super) struct Locked(File);

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Takes the exclusive lock of the file at `path`. `file` is that file, unless it was removed since it was opened.
/// Returns the locked file, or, if another process holds a lock, the file for the next attempt.
pub(super) fn try_lock(mut file: File, path: &Path) -> Result<std::result::Result<Locked, File>> {
    loop {
        if !is_free(file.try_lock(), path)? {
            return Ok(Err(file));
        }
        let locked = Locked(file);
        let current = open(path)?;
        if is_same(&locked, &current).map_err(|error| failed(path, "cannot be read", &error))? {
            return Ok(Ok(locked));
        }
        file = current;
    }
}

/// The result of trying to take a shared lock.
#[derive(Debug, PartialEq)]
pub(super) enum SharedLockResult {
    Free,
    Held,
    /// The file was removed since it was opened, so anything written to it is gone with it.
    Removed,
}

/// Takes a shared lock of the file at `path` for a moment.
pub(super) fn try_lock_shared(file: File, path: &Path) -> Result<SharedLockResult> {
    if !is_free(file.try_lock_shared(), path)? {
        return Ok(SharedLockResult::Held);
    }
    let locked = Locked(file);
    let same = is_same(&locked, &open(path)?);
    match same.map_err(|error| failed(path, "cannot be read", &error))? {
        true => Ok(SharedLockResult::Free),
        false => Ok(SharedLockResult::Removed),
    }
}

/// Whether somebody holds the exclusive lock of a file. It tries a shared lock, so two checks at once do not see each
/// other.
pub(super) fn is_locked(file: File) -> bool {
    match file.try_lock_shared() {
        Ok(()) => {
            drop(Locked(file));
            false
        }
        Err(error) => matches!(error, TryLockError::WouldBlock),
    }
}

/// Locks the file at `path` and removes it if it is still `expired`. Does nothing if another process holds a lock.
pub(super) fn remove_unlocked(path: &Path, expired: impl Fn(&Metadata) -> bool) -> io::Result<()> {
    let file = options().open(path)?;
    if !ownership::is_own_file(&file) || file.try_lock().is_err() {
        return Ok(());
    }
    let locked = Locked(file);
    if expired(&locked.metadata()?) && is_same(&locked, &options().open(path)?)? {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn is_free(tried: std::result::Result<(), TryLockError>, path: &Path) -> Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(failed(path, "cannot be locked", &error)),
    }
}

fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: fn(&Metadata) -> bool = |_| true;

    #[test]
    fn a_removed_lock_file_cannot_be_locked_beside_its_successor() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let waiter = open(&path).unwrap();
        remove_unlocked(&path, ANY).unwrap();
        let second = try_lock(open(&path).unwrap(), &path).unwrap().unwrap();
        let waiter = try_lock(waiter, &path).unwrap().unwrap_err();
        drop(second);
        let _waiter = try_lock(waiter, &path).unwrap().unwrap();
        let second = open(&path).unwrap();
        assert!(try_lock(second, &path).unwrap().is_err());
    }

    #[test]
    fn a_shared_lock_of_a_removed_file_is_reported() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let file = open(&path).unwrap();
        let again = file.try_clone().unwrap();
        assert_eq!(
            try_lock_shared(file, &path).unwrap(),
            SharedLockResult::Free
        );
        remove_unlocked(&path, ANY).unwrap();
        assert_eq!(
            try_lock_shared(again, &path).unwrap(),
            SharedLockResult::Removed
        );
    }

    /// A clone is the same open file, as in a forked child.
    #[test]
    fn a_lock_ends_although_a_forked_child_has_the_file_open() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let locked = try_lock(open(&path).unwrap(), &path).unwrap().unwrap();
        let _in_the_child = locked.try_clone().unwrap();
        drop(locked);
        let locked = try_lock(open(&path).unwrap(), &path).unwrap().unwrap();
        assert!(is_locked(open(&path).unwrap()));
        drop(locked);

        let shared = open(&path).unwrap();
        let _in_the_child = shared.try_clone().unwrap();
        assert_eq!(
            try_lock_shared(shared, &path).unwrap(),
            SharedLockResult::Free
        );
        let checked = open(&path).unwrap();
        let _in_the_child = checked.try_clone().unwrap();
        assert!(!is_locked(checked));
        remove_unlocked(&path, ANY).unwrap();
        assert!(!path.exists(), "no lock is left");
    }

    #[test]
    fn a_locked_file_is_not_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let exclusive = try_lock(open(&path).unwrap(), &path).unwrap().unwrap();
        remove_unlocked(&path, ANY).unwrap();
        assert!(path.exists());
        drop(exclusive);
        let shared = open(&path).unwrap();
        shared.try_lock_shared().unwrap();
        remove_unlocked(&path, ANY).unwrap();
        assert!(path.exists());
        shared.unlock().unwrap();
        remove_unlocked(&path, |_| false).unwrap();
        assert!(path.exists());
        remove_unlocked(&path, ANY).unwrap();
        assert!(!path.exists());
    }
}
