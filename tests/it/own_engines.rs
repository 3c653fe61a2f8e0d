//! The private engines that the tests start are isolated from each other.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::child::{source, succeed};

/// Engines in different network namespaces still share the cgroup tree of the machine.
#[test]
fn engines_in_different_networks_use_different_cgroups() {
    let parent = tempfile::tempdir().unwrap();
    let engine = |what: &str, folder: &Path| {
        let mut command = Command::new("unshare");
        command.arg("--net").arg(source("scripts/engine"));
        succeed(command.arg(what).arg(folder));
    };
    let folders = ["one", "two"].map(|name| parent.path().join(name));
    let notes = folders.each_ref().map(|folder| {
        engine("start", folder);
        ["bridge", "cgroup"].map(|note| fs::read_to_string(folder.join(note)).unwrap())
    });
    for folder in &folders {
        engine("stop", folder);
    }
    let [[bridge, cgroup], [other_bridge, other_cgroup]] = notes;
    assert_eq!(
        bridge, other_bridge,
        "each is the first engine in its network"
    );
    assert_ne!(cgroup, other_cgroup);
}
