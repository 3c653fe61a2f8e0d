//! The image that a call returns, with the durations of its steps, and the engine that has it.

use std::time::Duration;

use serde::Serialize;

/// How long each step of a call took. A step that was not needed took no time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timings {
    /// Asking the template server for the commit.
    pub lookup: Duration,
    /// Asking the engine for the image.
    pub inspect: Duration,
    /// Waiting for a build that another caller or process had begun, before ours could start.
    pub wait: Duration,
    /// Fetching the commit and checking it out.
    pub fetch: Duration,
    /// Building, the upload of the context included.
    pub build: Duration,
    /// Tagging.
    pub tag: Duration,
    /// The whole call.
    pub total: Duration,
}

/// An image that is ready to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// What to give to the engine: the reference that is pinned to the commit.
    pub reference: String,
    /// The reference that moves with the branch.
    pub latest_reference: String,
    /// The runtime it was asked for.
    pub runtime: String,
    /// The full id of the commit whose tree is in the image.
    pub commit_sha: String,
    /// The engine's id of the image.
    pub image_id: String,
    /// What it was built for.
    pub platform: String,
    /// The address of the engine that has it: the one to create the container with.
    pub endpoint: String,
    /// True if it was there already: nothing was fetched and nothing built.
    pub cache_hit: bool,
    /// How long it took.
    pub timings: Timings,
}

/// The engine in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EngineHost {
    /// Its address, as `DOCKER_HOST` has it.
    pub docker_host: String,
}
