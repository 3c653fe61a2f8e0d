//! Monitors a build: emits its events, keeps the last lines of its output, and detects a stall.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::context::Sent;
use crate::engine::build::pull::{LayerStatus, Pull};
use crate::engine::build::step::Step;
use crate::engine::build::transfer::Transfer;
use crate::error::{Code, Error, FailedBuild, Result};
use crate::event::{Event, Kind, human_bytes, human_duration, human_files, millis};

/// How many lines of output are kept for the error of a failed build.
const TAIL_LINES: usize = 50;

/// The most steps of a build. The largest Dockerfile may have more lines, but an image cannot have so many
/// layers.
pub(super) const MAX_STEPS: usize = 4096;

/// How many bytes of output are handled before yielding the thread: each byte may be a line.
pub(super) const YIELD_AFTER: usize = 16 << 10;

/// The most pulls of a build that are reported.
const MAX_PULLS: usize = 500;

/// The most warnings of a builder that are emitted.
const MAX_WARNINGS: u32 = 1000;

/// How a step ended.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) cached: bool,
    pub(super) duration: Duration,
    pub(super) error: Option<String>,
}

/// Statistics of a step's output.
#[derive(Debug, Default)]
struct Output {
    lines: u64,
    first_line: String,
    /// Some of it is the command's standard output.
    has_stdout: bool,
}

impl Output {
    fn add(&mut self, line: &str) {
        self.lines += 1;
        if self.lines == 1 {
            line.clone_into(&mut self.first_line);
        }
    }
}

struct RunningStep {
    step: Step,
    output: Output,
}

/// Whether an error is that of a step that BuildKit cancelled.
fn is_canceled(error: &str) -> bool {
    error.trim_end().ends_with("context canceled")
}

/// The step that failed: of the Dockerfile, or an internal one of the builder.
#[derive(Debug, Default)]
pub(super) struct FailedStep {
    pub(super) name: String,
    /// 0 for an internal step.
    number: u32,
    /// The builder's error for this step.
    pub(super) error: String,
    output: Output,
}

impl FailedStep {
    /// Why the build failed. BuildKit may give the cancellation of a parallel step as the reason of the build.
    pub(super) fn reason<'a>(&'a self, of_build: &'a str) -> &'a str {
        if is_canceled(of_build) && !self.error.is_empty() && !is_canceled(&self.error) {
            return &self.error;
        }
        of_build
    }

    /// The step's output, if it is a single line, and not known to be from the command's standard output.
    pub(super) fn only_line(&self) -> Option<&str> {
        (self.output.lines == 1 && !self.output.has_stdout).then_some(&self.output.first_line)
    }
}

/// The state of a build when it ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) failed: FailedStep,
    /// The last lines of the output.
    pub(super) log_tail: String,
}

/// The export of the image. The times are those of its start.
enum Export {
    NotStarted,
    /// The builder is silent meanwhile.
    Running(Instant),
    /// The builder has done its part. The engine may not have the image yet.
    Exported(Instant),
    /// The builder's reason.
    Failed(String),
    Complete,
}

pub(super) struct BuildMonitor<'a> {
    emit: &'a (dyn Fn(Event) + Send + Sync),
    tail: VecDeque<String>,
    running: Vec<RunningStep>,
    pulls: Vec<Pull>,
    pulls_started: usize,
    failed: Option<FailedStep>,
    warnings: u32,
    sent: Arc<Sent>,
    /// The bytes sent at the last tick.
    sent_before: u64,
    context_done: bool,
    export: Export,
    /// How the image gets into the engine, unless it is built there.
    transfer: Option<Transfer>,
    /// The bytes moved at the last tick.
    moved_before: u64,
    stall_grace: Duration,
    last_activity: Instant,
}

impl<'a> BuildMonitor<'a> {
    pub(super) fn new(
        sent: Arc<Sent>,
        transfer: Option<Transfer>,
        stall_grace: Duration,
        emit: &'a (dyn Fn(Event) + Send + Sync),
    ) -> Self {
        Self {
            emit,
            tail: VecDeque::new(),
            running: Vec::new(),
            pulls: Vec::new(),
            pulls_started: 0,
            failed: None,
            warnings: 0,
            sent,
            sent_before: 0,
            context_done: false,
            export: Export::NotStarted,
            transfer,
            moved_before: 0,
            stall_grace,
            last_activity: Instant::now(),
        }
    }

    /// Restarts the stall timer. Call it for everything that the builder reports, except the progress of a layer: see
    /// [`Self::pulling`].
    pub(super) fn note_activity(&mut self) {
        self.last_activity = Instant::now();
    }

    pub(super) fn step_started(&mut self, step: &Step) {
        self.running.push(RunningStep {
            step: step.clone(),
            output: Output::default(),
        });
        (self.emit)(step_event(step, Kind::StepStarted, step.name.clone()));
    }

    pub(super) fn step_done(&mut self, step: &Step, outcome: Outcome) {
        let index = self
            .running
            .iter()
            .position(|other| other.step.number == step.number);
        let running = index.map(|index| self.running.remove(index));
        if let Some(error) = &outcome.error {
            self.record_failure(FailedStep {
                name: step.name.clone(),
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
            duration_ms: Some(millis(outcome.duration)),
            error: outcome.error,
            ..step_event(step, Kind::StepDone, format!("{}: {how}", step.name))
        });
    }

    /// The builder looks up a base image.
    pub(super) fn base_image(&mut self, image: String) {
        let message = format!("looking up the base image {image}");
        (self.emit)(Event {
            image: Some(image),
            ..Event::new(Kind::BaseImage, message)
        });
    }

    /// The download of the step's base image, or of its result in a shared cache, starts.
    pub(super) fn pull_started(&mut self, step: &Step) {
        if self.pull_of(step).is_none() && self.pulls_started < MAX_PULLS {
            self.pulls_started += 1;
            let pull = Pull::new(step.clone());
            (self.emit)(pull.started());
            self.pulls.push(pull);
        }
    }

    /// The engine pulls a layer for this step.
    pub(super) fn pulling(&mut self, step: &Step, layer: LayerStatus) {
        self.pull_started(step);
        let pull = self.pull_of(step);
        if pull.is_none_or(|index| self.pulls[index].update(layer)) {
            self.note_activity();
        }
    }

    fn pull_of(&self, step: &Step) -> Option<usize> {
        let mut pulls = self.pulls.iter();
        pulls.position(|pull| pull.step.number == step.number)
    }

    /// Whether a step's result is being downloaded from a shared cache.
    pub(super) fn downloads_result(&self) -> bool {
        let mut pulls = self.pulls.iter();
        pulls.any(|pull| !pull.step.is_base_image() && pull.is_downloading())
    }

    /// The pull of this step, if there was one, is done.
    pub(super) fn pulled(&mut self, step: &Step) {
        if let Some(index) = self.pull_of(step) {
            let mut pull = self.pulls.swap_remove(index);
            pull.progress().into_iter().for_each(self.emit);
            (self.emit)(pull.done());
        }
    }

    /// An internal step of the builder failed.
    pub(super) fn internal_step_failed(&mut self, name: String, error: String) {
        self.record_failure(FailedStep {
            name,
            error,
            ..FailedStep::default()
        });
    }

    /// Keeps the first failure that is not a cancellation: BuildKit cancels the steps that run beside a failed one, and
    /// reports them as failed too. Only the text tells them apart. A command's error ends with its exit code, so a
    /// template cannot imitate a cancellation.
    fn record_failure(&mut self, failed: FailedStep) {
        let known = self.failed.as_ref();
        if known.is_none_or(|known| is_canceled(&known.error)) {
            self.failed = Some(failed);
        }
    }

    pub(super) fn log(&mut self, line: String, step: Option<&Step>) {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.clone());
        if let Some(output) = step.and_then(|step| self.output_of(step)) {
            output.add(&line);
        }
        (self.emit)(Event {
            step: step.map(|step| step.number),
            step_name: step.map(|step| step.name.clone()),
            line: Some(line.clone()),
            ..Event::new(Kind::Log, line)
        });
    }

    /// The step's command has written to its standard output.
    pub(super) fn stdout(&mut self, step: &Step) {
        if let Some(output) = self.output_of(step) {
            output.has_stdout = true;
        }
    }

    fn output_of(&mut self, step: &Step) -> Option<&mut Output> {
        let mut running = self.running.iter_mut();
        match running.find(|running| running.step.number == step.number) {
            Some(running) => Some(&mut running.output),
            // BuildKit may report the end of a step before its last lines.
            None => {
                let failed = self.failed.as_mut();
                let failed = failed.filter(|failed| failed.number == step.number)?;
                Some(&mut failed.output)
            }
        }
    }

    pub(super) fn warning(&mut self, message: String, hint: String) {
        self.warnings = self.warnings.saturating_add(1);
        if self.warnings > MAX_WARNINGS {
            return;
        }
        (self.emit)(Event::warning(message, hint));
    }

    /// Exporting the image is silent and may be slow: the stall timer is paused meanwhile, unless the image is on its
    /// way into the engine.
    pub(super) fn export_started(&mut self) {
        // The push is a second run of the same vertex.
        if let Export::Exported(started) = self.export {
            self.export = Export::Running(started);
        }
        if matches!(self.export, Export::NotStarted) {
            self.export = Export::Running(Instant::now());
            let message = match self.transfer {
                None => "the engine writes the image",
                Some(Transfer::ThroughClient(_)) => "the builder sends the image",
                Some(Transfer::ThroughRegistry(_)) => "the builder pushes the image",
            };
            (self.emit)(Event::new(Kind::ExportStarted, message));
        }
    }

    pub(super) fn export_failed(&mut self, error: String) {
        self.export = Export::Failed(error);
    }

    /// Why the builder could not export the image.
    pub(super) fn export_error(&self) -> Option<&str> {
        match &self.export {
            Export::Failed(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the builder has exported the image.
    pub(super) fn has_exported(&self) -> bool {
        matches!(self.export, Export::Exported(_) | Export::Complete)
    }

    /// The builder has exported the image. The event follows when the engine has the image.
    pub(super) fn export_done(&mut self) {
        let (Export::Running(started) | Export::Exported(started)) = self.export else {
            return;
        };
        if (self.transfer.as_ref()).is_some_and(|transfer| !transfer.is_complete()) {
            self.export = Export::Exported(started);
            return;
        }
        self.export = Export::Complete;
        self.image_progress();
        (self.emit)(Event {
            duration_ms: Some(millis(started.elapsed())),
            ..Event::new(Kind::ExportDone, "the engine has the image")
        });
    }

    /// Whether the engine has confirmed the end of the upload.
    pub(super) fn upload_is_complete(&self) -> bool {
        self.sent.is_complete()
    }

    /// The engine has all the files that it needs.
    pub(super) fn context_done(&mut self) {
        if !self.context_done {
            self.context_done = true;
            self.sent.set_complete();
            self.emit_context(Kind::ContextDone, "the build context is sent");
        }
    }

    fn emit_context(&self, kind: Kind, message: &str) {
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

    /// Emits the progress of the upload and of pulls, and detects a stall. To be called at regular intervals.
    ///
    /// # Errors
    ///
    /// [`Code::Stalled`] if there was no activity for the stall grace.
    pub(super) fn tick(&mut self) -> Result<()> {
        for pull in &mut self.pulls {
            pull.progress().into_iter().for_each(self.emit);
        }
        let sent = self.sent.bytes.load(Ordering::Relaxed);
        if sent != self.sent_before {
            self.sent_before = sent;
            self.note_activity();
            if !self.context_done {
                self.emit_context(Kind::ContextProgress, "sending the build context");
            }
        }
        let is_moving = self.image_progress();
        // An export waits for what it downloads, such as the results in a shared cache.
        let download = self.pulls.iter().find(|pull| pull.is_downloading());
        let download = download.map(|pull| pull.step.name.clone());
        let is_silent =
            matches!(self.export, Export::Running(_)) && !is_moving && download.is_none();
        if is_silent || self.last_activity.elapsed() < self.stall_grace {
            return Ok(());
        }
        if is_moving {
            let silence = human_duration(self.stall_grace);
            let message = format!(
                "the build was stopped during the transfer of its image to the engine: no data for {silence}"
            );
            return Err(Error::new(Code::Stalled, message).hint(
                "check whether the engine hangs or has a slow disk (its log), and the network to the builder",
            ));
        }
        let End { failed, log_tail } = self.end();
        let (step, what, hint) = match download {
            Some(step) => (
                step,
                "a download made no progress",
                "check the registry that the step needs, and the network to it",
            ),
            None => (
                failed.name,
                "no output",
                "if the step is only slow, raise MOLECULE_BUILD_STALL_GRACE_S",
            ),
        };
        let place = match step.as_str() {
            "" => "before its first step".to_owned(),
            step => format!("in the step {step}"),
        };
        let silence = human_duration(self.stall_grace);
        Err(Error::new(
            Code::Stalled,
            format!("the build was stopped {place}: {what} for {silence}"),
        )
        .hint(hint)
        .in_build(FailedBuild {
            step,
            log_tail,
            ..FailedBuild::default()
        }))
    }

    /// Reports the progress of the image, and returns whether it is being transferred.
    fn image_progress(&mut self) -> bool {
        let Some(transfer) = &self.transfer else {
            return false;
        };
        let (bytes, total) = transfer.moved().bytes();
        let is_moving = transfer.moved().is_moving();
        if bytes != self.moved_before {
            self.moved_before = bytes;
            self.note_activity();
            let of_total =
                total.map_or_else(String::new, |total| format!(" of {}", human_bytes(total)));
            let message = format!(
                "transferring the image to the engine: {}{of_total}",
                human_bytes(bytes)
            );
            (self.emit)(Event {
                bytes: Some(bytes),
                bytes_total: total,
                ..Event::new(Kind::ExportProgress, message)
            });
        }
        is_moving
    }

    /// The step that failed, or else the one that started last, and the last lines of the output.
    pub(super) fn end(&mut self) -> End {
        let failed = self.failed.take().or_else(|| {
            let RunningStep { step, output } = self.running.pop()?;
            Some(FailedStep {
                name: step.name,
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

fn step_event(step: &Step, kind: Kind, message: String) -> Event {
    Event {
        step: Some(step.number),
        steps: Some(step.total),
        step_name: Some(step.name.clone()),
        ..Event::new(kind, message)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::engine::build::pull::Action;
    use crate::engine::build::transfer::ImagePull;
    use crate::process;

    const GRACE: Duration = Duration::from_secs(60);

    /// Lets time pass without activity.
    fn be_silent(monitor: &mut BuildMonitor<'_>) {
        monitor.last_activity -= 2 * GRACE;
    }

    #[test]
    fn the_reason_of_a_cancelled_build_is_the_error_of_its_failed_step() {
        let failed = |error: &str| FailedStep {
            error: error.to_owned(),
            ..FailedStep::default()
        };
        let pattern = "error from sender: invalid excludepatterns: [[]: syntax error in pattern";
        let canceled = "failed to solve: context canceled\n";
        assert_eq!(failed(pattern).reason(canceled), pattern);
        assert_eq!(failed(pattern).reason("exit code: 3"), "exit code: 3");
        assert_eq!(failed("").reason(canceled), canceled);
        assert_eq!(failed("context canceled").reason(canceled), canceled);
    }

    #[test]
    fn a_limited_number_of_warnings_is_emitted() {
        let emitted = Mutex::new(0);
        let emit = |_| *process::lock(&emitted) += 1;
        let mut monitor = BuildMonitor::new(Arc::default(), None, GRACE, &emit);
        for _ in 0..MAX_WARNINGS + 10 {
            monitor.warning("a".to_owned(), String::new());
        }
        assert_eq!(*process::lock(&emitted), MAX_WARNINGS);
    }

    #[test]
    fn silence_is_a_stall_except_during_an_export() {
        let emit = |_| {};
        let mut monitor = BuildMonitor::new(Arc::default(), None, GRACE, &emit);
        monitor.export_started();
        be_silent(&mut monitor);
        monitor.tick().unwrap();
        // The message that ends the export counts as activity.
        monitor.note_activity();
        monitor.export_done();
        monitor.tick().unwrap();
        be_silent(&mut monitor);
        assert_eq!(monitor.tick().unwrap_err().code, Code::Stalled);
    }

    #[test]
    fn silence_during_a_push_is_not_a_stall() {
        let emit = |_| {};
        let transfer = Transfer::ThroughRegistry(Arc::new(ImagePull::new("registry.example/r")));
        let mut monitor = BuildMonitor::new(Arc::default(), Some(transfer), GRACE, &emit);
        // BuildKit exports the image, and then pushes it under the same name.
        for _ in 0..2 {
            monitor.export_started();
            be_silent(&mut monitor);
            monitor.tick().unwrap();
            monitor.note_activity();
            monitor.export_done();
        }
        assert!(monitor.has_exported());
        be_silent(&mut monitor);
        assert_eq!(monitor.tick().unwrap_err().code, Code::Stalled);
    }

    #[test]
    fn a_download_without_progress_is_a_stall_also_during_an_export() {
        let emit = |_| {};
        let mut monitor = BuildMonitor::new(Arc::default(), None, GRACE, &emit);
        let step = Step {
            number: 1,
            total: 1,
            name: "[1/1] RUN make".to_owned(),
        };
        let report = |monitor: &mut BuildMonitor<'_>, action, bytes| {
            be_silent(monitor);
            monitor.pulling(
                &step,
                LayerStatus {
                    layer: "sha256:a".to_owned(),
                    action,
                    bytes,
                    total: 9,
                    complete: false,
                },
            );
        };
        monitor.export_started();
        for bytes in [0, 1, 2] {
            report(&mut monitor, Action::Download, bytes);
            monitor.tick().unwrap();
        }
        report(&mut monitor, Action::Download, 2);
        assert_eq!(monitor.tick().unwrap_err().code, Code::Stalled);
        assert!(monitor.downloads_result());
        // While a layer is extracted, its complete download is reported again and again.
        for _ in 0..3 {
            report(&mut monitor, Action::Extract, 0);
            monitor.tick().unwrap();
            report(&mut monitor, Action::Download, 9);
            monitor.tick().unwrap();
        }
        assert!(!monitor.downloads_result());
    }

    #[test]
    fn upload_progress_counts_as_activity() {
        let emit = |_| {};
        let sent = Arc::<Sent>::default();
        let mut monitor = BuildMonitor::new(Arc::clone(&sent), None, GRACE, &emit);
        be_silent(&mut monitor);
        sent.bytes.fetch_add(1, Ordering::Relaxed);
        monitor.tick().unwrap();
        be_silent(&mut monitor);
        assert_eq!(monitor.tick().unwrap_err().code, Code::Stalled);
    }
}
