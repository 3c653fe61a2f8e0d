//! Options: set one by one, or all from the environment.

use std::cell::OnceCell;
use std::ffi::c_char;
use std::sync::Mutex;

use super::guard::{ffi_call, ffi_value, write};
use super::handles::Handles;
use super::text::required;
use super::types::{mol_error, mol_options, mol_status};
use crate::error::{Code, Error, Result};
use crate::options::{OptionName, Options};
use crate::process;
use crate::redact::Masker;

static OPTIONS: Handles<Mutex<Options>> = Handles::new("set of options");

/// A copy of a set of options, for a client.
pub(super) fn get(options: mol_options) -> Result<Options> {
    let options = OPTIONS.get(options.id)?;
    let options = process::lock(&options);
    Ok(options.clone())
}

/// Creates options that all have their defaults.
///
/// options  receives the options, for mol_options_free
///
/// # Safety
///
/// `options` and `error` are NULL or may be written.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_options_new(
    options: *mut mol_options,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        ffi_call(error, || {
            write("options", options, || Ok(insert(Options::default())))
        })
    }
}

/// Creates options from the environment of the process. No other thread may change the environment
/// meanwhile (POSIX, setenv); no other function reads it.
///
/// options  receives the options, for mol_options_free
///
/// # Safety
///
/// `options` and `error` are NULL or may be written; no other thread changes the environment.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_options_from_env(
    options: *mut mol_options,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        ffi_call(error, || {
            write("options", options, || Ok(insert(from_env()?)))
        })
    }
}

fn insert(options: Options) -> mol_options {
    mol_options {
        id: OPTIONS.insert(Mutex::new(options)),
    }
}

fn from_env() -> Result<Options> {
    let not_text = OnceCell::new();
    let mut options = Options::default();
    options.set_all_from(|name| {
        let value = std::env::var_os(name)?.into_string();
        if value.is_err() {
            not_text.get_or_init(|| name.to_owned());
        }
        value.ok()
    });
    match not_text.into_inner() {
        None => Ok(options),
        Some(name) => Err(
            Error::new(Code::InvalidOption, format!("{name} is not valid UTF-8"))
                .hint("set it again, encoded as UTF-8"),
        ),
    }
}

/// Sets one option. The name must be known; mol_client_new checks the values.
///
/// name   the name of the option's environment variable, such as "MOLECULE_GITEA_TOKEN" or "DOCKER_HOST"
///        (docs/local-development.md lists them); or, without a variable:
///        "runtimes"  the allowlist in place of the default one: "claude-code,hermes"
///        "tag_arch"  which tags name the architecture: "auto" or "always"
///        "pins"      commits in place of the branch's head: "hermes=COMMIT,codex=COMMIT"
/// value  the value, in the syntax of the variable; copied. "" unsets the option
///
/// # Safety
///
/// `name` and `value` are NULL or end in a NUL byte; `error` is NULL or may be written.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_options_set(
    options: mol_options,
    name: *const c_char,
    value: *const c_char,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        ffi_call(error, || {
            let options = OPTIONS.get(options.id)?;
            let name = required("name", name)?;
            let option = OptionName::find(name).ok_or_else(|| unknown_option(name))?;
            let value = required("value", value)?;
            let mut options = process::lock(&options);
            options.set(option, value);
            Ok(())
        })
    }
}

fn unknown_option(name: &str) -> Error {
    let name = Masker::default().shown(name, MAX_SHOWN);
    Error::new(
        Code::InvalidArgument,
        format!("there is no option {name:?}"),
    )
    .hint("use the name of an environment variable of docs/local-development.md, or \"runtimes\", \"tag_arch\", \"pins\"")
}

/// The longest part of a wrong name in an error, in bytes.
const MAX_SHOWN: usize = 80;

/// Frees options. Clients that were created with them are not affected.
#[unsafe(no_mangle)]
pub extern "C" fn mol_options_free(options: mol_options) {
    ffi_value((), || drop(OPTIONS.remove(options.id)));
}
