//! What BuildKit tells of a build: the vertexes of its graph, and what each has written.

use std::collections::HashMap;
use std::time::Duration;

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::VertexLog;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message};

use crate::engine::build::lines::Lines;
use crate::engine::build::watch::{AT_ONCE, MAX_STEPS, Outcome, Step, Watch};
use crate::redact::MAX_KEPT;

/// The vertexes seen so far, by digest.
#[derive(Default)]
pub(super) struct Graph {
    vertexes: HashMap<String, Seen>,
    begun: u32,
    /// The template's files are wanted.
    loads: bool,
    /// What the names of the vertexes and their unfinished lines take.
    bytes: usize,
}

/// The most of that.
const MAX_BYTES: usize = 8 << 20;

/// The most parts of a message. BuildKit splits it long before that.
const MAX_PARTS: usize = 100_000;

// The numbers of the fields of a `StatusResponse` (github.com/moby/buildkit,
// `api/services/control/control.proto`).
const VERTEX: u32 = 1;
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

/// Why a message cannot be read.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error(transparent)]
    Encoding(#[from] DecodeError),
    #[error("it ends too early")]
    Short,
    #[error("it has more than {MAX_PARTS} parts")]
    Many,
}

/// Passes a warning on. In its details, which are lines, nothing says how many there are.
fn warning(encoded: &[u8], watch: &mut Watch<'_>) -> Result<(), Malformed> {
    const SHORT: u32 = 3;
    const DETAIL: u32 = 4;
    let (mut short, mut detail) = (Vec::new(), Vec::new());
    for part in parts(encoded) {
        match part? {
            (SHORT, part) => short = part.to_vec(),
            (DETAIL, part) => detail.extend_from_slice(part),
            _ => {}
        }
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    watch.warning(text(&short), text(&detail));
    Ok(())
}

/// The fields of a message that have a length, with their numbers. Nothing is made of them.
fn parts(message: &[u8]) -> impl Iterator<Item = Result<(u32, &[u8]), Malformed>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            match part(&mut rest) {
                Ok(None) => {}
                Ok(Some(part)) => return Some(Ok(part)),
                Err(error) => {
                    rest = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    })
}

/// Takes a field from the beginning of `rest`.
fn part<'m>(rest: &mut &'m [u8]) -> Result<Option<(u32, &'m [u8])>, Malformed> {
    let (tag, wire) = decode_key(rest)?;
    if wire != WireType::LengthDelimited {
        skip_field(wire, tag, rest, DecodeContext::default())?;
        return Ok(None);
    }
    let length = usize::try_from(decode_varint(rest)?).unwrap_or(usize::MAX);
    let (part, behind) = rest.split_at_checked(length).ok_or(Malformed::Short)?;
    *rest = behind;
    Ok(Some((tag, part)))
}

/// A vertex that stands for an instruction of the Dockerfile.
struct Seen {
    step: Step,
    lines: Lines,
    started: bool,
    completed: bool,
}

impl Graph {
    /// Takes an encoded `StatusResponse`.
    ///
    /// # Errors
    ///
    /// What cannot be read of it, or what there is too much of.
    pub(super) async fn take(
        &mut self,
        status: &[u8],
        watch: &mut Watch<'_>,
    ) -> Result<(), String> {
        self.read(status, watch)
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

    /// Part by part: two bytes of a message can be a part of hundreds.
    async fn read(&mut self, status: &[u8], watch: &mut Watch<'_>) -> Result<(), Malformed> {
        if parts(status).nth(MAX_PARTS).is_some() {
            return Err(Malformed::Many);
        }
        // First, because a message is in no order. The end of this vertex says nothing: it ends, and
        // begins again, before the files are asked for.
        for part in parts(status) {
            let (tag, part) = part?;
            if tag == VERTEX && !self.loads {
                self.loads = Vertex::decode(part)?.name == LOAD_CONTEXT;
            }
        }
        if self.loads && watch.all_is_sent() {
            watch.context_done();
        }
        // A step begins, writes and ends in one message if it is quick.
        for part in parts(status) {
            let (tag, part) = part?;
            if tag == VERTEX {
                let begins = Vertex {
                    completed: None,
                    error: String::new(),
                    ..Vertex::decode(part)?
                };
                self.any_vertex(begins, watch);
            }
        }
        for part in parts(status) {
            let (tag, part) = part?;
            match tag {
                LOG => self.log(&VertexLog::decode(part)?, watch).await,
                WARNING => warning(part, watch)?,
                _ => {}
            }
        }
        for part in parts(status) {
            let (tag, part) = part?;
            if tag == VERTEX {
                self.any_vertex(Vertex::decode(part)?, watch);
            }
        }
        Ok(())
    }

    fn any_vertex(&mut self, vertex: Vertex, watch: &mut Watch<'_>) {
        if vertex.name.starts_with("exporting to ") {
            if vertex.started.is_some() {
                watch.context_done();
                watch.export_started();
            }
            if vertex.completed.is_some() {
                watch.export_done();
            }
        } else if !is_internal(&vertex.name) {
            if self.vertexes.len() <= MAX_STEPS {
                self.vertex(vertex, watch);
            }
        } else if !vertex.error.is_empty() {
            watch.failed(vertex.name, vertex.error);
        }
    }

    async fn log(&mut self, log: &VertexLog, watch: &mut Watch<'_>) {
        let Some(seen) = self.vertexes.get_mut(&log.vertex) else {
            return;
        };
        let before = seen.lines.waiting();
        for piece in log.msg.chunks(AT_ONCE) {
            let step = &seen.step;
            seen.lines.each(piece, |line| watch.log(line, Some(step)));
            tokio::task::yield_now().await;
        }
        self.bytes = self.bytes + seen.lines.waiting() - before;
    }

    fn vertex(&mut self, vertex: Vertex, watch: &mut Watch<'_>) {
        let mut name = vertex.name;
        name.truncate(name.floor_char_boundary(MAX_KEPT));
        if !self.vertexes.contains_key(&vertex.digest) {
            self.bytes += name.len() + vertex.digest.len();
        }
        let seen = self.vertexes.entry(vertex.digest).or_insert_with(|| Seen {
            step: Step {
                name,
                ..Step::default()
            },
            lines: Lines::default(),
            started: false,
            completed: false,
        });
        // Numbered in the order in which they begin, which is not that of the graph.
        if seen.step.number == 0 && (vertex.started.is_some() || vertex.completed.is_some()) {
            self.begun += 1;
            seen.step.number = self.begun;
        }
        let step = seen.step.clone();
        // A base image is looked at while the files are read. Any other step comes after them, or the
        // build wants none.
        if step.number > 0 && !self.loads && !is_base_image(&step.name) {
            watch.context_done();
        }
        let (started, completed) = (seen.started, seen.completed);
        seen.started |= vertex.started.is_some();
        seen.completed |= vertex.completed.is_some();
        let mut rest = None;
        if seen.completed && !completed {
            self.bytes -= seen.lines.waiting();
            rest = seen.lines.rest();
        }

        let step = Step {
            of: u32::try_from(self.vertexes.len()).unwrap_or(u32::MAX),
            ..step
        };
        if vertex.started.is_some() && !started && !vertex.cached {
            watch.step_started(&step);
        }
        if let Some(line) = rest {
            watch.log(line, Some(&step));
        }
        if let Some(end) = vertex.completed.filter(|_| !completed) {
            // By the engine's own clock: a fast step begins and ends within one message.
            let begin = vertex.started.unwrap_or(end);
            let took =
                unix(end.seconds, end.nanos).saturating_sub(unix(begin.seconds, begin.nanos));
            let outcome = Outcome {
                cached: vertex.cached,
                took,
                error: (!vertex.error.is_empty()).then_some(vertex.error),
            };
            watch.step_done(&step, outcome);
        }
    }
}

/// What BuildKit calls the reading of the template's files.
const LOAD_CONTEXT: &str = "[internal] load build context";

/// Is it `[stage 1/2] FROM …`? No stage has a bracket in its name.
fn is_base_image(vertex: &str) -> bool {
    let (_, instruction) = vertex.split_once("] ").unwrap_or_default();
    instruction.starts_with("FROM ")
}

/// What BuildKit does for itself: reading the Dockerfile, and the files of the template.
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

    /// A `StatusResponse` of these parts.
    fn message(parts: impl IntoIterator<Item = (u8, Vec<u8>)>) -> Vec<u8> {
        let mut message = Vec::new();
        for (tag, part) in parts {
            message.push(tag << 3 | 2);
            prost::encoding::encode_varint(part.len() as u64, &mut message);
            message.extend_from_slice(&part);
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

    fn taken(graph: &mut Graph, message: &[u8]) -> Result<(), String> {
        let emit = |_| {};
        let sent = Arc::new(Sent::default());
        let mut watch = Watch::new(sent, std::time::Duration::from_secs(240), &emit);
        let take = graph.take(message, &mut watch);
        crate::process::executor::runtime().unwrap().block_on(take)
    }

    #[test]
    fn what_an_engine_tells_of_a_build_is_kept_within_limits() {
        let long = "x".repeat(100_000);
        let steps = |count, name: &str| message((0..count).map(|n| vertex(n, name)));
        let mut graph = Graph::default();
        taken(&mut graph, &steps(MAX_STEPS, "step")).unwrap();
        let error = taken(&mut graph, &message([vertex(MAX_STEPS, "one more")])).unwrap_err();
        assert!(error.contains("4096 steps"), "{error}");
        assert!(taken(&mut graph, &steps(100_000, "step")).is_err());
        assert!(graph.vertexes.len() <= MAX_STEPS + 1);

        let mut graph = Graph::default();
        taken(&mut graph, &steps(100, &long)).unwrap();
        assert!(
            graph
                .vertexes
                .values()
                .all(|seen| seen.step.name.len() <= MAX_KEPT)
        );
        assert!(graph.bytes <= 101 * MAX_KEPT, "{}", graph.bytes);
        for _ in 0..3 {
            taken(&mut graph, &message((0..100).map(|n| log(n, &long)))).unwrap();
        }
        // A line that has no end yet takes twice of what is kept of it.
        assert!(graph.bytes <= 301 * MAX_KEPT, "{}", graph.bytes);
        let lines = message((0..100).map(|n| log(n, "\n")));
        taken(&mut graph, &lines).unwrap();
        assert!(graph.bytes <= 101 * MAX_KEPT, "what is told is given up");

        let mut graph = Graph::default();
        taken(&mut graph, &steps(2000, "step")).unwrap();
        let error = taken(&mut graph, &message((0..2000).map(|n| log(n, &long)))).unwrap_err();
        assert!(error.contains("8 MiB"), "{error}");
    }

    #[test]
    fn a_message_of_empty_parts_or_nonsense_costs_nothing() {
        let begun = Instant::now();
        for tag in 1..5 {
            let message = [tag << 3 | 2, 0].repeat(3 << 20);
            let mut graph = Graph::default();
            let _ = taken(&mut graph, &message);
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
            let error = taken(&mut Graph::default(), broken).unwrap_err();
            assert!(error.contains("cannot be read"), "{broken:?}: {error}");
        }
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    }
}
