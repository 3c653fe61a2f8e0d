//! What a client has done, in numbers: counters and histograms, for a server to show.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::error::{Code, Error};
use crate::event::Kind;

/// The upper bounds of the histograms' buckets, in seconds: from an engine that answers at once to a
/// build under emulation.
pub const BUCKETS: [f64; 16] = [
    0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0,
    1800.0,
];

/// A step whose time is measured. A build that many wait for is measured once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Lookup,
    Inspect,
    Wait,
    Fetch,
    Build,
    Tag,
}

/// In the order of their numbers.
const STEPS: [&str; 6] = ["lookup", "inspect", "wait", "fetch", "build", "tag"];

/// The numbers of one client.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    calls: Results,
    in_progress: AtomicI64,
    hits: AtomicU64,
    misses: AtomicU64,
    waits: AtomicU64,
    builds: Results,
    call: Histogram,
    steps: [Histogram; STEPS.len()],
}

/// Successes, and failures in the order of [`Code::ALL`].
#[derive(Debug, Default)]
struct Results([AtomicU64; Code::ALL.len() + 1]);

impl Results {
    fn count(&self, error: Option<&Error>) {
        let failure = |error: &Error| Code::ALL.iter().position(|code| *code == error.code);
        let index = error.and_then(failure).map_or(0, |failure| failure + 1);
        if let Some(counter) = self.0.get(index) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// By name; what has never been is left out, but for success.
    fn snapshot(&self) -> BTreeMap<String, u64> {
        let names = std::iter::once("ok").chain(Code::ALL.iter().map(|code| code.name()));
        names
            .zip(&self.0)
            .map(|(name, counter)| (name.to_owned(), counter.load(Ordering::Relaxed)))
            .filter(|(name, count)| *count > 0 || name == "ok")
            .collect()
    }
}

#[derive(Debug, Default)]
struct Histogram {
    /// By bucket; the last is for what is above all bounds.
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound);
        self.counts[bucket.unwrap_or(BUCKETS.len())].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn snapshot(&self) -> Durations {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(BUCKETS.len());
        for (bound, counter) in BUCKETS.iter().zip(&self.counts) {
            count += counter.load(Ordering::Relaxed);
            buckets.push(Bucket {
                le_seconds: *bound,
                count,
            });
        }
        count += self.counts[BUCKETS.len()].load(Ordering::Relaxed);
        #[allow(clippy::cast_precision_loss)]
        let sum_seconds = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        Durations {
            count,
            sum_seconds,
            buckets,
        }
    }
}

impl Metrics {
    pub(crate) fn begun(&self) {
        self.in_progress.fetch_add(1, Ordering::Relaxed);
    }

    /// A call for an image has ended.
    pub(crate) fn ended(&self, error: Option<&Error>, hit: bool, took: Duration) {
        self.in_progress.fetch_sub(1, Ordering::Relaxed);
        self.calls.count(error);
        self.hits.fetch_add(u64::from(hit), Ordering::Relaxed);
        self.call.observe(took);
    }

    /// Something happened in a call.
    pub(crate) fn happened(&self, kind: Kind) {
        let counter = match kind {
            Kind::CacheMiss => &self.misses,
            Kind::Waiting => &self.waits,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A fetch with its build has ended by itself.
    pub(crate) fn built(&self, error: Option<&Error>) {
        self.builds.count(error);
    }

    pub(crate) fn step(&self, step: Step, took: Duration) {
        self.steps[step as usize].observe(took);
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let steps = STEPS.iter().zip(&self.steps);
        Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            calls: self.calls.snapshot(),
            in_progress: self.in_progress.load(Ordering::Relaxed).max(0),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            waits: self.waits.load(Ordering::Relaxed),
            builds: self.builds.snapshot(),
            call_durations: self.call.snapshot(),
            step_durations: steps
                .map(|(name, step)| ((*name).to_owned(), step.snapshot()))
                .collect(),
        }
    }
}

/// The numbers of one client, since it was made. The counters only grow.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    /// The library's version.
    pub version: String,
    /// Calls for an image that have ended: `ok`, or the name of the error's code.
    pub calls: BTreeMap<String, u64>,
    /// Calls for an image that are under way.
    pub in_progress: i64,
    /// Calls that have ended with an image that was there already.
    pub hits: u64,
    /// Calls whose image was not there, or could not be used.
    pub misses: u64,
    /// How often a call has begun to wait for another one, of this process or of another.
    pub waits: u64,
    /// Fetches with their builds that have ended by themselves, whoever waited for them: `ok`, or the
    /// name of the error's code.
    pub builds: BTreeMap<String, u64>,
    /// How long calls took.
    pub call_durations: Durations,
    /// How long the steps took: `lookup`, `inspect`, `wait`, `fetch`, `build`, `tag`. A build that many
    /// wait for counts once.
    pub step_durations: BTreeMap<String, Durations>,
}

/// A histogram.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Durations {
    /// How many.
    pub count: u64,
    /// All of them together.
    pub sum_seconds: f64,
    /// How many took at most so long; each has those before it in it.
    pub buckets: Vec<Bucket>,
}

/// How many took at most so long.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bucket {
    /// So long.
    pub le_seconds: f64,
    /// So many.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_cumulative_and_its_bounds_belong_to_it() {
        let histogram = Histogram::default();
        for ms in [5, 6, 25, 3_600_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let found = histogram.snapshot();
        assert_eq!(found.count, 4);
        assert_eq!(found.buckets[0].count, 1);
        assert_eq!(found.buckets[1].count, 3);
        assert_eq!(found.buckets[BUCKETS.len() - 1].count, 3);
        assert!((found.sum_seconds - 3600.036).abs() < 1e-9);
        assert!(BUCKETS.is_sorted());
    }

    #[test]
    fn every_code_has_a_counter_and_what_has_never_been_is_left_out() {
        let results = Results::default();
        assert_eq!(results.snapshot().len(), 1);
        for code in Code::ALL {
            results.count(Some(&Error::new(code, "")));
        }
        assert_eq!(results.snapshot().len(), Code::ALL.len() + 1);
        assert_eq!(results.snapshot()["ok"], 0);
    }
}
