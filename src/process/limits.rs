//! What this process, or this machine, can have no more of: threads and file descriptors.
//!
//! Whatever was to be done at that moment fails, and its own error would send people to the network or
//! to the engine. So this comes first wherever an error of the operating system is told.

use std::error::Error as StdError;
use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::error::{Code, Error, causes};

/// No thread or process could be started. It has a type of its own because the number of it, EAGAIN,
/// means something else everywhere else.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotStarted(io::Error);

/// The same error, marked as that of a thread or a process that was to be started.
pub(crate) fn starting(error: io::Error) -> io::Error {
    match Errno::from_io_error(&error) {
        Some(Errno::AGAIN | Errno::NOMEM) => io::Error::other(NotStarted(error)),
        _ => error,
    }
}

/// What to say if a limit is why it has failed; `None` if it is not.
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

/// No thread can be started.
pub(crate) fn no_thread(why: &str) -> Error {
    let limit = limit(Resource::Nproc);
    Error::new(
        Code::ProcessLimit,
        format!(
            "this process can start no more threads or programs: {why} (this user may have {limit})"
        ),
    )
    .hint(
        "raise the limit (ulimit -u, in a container the one of its processes), or look for what \
         starts so many: ps -eLf",
    )
}

fn no_descriptor() -> Error {
    let limit = limit(Resource::Nofile);
    Error::new(
        Code::ProcessLimit,
        format!("this process has no file descriptors left (it may have {limit})"),
    )
    .hint(format!(
        "raise the limit (ulimit -n), or look for what keeps them open: ls -l /proc/{}/fd",
        std::process::id()
    ))
}

fn no_descriptor_anywhere() -> Error {
    Error::new(
        Code::ProcessLimit,
        "this machine has no file descriptors left (ENFILE)",
    )
    .hint("raise the limit (sysctl fs.file-max), or look for what keeps them open: lsof")
}

fn limit(resource: Resource) -> String {
    getrlimit(resource)
        .current
        .map_or_else(|| "any number".to_owned(), |limit| limit.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(error: &(dyn StdError + 'static)) -> String {
        reached(error).map_or_else(String::new, |error| {
            assert_eq!(error.code, Code::ProcessLimit);
            error.message
        })
    }

    #[test]
    fn a_limit_is_found_wherever_it_is_wrapped() {
        let raw = io::Error::from_raw_os_error;
        assert!(told(&raw(libc::EMFILE)).contains("this process has no file descriptors left"));
        assert!(told(&raw(libc::ENFILE)).contains("this machine"));
        let wrapped = io::Error::other(io::Error::other(raw(libc::EMFILE)));
        assert!(told(&wrapped).contains("file descriptors"));
        assert!(told(&starting(raw(libc::EAGAIN))).contains("threads"));
        let again = io::Error::other(reached(&starting(raw(libc::EAGAIN))).unwrap());
        assert!(told(&again).contains("threads"));
    }

    #[test]
    fn a_limit_is_no_matter_of_words_and_no_other_error_is_one() {
        let raw = io::Error::from_raw_os_error;
        for other in [
            // Of a socket it means "not now".
            raw(libc::EAGAIN),
            raw(libc::ENOENT),
            starting(raw(libc::ENOENT)),
            io::Error::other("Too many open files (os error 24)"),
            io::Error::other(Error::canceled()),
        ] {
            assert_eq!(told(&other), "", "{other}");
        }
    }
}
