//! The one way in: no panic leaves, and every failure becomes a status and, if it is wanted, an error.

use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::Once;

use super::types::{mol_error, mol_status};
use crate::error::{Code, Error, Result};
use crate::mask::Masker;

/// Runs the body of an entry point.
///
/// # Safety
///
/// `error` is NULL or may be written to.
pub(super) unsafe fn entry(
    error: *mut *mut mol_error,
    body: impl FnOnce() -> Result<()>,
) -> mol_status {
    quiet_panics();
    let failure = match panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return mol_status::MOL_OK,
        Ok(Err(failure)) => failure,
        // A panic's text may hold anything; without a client there is no token to mask, but URLs
        // lose their user information all the same.
        Err(panic) => Masker::default().error(Error::panicked(&*panic)),
    };
    let status = mol_status::from(failure.code);
    if !error.is_null() {
        // SAFETY: the caller's promise.
        unsafe { *error = mol_error::new(failure) };
    }
    status
}

/// Runs the body of a function that cannot fail.
pub(super) fn quietly<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    quiet_panics();
    panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

/// Writes an out-parameter, which must not be NULL.
///
/// # Safety
///
/// `out` is NULL or may be written to.
pub(super) unsafe fn write<T>(
    name: &str,
    out: *mut T,
    make: impl FnOnce() -> Result<T>,
) -> Result<()> {
    // Looked at first, so that nothing is done for an answer that cannot be given.
    if out.is_null() {
        return Err(Error::new(
            Code::InvalidArgument,
            format!("the argument {name} is NULL"),
        )
        .hint("give it the address of a variable"));
    }
    let value = make()?;
    // SAFETY: not NULL, and the caller's promise. What is there is not ours to drop.
    unsafe { ptr::write(out, value) };
    Ok(())
}

/// Rust's own panic hook writes to standard error, which belongs to the host process. Only in this
/// library's own copy of the standard library: the host's panics, if it is a Rust program, are its own.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| panic::set_hook(Box::new(|_| {})));
}
