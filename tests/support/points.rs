//! All failpoints of the library (src/testing/point.rs), and how a call reaches each of them.

use std::collections::BTreeSet;
use std::path::Path;

use mol::event::Kind;
use serde_json::json;

use super::child::source;
use super::{Bed, Files, file, noise, script, unique};

/// The condition for a call to reach a failpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
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
pub const POINTS: [(&str, Way); 42] = [
    ("entry", Way::First),
    ("event-LookupStarted", Way::First),
    ("event-LookupDone", Way::First),
    ("lookup-done", Way::First),
    ("event-CacheHit", Way::Hit),
    ("event-CacheMiss", Way::First),
    ("image-inspected", Way::First),
    ("event-Waiting", Way::Crowd),
    ("cache-opened", Way::First),
    ("holder-written", Way::First),
    ("lock-taken", Way::First),
    ("event-FetchStarted", Way::First),
    ("work-made", Way::First),
    ("git-answered", Way::First),
    ("git-received", Way::Later(3)),
    ("event-FetchProgress", Way::Slow("git-received")),
    ("event-Warning", Way::Trouble),
    ("pack-written", Way::First),
    ("checkout-begun", Way::First),
    ("checkout-object", Way::Later(2)),
    ("checkout-done", Way::First),
    ("tree-fetched", Way::First),
    ("tree-synced", Way::First),
    ("tree-renamed", Way::First),
    ("marker-written", Way::First),
    ("marker-renamed", Way::First),
    ("cache-synced", Way::First),
    ("event-FetchDone", Way::First),
    ("tree-ready", Way::First),
    ("event-BuildStarted", Way::First),
    ("context-file", Way::Later(1)),
    ("event-ContextProgress", Way::Slow("context-file")),
    ("event-ContextDone", Way::First),
    ("event-StepStarted", Way::First),
    ("event-Log", Way::First),
    ("event-StepDone", Way::First),
    ("event-ExportStarted", Way::First),
    ("event-ExportDone", Way::First),
    ("image-built", Way::First),
    ("latest-tagged", Way::First),
    ("event-Tagged", Way::First),
    ("call-ended", Way::First),
];

/// Only pruning reaches these; tests/it/prune.rs tests them.
const OF_PRUNING: [&str; 2] = ["image-claimed", "image-judged"];

/// The names of the failpoints in the source code, except those of pruning.
pub fn in_the_code() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    collect(&source("src"), &mut names);
    assert!(
        names.remove("event-{:?}"),
        "each event must be a failpoint: {names:?}"
    );
    for name in OF_PRUNING {
        assert!(names.remove(name), "{name} in {names:?}");
    }
    let kinds = Kind::ALL.iter().filter(|kind| **kind != Kind::Thinned); // the queue creates it
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
pub fn setting((name, way): (&str, Way), action: &str, once: bool) -> String {
    let count = if once { "1*" } else { "" };
    match way {
        Way::Later(passed) => format!("{name}={passed}*off->{count}return({action})"),
        Way::Slow(other) => format!("{other}=sleep(700);{name}={count}return({action})"),
        _ => format!("{name}={count}return({action})"),
    }
}

/// A template with which a call reaches every failpoint: several files, one of several chunks, and a step
/// with output.
pub fn template(bed: &Bed) -> String {
    bed.template("hermes", files())
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
pub fn prepare(bed: &Bed, way: Way) -> u32 {
    match way {
        Way::Hit => {
            bed.client().ensure("hermes").unwrap();
        }
        Way::Trouble => bed
            .server
            .faults(json!([{ "match": "/git-upload-pack$", "truncate_after": 20, "times": 1 }])),
        _ => {}
    }
    if way == Way::Crowd { 2 } else { 1 }
}
