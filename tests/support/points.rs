//! Every point in the library at which it can be stopped (src/testing/point.rs), and how a call comes by it.

use std::collections::BTreeSet;
use std::path::Path;

use mol::event::Kind;
use serde_json::json;

use super::child::source;
use super::{Bed, Files, file, noise, script, unique};

/// What has to be so for a call to come by a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is the first call.
    First,
    /// The point is passed so often before.
    Later(u32),
    /// Another point takes its time.
    Slow(&'static str),
    /// The image is there.
    Hit,
    /// Another caller wants the same.
    Crowd,
    /// The first fetch breaks off.
    Trouble,
}

/// In the order in which a call comes by them.
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

/// Only pruning comes by these; tests/it/prune.rs stops it there.
const OF_PRUNING: [&str; 2] = ["image-claimed", "image-judged"];

/// The names in the code itself that a call for an image comes by.
pub fn in_the_code() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    collect(&source("src"), &mut names);
    assert!(
        names.remove("event-{:?}"),
        "each event is a point: {names:?}"
    );
    for name in OF_PRUNING {
        assert!(names.remove(name), "{name} in {names:?}");
    }
    let kinds = Kind::ALL.iter().filter(|kind| **kind != Kind::Thinned); // made in the queue
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

/// The value of `FAILPOINTS` that has this done at a point; `once`, or whenever a call comes by.
pub fn setting((name, way): (&str, Way), what: &str, once: bool) -> String {
    let count = if once { "1*" } else { "" };
    match way {
        Way::Later(passed) => format!("{name}={passed}*off->{count}return({what})"),
        Way::Slow(other) => format!("{other}=sleep(700);{name}={count}return({what})"),
        _ => format!("{name}={count}return({what})"),
    }
}

/// The template that every point is come by with: several files, of several chunks, and a step that
/// has something to say.
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

/// Is the tree in an image, or in the cache, that of the template?
pub fn assert_right(mut read: impl FnMut(&str) -> Option<String>) {
    for (path, content) in files() {
        // The Dockerfile has a word of its own.
        if path != "Dockerfile" {
            assert_eq!(read(&path).as_deref(), content["text"].as_str(), "{path}");
        }
    }
}

/// Makes it so that the next call comes by the point. Gives the number of callers.
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
