//! The results of the two steps that calls share: the lookup and the build.

use crate::engine::Found;
use crate::job::target::Target;
use crate::names::image::Timings;

/// What a lookup has found, and how long it took.
pub(crate) struct LookupResult {
    pub(super) target: Target,
    pub(super) found: Result<Found, MissReason>,
    pub(super) timings: Timings,
}

/// Why the engine's image cannot be used.
pub(super) enum MissReason {
    Absent,
    Contradiction(String),
}

/// What a shared build has made, and how long it took.
#[derive(Clone, Debug)]
pub(crate) struct BuildOutput {
    pub(super) image_id: String,
    /// True if another process or client has built it in the meantime.
    pub(super) cache_hit: bool,
    pub(super) timings: Timings,
}
