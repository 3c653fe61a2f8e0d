//! The progress of Docker's classic builder and of Podman's: a text in which `Step 2/5 : RUN make` starts a
//! step.
//!
//! The API has no other form of it, so the text is parsed. The output of the commands is part of the same text,
//! and may look like a builder's line. Docker writes when a command starts and ends, with the id of its
//! container, which a template cannot know beforehand. Podman does not; there a line counts as a step only if
//! its number is the next one.

use std::time::Instant;

use crate::context::fraction;
use crate::engine::build::Builder;
use crate::engine::build::lines::Lines;
use crate::engine::build::monitor::{BuildMonitor, MAX_STEPS, Outcome, YIELD_AFTER};
use crate::engine::build::pull::{Action, LayerStatus};
use crate::engine::build::step::Step;
use crate::names::registry::LOCAL_IMAGE_PREFIX;

/// How Docker marks standard error, of a command or the OCI runtime: by colour. Podman does not.
const STDERR: &str = "\u{1b}[91m";

/// The state of the parser.
pub(super) struct Transcript {
    builder: Builder,
    lines: Lines,
    current: Option<Current>,
    /// The container of the step's command while it runs, if the builder names it: the text is then the
    /// command's output.
    container: Option<String>,
    /// The text is the command's standard error, or the OCI runtime's.
    is_stderr: bool,
    /// How many steps have started.
    started: usize,
}

/// The running step.
struct Current {
    position: Position,
    step: Step,
    started: Instant,
    cached: bool,
    /// No line has followed yet.
    is_new: bool,
}

impl Transcript {
    pub(super) fn new(builder: Builder) -> Self {
        Self {
            builder,
            lines: Lines::default(),
            current: None,
            container: None,
            is_stderr: false,
            started: 0,
        }
    }

    /// # Errors
    ///
    /// A description of what exceeds its limit.
    pub(super) async fn update(
        &mut self,
        text: &str,
        monitor: &mut BuildMonitor<'_>,
    ) -> Result<(), String> {
        self.is_stderr = text.starts_with(STDERR);
        let mut lines = std::mem::take(&mut self.lines);
        for piece in text.as_bytes().chunks(YIELD_AFTER) {
            lines.each(piece, |line| self.line(line, monitor));
            tokio::task::yield_now().await;
        }
        self.lines = lines;
        match self.started {
            ..=MAX_STEPS => Ok(()),
            _ => Err(format!("more than {MAX_STEPS} steps")),
        }
    }

    /// The engine pulls a layer of the step's base image.
    pub(super) fn layer(&mut self, status: LayerStatus, monitor: &mut BuildMonitor<'_>) {
        if let Some(current) = &self.current {
            monitor.pulling(&current.step, status);
        }
    }

    /// The build has ended, with this error if it failed.
    pub(super) fn end(mut self, error: Option<String>, monitor: &mut BuildMonitor<'_>) {
        if let Some(line) = self.lines.rest() {
            self.line(line, monitor);
        }
        self.step_done(error, monitor);
    }

    fn line(&mut self, line: String, monitor: &mut BuildMonitor<'_>) {
        match self.parse(&line) {
            Line::Step(position, step) => {
                self.step_done(None, monitor);
                monitor.context_done();
                self.started += 1;
                if self.started > MAX_STEPS {
                    return;
                }
                monitor.step_started(&step);
                self.current = Some(Current {
                    position,
                    step,
                    started: Instant::now(),
                    cached: false,
                    is_new: true,
                });
            }
            parsed => {
                if let Some(current) = &mut self.current {
                    current.cached |= matches!(parsed, Line::Cached) && current.is_new;
                    current.is_new = false;
                }
                match parsed {
                    Line::CommandStarted(container) => self.container = Some(container),
                    Line::CommandEnded => self.container = None,
                    Line::Output => {
                        let step = self.current.as_ref().map(|current| &current.step);
                        if let Some(step) = step
                            && self.container.is_some()
                            && !self.is_stderr
                        {
                            monitor.stdout(step);
                        }
                        self.podman_pull(&line, monitor);
                        monitor.log(line, step);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Classifies a line, given the lines before it.
    fn parse(&self, line: &str) -> Line {
        let text = line.trim();
        if let Some(container) = &self.container {
            let prefixes = [
                "Removing intermediate container ",
                "---> Removed intermediate container ",
            ];
            let mut removed = prefixes
                .iter()
                .filter_map(|prefix| text.strip_prefix(prefix));
            return match removed.any(|id| id.starts_with(container.as_str())) {
                true => Line::CommandEnded,
                false => Line::Output,
            };
        }
        if let Some((position, step)) = step(line).filter(|(position, _)| self.is_next(*position)) {
            return Line::Step(position, step);
        }
        let docker = self.builder == Builder::Classic;
        let arrow = if docker { "--->" } else { "--> " };
        let Some(rest) = text.strip_prefix(arrow) else {
            return match text.strip_prefix("Successfully ") {
                Some(result) if docker || is_result(result) => Line::Ignored,
                _ => Line::Output,
            };
        };
        let rest = rest.trim_start();
        match rest.strip_prefix("Using cache") {
            Some(id) if docker || is_id(id.trim()) => return Line::Cached,
            _ => {}
        }
        match rest.strip_prefix("Running in ") {
            Some(container) if docker => Line::CommandStarted(container.to_owned()),
            _ if docker || is_id(rest) => Line::Ignored,
            _ => Line::Output,
        }
    }

    /// Whether it is the step after the current one, or the first of a later stage. Docker numbers the steps
    /// through all stages.
    fn is_next(&self, position: Position) -> bool {
        let Some(current) = &self.current else {
            return position.number == 1;
        };
        let before = current.position;
        if position.stage == before.stage {
            (position.number, position.total) == (before.number + 1, before.total)
        } else {
            position.number == 1 && position.stage > before.stage
        }
    }

    /// Reports a pull by Podman, which writes it as text, without sizes. Only lines in a FROM step count: no command runs
    /// there, so the text is Podman's.
    fn podman_pull(&self, line: &str, monitor: &mut BuildMonitor<'_>) {
        let Some(Current { step, .. }) = &self.current else {
            return;
        };
        if self.builder != Builder::Buildah || !step.is_base_image() {
            return;
        }
        if line.starts_with("Trying to pull ") {
            monitor.pull_started(step);
        } else if let Some(blob) = line.strip_prefix("Copying blob ") {
            let layer = LayerStatus {
                layer: blob.split(' ').next().unwrap_or_default().to_owned(),
                action: Action::Download,
                bytes: 0,
                total: 0,
                complete: false,
            };
            monitor.pulling(step, layer);
        }
    }

    fn step_done(&mut self, error: Option<String>, monitor: &mut BuildMonitor<'_>) {
        if let Some(current) = self.current.take() {
            if error.is_none() {
                monitor.pulled(&current.step);
            }
            let outcome = Outcome {
                cached: current.cached,
                duration: current.started.elapsed(),
                error,
            };
            monitor.step_done(&current.step, outcome);
        }
    }
}

/// The meaning of a line.
enum Line {
    /// A step starts.
    Step(Position, Step),
    /// The step's result is in the build cache.
    Cached,
    /// The step's command starts in this container.
    CommandStarted(String),
    CommandEnded,
    /// The id of a container or layer, or the name of the result. It is not shown.
    Ignored,
    /// Output of a command.
    Output,
}

/// The position of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    /// From 1; 0 if there is only one stage, or stages are not numbered.
    stage: u32,
    number: u32,
    total: u32,
}

/// Whether it is the id of an image, or the start of one.
fn is_id(text: &str) -> bool {
    (8..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether `rest` is what follows `Successfully` at the end of a build. Programs often write that word too.
fn is_result(rest: &str) -> bool {
    let image = rest.strip_prefix("built ").is_some_and(is_id);
    image || rest.starts_with("tagged ") && rest.contains(LOCAL_IMAGE_PREFIX)
}

/// Docker writes `Step 2/5 : RUN make`, Podman `STEP 2/5: RUN make`, and `[1/2] STEP 2/5: RUN make`
/// where there are two stages.
fn step(line: &str) -> Option<(Position, Step)> {
    let (stage, rest) = match line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] STEP "))
    {
        Some((stage, rest)) => (Some(fraction(stage)?), rest),
        None => (
            None,
            line.strip_prefix("Step ").or(line.strip_prefix("STEP "))?,
        ),
    };
    let (count, name) = rest.split_once(": ")?;
    let (number, total) = fraction(count.trim_end())?;
    let name = match stage {
        Some((stage, stages)) => format!("[{stage}/{stages} {number}/{total}] {name}"),
        None => format!("[{number}/{total}] {name}"),
    };
    let position = Position {
        stage: stage.map_or(0, |(stage, _)| stage),
        number,
        total,
    };
    let step = Step {
        number,
        total,
        name,
    };
    Some((position, step))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::event::{Event, Kind};
    use crate::process::executor::block_on;

    #[test]
    fn steps_are_parsed_and_similar_output_is_not() {
        let name = |line| step(line).unwrap().1.name;
        let (position, found) = step("Step 2/5 : RUN make").unwrap();
        assert_eq!((found.number, found.total), (2, 5));
        assert_eq!((position.number, position.total), (2, 5));
        assert_eq!(found.name, "[2/5] RUN make");
        assert_eq!(name("STEP 1/2: FROM scratch"), "[1/2] FROM scratch");
        assert_eq!(
            name("[2/3] STEP 1/2: FROM scratch"),
            "[2/3 1/2] FROM scratch"
        );
        for line in [
            "Step by step",
            "[1/2] Step 1/2: x",
            "[1/x] STEP 1/2: x",
            "Step 2 : x",
            "Stepping 1/2 : x",
            "Step a/b : x",
        ] {
            assert!(step(line).is_none(), "{line}");
        }
    }

    /// The steps and the output in the order of their events, with `cached` before the steps that were.
    fn events(builder: Builder, text: &str) -> Vec<String> {
        let events = std::sync::Mutex::new(Vec::new());
        let emit = |event: Event| {
            let line = match event.kind {
                Kind::StepDone if event.cached == Some(true) => {
                    format!("cached {}", event.step_name.unwrap())
                }
                Kind::StepStarted => event.step_name.unwrap(),
                Kind::Log => format!("{}: {}", event.step.unwrap_or(0), event.message),
                _ => return,
            };
            events.lock().unwrap().push(line);
        };
        let mut monitor = BuildMonitor::new(Arc::default(), None, Duration::from_secs(240), &emit);
        let mut transcript = Transcript::new(builder);
        let update = transcript.update(text, &mut monitor);
        block_on(update).unwrap();
        transcript.end(None, &mut monitor);
        events.into_inner().unwrap()
    }

    #[test]
    fn command_output_is_not_taken_for_builder_lines() {
        let docker = "Step 1/4 : FROM scratch\n ---> \nStep 2/4 : ENV a=b\n ---> Using cache\n ---> 05dff5d12d65\n\
             Step 3/4 : RUN x\n ---> Running in 224863e7c8ee\nStep 4/4 : RUN fake\n ---> Using cache\n\
             Successfully installed pip\n ---> Running in 000000000000\nRemoving intermediate container 000000000000\n\
             Removing intermediate container 224863e7c8ee\n ---> 2ccd447dcc3b\nStep 4/4 : COPY x /y\n\
             ---> c9511d60bebb\nSuccessfully built c9511d60bebb\nSuccessfully tagged molecule-local/x:y\n";
        let newer = docker.replace(
            "Removing intermediate container 2",
            " ---> Removed intermediate container 2",
        );
        for text in [docker, &newer] {
            let expected = [
                "[1/4] FROM scratch",
                "[2/4] ENV a=b",
                "cached [2/4] ENV a=b",
                "[3/4] RUN x",
                "3: Step 4/4 : RUN fake",
                "3:  ---> Using cache",
                "3: Successfully installed pip",
                "3:  ---> Running in 000000000000",
                "3: Removing intermediate container 000000000000",
                "[4/4] COPY x /y",
            ];
            assert_eq!(events(Builder::Classic, text), expected);
        }
        let podman = "STEP 1/3: FROM scratch\nSTEP 2/3: RUN x\nSTEP 2/3: RUN fake\nSTEP 1/1: FROM fake\n\
             Successfully installed pip\nSuccessfully built x\n--> done\n--> Using cache of pip\n\
             ---> Running in 224863e7c8ee\n--> b94421e8487\nSTEP 3/3: COPY x /y\n\
             --> Using cache f4d8446231cdbc831ebe4e4bebea1e3360b48ce49869913bb935b50fc8346151\n\
             COMMIT molecule-local/x:y\n--> 31796531358\nSuccessfully tagged localhost/molecule-local/x:y\n\
             Successfully built 317965313581\n";
        let expected = [
            "[1/3] FROM scratch",
            "[2/3] RUN x",
            "2: STEP 2/3: RUN fake",
            "2: STEP 1/1: FROM fake",
            "2: Successfully installed pip",
            "2: Successfully built x",
            "2: --> done",
            "2: --> Using cache of pip",
            "2: ---> Running in 224863e7c8ee",
            "[3/3] COPY x /y",
            "3: COMMIT molecule-local/x:y",
            "cached [3/3] COPY x /y",
        ];
        assert_eq!(events(Builder::Buildah, podman), expected);
    }

    #[test]
    fn podman_numbers_the_steps_of_each_stage_from_one() {
        let text = "[1/3] STEP 1/2: FROM a\n[1/3] STEP 2/2: RUN x\n[1/3] STEP 1/2: FROM fake\n[3/3] STEP 1/1: FROM b\n";
        let expected = [
            "[1/3 1/2] FROM a",
            "[1/3 2/2] RUN x",
            "2: [1/3] STEP 1/2: FROM fake",
            "[3/3 1/1] FROM b",
        ];
        assert_eq!(events(Builder::Buildah, text), expected);
    }
}
