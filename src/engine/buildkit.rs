//! What BuildKit tells of a build: the vertexes of its graph, and what each has written.

use std::collections::HashMap;
use std::time::Duration;

use bollard_stubs::moby::buildkit::v1::{StatusResponse, Vertex};

use super::lines::Lines;
use super::watch::{Outcome, Step, Watch};

/// The vertexes seen so far, by digest.
#[derive(Default)]
pub(super) struct Graph {
    vertexes: HashMap<String, Seen>,
    begun: u32,
    /// The template's files are wanted.
    loads: bool,
}

/// A vertex that stands for an instruction of the Dockerfile.
struct Seen {
    step: Step,
    lines: Lines,
    started: bool,
    completed: bool,
}

impl Graph {
    pub(super) fn take(&mut self, status: StatusResponse, watch: &mut Watch<'_>) {
        // First, because a message is in no order. The end of this vertex says nothing: it ends, and
        // begins again, before the files are asked for.
        self.loads |= status.vertexes.iter().any(|v| v.name == LOAD_CONTEXT);
        if self.loads && watch.all_is_sent() {
            watch.context_done();
        }
        for vertex in status.vertexes {
            if vertex.name.starts_with("exporting to ") {
                if vertex.started.is_some() {
                    watch.context_done();
                    watch.export_started();
                }
                if vertex.completed.is_some() {
                    watch.export_done();
                }
            } else if !is_internal(&vertex.name) {
                self.vertex(vertex, watch);
            } else if !vertex.error.is_empty() {
                watch.failed(vertex.name);
            }
        }
        for log in status.logs {
            if let Some(seen) = self.vertexes.get_mut(&log.vertex) {
                for line in seen.lines.push(&log.msg) {
                    watch.log(line, Some(&seen.step));
                }
            }
        }
        for warning in status.warnings {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            watch.warning(text(&warning.short), text(&warning.detail.concat()));
        }
    }

    fn vertex(&mut self, vertex: Vertex, watch: &mut Watch<'_>) {
        let seen = self.vertexes.entry(vertex.digest).or_insert_with(|| Seen {
            step: Step {
                name: vertex.name,
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
        if step.number > 0 && !self.loads && !step.name.contains("] FROM ") {
            watch.context_done();
        }
        let (started, completed) = (seen.started, seen.completed);
        seen.started |= vertex.started.is_some();
        seen.completed |= vertex.completed.is_some();
        let rest = (seen.completed && !completed)
            .then(|| seen.lines.rest())
            .flatten();

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
