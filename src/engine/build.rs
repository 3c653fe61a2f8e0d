//! Step six, second half: the build itself.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bollard::body_try_stream;
use bollard::errors::Error as E;
use bollard::models::BuildInfoAux;
use bollard::query_parameters::{BuildImageOptionsBuilder, BuilderVersion};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::buildkit::Graph;
use super::classic::Transcript;
use super::watch::Watch;
use super::{Engine, connect, deepest, told};
use crate::context::{Context, DOCKERFILE};
use crate::error::{Code, Error, Result, chain};
use crate::event::{Event, Kind};
use crate::image::{Platform, hex};

/// How often the upload says how far it is, and how often a stall is looked for.
const TICK: Duration = Duration::from_millis(200);

/// What builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Builder {
    BuildKit,
    Classic,
}

impl Builder {
    fn name(self) -> &'static str {
        match self {
            Builder::BuildKit => "buildkit",
            Builder::Classic => "classic",
        }
    }
}

/// What is to be built.
#[derive(Debug)]
pub(crate) struct Build<'a> {
    pub(crate) reference: &'a str,
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
        emit: &(dyn Fn(Event) + Send + Sync),
    ) -> Result<()> {
        let options = BuildImageOptionsBuilder::new()
            .dockerfile(DOCKERFILE)
            .t(build.reference)
            .platform(build.platform.as_str())
            .labels(&build.labels)
            .buildargs(&build.build_args)
            .rm(true)
            .forcerm(true);
        let (options, mut reader) = match self.builder {
            Builder::BuildKit => (
                options
                    .version(BuilderVersion::BuilderBuildKit)
                    .session(&session_id()),
                Reader::Graph(Graph::default()),
            ),
            Builder::Classic => (
                options.version(BuilderVersion::BuilderV1),
                Reader::Transcript(Transcript::default()),
            ),
        };
        emit(Event {
            builder: Some(self.builder.name().to_owned()),
            endpoint: Some(self.endpoint.clone()),
            ..Event::new(
                Kind::BuildStarted,
                format!("building with {} at {}", self.builder.name(), self.endpoint),
            )
        });

        let mut watch = Watch::new(context.sent(), build.stall_grace, emit);
        // Connections of its own, which end with the build: bollard leaves the one of BuildKit's
        // session to a task that waits for the engine to close it, and the engine waits for us.
        let hang_up = CancellationToken::new();
        let _hang_up = hang_up.clone().drop_guard();
        let version = self.docker.client_version();
        let docker = connect::client(&self.address, &version, hang_up)
            .map_err(|error| told(&self.endpoint, &error))?;
        let archive = body_try_stream(context.archive());
        let stream = docker.build_image(options.build(), None, Some(archive));
        let mut stream = std::pin::pin!(stream);
        let mut ticks = tokio::time::interval(TICK);
        let end = loop {
            let info = tokio::select! {
                biased;
                item = stream.next() => match item {
                    Some(Ok(info)) => info,
                    Some(Err(error)) => break Err(error),
                    None => break Ok(()),
                },
                _ = ticks.tick() => {
                    watch.tick()?;
                    continue;
                }
            };
            watch.sign_of_life();
            match (&mut reader, info.aux, info.stream) {
                (Reader::Graph(graph), Some(BuildInfoAux::BuildKit(status)), _) => {
                    graph.take(status, &mut watch);
                }
                (Reader::Transcript(transcript), _, Some(text)) => {
                    transcript.take(&text, &mut watch);
                }
                _ => {}
            }
        };
        if let Reader::Transcript(transcript) = reader {
            let why = end.as_ref().err().map(|error| deepest(error));
            transcript.end(why, &mut watch);
        }
        end.map_err(|error| self.build_error(build.platform, error, watch))
    }

    /// What the end of a failed build means.
    fn build_error(&self, platform: &Platform, error: E, watch: Watch<'_>) -> Error {
        let endpoint = &self.endpoint;
        let reason = match error {
            // What the builder says; the classic one answers 400 or 500 to a wrong Dockerfile.
            E::DockerStreamError { error: reason }
            | E::DockerResponseServerError {
                status_code: 400 | 500,
                message: reason,
            } => reason,
            E::DockerResponseServerError {
                status_code,
                message,
            } => {
                return Error::new(
                    Code::EngineUnreachable,
                    format!("the engine at {endpoint} answered {status_code}: {message}"),
                )
                .hint("see the engine's own log");
            }
            E::IOError { .. } | E::HyperLegacyError { .. } | E::HyperResponseError { .. } => {
                return Error::new(
                    Code::EngineUnreachable,
                    format!(
                        "the connection to the engine at {endpoint} broke off during the build: {}",
                        chain(&error)
                    ),
                )
                .hint("see whether the engine was restarted, and try again");
            }
            other => deepest(&other),
        };
        let (step, log_tail) = watch.end();
        let place = match step.as_str() {
            "" => String::new(),
            step => format!(" in the step {step}"),
        };
        // The kernel says this of a program for another processor (execve, ENOEXEC).
        let foreign = [reason.as_str(), &log_tail]
            .iter()
            .any(|text| text.contains("exec format error"));
        let unsupported = reason.contains("operating system is not supported");
        let error = if foreign || unsupported {
            let (os, arch) = platform.os_arch();
            let hint = if unsupported {
                format!(
                    "use an engine that runs {os} containers, or another MOLECULE_IMAGE_PLATFORM"
                )
            } else {
                format!(
                    "register emulation on the engine's machine (docker run --privileged --rm \
                     tonistiigi/binfmt --install {arch}, or the package qemu-user-static), or set \
                     MOLECULE_IMAGE_PLATFORM=native"
                )
            };
            Error::new(
                Code::PlatformUnsupported,
                format!(
                    "the engine at {endpoint} cannot build for {platform}{place}: {}",
                    reason.trim()
                ),
            )
            .hint(hint)
        } else {
            Error::new(
                Code::BuildFailed,
                format!("the build failed{place}: {}", reason.trim()),
            )
            .hint("mend the template's Dockerfile, or what it needs, and try again")
        };
        error.in_build(step, log_tail)
    }
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
