//! Through a registry: the builder pushes the image, and the engine pulls it by the digest that the builder reports. The
//! engine skips the layers that it has.
//!
//! This is not a fallback to a published image: only the image that this build has made has that digest. Afterwards the
//! engine no longer has the image under its name in the registry.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::context::registry;
use crate::engine::Engine;
use crate::engine::build::answer::{self, BuildMessage};
use crate::engine::build::credentials::Credentials;
use crate::engine::build::pull::{Action, MAX_LAYERS};
use crate::engine::build::transfer::{TransferGuard, TransferProgress};
use crate::engine::build::{Build, Inputs, broken};
use crate::engine::connect::request::{Failure, empty, post, send};

/// The key of the digest in the builder's result.
const DIGEST: &str = "containerimage.digest";

/// The transfer of one image through a repository of a registry.
#[derive(Debug)]
pub(in crate::engine::build) struct ImagePull {
    repository: String,
    /// Set when the builder has pushed the image.
    digest: OnceLock<String>,
    moved: Arc<TransferProgress>,
    /// Set when the engine has the image under its own name.
    complete: AtomicBool,
}

impl ImagePull {
    pub(in crate::engine::build) fn new(repository: &str) -> Self {
        Self {
            repository: repository.to_owned(),
            digest: OnceLock::new(),
            moved: Arc::default(),
            complete: AtomicBool::new(false),
        }
    }

    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    pub(super) fn moved(&self) -> &Arc<TransferProgress> {
        &self.moved
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }

    /// Whether the builder has pushed the image.
    pub(in crate::engine::build) fn is_pushed(&self) -> bool {
        self.digest.get().is_some()
    }

    /// Takes the digest from the builder's result.
    pub(in crate::engine::build) fn pushed(&self, mut result: HashMap<String, String>) {
        let digest = result.remove(DIGEST).unwrap_or_default();
        let _ = self.digest.set(digest);
    }

    /// Pulls the image into the engine, tags it as the build asks, and then removes from the engine the reference by
    /// which it was pulled; nothing is removed from the registry. The stream has an item for each message of the
    /// engine.
    pub(in crate::engine::build) fn into_engine<'a>(
        self: Arc<Self>,
        engine: &'a Engine,
        build: &'a Build<'_>,
        inputs: &Inputs,
    ) -> BoxStream<'a, Result<BuildMessage, Failure>> {
        let pull = Arc::clone(&self);
        let credentials = inputs.credentials.clone();
        let mut name = RegistryName {
            pull: Some(Arc::clone(&self)),
            engine: engine.clone(),
            tasks: inputs.tasks.clone(),
            runtime: Handle::current(),
        };
        let lines = async move {
            let moving = self.moved.begin();
            let lines = self.pull(engine, build, &credentials).await?;
            let mut layers = Layers::default();
            Ok::<_, Failure>(lines.inspect_ok(move |info| layers.count(info, &moving)))
        };
        let named = async move {
            let named = engine.tag(&pull.source()?, build.reference).await;
            named.map_err(Failure::Local)?;
            if let Some(removed) = name.remove() {
                let _ = removed.await;
            }
            pull.complete.store(true, Ordering::Relaxed);
            Ok(BuildMessage::Other)
        };
        let pulled = futures_util::stream::once(lines).try_flatten();
        pulled.chain(futures_util::stream::once(named)).boxed()
    }

    /// The image in the registry.
    fn source(&self) -> Result<String, Failure> {
        let digest = self.digest.get().filter(|digest| !digest.is_empty());
        let digest =
            digest.ok_or_else(|| Failure::InvalidAnswer("no digest of the image".to_owned()))?;
        Ok(format!("{}@{digest}", self.repository))
    }

    async fn pull(
        &self,
        engine: &Engine,
        build: &Build<'_>,
        credentials: &Credentials,
    ) -> Result<impl futures_util::Stream<Item = Result<BuildMessage, Failure>> + use<>, Failure>
    {
        let source = self.source()?;
        let (repository, digest) = source.split_once('@').unwrap_or_default();
        let query = [
            ("fromImage", repository),
            ("tag", digest),
            ("platform", build.platform.as_str()),
        ];
        let query = serde_urlencoded::to_string(query).map_err(broken)?;
        let mut request = post(engine.api.version, &format!("/images/create?{query}"));
        if let Some(login) = credentials.header_for(registry(repository)).await {
            request = request.header("X-Registry-Auth", login.as_str());
        }
        let request = request.body(empty()).map_err(broken)?;
        let answer = send(&engine.address, request).await?;
        Ok(answer::lines(answer))
    }
}

/// The name under which the engine has the pulled image. It is removed in the background, at the latest when this is
/// dropped: the call may be cancelled after the pull.
struct RegistryName {
    /// `None` after the removal.
    pull: Option<Arc<ImagePull>>,
    engine: Engine,
    tasks: TaskTracker,
    runtime: Handle,
}

impl RegistryName {
    /// Starts to remove the name, at most once. If the removal fails, only an unneeded name remains in the engine.
    fn remove(&mut self) -> Option<JoinHandle<()>> {
        let (pull, engine) = (self.pull.take()?, self.engine.clone());
        let removal = async move {
            if let Ok(source) = pull.source() {
                let _ = engine.remove(&source).await;
            }
        };
        Some(self.tasks.spawn_on(removal, &self.runtime))
    }
}

impl Drop for RegistryName {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The progress of each layer: bytes, and in total.
#[derive(Default)]
struct Layers(HashMap<String, (u64, u64)>);

impl Layers {
    fn count(&mut self, info: &BuildMessage, moving: &TransferGuard) {
        let BuildMessage::Layer(layer) = info else {
            return;
        };
        if !self.0.contains_key(&layer.layer) && self.0.len() == MAX_LAYERS {
            return;
        }
        let (bytes, total) = self.0.entry(layer.layer.clone()).or_default();
        *total = layer.total.max(*total);
        // Extracting follows the download. The last report of that may be missing.
        *bytes = match layer.action {
            Action::Download => layer.bytes,
            Action::Extract => *total,
        };
        let sum = |of: fn(&(u64, u64)) -> u64| self.0.values().map(of).fold(0, u64::saturating_add);
        moving.set(sum(|layer| layer.0), sum(|layer| layer.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::build::pull::LayerStatus;

    #[test]
    fn the_progress_of_all_layers_is_added_up() {
        let moved = Arc::<TransferProgress>::default();
        let moving = moved.begin();
        let mut layers = Layers::default();
        let mut layer = |layer: &str, action, bytes, total| {
            let layer = layer.to_owned();
            let status = LayerStatus {
                layer,
                action,
                bytes,
                total,
                complete: false,
            };
            layers.count(&BuildMessage::Layer(status), &moving);
            moved.bytes()
        };
        assert_eq!(layer("a", Action::Download, 1, 10), (1, Some(10)));
        assert_eq!(layer("b", Action::Download, 5, 20), (6, Some(30)));
        assert_eq!(layer("a", Action::Download, 10, 10), (15, Some(30)));
        assert_eq!(layer("a", Action::Extract, 3, 10), (15, Some(30)));
        assert_eq!(layer("b", Action::Extract, 1, 20), (30, Some(30)));
        assert_eq!(layer("d", Action::Extract, 0, 5), (35, Some(35)));
        let huge = layer("c", Action::Download, u64::MAX, u64::MAX);
        assert_eq!(huge, (u64::MAX, Some(u64::MAX)));
        assert!(moved.is_moving());
        drop(layers);
        drop(moving);
        assert!(!moved.is_moving());
    }
}
