//! Step six, second half: the build itself.

mod buildkit;
mod classic;
mod credentials;
pub(super) mod full;
mod lines;
mod session;
mod watch;

pub(crate) use credentials::Logins;
#[cfg(feature = "internals")]
pub(crate) use lines::Lines;

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
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Engine;
use super::platforms::unsupported_hint;
use super::refusal::Refusal;
use crate::context::{Context, DOCKERFILE, Dockerfile};
use crate::engine::connect::request::{Failure, Info, post, send};
use crate::error::{Code, Error, FailedBuild, Result};
use crate::event::{Event, Kind, Sink};
use crate::names::image::{Platform, hex};
use crate::process::outside_file::within;
use buildkit::{Graph, is_internal};
use classic::Transcript;
use credentials::Credentials;
use session::{Offer, Session};
use watch::{End, Watch};

/// How often the upload says how far it is, and how often a stall is looked for.
const TICK: Duration = Duration::from_millis(200);

/// How long the end of a session may take to show after the build that it has ended.
const SESSION_END: Duration = Duration::from_millis(500);

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
        let read = {
            let (context, build_args) = (Arc::clone(&context), build.build_args.clone());
            move || Ok(context.dockerfile(&build_args))
        };
        let dockerfile = within(tasks, Code::Cache, &described(&context), read).await?;
        let offer = Offer {
            context: Arc::clone(&context),
            credentials: Credentials::new(
                self.settings.clone(),
                dockerfile.registries().clone(),
                tasks.clone(),
                Arc::clone(emit),
            ),
            tasks: tasks.clone(),
        };
        let attempt = || self.attempt(&build, &dockerfile, offer.clone(), emit);
        match attempt().await {
            Err(Failed { again: true, .. }) => attempt().await,
            result => result,
        }
        .map_err(|failed| failed.error)
    }

    async fn attempt(
        &self,
        build: &Build<'_>,
        dockerfile: &Dockerfile,
        offer: Offer,
        emit: &Sink,
    ) -> std::result::Result<(), Failed> {
        let context = Arc::clone(&offer.context);
        let mut watch = Watch::new(Arc::clone(&context.sent), build.stall_grace, &**emit);
        let session_ended = CancellationToken::new();
        let (mut answer, mut reader) = match self.builder {
            Builder::BuildKit => (
                futures_util::stream::once(self.buildkit(build, offer, session_ended.clone()))
                    .try_flatten()
                    .boxed(),
                Reader::Graph(Graph::default()),
            ),
            Builder::Classic | Builder::Buildah => (
                futures_util::stream::once(self.archive(build, offer))
                    .try_flatten()
                    .boxed(),
                Reader::Transcript(Transcript::new(self.builder)),
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
            return Err(error.clone().into());
        }
        if let Reader::Transcript(transcript) = reader {
            let why = end.as_ref().err().map(ToString::to_string);
            transcript.end(why, &mut watch);
        }
        let Err(failure) = end else {
            return Ok(());
        };
        let reason = match self.reason(failure) {
            Ok(reason) => reason,
            Err(error) => return Err(error.into()),
        };
        let end = watch.end();
        // BuildKit's own step fails when the session is gone on which it asks for files. A session that
        // ends with a step of the template has nothing to do with it.
        if is_internal(&end.failed.step) {
            let ended = tokio::time::timeout(SESSION_END, session_ended.cancelled());
            if ended.await.is_ok() {
                return Err(self.broke_off(reason.message.trim()).into());
            }
        }
        let again = is_lost_race(self.builder, &end, &reason);
        let error = self.build_error(build.platform, &reason, dockerfile, end);
        let error = self.or_full(error, &reason.message).await;
        Err(Failed { error, again })
    }

    /// Asks BuildKit, which asks us for what it needs over a session.
    async fn buildkit(
        &self,
        build: &Build<'_>,
        offer: Offer,
        ended: CancellationToken,
    ) -> std::result::Result<impl Stream<Item = std::result::Result<Info, Failure>>, Failure> {
        let id = session_id();
        let version = self.api.version;
        // The engine keeps what it was sent under this key, and goes by the size and the time of a file
        // to see whether it has changed. Two commits may have both in common.
        let session =
            Session::open(&self.address, version, &id, build.commit, offer, ended).await?;
        let options = build
            .options()
            .version(BuilderVersion::BuilderBuildKit)
            .remote("client-session")
            .session(&id);
        let request = self.build_request(&options.build(), None)?;
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
        let buildah = self.builder == Builder::Buildah;
        let read = {
            let context = Arc::clone(&context);
            move || match buildah {
                true => context.buildah_filter(),
                false => Ok((context.classic_filter()?, None)),
            }
        };
        let read = within(&tasks, Code::Cache, &described(&context), read).await;
        let (filter, excludes) = read.map_err(Failure::Ours)?;
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
        Ok(answer.build_info())
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

    /// What the builder says of the failure.
    ///
    /// # Errors
    ///
    /// What is no word of the builder's: of the connection, of a proxy, of this library.
    fn reason(&self, failure: Failure) -> Result<Reason> {
        let endpoint = &self.endpoint;
        let unreachable = |text: String| Error::new(Code::EngineUnreachable, text);
        Err(match failure {
            Failure::Reported { message, exit_code } => return Ok(Reason { message, exit_code }),
            // So the classic builder answers a wrong Dockerfile.
            Failure::Refused(Refusal {
                status: 400 | 500,
                upgrade: false,
                message,
                ..
            }) => {
                return Ok(Reason {
                    message,
                    exit_code: None,
                });
            }
            Failure::Refused(refusal) => {
                unreachable(format!("the engine at {endpoint} {refusal}")).hint(refusal.hint())
            }
            Failure::Broken(why) => self.broke_off(&why),
            Failure::TooMuch(what) => unreachable(format!(
                "the engine at {endpoint} sent {what} during the build, which was stopped"
            ))
            .hint("fix the template if its build has thousands of steps; else see the engine's own log"),
            Failure::Ours(error) => error,
        })
    }

    fn broke_off(&self, why: &str) -> Error {
        let text = format!(
            "the connection to the engine at {} broke off during the build: {why}",
            self.endpoint
        );
        Error::new(Code::EngineUnreachable, text)
            .hint("see whether the engine was restarted, and try again")
    }

    /// What the end of a failed build means.
    fn build_error(
        &self,
        platform: &Platform,
        reason: &Reason,
        dockerfile: &Dockerfile,
        end: End,
    ) -> Error {
        let endpoint = &self.endpoint;
        let exit_code = reason
            .exit_code
            .or_else(|| exit_code(self.builder, &reason.message));
        let foreign = is_foreign_program(&end.failed, exit_code);
        let End {
            failed: watch::Failed { step, .. },
            log_tail,
        } = end;
        let line = dockerfile.line_of(&step);
        let place = match (step.as_str(), line) {
            ("", _) => String::new(),
            (step, None) => format!(" in the step {step}"),
            (step, Some(line)) => format!(" in the step {step} (line {line} of the Dockerfile)"),
        };
        // The builders' own words have the command in them, which the place has too.
        let ended = exit_code
            .filter(|_| !step.is_empty())
            .map(|code| format!("exit code {code}"));
        let said = ended.as_deref().unwrap_or_else(|| reason.message.trim());
        let native = self.native_platform().ok();
        let native = native.as_ref().map(Platform::os_arch);
        let for_itself = native == Some(platform.os_arch());
        let for_another_system = native.is_some_and(|(os, _)| os != platform.os_arch().0);
        let (code, message, hint) = if foreign && for_itself {
            (
                Code::PlatformUnsupported,
                format!(
                    "the engine at {endpoint} runs {platform} and cannot run a program for another \
                     processor{place}: {said}"
                ),
                format!("use a base image and programs for {platform} in the Dockerfile"),
            )
        } else if foreign || for_another_system {
            (
                Code::PlatformUnsupported,
                format!("the engine at {endpoint} cannot build for {platform}{place}: {said}"),
                unsupported_hint(platform),
            )
        } else {
            (
                Code::BuildFailed,
                format!("the build failed{place}: {said}"),
                "fix the template's Dockerfile, or what it needs, and try again".to_owned(),
            )
        };
        Error::new(code, message).hint(hint).in_build(FailedBuild {
            exit_code: exit_code.unwrap_or(0),
            line: line.unwrap_or(0),
            step,
            log_tail,
        })
    }
}

/// Why an attempt has failed.
struct Failed {
    error: Error,
    /// A second attempt may work.
    again: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self {
            error,
            again: false,
        }
    }
}

/// What a builder says of a failed build.
struct Reason {
    message: String,
    /// That of the command that failed, if the builder has a field for it.
    exit_code: Option<i32>,
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

/// Has the build met one that was being cancelled, and lost what that had begun? A moment later it works.
///
/// Each message is compared from its begin to its end. A command that fails has a message of another form, with
/// the command in it.
fn is_lost_race(builder: Builder, end: &End, reason: &Reason) -> bool {
    match builder {
        Builder::BuildKit => {
            let error = end.failed.error.as_str();
            // Of a step that copies files or makes a folder (moby/buildkit issue 3748).
            let output = error.strip_prefix("duplicate output ");
            // Of any step, with the containerd image store (seen with Docker 28.5).
            let commit = error.strip_prefix("failed to commit ");
            output.is_some_and(|output| output.parse::<u32>().is_ok())
                || commit.is_some_and(|rest| rest.ends_with(" does not exist: not found"))
        }
        // The result of the step before was removed after it was found in the build cache.
        Builder::Classic => {
            let id = reason
                .message
                .strip_prefix("unable to find image \"sha256:");
            let id = id.and_then(|id| id.strip_suffix('"'));
            id.is_some_and(|id| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        }
        Builder::Buildah => false,
    }
}

/// Could the command not be started because it is for another processor (execve, ENOEXEC)?
///
/// No builder has a sign for that. The OCI runtime writes it in place of the command's output (runc up to 1.0, runc,
/// crun), and ends with its own exit code.
fn is_foreign_program(failed: &watch::Failed, exit_code: Option<i32>) -> bool {
    let line = failed.only_line().unwrap_or_default().to_ascii_lowercase();
    let runtime = line.starts_with("exec ") || line.contains("exec user process caused: ");
    runtime && line.ends_with(": exec format error") && matches!(exit_code, Some(1 | 255))
}

/// The exit code of the command that failed, for builders that tell it in words only: at the end, after the
/// command itself.
fn exit_code(builder: Builder, reason: &str) -> Option<i32> {
    let words = match builder {
        Builder::BuildKit => "exit code: ",
        Builder::Classic => "non-zero code: ",
        Builder::Buildah => "exit status ",
    };
    reason.trim_end().rsplit_once(words)?.1.parse().ok()
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
    fn the_exit_code_is_read_where_the_template_cannot_write() {
        use Builder::{BuildKit, Buildah, Classic};
        for (builder, reason, expected) in [
            (
                BuildKit,
                "executor failed running [/bin/sh -c exit 3]: exit code: 3",
                Some(3),
            ),
            (
                BuildKit,
                r#"process "/bin/sh -c echo exit code: 7; exit 3" did not complete successfully: exit code: 3"#,
                Some(3),
            ),
            (
                BuildKit,
                r#"executor failed running [/bin/sh -c echo "exit code: 7"]: runc died"#,
                None,
            ),
            (BuildKit, "failed to solve: alpine: not found", None),
            (
                Classic,
                "The command '/bin/sh -c echo exit code: 7; exit 3' returned a non-zero code: 3",
                Some(3),
            ),
            (
                Buildah,
                "building at STEP \"RUN echo exit status 7; exit 3\": while running runtime: exit status 3\n",
                Some(3),
            ),
            (
                Buildah,
                "building at STEP \"RUN echo exit status 7\": no such file",
                None,
            ),
        ] {
            assert_eq!(exit_code(builder, reason), expected, "{reason}");
        }
    }

    fn failed(error: &str, lines: &[&str]) -> End {
        let emit = |_| {};
        let mut watch = Watch::new(Arc::default(), Duration::from_secs(240), &emit);
        let step = watch::Step {
            number: 1,
            ..watch::Step::default()
        };
        watch.step_started(&step);
        for line in lines {
            watch.log((*line).to_owned(), Some(&step));
        }
        let outcome = watch::Outcome {
            error: Some(error.to_owned()),
            ..watch::Outcome::default()
        };
        watch.step_done(&step, outcome);
        watch.end()
    }

    #[test]
    fn a_lost_race_is_known_by_the_whole_message_of_the_builder() {
        let id = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945";
        let lost = |builder, error: &str| {
            let reason = Reason {
                message: error.to_owned(),
                exit_code: None,
            };
            is_lost_race(builder, &failed(error, &[]), &reason)
        };
        use Builder::{BuildKit, Buildah, Classic};
        assert!(lost(BuildKit, "duplicate output 0"));
        assert!(lost(
            BuildKit,
            "failed to commit rew3 to xp99 during finalize: failed to stat active key during commit: \
             snapshot rew3 does not exist: not found"
        ));
        assert!(lost(
            Classic,
            &format!("unable to find image \"sha256:{id}\"")
        ));
        for (builder, error) in [
            (
                BuildKit,
                "process \"/bin/sh -c echo duplicate output 0\" did not complete: exit code: 1",
            ),
            (BuildKit, "duplicate output files"),
            (
                BuildKit,
                "process \"/bin/sh -c failed to commit x: x does not exist: not found\" did not complete \
                 successfully: exit code: 1",
            ),
            (BuildKit, "no duplicate output 0"),
            (Classic, "unable to find image \"sha256:x\""),
            (
                Classic,
                "The command 'unable to find image \"sha256:\"' returned a non-zero code: 1",
            ),
            (Buildah, "duplicate output 0"),
        ] {
            assert!(!lost(builder, error), "{error}");
        }
    }

    #[test]
    fn a_foreign_program_is_known_by_the_only_line_of_its_step() {
        let foreign =
            |lines: &[&str], code| is_foreign_program(&failed("no", lines).failed, Some(code));
        for line in [
            "exec /bin/sh: exec format error",
            "exec container process `/prog`: Exec format error",
            "standard_init_linux.go:228: exec user process caused: exec format error",
        ] {
            assert!(foreign(&[line], 1) && foreign(&[line], 255), "{line}");
            assert!(!foreign(&[line], 3), "{line}");
            assert!(!foreign(&["before", line], 1), "{line}");
            assert!(!foreign(&[line, "after"], 1), "{line}");
        }
        for line in [
            "exec format error",
            "exec /bin/sh: exec format error?",
            "sh: exec format error",
        ] {
            assert!(!foreign(&[line], 1), "{line}");
        }
    }
}
