//! The one error type: what failed, where, and what to do next.
//!
//! Messages are written for the person who reads them at two in the morning: lower case, no full
//! stop, the place (URL, path, step) named. They may hold anything a peer said, so nothing here is
//! fit to be shown before it has gone through [`Masker::error`](crate::redact::Masker::error).

use std::borrow::Cow;
use std::ffi::CStr;
use std::fmt;
use std::io;

use crate::redact::printable;

/// What kind of failure it is.
///
/// The numbers are part of the C ABI: they are never changed and never used again for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    /// The runtime is not on the allowlist. Nothing was asked of the network, the disk or the engine.
    UnknownRuntime = 1,
    /// An option, or the environment variable behind it, holds a value that cannot be used.
    InvalidOption = 2,
    /// The template server gave no answer: refused, no such host, no route, time-out, TLS.
    GiteaUnreachable = 3,
    /// The template repository, or the branch asked for, is not there.
    RepoNotFound = 4,
    /// The template server wants a token, or refuses the one it got.
    Auth = 5,
    /// The template server answered something that is not the answer its API documents.
    BadResponse = 6,
    /// The commit could not be fetched or checked out.
    Fetch = 7,
    /// The commit has no file called `Dockerfile` at its root.
    NoDockerfile = 8,
    /// No container engine answered, or the one that did answered an error.
    EngineUnreachable = 9,
    /// The engine cannot build or run the platform.
    PlatformUnsupported = 10,
    /// The build ran and failed: see the step and the last lines of its output.
    BuildFailed = 11,
    /// A fetch or a build made no progress for the stall grace.
    Stalled = 12,
    /// The ceiling passed.
    Timeout = 13,
    /// The cache folder cannot be used.
    Cache = 14,
    /// A defect in the library: please report it.
    Internal = 15,
    /// The caller cancelled the call.
    Canceled = 16,
    /// The deadline that the caller set has passed.
    DeadlineExceeded = 17,
    /// An argument of a C call is NULL where it must not be, is not UTF-8, or is out of range.
    InvalidArgument = 18,
    /// The id names no object: freed already, of another kind, or never made.
    NoSuchHandle = 19,
    /// The client is being freed.
    Closed = 20,
    /// The network is not to be used, and there is no image to fall back on.
    NoLocalImage = 22,
    /// This process, or the machine, has no thread or file descriptor left.
    ProcessLimit = 23,
}

impl Code {
    /// Every code, in the order of the numbers.
    pub const ALL: [Code; 22] = [
        Code::UnknownRuntime,
        Code::InvalidOption,
        Code::GiteaUnreachable,
        Code::RepoNotFound,
        Code::Auth,
        Code::BadResponse,
        Code::Fetch,
        Code::NoDockerfile,
        Code::EngineUnreachable,
        Code::PlatformUnsupported,
        Code::BuildFailed,
        Code::Stalled,
        Code::Timeout,
        Code::Cache,
        Code::Internal,
        Code::Canceled,
        Code::DeadlineExceeded,
        Code::InvalidArgument,
        Code::NoSuchHandle,
        Code::Closed,
        Code::NoLocalImage,
        Code::ProcessLimit,
    ];

    /// The name that logs, metrics and documents use, such as `repo_not_found`.
    pub fn name(self) -> &'static str {
        self.c_name().to_str().unwrap_or_default()
    }

    /// The name, as C wants it.
    pub(crate) const fn c_name(self) -> &'static CStr {
        match self {
            Code::UnknownRuntime => c"unknown_runtime",
            Code::InvalidOption => c"invalid_option",
            Code::GiteaUnreachable => c"gitea_unreachable",
            Code::RepoNotFound => c"repo_not_found",
            Code::Auth => c"auth",
            Code::BadResponse => c"bad_response",
            Code::Fetch => c"fetch",
            Code::NoDockerfile => c"no_dockerfile",
            Code::EngineUnreachable => c"engine_unreachable",
            Code::PlatformUnsupported => c"platform_unsupported",
            Code::BuildFailed => c"build_failed",
            Code::Stalled => c"stalled",
            Code::Timeout => c"timeout",
            Code::Cache => c"cache",
            Code::Internal => c"internal",
            Code::Canceled => c"canceled",
            Code::DeadlineExceeded => c"deadline_exceeded",
            Code::InvalidArgument => c"invalid_argument",
            Code::NoSuchHandle => c"no_such_handle",
            Code::Closed => c"closed",
            Code::NoLocalImage => c"no_local_image",
            Code::ProcessLimit => c"process_limit",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, with what a person needs to act on it. Fields that do not apply are empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The kind of failure.
    pub code: Code,
    /// The runtime the call was for.
    pub runtime: String,
    /// The template repository of the runtime.
    pub url: String,
    /// What failed, and where.
    pub message: String,
    /// What to do next. A `&'static str` is the library's own words, and is shown as it is.
    pub hint: Cow<'static, str>,
    /// Where in the build, if it failed there.
    pub build: Option<Box<FailedBuild>>,
    pub(crate) retry: Retry,
}

/// Whether the failed work may be tried once more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Retry {
    /// It would fail again.
    #[default]
    Never,
    /// After a pause of our choice.
    Soon,
    /// After so many seconds, because the server says so (RFC 9110, section 10.2.3, `Retry-After`).
    After(u32),
}

/// Where a build failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailedBuild {
    /// The step, as the builder names it.
    pub step: String,
    /// The step's line in the Dockerfile, from 1; 0 if it is not known.
    pub line: u32,
    /// The exit code of the step's command; 0 if it is not known.
    pub exit_code: i32,
    /// The last lines of the build's output.
    pub log_tail: String,
}

impl Error {
    /// A failure of this kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            runtime: String::new(),
            url: String::new(),
            message: message.into(),
            hint: Cow::Borrowed(""),
            build: None,
            retry: Retry::Never,
        }
    }

    /// Says what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Says where: "place: message". The one place where a message is put together from parts.
    #[must_use]
    pub(crate) fn context(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// Says where in the build.
    #[must_use]
    pub fn in_build(mut self, build: FailedBuild) -> Self {
        self.build = Some(Box::new(build));
        self
    }

    /// Says whether it may be tried once more.
    #[must_use]
    pub(crate) fn retryable(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The call was cancelled.
    pub(crate) fn canceled() -> Self {
        Self::new(Code::Canceled, "the call was cancelled")
    }
}

/// An error and what caused it, outermost first.
pub(crate) fn causes<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        // `source` of an io::Error skips the error that it was made from.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|inner| inner as &(dyn std::error::Error + 'static));
        inner.or_else(|| error.source())
    })
}

/// An error's text with the texts of what caused it, outermost first, without repeating what an
/// outer text already quotes.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    // Some libraries end their errors like sentences; in the middle of ours that reads badly.
    // Each is cleaned by itself, so that none can begin what another ends, with our words in between.
    let said = |error: &dyn std::error::Error| {
        let text = error.to_string();
        printable::line(text.trim_end_matches('.')).into_owned()
    };
    let mut text = said(error);
    let mut source = error.source();
    while let Some(cause) = source {
        let said = said(cause);
        if !said.is_empty() && !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runbook_has_a_row_for_every_code_and_no_other() {
        let runbook = include_str!("../docs/local-development.md");
        let (_, errors) = runbook.split_once("\n## Errors\n").unwrap();
        let rows: Vec<&str> = errors
            .lines()
            .take_while(|line| !line.starts_with("## "))
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .collect();
        let names: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(rows, names);
    }

    #[test]
    fn the_numbers_grow_and_the_retired_one_is_not_reused() {
        let numbers: Vec<i32> = Code::ALL.iter().map(|code| *code as i32).collect();
        let expected: Vec<i32> = (1..=23).filter(|number| *number != 21).collect();
        assert_eq!(numbers, expected);
    }
}
