//! Strings in, borrowed for the call, and strings out, owned by the library.

use std::ffi::{CStr, CString, c_char};

use crate::error::{Code, Error, Result};

/// A string that must not be NULL.
///
/// # Safety
///
/// `text` is NULL, or ends in a NUL byte and stays as it is for `'a`.
pub(super) unsafe fn required<'a>(name: &str, text: *const c_char) -> Result<&'a str> {
    // SAFETY: the caller's promise.
    unsafe { optional(name, text) }?.ok_or_else(|| {
        Error::new(
            Code::InvalidArgument,
            format!("the argument {name} is NULL"),
        )
        .hint("pass a string that ends in a NUL byte")
    })
}

/// A string that may be NULL.
///
/// # Safety
///
/// As for [`required`].
pub(super) unsafe fn optional<'a>(name: &str, text: *const c_char) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL, and the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|_| {
        Error::new(
            Code::InvalidArgument,
            format!("the argument {name} is not valid UTF-8"),
        )
        .hint("encode it as UTF-8")
    })
}

/// Hands a string to C; [`take_back`] frees it. A NUL byte within it becomes U+FFFD.
pub(super) fn give(text: impl Into<String>) -> *const c_char {
    let text = text.into();
    let text = CString::new(text)
        .or_else(|error| {
            let text =
                String::from_utf8_lossy(error.into_vec().as_slice()).replace('\0', "\u{fffd}");
            CString::new(text)
        })
        .unwrap_or_default();
    text.into_raw()
}

/// Takes a string back and frees it.
///
/// # Safety
///
/// `text` is NULL or comes from [`give`], and is not used afterwards.
pub(super) unsafe fn take_back(text: *const c_char) {
    if !text.is_null() {
        // SAFETY: the caller's promise: it was made by `CString::into_raw`.
        drop(unsafe { CString::from_raw(text.cast_mut()) });
    }
}
