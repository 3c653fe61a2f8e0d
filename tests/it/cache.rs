//! The cache: only complete trees are used, whatever else is in it, and the next call succeeds
//! (promise P5).

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use mol::OptionName;
use mol::event::Kind;

use crate::support::child::{Link, command, program, text, under_strace};
use crate::support::server::{PLAIN, copying_all, dockerfile, of_service};
use crate::support::{TestEnv, wait_until};

fn tree(env: &TestEnv, sha: &str) -> PathBuf {
    env.cache().join("hermes").join(&sha[..12])
}

/// The image contains the commit's files and no stale ones.
fn assert_right(env: &TestEnv) {
    let image = env.client().ensure("hermes").unwrap();
    let files = env.engine.files(&image.reference);
    assert_eq!(files["content"].content, "right");
    assert!(!files.contains_key("stale"), "{files:?}");
}

/// Creates the runtime's cache folder and returns the path of the tree, which does not exist yet.
fn prepared(env: &TestEnv) -> PathBuf {
    let sha = env.template("hermes", copying_all("right"));
    let tree = tree(env, &sha);
    fs::create_dir_all(tree.parent().unwrap()).unwrap();
    fs::set_permissions(env.cache(), PermissionsExt::from_mode(0o700)).unwrap();
    fs::set_permissions(tree.parent().unwrap(), PermissionsExt::from_mode(0o700)).unwrap();
    tree
}

/// A system call in strace's output, with the lines on which it began and ended. Calls of other threads
/// may be between them.
#[derive(Debug)]
struct Call {
    text: String,
    begun: usize,
    ended: usize,
}

/// The system calls with these names that a program makes, in order. Descriptors are shown with their path.
fn traced(env: &TestEnv, program: &Command, calls: &str) -> Vec<Call> {
    let how = ["-y", "-s", "4096", "-e", "signal=none"];
    let (output, trace) = under_strace(env, program, calls, &how);
    assert!(output.status.success(), "{}", text(&output));
    let mut made: Vec<Call> = Vec::new();
    let mut unfinished = HashMap::new();
    for (number, line) in trace.lines().enumerate() {
        let (thread, rest) = line.split_once(' ').unwrap();
        let rest = rest.trim_start();
        if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread.to_owned(), (begun.to_owned(), number));
            continue;
        }
        let resumed = rest.split_once(" resumed>");
        let (text, begun) = match resumed.filter(|_| rest.starts_with("<... ")) {
            Some((_, rest)) => {
                let (text, begun) = unfinished.remove(thread).unwrap();
                (text + rest, begun)
            }
            None => (rest.to_owned(), number),
        };
        made.push(Call {
            text,
            begun,
            ended: number,
        });
    }
    made
}

/// The first successful call that contains all of these parts.
fn call<'c>(calls: &'c [Call], parts: &[&str]) -> &'c Call {
    let mut succeeded = calls.iter().filter(|call| call.text.ends_with("= 0"));
    succeeded
        .find(|call| parts.iter().all(|part| call.text.contains(part)))
        .unwrap_or_else(|| panic!("no {parts:?} in {calls:#?}"))
}

#[test]
fn a_tree_is_marked_complete_only_after_it_is_synced_to_disk() {
    let env = TestEnv::new();
    let sha = env.template("hermes", copying_all("right"));
    let short = &sha[..12];
    let mut ensure = command(&env, &program("ensure", Link::Static));
    ensure.arg("hermes");
    let calls = "syncfs,fsync,fdatasync,rename,renameat,renameat2";
    let calls = traced(&env, &ensure, calls);
    let place = format!("hermes/{short}\"");
    let placed = call(&calls, &["rename", "/tree\"", &place]);
    let synced = call(&calls, &["syncfs(", &format!("hermes/{short}>")]);
    let marker = call(&calls, &["sync(", &format!("hermes/.work-{short}-")]);
    let marked = call(&calls, &["rename", &format!("hermes/.{short}.json\"")]);
    assert!(placed.ended < synced.begun, "{calls:#?}");
    assert!(synced.ended < marked.begun, "{calls:#?}");
    assert!(marker.ended < marked.begun, "{calls:#?}");
    // The marker's directory entry is synced too before the call ends.
    let folder = call(&calls, &["sync(", "cache/hermes>"]);
    assert!(marked.ended < folder.begun, "{calls:#?}");
}

/// The marker is removed before any part of the tree: otherwise a kill in between would leave half a tree
/// that counts as complete.
fn assert_marker_goes_first(calls: &[Call], sha: &str) {
    let short = &sha[..12];
    let marker = call(calls, &[&format!("hermes/.{short}.json\"")]);
    let of_tree = |call: &&Call| call.text.contains(&format!("hermes/{short}"));
    let tree: Vec<&Call> = calls.iter().filter(of_tree).collect();
    assert!(tree.len() >= 3, "two files and their folder: {calls:#?}");
    for removed in tree {
        assert!(marker.ended < removed.begun, "{removed:?} in {calls:#?}");
    }
}

const REMOVALS: &str = "unlink,unlinkat,rmdir";

#[test]
fn pruning_removes_the_marker_before_the_tree() {
    let env = TestEnv::new();
    let sha = env.template("hermes", copying_all("right"));
    env.client().ensure("hermes").unwrap();
    env.engine.remove_all_of(&env.isolation);
    let _alone = env.engine.alone();
    let mut prune = command(&env, &program("upkeep", Link::Static));
    prune.args(["prune", "-1"]);
    assert_marker_goes_first(&traced(&env, &prune, REMOVALS), &sha);
    assert!(!tree(&env, &sha).exists());
}

/// Replaces the text of the marker of this commit's tree.
fn change_marker(env: &TestEnv, sha: &str, change: impl Fn(&str) -> String) {
    let marker = env.cache().join(format!("hermes/.{}.json", &sha[..12]));
    let text = fs::read_to_string(&marker).unwrap();
    assert!(text.contains(sha), "{text}");
    fs::write(&marker, change(&text)).unwrap();
}

#[test]
fn a_discarded_tree_loses_its_marker_first() {
    let env = TestEnv::new();
    let sha = env.template("hermes", copying_all("right"));
    env.client().ensure("hermes").unwrap();
    env.engine.remove_all_of(&env.isolation);
    let other = format!("{}{}", &sha[..12], "0".repeat(28));
    change_marker(&env, &sha, |text| text.replace(&sha, &other));
    let mut ensure = command(&env, &program("ensure", Link::Static));
    ensure.arg("hermes");
    assert_marker_goes_first(&traced(&env, &ensure, REMOVALS), &sha);
}

#[test]
fn a_half_written_tree_is_discarded() {
    let env = TestEnv::new();
    let tree = prepared(&env);
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("Dockerfile"), "FROM scratch\nCOPY . /\n").unwrap();
    fs::write(tree.join("stale"), "").unwrap();
    fs::write(tree.join("content"), "ri").unwrap();
    assert_right(&env);
}

#[test]
fn an_empty_tree_is_discarded() {
    let env = TestEnv::new();
    fs::create_dir(prepared(&env)).unwrap();
    assert_right(&env);
}

#[test]
fn a_file_in_place_of_the_tree_is_discarded() {
    let env = TestEnv::new();
    fs::write(prepared(&env), "").unwrap();
    assert_right(&env);
}

#[test]
fn a_symlink_in_place_of_the_tree_is_discarded_not_followed() {
    let env = TestEnv::new();
    let tree = prepared(&env);
    let elsewhere = env.scratch().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("stale"), "").unwrap();
    fs::write(elsewhere.join("Dockerfile"), "FROM scratch\nCOPY . /\n").unwrap();
    std::os::unix::fs::symlink(&elsewhere, tree).unwrap();
    assert_right(&env);
    assert!(elsewhere.join("stale").exists());
}

#[test]
fn a_tree_of_another_commit_with_the_same_short_sha_is_discarded() {
    let env = TestEnv::new();
    let sha = env.template("hermes", copying_all("right"));
    env.client().ensure("hermes").unwrap();
    env.engine.remove_all_of(&env.isolation);
    // The marker names the full commit id: here, a different one.
    let other = format!("{}{}", &sha[..12], "0".repeat(28));
    change_marker(&env, &sha, |text| text.replace(&sha, &other));
    fs::write(tree(&env, &sha).join("stale"), "").unwrap();
    assert_right(&env);
}

#[test]
fn a_truncated_marker_is_ignored() {
    let env = TestEnv::new();
    let sha = env.template("hermes", copying_all("right"));
    env.client().ensure("hermes").unwrap();
    env.engine.remove_all_of(&env.isolation);
    change_marker(&env, &sha, |text| text[..text.len() / 2].to_owned());
    fs::write(tree(&env, &sha).join("stale"), "").unwrap();
    assert_right(&env);
}

#[test]
fn a_complete_tree_is_used_without_a_fetch() {
    let env = TestEnv::new();
    env.template("hermes", copying_all("right"));
    env.client().ensure("hermes").unwrap();
    env.engine.remove_all_of(&env.isolation);
    env.server.requests();
    let client = env.client();
    client.ensure("hermes").unwrap();
    assert_eq!(client.count(Kind::FetchStarted), 0);
    assert!(of_service(&env.server.requests(), "git").is_empty());
}

#[test]
fn the_leftovers_of_a_killed_fetch_are_not_used() {
    let env = TestEnv::new();
    let sha = env.template("hermes", copying_all("right"));
    env.server.faults(
        serde_json::json!([{ "match": "/git-upload-pack$", "truncate_after": 60, "hang": true }]),
    );
    let mut child = command(&env, &program("ensure", Link::Static))
        .arg("hermes")
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the fetch", || {
        env.server
            .requests()
            .iter()
            .any(|request| request.path.ends_with("git-upload-pack"))
            .then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!tree(&env, &sha).exists());
    env.server.faults(serde_json::json!([]));
    assert_right(&env);
}

#[test]
fn old_leftovers_are_removed_and_recent_ones_kept() {
    let env = TestEnv::new();
    let folder = prepared(&env).parent().unwrap().to_owned();
    let (old, young) = (folder.join(".work-old"), folder.join(".work-young"));
    for leftover in [&old, &young] {
        fs::create_dir(leftover).unwrap();
    }
    let last_week = std::time::SystemTime::now() - std::time::Duration::from_secs(7 * 24 * 3600);
    fs::File::open(&old)
        .unwrap()
        .set_modified(last_week)
        .unwrap();
    assert_right(&env);
    assert!(!old.exists());
    assert!(young.exists(), "another process may be using it");
}

#[test]
fn the_cache_is_accessible_only_to_its_owner() {
    let env = TestEnv::new();
    env.template("hermes", copying_all("right"));
    env.client().ensure("hermes").unwrap();
    for folder in [env.cache(), env.cache().join("hermes")] {
        let mode = fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", folder.display());
    }
}

#[test]
fn the_default_cache_path_follows_xdg_home_and_tmpdir() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let (home, xdg, tmp) = (
        env.scratch().join("home"),
        env.scratch().join("xdg"),
        env.scratch().join("tmp"),
    );
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let below = "molecule/workspace-template-build/hermes";
    for (options, expected) in [
        (
            vec![
                (OptionName::Home, text(&home)),
                (OptionName::XdgCacheHome, text(&xdg)),
            ],
            xdg.join(below),
        ),
        (
            vec![
                (OptionName::Home, text(&home)),
                (OptionName::XdgCacheHome, "relative".to_owned()),
            ],
            home.join(".cache").join(below),
        ),
        (
            vec![(OptionName::Home, text(&home))],
            home.join(".cache").join(below),
        ),
        (
            vec![
                (OptionName::Home, String::new()),
                (OptionName::Tmpdir, text(&tmp)),
            ],
            tmp.join(below),
        ),
    ] {
        env.engine.remove_all_of(&env.isolation);
        let mut all: Vec<(OptionName, &str)> = vec![(OptionName::CacheDir, "")];
        all.extend(options.iter().map(|(name, value)| (*name, value.as_str())));
        env.client_with(&all).ensure("hermes").unwrap();
        assert!(expected.exists(), "{}", expected.display());
        for folder in [&home, &xdg, &tmp] {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

#[test]
fn the_cache_may_be_a_symlink_to_another_disk() {
    let env = TestEnv::new();
    env.template("hermes", copying_all("right"));
    let disk = env.scratch().join("disk");
    fs::create_dir(&disk).unwrap();
    fs::set_permissions(&disk, PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(&disk, env.cache()).unwrap();
    assert_right(&env);
    assert!(disk.join("hermes").exists());
}
