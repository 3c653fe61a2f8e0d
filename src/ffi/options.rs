//! Options: set one by one, or all from the environment.

use std::ffi::c_char;
use std::sync::{Mutex, PoisonError};

use super::guard::{entry, quietly, write};
use super::handles::Handles;
use super::text::required;
use super::types::{mol_error, mol_options, mol_status};
use crate::error::{Code, Error, Result};
use crate::options::{OptionName, Options};

static OPTIONS: Handles<Mutex<Options>> = Handles::new("set of options");

/// What can be set. Every value is a string, and "" means "not set". Most have the syntax of the environment
/// variable named here; docs/local-development.md has the defaults. The last three have no variable.
#[repr(i32)]
#[derive(Clone, Copy, Debug)]
pub enum mol_option {
    /// MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX: a URL to which the runtime's name is appended.
    MOL_OPTION_REPO_PREFIX = 1,
    /// MOLECULE_LOCAL_TEMPLATE_BRANCH: the branch; not set, main or the default branch.
    MOL_OPTION_BRANCH = 2,
    /// MOLECULE_GITEA_TOKEN: the token for the template server, of 8 to 1024 visible ASCII characters.
    MOL_OPTION_TOKEN = 3,
    /// MOLECULE_LOCAL_BUILD_CACHE: the cache folder. mol_client_new makes a relative path absolute.
    MOL_OPTION_CACHE_DIR = 4,
    /// MOLECULE_IMAGE_PLATFORM: os/arch[/variant], or native.
    MOL_OPTION_PLATFORM = 5,
    /// MOLECULE_LOCAL_IMAGE_ISOLATION: a suffix for the tags; white space around it is dropped.
    MOL_OPTION_ISOLATION = 6,
    /// MOLECULE_LOCAL_OFFLINE: 1 for no network.
    MOL_OPTION_OFFLINE = 7,
    /// MOLECULE_LOCAL_RUNTIME_VERSION_PIN: 1 to send the template's version as a build argument.
    MOL_OPTION_RUNTIME_VERSION_PIN = 8,
    /// MOLECULE_BUILD_STALL_GRACE_S: how long without output is a stall: seconds, or a duration as in 4m.
    MOL_OPTION_STALL_GRACE_S = 9,
    /// MOLECULE_BUILD_CEILING_S: how long a call without a time-out may take: seconds, or as in 1h30m.
    MOL_OPTION_CEILING_S = 10,
    /// DOCKER_HOST: the engine's address.
    MOL_OPTION_DOCKER_HOST = 11,
    /// DOCKER_CONTEXT: the name of a docker context.
    MOL_OPTION_DOCKER_CONTEXT = 12,
    /// DOCKER_CONFIG: the folder of docker's config.json.
    MOL_OPTION_DOCKER_CONFIG = 13,
    /// DOCKER_TLS_VERIFY: anything for TLS with DOCKER_HOST.
    MOL_OPTION_DOCKER_TLS_VERIFY = 14,
    /// DOCKER_CERT_PATH: the folder of ca.pem, cert.pem and key.pem.
    MOL_OPTION_DOCKER_CERT_PATH = 15,
    /// DOCKER_BUILDKIT: 0 for the classic builder.
    MOL_OPTION_DOCKER_BUILDKIT = 16,
    /// HTTPS_PROXY: the proxy for https addresses.
    MOL_OPTION_HTTPS_PROXY = 17,
    /// HTTP_PROXY: the proxy for http addresses.
    MOL_OPTION_HTTP_PROXY = 18,
    /// NO_PROXY: the hosts without a proxy.
    MOL_OPTION_NO_PROXY = 19,
    /// SSL_CERT_FILE: a file of trusted certificates.
    MOL_OPTION_SSL_CERT_FILE = 20,
    /// SSL_CERT_DIR: a folder of trusted certificates.
    MOL_OPTION_SSL_CERT_DIR = 21,
    /// HOME: the home folder.
    MOL_OPTION_HOME = 22,
    /// XDG_CACHE_HOME: the folder for caches.
    MOL_OPTION_XDG_CACHE_HOME = 23,
    /// XDG_RUNTIME_DIR: the folder for sockets.
    MOL_OPTION_XDG_RUNTIME_DIR = 24,
    /// TMPDIR: the folder for temporary files.
    MOL_OPTION_TMPDIR = 25,
    /// PATH: the folders of credential helpers and of ssh.
    MOL_OPTION_SEARCH_PATH = 26,
    /// MOLECULE_BUILD_MEMORY_MIB: the most memory that the library takes, in MiB.
    MOL_OPTION_MEMORY_MIB = 27,
    /// The allowlist of runtimes, in place of the default one: "claude-code,hermes". Names match
    /// [a-z0-9][a-z0-9-]*, have at most 64 characters and no hyphen at the end.
    MOL_OPTION_RUNTIMES = 28,
    /// Which tags have the architecture: auto (both tags of every platform but linux/amd64), or always
    /// (every pinned tag, without the variant, and no moving tag).
    MOL_OPTION_TAG_ARCH = 29,
    /// Commits to take in place of the branch's head: "hermes=COMMIT,codex=COMMIT", each with all 40 or 64
    /// hexadecimal digits.
    MOL_OPTION_PINS = 30,
}

/// A copy of a set of options, for a client.
pub(super) fn get(options: mol_options) -> Result<Options> {
    let options = OPTIONS.get(options)?;
    let options = options.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(options.clone())
}

/// Makes an empty set of options: every one has its default. Free it with mol_options_free.
///
/// # Safety
///
/// `options` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_options_new(
    options: *mut mol_options,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        entry(error, || {
            write("options", options, || Ok(OPTIONS.insert(Mutex::default())))
        })
    }
}

/// Makes a set of options from the environment of the process. Free it with mol_options_free.
///
/// It reads the environment, so no other thread may change it meanwhile (POSIX, setenv). Nothing
/// else in this library does.
///
/// # Safety
///
/// `options` and `error` are NULL or may be written; no other thread changes the environment.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_options_from_env(
    options: *mut mol_options,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        entry(error, || {
            write("options", options, || {
                Ok(OPTIONS.insert(Mutex::new(from_env()?)))
            })
        })
    }
}

fn from_env() -> Result<Options> {
    let mut not_text = None;
    let mut options = Options::default();
    let seen = std::cell::RefCell::new(&mut not_text);
    options.set_all_from(|name| {
        let value = std::env::var_os(name)?;
        value
            .into_string()
            .inspect_err(|_| {
                seen.borrow_mut().get_or_insert_with(|| name.to_owned());
            })
            .ok()
    });
    match not_text {
        None => Ok(options),
        Some(name) => Err(
            Error::new(Code::InvalidOption, format!("{name} is not valid UTF-8"))
                .hint("set it again, encoded as UTF-8"),
        ),
    }
}

/// Sets one option; the value is copied. mol_client_new checks it.
///
/// # Safety
///
/// `value` is NULL or ends in a NUL byte; `error` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_options_set(
    options: mol_options,
    option: i32,
    value: *const c_char,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        entry(error, || {
            let options = OPTIONS.get(options)?;
            let name = OptionName::from_number(option).ok_or_else(|| {
                Error::new(
                    Code::InvalidArgument,
                    format!("there is no option with the number {option}"),
                )
                .hint("use one of the MOL_OPTION_ constants")
            })?;
            let value = required("value", value)?;
            let mut options = options.lock().unwrap_or_else(PoisonError::into_inner);
            options.set(name, value);
            Ok(())
        })
    }
}

/// Frees a set of options. Clients that were made with it keep what they need. 0 and an id that is
/// freed already are fine.
#[unsafe(no_mangle)]
pub extern "C" fn mol_options_free(options: mol_options) {
    quietly((), || drop(OPTIONS.remove(options)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_has_the_number_of_its_name() {
        let first = mol_option::MOL_OPTION_REPO_PREFIX as i32;
        let last = mol_option::MOL_OPTION_PINS as i32;
        assert_eq!(OptionName::from_number(first), Some(OptionName::RepoPrefix));
        assert_eq!(OptionName::from_number(last), Some(OptionName::Pins));
        assert_eq!(OptionName::ALL.len(), last as usize);
    }
}
