//! Functions that need no client: versions, names, the mode, masking.

use std::ffi::{CStr, c_char, c_int};

use super::guard::{ffi_call, ffi_value, write};
use super::text::{give, optional, required};
use super::types::{mol_error, mol_registry, mol_registry_mode, mol_status};
use crate::error::Code;
use crate::names::registry::{RegistryMode, resolve};
use crate::names::runtimes::is_known_runtime;
use crate::redact::mask_token;

/// The version of this ABI. It changes when programs built with an older header cannot use the new library.
pub const MOL_ABI_VERSION: u32 = 3;

/// Returns the library's MOL_ABI_VERSION. Compare it with the header's before any other call.
#[must_use]
#[unsafe(no_mangle)]
pub extern "C" fn mol_abi_version() -> u32 {
    MOL_ABI_VERSION
}

/// Returns the library's version, such as "0.1.0". Static: do not free it.
#[must_use]
#[unsafe(no_mangle)]
pub extern "C" fn mol_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => c"",
        };
    VERSION.as_ptr()
}

/// Returns the name of a status, such as "repo_not_found", or "unknown_status". Static: do not free it.
#[must_use]
#[unsafe(no_mangle)]
pub extern "C" fn mol_status_name(status: c_int) -> *const c_char {
    let name = match Code::ALL.iter().find(|code| **code as c_int == status) {
        _ if status == mol_status::MOL_OK as c_int => c"ok",
        Some(code) => code.c_name(),
        None => c"unknown_status",
    };
    name.as_ptr()
}

/// Returns whether `runtime` is on the default allowlist (exact match). False for NULL and invalid
/// UTF-8. A client whose option "runtimes" is set has its own list.
///
/// # Safety
///
/// `runtime` is NULL or ends in a NUL byte.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_is_known_runtime(runtime: *const c_char) -> bool {
    ffi_value(false, || {
        // SAFETY: the caller's promise.
        unsafe { required("runtime", runtime) }.is_ok_and(is_known_runtime)
    })
}

/// Says whether images are pulled or built. Allocates nothing.
///
/// image_registry  the value of MOLECULE_IMAGE_REGISTRY; NULL and "" mean that images are built
/// registry        receives the mode, and the prefix: a static string, or image_registry itself
///
/// # Safety
///
/// `image_registry` is NULL or ends in a NUL byte; `registry` and `error` are NULL or may be written.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_resolve(
    image_registry: *const c_char,
    registry: *mut mol_registry,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        ffi_call(error, || {
            write("registry", registry, || {
                let value = optional("image_registry", image_registry)?;
                Ok(match resolve(value).mode {
                    RegistryMode::Local => mol_registry {
                        mode: mol_registry_mode::MOL_REGISTRY_MODE_LOCAL,
                        prefix: LOCAL_PREFIX.as_ptr(),
                    },
                    RegistryMode::Saas => mol_registry {
                        mode: mol_registry_mode::MOL_REGISTRY_MODE_SAAS,
                        prefix: image_registry,
                    },
                })
            })
        })
    }
}

/// [`LOCAL_IMAGE_PREFIX`](crate::names::registry::LOCAL_IMAGE_PREFIX) for C.
const LOCAL_PREFIX: &CStr = c"molecule-local";

/// Replaces a token in a text by "***", in every spelling (plain, percent-encoded, escaped as in JSON or
/// HTML, in hexadecimal, in the base64 of user:token), and the user information of every URL.
///
/// text    the text; nothing else in it changes
/// token   the token, also a short one; NULL or "" masks only the URLs
/// masked  receives the new text, for mol_string_free
///
/// # Safety
///
/// `text` and `token` are NULL or end in a NUL byte; `masked` and `error` are NULL or may be written.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_mask_token(
    text: *const c_char,
    token: *const c_char,
    masked: *mut *mut c_char,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        ffi_call(error, || {
            write("masked", masked, || {
                let text = required("text", text)?;
                let token = optional("token", token)?.unwrap_or_default();
                Ok(give(mask_token(text, token)).cast_mut())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::registry::LOCAL_IMAGE_PREFIX;

    #[test]
    fn the_static_prefix_is_the_local_one() {
        assert_eq!(LOCAL_PREFIX.to_str(), Ok(LOCAL_IMAGE_PREFIX));
    }
}
