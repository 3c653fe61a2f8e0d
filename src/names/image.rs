//! The image that a call returns, with the durations of its steps, and the engine that has it.

use std::time::Duration;

use serde::Serialize;

/// The duration of each step of a call. It is zero for a step that was not needed. A call that joins a running build of
/// its client has the durations of that whole build, from `wait` to `tag`, so these can exceed `total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timings {
    /// Asking the template server for the commit.
    pub lookup: Duration,
    /// Asking the engine for the image.
    pub inspect: Duration,
    /// Waiting for another process, or another client of this process, that built the same image.
    pub wait: Duration,
    /// Fetching the commit and checking it out.
    pub fetch: Duration,
    /// Building, including the upload of the context.
    pub build: Duration,
    /// Tagging.
    pub tag: Duration,
    /// The whole call.
    pub total: Duration,
}

/// An image that is ready to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The reference that is pinned to the commit: use this one to create a container.
    pub reference: String,
    /// The reference that moves with the branch.
    pub latest_reference: String,
    /// The runtime that was requested.
    pub runtime: String,
    /// The full id of the commit that the image was built from.
    pub commit_sha: String,
    /// The engine's id of the image.
    pub image_id: String,
    /// The platform that it was built for.
    pub platform: String,
    /// The address of the engine that has the image: create the container there.
    pub endpoint: String,
    /// True if the engine had the image already: nothing was fetched or built.
    pub cache_hit: bool,
    /// The durations.
    pub timings: Timings,
}

/// The engine that a client uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EngineHost {
    /// Its address, in the form of `DOCKER_HOST`.
    pub docker_host: String,
}
