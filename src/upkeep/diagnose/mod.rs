//! Checks everything that a build depends on, and reports how to fix each problem: `mol doctor`.
//!
//! It works even if everything is broken: the checks run in parallel, none needs another one to succeed, and each has a
//! time limit. They change nothing, and start no credential helper.

mod access;
mod cache;
mod engine;
mod registry;
mod server;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cache::disk;
use crate::error::{Code, Error, Result};
use crate::event::human_bytes;
use crate::job::shared::Shared;
use crate::redact::{Masker, Redact};

/// Time limit of one check. A person waits for the result.
const LIMIT: Duration = Duration::from_secs(10);

/// The checks end this long before the call's deadline, so that the report is returned in time.
const MARGIN: Duration = Duration::from_millis(500);

/// When the checks must end: before the deadline of the call.
#[derive(Clone, Copy)]
struct Deadline {
    at: Option<Instant>,
}

impl Deadline {
    fn of(timeout: Option<Duration>) -> Self {
        let usable = |timeout: Duration| timeout - MARGIN.min(timeout / 4);
        let at = timeout.and_then(|timeout| Instant::now().checked_add(usable(timeout)));
        Self { at }
    }

    /// Runs a check until the deadline, and for at most [`LIMIT`]. `what` names the party that must answer.
    async fn limited<T>(self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let now = Instant::now();
        let left = self
            .at
            .map_or(LIMIT, |at| at.saturating_duration_since(now));
        let limit = LIMIT.min(left);
        // `10`, `2.5`
        let seconds = (limit.as_secs_f32() * 10.0).round() / 10.0;
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            Err(Error::new(
                Code::Timeout,
                format!("{what} did not answer within {seconds} seconds"),
            )
            .hint("check whether it hangs"))
        })
    }
}

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The check passed.
    Ok,
    /// Builds work or may work, but something should be looked at.
    Warning,
    /// Builds will fail.
    Problem,
}

/// One check of a diagnosis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The name of the check.
    pub name: String,
    /// The outcome.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// How to fix it; empty if the check passed.
    pub fix: Cow<'static, str>,
    /// The name of the check whose problem is the cause of this outcome; empty if it has a cause of its own.
    pub cause: &'static str,
}

/// The results of all checks, always in the same order. They contain no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// The library's version.
    pub version: String,
    /// The worst outcome of all checks.
    pub status: Status,
    /// The checks.
    pub checks: Vec<Check>,
}

impl Redact for Diagnosis {
    fn masked(mut self, masker: &Masker) -> Self {
        for check in &mut self.checks {
            check.found = masker.shown(&check.found, MAX_TEXT);
            masker.in_place_unless_static(&mut check.fix);
        }
        self
    }
}

/// Upper bound of the shown text of one check, in bytes.
const MAX_TEXT: usize = 1000;

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self::new(name, Status::Ok, found, "")
    }

    fn warning(name: &str, found: impl Into<String>, fix: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, Status::Warning, found, fix)
    }

    fn problem(name: &str, found: impl Into<String>, fix: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, Status::Problem, found, fix)
    }

    fn failed(name: &str, error: Error) -> Self {
        Self::problem(name, error.message(), error.hint)
    }

    /// Adds the check whose problem is the cause of this outcome.
    fn because_of(mut self, cause: &'static str) -> Self {
        self.cause = cause;
        self
    }

    fn new(
        name: &str,
        status: Status,
        found: impl Into<String>,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            status,
            found: found.into(),
            fix: fix.into(),
            cause: "",
        }
    }
}

/// Runs all checks.
pub(crate) async fn diagnose(shared: &Arc<Shared>, timeout: Option<Duration>) -> Result<Diagnosis> {
    let deadline = Deadline::of(timeout);
    let ((mut checks, engine), cache, logins, registry, server) = tokio::join!(
        engine::engine(shared, deadline),
        cache::cache(shared, deadline),
        access::logins(shared, deadline),
        access::registry(shared, deadline),
        server::server(shared, deadline),
    );
    checks.extend(cache);
    checks.push(logins);
    checks.push(access::proxy(shared));
    checks.extend(access::shared_cache(shared, engine.as_ref(), registry));
    checks.extend(server);
    let worst = checks.iter().map(|check| check.status).max();
    Ok(Diagnosis {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        status: worst.unwrap_or(Status::Ok),
        checks,
    })
}

/// Checks the free space of a disk. Less than `low` bytes is a warning.
fn free_space(name: &str, folder: &Path, free: disk::Free, low: u64, fix: &'static str) -> Check {
    let found = format!("{free} at {}", folder.display());
    if free.bytes < disk::LEAST || free.out_of_inodes {
        Check::problem(name, found, fix)
    } else if free.bytes < low {
        let found = format!("only {found} (less than {})", human_bytes(low));
        Check::warning(name, found, fix)
    } else {
        Check::ok(name, found)
    }
}
