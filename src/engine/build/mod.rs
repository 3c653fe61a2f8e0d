//! Builds an image: with the engine's builder (BuildKit, the classic builder, or Podman's Buildah), or with another
//! BuildKit that the user has named.

mod answer;
mod attempt;
mod base_image;
mod buildkit;
mod classic;
mod credentials;
mod failure;
pub(super) mod full;
mod lines;
mod monitor;
mod place;
mod pull;
mod session;
mod shared_cache;
mod solve;
mod step;
mod transfer;

pub(crate) use credentials::Logins;
#[cfg(feature = "internals")]
pub(crate) use lines::Lines;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bollard_stubs::query_parameters::{
    BuildImageOptions, BuildImageOptionsBuilder, BuilderVersion,
};
use futures_util::{Stream, StreamExt, TryStreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Builder as RequestBuilder;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Engine;
use super::builders::{self, Nodes};
use crate::context::{Context, DOCKERFILE, Dockerfile, registry, template_name};
use crate::engine::connect::request::{Failure, empty, post, send};
use crate::error::{Code, Result};
use crate::event::{Event, Sink};
use crate::names::commit::hex;
use crate::names::platform::Platform;
use crate::options::RuntimeCache;
use crate::process::outside_file::within;
use answer::BuildMessage;
use attempt::{AttemptError, Remedy};
use credentials::Credentials;
use place::Place;
use session::{Session, SessionServices};
use shared_cache::CacheUse;
use transfer::ImageLoad;

/// A build fails when it has lost this many nodes while they were building, so it moves to another node at most once.
/// Nodes that cannot be reached do not count.
const MAX_LOST_BUILDS: u32 = 2;

/// The most base images that are looked up in the engine.
const MAX_BASE_IMAGES: usize = 20;

/// The kind of builder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Builder {
    BuildKit,
    /// Docker's first builder.
    Classic,
    /// Podman's builder, behind the classic builder's API.
    Buildah,
}

impl Builder {
    /// The name in events.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Builder::BuildKit => "buildkit",
            Builder::Classic => "classic",
            Builder::Buildah => "buildah",
        }
    }

    /// How this builder restricts the use of the shared cache; `None` if it does not.
    pub(crate) fn restricts_shared_cache(self, write: bool) -> Option<&'static str> {
        match self {
            Builder::BuildKit if write => {
                Some("read, but not written: the engine's own builder cannot write it")
            }
            Builder::BuildKit => None,
            Builder::Classic => Some("not used: the classic builder does not support it"),
            Builder::Buildah => Some("not used: Podman does not support it"),
        }
    }
}

/// What to do if the engine's own builder restricts the shared cache.
pub(crate) const HINT_SHARED_CACHE: &str =
    "set MOLECULE_LOCAL_BUILDER to a BuildKit builder, which supports it";

/// The parameters of a build.
#[derive(Clone, Debug)]
pub(crate) struct Build<'a> {
    pub(crate) reference: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) platform: &'a Platform,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) build_args: HashMap<String, String>,
    /// A longer silence is a stall.
    pub(crate) stall_grace: Duration,
    pub(crate) shared_cache: Option<RuntimeCache>,
}

/// What a build reads.
struct Inputs {
    context: Arc<Context>,
    dockerfile: Dockerfile,
    credentials: Credentials,
    tasks: TaskTracker,
}

impl Inputs {
    /// What the build's session serves. `image` receives the image, if it goes through this process.
    fn services(&self, image: Option<Arc<ImageLoad>>) -> SessionServices {
        SessionServices {
            credentials: self.credentials.clone(),
            tasks: self.tasks.clone(),
            context: Some(Arc::clone(&self.context)),
            image,
        }
    }
}

impl Engine {
    /// Builds `context` and tags the image `reference` in this engine: with its own builder, or on the nodes of another
    /// one. Dropping the future cancels the build.
    pub(crate) async fn build(
        &self,
        nodes: Option<&Nodes>,
        build: Build<'_>,
        context: Context,
        tasks: &TaskTracker,
        emit: &Sink,
    ) -> Result<()> {
        let context = Arc::new(context);
        let _stop_on_drop = context.stop.on_drop();
        let read = {
            let (context, build_args) = (Arc::clone(&context), build.build_args.clone());
            move || Ok(context.dockerfile(&build_args))
        };
        let dockerfile = within(tasks, Code::Cache, &template_name(&context.tree), read).await?;
        let mut registries = dockerfile.registries().clone();
        if let Some(cache) = &build.shared_cache {
            if nodes.is_some() || self.builder == Builder::BuildKit {
                registries.insert(registry(&cache.repository).to_owned());
            }
            self.warn_of_unusable_cache(nodes.is_some(), cache.write, emit);
        }
        let inputs = Inputs {
            context,
            dockerfile,
            credentials: Credentials::new(
                self.settings.clone(),
                registries,
                tasks.clone(),
                Arc::clone(emit),
            ),
            tasks: tasks.clone(),
        };
        match nodes {
            None => {
                let place = Place {
                    engine: self,
                    worker: None,
                };
                let built = place.build(&build, &inputs, emit).await;
                built.map_err(|failed| failed.error)
            }
            Some(nodes) => self.build_on(nodes, &build, &inputs, emit).await,
        }
    }

    /// Warns, once for each client, if the builder cannot do all that is asked for with the shared cache.
    fn warn_of_unusable_cache(&self, on_nodes: bool, write: bool, emit: &Sink) {
        let Some(how) = self.builder.restricts_shared_cache(write) else {
            return;
        };
        if !on_nodes && !self.warned_of_cache.swap(true, Ordering::Relaxed) {
            let message = format!("the shared cache is {how}");
            emit(Event::warning(message, HINT_SHARED_CACHE));
        }
    }

    /// Builds on the first node, and if that is lost on the next one.
    async fn build_on(
        &self,
        nodes: &Nodes,
        build: &Build<'_>,
        inputs: &Inputs,
        emit: &Sink,
    ) -> Result<()> {
        self.warn_of_local_base_images(&inputs.dockerfile, emit)
            .await;
        let mut lost: Vec<(builders::Node, String)> = Vec::new();
        let mut interrupted = 0;
        for worker in &nodes.workers {
            let node = &worker.node;
            if let Some((before, why)) = lost.last() {
                let message = format!(
                    "the builder at {before} was lost: {why}; the build starts again at {node}"
                );
                emit(Event {
                    node: Some(before.to_string()),
                    ..Event::warning(message, "read the log of the builder that was lost")
                });
            }
            let place = Place {
                engine: self,
                worker: Some(worker),
            };
            let _running = nodes.start(node);
            match place.build(build, inputs, emit).await {
                Err(AttemptError {
                    remedy: Remedy::NextNode { why, begun },
                    ..
                }) => {
                    nodes.note_lost(node);
                    lost.push((node.clone(), why));
                    interrupted += u32::from(begun);
                    if interrupted == MAX_LOST_BUILDS {
                        break;
                    }
                }
                result => return result.map_err(|failed| failed.error),
            }
        }
        Err(builders::build_lost(&lost))
    }

    /// Warns of base images that were built or loaded in the engine: a builder can only pull them from a registry.
    async fn warn_of_local_base_images(&self, dockerfile: &Dockerfile, emit: &Sink) {
        for image in dockerfile.base_images().take(MAX_BASE_IMAGES) {
            match self.is_local_only(image).await {
                Ok(true) => {
                    let line = dockerfile.line_of_image(image).unwrap_or(0);
                    let message = format!(
                        "the base image {image} (line {line} of the Dockerfile) was built or loaded in the engine at \
                         {}; a builder can only pull it from its registry",
                        self.endpoint
                    );
                    emit(Event::warning(message, HINT_BASE_IMAGE_ONLY_HERE));
                }
                Ok(false) => {}
                // The build itself reports what is wrong with the engine.
                Err(_) => return,
            }
        }
    }
}

/// What to do about a base image that only the engine has.
const HINT_BASE_IMAGE_ONLY_HERE: &str =
    "push it to its registry, or build in the engine: unset MOLECULE_LOCAL_BUILDER";

impl Engine {
    /// Builds with BuildKit, which requests files and logins over a session.
    async fn buildkit(
        &self,
        build: &Build<'_>,
        cache: CacheUse<'_>,
        services: SessionServices,
        ended: CancellationToken,
    ) -> std::result::Result<impl Stream<Item = std::result::Result<BuildMessage, Failure>>, Failure>
    {
        let id = session_id();
        let version = self.api.version;
        // The engine keeps the files under the shared key, and requests only those whose size or time differs
        // from the previous build. Different commits can have files with the same size and time, so the
        // commit is the key.
        let session =
            Session::open(&self.address, version, &id, build.commit, services, ended).await?;
        let read: Vec<String> = (cache.read.into_iter())
            .map(RuntimeCache::reference)
            .collect();
        let options = build
            .options()
            .version(BuilderVersion::BuilderBuildKit)
            .cachefrom(&read.iter().collect::<Vec<_>>())
            .nocache(cache.no_cache)
            .remote("client-session")
            .session(&id);
        let request = self.build_request(&options.build(), None)?;
        let request = request.body(empty()).map_err(broken)?;
        let answer = send(&self.address, request).await?;
        Ok(answer::lines(answer).inspect(move |_| {
            // The session lives as long as the answer.
            let _ = &session;
        }))
    }

    /// Builds with a builder without sessions: all files and logins are part of the request.
    async fn archive(
        &self,
        build: &Build<'_>,
        inputs: &Inputs,
    ) -> std::result::Result<impl Stream<Item = std::result::Result<BuildMessage, Failure>>, Failure>
    {
        let Inputs { context, tasks, .. } = inputs;
        let buildah = self.builder == Builder::Buildah;
        let read = {
            let context = Arc::clone(context);
            move || match buildah {
                true => context.buildah_filter(),
                false => Ok((context.classic_filter()?, None)),
            }
        };
        let read = within(tasks, Code::Cache, &template_name(&context.tree), read).await;
        let (filter, excludes) = read.map_err(Failure::Local)?;
        let options = build.options().version(BuilderVersion::BuilderV1);
        let mut request = self
            .build_request(&options.build(), excludes.as_deref())?
            .header(CONTENT_TYPE, "application/x-tar");
        if let Some(logins) = inputs.credentials.header().await {
            request = request.header("X-Registry-Config", logins.as_str());
        }
        let archive = Arc::clone(context)
            .archive(filter, tasks)
            .map_ok(Frame::data);
        let body = StreamBody::new(archive).boxed_unsync();
        let answer = send(&self.address, request.body(body).map_err(broken)?).await?;
        Ok(answer::lines(answer))
    }

    fn build_request(
        &self,
        options: &BuildImageOptions,
        excludes: Option<&str>,
    ) -> std::result::Result<RequestBuilder, Failure> {
        let mut query = serde_urlencoded::to_string(options).map_err(broken)?;
        if let Some(excludes) = excludes {
            query += "&";
            query += &serde_urlencoded::to_string([("excludes", excludes)]).map_err(broken)?;
        }
        Ok(post(self.api.version, &format!("/build?{query}")))
    }
}

impl Build<'_> {
    fn options(&self) -> BuildImageOptionsBuilder {
        BuildImageOptionsBuilder::new()
            .dockerfile(DOCKERFILE)
            .t(self.reference)
            .platform(self.platform.as_str())
            .labels(&self.labels)
            .buildargs(&self.build_args)
            .rm(true)
            .forcerm(true)
    }
}

fn broken(error: impl std::error::Error + 'static) -> Failure {
    Failure::broken(&error)
}

/// A unique session id for each build.
fn session_id() -> String {
    let mut id = [0; 16];
    // It has to be unique, not secret.
    let seed = std::hash::RandomState::new();
    for (index, half) in id.chunks_mut(8).enumerate() {
        let hash = std::hash::BuildHasher::hash_one(&seed, (index, Instant::now()));
        half.copy_from_slice(&hash.to_le_bytes());
    }
    hex(&id)
}
