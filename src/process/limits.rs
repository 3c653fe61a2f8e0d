//! Detects that the process, or the machine, has no threads or file descriptors left.
//!
//! Any operation can fail because of that, and its own error would blame the network or the engine. So each error of
//! the operating system is checked for a limit before it is reported.

use std::error::Error as StdError;
use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::error::{Code, Error, causes};

/// No thread or process could be started. It has its own type because its error number, EAGAIN, has another meaning for
/// all other operations.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotStarted(io::Error);

/// Marks the error of a failed start of a thread or a process.
pub(crate) fn starting(error: io::Error) -> io::Error {
    match Errno::from_io_error(&error) {
        Some(Errno::AGAIN | Errno::NOMEM) => io::Error::other(NotStarted(error)),
        _ => error,
    }
}

/// The error to report if a limit caused this failure; else `None`.
pub(crate) fn reached(error: &(dyn StdError + 'static)) -> Option<Error> {
    causes(error).find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<Error>() {
            return (error.code == Code::ProcessLimit).then(|| error.clone());
        }
        if let Some(NotStarted(error)) = cause.downcast_ref() {
            return Some(no_thread(&error.to_string()));
        }
        match Errno::from_io_error(cause.downcast_ref()?)? {
            Errno::MFILE => Some(no_descriptor()),
            Errno::NFILE => Some(no_descriptor_anywhere()),
            _ => None,
        }
    })
}

/// The error for a thread or a process that cannot be started.
pub(crate) fn no_thread(why: &str) -> Error {
    let limit = limit(Resource::Nproc);
    Error::new(
        Code::ProcessLimit,
        format!(
            "this process cannot start more threads or programs: {why} (the limit of this user is {limit})"
        ),
    )
    .hint(
        "raise the limit (ulimit -u, or the pids limit of a container), or find what starts so many: ps -eLf",
    )
}

fn no_descriptor() -> Error {
    let limit = limit(Resource::Nofile);
    Error::new(
        Code::ProcessLimit,
        format!("this process has no file descriptors left (the limit is {limit})"),
    )
    .hint(format!(
        "raise the limit (ulimit -n), or find what keeps them open: ls -l /proc/{}/fd",
        std::process::id()
    ))
}

fn no_descriptor_anywhere() -> Error {
    Error::new(
        Code::ProcessLimit,
        "this machine has no file descriptors left (ENFILE)",
    )
    .hint("raise the limit (sysctl fs.file-max), or find what keeps them open: lsof")
}

fn limit(resource: Resource) -> String {
    getrlimit(resource)
        .current
        .map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(error: &(dyn StdError + 'static)) -> String {
        reached(error).map_or_else(String::new, |error| {
            assert_eq!(error.code, Code::ProcessLimit);
            error.message()
        })
    }

    #[test]
    fn a_limit_is_found_in_any_wrapper() {
        let raw = io::Error::from_raw_os_error;
        assert!(message(&raw(libc::EMFILE)).contains("this process has no file descriptors left"));
        assert!(message(&raw(libc::ENFILE)).contains("this machine"));
        let wrapped = io::Error::other(io::Error::other(raw(libc::EMFILE)));
        assert!(message(&wrapped).contains("file descriptors"));
        assert!(message(&starting(raw(libc::EAGAIN))).contains("threads"));
        let again = io::Error::other(reached(&starting(raw(libc::EAGAIN))).unwrap());
        assert!(message(&again).contains("threads"));
    }

    #[test]
    fn a_limit_is_detected_by_kind_not_text() {
        let raw = io::Error::from_raw_os_error;
        for other in [
            // For a socket it means "would block".
            raw(libc::EAGAIN),
            raw(libc::ENOENT),
            starting(raw(libc::ENOENT)),
            io::Error::other("Too many open files (os error 24)"),
            io::Error::other(Error::canceled()),
        ] {
            assert_eq!(message(&other), "", "{other}");
        }
    }
}
