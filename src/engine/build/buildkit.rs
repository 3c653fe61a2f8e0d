//! The progress of a BuildKit build: the vertexes of its graph, and the output of each.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{VertexLog, VertexStatus};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message};

use crate::engine::build::lines::Lines;
use crate::engine::build::monitor::{BuildMonitor, MAX_STEPS, Outcome, YIELD_AFTER};
use crate::engine::build::pull::{Action, LayerStatus};
use crate::engine::build::step::Step;
use crate::redact::MAX_KEPT;

/// The vertexes seen so far, by digest.
#[derive(Default)]
pub(super) struct Graph {
    vertexes: HashMap<String, VertexState>,
    started: u32,
    /// The build loads the template's files.
    loads_context: bool,
    base_images: HashSet<String>,
    /// A shared cache is being looked up.
    waits_for_cache: bool,
    /// The result of a step came from a cache, or its download began.
    has_cached: bool,
    /// The memory used for the vertexes' names and unfinished lines.
    bytes: usize,
}

/// The limit of [`Graph::bytes`].
const MAX_BYTES: usize = 8 << 20;

/// The most base images that are reported.
const MAX_BASE_IMAGES: usize = 1000;

/// The most fields of a message. BuildKit splits messages long before that.
const MAX_FIELDS: usize = 100_000;

// The numbers of the fields of a `StatusResponse` (github.com/moby/buildkit,
// `api/services/control/control.proto`).
const VERTEX: u32 = 1;
const STATUS: u32 = 2;
const LOG: u32 = 3;
const WARNING: u32 = 4;

/// Not the generated `Vertex`: that has a list of inputs, in which two bytes of a message take 24 in memory.
#[derive(Clone, PartialEq, prost::Message)]
struct Vertex {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(bool, tag = "4")]
    cached: bool,
    #[prost(message, optional, tag = "5")]
    started: Option<Timestamp>,
    #[prost(message, optional, tag = "6")]
    completed: Option<Timestamp>,
    #[prost(string, tag = "7")]
    error: String,
}

/// Why a message cannot be decoded.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error(transparent)]
    Encoding(#[from] DecodeError),
    #[error("it ends too early")]
    Short,
    #[error("it has more than {MAX_FIELDS} fields")]
    Many,
}

/// Emits a warning. It is not decoded as a whole, because nothing limits the number of its detail lines.
fn warning(encoded: &[u8], monitor: &mut BuildMonitor<'_>) -> Result<(), Malformed> {
    const SHORT: u32 = 3;
    const DETAIL: u32 = 4;
    let (mut short, mut detail) = (Vec::new(), Vec::new());
    for field in fields(encoded) {
        match field? {
            (SHORT, value) => short = value.to_vec(),
            (DETAIL, value) => detail.extend_from_slice(value),
            _ => {}
        }
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    monitor.warning(text(&short), text(&detail));
    Ok(())
}

/// The length-delimited fields of a message, with their numbers, without decoding them.
fn fields(message: &[u8]) -> impl Iterator<Item = Result<(u32, &[u8]), Malformed>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            match take_field(&mut rest) {
                Ok(None) => {}
                Ok(Some(field)) => return Some(Ok(field)),
                Err(error) => {
                    rest = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    })
}

/// Takes a field from the start of `rest`; `None` if it is not length-delimited.
fn take_field<'m>(rest: &mut &'m [u8]) -> Result<Option<(u32, &'m [u8])>, Malformed> {
    let (tag, wire) = decode_key(rest)?;
    if wire != WireType::LengthDelimited {
        skip_field(wire, tag, rest, DecodeContext::default())?;
        return Ok(None);
    }
    let length = usize::try_from(decode_varint(rest)?).unwrap_or(usize::MAX);
    let (value, remaining) = rest.split_at_checked(length).ok_or(Malformed::Short)?;
    *rest = remaining;
    Ok(Some((tag, value)))
}

/// A vertex of an instruction of the Dockerfile.
struct VertexState {
    step: Step,
    lines: Lines,
    started: bool,
    completed: bool,
}

impl Graph {
    /// Whether a shared cache is being looked up.
    pub(super) fn waits_for_cache(&self) -> bool {
        self.waits_for_cache
    }

    /// Whether a step of the Dockerfile has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.started > 0
    }

    /// Whether the result of a step came from a cache, or its download began. Base images do not count.
    pub(super) fn has_cached(&self) -> bool {
        self.has_cached
    }

    /// Handles an encoded `StatusResponse`.
    ///
    /// # Errors
    ///
    /// A description of what is invalid or exceeds its limit.
    pub(super) async fn update(
        &mut self,
        status: &[u8],
        monitor: &mut BuildMonitor<'_>,
    ) -> Result<(), String> {
        self.read(status, monitor)
            .await
            .map_err(|error| format!("progress that cannot be read ({error})"))?;
        if self.vertexes.len() > MAX_STEPS {
            return Err(format!("more than {MAX_STEPS} steps"));
        }
        if self.bytes > MAX_BYTES {
            let limit = MAX_BYTES >> 20;
            return Err(format!(
                "more than {limit} MiB of names and unfinished lines"
            ));
        }
        Ok(())
    }

    /// Decodes field by field: a field of two bytes can decode to a struct of hundreds.
    async fn read(
        &mut self,
        status: &[u8],
        monitor: &mut BuildMonitor<'_>,
    ) -> Result<(), Malformed> {
        if fields(status).nth(MAX_FIELDS).is_some() {
            return Err(Malformed::Many);
        }
        // First, because the vertexes of a message are not ordered. The completion of this vertex is ignored:
        // it completes and starts again before the files are requested.
        for field in fields(status) {
            let (tag, value) = field?;
            if tag != STATUS {
                monitor.note_activity();
            }
            if tag == VERTEX && !self.loads_context {
                self.loads_context = Vertex::decode(value)?.name == LOAD_CONTEXT;
            }
        }
        if self.loads_context && monitor.upload_is_complete() {
            monitor.context_done();
        }
        // A fast step starts, writes and completes in one message: handle the starts, then the output, then
        // the ends.
        for field in fields(status) {
            let (tag, value) = field?;
            if tag == VERTEX {
                let start = Vertex {
                    completed: None,
                    error: String::new(),
                    ..Vertex::decode(value)?
                };
                self.vertex(start, monitor);
            }
        }
        for field in fields(status) {
            let (tag, value) = field?;
            match tag {
                STATUS => self.layer(VertexStatus::decode(value)?, monitor),
                LOG => self.log(&VertexLog::decode(value)?, monitor).await,
                WARNING => warning(value, monitor)?,
                _ => {}
            }
        }
        for field in fields(status) {
            let (tag, value) = field?;
            if tag == VERTEX {
                self.vertex(Vertex::decode(value)?, monitor);
            }
        }
        Ok(())
    }

    fn vertex(&mut self, vertex: Vertex, monitor: &mut BuildMonitor<'_>) {
        if vertex.name.starts_with("exporting to ") {
            if vertex.started.is_some() {
                monitor.context_done();
                monitor.export_started();
            }
            match vertex.error.as_str() {
                "" if vertex.completed.is_some() => monitor.export_done(),
                "" => {}
                error => monitor.export_failed(error.to_owned()),
            }
        } else if vertex.name.starts_with(CACHE_IMPORT) || vertex.name.starts_with(CACHE_EXPORT) {
            if vertex.name.starts_with(CACHE_IMPORT) {
                self.waits_for_cache = vertex.started.is_some() && vertex.completed.is_none();
            }
            if !vertex.error.is_empty() && !vertex.error.ends_with(CACHE_NOT_WRITTEN) {
                let what = format!(
                    "the shared cache cannot be used: {}: {}",
                    vertex.name, vertex.error
                );
                monitor.warning(what, HINT_CACHE.to_owned());
            }
        } else if !is_internal(&vertex.name) {
            if self.vertexes.len() <= MAX_STEPS {
                self.step(vertex, monitor);
            }
        } else {
            if vertex.started.is_some() {
                self.base_image(&vertex.name, monitor);
            }
            if !vertex.error.is_empty() {
                monitor.internal_step_failed(vertex.name, vertex.error);
            }
        }
    }

    /// Reports a base image, once.
    fn base_image(&mut self, vertex: &str, monitor: &mut BuildMonitor<'_>) {
        let Some(image) = vertex.strip_prefix(LOAD_METADATA) else {
            return;
        };
        let room = self.base_images.len() < MAX_BASE_IMAGES;
        if image.len() <= MAX_KEPT && room && self.base_images.insert(image.to_owned()) {
            self.bytes += image.len();
            monitor.base_image(image.to_owned());
        }
    }

    /// Reports the progress of a layer. Other statuses are those of sub-steps, such as "resolve".
    fn layer(&mut self, status: VertexStatus, monitor: &mut BuildMonitor<'_>) {
        let Some(state) = self.vertexes.get(&status.vertex) else {
            return monitor.note_activity();
        };
        let (action, layer) = match status.id.strip_prefix("extracting ") {
            Some(layer) => (Action::Extract, layer),
            // Docker uses this id for the download of a step's result, at its start and at its end.
            None => (
                Action::Download,
                status.id.strip_prefix("pulling ").unwrap_or(&status.id),
            ),
        };
        if layer.starts_with("sha256:") {
            self.has_cached |= !state.step.is_base_image();
            let layer = LayerStatus {
                layer: layer.to_owned(),
                action,
                bytes: u64::try_from(status.current).unwrap_or(0),
                total: u64::try_from(status.total).unwrap_or(0),
                complete: status.completed.is_some(),
            };
            monitor.pulling(&state.step, layer);
        } else {
            monitor.note_activity();
        }
    }

    async fn log(&mut self, log: &VertexLog, monitor: &mut BuildMonitor<'_>) {
        let Some(state) = self.vertexes.get_mut(&log.vertex) else {
            return;
        };
        if log.stream == STDOUT {
            monitor.stdout(&state.step);
        }
        let before = state.lines.unfinished();
        for piece in log.msg.chunks(YIELD_AFTER) {
            let step = &state.step;
            state
                .lines
                .each(piece, |line| monitor.log(line, Some(step)));
            tokio::task::yield_now().await;
        }
        self.bytes = self.bytes + state.lines.unfinished() - before;
    }

    fn step(&mut self, vertex: Vertex, monitor: &mut BuildMonitor<'_>) {
        let mut name = vertex.name;
        name.truncate(name.floor_char_boundary(MAX_KEPT));
        if !self.vertexes.contains_key(&vertex.digest) {
            self.bytes += name.len() + vertex.digest.len();
        }
        let state = self
            .vertexes
            .entry(vertex.digest)
            .or_insert_with(|| VertexState {
                step: Step {
                    name,
                    ..Step::default()
                },
                lines: Lines::default(),
                started: false,
                completed: false,
            });
        // Steps are numbered in the order in which they start, which is not that of the graph.
        if state.step.number == 0 && (vertex.started.is_some() || vertex.completed.is_some()) {
            self.started += 1;
            state.step.number = self.started;
        }
        let step = state.step.clone();
        // Base images are resolved while the context loads. Any other step starts after that, or the build
        // loads no files.
        if step.number > 0 && !self.loads_context && !step.is_base_image() {
            monitor.context_done();
        }
        self.has_cached |= vertex.cached && !step.is_base_image();
        let (started, completed) = (state.started, state.completed);
        state.started |= vertex.started.is_some();
        state.completed |= vertex.completed.is_some();
        let mut rest = None;
        if state.completed && !completed {
            self.bytes -= state.lines.unfinished();
            rest = state.lines.rest();
        }

        let step = Step {
            total: u32::try_from(self.vertexes.len()).unwrap_or(u32::MAX),
            ..step
        };
        if vertex.started.is_some() && !started && !vertex.cached {
            monitor.step_started(&step);
        }
        if let Some(line) = rest {
            monitor.log(line, Some(&step));
        }
        // A base image is pulled when it is needed, which may be after the first end of its step.
        if vertex.completed.is_some() && vertex.error.is_empty() {
            monitor.pulled(&step);
        }
        if let Some(end) = vertex.completed.filter(|_| !completed) {
            // By the engine's clock: a fast step starts and completes in one message.
            let start = vertex.started.unwrap_or(end);
            let duration =
                unix(end.seconds, end.nanos).saturating_sub(unix(start.seconds, start.nanos));
            let outcome = Outcome {
                cached: vertex.cached,
                duration,
                error: (!vertex.error.is_empty()).then_some(vertex.error),
            };
            monitor.step_done(&step, outcome);
        }
    }
}

/// The stream of a log that is a command's standard output. The OCI runtime writes to standard error.
const STDOUT: i64 = 1;

/// BuildKit's name for loading the template's files.
const LOAD_CONTEXT: &str = "[internal] load build context";

/// How BuildKit's name for the lookup of a base image begins.
pub(super) const LOAD_METADATA: &str = "[internal] load metadata for ";

/// What to do about a shared cache that cannot be used.
pub(super) const HINT_CACHE: &str =
    "check the registry of MOLECULE_LOCAL_SHARED_CACHE, and the login (docker login)";

/// How BuildKit's names for the transfers of a shared cache begin. The names of steps begin with a bracket.
const CACHE_IMPORT: &str = "importing cache manifest from ";
const CACHE_EXPORT: &str = "exporting cache to ";

/// The end of an import's error text if the cache does not exist yet, which is not worth a warning. If a registry
/// imitates it, only a warning is lost.
const CACHE_NOT_WRITTEN: &str = ": not found";

/// Whether it is a step of BuildKit itself: loading the Dockerfile, or the template's files.
pub(super) fn is_internal(vertex: &str) -> bool {
    vertex.starts_with("[internal] ")
}

/// A `google.protobuf.Timestamp`, as the time since 1970.
fn unix(seconds: i64, nanos: i32) -> Duration {
    Duration::new(
        u64::try_from(seconds).unwrap_or(0),
        u32::try_from(nanos).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::context::Sent;
    use crate::process::executor::block_on;

    /// Encodes a `StatusResponse` of these fields.
    fn message(fields: impl IntoIterator<Item = (u8, Vec<u8>)>) -> Vec<u8> {
        let mut message = Vec::new();
        for (tag, value) in fields {
            message.push(tag << 3 | 2);
            prost::encoding::encode_varint(value.len() as u64, &mut message);
            message.extend_from_slice(&value);
        }
        message
    }

    fn vertex(number: usize, name: &str) -> (u8, Vec<u8>) {
        let vertex = Vertex {
            digest: number.to_string(),
            name: name.to_owned(),
            started: Some(Timestamp::default()),
            ..Vertex::default()
        };
        (1, vertex.encode_to_vec())
    }

    fn log(number: usize, text: &str) -> (u8, Vec<u8>) {
        let log = VertexLog {
            vertex: number.to_string(),
            msg: text.into(),
            ..VertexLog::default()
        };
        (3, log.encode_to_vec())
    }

    fn update(graph: &mut Graph, message: &[u8]) -> Result<(), String> {
        let emit = |_| {};
        let sent = Arc::new(Sent::default());
        let mut monitor = BuildMonitor::new(sent, None, std::time::Duration::from_secs(240), &emit);
        let update = graph.update(message, &mut monitor);
        block_on(update)
    }

    #[test]
    fn progress_is_kept_within_its_limits() {
        let long = "x".repeat(100_000);
        let steps = |count, name: &str| message((0..count).map(|n| vertex(n, name)));
        let mut graph = Graph::default();
        update(&mut graph, &steps(MAX_STEPS, "step")).unwrap();
        let error = update(&mut graph, &message([vertex(MAX_STEPS, "one more")])).unwrap_err();
        assert!(error.contains("4096 steps"), "{error}");
        assert!(update(&mut graph, &steps(100_000, "step")).is_err());
        assert!(graph.vertexes.len() <= MAX_STEPS + 1);

        let mut graph = Graph::default();
        update(&mut graph, &steps(100, &long)).unwrap();
        assert!(
            graph
                .vertexes
                .values()
                .all(|state| state.step.name.len() <= MAX_KEPT)
        );
        assert!(graph.bytes <= 101 * MAX_KEPT, "{}", graph.bytes);
        for _ in 0..3 {
            update(&mut graph, &message((0..100).map(|n| log(n, &long)))).unwrap();
        }
        // An unfinished line takes twice what is kept of it.
        assert!(graph.bytes <= 301 * MAX_KEPT, "{}", graph.bytes);
        let lines = message((0..100).map(|n| log(n, "\n")));
        update(&mut graph, &lines).unwrap();
        assert!(graph.bytes <= 101 * MAX_KEPT, "emitted lines are freed");

        let mut graph = Graph::default();
        update(&mut graph, &steps(2000, "step")).unwrap();
        let error = update(&mut graph, &message((0..2000).map(|n| log(n, &long)))).unwrap_err();
        assert!(error.contains("8 MiB"), "{error}");
    }

    #[test]
    fn empty_fields_and_invalid_messages_are_cheap() {
        let start = Instant::now();
        for tag in 1..5 {
            let message = [tag << 3 | 2, 0].repeat(3 << 20);
            let mut graph = Graph::default();
            let _ = update(&mut graph, &message);
            assert!(graph.vertexes.len() <= 1);
        }
        for broken in [
            &[0x0a][..],
            &[0x0a, 5, 1],
            &[0x0a, 1, 0x0a],
            &[0xff; 20],
            &[0x0b; 9],
            &[7],
        ] {
            let error = update(&mut Graph::default(), broken).unwrap_err();
            assert!(error.contains("cannot be read"), "{broken:?}: {error}");
        }
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }
}
