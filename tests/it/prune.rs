//! Old images and trees go; everything else stays.

use std::fs;
use std::path::Path;

use mol::prune::{Action, PruneOptions, PruneReport, PrunedImage};
use mol::{Code, OptionName};

use crate::support::child::{BOTH, command, field, program, succeed};
use crate::support::engine::{BUSYBOX, Engine};
use crate::support::{Bed, Files, TestClient, block_on, file, unique};

const ALL_GO: PruneOptions = PruneOptions {
    keep_per_runtime: 0,
    dry_run: false,
};

fn copying(content: &str) -> Files {
    Files::from([
        ("Dockerfile".to_owned(), file("FROM scratch\nCOPY . /\n")),
        ("content".to_owned(), file(content)),
    ])
}

/// Commits of a runtime, each one built, the oldest first.
fn built(bed: &Bed, client: &TestClient, engine: &Engine, runtime: &str, n: usize) -> Vec<String> {
    let commits = (0..n).map(|number| {
        // Other tests' images must not share its layers.
        let content = format!("{runtime} {number} of {}", bed.isolation);
        let sha = bed.template(runtime, copying(&content));
        let _images = engine.keep_images();
        client.ensure(runtime).unwrap();
        if *engine.url == Engine::podman_of_the_tests().url {
            // There, images know their age in whole seconds.
            std::thread::sleep(std::time::Duration::from_millis(1050));
        }
        sha
    });
    commits.collect()
}

fn prune(client: &TestClient, engine: &Engine, options: PruneOptions) -> PruneReport {
    let _alone = engine.alone();
    block_on(client.inner().prune(options, None)).unwrap()
}

fn of<'r>(report: &'r PruneReport, reference: &str) -> &'r PrunedImage {
    let found = report
        .images
        .iter()
        .find(|image| image.image.r#ref == reference);
    found.unwrap_or_else(|| panic!("no {reference} in {report:#?}"))
}

fn trees(bed: &Bed, runtime: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(bed.cache().join(runtime))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

/// The whole story, on one engine.
fn the_newest_two_stay(bed: &Bed, client: &TestClient, engine: &Engine) {
    let hermes = built(bed, client, engine, "hermes", 4);
    let autogen = built(bed, client, engine, "autogen", 1);
    let reference = |sha: &str| bed.reference("hermes", sha);
    let before = (engine.references_of(&bed.isolation), bed.cached_paths());

    let dry = PruneOptions {
        dry_run: true,
        ..PruneOptions::default()
    };
    let would = prune(client, engine, dry);
    let after = (engine.references_of(&bed.isolation), bed.cached_paths());
    assert_eq!(before, after, "a dry run changes nothing");

    let did = prune(client, engine, PruneOptions::default());
    assert_eq!((&did.images, &did.trees), (&would.images, &would.trees));
    assert_eq!(did.freed_bytes, would.freed_bytes);
    assert!(did.freed_bytes > 0 && !did.dry_run && would.dry_run);
    for sha in &hermes[..2] {
        let gone = of(&did, &reference(sha));
        assert_eq!(gone.action, Action::Removed, "{gone:?}");
        assert_eq!(gone.reason, "older than the newest 2");
        assert_eq!(gone.image.commit_sha, *sha);
        assert!(engine.inspect(&reference(sha)).is_none());
        assert!(!bed.cache().join("hermes").join(&sha[..12]).exists());
    }
    for sha in &hermes[2..] {
        assert_eq!(of(&did, &reference(sha)).action, Action::Kept);
        assert!(engine.inspect(&reference(sha)).is_some());
    }
    let newest = of(&did, &reference(&hermes[3]));
    assert!(
        newest.image.latest && newest.reason.contains("latest"),
        "{newest:?}"
    );
    let alone = of(&did, &bed.reference("autogen", &autogen[0]));
    assert_eq!(alone.action, Action::Kept);
    let mut left: Vec<String> = hermes[2..].iter().map(|sha| sha[..12].to_owned()).collect();
    left.sort();
    assert_eq!(trees(bed, "hermes"), left);
    assert_eq!(trees(bed, "autogen"), [&autogen[0][..12]]);

    let again = prune(client, engine, PruneOptions::default());
    assert_eq!(again.freed_bytes, 0);
    assert!(
        again
            .images
            .iter()
            .all(|image| image.action == Action::Kept)
    );

    // What is left works: the newest is still a hit, and what is gone is made again.
    assert!(client.ensure("hermes").unwrap().cache_hit);
}

#[test]
fn the_newest_two_of_each_runtime_stay_and_a_dry_run_says_the_same() {
    let bed = Bed::new();
    the_newest_two_stay(&bed, &bed.client(), &bed.engine);
}

#[test]
fn so_it_is_with_podman() {
    let (bed, podman) = (Bed::new(), Engine::podman_of_the_tests());
    let client = bed.client_with(&[(OptionName::DockerHost, &podman.url)]);
    the_newest_two_stay(&bed, &client, &podman);
    podman.remove_all_of(&bed.isolation);
}

#[test]
fn what_a_container_uses_stays_running_or_not() {
    for engine in [Engine::of_the_tests(), Engine::podman_of_the_tests()] {
        let bed = Bed::new();
        let client = bed.client_with(&[(OptionName::DockerHost, &engine.url)]);
        let hermes = built(&bed, &client, &engine, "hermes", 2);
        let old = bed.reference("hermes", &hermes[0]);
        let name = format!("libmol-test-{}", unique());
        engine.create_container(&name, &old);
        let report = prune(&client, &engine, ALL_GO);
        let kept = of(&report, &old);
        assert_eq!(kept.action, Action::Kept);
        assert_eq!(kept.image.used_by.join(" "), name);
        assert!(kept.reason.contains(&name), "{kept:?}");

        engine.remove_container(&name);
        let report = prune(&client, &engine, ALL_GO);
        assert_eq!(of(&report, &old).action, Action::Removed);
        // The moving tag's stays even so.
        let newest = of(&report, &bed.reference("hermes", &hermes[1]));
        assert_eq!(newest.action, Action::Kept);
        assert_eq!(trees(&bed, "hermes"), [""; 0]);
        engine.remove_all_of(&bed.isolation);
    }
}

#[test]
fn what_is_somebody_elses_is_never_touched() {
    let bed = Bed::new();
    let client = bed.client();
    let hermes = built(&bed, &client, &bed.engine, "hermes", 2);
    let old = bed.reference("hermes", &hermes[0]);
    // Another tool's image under a name of ours, and under names that only look like it.
    let not_ours = bed.reference("hermes", &"f".repeat(40));
    bed.engine.tag(BUSYBOX, &not_ours);
    let alike = old.replace("template-hermes", "template-hermes2");
    bed.engine.tag(&old, &alike);
    // The image of a server with another isolation.
    let other = format!("{}-2", bed.isolation);
    let neighbour = bed.client_with(&[(OptionName::Isolation, &other)]);
    bed.template("hermes", copying("of both"));
    let theirs = neighbour.ensure("hermes").unwrap().reference;
    bed.template("hermes", copying("of the neighbour"));
    neighbour.ensure("hermes").unwrap();

    let report = prune(&client, &bed.engine, ALL_GO);
    let kept = of(&report, &not_ours);
    assert_eq!(kept.action, Action::Kept);
    assert!(kept.reason.contains("labels"), "{kept:?}");
    let untagged = of(&report, &old);
    assert_eq!(untagged.action, Action::Untagged, "{untagged:?}");
    assert_eq!(untagged.image.other_refs.join(" "), alike);
    assert!(bed.engine.inspect(&old).is_none());
    for left in [&not_ours, &alike, &theirs] {
        assert!(bed.engine.inspect(left).is_some(), "{left}");
    }
    assert!(
        report
            .images
            .iter()
            .all(|image| image.image.r#ref != theirs)
    );
    bed.engine.remove_all_of(&other);
}

#[test]
fn a_tree_and_an_image_at_which_somebody_is_stay() {
    let bed = Bed::new();
    let client = bed.client();
    let hermes = built(&bed, &client, &bed.engine, "hermes", 2);
    let folder = bed.cache().join("hermes");
    let lock = folder.join(format!(".{}.lock", &hermes[0][..12]));
    let lock = fs::OpenOptions::new().write(true).open(lock).unwrap();
    lock.lock().unwrap();
    for dry_run in [true, false] {
        let report = prune(&client, &bed.engine, PruneOptions { dry_run, ..ALL_GO });
        let image = of(&report, &bed.reference("hermes", &hermes[0]));
        assert_eq!(image.action, Action::Kept, "{image:?}");
        let tree = report
            .trees
            .iter()
            .find(|tree| tree.tree.commit_sha == hermes[0]);
        let tree = tree.unwrap();
        assert_eq!(tree.action, Action::Kept);
        assert!(tree.reason.contains("at this commit"), "{tree:?}");
    }
    drop(lock);
    let report = prune(&client, &bed.engine, ALL_GO);
    assert!(
        report
            .trees
            .iter()
            .all(|tree| tree.action == Action::Removed)
    );
}

#[test]
fn what_a_dead_process_has_left_goes_and_what_is_not_ours_in_the_cache_stays() {
    let bed = Bed::new();
    let client = bed.client();
    let hermes = built(&bed, &client, &bed.engine, "hermes", 1);
    let folder = bed.cache().join("hermes");
    let half = folder.join(".work-0123456789ab-Xy12Zw");
    fs::create_dir_all(half.join("tree")).unwrap();
    fs::write(half.join("tree/file"), "x".repeat(100_000)).unwrap();
    let unvouched = folder.join("ba9876543210");
    fs::create_dir(&unvouched).unwrap();
    // A link with a name of ours, to what must not be lost.
    let elsewhere = bed.scratch().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("precious"), "").unwrap();
    std::os::unix::fs::symlink(&elsewhere, folder.join("aaaaaaaaaaaa")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, half.join("link")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, bed.cache().join("codex")).unwrap();
    fs::create_dir(elsewhere.join("bbbbbbbbbbbb")).unwrap();
    for name in [
        "hermes/notes",
        "hermes/0123456789abc",
        "other",
        ".work-0123456789ab-x",
    ] {
        fs::create_dir(bed.cache().join(name)).unwrap();
    }

    let report = prune(&client, &bed.engine, PruneOptions::default());
    let gone: Vec<&str> = report
        .trees
        .iter()
        .filter(|tree| tree.action == Action::Removed)
        .map(|tree| tree.tree.path.as_str())
        .collect();
    assert_eq!(gone.len(), 2, "{report:#?}");
    assert!(report.freed_bytes >= 100_000);
    for path in [&half, &unvouched] {
        assert!(gone.contains(&path.to_str().unwrap()) && !path.exists());
    }
    for left in [
        Path::new("hermes").join(&hermes[0][..12]).to_str().unwrap(),
        "hermes/notes",
        "hermes/0123456789abc",
        "other",
        ".work-0123456789ab-x",
        "codex/bbbbbbbbbbbb",
        "hermes/aaaaaaaaaaaa/precious",
    ] {
        assert!(bed.cache().join(left).exists(), "{left}");
    }
}

#[test]
fn any_number_may_prune_at_once_while_others_build() {
    let bed = Bed::new();
    built(&bed, &bed.client(), &bed.engine, "hermes", 3);
    bed.template("hermes", copying("the newest"));
    let _alone = bed.engine.alone();
    std::thread::scope(|scope| {
        let prune = || {
            let client = bed.client();
            block_on(client.inner().prune(ALL_GO, None)).unwrap()
        };
        let prunes: Vec<_> = (0..4).map(|_| scope.spawn(prune)).collect();
        let image = bed.client().ensure("hermes").unwrap();
        for prune in prunes {
            prune.join().unwrap();
        }
        assert!(bed.engine.inspect(&image.reference).is_some());
    });
}

#[test]
fn a_list_says_what_is_here() {
    let bed = Bed::new();
    let client = bed.client();
    assert!(
        block_on(client.inner().list(None))
            .unwrap()
            .images
            .is_empty()
    );
    assert!(!bed.cache().exists(), "looking makes nothing");
    let hermes = built(&bed, &client, &bed.engine, "hermes", 2);
    let found = block_on(client.inner().list(None)).unwrap();
    let commits: Vec<&str> = found
        .images
        .iter()
        .map(|image| &*image.commit_sha)
        .collect();
    assert_eq!(commits, [&*hermes[1], &*hermes[0]], "the newest first");
    let newest = &found.images[0];
    assert_eq!(newest.runtime, "hermes");
    assert_eq!(newest.platform, "linux/amd64");
    assert!(newest.latest && !found.images[1].latest);
    assert!(newest.bytes > 0 && newest.own_bytes > 0 && newest.own_bytes <= newest.bytes);
    assert_eq!(Some(newest.image_id.clone()), bed.engine.id(&newest.r#ref));
    assert_eq!(found.trees.len(), 2);
    assert!(found.trees.iter().all(|tree| tree.whole && tree.bytes > 0));
}

#[test]
fn without_an_engine_nothing_is_removed_from_the_cache_either() {
    let bed = Bed::new();
    built(&bed, &bed.client(), &bed.engine, "hermes", 1);
    let before = bed.cached_paths();
    let client = bed.client_with(&[(OptionName::DockerHost, "unix:///nowhere/docker.sock")]);
    let error = block_on(client.inner().prune(ALL_GO, None)).unwrap_err();
    assert_eq!(error.code, Code::EngineUnreachable);
    assert_eq!((error.runtime.as_str(), error.url.as_str()), ("", ""));
    assert_eq!(bed.cached_paths(), before);
}

#[test]
fn a_c_program_lists_and_prunes_at_once_and_through_the_queue() {
    for link in BOTH {
        let bed = Bed::new();
        let hermes = built(&bed, &bed.client(), &bed.engine, "hermes", 2);
        let _alone = bed.engine.alone();
        let output = succeed(&mut command(&bed, &program("upkeep", link)));
        let report = |name: &str| -> serde_json::Value {
            serde_json::from_str(&field(&output, name)).unwrap()
        };
        assert_eq!(report("list")["images"].as_array().unwrap().len(), 2);
        assert_eq!(report("dry")["dry_run"], true);
        let pruned = &report("prune")["result"];
        assert_eq!(pruned["images"][1]["commit_sha"], hermes[0]);
        assert_eq!(pruned["images"][1]["action"], "removed");
        assert_eq!(report("dry")["freed_bytes"], pruned["freed_bytes"]);
        let listed = &report("listed")["result"];
        assert_eq!(listed["images"].as_array().unwrap().len(), 1);
        assert!(
            bed.engine
                .inspect(&bed.reference("hermes", &hermes[0]))
                .is_none()
        );
    }
}
