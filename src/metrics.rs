//! The metrics of one client: counters and histograms that a server can export.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde::Serialize;

use crate::error::{Code, Error};
use crate::event::Kind;
use crate::process;

/// The upper bounds of the histograms' buckets, in seconds: from a fast answer of the engine to a build under emulation.
pub const BUCKETS: [f64; 16] = [
    0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0,
    1800.0,
];

/// A measured step. A build that many callers wait for is measured once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Lookup,
    Inspect,
    Wait,
    Fetch,
    Build,
    Tag,
}

/// The names, in the order of [`Step`].
const STEPS: [&str; 6] = ["lookup", "inspect", "wait", "fetch", "build", "tag"];

/// How many nodes have counters of their own. All others are counted together as [`OTHER`]: a server may run for years,
/// and its builder may get new nodes all the time.
const MAX_NODES: usize = 100;
const OTHER: &str = "other";

/// The counters of one client.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    calls: Results,
    in_progress: AtomicI64,
    hits: AtomicU64,
    misses: AtomicU64,
    waits: AtomicU64,
    builds: Results,
    nodes: Mutex<BTreeMap<String, Node>>,
    call: Histogram,
    steps: [Histogram; STEPS.len()],
}

/// The builds of one node.
#[derive(Debug, Default)]
struct Node {
    results: Results,
    running: i64,
}

/// Successes, and failures in the order of [`Code::ALL`].
#[derive(Debug, Default)]
struct Results([AtomicU64; Code::ALL.len() + 1]);

impl Results {
    fn count(&self, code: Option<Code>) {
        let failure = |code| Code::ALL.iter().position(|known| *known == code);
        let index = code.and_then(failure).map_or(0, |failure| failure + 1);
        if let Some(counter) = self.0.get(index) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts by name, without zeros, except for success.
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
    /// One count for each bucket; the last is for values above all bounds.
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
    pub(crate) fn started(&self) {
        self.in_progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the end of a call for an image.
    pub(crate) fn ended(&self, error: Option<&Error>, hit: bool, took: Duration) {
        self.in_progress.fetch_sub(1, Ordering::Relaxed);
        self.calls.count(error.map(|error| error.code));
        self.hits.fetch_add(u64::from(hit), Ordering::Relaxed);
        self.call.observe(took);
    }

    /// Counts an event of a call.
    pub(crate) fn event(&self, kind: Kind) {
        let counter = match kind {
            Kind::CacheMiss => &self.misses,
            Kind::Waiting => &self.waits,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a fetch and build that was not cancelled.
    pub(crate) fn built(&self, error: Option<&Error>) {
        self.builds.count(error.map(|error| error.code));
    }

    /// Counts that a build starts on a node, by its name.
    pub(crate) fn node_started(&self, node: &str) {
        self.node(node, |node| node.running += 1);
    }

    /// Counts that a build ends on a node, and its result: a failure with `code`, or a success if that is `None`.
    pub(crate) fn node_ended(&self, node: &str, code: Option<Code>) {
        self.node_left(node);
        self.node(node, |node| node.results.count(code));
    }

    /// Counts that a build was cancelled on a node. It has no result.
    pub(crate) fn node_left(&self, node: &str) {
        self.node(node, |node| node.running -= 1);
    }

    /// Counts that a build could not start on a node.
    pub(crate) fn node_failed(&self, node: &str) {
        let code = Some(Code::BuilderUnreachable);
        self.node(node, |node| node.results.count(code));
    }

    fn node(&self, name: &str, update: impl FnOnce(&mut Node)) {
        let mut nodes = self.nodes();
        let name = match nodes.contains_key(name) || nodes.len() < MAX_NODES {
            true => name,
            false => OTHER,
        };
        update(nodes.entry(name.to_owned()).or_default());
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<String, Node>> {
        process::lock(&self.nodes)
    }

    pub(crate) fn step(&self, step: Step, took: Duration) {
        self.steps[step as usize].observe(took);
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let steps = STEPS.iter().zip(&self.steps);
        let nodes = self.nodes();
        Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            calls: self.calls.snapshot(),
            in_progress: self.in_progress.load(Ordering::Relaxed),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            waits: self.waits.load(Ordering::Relaxed),
            builds: self.builds.snapshot(),
            node_builds: (nodes.iter())
                .map(|(name, node)| (name.clone(), node.results.snapshot()))
                .collect(),
            node_builds_in_progress: (nodes.iter())
                .map(|(name, node)| (name.clone(), node.running))
                .collect(),
            call_durations: self.call.snapshot(),
            step_durations: steps
                .map(|(name, step)| ((*name).to_owned(), step.snapshot()))
                .collect(),
        }
    }
}

/// The metrics of one client since its creation. All numbers only grow, except those of calls and builds in progress.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    /// The library's version.
    pub version: String,
    /// Calls for an image that have ended, by result: `ok` or the name of the error's code.
    pub calls: BTreeMap<String, u64>,
    /// Calls for an image that are running.
    pub in_progress: i64,
    /// Calls that returned an image that the engine had already.
    pub hits: u64,
    /// Calls whose image was missing or could not be used.
    pub misses: u64,
    /// How often a call has started to wait for another call or a prune, of this process or of another.
    pub waits: u64,
    /// Fetches with their builds that were not cancelled, by result: `ok` or the name of the error's code. A build that
    /// many callers wait for counts once.
    pub builds: BTreeMap<String, u64>,
    /// Builds that have ended on a node of a builder, by the node's address and by result, as in `builds`. `engine` is the
    /// engine's own builder. A build that could not start on a node, or lost it, counts there as `builder_unreachable`, and
    /// again on the next one.
    pub node_builds: BTreeMap<String, BTreeMap<String, u64>>,
    /// Builds that are running, by node.
    pub node_builds_in_progress: BTreeMap<String, i64>,
    /// The durations of calls.
    pub call_durations: Durations,
    /// The durations of the steps: `lookup`, `inspect`, `wait`, `fetch`, `build`, `tag`. A build that many callers wait
    /// for counts once.
    pub step_durations: BTreeMap<String, Durations>,
}

/// A histogram.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Durations {
    /// The number of observations.
    pub count: u64,
    /// Their sum in seconds.
    pub sum_seconds: f64,
    /// Cumulative counts for each upper bound.
    pub buckets: Vec<Bucket>,
}

/// A bucket of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bucket {
    /// Upper bound in seconds.
    pub le_seconds: f64,
    /// Cumulative count: observations of at most the upper bound.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_include_their_upper_bounds() {
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
    fn each_code_has_a_counter_and_zeros_are_left_out() {
        let results = Results::default();
        assert_eq!(results.snapshot().len(), 1);
        for code in Code::ALL {
            results.count(Some(code));
        }
        assert_eq!(results.snapshot().len(), Code::ALL.len() + 1);
        assert_eq!(results.snapshot()["ok"], 0);
    }

    #[test]
    fn a_node_counts_results_and_running_builds() {
        let metrics = Metrics::default();
        metrics.node_started("a");
        metrics.node_started("a");
        metrics.node_ended("a", Some(Code::BuildFailed));
        metrics.node_started("b");
        metrics.node_ended("b", None);
        metrics.node_started("b");
        metrics.node_left("b");
        metrics.node_failed("c");
        let found = metrics.snapshot();
        assert_eq!(
            serde_json::json!(found.node_builds),
            serde_json::json!({
                "a": { "ok": 0, "build_failed": 1 },
                "b": { "ok": 1 },
                "c": { "ok": 0, "builder_unreachable": 1 },
            })
        );
        assert_eq!(
            serde_json::json!(found.node_builds_in_progress),
            serde_json::json!({ "a": 1, "b": 0, "c": 0 })
        );
    }

    #[test]
    fn nodes_beyond_the_limit_are_counted_together() {
        let metrics = Metrics::default();
        for node in 0..MAX_NODES + 10 {
            metrics.node_started(&format!("tcp://10.0.0.{node}:1234"));
            metrics.node_ended(&format!("tcp://10.0.0.{node}:1234"), None);
        }
        let found = metrics.snapshot();
        assert_eq!(found.node_builds.len(), MAX_NODES + 1);
        assert_eq!(found.node_builds[OTHER]["ok"], 10);
        assert_eq!(found.node_builds_in_progress[OTHER], 0);
    }
}
