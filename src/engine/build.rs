//! Step six, second half: the build itself, and what it says meanwhile.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bollard::body_try_stream;
use bollard::errors::Error as E;
use bollard::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog};
use bollard::models::{BuildInfo, BuildInfoAux};
use bollard::query_parameters::{BuildImageOptionsBuilder, BuilderVersion};
use futures_util::StreamExt;

use super::{Engine, broken, deepest};
use crate::context::{Context, DOCKERFILE, Sent};
use crate::error::{Code, Error, Result};
use crate::event::{Event, Kind};
use crate::image::Platform;

/// How much of a build's output is kept for the error of a failed build.
const TAIL_LINES: usize = 50;

/// A longer line is cut: a build may print megabytes without a line break.
const MAX_LINE: usize = 4 * 1024;

/// How often the upload says how far it is, and how often a stall is looked for.
const TICK: Duration = Duration::from_millis(200);

/// The time limit that bollard sets for the beginning of the answer. With a context of many
/// gigabytes and a slow engine that is a long time; the stall grace ends what makes no progress.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

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
        let options = match self.builder {
            Builder::BuildKit => options
                .version(BuilderVersion::BuilderBuildKit)
                .session(&session_id()),
            Builder::Classic => options.version(BuilderVersion::BuilderV1),
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
        let docker = self.docker.clone().with_timeout(UPLOAD_TIMEOUT);
        let archive = body_try_stream(context.archive());
        let stream = docker.build_image(options.build(), None, Some(archive));
        let mut stream = std::pin::pin!(stream);
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                biased;
                item = stream.next() => match item {
                    None => break,
                    Some(Ok(info)) => watch.take(info),
                    Some(Err(error)) => return Err(watch.failed(&self.endpoint, error)),
                },
                _ = ticks.tick() => watch.tick()?,
            }
        }
        watch.end()
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
    crate::image::hex(&id)
}

/// Follows a build: turns what the engine says into events, keeps the tail of the output, and knows
/// when there was none for too long.
struct Watch<'a> {
    emit: &'a (dyn Fn(Event) + Send + Sync),
    steps: HashMap<String, Step>,
    count: u32,
    tail: VecDeque<String>,
    /// The classic builder's output, which is one text without steps.
    classic: Lines,
    failed_step: Option<String>,
    sent: Arc<Sent>,
    sent_before: u64,
    context_done: bool,
    exporting: Option<Instant>,
    stall_grace: Duration,
    last_sign: Instant,
}

/// A vertex of BuildKit's graph that stands for an instruction.
struct Step {
    number: u32,
    name: String,
    lines: Lines,
    started: bool,
    completed: bool,
}

impl<'a> Watch<'a> {
    fn new(
        sent: Arc<Sent>,
        stall_grace: Duration,
        emit: &'a (dyn Fn(Event) + Send + Sync),
    ) -> Self {
        Self {
            emit,
            steps: HashMap::new(),
            count: 0,
            tail: VecDeque::new(),
            classic: Lines::default(),
            failed_step: None,
            sent,
            sent_before: 0,
            context_done: false,
            exporting: None,
            stall_grace,
            last_sign: Instant::now(),
        }
    }

    fn take(&mut self, info: BuildInfo) {
        self.last_sign = Instant::now();
        if let Some(BuildInfoAux::BuildKit(status)) = info.aux {
            self.trace(status);
        }
        if let Some(text) = info.stream.or(info.status) {
            self.context_done();
            let lines = self.classic.push(text.as_bytes());
            for line in lines {
                self.classic_line(line);
            }
        }
    }

    fn trace(&mut self, status: StatusResponse) {
        for vertex in status.vertexes {
            if vertex.name.starts_with("exporting to ") {
                self.export(&vertex);
            } else if !is_internal(&vertex.name) {
                self.context_done();
                self.vertex(vertex);
            } else if !vertex.error.is_empty() {
                self.failed_step = Some(vertex.name);
            }
        }
        for VertexLog { vertex, msg, .. } in status.logs {
            let Some(step) = self.steps.get_mut(&vertex) else {
                continue;
            };
            let (number, name) = (step.number, step.name.clone());
            for line in step.lines.push(&msg) {
                self.log(line, Some((number, name.clone())));
            }
        }
        for warning in status.warnings {
            (self.emit)(Event {
                hint: Some(String::from_utf8_lossy(&warning.detail.concat()).into_owned()),
                ..Event::new(Kind::Warning, String::from_utf8_lossy(&warning.short))
            });
        }
    }

    fn vertex(&mut self, vertex: Vertex) {
        let known = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        let step = self.steps.entry(vertex.digest).or_insert_with(|| Step {
            number: 0,
            name: vertex.name,
            lines: Lines::default(),
            started: false,
            completed: false,
        });
        if step.number == 0 {
            if vertex.started.is_none() && vertex.completed.is_none() {
                return;
            }
            // In the order in which they begin, which is not that of the graph.
            self.count += 1;
            step.number = self.count;
        }
        let steps = known.max(step.number);
        let about = |kind, message: String| Event {
            step: Some(step.number),
            steps: Some(steps),
            step_name: Some(step.name.clone()),
            ..Event::new(kind, message)
        };
        if vertex.started.is_some() && !step.started {
            step.started = true;
            if !vertex.cached {
                (self.emit)(about(Kind::StepStarted, step.name.clone()));
            }
        }
        if vertex.completed.is_some() && !step.completed {
            step.completed = true;
            let error = (!vertex.error.is_empty()).then_some(vertex.error);
            // By the engine's own clock: a fast step begins and ends within one message.
            let started = vertex.started.map(|at| unix_ms(at.seconds, at.nanos));
            let completed = vertex.completed.map(|at| unix_ms(at.seconds, at.nanos));
            let took = completed
                .zip(started)
                .map_or(0, |(to, from)| to.saturating_sub(from));
            let outcome = match (&error, vertex.cached) {
                (Some(_), _) => "failed",
                (None, true) => "was cached",
                (None, false) => "done",
            };
            (self.emit)(Event {
                cached: Some(vertex.cached),
                duration_ms: Some(took),
                error: error.clone(),
                ..about(Kind::StepDone, format!("{}: {outcome}", step.name))
            });
            if error.is_some() {
                self.failed_step = Some(step.name.clone());
            }
            if let Some(line) = step.lines.rest() {
                let at = Some((step.number, step.name.clone()));
                self.log(line, at);
            }
        }
    }

    /// Writing the image takes long and says nothing, and is no stall.
    fn export(&mut self, vertex: &Vertex) {
        if vertex.started.is_some() && self.exporting.is_none() {
            self.exporting = Some(Instant::now());
            (self.emit)(Event::new(
                Kind::ExportStarted,
                "the engine writes the image",
            ));
        }
        if vertex.completed.is_some()
            && let Some(started) = self.exporting.take()
        {
            let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            (self.emit)(Event {
                duration_ms: Some(took),
                ..Event::new(Kind::ExportDone, "the engine has the image")
            });
        }
    }

    /// The classic builder tells its steps in its output, as `Step 2/5 : RUN make`; which one was
    /// the last to begin is all that is taken from there.
    fn classic_line(&mut self, line: String) {
        if let Some((_, name)) = line
            .strip_prefix("Step ")
            .and_then(|rest| rest.split_once(" : "))
        {
            self.count += 1;
            self.failed_step = Some(name.to_owned());
            (self.emit)(Event {
                step: Some(self.count),
                steps: Some(self.count),
                step_name: Some(name.to_owned()),
                ..Event::new(Kind::StepStarted, name)
            });
            return;
        }
        let at = self.failed_step.clone().map(|name| (self.count, name));
        self.log(line, at);
    }

    fn log(&mut self, line: String, at: Option<(u32, String)>) {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.clone());
        let (step, step_name) = at.unzip();
        (self.emit)(Event {
            step,
            step_name,
            line: Some(line.clone()),
            ..Event::new(Kind::Log, line)
        });
    }

    fn context_done(&mut self) {
        if !self.context_done {
            self.context_done = true;
            self.context(Kind::ContextDone, "the build context is sent");
        }
    }

    fn context(&self, kind: Kind, message: &str) {
        let (files, bytes) = (
            self.sent.files.load(Ordering::Relaxed),
            self.sent.bytes.load(Ordering::Relaxed),
        );
        (self.emit)(Event {
            files: Some(files),
            bytes: Some(bytes),
            ..Event::new(kind, format!("{message}: {files} files, {bytes} bytes"))
        });
    }

    fn tick(&mut self) -> Result<()> {
        let sent = self.sent.bytes.load(Ordering::Relaxed);
        if sent != self.sent_before {
            self.sent_before = sent;
            self.last_sign = Instant::now();
            if !self.context_done {
                self.context(Kind::ContextProgress, "sending the build context");
            }
        }
        if self.exporting.is_some() || self.last_sign.elapsed() < self.stall_grace {
            return Ok(());
        }
        let step = self.running_step();
        Err(Error::new(
            Code::Stalled,
            format!(
                "the build said nothing for {} seconds and was stopped, in the step {}",
                self.stall_grace.as_secs(),
                if step.is_empty() {
                    "before the first"
                } else {
                    &step
                },
            ),
        )
        .hint("if the step is only slow, raise MOLECULE_BUILD_STALL_GRACE_S")
        .in_build(step, self.tail_text()))
    }

    fn running_step(&self) -> String {
        self.steps
            .values()
            .filter(|step| step.started && !step.completed)
            .max_by_key(|step| step.number)
            .map(|step| step.name.clone())
            .or_else(|| self.failed_step.clone())
            .unwrap_or_default()
    }

    fn tail_text(&self) -> String {
        Vec::from(self.tail.clone()).join("\n")
    }

    /// What the end of a failed build means.
    fn failed(mut self, endpoint: &str, error: E) -> Error {
        let reason = match error {
            E::DockerStreamError { error } => error,
            E::DockerResponseServerError {
                message,
                status_code: 400..=499,
            } => message,
            E::DockerResponseServerError {
                message,
                status_code,
            } => {
                // The classic builder answers a wrong Dockerfile so.
                if status_code != 500 {
                    return Error::new(
                        Code::EngineUnreachable,
                        format!("the engine at {endpoint} answered {status_code}: {message}"),
                    );
                }
                message
            }
            E::IOError { .. } | E::HyperLegacyError { .. } | E::HyperResponseError { .. } => {
                return broken(endpoint, &error);
            }
            other => deepest(&other),
        };
        if let Some(line) = self.classic.rest() {
            self.classic_line(line);
        }
        let step = self.failed_step.clone().unwrap_or_default();
        let tail = self.tail_text();
        let place = if step.is_empty() {
            String::new()
        } else {
            format!(" in the step {step}")
        };
        Error::new(
            Code::BuildFailed,
            format!("the build failed{place}: {}", reason.trim()),
        )
        .hint("mend the template's Dockerfile, or what it needs, and try again")
        .in_build(step, tail)
    }

    fn end(mut self) -> Result<()> {
        if let Some(line) = self.classic.rest() {
            self.classic_line(line);
        }
        self.context_done();
        Ok(())
    }
}

/// What BuildKit does for itself: reading the Dockerfile, unpacking the context that was sent.
fn is_internal(vertex: &str) -> bool {
    vertex.starts_with("[internal] ") || vertex == "copy /context /"
}

fn unix_ms(seconds: i64, nanos: i32) -> u64 {
    u64::try_from(seconds * 1000 + i64::from(nanos) / 1_000_000).unwrap_or(0)
}

/// Cuts output into lines, whatever the pieces in which it comes: without escape sequences, and of a
/// bounded length.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn push(&mut self, output: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in output.split_inclusive(|byte| *byte == b'\n') {
            let room = MAX_LINE.saturating_sub(self.partial.len());
            self.partial
                .extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                lines.push(finish_line(&std::mem::take(&mut self.partial)));
            }
        }
        lines.retain(|line| !line.is_empty());
        lines
    }

    fn rest(&mut self) -> Option<String> {
        let line = finish_line(&std::mem::take(&mut self.partial));
        (!line.is_empty()).then_some(line)
    }
}

/// What a terminal would show of a line in the end: after the last carriage return, uncoloured.
fn finish_line(line: &[u8]) -> String {
    let line = line.trim_ascii_end();
    let shown = line.rsplit(|byte| *byte == b'\r').next().unwrap_or(line);
    String::from_utf8_lossy(&strip_ansi_escapes::strip(shown))
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        let mut lines = Lines::default();
        assert!(lines.push(b"one").is_empty());
        assert_eq!(lines.push(b" two\nthree\n\nfo"), ["one two", "three"]);
        assert_eq!(lines.rest().as_deref(), Some("fo"));
        assert_eq!(lines.rest(), None);
    }

    #[test]
    fn a_line_is_what_a_terminal_would_show() {
        let mut lines = Lines::default();
        assert_eq!(
            lines.push(b"\x1b[31mred\x1b[0m\n 10%\r 100%\nbad \xff byte\n"),
            ["red", " 100%", "bad \u{fffd} byte"]
        );
    }

    #[test]
    fn a_line_of_megabytes_is_cut_and_costs_no_memory() {
        let mut lines = Lines::default();
        for _ in 0..5000 {
            lines.push(&[b'x'; 1024]);
        }
        assert!(lines.partial.capacity() <= 2 * MAX_LINE);
        assert_eq!(lines.push(b"\n")[0].len(), MAX_LINE);
    }
}
