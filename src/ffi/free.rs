//! Frees what the library has handed to C.

use std::ffi::c_char;

use super::guard::ffi_value;
use super::text::take_back;
use super::types::{mol_error, mol_event, mol_image, mol_result};

/// Frees a string from mol_mask_token or mol_client_metrics.
///
/// # Safety
///
/// `text` is NULL or a string that this library has handed out, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_string_free(text: *mut c_char) {
    // SAFETY: the caller's promise.
    ffi_value((), || unsafe { take_back(text) });
}

/// Frees an error.
///
/// # Safety
///
/// `error` is NULL or an error that this library has handed out, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_error_free(error: *mut mol_error) {
    ffi_value((), || {
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
            error.excerpt,
        ] {
            // SAFETY: made by `give`, in `mol_error::new`.
            unsafe { take_back(text) };
        }
    });
}

/// Frees an image, but not one of a result: that is freed with the result.
///
/// # Safety
///
/// `image` is NULL or an image that this library has handed out by itself, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_image_free(image: *mut mol_image) {
    ffi_value((), || {
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

/// Frees a result, with its image, report and error.
///
/// # Safety
///
/// `result` is NULL or comes from mol_call_wait, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_result_free(result: *mut mol_result) {
    ffi_value((), || {
        if result.is_null() {
            return;
        }
        // SAFETY: the caller's promise: it was made by `mol_result::new`, and so were its parts.
        unsafe {
            let result = Box::from_raw(result);
            take_back(result.report);
            mol_image_free(result.image.cast_mut());
            mol_error_free(result.error.cast_mut());
        }
    });
}

/// Frees an event.
///
/// # Safety
///
/// `event` is NULL or comes from mol_client_next_event, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_event_free(event: *mut mol_event) {
    ffi_value((), || {
        if event.is_null() {
            return;
        }
        // SAFETY: the caller's promise: it was made by `mol_event::new`.
        let event = unsafe { Box::from_raw(event) };
        for text in [event.kind, event.message, event.json] {
            // SAFETY: made by `give`, in `mol_event::new`.
            unsafe { take_back(text) };
        }
    });
}
