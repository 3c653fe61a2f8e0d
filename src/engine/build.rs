//! Step six, second half: the build itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard_stubs::query_parameters::{
    BuildImageOptions, BuildImageOptionsBuilder, BuilderVersion,
};
use futures_util::{Stream, StreamExt, TryStreamExt};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Builder as RequestBuilder;
use tokio_util::task::TaskTracker;

use super::Engine;
use super::buildkit::{Graph, is_internal};
use super::classic::Transcript;
use super::credentials::Credentials;
use super::platforms::unsupported_hint;
use super::request::{Failure, Info, post, send};
use super::session::{Offer, Session};
use super::watch::Watch;
use crate::context::{Context, DOCKERFILE, Dockerfile};
use crate::error::{Code, Error, FailedBuild, Result};
use crate::event::{Event, Kind, Sink};
use crate::image::{Platform, hex};
use crate::outside_file::within;

/// How often the upload says how far it is, and how often a stall is looked for.
const TICK: Duration = Duration::from_millis(200);

/// What BuildKit's solver says when a build meets the same one while that is being cancelled (seen with
/// Docker 20.10). A moment later it works.
const LOST_RACE: &str = "duplicate output";

/// What BuildKit says when the session breaks off on which it asks for files (gRPC's status for a
/// connection that is gone), or is gone when it looks for it.
const LOST_SESSION: [&str; 2] = ["rpc error: code = Unavailable", "no active session"];

/// What builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Builder {
    BuildKit,
    /// Docker's first one.
    Classic,
    /// Podman's, behind the classic builder's API.
    Buildah,
}

impl Builder {
    /// As events have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Builder::BuildKit => "buildkit",
            Builder::Classic => "classic",
            Builder::Buildah => "buildah",
        }
    }
}

/// What is to be built.
#[derive(Debug)]
pub(crate) struct Build<'a> {
    pub(crate) reference: &'a str,
    /// The commit that is built.
    pub(crate) commit: &'a str,
    pub(crate) platform: &'a Platform,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) build_args: HashMap<String, String>,
    /// The longest silence that is not a stall.
    pub(crate) stall_grace: Duration,
}

/// What reads the builder's answer: BuildKit sends its graph, the classic builder a text.
enum Reader {
    Graph(Graph),
    Transcript(Transcript),
}

impl Engine {
    /// Builds `context` and tags the image `reference`. The engine stops the build when the future
    /// is dropped.
    pub(crate) async fn build(
        &self,
        build: Build<'_>,
        context: Context,
        tasks: &TaskTracker,
        emit: &Sink,
    ) -> Result<()> {
        let context = Arc::new(context);
        let _until_the_end = context.stop.on_drop();
        emit(Event {
            builder: Some(self.builder.name().to_owned()),
            endpoint: Some(self.endpoint.clone()),
            ..Event::new(
                Kind::BuildStarted,
                format!("building with {} at {}", self.builder.name(), self.endpoint),
            )
        });
        match self.attempt(&build, &context, tasks, emit).await {
            Err(error) if error.message.contains(LOST_RACE) => {
                self.attempt(&build, &context, tasks, emit).await
            }
            result => result,
        }
    }

    async fn attempt(
        &self,
        build: &Build<'_>,
        context: &Arc<Context>,
        tasks: &TaskTracker,
        emit: &Sink,
    ) -> Result<()> {
        let read = {
            let (context, build_args) = (Arc::clone(context), build.build_args.clone());
            move || Ok(context.dockerfile(&build_args))
        };
        let dockerfile = within(tasks, Code::Cache, &described(context), read).await?;
        let registries = dockerfile.registries().clone();
        let credentials = Credentials::new(
            self.settings.clone(),
            registries,
            tasks.clone(),
            Arc::clone(emit),
        );
        let mut watch = Watch::new(Arc::clone(&context.sent), build.stall_grace, &**emit);
        let offer = Offer {
            context: Arc::clone(context),
            credentials,
            tasks: tasks.clone(),
        };
        let (mut answer, mut reader) = match self.builder {
            Builder::BuildKit => (
                futures_util::stream::once(self.buildkit(build, offer))
                    .try_flatten()
                    .boxed(),
                Reader::Graph(Graph::default()),
            ),
            Builder::Classic | Builder::Buildah => (
                futures_util::stream::once(self.archive(build, offer))
                    .try_flatten()
                    .boxed(),
                Reader::Transcript(Transcript::default()),
            ),
        };
        let mut ticks = tokio::time::interval(TICK);
        let end = loop {
            let info = tokio::select! {
                biased;
                item = answer.next() => match item {
                    Some(Ok(info)) => info,
                    Some(Err(failure)) => break Err(failure),
                    None => break Ok(()),
                },
                _ = ticks.tick() => {
                    watch.tick()?;
                    continue;
                }
            };
            watch.sign_of_life();
            let taken = match (&mut reader, info) {
                (Reader::Graph(graph), Info::Status(status)) => {
                    graph.take(&status, &mut watch).await
                }
                (Reader::Transcript(transcript), Info::Text(text)) => {
                    transcript.take(&text, &mut watch).await
                }
                _ => Ok(()),
            };
            if let Err(what) = taken {
                break Err(Failure::TooMuch(what));
            }
        };
        if let Some(error) = context.failure.get() {
            return Err(error.clone());
        }
        if let Reader::Transcript(transcript) = reader {
            let why = end.as_ref().err().map(ToString::to_string);
            transcript.end(why, &mut watch);
        }
        match end {
            Ok(()) => Ok(()),
            Err(failure) => {
                let error = self.build_error(build.platform, failure, &dockerfile, watch);
                Err(self.or_full(error).await)
            }
        }
    }

    /// Asks BuildKit, which asks us for what it needs over a session.
    async fn buildkit(
        &self,
        build: &Build<'_>,
        offer: Offer,
    ) -> std::result::Result<impl Stream<Item = std::result::Result<Info, Failure>>, Failure> {
        let id = session_id();
        let version = self.api.version;
        // The engine keeps what it was sent under this key, and goes by the size and the time of a file
        // to see whether it has changed. Two commits may have both in common.
        let session = Session::open(&self.address, version, &id, build.commit, offer)
            .await
            .map_err(|failure| match failure {
                // It says nothing of the template.
                Failure::Refused { .. } => Failure::Broken(failure.to_string()),
                failure => failure,
            })?;
        let options = build
            .options()
            .version(BuilderVersion::BuilderBuildKit)
            .remote("client-session")
            .session(&id);
        let request = self.build_request(&options.build())?;
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let answer = send(&self.address, request.body(body).map_err(broken)?).await?;
        Ok(answer.build_info().inspect(move |_| {
            // It lasts as long as the answer.
            let _ = &session;
        }))
    }

    /// Sends a builder without sessions everything at once.
    async fn archive(
        &self,
        build: &Build<'_>,
        offer: Offer,
    ) -> std::result::Result<impl Stream<Item = std::result::Result<Info, Failure>>, Failure> {
        let Offer {
            context,
            credentials,
            tasks,
        } = offer;
        let knows_its_own = self.builder == Builder::Buildah;
        let read = {
            let context = Arc::clone(&context);
            move || context.archive_filter(knows_its_own)
        };
        let filter = within(&tasks, Code::Cache, &described(&context), read).await;
        let filter = filter.map_err(Failure::Ours)?;
        let options = build.options().version(BuilderVersion::BuilderV1);
        let mut request = self
            .build_request(&options.build())?
            .header(CONTENT_TYPE, "application/x-tar");
        if let Some(logins) = credentials.header().await {
            request = request.header("X-Registry-Config", logins.as_str());
        }
        let archive = context.archive(filter, &tasks).map_ok(Frame::data);
        let body = StreamBody::new(archive).boxed_unsync();
        let answer = send(&self.address, request.body(body).map_err(broken)?).await?;
        Ok(answer.build_info())
    }

    fn build_request(
        &self,
        options: &BuildImageOptions,
    ) -> std::result::Result<RequestBuilder, Failure> {
        let query = serde_urlencoded::to_string(options).map_err(broken)?;
        Ok(post(self.api.version, &format!("/build?{query}")))
    }

    /// What the end of a failed build means.
    fn build_error(
        &self,
        platform: &Platform,
        failure: Failure,
        dockerfile: &Dockerfile,
        watch: Watch<'_>,
    ) -> Error {
        let endpoint = &self.endpoint;
        let broke_off = |why: &str| {
            let text = format!(
                "the connection to the engine at {endpoint} broke off during the build: {why}"
            );
            Error::new(Code::EngineUnreachable, text)
                .hint("see whether the engine was restarted, and try again")
        };
        let reason = match failure {
            // What the builder says; the classic one answers 400 or 500 to a wrong Dockerfile.
            Failure::Reported(reason)
            | Failure::Refused {
                status: 400 | 500,
                message: reason,
            } => reason,
            Failure::Refused { status, message } => {
                return Error::new(
                    Code::EngineUnreachable,
                    format!("the engine at {endpoint} answered {status}: {message}"),
                )
                .hint("see the engine's own log");
            }
            Failure::Broken(why) => return broke_off(&why),
            Failure::TooMuch(what) => {
                return Error::new(
                    Code::EngineUnreachable,
                    format!("the engine at {endpoint} sent {what} during the build, which was stopped"),
                )
                .hint("mend the template if its build has thousands of steps; else see the engine's own log");
            }
            Failure::Ours(error) => return error,
        };
        let (step, log_tail) = watch.end();
        // In a step of its own: what a step of the template says may look like it.
        if is_internal(&step) && LOST_SESSION.iter().any(|lost| reason.contains(lost)) {
            return broke_off(reason.trim());
        }
        let line = dockerfile.line_of(&step);
        let place = match (step.as_str(), line) {
            ("", _) => String::new(),
            (step, None) => format!(" in the step {step}"),
            (step, Some(line)) => format!(" in the step {step} (line {line} of the Dockerfile)"),
        };
        // The kernel says this of a program for another processor (execve, ENOEXEC).
        let foreign = [reason.as_str(), &log_tail]
            .iter()
            .any(|text| text.contains("exec format error"));
        let unsupported = reason.contains("operating system is not supported");
        let error = if foreign || unsupported {
            Error::new(
                Code::PlatformUnsupported,
                format!(
                    "the engine at {endpoint} cannot build for {platform}{place}: {}",
                    reason.trim()
                ),
            )
            .hint(unsupported_hint(platform))
        } else {
            Error::new(
                Code::BuildFailed,
                format!("the build failed{place}: {}", reason.trim()),
            )
            .hint("mend the template's Dockerfile, or what it needs, and try again")
        };
        error.in_build(FailedBuild {
            exit_code: exit_code(&reason).unwrap_or(0),
            line: line.unwrap_or(0),
            step,
            log_tail,
        })
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

/// What is read, for an error.
fn described(context: &Context) -> String {
    format!("the template in {}", context.tree.display())
}

fn broken(error: impl std::error::Error + 'static) -> Failure {
    Failure::broken(&error)
}

/// The exit code of the command that failed, which no builder tells but in words.
fn exit_code(reason: &str) -> Option<i32> {
    // BuildKit, the classic builder, Podman.
    ["exit code: ", "non-zero code: ", "exit status "]
        .iter()
        .find_map(|words| {
            let (_, rest) = reason.rsplit_once(words)?;
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        })
}

/// A new one for every build: the engine tells its clients apart by it.
fn session_id() -> String {
    let mut id = [0; 16];
    // Only uniqueness is needed here, not secrecy.
    let seed = std::hash::RandomState::new();
    for (index, half) in id.chunks_mut(8).enumerate() {
        let hash = std::hash::BuildHasher::hash_one(&seed, (index, Instant::now()));
        half.copy_from_slice(&hash.to_le_bytes());
    }
    hex(&id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_found_in_every_builders_words() {
        for (reason, expected) in [
            (
                "executor failed running [/bin/sh -c exit 3]: exit code: 3",
                Some(3),
            ),
            (
                "The command '/bin/sh -c exit 3' returned a non-zero code: 3",
                Some(3),
            ),
            (
                "building at STEP \"RUN exit 3\": while running runtime: exit status 3",
                Some(3),
            ),
            ("failed to solve: alpine: not found", None),
        ] {
            assert_eq!(exit_code(reason), expected, "{reason}");
        }
    }
}
