//! The structs and numbers of the ABI.

use std::ffi::c_char;
use std::ptr;
use std::time::Duration;

use super::text::give;
use crate::client::queue::Outcome;
use crate::error::{Code, Error};
use crate::names::image::{Image, Timings};
use crate::names::registry::{RegistryMode, RegistrySource};

/// What a function has to say. The numbers are never changed and never used again for another.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum mol_status {
    /// It is done.
    MOL_OK = 0,
    /// The runtime is not on the allowlist. Nothing was asked of the network, the disk or the engine.
    MOL_ERR_UNKNOWN_RUNTIME = 1,
    /// An option, or the environment variable behind it, holds a value that cannot be used.
    MOL_ERR_INVALID_OPTION = 2,
    /// The template server gave no answer: refused, no such host, no route, time-out, TLS.
    MOL_ERR_GITEA_UNREACHABLE = 3,
    /// The template repository, or the branch asked for, is not there.
    MOL_ERR_REPO_NOT_FOUND = 4,
    /// The template server wants a token, or refuses the one it got.
    MOL_ERR_AUTH = 5,
    /// The template server answered something that is not the answer its API documents.
    MOL_ERR_BAD_RESPONSE = 6,
    /// The commit could not be fetched or checked out.
    MOL_ERR_FETCH = 7,
    /// The commit has no file called Dockerfile at its root.
    MOL_ERR_NO_DOCKERFILE = 8,
    /// No container engine answered, or the one that did answered an error.
    MOL_ERR_ENGINE_UNREACHABLE = 9,
    /// The engine cannot build or run the platform.
    MOL_ERR_PLATFORM_UNSUPPORTED = 10,
    /// The build ran and failed: see step and log_tail.
    MOL_ERR_BUILD_FAILED = 11,
    /// A fetch or a build made no progress for the stall grace.
    MOL_ERR_STALLED = 12,
    /// The ceiling passed.
    MOL_ERR_TIMEOUT = 13,
    /// The cache folder cannot be used.
    MOL_ERR_CACHE = 14,
    /// A defect in the library: please report it.
    MOL_ERR_INTERNAL = 15,
    /// The call was cancelled.
    MOL_ERR_CANCELED = 16,
    /// The time-out that was given with the call has passed.
    MOL_ERR_DEADLINE_EXCEEDED = 17,
    /// An argument is NULL where it must not be, is not UTF-8, or is out of range.
    MOL_ERR_INVALID_ARGUMENT = 18,
    /// The id names no object: freed already, of another kind, or never made.
    MOL_ERR_NO_SUCH_HANDLE = 19,
    /// The client was freed while the call waited.
    MOL_ERR_CLOSED = 20,
    /// No event came within the time-out.
    MOL_ERR_NO_EVENT = 21,
    /// MOLECULE_LOCAL_OFFLINE is set, and the engine has no image of the runtime.
    MOL_ERR_NO_LOCAL_IMAGE = 22,
    /// This process, or the machine, has no thread or file descriptor left.
    MOL_ERR_PROCESS_LIMIT = 23,
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
            Code::NoEvent => Self::MOL_ERR_NO_EVENT,
            Code::NoLocalImage => Self::MOL_ERR_NO_LOCAL_IMAGE,
            Code::ProcessLimit => Self::MOL_ERR_PROCESS_LIMIT,
        }
    }
}

/// The id of a set of options, from mol_options_new or mol_options_from_env.
pub type mol_options = u64;

/// The id of a client, from mol_client_new.
pub type mol_client = u64;

/// The id of a call, from mol_client_submit.
pub type mol_call = u64;

/// Why a function failed. No string is NULL; what does not apply is empty.
#[repr(C)]
#[derive(Debug)]
pub struct mol_error {
    /// The kind of failure; the same as the function's status.
    pub code: mol_status,
    /// What failed, and where: one line.
    pub message: *const c_char,
    /// What to do next: one line.
    pub hint: *const c_char,
    /// The runtime the call was for.
    pub runtime: *const c_char,
    /// The address of the template repository.
    pub url: *const c_char,
    /// The step of the build that failed, as the builder names it.
    pub step: *const c_char,
    /// The step's line in the Dockerfile, from 1; 0 if it is not known.
    pub line: u32,
    /// The exit code of the step's command; 0 if it is not known.
    pub exit_code: i32,
    /// The last lines of the build's output, with line breaks.
    pub log_tail: *const c_char,
}

impl mol_error {
    /// Hands an error out.
    pub(super) fn new(error: Error) -> *mut Self {
        let build = error.build.map(|build| *build).unwrap_or_default();
        Box::into_raw(Box::new(Self {
            code: error.code.into(),
            message: give(error.message),
            hint: give(error.hint),
            runtime: give(error.runtime),
            url: give(error.url),
            step: give(build.step),
            line: build.line,
            exit_code: build.exit_code,
            log_tail: give(build.log_tail),
        }))
    }
}

/// How long each step of a call took, in microseconds. A step that was not needed took none.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct mol_timings {
    /// Asking the template server for the commit.
    pub lookup_us: i64,
    /// Asking the engine for the image.
    pub inspect_us: i64,
    /// Waiting for another process that was at the same image.
    pub wait_us: i64,
    /// Fetching the commit and checking it out.
    pub fetch_us: i64,
    /// Building, the upload of the context included.
    pub build_us: i64,
    /// Tagging.
    pub tag_us: i64,
    /// The whole call.
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
    /// What to give to the engine: molecule-local/workspace-template-hermes:0123456789ab,
    /// say, with the first twelve digits of the commit.
    pub reference: *const c_char,
    /// The reference that moves with the branch.
    pub latest_reference: *const c_char,
    /// The runtime it was asked for.
    pub runtime: *const c_char,
    /// The full id of the commit whose tree is in the image.
    pub commit_sha: *const c_char,
    /// The engine's id of the image.
    pub image_id: *const c_char,
    /// What it was built for, such as linux/amd64.
    pub platform: *const c_char,
    /// The address of the engine that has it, such as unix:///var/run/docker.sock: the one to create
    /// the container with.
    pub endpoint: *const c_char,
    /// True if it was there already: nothing was fetched and nothing built.
    pub cache_hit: bool,
    /// How long it took.
    pub timings: mol_timings,
}

impl mol_image {
    /// Hands an image out.
    pub(super) fn new(image: Image) -> *mut Self {
        Box::into_raw(Box::new(Self {
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

/// Pull or build.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum mol_registry_mode {
    /// No registry is set: images are built on this machine.
    MOL_REGISTRY_MODE_LOCAL = 0,
    /// A registry is set: the engine pulls from it, and this library has nothing to do.
    MOL_REGISTRY_MODE_SAAS = 1,
}

/// Where images come from.
#[repr(C)]
#[derive(Debug)]
pub struct mol_registry {
    /// Pull or build.
    pub mode: mol_registry_mode,
    /// What every image reference begins with. Never NULL.
    pub prefix: *const c_char,
}

impl mol_registry {
    /// Hands it out.
    pub(super) fn new(source: RegistrySource) -> *mut Self {
        Box::into_raw(Box::new(Self {
            mode: match source.mode {
                RegistryMode::Local => mol_registry_mode::MOL_REGISTRY_MODE_LOCAL,
                RegistryMode::Saas => mol_registry_mode::MOL_REGISTRY_MODE_SAAS,
            },
            prefix: give(source.prefix),
        }))
    }
}

/// Something that happened. Exactly one of json, image and error is set. The end of a call comes exactly
/// once for each call that was accepted: an error; or an image, for mol_client_submit; or, for the others,
/// json whose "kind" is "result", with the report as its "result".
#[repr(C)]
#[derive(Debug)]
pub struct mol_event {
    /// The call it is about.
    pub call: mol_call,
    /// One JSON object, or NULL. Its "kind" says what happened, its "message" is one line for people;
    /// docs/events.md has every kind with its fields.
    pub json: *const c_char,
    /// The call has ended well. Freed with the event.
    pub image: *const mol_image,
    /// The call has failed. Freed with the event.
    pub error: *const mol_error,
}

impl mol_event {
    /// Hands an event out.
    pub(super) fn json(call: u64, json: String) -> *mut Self {
        Self::new(call, give(json), ptr::null(), ptr::null())
    }

    /// Hands the end of a call out.
    pub(super) fn done(call: u64, result: Result<Outcome, Error>) -> *mut Self {
        match result {
            Ok(Outcome::Report(report)) => {
                let end = format!(r#"{{"kind":"result","call":{call},"result":{report}}}"#);
                Self::json(call, end)
            }
            Ok(Outcome::Image(image)) => {
                Self::new(call, ptr::null(), mol_image::new(*image), ptr::null())
            }
            Err(error) => Self::new(call, ptr::null(), ptr::null(), mol_error::new(error)),
        }
    }

    fn new(
        call: u64,
        json: *const c_char,
        image: *const mol_image,
        error: *const mol_error,
    ) -> *mut Self {
        Box::into_raw(Box::new(Self {
            call,
            json,
            image,
            error,
        }))
    }
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
