//! Offline mode: the newest image of the runtime in the engine, or that of a named commit, without a lookup.
//!
//! Only `MOLECULE_LOCAL_OFFLINE` switches it on. A failed lookup never does.

use std::time::Instant;

use crate::error::{Code, Error, Result};
use crate::event::{Event, Sink};
use crate::job::lease;
use crate::job::shared::Shared;
use crate::job::target::Request;
use crate::names::commit::full_id;
use crate::names::image::{Image, Timings};
use crate::names::reference::References;

/// Finds the newest image of the runtime for the configured platform and tag rules, or the image of the commit that
/// the caller has named.
///
/// # Errors
///
/// [`Code::NoLocalImage`] if the engine has none.
pub(crate) async fn find(shared: &Shared, request: &Request, emit: &Sink) -> Result<Image> {
    let started = Instant::now();
    let (runtime, rules) = (&request.runtime, &shared.settings.tags);
    let engine = shared.engine().await?;
    shared.warn_of_unusual_engine(engine, emit).await;
    let platform = shared.platform().await?;
    let candidates: Vec<References> = match &request.commit {
        Some(commit) => vec![References::new(runtime, commit, &platform, rules)],
        None => {
            let listed = engine.references().await?;
            let parse = |name: &String| References::of_pinned(name, runtime, &platform, rules);
            listed.iter().filter_map(parse).collect()
        }
    };
    for references in candidates {
        // It may have been removed since it was listed.
        let Some(found) = lease::find(shared, runtime, &references, emit).await? else {
            continue;
        };
        if found
            .contradiction(request.commit.as_ref(), &platform)
            .is_some()
        {
            continue;
        }
        let commit = full_id(found.revision.as_deref());
        emit(Event::cache_hit(&references.pinned));
        return Ok(Image {
            reference: references.pinned,
            latest_reference: references.latest,
            runtime: runtime.to_string(),
            commit_sha: request.commit.as_ref().map_or(commit, ToString::to_string),
            image_id: found.id,
            platform: platform.to_string(),
            endpoint: engine.endpoint().to_owned(),
            cache_hit: true,
            timings: Timings {
                inspect: started.elapsed(),
                total: started.elapsed(),
                ..Timings::default()
            },
        });
    }
    let of_commit = request
        .commit
        .as_ref()
        .map_or(String::new(), |commit| format!(" at {}", commit.short()));
    Err(Error::new(
        Code::NoLocalImage,
        format!(
            "there is no image of {runtime}{of_commit} for {platform}, and MOLECULE_LOCAL_OFFLINE is set"
        ),
    )
    .hint("unset MOLECULE_LOCAL_OFFLINE once, so that the image can be built"))
}
