//! Without a network there is no commit to look up: the newest image of the runtime will do.
//!
//! Only `MOLECULE_LOCAL_OFFLINE` leads here, never a failure.

use std::time::Instant;

use crate::error::{Code, Error, Result};
use crate::event::{Event, Sink};
use crate::image::{Image, References, Timings, full_id};
use crate::pipeline::Shared;
use crate::recent;
use crate::runtimes::Runtime;

/// The newest image of `runtime` for the platform and the isolation that are set.
///
/// # Errors
///
/// [`Code::NoLocalImage`] if the engine has none.
pub(crate) async fn newest(shared: &Shared, runtime: Runtime, emit: &Sink) -> Result<Image> {
    let begun = Instant::now();
    let engine = shared.engine().await?;
    let platform = shared.platform().await?;
    let isolation = &shared.settings.isolation;
    for pinned in engine.references().await? {
        let references = References::of_pinned(&pinned, runtime, &platform, isolation);
        let Some(references) = references else {
            continue;
        };
        // It may have been removed since.
        let Some(found) = recent::find(shared, runtime, &references, emit).await? else {
            continue;
        };
        if (found.os.as_str(), found.arch.as_str()) != platform.os_arch() {
            continue;
        }
        emit(Event::cache_hit(&references.pinned));
        return Ok(Image {
            reference: references.pinned,
            latest_reference: references.latest,
            runtime: runtime.to_string(),
            commit_sha: full_id(found.revision.as_deref()),
            image_id: found.id,
            platform: platform.to_string(),
            endpoint: engine.endpoint().to_owned(),
            cache_hit: true,
            timings: Timings {
                inspect: begun.elapsed(),
                total: begun.elapsed(),
                ..Timings::default()
            },
        });
    }
    Err(Error::new(
        Code::NoLocalImage,
        format!("there is no image of {runtime} for {platform}, and MOLECULE_LOCAL_OFFLINE is set"),
    )
    .hint("unset MOLECULE_LOCAL_OFFLINE once, so that the image can be built"))
}
