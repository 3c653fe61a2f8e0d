//! Every entry point goes through here: no panic leaves, and a failure becomes a status and an error.

use std::ptr;

use super::types::{mol_error, mol_status};
use crate::error::{Code, Error, Result};
use crate::process::panics;
use crate::redact::Masker;

/// Runs the body of an entry point that can fail.
///
/// # Safety
///
/// `error` is NULL or may be written to.
pub(super) unsafe fn ffi_call(
    error: *mut *mut mol_error,
    body: impl FnOnce() -> Result<()>,
) -> mol_status {
    let failure = match catch(body) {
        Ok(()) => return mol_status::MOL_OK,
        Err(failure) => failure,
    };
    let status = mol_status::from(failure.code);
    if !error.is_null() {
        // SAFETY: the caller's promise.
        unsafe { *error = mol_error::new(failure) };
    }
    status
}

/// Runs the body of a function that cannot fail.
pub(super) fn ffi_value<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch(|| Ok(body())).unwrap_or(otherwise)
}

fn catch<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    panics::install_hook();
    let called = panics::catch(|| {
        point!("entry");
        body()
    });
    // Errors of a client are masked already. Others, such as panics, may quote anything. No token is known
    // here, so only the user information of URLs is masked.
    called.map_err(|failure| Masker::default().error(failure))
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
    // Checked first, so that no work is done for an answer that cannot be returned.
    if out.is_null() {
        return Err(Error::new(
            Code::InvalidArgument,
            format!("the argument {name} is NULL"),
        )
        .hint("give it the address of a variable"));
    }
    let value = make()?;
    // SAFETY: not NULL, and the caller's promise. The old value is not dropped: it may be uninitialised.
    unsafe { ptr::write(out, value) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_without_a_client_is_one_printable_line() {
        for code in [Code::InvalidArgument, Code::Internal] {
            let failure = Error::new(code, "a\x1b[31m\r\nb\u{202e}\u{9b}1m https://me:pw@host/")
                .hint("use ssh://user@host");
            let failure = catch::<()>(|| Err(failure)).unwrap_err();
            assert_eq!(failure.message(), "a  b https://***@host/");
            assert_eq!(failure.hint, "use ssh://user@host");
        }
        let panicked = catch::<()>(|| panic!("a\x1b]0;b\x07\nc")).unwrap_err();
        assert!(panicked.message().contains("a c"), "{panicked:?}");
    }

    #[test]
    fn a_password_in_a_panic_at_an_entry_point_is_not_shown() {
        let panicked = catch::<()>(|| panic!("at https://me:hunter2@host/x")).unwrap_err();
        assert_eq!(panicked.code, Code::Internal);
        assert!(
            panicked.message().contains("https://***@host/x"),
            "{panicked:?}"
        );
    }
}
