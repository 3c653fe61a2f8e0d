//! The process is killed at every point of the pipeline; the next call succeeds without help, builds
//! the right tree, and nothing half-done is used or left (promise P5).

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use crate::support::child::{Link, command, program, program_with_points, text};
use crate::support::points::{POINTS, Way, assert_right, in_the_code, prepare, setting, template};
use crate::support::{Bed, Files, file, side_by_side, soak, until};

const SIGKILL: i32 = 9;

#[test]
fn the_points_that_are_tested_are_the_points_in_the_code() {
    let tested: BTreeSet<String> = POINTS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(tested.len(), POINTS.len(), "each once");
    assert_eq!(tested, in_the_code());
    assert!(tested.len() >= 20);
}

#[test]
fn after_a_kill_at_any_point_the_next_call_succeeds_and_builds_the_right_tree() {
    program_with_points("crowd", Link::Static);
    soak(|| side_by_side(POINTS.into_iter(), killed_at));
}

fn killed_at(point: (&str, Way)) {
    let (name, way) = point;
    let bed = Bed::new();
    let sha = template(&bed);
    let callers = prepare(&bed, way).to_string();
    let killed = command(&bed, &program_with_points("crowd", Link::Static))
        .env("FAILPOINTS", setting(point, "kill", false))
        .args([callers.as_str(), "0", "1", "hermes"])
        .output()
        .unwrap();
    let said = text(&killed);
    assert_eq!(killed.status.signal(), Some(SIGKILL), "{name}: {said}");
    assert!(
        !said.contains("end 1"),
        "{name}: nobody was told of an image: {said}"
    );
    if vouched_for(&bed, &sha) {
        assert_whole(&bed, &sha);
    }

    let client = bed.client();
    let image = client
        .ensure("hermes")
        .unwrap_or_else(|error| panic!("{name}: {error:?}"));
    assert_eq!(image.commit_sha, sha, "{name}");
    let files = bed.engine.files(&image.reference);
    assert_right(|path| Some(files.get(&format!("tree/{path}"))?.content.clone()));
    assert_eq!(files["tree/run"].mode, 0o755, "{name}");
    assert!(client.ensure("hermes").unwrap().cache_hit, "{name}");
    let references = [bed.reference("hermes", &sha), bed.latest("hermes")];
    assert_eq!(
        bed.engine.references_of(&bed.isolation),
        references,
        "{name}"
    );
    if !image.cache_hit {
        assert!(vouched_for(&bed, &sha), "{name}");
        assert_whole(&bed, &sha);
        let paths = bed.cached_paths();
        let litter = paths.iter().find(|path| path.contains(".work"));
        assert_eq!(litter, None, "{name}");
    }
}

fn vouched_for(bed: &Bed, sha: &str) -> bool {
    let voucher = format!("hermes/.{}.json", &sha[..12]);
    bed.cache().join(voucher).exists()
}

fn assert_whole(bed: &Bed, sha: &str) {
    let tree = bed.cache().join("hermes").join(&sha[..12]);
    assert_right(|path| std::fs::read_to_string(tree.join(path)).ok());
}

#[test]
fn a_kill_in_the_middle_of_a_large_checkout_leaves_nothing_that_is_used() {
    let bed = Bed::new();
    let mut files: Files = (0..500)
        .map(|n| (format!("files/{n}"), file(&n.to_string())))
        .collect();
    files.insert(
        "Dockerfile".to_owned(),
        file("FROM scratch\nCOPY files /\n"),
    );
    let sha = bed.template("hermes", files);
    let killed = command(&bed, &program_with_points("ensure", Link::Static))
        .env("FAILPOINTS", "checkout-object=250*off->return(kill)")
        .arg("hermes")
        .output()
        .unwrap();
    assert_eq!(killed.status.signal(), Some(SIGKILL), "{}", text(&killed));
    let half = bed.cached_paths();
    let written = half
        .iter()
        .filter(|path| path.contains("/tree/files/"))
        .count();
    assert!((1..500).contains(&written), "{written} files");
    assert!(!vouched_for(&bed, &sha));

    let image = bed.client().ensure("hermes").unwrap();
    assert_eq!(bed.engine.files(&image.reference).len(), 500);
    assert!(!bed.cached_paths().iter().any(|path| path.contains(".work")));
}

#[test]
fn a_process_that_was_killed_several_times_in_a_row_leaves_no_more_than_one_fetch() {
    let bed = Bed::new();
    let sha = template(&bed);
    let leftovers = || {
        let paths = bed.cached_paths();
        let mut works: Vec<String> = paths
            .iter()
            .filter_map(|path| path.split('/').find(|part| part.starts_with(".work")))
            .map(str::to_owned)
            .collect();
        works.dedup();
        works
    };
    for _ in 0..3 {
        let killed = command(&bed, &program_with_points("ensure", Link::Static))
            .env("FAILPOINTS", "checkout-done=return(kill)")
            .arg("hermes")
            .output()
            .unwrap();
        assert_eq!(killed.status.signal(), Some(SIGKILL));
        let left = leftovers();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(
            left[0].starts_with(&format!(".work-{}-", &sha[..12])),
            "{left:?}"
        );
    }
    bed.client().ensure("hermes").unwrap();
    assert!(leftovers().is_empty(), "{:?}", leftovers());
}

#[test]
fn who_waits_for_a_process_that_is_killed_in_its_fetch_does_the_work_itself() {
    let bed = Bed::new();
    let sha = template(&bed);
    let mut holder = command(&bed, &program_with_points("ensure", Link::Static))
        .env("FAILPOINTS", "tree-renamed=sleep(60000)")
        .arg("hermes")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let tree = bed.cache().join("hermes").join(&sha[..12]);
    until("a tree that nobody vouches for", || {
        tree.exists().then_some(())
    });
    let waiter = command(&bed, &program("crowd", Link::Static))
        .args(["2", "0", "1", "hermes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    holder.kill().unwrap();
    holder.wait().unwrap();
    let output = waiter.wait_with_output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("process {}", holder.id())), "{said}");
    assert_eq!(
        said.matches("\"kind\":\"fetch_started\"").count(),
        1,
        "{said}"
    );
    assert_eq!(said.matches("end 1 hermes ok").count(), 2, "{said}");
    assert_whole(&bed, &sha);
}
