//! The private engines that the tests start do not meet.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::child::{source, succeed};

/// They are on one machine, so their containers are in one tree of cgroups, whatever their networks are.
#[test]
fn engines_in_two_networks_have_two_cgroups() {
    let parent = tempfile::tempdir().unwrap();
    let engine = |what: &str, folder: &Path| {
        let mut command = Command::new("unshare");
        command.arg("--net").arg(source("tests/engine"));
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
    assert_eq!(bridge, other_bridge, "each is the first in its network");
    assert_ne!(cgroup, other_cgroup);
}
