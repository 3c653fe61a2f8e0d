//! Builds an image with the engine's builder: BuildKit, the classic builder, or Podman's Buildah.

mod answer;
mod base_image;
mod buildkit;
mod classic;
mod credentials;
mod failure;
pub(super) mod full;
mod lines;
mod monitor;
mod pull;
mod session;
mod step;

pub(crate) use credentials::Logins;
#[cfg(feature = "internals")]
pub(crate) use lines::Lines;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard_stubs::query_parameters::{
    BuildImageOptions, BuildImageOptionsBuilder, BuilderVersion,
};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Builder as RequestBuilder;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Engine;
use crate::context::{Context, DOCKERFILE, Dockerfile, described};
use crate::engine::connect::request::{Failure, post, send};
use crate::error::{Code, Error, Result};
use crate::event::{Event, Kind, Sink};
use crate::names::reference::{Platform, hex};
use crate::process::outside_file::within;
use answer::Info;
use buildkit::{Graph, is_internal};
use classic::Transcript;
use credentials::Credentials;
use failure::is_lost_race;
use monitor::BuildMonitor;
use session::{Session, SessionServices};

/// The interval of upload progress and of the check for a stall.
const TICK: Duration = Duration::from_millis(200);

/// How long after a failed build its session may still end, to count as the cause.
const SESSION_END: Duration = Duration::from_millis(500);

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
}

/// The parameters of a build.
#[derive(Debug)]
pub(crate) struct Build<'a> {
    pub(crate) reference: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) platform: &'a Platform,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) build_args: HashMap<String, String>,
    /// A longer silence is a stall.
    pub(crate) stall_grace: Duration,
}

/// The parser of the builder's progress: BuildKit sends its graph, the other builders a text.
enum Progress {
    Graph(Graph),
    Transcript(Transcript),
}

impl Progress {
    /// # Errors
    ///
    /// A description of what is invalid or exceeds its limit.
    async fn update(
        &mut self,
        info: Info,
        monitor: &mut BuildMonitor<'_>,
    ) -> std::result::Result<(), String> {
        match (self, info) {
            (Progress::Graph(graph), Info::Status(status)) => graph.update(&status, monitor).await,
            (Progress::Transcript(transcript), Info::Text(text)) => {
                transcript.update(&text, monitor).await
            }
            (Progress::Transcript(transcript), Info::Layer(status)) => {
                transcript.layer(status, monitor);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Reads the builder's answer to its end, or to the first failure, which is the inner error.
///
/// # Errors
///
/// [`Code::Stalled`]
async fn follow(
    answer: &mut BoxStream<'_, std::result::Result<Info, Failure>>,
    progress: &mut Progress,
    monitor: &mut BuildMonitor<'_>,
) -> Result<std::result::Result<(), Failure>> {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            biased;
            item = answer.next() => {
                let info = match item {
                    Some(Ok(info)) => info,
                    Some(Err(failure)) => return Ok(Err(failure)),
                    None => return Ok(Ok(())),
                };
                monitor.note_activity();
                if let Err(what) = progress.update(info, monitor).await {
                    return Ok(Err(Failure::LimitExceeded(what)));
                }
            }
            _ = ticks.tick() => monitor.tick()?,
        }
    }
}

impl Engine {
    /// Builds `context` and tags the image `reference`. Dropping the future cancels the build.
    pub(crate) async fn build(
        &self,
        build: Build<'_>,
        context: Context,
        tasks: &TaskTracker,
        emit: &Sink,
    ) -> Result<()> {
        let context = Arc::new(context);
        let _stop_on_drop = context.stop.on_drop();
        emit(Event {
            builder: Some(self.builder.name().to_owned()),
            endpoint: Some(self.endpoint.clone()),
            ..Event::new(
                Kind::BuildStarted,
                format!("building with {} at {}", self.builder.name(), self.endpoint),
            )
        });
        let read = {
            let (context, build_args) = (Arc::clone(&context), build.build_args.clone());
            move || Ok(context.dockerfile(&build_args))
        };
        let dockerfile = within(tasks, Code::Cache, &described(&context.tree), read).await?;
        let services = SessionServices {
            context: Arc::clone(&context),
            credentials: Credentials::new(
                self.settings.clone(),
                dockerfile.registries().clone(),
                tasks.clone(),
                Arc::clone(emit),
            ),
            tasks: tasks.clone(),
        };
        let attempt = || self.attempt(&build, &dockerfile, services.clone(), emit);
        match attempt().await {
            Err(AttemptError {
                retryable: true, ..
            }) => attempt().await,
            result => result,
        }
        .map_err(|failed| failed.error)
    }

    async fn attempt(
        &self,
        build: &Build<'_>,
        dockerfile: &Dockerfile,
        services: SessionServices,
        emit: &Sink,
    ) -> std::result::Result<(), AttemptError> {
        let context = Arc::clone(&services.context);
        let mut monitor = BuildMonitor::new(Arc::clone(&context.sent), build.stall_grace, &**emit);
        let session_ended = CancellationToken::new();
        let (mut answer, mut progress) = match self.builder {
            Builder::BuildKit => (
                futures_util::stream::once(self.buildkit(build, services, session_ended.clone()))
                    .try_flatten()
                    .boxed(),
                Progress::Graph(Graph::default()),
            ),
            Builder::Classic | Builder::Buildah => (
                futures_util::stream::once(self.archive(build, services))
                    .try_flatten()
                    .boxed(),
                Progress::Transcript(Transcript::new(self.builder)),
            ),
        };
        // Only borrowed: the session, which lives as long as the answer, is still needed below.
        let end = follow(&mut answer, &mut progress, &mut monitor).await?;
        if let Some(error) = context.failure.get() {
            return Err(error.clone().into());
        }
        if let Progress::Transcript(transcript) = progress {
            let why = end.as_ref().err().map(ToString::to_string);
            transcript.end(why, &mut monitor);
        }
        let Err(failure) = end else {
            return Ok(());
        };
        let mut reason = match self.reason(failure) {
            Ok(reason) => reason,
            Err(error) => return Err(error.into()),
        };
        let end = monitor.end();
        // An internal step of BuildKit fails if the session ends, because it loads the files through it. The
        // failure of a template's step has another cause.
        if is_internal(&end.failed.name) {
            let ended = tokio::time::timeout(SESSION_END, session_ended.cancelled());
            if ended.await.is_ok() {
                return Err(self.connection_lost(reason.message.trim()).into());
            }
        }
        reason.message = end.failed.reason(&reason.message).to_owned();
        let retryable = is_lost_race(self.builder, &end, &reason);
        let error = self.build_error(build.platform, &reason, dockerfile, end);
        Err(AttemptError {
            error: error.await,
            retryable,
        })
    }

    /// Builds with BuildKit, which requests files and logins over a session.
    async fn buildkit(
        &self,
        build: &Build<'_>,
        services: SessionServices,
        ended: CancellationToken,
    ) -> std::result::Result<impl Stream<Item = std::result::Result<Info, Failure>>, Failure> {
        let id = session_id();
        let version = self.api.version;
        // The engine keeps the files under the shared key, and requests only those whose size or time differs
        // from the previous build. Different commits can have files with the same size and time, so the
        // commit is the key.
        let session =
            Session::open(&self.address, version, &id, build.commit, services, ended).await?;
        let options = build
            .options()
            .version(BuilderVersion::BuilderBuildKit)
            .remote("client-session")
            .session(&id);
        let request = self.build_request(&options.build(), None)?;
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let answer = send(&self.address, request.body(body).map_err(broken)?).await?;
        Ok(answer::lines(answer).inspect(move |_| {
            // The session lives as long as the answer.
            let _ = &session;
        }))
    }

    /// Builds with a builder without sessions: all files and logins are part of the request.
    async fn archive(
        &self,
        build: &Build<'_>,
        services: SessionServices,
    ) -> std::result::Result<impl Stream<Item = std::result::Result<Info, Failure>>, Failure> {
        let SessionServices {
            context,
            credentials,
            tasks,
        } = services;
        let buildah = self.builder == Builder::Buildah;
        let read = {
            let context = Arc::clone(&context);
            move || match buildah {
                true => context.buildah_filter(),
                false => Ok((context.classic_filter()?, None)),
            }
        };
        let read = within(&tasks, Code::Cache, &described(&context.tree), read).await;
        let (filter, excludes) = read.map_err(Failure::Local)?;
        let options = build.options().version(BuilderVersion::BuilderV1);
        let mut request = self
            .build_request(&options.build(), excludes.as_deref())?
            .header(CONTENT_TYPE, "application/x-tar");
        if let Some(logins) = credentials.header().await {
            request = request.header("X-Registry-Config", logins.as_str());
        }
        let archive = context.archive(filter, &tasks).map_ok(Frame::data);
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

/// Why an attempt failed.
struct AttemptError {
    error: Error,
    /// A second attempt may work.
    retryable: bool,
}

impl From<Error> for AttemptError {
    fn from(error: Error) -> Self {
        Self {
            error,
            retryable: false,
        }
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
