//! What the library has handed out comes back here.

use std::ffi::c_char;

use super::guard::quietly;
use super::text::take_back;
use super::types::{mol_error, mol_event, mol_image, mol_registry};

/// Frees a string that a function has given as its answer: from mol_mask_token, say. NULL is fine.
///
/// # Safety
///
/// `text` is NULL or a string that this library has handed out, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_string_free(text: *mut c_char) {
    // SAFETY: the caller's promise.
    quietly((), || unsafe { take_back(text) });
}

/// Frees an error and its strings. NULL is fine.
///
/// # Safety
///
/// `error` is NULL or an error that this library has handed out, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_error_free(error: *mut mol_error) {
    quietly((), || {
        if error.is_null() {
            return;
        }
        // SAFETY: the caller's promise: it was made by `mol_error::new`.
        let error = unsafe { Box::from_raw(error) };
        for text in [
            error.message,
            error.hint,
            error.runtime,
            error.url,
            error.step,
            error.log_tail,
        ] {
            // SAFETY: made by `give`, in `mol_error::new`.
            unsafe { take_back(text) };
        }
    });
}

/// Frees an image and its strings. NULL is fine.
///
/// # Safety
///
/// `image` is NULL or an image that this library has handed out by itself, not within an event, and
/// is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_image_free(image: *mut mol_image) {
    quietly((), || {
        if image.is_null() {
            return;
        }
        // SAFETY: the caller's promise: it was made by `mol_image::new`.
        let image = unsafe { Box::from_raw(image) };
        for text in [
            image.reference,
            image.latest_reference,
            image.runtime,
            image.commit_sha,
            image.image_id,
            image.platform,
            image.endpoint,
        ] {
            // SAFETY: made by `give`, in `mol_image::new`.
            unsafe { take_back(text) };
        }
    });
}

/// Frees the answer of mol_resolve. NULL is fine.
///
/// # Safety
///
/// `registry` is NULL or comes from mol_resolve, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_registry_free(registry: *mut mol_registry) {
    quietly((), || {
        if !registry.is_null() {
            // SAFETY: the caller's promise: it was made by `mol_registry::new`.
            let registry = unsafe { Box::from_raw(registry) };
            // SAFETY: made by `give`, in `mol_registry::new`.
            unsafe { take_back(registry.prefix) };
        }
    });
}

/// Frees an event with all that is in it. NULL is fine.
///
/// # Safety
///
/// `event` is NULL or comes from mol_client_next_event, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_event_free(event: *mut mol_event) {
    quietly((), || {
        if event.is_null() {
            return;
        }
        // SAFETY: the caller's promise: it was made by `mol_event::new`, and so was what is in it.
        unsafe {
            let event = Box::from_raw(event);
            take_back(event.json);
            mol_image_free(event.image.cast_mut());
            mol_error_free(event.error.cast_mut());
        }
    });
}
