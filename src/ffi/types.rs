//! The structs and numbers of the ABI.

use std::ffi::c_char;
use std::ptr;
use std::time::Duration;

use serde::Serialize;

use super::text::give;
use crate::client::inbox::{Ended, Numbered, Outcome};
use crate::error::{Code, Error, Result};
use crate::names::image::{Image, Timings};

/// Result of a function. Values are stable and never reused; 21 was in use before.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum mol_status {
    /// Success.
    MOL_OK = 0,
    /// The runtime is not on the allowlist. No network, disk or engine was used.
    MOL_ERR_UNKNOWN_RUNTIME = 1,
    /// An option, or the environment variable behind it, has an invalid value.
    MOL_ERR_INVALID_OPTION = 2,
    /// The template server did not answer (refused, unknown host, no route, time-out, TLS), or answered 408, 429 or 5xx.
    MOL_ERR_GITEA_UNREACHABLE = 3,
    /// The template repository, or the branch, does not exist.
    MOL_ERR_REPO_NOT_FOUND = 4,
    /// The template server requires a token, or refuses the one it got.
    MOL_ERR_AUTH = 5,
    /// The template server's answer is not the one that its API documents.
    MOL_ERR_BAD_RESPONSE = 6,
    /// The commit could not be fetched or checked out.
    MOL_ERR_FETCH = 7,
    /// The commit has no file called Dockerfile at its root.
    MOL_ERR_NO_DOCKERFILE = 8,
    /// No container engine answered, or the engine answered with an error.
    MOL_ERR_ENGINE_UNREACHABLE = 9,
    /// The engine, or the builder, cannot run programs for the platform, or one of the template is for another one.
    MOL_ERR_PLATFORM_UNSUPPORTED = 10,
    /// The build ran and failed: see step, line, exit_code and log_tail.
    MOL_ERR_BUILD_FAILED = 11,
    /// A fetch or a build made no progress for MOLECULE_BUILD_STALL_GRACE_S.
    MOL_ERR_STALLED = 12,
    /// The call had MOL_TIMEOUT_CEILING, and took longer than MOLECULE_BUILD_CEILING_S.
    MOL_ERR_TIMEOUT = 13,
    /// The cache folder cannot be used, or it has no build log of the runtime.
    MOL_ERR_CACHE = 14,
    /// A bug in the library: please report it.
    MOL_ERR_INTERNAL = 15,
    /// The call was cancelled.
    MOL_ERR_CANCELED = 16,
    /// The timeout_ms of the call passed.
    MOL_ERR_DEADLINE_EXCEEDED = 17,
    /// An argument is NULL where it must not be, not UTF-8, out of range, not a commit id, or an unknown name or kind.
    MOL_ERR_INVALID_ARGUMENT = 18,
    /// No object has this id: it was freed, or never created.
    MOL_ERR_NO_SUCH_HANDLE = 19,
    /// The client was freed while the function ran. A waiting mol_ensure_local_image returns MOL_ERR_CANCELED instead.
    MOL_ERR_CLOSED = 20,
    /// MOLECULE_LOCAL_OFFLINE is set, and the engine has no image of the runtime.
    MOL_ERR_NO_LOCAL_IMAGE = 22,
    /// The process, or the machine, has no thread or file descriptor left.
    MOL_ERR_PROCESS_LIMIT = 23,
    /// No node of the chosen builder answers, or each one that was tried was lost during the build.
    MOL_ERR_BUILDER_UNREACHABLE = 24,
}

impl From<Code> for mol_status {
    fn from(code: Code) -> Self {
        match code {
            Code::UnknownRuntime => Self::MOL_ERR_UNKNOWN_RUNTIME,
            Code::InvalidOption => Self::MOL_ERR_INVALID_OPTION,
            Code::GiteaUnreachable => Self::MOL_ERR_GITEA_UNREACHABLE,
            Code::RepoNotFound => Self::MOL_ERR_REPO_NOT_FOUND,
            Code::Auth => Self::MOL_ERR_AUTH,
            Code::BadResponse => Self::MOL_ERR_BAD_RESPONSE,
            Code::Fetch => Self::MOL_ERR_FETCH,
            Code::NoDockerfile => Self::MOL_ERR_NO_DOCKERFILE,
            Code::EngineUnreachable => Self::MOL_ERR_ENGINE_UNREACHABLE,
            Code::PlatformUnsupported => Self::MOL_ERR_PLATFORM_UNSUPPORTED,
            Code::BuildFailed => Self::MOL_ERR_BUILD_FAILED,
            Code::Stalled => Self::MOL_ERR_STALLED,
            Code::Timeout => Self::MOL_ERR_TIMEOUT,
            Code::Cache => Self::MOL_ERR_CACHE,
            Code::Internal => Self::MOL_ERR_INTERNAL,
            Code::Canceled => Self::MOL_ERR_CANCELED,
            Code::DeadlineExceeded => Self::MOL_ERR_DEADLINE_EXCEEDED,
            Code::InvalidArgument => Self::MOL_ERR_INVALID_ARGUMENT,
            Code::NoSuchHandle => Self::MOL_ERR_NO_SUCH_HANDLE,
            Code::Closed => Self::MOL_ERR_CLOSED,
            Code::NoLocalImage => Self::MOL_ERR_NO_LOCAL_IMAGE,
            Code::ProcessLimit => Self::MOL_ERR_PROCESS_LIMIT,
            Code::BuilderUnreachable => Self::MOL_ERR_BUILDER_UNREACHABLE,
        }
    }
}

/// Options for a client.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct mol_options {
    pub id: u64,
}

/// A client: one set of options, one engine, any number of calls at once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct mol_client {
    pub id: u64,
}

/// A call of a client, from its start until its result is taken.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct mol_call {
    pub id: u64,
}

/// Why a function or a call failed. No string is NULL; one that does not apply is empty.
#[repr(C)]
#[derive(Debug)]
pub struct mol_error {
    /// See "Growth".
    pub size: usize,
    /// The kind of failure.
    pub code: mol_status,
    /// The line of the failed build step in the Dockerfile, from 1; 0 if unknown.
    pub line: u32,
    /// The exit code of the failed build step; 0 if unknown.
    pub exit_code: i32,
    /// What failed, and where: one line.
    pub message: *const c_char,
    /// What to do next: one line.
    pub hint: *const c_char,
    /// The runtime of the call.
    pub runtime: *const c_char,
    /// The URL of the template repository; empty if this machine, the engine or a builder failed before the build.
    pub url: *const c_char,
    /// The build step that failed, as the builder names it.
    pub step: *const c_char,
    /// The last lines of the build's output.
    pub log_tail: *const c_char,
    /// The numbered lines of the Dockerfile around the step, ">" before those of the step. Empty if the line is unknown.
    pub excerpt: *const c_char,
}

impl mol_error {
    /// Hands an error to C.
    pub(super) fn new(error: Error) -> *mut Self {
        let message = error.message();
        let build = error.build.map(|build| *build).unwrap_or_default();
        Box::into_raw(Box::new(Self {
            size: size_of::<Self>(),
            code: error.code.into(),
            line: build.line,
            exit_code: build.exit_code,
            message: give(message),
            hint: give(error.hint),
            runtime: give(error.runtime),
            url: give(error.url),
            step: give(build.step),
            log_tail: give(build.log_tail),
            excerpt: give(build.excerpt),
        }))
    }
}

/// Durations of the steps of a call, or of the build that it joined, in microseconds; 0 for a step that was not needed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mol_timings {
    /// The request for the commit, with its retries.
    pub lookup_us: i64,
    /// The request for the image.
    pub inspect_us: i64,
    /// The wait for another process, or another client of this process, that built the same image.
    pub wait_us: i64,
    /// The fetch and the checkout.
    pub fetch_us: i64,
    /// The build, with the upload of its context.
    pub build_us: i64,
    /// The tagging.
    pub tag_us: i64,
    /// The whole call. If it joined a running build, that build's durations can be longer.
    pub total_us: i64,
}

impl From<Timings> for mol_timings {
    fn from(timings: Timings) -> Self {
        let us = |took: Duration| i64::try_from(took.as_micros()).unwrap_or(i64::MAX);
        Self {
            lookup_us: us(timings.lookup),
            inspect_us: us(timings.inspect),
            wait_us: us(timings.wait),
            fetch_us: us(timings.fetch),
            build_us: us(timings.build),
            tag_us: us(timings.tag),
            total_us: us(timings.total),
        }
    }
}

/// An image that is ready to start. No string is NULL.
#[repr(C)]
#[derive(Debug)]
pub struct mol_image {
    /// See "Growth".
    pub size: usize,
    /// What to start, tagged with 12 digits of the commit: molecule-local/workspace-template-hermes:0123456789ab.
    pub reference: *const c_char,
    /// The moving reference, …:latest. If a call cannot set it to this image, a "warning" event says so.
    pub latest_reference: *const c_char,
    /// The runtime of the call.
    pub runtime: *const c_char,
    /// The full id of the commit that the image was built from.
    pub commit_sha: *const c_char,
    /// The engine's id of the image.
    pub image_id: *const c_char,
    /// The platform, such as linux/amd64.
    pub platform: *const c_char,
    /// The engine that has the image, such as unix:///var/run/docker.sock: create the container there.
    pub endpoint: *const c_char,
    /// True if the engine had the image: nothing was fetched or built.
    pub cache_hit: bool,
    /// Where the time went.
    pub timings: mol_timings,
}

impl mol_image {
    /// Hands an image to C.
    pub(super) fn new(image: Image) -> *mut Self {
        Box::into_raw(Box::new(Self {
            size: size_of::<Self>(),
            reference: give(image.reference),
            latest_reference: give(image.latest_reference),
            runtime: give(image.runtime),
            commit_sha: give(image.commit_sha),
            image_id: give(image.image_id),
            platform: give(image.platform),
            endpoint: give(image.endpoint),
            cache_hit: image.cache_hit,
            timings: image.timings.into(),
        }))
    }
}

/// Whether images are pulled or built.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum mol_registry_mode {
    /// No registry is set: images are built here.
    MOL_REGISTRY_MODE_LOCAL = 0,
    /// A registry is set: the engine pulls from it.
    MOL_REGISTRY_MODE_SAAS = 1,
}

/// Where images come from.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mol_registry {
    /// Whether images are pulled or built.
    pub mode: mol_registry_mode,
    /// The beginning of every image reference: the string that mol_resolve was given, or a static one.
    pub prefix: *const c_char,
}

/// What a call does.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum mol_request_kind {
    /// Finds or builds the image of `runtime`, for `commit` if that is set. The result has an image.
    MOL_REQUEST_IMAGE = 1,
    /// Lists this library's images in the engine and trees in the cache: {"images": ...}
    MOL_REQUEST_LIST = 2,
    /// Removes old images and trees of this library, and nothing else: {"images": ..., "trees": ...}
    MOL_REQUEST_PRUNE = 3,
    /// Checks everything that a build depends on. Problems are in the report, not an error.
    MOL_REQUEST_DIAGNOSE = 4,
    /// The log of the last build of `runtime` with this cache, by any process: {"text": ...}
    MOL_REQUEST_BUILD_LOG = 5,
    /// The address of the engine in use, as in DOCKER_HOST: {"docker_host": "unix:///var/run/docker.sock"}
    MOL_REQUEST_ENGINE_HOST = 6,
}

// A new field must begin after the padding that follows `dry_run` (at offset 48 with 64-bit pointers): older programs
// leave the padding uninitialised.
/// What a call does, for mol_call_start. The fields that its kind does not use are 0:
/// mol_request request = {.size = sizeof request, .kind = MOL_REQUEST_LIST};
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mol_request {
    /// sizeof(mol_request).
    pub size: usize,
    /// What the call does.
    pub kind: mol_request_kind,
    /// Prune: how many of the newest images of each runtime and platform, and of the newest trees of each runtime,
    /// stay. 0: none, unless it stays for another reason.
    pub keep_per_runtime: u32,
    /// Prune: how long images and trees stay after they were built or used, in ms. 0: ten minutes; negative: no time.
    pub keep_recent_ms: i64,
    /// Image and build log: the runtime.
    pub runtime: *const c_char,
    /// Image: all 40 or 64 hexadecimal digits of the commit, or NULL to look it up (pin, or head of the branch).
    pub commit: *const c_char,
    /// Prune: only report what would be removed.
    pub dry_run: bool,
}

/// How a call ended.
#[repr(C)]
#[derive(Debug)]
pub struct mol_result {
    /// See "Growth".
    pub size: usize,
    /// The call.
    pub call: mol_call,
    /// MOL_OK, or why the call failed.
    pub status: mol_status,
    /// The number of the last event before the end; 0 if there was none.
    pub last_event: u64,
    /// The image; NULL for other kinds, and after a failure. Freed with the result.
    pub image: *const mol_image,
    /// The report, one JSON object (docs/upkeep.md); NULL for images, and after a failure.
    pub report: *const c_char,
    /// Why the call failed; NULL after success. Freed with the result.
    pub error: *const mol_error,
}

impl mol_result {
    /// Hands the end of a call to C.
    pub(super) fn new(ended: Ended) -> *mut Self {
        let mut result = Self {
            size: size_of::<Self>(),
            call: mol_call { id: ended.call },
            status: mol_status::MOL_OK,
            last_event: ended.last_event,
            image: ptr::null(),
            report: ptr::null(),
            error: ptr::null(),
        };
        match ended.result {
            Ok(Outcome::Image(image)) => result.image = mol_image::new(*image),
            Ok(Outcome::Report(report)) => result.report = give(report),
            Err(error) => {
                result.status = error.code.into();
                result.error = mol_error::new(error);
            }
        }
        Box::into_raw(Box::new(result))
    }
}

/// Something that happened during a call. No string is NULL.
#[repr(C)]
#[derive(Debug)]
pub struct mol_event {
    /// See "Growth".
    pub size: usize,
    /// The call; for a build that several calls share, the first one. 0 for a "thinned" event of several calls.
    pub call: mol_call,
    /// The number of the event, counted for each client from 1. The numbers of dropped events are skipped.
    pub number: u64,
    /// What happened, such as "build_started": docs/events.md lists the kinds.
    pub kind: *const c_char,
    /// One line for people.
    pub message: *const c_char,
    /// The whole event, one JSON object with the fields of its kind.
    pub json: *const c_char,
}

impl mol_event {
    /// Hands an event to C.
    pub(super) fn new(numbered: Numbered) -> Result<*mut Self> {
        let Numbered { number, event } = numbered;
        let json = to_json(&event)?;
        Ok(Box::into_raw(Box::new(Self {
            size: size_of::<Self>(),
            call: mol_call { id: event.call },
            number,
            kind: give(event.kind.name()),
            message: give(event.message),
            json: give(json),
        })))
    }
}

/// A report or an event as JSON.
pub(super) fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| {
        Error::new(
            Code::Internal,
            format!("the result cannot be written as JSON: {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_the_number_of_its_code() {
        for code in Code::ALL {
            assert_eq!(mol_status::from(code) as i32, code as i32);
        }
    }
}
