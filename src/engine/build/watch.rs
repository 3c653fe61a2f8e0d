//! Watches a build: tells what happens, keeps the end of the output, and knows when there was none for
//! too long.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::context::Sent;
use crate::error::{Code, Error, FailedBuild, Result};
use crate::event::{Event, Kind, human_bytes, human_duration, human_files};

/// How much of a build's output is kept for the error of a failed build.
const TAIL_LINES: usize = 50;

/// The most steps of a build. A Dockerfile of the largest size may have more lines, but no image so many
/// layers.
pub(super) const MAX_STEPS: usize = 4096;

/// How many bytes of output are taken before others have their turn on the thread: they may be as many
/// lines.
pub(super) const AT_ONCE: usize = 16 << 10;

/// The most warnings that are passed on.
const MAX_WARNINGS: u32 = 1000;

/// A step of the build.
#[derive(Clone, Debug, Default)]
pub(super) struct Step {
    /// From 1, in the order in which they begin.
    pub(super) number: u32,
    /// How many are known.
    pub(super) of: u32,
    pub(super) name: String,
}

/// How a step ended.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) cached: bool,
    pub(super) took: Duration,
    pub(super) error: Option<String>,
}

/// What a step has written.
#[derive(Debug, Default)]
struct Output {
    lines: u64,
    first_line: String,
}

impl Output {
    fn note(&mut self, line: &str) {
        self.lines += 1;
        if self.lines == 1 {
            line.clone_into(&mut self.first_line);
        }
    }
}

/// A step that runs.
struct Running {
    step: Step,
    output: Output,
}

/// What failed: a step of the Dockerfile, or something that the builder does for itself.
#[derive(Debug, Default)]
pub(super) struct Failed {
    pub(super) step: String,
    /// The step's number; 0 for what is no step of the Dockerfile.
    number: u32,
    /// What the builder says of it.
    pub(super) error: String,
    output: Output,
}

impl Failed {
    /// The line that was all that the step has written.
    pub(super) fn only_line(&self) -> Option<&str> {
        (self.output.lines == 1).then_some(&self.output.first_line)
    }
}

/// What is known of a build that has ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) failed: Failed,
    /// The last lines of the output.
    pub(super) log_tail: String,
}

pub(super) struct Watch<'a> {
    emit: &'a (dyn Fn(Event) + Send + Sync),
    tail: VecDeque<String>,
    running: Vec<Running>,
    failed: Option<Failed>,
    warnings: u32,
    sent: Arc<Sent>,
    sent_before: u64,
    context_done: bool,
    exporting: Option<Instant>,
    stall_grace: Duration,
    last_sign: Instant,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        sent: Arc<Sent>,
        stall_grace: Duration,
        emit: &'a (dyn Fn(Event) + Send + Sync),
    ) -> Self {
        Self {
            emit,
            tail: VecDeque::new(),
            running: Vec::new(),
            failed: None,
            warnings: 0,
            sent,
            sent_before: 0,
            context_done: false,
            exporting: None,
            stall_grace,
            last_sign: Instant::now(),
        }
    }

    /// The engine has said something, whatever it was.
    pub(super) fn sign_of_life(&mut self) {
        self.last_sign = Instant::now();
    }

    pub(super) fn step_started(&mut self, step: &Step) {
        self.running.push(Running {
            step: step.clone(),
            output: Output::default(),
        });
        (self.emit)(about(step, Kind::StepStarted, step.name.clone()));
    }

    pub(super) fn step_done(&mut self, step: &Step, outcome: Outcome) {
        let place = self
            .running
            .iter()
            .position(|other| other.step.number == step.number);
        let running = place.map(|place| self.running.remove(place));
        if let Some(error) = &outcome.error {
            self.fail(Failed {
                step: step.name.clone(),
                number: step.number,
                error: error.clone(),
                output: running.map_or_else(Output::default, |running| running.output),
            });
        }
        let how = match &outcome {
            Outcome { error: Some(_), .. } => "failed",
            Outcome { cached: true, .. } => "was cached",
            _ => "done",
        };
        (self.emit)(Event {
            cached: Some(outcome.cached),
            duration_ms: Some(millis(outcome.took)),
            error: outcome.error,
            ..about(step, Kind::StepDone, format!("{}: {how}", step.name))
        });
    }

    /// Something failed that is no step of the Dockerfile.
    pub(super) fn failed(&mut self, name: String, error: String) {
        self.fail(Failed {
            step: name,
            error,
            ..Failed::default()
        });
    }

    /// The first failure counts. BuildKit ends the steps beside it, and calls those failed as well.
    fn fail(&mut self, failed: Failed) {
        const ENDED: &str = "context canceled";
        let known = self.failed.as_ref();
        if known.is_none_or(|known| known.error.ends_with(ENDED)) {
            self.failed = Some(failed);
        }
    }

    pub(super) fn log(&mut self, line: String, step: Option<&Step>) {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.clone());
        if let Some(step) = step {
            self.note(step.number, &line);
        }
        (self.emit)(Event {
            step: step.map(|step| step.number),
            step_name: step.map(|step| step.name.clone()),
            line: Some(line.clone()),
            ..Event::new(Kind::Log, line)
        });
    }

    fn note(&mut self, number: u32, line: &str) {
        let running = self
            .running
            .iter_mut()
            .find(|running| running.step.number == number);
        match (running, &mut self.failed) {
            (Some(running), _) => running.output.note(line),
            // BuildKit tells of the end before the last lines.
            (None, Some(failed)) if failed.number == number => failed.output.note(line),
            _ => {}
        }
    }

    pub(super) fn warning(&mut self, message: String, hint: String) {
        self.warnings = self.warnings.saturating_add(1);
        if self.warnings > MAX_WARNINGS {
            return;
        }
        (self.emit)(Event::warning(message, hint));
    }

    /// Writing the image takes long and says nothing, and is no stall.
    pub(super) fn export_started(&mut self) {
        if self.exporting.is_none() {
            self.exporting = Some(Instant::now());
            let message = "the engine writes the image";
            (self.emit)(Event::new(Kind::ExportStarted, message));
        }
    }

    pub(super) fn export_done(&mut self) {
        if let Some(started) = self.exporting.take() {
            (self.emit)(Event {
                duration_ms: Some(millis(started.elapsed())),
                ..Event::new(Kind::ExportDone, "the engine has the image")
            });
        }
    }

    /// Has the engine said that it has what it wants of the template?
    pub(super) fn all_is_sent(&self) -> bool {
        self.sent.done.is_cancelled()
    }

    /// The engine has what it wants of the template.
    pub(super) fn context_done(&mut self) {
        if !self.context_done {
            self.context_done = true;
            self.sent.done.cancel();
            self.context(Kind::ContextDone, "the build context is sent");
        }
    }

    fn context(&self, kind: Kind, message: &str) {
        let files = self.sent.files.load(Ordering::Relaxed);
        let bytes = self.sent.bytes.load(Ordering::Relaxed);
        (self.emit)(Event {
            files: Some(files),
            bytes: Some(bytes),
            ..Event::new(
                kind,
                format!("{message}: {}, {}", human_files(files), human_bytes(bytes)),
            )
        });
    }

    /// Looks at the clock.
    ///
    /// # Errors
    ///
    /// [`Code::Stalled`] if there was no sign of life for the stall grace.
    pub(super) fn tick(&mut self) -> Result<()> {
        let sent = self.sent.bytes.load(Ordering::Relaxed);
        if sent != self.sent_before {
            self.sent_before = sent;
            self.sign_of_life();
            if !self.context_done {
                self.context(Kind::ContextProgress, "sending the build context");
            }
        }
        if self.exporting.is_some() || self.last_sign.elapsed() < self.stall_grace {
            return Ok(());
        }
        let End {
            failed: Failed { step, .. },
            log_tail,
        } = self.end();
        let place = match step.as_str() {
            "" => "before its first step".to_owned(),
            step => format!("in the step {step}"),
        };
        Err(Error::new(
            Code::Stalled,
            format!(
                "the build was stopped {place}, because it said nothing for {}",
                human_duration(self.stall_grace)
            ),
        )
        .hint("if the step is only slow, raise MOLECULE_BUILD_STALL_GRACE_S")
        .in_build(FailedBuild {
            step,
            log_tail,
            ..FailedBuild::default()
        }))
    }

    /// What failed, or ran last, and the last lines of the output.
    pub(super) fn end(&mut self) -> End {
        let failed = self.failed.take().or_else(|| {
            let Running { step, output } = self.running.pop()?;
            Some(Failed {
                step: step.name,
                number: step.number,
                error: String::new(),
                output,
            })
        });
        End {
            failed: failed.unwrap_or_default(),
            log_tail: Vec::from(std::mem::take(&mut self.tail)).join("\n"),
        }
    }
}

fn about(step: &Step, kind: Kind, message: String) -> Event {
    Event {
        step: Some(step.number),
        steps: Some(step.of),
        step_name: Some(step.name.clone()),
        ..Event::new(kind, message)
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::thread::sleep;

    const GRACE: Duration = Duration::from_millis(20);

    #[test]
    fn silence_is_a_stall_only_outside_of_an_export() {
        let emit = |_| {};
        let mut watch = Watch::new(Arc::default(), GRACE, &emit);
        watch.export_started();
        sleep(2 * GRACE);
        watch.tick().unwrap();
        // As the end of the export is read: it is a sign of life.
        watch.sign_of_life();
        watch.export_done();
        watch.tick().unwrap();
        sleep(2 * GRACE);
        assert_eq!(watch.tick().unwrap_err().code, Code::Stalled);
    }

    #[test]
    fn a_context_that_moves_is_a_sign_of_life() {
        let emit = |_| {};
        let sent = Arc::<Sent>::default();
        let mut watch = Watch::new(Arc::clone(&sent), GRACE, &emit);
        sleep(2 * GRACE);
        sent.bytes.fetch_add(1, Ordering::Relaxed);
        watch.tick().unwrap();
        sleep(2 * GRACE);
        assert_eq!(watch.tick().unwrap_err().code, Code::Stalled);
    }
}
