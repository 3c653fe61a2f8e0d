//! The process is killed at every failpoint of the pipeline. The next call succeeds without manual
//! cleanup, builds the right tree, and neither uses nor leaves partial results (promise P5).

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};

use crate::support::child::{Link, command, program_with_points, text};
use crate::support::points::{
    POINTS, Trigger, assert_right, failpoints_in_source, prepare, setting, template,
};
use crate::support::{Files, TestEnv, file, in_parallel, soak, wait_until};

const SIGKILL: i32 = 9;

#[test]
fn every_failpoint_in_the_code_is_tested() {
    let tested: BTreeSet<String> = POINTS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(tested.len(), POINTS.len(), "each once");
    assert_eq!(tested, failpoints_in_source());
}

#[test]
fn after_a_kill_at_any_point_the_next_call_builds_the_right_tree() {
    program_with_points("crowd", Link::Static);
    soak(|| in_parallel(POINTS.into_iter(), killed_at));
}

fn killed_at(point: (&str, Trigger)) {
    let (name, trigger) = point;
    let env = TestEnv::new();
    let sha = template(&env);
    let callers = prepare(&env, trigger).to_string();
    let killed = command(&env, &program_with_points("crowd", Link::Static))
        .env("FAILPOINTS", setting(point, "kill", false))
        .args([callers.as_str(), "0", "1", "hermes"])
        .output()
        .unwrap();
    let said = text(&killed);
    assert_eq!(killed.status.signal(), Some(SIGKILL), "{name}: {said}");
    assert!(
        !said.contains("end 1"),
        "{name}: a call ended before the kill: {said}"
    );
    if marked_complete(&env, &sha) {
        assert_complete(&env, &sha);
    }

    let client = env.client();
    let image = client
        .ensure("hermes")
        .unwrap_or_else(|error| panic!("{name}: {error:?}"));
    assert_eq!(image.commit_sha, sha, "{name}");
    let files = env.engine.files(&image.reference);
    assert_right(|path| Some(files.get(&format!("tree/{path}"))?.content.clone()));
    assert_eq!(files["tree/run"].mode, 0o755, "{name}");
    assert!(client.ensure("hermes").unwrap().cache_hit, "{name}");
    let references = [env.reference("hermes", &sha), env.latest("hermes")];
    assert_eq!(
        env.engine.references_of(&env.isolation),
        references,
        "{name}"
    );
    if !image.cache_hit {
        assert!(marked_complete(&env, &sha), "{name}");
        assert_complete(&env, &sha);
        let paths = env.cached_paths();
        let leftover = paths.iter().find(|path| path.contains(".work"));
        assert_eq!(leftover, None, "{name}");
    }
}

fn marked_complete(env: &TestEnv, sha: &str) -> bool {
    let marker = format!("hermes/.{}.json", &sha[..12]);
    env.cache().join(marker).exists()
}

fn assert_complete(env: &TestEnv, sha: &str) {
    let tree = env.cache().join("hermes").join(&sha[..12]);
    assert_right(|path| std::fs::read_to_string(tree.join(path)).ok());
}

#[test]
fn a_checkout_killed_halfway_is_not_used() {
    let env = TestEnv::new();
    let mut files: Files = (0..500)
        .map(|n| (format!("files/{n}"), file(&n.to_string())))
        .collect();
    files.insert(
        "Dockerfile".to_owned(),
        file("FROM scratch\nCOPY files /\n"),
    );
    let sha = env.template("hermes", files);
    let killed = command(&env, &program_with_points("ensure", Link::Static))
        .env("FAILPOINTS", "checkout-object=250*off->return(kill)")
        .arg("hermes")
        .output()
        .unwrap();
    assert_eq!(killed.status.signal(), Some(SIGKILL), "{}", text(&killed));
    let paths = env.cached_paths();
    let written = paths
        .iter()
        .filter(|path| path.contains("/tree/files/"))
        .count();
    assert!((1..500).contains(&written), "{written} files");
    assert!(!marked_complete(&env, &sha));

    let image = env.client().ensure("hermes").unwrap();
    assert_eq!(env.engine.files(&image.reference).len(), 500);
    assert!(!env.cached_paths().iter().any(|path| path.contains(".work")));
}

#[test]
fn repeated_kills_leave_at_most_one_fetch_folder() {
    let env = TestEnv::new();
    let sha = template(&env);
    let leftovers = || {
        let paths = env.cached_paths();
        let mut folders: Vec<String> = paths
            .iter()
            .filter_map(|path| path.split('/').find(|part| part.starts_with(".work")))
            .map(str::to_owned)
            .collect();
        folders.dedup();
        folders
    };
    for _ in 0..3 {
        let killed = command(&env, &program_with_points("ensure", Link::Static))
            .env("FAILPOINTS", "checkout-done=return(kill)")
            .arg("hermes")
            .output()
            .unwrap();
        assert_eq!(killed.status.signal(), Some(SIGKILL));
        let remaining = leftovers();
        assert_eq!(remaining.len(), 1, "{remaining:?}");
        assert!(
            remaining[0].starts_with(&format!(".work-{}-", &sha[..12])),
            "{remaining:?}"
        );
    }
    env.client().ensure("hermes").unwrap();
    assert!(leftovers().is_empty(), "{:?}", leftovers());
}

/// Starts a call with these failpoints, and two callers that wait for it once `reached` is true. Then `kill` kills the
/// call. Returns the output of the waiters.
fn waiters_after_a_kill(
    env: &TestEnv,
    failpoints: &str,
    reached: impl Fn() -> bool,
    kill: impl FnOnce(&mut Child),
) -> String {
    let mut holder = command(env, &program_with_points("ensure", Link::Static))
        .env("FAILPOINTS", failpoints)
        .arg("hermes")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the call to hold the lock", || reached().then_some(()));
    let output = env.scratch().join("output");
    let mut waiter = command(env, &program_with_points("crowd", Link::Static))
        .args(["2", "0", "1", "hermes"])
        .stdout(File::create(&output).unwrap())
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(&output).unwrap();
    let waits = format!("\"holder\":\"process {}\"", holder.id());
    wait_until("the other process to wait", || {
        said().contains(&waits).then_some(())
    });
    kill(&mut holder);
    assert_eq!(holder.wait().unwrap().signal(), Some(SIGKILL));
    let status = waiter.wait().unwrap();
    let said = said();
    assert!(status.success(), "{said}");
    assert_eq!(said.matches("end 1 hermes ok").count(), 2, "{said}");
    said
}

#[test]
fn a_waiter_takes_over_when_the_lock_holder_is_killed() {
    let env = TestEnv::new();
    let sha = template(&env);
    let tree = env.cache().join("hermes").join(&sha[..12]);
    let said = waiters_after_a_kill(
        &env,
        "tree-renamed=sleep(60000)",
        || tree.exists(),
        |holder| holder.kill().unwrap(),
    );
    assert_eq!(
        said.matches("\"kind\":\"fetch_started\"").count(),
        1,
        "{said}"
    );
    assert_complete(&env, &sha);
}

#[test]
fn a_waiter_sets_the_latest_tag_if_the_builder_was_killed_before() {
    let env = TestEnv::new();
    let sha = template(&env);
    let (tree, go) = (
        env.cache().join("hermes").join(&sha[..12]),
        env.scratch().join("go"),
    );
    let said = waiters_after_a_kill(
        &env,
        &format!(
            "tree-ready=return(until {});image-built=return(kill)",
            go.display()
        ),
        || tree.exists(),
        |_| drop(File::create(&go).unwrap()),
    );
    assert!(!said.contains("\"kind\":\"build_started\""), "{said}");
    let references = [env.reference("hermes", &sha), env.latest("hermes")];
    assert_eq!(env.engine.references_of(&env.isolation), references);
}
