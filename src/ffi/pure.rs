//! What needs no client: versions, names, the mode, masking.

use std::ffi::{CStr, c_char};

use super::guard::{entry, quietly, write};
use super::text::{give, optional, required};
use super::types::{mol_error, mol_registry, mol_status};
use crate::error::Code;
use crate::names::registry::resolve;
use crate::names::runtimes::is_known_runtime;
use crate::redact::mask_token;

/// The version of this ABI. It changes when a program that was built against the old header could
/// not use the new library.
pub const MOL_ABI_VERSION: u32 = 2;

/// The library's MOL_ABI_VERSION. Compare it with the header's before anything else.
#[unsafe(no_mangle)]
pub extern "C" fn mol_abi_version() -> u32 {
    MOL_ABI_VERSION
}

/// The library's version, such as "0.1.0". Static: not to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn mol_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => c"",
        };
    VERSION.as_ptr()
}

/// The name of a status, such as "repo_not_found"; "unknown_status" for any other number. Static:
/// not to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn mol_status_name(status: i32) -> *const c_char {
    let name = match Code::ALL.iter().find(|code| **code as i32 == status) {
        _ if status == mol_status::MOL_OK as i32 => c"ok",
        Some(code) => code.c_name(),
        None => c"unknown_status",
    };
    name.as_ptr()
}

/// Returns whether a name is on the default allowlist (exact match). False for NULL and invalid UTF-8. A client
/// with MOL_OPTION_RUNTIMES has a list of its own.
///
/// # Safety
///
/// `runtime` is NULL or ends in a NUL byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_is_known_runtime(runtime: *const c_char) -> bool {
    quietly(false, || {
        // SAFETY: the caller's promise.
        unsafe { required("runtime", runtime) }.is_ok_and(is_known_runtime)
    })
}

/// Where do images come from? `image_registry` is the value of MOLECULE_IMAGE_REGISTRY; NULL or ""
/// means that images are built here, and any other value is the registry's prefix, verbatim.
/// Free the answer with mol_registry_free.
///
/// # Safety
///
/// `image_registry` is NULL or ends in a NUL byte; `registry` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_resolve(
    image_registry: *const c_char,
    registry: *mut *mut mol_registry,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        entry(error, || {
            write("registry", registry, || {
                let value = optional("image_registry", image_registry)?;
                Ok(mol_registry::new(resolve(value)))
            })
        })
    }
}

/// Replaces the token in a text by "***", however it is spelled (plain, percent-encoded, escaped as in
/// JSON or HTML, in hexadecimal, in the base64 of user:token), and the user information of every URL. A
/// NULL or empty token leaves only the URLs. A short token is masked like any other here, although a
/// client takes none of less than 8 characters. Nothing else in the text changes. Free the answer with
/// mol_string_free.
///
/// # Safety
///
/// `text` and `token` are NULL or end in a NUL byte; `masked` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_mask_token(
    text: *const c_char,
    token: *const c_char,
    masked: *mut *mut c_char,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        entry(error, || {
            write("masked", masked, || {
                let text = required("text", text)?;
                let token = optional("token", token)?.unwrap_or_default();
                Ok(give(mask_token(text, token)).cast_mut())
            })
        })
    }
}
