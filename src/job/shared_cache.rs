//! Whether a build uses the shared cache: only if its registry answers. See [`registry`] for why.

use crate::engine::{Engine, Nodes};
use crate::event::{Event, Sink};
use crate::job::shared::Shared;
use crate::job::target::Target;
use crate::net::registry::{self, Reply};
use crate::options::RuntimeCache;

/// The cache for a build, if there is one that can be asked. Warns if its registry does not answer.
pub(crate) async fn find(
    shared: &Shared,
    engine: &Engine,
    nodes: Option<&Nodes>,
    target: &Target,
    emit: &Sink,
) -> Option<RuntimeCache> {
    let cache = shared.settings.engine.shared_cache.as_ref()?;
    let cache = cache.of(&target.runtime, &target.platform);
    let reference = cache.reference();
    if engine.can_use_cache(nodes.is_some())
        && registry::ask(&shared.http, &reference).await == Reply::Silent
    {
        let message = format!(
            "the shared cache {reference} is not used: its registry did not answer within {} seconds",
            registry::LIMIT.as_secs()
        );
        emit(Event::warning(
            message,
            "check the registry of MOLECULE_LOCAL_SHARED_CACHE, or unset it",
        ));
        return None;
    }
    Some(cache)
}
