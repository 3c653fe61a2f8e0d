//! The shared resources of the host process: threads, panics, signals, limits, memory, and files of the host.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) mod executor;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod outside_file;
pub(crate) mod panics;
pub(crate) mod signals;

/// Locks a mutex, also after a thread has panicked while it held the lock: that panic is an error of its own call, and
/// must not fail the others.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
