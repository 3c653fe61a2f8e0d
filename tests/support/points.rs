//! All failpoints of the library (src/testing/point.rs), and how a call reaches each of them.

use std::collections::BTreeSet;
use std::path::Path;

use mol::event::Kind;
use serde_json::json;

use super::child::source;
use super::{Files, TestEnv, file, noise, script, unique};

/// The condition for a call to reach a failpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Any first call reaches it.
    First,
    /// It is reached after being passed this many times.
    Later(u32),
    /// Another failpoint must be slow.
    Slow(&'static str),
    /// The image must exist.
    Hit,
    /// Another caller must ask for the same image.
    Crowd,
    /// The first fetch must fail.
    Trouble,
}

/// In the order in which a call reaches them.
pub const POINTS: [(&str, Trigger); 43] = [
    ("entry", Trigger::First),
    ("event-LookupStarted", Trigger::First),
    ("event-LookupDone", Trigger::First),
    ("lookup-done", Trigger::First),
    ("event-CacheHit", Trigger::Hit),
    ("event-CacheMiss", Trigger::First),
    ("image-inspected", Trigger::First),
    ("event-Waiting", Trigger::Crowd),
    ("cache-opened", Trigger::First),
    ("holder-written", Trigger::First),
    ("lock-taken", Trigger::First),
    ("event-FetchStarted", Trigger::First),
    ("work-made", Trigger::First),
    ("git-answered", Trigger::First),
    ("git-received", Trigger::Later(3)),
    ("event-FetchProgress", Trigger::Slow("git-received")),
    ("event-Warning", Trigger::Trouble),
    ("pack-written", Trigger::First),
    ("checkout-begun", Trigger::First),
    ("checkout-object", Trigger::Later(2)),
    ("checkout-done", Trigger::First),
    ("tree-fetched", Trigger::First),
    ("tree-renamed", Trigger::First),
    ("event-FetchDone", Trigger::First),
    ("tree-ready", Trigger::First),
    ("event-BuildStarted", Trigger::First),
    ("event-BaseImage", Trigger::First),
    ("context-file", Trigger::Later(1)),
    ("event-ContextProgress", Trigger::Slow("context-file")),
    ("event-ContextDone", Trigger::First),
    // The points from here to "cache-synced" run in parallel with the build steps.
    ("tree-synced", Trigger::First),
    ("marker-written", Trigger::First),
    ("marker-renamed", Trigger::First),
    ("cache-synced", Trigger::First),
    ("event-StepStarted", Trigger::First),
    ("event-Log", Trigger::First),
    ("event-StepDone", Trigger::First),
    ("event-ExportStarted", Trigger::First),
    ("event-ExportDone", Trigger::First),
    ("image-built", Trigger::First),
    ("latest-tagged", Trigger::First),
    ("event-Tagged", Trigger::First),
    ("call-ended", Trigger::First),
];

/// Only pruning reaches these; tests/it/prune.rs tests them.
const OF_PRUNING: [&str; 2] = ["image-claimed", "image-judged"];

/// The names of the failpoints in the source code, except those of pruning.
pub fn failpoints_in_source() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    collect(&source("src"), &mut names);
    assert!(
        names.remove("event-{:?}"),
        "each event must be a failpoint: {names:?}"
    );
    for name in OF_PRUNING {
        assert!(names.remove(name), "{name} in {names:?}");
    }
    let kinds = Kind::ALL.iter().filter(|kind| {
        // The queue creates the first. The others need a registry or a builder, and are emitted like every other event.
        let elsewhere = [
            Kind::Thinned,
            Kind::PullStarted,
            Kind::PullProgress,
            Kind::PullDone,
            Kind::ExportProgress,
        ];
        !elsewhere.contains(kind)
    });
    names.extend(kinds.map(|kind| format!("event-{kind:?}")));
    names
}

fn collect(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, names);
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap();
        let calls = text.split("point!(\"").skip(1);
        names.extend(calls.map(|call| call.split('"').next().unwrap().to_owned()));
    }
}

/// The value of `FAILPOINTS` for this action at a failpoint, `once` or every time it is reached.
pub fn setting((name, trigger): (&str, Trigger), action: &str, once: bool) -> String {
    let count = if once { "1*" } else { "" };
    match trigger {
        Trigger::Later(passed) => format!("{name}={passed}*off->{count}return({action})"),
        Trigger::Slow(other) => format!("{other}=sleep(700);{name}={count}return({action})"),
        _ => format!("{name}={count}return({action})"),
    }
}

/// The value of `FAILPOINTS` with which the first pass of a failpoint waits until a file exists.
pub fn first_pass_until(name: &str, file: &Path) -> String {
    format!("{name}=1*return(until {})", file.display())
}

/// A template with which a call reaches every failpoint: several files, one of several chunks, and a step
/// with output.
pub fn template(env: &TestEnv) -> String {
    env.template("hermes", files())
}

fn files() -> Files {
    let busybox = super::engine::BUSYBOX;
    let text = format!("FROM {busybox}\nCOPY . /tree/\nRUN echo {}\n", unique());
    Files::from([
        ("Dockerfile".to_owned(), file(&text)),
        ("a/big".to_owned(), file(&noise(600_000))),
        ("content".to_owned(), file("right")),
        ("run".to_owned(), script("#!/bin/sh\n")),
    ])
}

/// Checks that the tree in an image or in the cache is the template's. `read` returns a file's content.
pub fn assert_right(mut read: impl FnMut(&str) -> Option<String>) {
    for (path, content) in files() {
        // The Dockerfile contains a unique word, different in each call of `files`.
        if path != "Dockerfile" {
            assert_eq!(read(&path).as_deref(), content["text"].as_str(), "{path}");
        }
    }
}

/// Prepares the environment so that the next call reaches the failpoint. Returns the number of callers.
pub fn prepare(env: &TestEnv, trigger: Trigger) -> u32 {
    match trigger {
        Trigger::Hit => {
            env.client().ensure("hermes").unwrap();
        }
        Trigger::Trouble => env
            .server
            .faults(json!([{ "match": "/git-upload-pack$", "truncate_after": 20, "times": 1 }])),
        _ => {}
    }
    if trigger == Trigger::Crowd { 2 } else { 1 }
}
