//! The one error type: what failed, where, and what to do next.
//!
//! Messages are one line, in lower case and without a full stop, and name the place (URL, path, step). They may quote a
//! peer, so they must go through [`Masker::error`](crate::redact::Masker::error) before anyone sees them. An error
//! keeps its cause and its places apart; only [`Error::message`] joins them.

use std::borrow::Cow;
use std::ffi::CStr;
use std::fmt;
use std::io;

use crate::printable;

/// What kind of failure it is.
///
/// The numbers are part of the C ABI. They are stable and never reused; 21 was in use before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    /// The runtime is not on the allowlist. No network, disk or engine was used.
    UnknownRuntime = 1,
    /// An option, or the environment variable behind it, has an invalid value.
    InvalidOption = 2,
    /// The template server did not answer (refused, unknown host, no route, time-out, TLS), or its API answered 408,
    /// 429 or 5xx.
    GiteaUnreachable = 3,
    /// The template repository, or the branch, does not exist.
    RepoNotFound = 4,
    /// The template server requires a token, or refuses the one it got.
    Auth = 5,
    /// The template server's answer is not the one that its API documents.
    BadResponse = 6,
    /// The commit could not be fetched or checked out.
    Fetch = 7,
    /// The commit has no file called `Dockerfile` at its root.
    NoDockerfile = 8,
    /// No container engine answered, or the engine answered with an error.
    EngineUnreachable = 9,
    /// The engine, or the builder, cannot run programs for the platform, or one of the template is for another one.
    PlatformUnsupported = 10,
    /// The build ran and failed: see the step and the last lines of its output.
    BuildFailed = 11,
    /// A fetch or a build made no progress for `MOLECULE_BUILD_STALL_GRACE_S`.
    Stalled = 12,
    /// The call had no time limit of its own, and took longer than `MOLECULE_BUILD_CEILING_S`.
    Timeout = 13,
    /// The cache folder cannot be used, or it has no build log of the runtime.
    Cache = 14,
    /// A bug in the library: please report it.
    Internal = 15,
    /// The caller cancelled the call.
    Canceled = 16,
    /// The deadline that the caller set has passed.
    DeadlineExceeded = 17,
    /// An argument is invalid: not a commit id; in C also NULL where it must not be, not UTF-8, out of range, or an
    /// unknown option or request.
    InvalidArgument = 18,
    /// No object has this id: it was freed, or never created.
    NoSuchHandle = 19,
    /// The client is closed.
    Closed = 20,
    /// `MOLECULE_LOCAL_OFFLINE` is set, and the engine has no image of the runtime.
    NoLocalImage = 22,
    /// The process, or the machine, has no thread or file descriptor left.
    ProcessLimit = 23,
    /// No node of the chosen builder answers, or each one that was tried was lost during the build.
    BuilderUnreachable = 24,
}

impl Code {
    /// Every code, by number.
    pub const ALL: [Code; 23] = [
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
        Code::BuilderUnreachable,
    ];

    /// The name in logs, metrics and documents, such as `repo_not_found`.
    pub fn name(self) -> &'static str {
        self.c_name().to_str().unwrap_or_default()
    }

    /// The name, for C.
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
            Code::BuilderUnreachable => c"builder_unreachable",
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

/// A failure: what, where, and what to do next. Fields that do not apply are empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.message())]
pub struct Error {
    /// The kind of failure.
    pub code: Code,
    /// The runtime the call was for.
    pub runtime: String,
    /// The template repository of the runtime.
    pub url: String,
    /// What failed, and then where, innermost first.
    pub(crate) message: Vec<String>,
    /// What to do next. A `&'static str` is this library's own text, and is not masked.
    pub hint: Cow<'static, str>,
    /// Where the build failed, if it did.
    pub build: Option<Box<FailedBuild>>,
    pub(crate) retry: Retry,
}

/// Whether a retry makes sense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Retry {
    /// It would fail again.
    #[default]
    Never,
    /// After a pause that we choose.
    Soon,
    /// After this number of seconds, as the server asks (RFC 9110, section 10.2.3, `Retry-After`).
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
    /// The lines of the Dockerfile around the step, with their numbers; those of the step begin with `>`. Empty if the
    /// line is not known.
    pub excerpt: String,
}

impl Error {
    /// A failure of this kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            runtime: String::new(),
            url: String::new(),
            message: vec![message.into()],
            hint: Cow::Borrowed(""),
            build: None,
            retry: Retry::Never,
        }
    }

    /// Whether the cause can be in the template or on its server: always once the build has begun, else unless it is
    /// this machine, the engine or a builder.
    pub(crate) fn concerns_template(&self) -> bool {
        self.build.is_some()
            || !matches!(
                self.code,
                Code::InvalidOption
                    | Code::EngineUnreachable
                    | Code::PlatformUnsupported
                    | Code::Cache
                    | Code::NoLocalImage
                    | Code::ProcessLimit
                    | Code::BuilderUnreachable
            )
    }

    /// What failed, and where: "outer place: inner place: cause".
    pub fn message(&self) -> String {
        let parts: Vec<&str> = self.message.iter().rev().map(String::as_str).collect();
        parts.join(": ")
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Adds where it failed: the message is then "place: message".
    #[must_use]
    pub(crate) fn context(mut self, place: impl fmt::Display) -> Self {
        self.message.push(place.to_string());
        self
    }

    /// Adds where the build failed.
    #[must_use]
    pub fn in_build(mut self, build: FailedBuild) -> Self {
        self.build = Some(Box::new(build));
        self
    }

    /// Adds whether a retry makes sense.
    #[must_use]
    pub(crate) fn retryable(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The call was cancelled.
    pub(crate) fn canceled() -> Self {
        Self::new(Code::Canceled, "the call was cancelled")
    }

    /// The client was freed.
    pub(crate) fn freed() -> Self {
        Self::new(Code::Closed, "the client was freed")
    }
}

/// An error and its causes, outermost first.
pub(crate) fn causes<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        // `source` of an io::Error skips the error that it wraps.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|inner| inner as &(dyn std::error::Error + 'static));
        inner.or_else(|| error.source())
    })
}

/// The texts of an error and its causes, as [`joined`] writes them.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    joined(std::iter::successors(Some(error), |error| error.source()))
}

/// The texts of errors on one line, outermost first, without those that an outer text already quotes.
pub(crate) fn joined<'e>(
    errors: impl Iterator<Item = &'e (dyn std::error::Error + 'static)>,
) -> String {
    let mut text = String::new();
    for error in errors {
        // Some libraries end messages with a full stop. Each text is cleaned by itself, so that an escape sequence
        // cannot span two of them.
        let said = error.to_string();
        let said = printable::line(said.trim_end_matches('.'));
        if !text.contains(&*said) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&said);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runbook_has_a_row_for_every_code() {
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
    fn a_message_names_the_places_outermost_first() {
        let error = Error::new(Code::Fetch, "no route").context("inner");
        assert_eq!(
            error.clone().context("outer").message(),
            "outer: inner: no route"
        );
        assert_eq!(error.message(), "inner: no route");
    }

    #[test]
    fn numbers_grow_and_retired_ones_are_not_reused() {
        let numbers: Vec<i32> = Code::ALL.iter().map(|code| *code as i32).collect();
        let expected: Vec<i32> = (1..=24).filter(|number| *number != 21).collect();
        assert_eq!(numbers, expected);
    }
}
