//! One attempt to build at one place, and whether another one may work.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;

use crate::engine::build::answer::BuildMessage;
use crate::engine::build::buildkit::{Graph, HINT_CACHE, is_internal};
use crate::engine::build::classic::Transcript;
use crate::engine::build::failure::{is_lost_race, may_be_cache_failure};
use crate::engine::build::monitor::BuildMonitor;
use crate::engine::build::place::Place;
use crate::engine::build::session::SessionServices;
use crate::engine::build::shared_cache::{self, CacheUse};
use crate::engine::build::solve::solve;
use crate::engine::build::transfer::{ImagePull, Transfer};
use crate::engine::build::{Build, Builder, Inputs};
use crate::engine::connect::grpc::END_TIMEOUT;
use crate::engine::connect::request::Failure;
use crate::error::{Code, Error, Result};
use crate::event::{Event, Kind, Sink};

/// How long BuildKit gets to cancel a build whose connection was closed. BuildKit shares a download between builds, so an
/// attempt that begins too early would wait for the download that hangs.
const CANCEL_TIME: Duration = Duration::from_secs(2);

/// The interval of upload progress and of the check for a stall.
const TICK: Duration = Duration::from_millis(200);

/// What to do about an image that cannot be transferred through a registry.
const HINT_THROUGH_REGISTRY: &str = "check that the builder can push to the registry of \
    MOLECULE_LOCAL_SHARED_CACHE and the engine can pull from it: both must reach it and trust its certificate; or set \
    MOLECULE_LOCAL_SHARED_CACHE_MODE=ro";

/// Why an attempt failed.
pub(super) struct AttemptError {
    pub(super) error: Error,
    pub(super) remedy: Remedy,
}

/// What may work after a failed attempt.
pub(super) enum Remedy {
    None,
    /// The same again: it lost a race with another build.
    Again,
    /// The same, but with the image through this process, because it cannot be transferred through a registry.
    ThroughClient {
        why: String,
    },
    /// The same without the shared cache, whose registry failed. `hangs` is whether it did not answer.
    WithoutCache {
        why: String,
        hangs: bool,
    },
    /// Another node, because the connection to this one was lost. `begun` is whether it had begun to build.
    NextNode {
        why: String,
        begun: bool,
    },
}

impl From<Error> for AttemptError {
    fn from(error: Error) -> Self {
        Self {
            error,
            remedy: Remedy::None,
        }
    }
}

impl Place<'_> {
    /// Builds, and again if another attempt may work here.
    pub(super) async fn build(
        &self,
        build: &Build<'_>,
        inputs: &Inputs,
        emit: &Sink,
    ) -> std::result::Result<(), AttemptError> {
        emit(Event {
            builder: Some(self.builder().name().to_owned()),
            endpoint: Some(self.endpoint()),
            ..Event::new(
                Kind::BuildStarted,
                format!(
                    "building with {} at {}",
                    self.builder().name(),
                    self.endpoint()
                ),
            )
        });
        let mut cache = self.cache(build, inputs, emit).await;
        let mut again = true;
        loop {
            let failed = match self.attempt(build, inputs, cache, emit).await {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            };
            match &failed.remedy {
                Remedy::Again if again => again = false,
                Remedy::ThroughClient { why } if let Some(refused) = cache.repository.take() => {
                    let message = format!(
                        "the image cannot be transferred through the registry ({refused}): {why}; the builder sends it \
                         to this process instead"
                    );
                    emit(Event::warning(message, HINT_THROUGH_REGISTRY));
                }
                Remedy::WithoutCache { why, hangs } if let Some(read) = cache.read.take() => {
                    if *hangs {
                        cache = CacheUse {
                            no_cache: true,
                            ..CacheUse::default()
                        };
                    }
                    let message = format!(
                        "the build starts again without the shared cache {}: {why}",
                        read.reference()
                    );
                    emit(Event::warning(message, HINT_CACHE));
                    if *hangs {
                        tokio::time::sleep(CANCEL_TIME).await;
                    }
                }
                _ => return Err(failed),
            }
        }
    }

    /// What the first attempt does with the shared cache. Warns if its registry does not answer.
    async fn cache<'a>(&self, build: &'a Build<'_>, inputs: &Inputs, emit: &Sink) -> CacheUse<'a> {
        let cache = build.shared_cache.as_ref();
        let Some(cache) = cache.filter(|_| self.builder() == Builder::BuildKit) else {
            return CacheUse::default();
        };
        let reference = cache.reference();
        let Inputs {
            credentials, tasks, ..
        } = inputs;
        let is_silent =
            self.registry_does_not_answer(&reference, build.platform, credentials, tasks);
        if !is_silent.await {
            return CacheUse::of(cache);
        }
        let message = format!(
            "the shared cache {reference} is not used: its registry did not answer {self} within {} seconds",
            shared_cache::LIMIT.as_secs()
        );
        emit(Event::warning(message, HINT_CACHE));
        CacheUse::default()
    }

    async fn attempt(
        &self,
        build: &Build<'_>,
        inputs: &Inputs,
        cache: CacheUse<'_>,
        emit: &Sink,
    ) -> std::result::Result<(), AttemptError> {
        let transfer = self
            .worker
            .map(|_| Transfer::new(self.engine, cache.repository));
        let context = &inputs.context;
        context.sent.begin();
        let sent = Arc::clone(&context.sent);
        let mut monitor = BuildMonitor::new(sent, transfer.clone(), build.stall_grace, &**emit);
        let session_ended = CancellationToken::new();
        let services = inputs.services(match &transfer {
            Some(Transfer::ThroughClient(load)) => Some(Arc::clone(load)),
            _ => None,
        });
        let mut progress = match self.builder() {
            Builder::BuildKit => Progress::Graph(Graph::default()),
            builder => Progress::Transcript(Transcript::new(builder)),
        };
        let ended = session_ended.clone();
        let mut answer = self.answer(build, inputs, cache, transfer.as_ref(), services, ended);
        // Only borrowed: the session, which lives as long as the answer, is still needed below.
        let end = follow(&mut answer, &mut progress, &mut monitor).await;
        if let Some(error) = context.failure.get() {
            return Err(error.clone().into());
        }
        if let Some(transfer) = &transfer
            && let Some(result) = self.transferred(transfer, &end, &mut monitor, emit)
        {
            return result;
        }
        let end = match end {
            Ok(end) => end,
            Err(stalled) => return Err(stall_failure(stalled, cache, &progress, &monitor)),
        };
        let (begun, has_cached) = match &progress {
            Progress::Graph(graph) => (graph.has_begun(), graph.has_cached()),
            Progress::Transcript(_) => (true, false),
        };
        if let Progress::Transcript(transcript) = progress {
            let why = end.as_ref().err().map(ToString::to_string);
            transcript.end(why, &mut monitor);
        }
        let Err(failure) = end else {
            return Ok(());
        };
        if let (Some(_), Failure::Broken(why)) = (self.worker, &failure) {
            return Err(self.lost(why, begun));
        }
        let reason = match self.reason(failure) {
            Ok(reason) => reason,
            Err(error) => return Err(error.into()),
        };
        let end = monitor.end();
        // An internal step of BuildKit fails if the session ends, because it loads the files through it. The
        // failure of a template's step has another cause.
        if is_internal(&end.failed.name) {
            let ended = tokio::time::timeout(END_TIMEOUT, session_ended.cancelled());
            if ended.await.is_ok() {
                return Err(self.lost(reason.message.trim(), begun));
            }
        }
        let reason = reason.of(&end.failed);
        let may_be_cache_failure =
            cache.read.is_some() && has_cached && may_be_cache_failure(&end.failed.name, &reason);
        let is_lost_race = is_lost_race(self.builder(), &end, &reason);
        let error = self.build_error(build.platform, &reason, &inputs.dockerfile, end);
        let error = error.await;
        let remedy = if is_lost_race {
            Remedy::Again
        } else if may_be_cache_failure {
            Remedy::WithoutCache {
                why: error.message(),
                hangs: false,
            }
        } else {
            Remedy::None
        };
        Err(AttemptError { error, remedy })
    }

    /// Starts the build. The stream has the builder's progress, and ends with the build; for an image that goes through
    /// a registry, with its pull.
    fn answer<'a>(
        &'a self,
        build: &'a Build<'_>,
        inputs: &'a Inputs,
        cache: CacheUse<'a>,
        transfer: Option<&Transfer>,
        services: SessionServices,
        ended: CancellationToken,
    ) -> BoxStream<'a, std::result::Result<BuildMessage, Failure>> {
        let (Some(worker), Some(transfer)) = (self.worker, transfer) else {
            return match self.builder() {
                Builder::BuildKit => start(self.engine.buildkit(build, cache, services, ended)),
                _ => start(self.engine.archive(build, inputs)),
            };
        };
        let to = transfer.clone();
        let built = start(solve(&worker.node, build, cache, to, services, ended));
        match transfer {
            Transfer::ThroughClient(_) => built,
            Transfer::ThroughRegistry(image) => {
                let into_engine = Arc::clone(image).into_engine(self.engine, build, inputs);
                built.chain(into_engine).boxed()
            }
        }
    }

    /// The result of an attempt that has ended, if the transfer of the image decides it.
    fn transferred(
        &self,
        transfer: &Transfer,
        end: &Result<std::result::Result<(), Failure>>,
        monitor: &mut BuildMonitor<'_>,
        emit: &Sink,
    ) -> Option<std::result::Result<(), AttemptError>> {
        if let Some(error) = transfer.failure() {
            return Some(Err(error.clone().into()));
        }
        let why = match end {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure.to_string()),
            Err(stalled) => Some(stalled.message()),
        };
        if transfer.is_complete() {
            monitor.export_done();
            // A shared cache is written after the image is sent.
            if let Some(why) = why {
                let message = format!("the image is complete, but {self} failed after that: {why}");
                emit(Event::warning(message, "read the builder's log"));
            }
            return Some(Ok(()));
        }
        if let Transfer::ThroughRegistry(image) = transfer
            && !monitor.downloads_result()
        {
            return self.not_through_registry(image, end, monitor).map(Err);
        }
        if why.is_some() {
            return None;
        }
        let message = format!("{self} has built the image, but did not send it");
        let error = Error::new(Code::BuildFailed, message).hint("read the builder's log");
        Some(Err(error.into()))
    }

    /// The error of an attempt whose image could not be pushed to the registry, or not be pulled from there.
    fn not_through_registry(
        &self,
        image: &ImagePull,
        end: &Result<std::result::Result<(), Failure>>,
        monitor: &BuildMonitor<'_>,
    ) -> Option<AttemptError> {
        let why = match (end, monitor.export_error()) {
            // An error of this process, such as too many open files.
            (Ok(Err(Failure::Local(_))), _) => return None,
            (Ok(Err(failure)), _) if image.is_pushed() => {
                format!("the engine cannot pull it: {failure}")
            }
            (Err(stalled), _) if monitor.has_exported() => stalled.message(),
            (Ok(Err(Failure::Reported { .. })), Some(error)) => error.to_owned(),
            _ => return None,
        };
        let error = Error::new(Code::BuildFailed, why.clone()).hint(HINT_THROUGH_REGISTRY);
        Some(AttemptError {
            error,
            remedy: Remedy::ThroughClient { why },
        })
    }

    /// The error of an attempt whose connection was lost.
    fn lost(&self, why: &str, begun: bool) -> AttemptError {
        AttemptError {
            error: self.connection_lost(why),
            remedy: match self.worker {
                Some(_) => Remedy::NextNode {
                    why: why.to_owned(),
                    begun,
                },
                None => Remedy::None,
            },
        }
    }
}

/// The failure of an attempt that was stopped because it made no progress.
fn stall_failure(
    stalled: Error,
    cache: CacheUse<'_>,
    progress: &Progress,
    monitor: &BuildMonitor<'_>,
) -> AttemptError {
    match progress {
        // No second attempt: BuildKit's scheduler hangs in the cache lookup, so a build without the cache would hang
        // too (see `shared_cache`).
        Progress::Graph(graph) if graph.waits_for_cache() => stalled
            .hint(format!(
                "the shared cache does not answer: {HINT_CACHE}, or unset MOLECULE_LOCAL_SHARED_CACHE"
            ))
            .into(),
        // Docker does not report the download of every cached result. So a stall outside of a step counts as one, too.
        Progress::Graph(graph)
            if cache.read.is_some()
                && (monitor.downloads_result() || graph.has_cached() && !is_in_step(&stalled)) =>
        {
            AttemptError {
                remedy: Remedy::WithoutCache {
                    why: stalled.message(),
                    hangs: true,
                },
                error: stalled,
            }
        }
        _ => stalled.into(),
    }
}

/// Whether a step was running.
fn is_in_step(stalled: &Error) -> bool {
    let build = stalled.build.as_ref();
    build.is_some_and(|build| !build.step.is_empty())
}

/// The builder's progress, once it has accepted the build.
fn start<'a, S>(
    accepted: impl Future<Output = std::result::Result<S, Failure>> + Send + 'a,
) -> BoxStream<'a, std::result::Result<BuildMessage, Failure>>
where
    S: Stream<Item = std::result::Result<BuildMessage, Failure>> + Send + 'a,
{
    futures_util::stream::once(accepted).try_flatten().boxed()
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
        info: BuildMessage,
        monitor: &mut BuildMonitor<'_>,
    ) -> std::result::Result<(), String> {
        match (self, info) {
            (Progress::Graph(graph), BuildMessage::Status(status)) => {
                graph.update(&status, monitor).await
            }
            (Progress::Transcript(transcript), BuildMessage::Text(text)) => {
                monitor.note_activity();
                transcript.update(&text, monitor).await
            }
            (Progress::Transcript(transcript), BuildMessage::Layer(status)) => {
                transcript.layer(status, monitor);
                Ok(())
            }
            _ => {
                monitor.note_activity();
                Ok(())
            }
        }
    }
}

/// Reads the builder's answer to its end, or to the first failure, which is the inner error.
///
/// # Errors
///
/// [`Code::Stalled`]
async fn follow(
    answer: &mut BoxStream<'_, std::result::Result<BuildMessage, Failure>>,
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
                if let Err(what) = progress.update(info, monitor).await {
                    return Ok(Err(Failure::InvalidAnswer(what)));
                }
            }
            _ = ticks.tick() => monitor.tick()?,
        }
    }
}
