//! The log of a runtime's last build, kept in the cache: `mol logs`.
//!
//! It is collected in memory, masked line by line, and written in one step when the build ends, however
//! it ends. Of a build that prints without end the beginning and the end are kept.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use serde::Serialize;
use tokio_util::task::TaskTracker;

use crate::cache::{Cache, Lock};
use crate::error::{Code, Error, Result};
use crate::event::{Event, Kind, Sink};
use crate::names::reference::CommitSha;
use crate::names::runtimes::Runtime;
use crate::process::executor;
use crate::redact::{MAX_LINE, Masker, Redact};

/// What is kept of the beginning: the steps, and the base image.
const HEAD: usize = 256 * 1024;

/// What is kept of the end: why it failed.
const TAIL: usize = 768 * 1024;

/// The log of a runtime's last build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BuildLog {
    /// The runtime.
    pub runtime: String,
    /// The file.
    pub path: String,
    /// When the build ended, in seconds since 1970.
    pub ended_unix: i64,
    /// Its lines. At most about a mebibyte; where lines were left out, a line says so.
    pub text: String,
}

impl Redact for BuildLog {
    fn masked(mut self, masker: &Masker) -> Self {
        // It was masked when it was written, but perhaps for another token.
        let end = if self.text.ends_with('\n') { "\n" } else { "" };
        self.text = masker.log(&self.text) + end;
        masker.in_place(&mut self.path);
        self
    }
}

/// The log of the last build of `runtime` that was made with this cache.
///
/// # Errors
///
/// [`Code::Cache`] if there is none.
pub(crate) fn last(root: &std::path::Path, runtime: &Runtime) -> Result<BuildLog> {
    let cache = Cache::existing(root, runtime)?;
    let kept = cache.as_ref().and_then(|cache| cache.log(HEAD + 2 * TAIL));
    let (path, ended, text) = kept.ok_or_else(|| {
        Error::new(
            Code::Cache,
            format!(
                "there is no log of a build of {runtime} in the cache at {}",
                root.display()
            ),
        )
        .hint(format!(
            "a log is kept when a build ends: mol ensure {runtime} builds, unless the engine has the image"
        ))
    })?;
    let ended = ended
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Ok(BuildLog {
        runtime: runtime.to_string(),
        path: path.display().to_string(),
        ended_unix: i64::try_from(ended.as_secs()).unwrap_or(i64::MAX),
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

/// Collects the log of one build.
pub(crate) struct Recorder {
    pages: Arc<Mutex<Pages>>,
    masker: Masker,
    begun: Instant,
    place: Option<Place>,
}

/// Where it goes.
struct Place {
    cache: Cache,
    commit: CommitSha,
    lock: Lock,
    tasks: TaskTracker,
}

/// The beginning and the end of a text.
#[derive(Default)]
struct Pages {
    head: String,
    tail: VecDeque<String>,
    tail_bytes: usize,
    left_out: u64,
    /// The engine was asked to build: before that there is nothing worth keeping.
    building: bool,
}

impl Pages {
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
    /// For a build of this commit, by whoever holds its lock.
    pub(crate) fn new(
        cache: &Cache,
        commit: &CommitSha,
        lock: &Lock,
        masker: &Masker,
        tasks: &TaskTracker,
        title: &str,
    ) -> Self {
        let recorder = Self {
            pages: Arc::default(),
            masker: masker.clone(),
            begun: Instant::now(),
            place: Some(Place {
                cache: cache.clone(),
                commit: commit.clone(),
                lock: lock.clone(),
                tasks: tasks.clone(),
            }),
        };
        let now = httpdate::fmt_http_date(SystemTime::now());
        locked(&recorder.pages).push(masker.shown(&format!("{title}, {now}"), MAX_LINE));
        recorder
    }

    /// Passes events on, and keeps what they say.
    pub(crate) fn sink(&self, emit: &Sink) -> Sink {
        let (pages, masker, emit) = (
            Arc::clone(&self.pages),
            self.masker.clone(),
            Arc::clone(emit),
        );
        let begun = self.begun;
        Arc::new(move |event: Event| {
            if let Some(line) = line(&event, begun.elapsed()) {
                let line = masker.shown(&line, MAX_LINE);
                let mut pages = locked(&pages);
                pages.building |= event.kind == Kind::BuildStarted;
                pages.push(line);
            }
            emit(event);
        })
    }

    /// Writes it, with the build's end. A failure is told of nowhere: it is only a log.
    pub(crate) async fn end(mut self, error: Option<&Error>) {
        let last = match error {
            None => "done".to_owned(),
            Some(error) => format!("failed ({}): {}", error.code, error.message),
        };
        if let Some(written) = self.write(&last) {
            let _ = written.await;
        }
    }

    fn write(&mut self, last: &str) -> Option<tokio::task::JoinHandle<()>> {
        let place = self.place.take()?;
        let text = {
            let mut pages = locked(&self.pages);
            if !pages.building {
                return None;
            }
            let last = format!("{} {last}", at(self.begun.elapsed()));
            pages.push(self.masker.shown(&last, MAX_LINE));
            pages.text()
        };
        let tasks = place.tasks.clone();
        let write = move || {
            let _ = place.cache.write_log(&place.commit, &place.lock, &text);
            Ok(())
        };
        let written = executor::blocking(&tasks, write);
        let runtime = executor::runtime().ok()?;
        // A task, because it may have to wait for its turn, and nobody may wait for it.
        Some(tasks.spawn_on(written.map(drop), runtime.handle()))
    }
}

impl Drop for Recorder {
    /// Nobody wants the build any more.
    fn drop(&mut self) {
        self.write("stopped before its end");
    }
}

fn locked(pages: &Mutex<Pages>) -> MutexGuard<'_, Pages> {
    pages.lock().unwrap_or_else(PoisonError::into_inner)
}

fn at(since: Duration) -> String {
    format!("{:>7.1}s", since.as_secs_f32())
}

/// What an event adds to a log.
fn line(event: &Event, since: Duration) -> Option<String> {
    match event.kind {
        Kind::FetchProgress | Kind::ContextProgress => None,
        Kind::Log => Some(format!(
            "{:>8} | {}",
            event
                .step
                .map(|step| format!("#{step}"))
                .unwrap_or_default(),
            event.line.as_deref().unwrap_or_default()
        )),
        _ => {
            let hint = event.hint.as_deref().filter(|hint| !hint.is_empty());
            let hint = hint.map_or_else(String::new, |hint| format!("; {hint}"));
            Some(format!("{} {}{hint}", at(since), event.message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_without_end_the_beginning_and_the_end_are_kept() {
        let mut pages = Pages::default();
        for number in 0..100_000 {
            pages.push(format!("line {number} {}", "x".repeat(20)));
        }
        let text = pages.text();
        assert!(text.len() < HEAD + TAIL + 100);
        assert!(text.starts_with("line 0 ") && text.contains("line 99999 "));
        let numbers: Vec<u64> = text
            .lines()
            .filter_map(|line| line.split(' ').nth(1)?.parse().ok())
            .collect();
        let (kept, left_out) = (numbers.len() as u64 - 1, pages.left_out);
        assert!(
            numbers.contains(&left_out),
            "the line that says how many is there"
        );
        assert_eq!(kept + left_out, 100_000);
        let last = Pages::default();
        assert_eq!(last.text(), "");
    }
}
