//! Records the log of a build, for `mol logs --build` (`upkeep/build_log.rs`).
//!
//! It is collected in memory, masked line by line, and written in one step when the build ends, also after a failure or
//! a cancellation. Of very long output only the start and the end are kept.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use tokio_util::task::TaskTracker;

use crate::cache::{Cache, Lock, MAX_LOG};
use crate::error::Error;
use crate::event::{Event, Kind, Sink};
use crate::names::commit::CommitSha;
use crate::process;
use crate::process::executor;
use crate::redact::{MAX_LINE, Masker};

/// Upper bound of the kept start, in bytes: it has the first steps and the base image.
const HEAD: usize = 256 * 1024;

/// Upper bound of the kept end, in bytes: it has the cause of a failure.
const TAIL: usize = 768 * 1024;

// A log is the start, one line in place of what was left out, and the end.
const _: () = assert!(HEAD + MAX_LINE + TAIL <= MAX_LOG);

/// Collects the log of one build.
pub(crate) struct Recorder {
    lines: Arc<Mutex<Lines>>,
    masker: Masker,
    started: Instant,
    /// `None` after the log was written.
    target: Option<Target>,
}

/// Where the log is written.
struct Target {
    cache: Cache,
    commit: CommitSha,
    lock: Lock,
    tasks: TaskTracker,
}

/// The lines of a log, of which only the start and the end are kept.
#[derive(Default)]
struct Lines {
    head: String,
    tail: VecDeque<String>,
    tail_bytes: usize,
    left_out: u64,
    /// Whether the engine has started to build. Before that there is no output worth keeping.
    building: bool,
}

impl Lines {
    fn push(&mut self, mut line: String) {
        line.push('\n');
        if self.tail.is_empty() && self.head.len() + line.len() <= HEAD {
            self.head.push_str(&line);
            return;
        }
        self.tail_bytes += line.len();
        self.tail.push_back(line);
        while self.tail_bytes > TAIL {
            let Some(line) = self.tail.pop_front() else {
                break;
            };
            self.tail_bytes -= line.len();
            self.left_out += 1;
        }
    }

    fn text(&self) -> String {
        let mut text = self.head.clone();
        if self.left_out > 0 {
            let _ = writeln!(text, "… {} lines left out …", self.left_out);
        }
        text.extend(self.tail.iter().map(String::as_str));
        text
    }
}

impl Recorder {
    /// A recorder for a build of this commit. The caller holds its lock.
    pub(crate) fn new(
        cache: &Cache,
        commit: &CommitSha,
        lock: &Lock,
        masker: &Masker,
        tasks: &TaskTracker,
        title: &str,
    ) -> Self {
        let recorder = Self {
            lines: Arc::default(),
            masker: masker.clone(),
            started: Instant::now(),
            target: Some(Target {
                cache: cache.clone(),
                commit: commit.clone(),
                lock: lock.clone(),
                tasks: tasks.clone(),
            }),
        };
        let now = httpdate::fmt_http_date(SystemTime::now());
        process::lock(&recorder.lines).push(masker.shown(&format!("{title}, {now}"), MAX_LINE));
        recorder
    }

    /// A sink that records the events and passes them on to `emit`.
    pub(crate) fn sink(&self, emit: &Sink) -> Sink {
        let (lines, masker, emit) = (
            Arc::clone(&self.lines),
            self.masker.clone(),
            Arc::clone(emit),
        );
        let started = self.started;
        Arc::new(move |event: Event| {
            if let Some(line) = line_of(&event, started.elapsed()) {
                let line = masker.shown(&line, MAX_LINE);
                let mut lines = process::lock(&lines);
                lines.building |= event.kind == Kind::BuildStarted;
                lines.push(line);
            }
            emit(event);
        })
    }

    /// Writes the log, with the build's result as its last line. Errors are ignored: the log must not fail a build.
    pub(crate) async fn end(mut self, error: Option<&Error>) {
        let last = match error {
            None => "done".to_owned(),
            Some(error) => format!("failed ({}): {}", error.code, error.message()),
        };
        if let Some(written) = self.write(&last) {
            let _ = written.await;
        }
    }

    fn write(&mut self, last: &str) -> Option<tokio::task::JoinHandle<()>> {
        let target = self.target.take()?;
        let text = {
            let mut lines = process::lock(&self.lines);
            if !lines.building {
                return None;
            }
            let last = format!("{} {last}", timestamp(self.started.elapsed()));
            lines.push(self.masker.shown(&last, MAX_LINE));
            lines.text()
        };
        let tasks = target.tasks.clone();
        let write = move || {
            let _ = target.cache.write_log(&target.commit, &target.lock, &text);
            Ok(())
        };
        let written = executor::blocking(&tasks, write);
        let runtime = executor::runtime().ok()?;
        // A task of its own, because the write may have to wait for a thread, and the caller may not await it.
        Some(tasks.spawn_on(written.map(drop), runtime.handle()))
    }
}

impl Drop for Recorder {
    /// Without a call of [`Recorder::end`], the build was cancelled or has panicked.
    fn drop(&mut self) {
        self.write("stopped before the build ended");
    }
}

fn timestamp(since: Duration) -> String {
    format!("{:>7.1}s", since.as_secs_f32())
}

/// The line that an event adds to a log, if any.
fn line_of(event: &Event, since: Duration) -> Option<String> {
    match event.kind {
        Kind::Log => Some(format!(
            "{:>8} | {}",
            event
                .step
                .map(|step| format!("#{step}"))
                .unwrap_or_default(),
            event.line.as_deref().unwrap_or_default()
        )),
        kind if kind.is_minor() => None,
        _ => {
            let hint = event.hint.as_deref().filter(|hint| !hint.is_empty());
            let hint = hint.map_or_else(String::new, |hint| format!("; {hint}"));
            Some(format!("{} {}{hint}", timestamp(since), event.message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_and_the_end_of_a_long_log_are_kept() {
        let mut lines = Lines::default();
        for number in 0..100_000 {
            lines.push(format!("line {number} {}", "x".repeat(20)));
        }
        let text = lines.text();
        assert!(text.len() < HEAD + TAIL + 100);
        assert!(text.starts_with("line 0 ") && text.contains("line 99999 "));
        let numbers: Vec<u64> = text
            .lines()
            .filter_map(|line| line.split(' ').nth(1)?.parse().ok())
            .collect();
        let (kept, left_out) = (numbers.len() as u64 - 1, lines.left_out);
        assert!(
            numbers.contains(&left_out),
            "a line has the number of lines left out"
        );
        assert_eq!(kept + left_out, 100_000);
        let last = Lines::default();
        assert_eq!(last.text(), "");
    }

    #[test]
    fn events_of_progress_are_left_out() {
        for &kind in Kind::ALL {
            let line = line_of(&Event::new(kind, "text"), Duration::ZERO);
            let is_progress = format!("{kind:?}").ends_with("Progress");
            assert_eq!(line.is_none(), is_progress, "{kind:?}");
        }
    }
}
