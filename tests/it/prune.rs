//! Prune removes old images and trees, and nothing else.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::Duration;

use mol::event::Kind;
use mol::upkeep::prune::{Action, PruneOptions, PruneReport, PrunedImage};
use mol::{Code, OptionName};

use crate::support::child::{BOTH, Link, command, field, program, program_with_points, succeed};
use crate::support::engine::{BUSYBOX, Engine};
use crate::support::points::first_pass_until;
use crate::support::server::copying_all;
use crate::support::{
    End, Handling, Proxy, TestClient, TestEnv, block_on, in_parallel, random_below, unique,
    wait_until,
};

const KEEP_NONE: PruneOptions = PruneOptions {
    keep_per_runtime: 0,
    recent: Duration::ZERO,
    dry_run: false,
};

/// Keeps the newest two; recent use does not count.
const KEEP_TWO: PruneOptions = PruneOptions {
    keep_per_runtime: 2,
    ..KEEP_NONE
};

/// A used image is kept this much longer than `recent`: one lease (src/job/ledger.rs).
const LEASE: Duration = Duration::from_secs(5);

fn both_engines() -> impl Iterator<Item = Engine> + Send {
    [Engine::of_the_tests(), Engine::podman_of_the_tests()].into_iter()
}

/// Builds `n` commits of a runtime and returns them, oldest first.
fn built(
    env: &TestEnv,
    client: &TestClient,
    engine: &Engine,
    runtime: &str,
    n: usize,
) -> Vec<String> {
    let commits = (0..n).map(|number| {
        // Unique content, so that no other test's image shares its layers.
        let content = format!("{runtime} {number} of {}", env.isolation);
        let sha = env.template(runtime, copying_all(&content));
        let _images = engine.keep_images();
        client.ensure(runtime).unwrap();
        if *engine.url == Engine::podman_of_the_tests().url {
            // Podman stores the creation time of an image in whole seconds.
            std::thread::sleep(Duration::from_millis(1050));
        }
        sha
    });
    commits.collect()
}

/// Resets the branch to an older commit of the template.
fn go_back(env: &TestEnv, runtime: &str, sha: &str) {
    let repository = env.server.bare_repository(runtime);
    fs::write(repository.join("refs/heads/main"), sha).unwrap();
}

fn prune(client: &TestClient, engine: &Engine, options: PruneOptions) -> PruneReport {
    let _alone = engine.alone();
    block_on(client.inner().prune(options).wait(None)).unwrap()
}

fn of<'r>(report: &'r PruneReport, reference: &str) -> &'r PrunedImage {
    let found = report
        .images
        .iter()
        .find(|image| image.image.r#ref == reference);
    found.unwrap_or_else(|| panic!("no {reference} in {report:#?}"))
}

fn trees(env: &TestEnv, runtime: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(env.cache().join(runtime))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

/// A dry run, a prune and a second prune on one engine.
fn keeps_the_newest_two(env: &TestEnv, client: &TestClient, engine: &Engine) {
    let hermes = built(env, client, engine, "hermes", 4);
    let autogen = built(env, client, engine, "autogen", 1);
    let reference = |sha: &str| env.reference("hermes", sha);
    let before = (engine.references_of(&env.isolation), env.cached_paths());

    let dry = PruneOptions {
        dry_run: true,
        ..KEEP_TWO
    };
    let would = prune(client, engine, dry);
    let after = (engine.references_of(&env.isolation), env.cached_paths());
    assert_eq!(before, after, "a dry run changes nothing");

    let did = prune(client, engine, KEEP_TWO);
    assert_eq!((&did.images, &did.trees), (&would.images, &would.trees));
    assert_eq!(did.freed_bytes, would.freed_bytes);
    assert!(did.freed_bytes > 0 && !did.dry_run && would.dry_run);
    for sha in &hermes[..2] {
        let removed = of(&did, &reference(sha));
        assert_eq!(removed.action, Action::Removed, "{removed:?}");
        assert_eq!(removed.reason, "older than the newest 2");
        assert_eq!(removed.image.commit_sha, *sha);
        assert!(engine.inspect(&reference(sha)).is_none());
        assert!(!env.cache().join("hermes").join(&sha[..12]).exists());
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
    let alone = of(&did, &env.reference("autogen", &autogen[0]));
    assert_eq!(alone.action, Action::Kept);
    let mut left: Vec<String> = hermes[2..].iter().map(|sha| sha[..12].to_owned()).collect();
    left.sort();
    assert_eq!(trees(env, "hermes"), left);
    assert_eq!(trees(env, "autogen"), [&autogen[0][..12]]);

    let again = prune(client, engine, KEEP_TWO);
    assert_eq!(again.freed_bytes, 0);
    assert!(
        again
            .images
            .iter()
            .all(|image| image.action == Action::Kept)
    );

    // The newest image is still a hit.
    assert!(client.ensure("hermes").unwrap().cache_hit);
}

#[test]
fn prune_keeps_the_newest_two_and_a_dry_run_reports_the_same() {
    let env = TestEnv::new();
    keeps_the_newest_two(&env, &env.client(), &env.engine);
}

#[test]
fn prune_keeps_the_newest_two_on_podman() {
    let (env, podman) = (TestEnv::new(), Engine::podman_of_the_tests());
    let client = env.client_with(&[(OptionName::DockerHost, &podman.url)]);
    keeps_the_newest_two(&env, &client, &podman);
    podman.remove_all_of(&env.isolation);
}

#[test]
fn an_image_used_by_a_container_that_does_not_run_is_kept() {
    for engine in [Engine::of_the_tests(), Engine::podman_of_the_tests()] {
        let env = TestEnv::new();
        let client = env.client_with(&[(OptionName::DockerHost, &engine.url)]);
        let hermes = built(&env, &client, &engine, "hermes", 2);
        let old = env.reference("hermes", &hermes[0]);
        let name = format!("libmol-test-{}", unique());
        engine.create_container(&name, &old);
        let report = prune(&client, &engine, KEEP_NONE);
        let kept = of(&report, &old);
        assert_eq!(kept.action, Action::Kept);
        assert_eq!(kept.image.used_by.join(" "), name);
        assert!(kept.reason.contains(&name), "{kept:?}");

        engine.remove_container(&name);
        let report = prune(&client, &engine, KEEP_NONE);
        assert_eq!(of(&report, &old).action, Action::Removed);
        // The image of the moving tag is kept nevertheless.
        let newest = of(&report, &env.reference("hermes", &hermes[1]));
        assert_eq!(newest.action, Action::Kept);
        assert_eq!(trees(&env, "hermes"), [""; 0]);
        engine.remove_all_of(&env.isolation);
    }
}

#[test]
fn an_image_that_the_engine_refuses_to_remove_is_kept() {
    // The proxy answers with an empty list of containers, as if the container had been created after the listing.
    for engine in [Engine::of_the_tests(), Engine::podman_of_the_tests()] {
        let env = TestEnv::new();
        let proxy = Proxy::start(&engine, env.scratch(), move |line| {
            match line.contains("/containers/json") {
                true => Handling::json("[]"),
                false => Handling::Pass,
            }
        });
        let client = env.client_with(&[(OptionName::DockerHost, &proxy.url)]);
        let hermes = built(&env, &client, &engine, "hermes", 2);
        let old = env.reference("hermes", &hermes[0]);
        let name = format!("libmol-test-{}", unique());
        engine.create_container(&name, &old);
        let id = engine.id(&old);
        let report = prune(&client, &engine, KEEP_NONE);
        let kept = of(&report, &old);
        assert_eq!(kept.action, Action::Kept, "{kept:?}");
        assert_eq!(engine.id(&old), id);
        let sent = proxy.sent();
        let delete = sent.lines().find(|line| line.starts_with("DELETE /"));
        let delete = delete.expect("the removal was requested");
        assert!(!delete.contains("force"), "{delete}");
        engine.remove_container(&name);
        engine.remove_all_of(&env.isolation);
    }
}

#[test]
fn images_not_built_here_or_of_another_isolation_are_kept() {
    let env = TestEnv::new();
    let client = env.client();
    let hermes = built(&env, &client, &env.engine, "hermes", 2);
    let old = env.reference("hermes", &hermes[0]);
    // Another tool's image under a libmol name, and a libmol image under a name that is only similar.
    let foreign = env.reference("hermes", &"f".repeat(40));
    env.engine.tag(BUSYBOX, &foreign);
    let similar = old.replace("template-hermes", "template-hermes2");
    env.engine.tag(&old, &similar);
    // The image of a server with another isolation.
    let other = format!("{}-2", env.isolation);
    let neighbour = env.client_with(&[(OptionName::Isolation, &other)]);
    env.template("hermes", copying_all("of both"));
    let theirs = neighbour.ensure("hermes").unwrap().reference;
    env.template("hermes", copying_all("of the neighbour"));
    neighbour.ensure("hermes").unwrap();

    let report = prune(&client, &env.engine, KEEP_NONE);
    let kept = of(&report, &foreign);
    assert_eq!(kept.action, Action::Kept);
    assert!(kept.reason.contains("labels"), "{kept:?}");
    let untagged = of(&report, &old);
    assert_eq!(untagged.action, Action::Untagged, "{untagged:?}");
    assert_eq!(untagged.image.other_refs.join(" "), similar);
    assert!(env.engine.inspect(&old).is_none());
    for left in [&foreign, &similar, &theirs] {
        assert!(env.engine.inspect(left).is_some(), "{left}");
    }
    assert!(
        report
            .images
            .iter()
            .all(|image| image.image.r#ref != theirs)
    );
    env.engine.remove_all_of(&other);
}

#[test]
fn foreign_images_and_incomplete_trees_do_not_count_as_newest() {
    let env = TestEnv::new();
    let client = env.client();
    let hermes = built(&env, &client, &env.engine, "hermes", 3);
    // A foreign image and an incomplete tree, both newer than the three commits.
    env.engine
        .tag(BUSYBOX, &env.reference("hermes", &"f".repeat(40)));
    fs::create_dir(env.cache().join("hermes/ba9876543210")).unwrap();
    let report = prune(&client, &env.engine, KEEP_TWO);
    let action = |sha: &str| of(&report, &env.reference("hermes", sha)).action;
    let actions = [&hermes[0], &hermes[1], &hermes[2]].map(|sha| action(sha));
    assert_eq!(actions, [Action::Removed, Action::Kept, Action::Kept]);
    let mut left = [&hermes[1][..12], &hermes[2][..12]];
    left.sort_unstable();
    assert_eq!(trees(&env, "hermes"), left);
}

#[test]
fn an_image_removed_by_another_client_is_not_counted_as_freed() {
    let env = TestEnv::new();
    let hermes = built(&env, &env.client(), &env.engine, "hermes", 2);
    let not_found = "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 30\r\n\r\n\
                     {\"message\":\"No such image: x\"}";
    let proxy = Proxy::start(&env.engine, env.scratch(), move |line| {
        match line.starts_with("DELETE ") {
            true => Handling::Answer(not_found.as_bytes().to_vec(), End::Stay),
            false => Handling::Pass,
        }
    });
    let client = env.client_with(&[(OptionName::DockerHost, &proxy.url)]);
    let report = prune(&client, &env.engine, KEEP_NONE);
    let old = of(&report, &env.reference("hermes", &hermes[0]));
    assert_eq!(old.reason, "already removed by another program");
    assert!(old.image.own_bytes > 0);
    let trees: u64 = report.trees.iter().map(|tree| tree.tree.bytes).sum();
    assert_eq!(report.freed_bytes, trees);
}

#[test]
fn the_tree_and_image_of_a_locked_commit_are_kept() {
    let env = TestEnv::new();
    let client = env.client();
    let hermes = built(&env, &client, &env.engine, "hermes", 2);
    let folder = env.cache().join("hermes");
    let lock = folder.join(format!(".{}.lock", &hermes[0][..12]));
    let lock = fs::OpenOptions::new().write(true).open(lock).unwrap();
    lock.lock().unwrap();
    for dry_run in [true, false] {
        let report = prune(
            &client,
            &env.engine,
            PruneOptions {
                dry_run,
                ..KEEP_NONE
            },
        );
        let image = of(&report, &env.reference("hermes", &hermes[0]));
        assert_eq!(image.action, Action::Kept, "{image:?}");
        let tree = report
            .trees
            .iter()
            .find(|tree| tree.tree.commit_sha == hermes[0]);
        let tree = tree.unwrap();
        assert_eq!(tree.action, Action::Kept);
        assert!(tree.reason.contains("running build"), "{tree:?}");
    }
    drop(lock);
    let report = prune(&client, &env.engine, KEEP_NONE);
    assert!(
        report
            .trees
            .iter()
            .all(|tree| tree.action == Action::Removed)
    );
}

#[test]
fn an_image_and_a_tree_that_cannot_be_locked_are_kept_and_reported() {
    let env = TestEnv::new();
    let client = env.client();
    let hermes = built(&env, &client, &env.engine, "hermes", 3);
    let lock = format!("hermes/.{}.lock", &hermes[0][..12]);
    fs::remove_file(env.cache().join(&lock)).unwrap();
    fs::create_dir(env.cache().join(&lock)).unwrap();
    let report = prune(&client, &env.engine, KEEP_NONE);
    for (commit, action) in [(&hermes[0], Action::Kept), (&hermes[1], Action::Removed)] {
        let image = of(&report, &env.reference("hermes", commit));
        let tree = (report.trees.iter()).find(|tree| &tree.tree.commit_sha == commit);
        let tree = tree.unwrap();
        assert_eq!((image.action, tree.action), (action, action), "{report:#?}");
        for reason in [&image.reason, &tree.reason] {
            assert_eq!(reason.contains(&lock), action == Action::Kept, "{reason}");
        }
    }
}

#[test]
fn leftovers_are_removed_and_foreign_files_in_the_cache_are_kept() {
    let env = TestEnv::new();
    let client = env.client();
    let hermes = built(&env, &client, &env.engine, "hermes", 1);
    let folder = env.cache().join("hermes");
    let half = folder.join(".work-0123456789ab-Xy12Zw");
    fs::create_dir_all(half.join("tree")).unwrap();
    fs::write(half.join("tree/file"), "x".repeat(100_000)).unwrap();
    let incomplete = folder.join("ba9876543210");
    fs::create_dir(&incomplete).unwrap();
    // Symlinks with names that libmol uses, to a folder that must not be lost.
    let elsewhere = env.scratch().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("precious"), "").unwrap();
    std::os::unix::fs::symlink(&elsewhere, folder.join("aaaaaaaaaaaa")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, half.join("link")).unwrap();
    for name in [
        "hermes/notes",
        "hermes/0123456789abc",
        "other",
        ".work-0123456789ab-x",
    ] {
        fs::create_dir(env.cache().join(name)).unwrap();
    }

    let report = prune(&client, &env.engine, PruneOptions::default());
    let gone: Vec<&str> = report
        .trees
        .iter()
        .filter(|tree| tree.action == Action::Removed)
        .map(|tree| tree.tree.path.as_str())
        .collect();
    assert_eq!(gone.len(), 2, "{report:#?}");
    assert!(report.freed_bytes >= 100_000);
    for path in [&half, &incomplete] {
        assert!(gone.contains(&path.to_str().unwrap()) && !path.exists());
    }
    for left in [
        Path::new("hermes").join(&hermes[0][..12]).to_str().unwrap(),
        "hermes/notes",
        "hermes/0123456789abc",
        "other",
        ".work-0123456789ab-x",
        "hermes/aaaaaaaaaaaa/precious",
    ] {
        assert!(env.cache().join(left).exists(), "{left}");
    }
}

#[test]
fn parallel_prunes_and_builds_do_not_conflict() {
    let env = TestEnv::new();
    built(&env, &env.client(), &env.engine, "hermes", 3);
    env.template("hermes", copying_all("the newest"));
    let _alone = env.engine.alone();
    std::thread::scope(|scope| {
        let prune = || {
            let client = env.client();
            block_on(client.inner().prune(KEEP_NONE).wait(None)).unwrap()
        };
        let prunes: Vec<_> = (0..4).map(|_| scope.spawn(prune)).collect();
        let image = env.client().ensure("hermes").unwrap();
        for prune in prunes {
            prune.join().unwrap();
        }
        assert!(env.engine.inspect(&image.reference).is_some());
    });
}

#[test]
fn list_reports_images_and_trees() {
    let env = TestEnv::new();
    let client = env.client();
    assert!(
        block_on(client.inner().list().wait(None))
            .unwrap()
            .images
            .is_empty()
    );
    assert!(!env.cache().exists(), "listing creates no cache folder");
    let hermes = built(&env, &client, &env.engine, "hermes", 2);
    let found = block_on(client.inner().list().wait(None)).unwrap();
    let commits: Vec<&str> = found
        .images
        .iter()
        .map(|image| &*image.commit_sha)
        .collect();
    assert_eq!(commits, [&*hermes[1], &*hermes[0]], "newest first");
    let newest = &found.images[0];
    assert_eq!(newest.runtime, "hermes");
    assert_eq!(newest.platform, "linux/amd64");
    assert!(newest.latest && !found.images[1].latest);
    assert!(newest.bytes > 0 && newest.own_bytes > 0 && newest.own_bytes <= newest.bytes);
    assert_eq!(Some(newest.image_id.clone()), env.engine.id(&newest.r#ref));
    assert_eq!(found.trees.len(), 2);
    assert!(found.trees.iter().all(|tree| tree.whole && tree.bytes > 0));
}

#[test]
fn prune_without_an_engine_leaves_the_cache_unchanged() {
    let env = TestEnv::new();
    built(&env, &env.client(), &env.engine, "hermes", 1);
    let before = env.cached_paths();
    let client = env.client_with(&[(OptionName::DockerHost, "unix:///nowhere/docker.sock")]);
    let error = block_on(client.inner().prune(KEEP_NONE).wait(None)).unwrap_err();
    assert_eq!(error.code, Code::EngineUnreachable);
    assert_eq!((error.runtime.as_str(), error.url.as_str()), ("", ""));
    assert_eq!(env.cached_paths(), before);
}

#[test]
fn a_c_program_lists_and_prunes() {
    for link in BOTH {
        let env = TestEnv::new();
        let hermes = built(&env, &env.client(), &env.engine, "hermes", 2);
        let _alone = env.engine.alone();
        let output = succeed(&mut command(&env, &program("upkeep", link)));
        let report = |name: &str| -> serde_json::Value {
            serde_json::from_str(&field(&output, name)).unwrap()
        };
        assert_eq!(report("list")["images"].as_array().unwrap().len(), 2);
        for what in ["images", "trees"] {
            let recent = report("recent")[what].as_array().unwrap().clone();
            assert_eq!(recent.len(), 2);
            assert!(recent.iter().all(|one| one["action"] == "kept"));
        }
        assert_eq!(report("dry")["dry_run"], true);
        let pruned = &report("prune");
        assert_eq!(pruned["images"][1]["commit_sha"], hermes[0]);
        assert_eq!(pruned["images"][1]["action"], "removed");
        assert_eq!(report("dry")["freed_bytes"], pruned["freed_bytes"]);
        let listed = &report("listed");
        assert_eq!(listed["images"].as_array().unwrap().len(), 1);
        assert!(
            env.engine
                .inspect(&env.reference("hermes", &hermes[0]))
                .is_none()
        );
    }
}

/// `recent` of two seconds, so that a test can wait until an image may be removed.
const BRIEF: PruneOptions = PruneOptions {
    recent: Duration::from_secs(2),
    ..KEEP_NONE
};

/// Waits until [`BRIEF`] treats all earlier use as old. Engines store some times in whole seconds.
fn wait_until_unused() {
    std::thread::sleep(BRIEF.recent + LEASE + Duration::from_secs(1));
}

/// A process that prunes with the options of [`BRIEF`] and this cache folder.
fn brief_prune(env: &TestEnv, engine: &Engine, cache: &Path, program: &Path) -> Command {
    let mut prune = command(env, program);
    prune
        .args(["prune", "2000"])
        .env("DOCKER_HOST", &*engine.url)
        .env("MOLECULE_LOCAL_BUILD_CACHE", cache);
    prune
}

/// Whether a process holds the exclusive lock of a file. Trying to take the lock would hold it
/// briefly, and prune could not get it meanwhile.
fn is_locked(path: &Path) -> bool {
    let Ok(file) = fs::metadata(path) else {
        return false;
    };
    // The last part is the inode. Lines with an arrow are waiters.
    let inode = format!(":{}", file.ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|lock| {
        let mut fields = lock.split_whitespace();
        lock.contains(" WRITE ")
            && !lock.contains("->")
            && fields.any(|field| field.ends_with(&inode))
    })
}

/// The action and reason that such a process reported for a commit.
fn of_process(report: &serde_json::Value, list: &str, commit: &str) -> (String, String) {
    let all = report[list].as_array().unwrap();
    let one = all.iter().find(|one| one["commit_sha"] == commit);
    let one = one.unwrap_or_else(|| panic!("no {commit} in {report:#}"));
    let text = |name: &str| one[name].as_str().unwrap().to_owned();
    (text("action"), text("reason"))
}

#[test]
fn recently_built_or_returned_images_are_kept() {
    // Not in parallel: a prune must come before the lease of the hit ends.
    for engine in both_engines() {
        let env = TestEnv::new();
        let client = env.client_with(&[(OptionName::DockerHost, &engine.url)]);
        let hermes = built(&env, &client, &engine, "hermes", 3);
        let ten_minutes = PruneOptions {
            keep_per_runtime: 0,
            ..PruneOptions::default()
        };
        let report = prune(&client, &engine, ten_minutes);
        let why = "used or built within the last 10 minutes";
        for sha in &hermes[..2] {
            let image = of(&report, &env.reference("hermes", sha));
            assert_eq!((image.action, &*image.reason), (Action::Kept, why));
        }
        assert!(report.trees.iter().all(|tree| tree.reason == why));
        assert_eq!((report.trees.len(), report.freed_bytes), (3, 0));

        wait_until_unused();
        // Taken before the hits, so that waiting for other tests does not make them old.
        let alone = engine.alone();
        // Hits the oldest image, then the newest, which becomes `latest` again. Repeated before each prune, because two
        // seconds pass quickly on a busy machine.
        let hit = || {
            for sha in [&hermes[0], &hermes[2]] {
                go_back(&env, "hermes", sha);
                assert!(client.ensure("hermes").unwrap().cache_hit);
            }
        };
        let elsewhere = env.scratch().join("elsewhere");
        let other = env.client_with(&[
            (OptionName::DockerHost, &engine.url),
            (OptionName::CacheDir, elsewhere.to_str().unwrap()),
        ]);
        let dry = PruneOptions {
            dry_run: true,
            ..BRIEF
        };
        let why = "used or built within the last 2 seconds";
        for (client, options) in [(&client, dry), (&other, dry), (&client, BRIEF)] {
            hit();
            let report = block_on(client.inner().prune(options).wait(None)).unwrap();
            let used = of(&report, &env.reference("hermes", &hermes[0]));
            assert_eq!(
                (used.action, &*used.reason),
                (Action::Kept, why),
                "{options:?}"
            );
            let unused = of(&report, &env.reference("hermes", &hermes[1]));
            assert_eq!(unused.action, Action::Removed, "{unused:?}");
        }
        let mut left = [&hermes[0][..12], &hermes[2][..12]];
        left.sort_unstable();
        assert_eq!(trees(&env, "hermes"), left);

        // Another process sees the use in the cache folder.
        let program = program("upkeep", Link::Static);
        hit();
        let output = succeed(&mut brief_prune(&env, &engine, &env.cache(), &program));
        let report = serde_json::from_str(&field(&output, "pruned")).unwrap();
        for list in ["images", "trees"] {
            let kept = ("kept".to_owned(), why.to_owned());
            assert_eq!(of_process(&report, list, &hermes[0]), kept);
        }
        wait_until_unused();
        succeed(&mut brief_prune(&env, &engine, &env.cache(), &program));
        assert!(
            engine
                .inspect(&env.reference("hermes", &hermes[0]))
                .is_none()
        );
        assert_eq!(trees(&env, "hermes"), [""; 0]);
        drop(alone);
        engine.remove_all_of(&env.isolation);
    }
}

/// Requests an image that has long been unused while three other clients or processes prune it.
fn returned_image_exists(engine: &Engine, other_cache: bool, processes: bool) {
    const ROUNDS: usize = 3;
    let env = TestEnv::new();
    // An isolation for each round, so that no round prunes the images of the next.
    let isolation = |round: usize| format!("{}-{round}", env.isolation);
    let elsewhere = env.scratch().join("elsewhere");
    let client = |round: usize, cache: &Path| {
        env.client_with(&[
            (OptionName::DockerHost, &engine.url),
            (OptionName::Isolation, &isolation(round)),
            (OptionName::CacheDir, cache.to_str().unwrap()),
        ])
    };
    let content = |round: usize, which: &str| copying_all(&format!("{which} {}", isolation(round)));
    let built: Vec<[(String, String); 2]> = (0..ROUNDS)
        .map(|round| {
            let client = client(round, &env.cache());
            let _images = engine.keep_images();
            ["older", "newer"].map(|which| {
                let sha = env.template("hermes", content(round, which));
                (sha, client.ensure("hermes").unwrap().reference)
            })
        })
        .collect();
    wait_until_unused();

    let program = program("upkeep", Link::Static);
    let pruning = if other_cache {
        &elsewhere
    } else {
        &env.cache()
    };
    let alone = engine.alone();
    let mut hits = 0;
    for (round, [(older, _), _]) in built.iter().enumerate() {
        go_back(&env, "hermes", older);
        let begin = Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let client = client(round, pruning);
                    begin.wait();
                    std::thread::sleep(Duration::from_millis(random_below(200)));
                    for _ in 0..2 {
                        if processes {
                            let mut prune = brief_prune(&env, engine, pruning, &program);
                            succeed(prune.env("MOLECULE_LOCAL_IMAGE_ISOLATION", isolation(round)));
                        } else {
                            block_on(client.inner().prune(BRIEF).wait(None)).unwrap();
                        }
                    }
                });
            }
            let client = client(round, &env.cache());
            begin.wait();
            std::thread::sleep(Duration::from_millis(random_below(40)));
            let image = client.ensure("hermes").unwrap();
            let id = engine.id(&image.reference);
            assert_eq!(id, Some(image.image_id), "{round}: {}", image.reference);
            hits += usize::from(image.cache_hit);
            // The image must also exist until the two seconds have passed.
            std::thread::sleep(BRIEF.recent);
            assert_eq!(engine.id(&image.reference), id, "{round}: after a while");
        });
    }
    println!("{hits} hits in {ROUNDS} rounds");
    drop(alone);
    wait_until_unused();
    let alone = engine.alone();
    for (round, [_, (_, newer)]) in built.iter().enumerate() {
        block_on(client(round, pruning).inner().prune(BRIEF).wait(None)).unwrap();
        assert!(
            engine.inspect(newer).is_none(),
            "an unused image is removed"
        );
    }
    drop(alone);
    for round in 0..ROUNDS {
        engine.remove_all_of(&isolation(round));
    }
}

#[test]
fn a_returned_image_exists_while_clients_prune() {
    let engine = Engine::of_the_tests();
    in_parallel([false, true].into_iter(), |other_cache| {
        returned_image_exists(&engine, other_cache, false);
    });
}

#[test]
fn a_returned_image_exists_while_clients_prune_podman() {
    let engine = Engine::podman_of_the_tests();
    in_parallel([false, true].into_iter(), |other_cache| {
        returned_image_exists(&engine, other_cache, false);
    });
}

#[test]
fn a_returned_image_exists_while_processes_prune() {
    in_parallel(both_engines(), |engine| {
        returned_image_exists(&engine, false, true);
    });
}

#[test]
fn a_call_waits_while_another_process_prunes_its_image() {
    let env = TestEnv::new();
    let client = env.client();
    let hermes = built(&env, &client, &env.engine, "hermes", 2);
    wait_until_unused();
    let _alone = env.engine.alone();
    let program = program_with_points("upkeep", Link::Static);
    go_back(&env, "hermes", &hermes[0]);
    let go = env.scratch().join("go");
    let mut prune = brief_prune(&env, &env.engine, &env.cache(), &program)
        .env("FAILPOINTS", first_pass_until("image-judged", &go))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let used = env
        .cache()
        .join(format!("hermes/.{}.used", &hermes[0][..12]));
    wait_until("the prune", || is_locked(&used).then_some(()));
    client.clear_events();
    let call = client.begin("hermes");
    client.wait_for(Kind::Waiting, |_| true);
    fs::write(&go, "").unwrap();
    let image = call.end().unwrap();
    let waited = client.of_kind(Kind::Waiting);
    assert!(
        waited.len() == 1 && waited[0].message.contains("prune"),
        "{waited:?}"
    );
    assert!(!image.cache_hit, "the image was removed and rebuilt");
    assert!(prune.wait().unwrap().success());
    assert_eq!(env.engine.id(&image.reference), Some(image.image_id));
}

#[test]
fn prune_rechecks_each_image_before_removing_it() {
    let env = TestEnv::new();
    let client = env.client();
    let hermes = built(&env, &client, &env.engine, "hermes", 6);
    let reference = |number: usize| env.reference("hermes", &hermes[number]);
    wait_until_unused();
    let _alone = env.engine.alone();
    let program = program_with_points("upkeep", Link::Static);
    let go = env.scratch().join("go");
    let prune = brief_prune(&env, &env.engine, &env.cache(), &program)
        .env("FAILPOINTS", first_pass_until("image-claimed", &go))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Prune goes from the newest to the oldest: 5 is the latest, 4 is the first to be removed.
    let used = env
        .cache()
        .join(format!("hermes/.{}.used", &hermes[4][..12]));
    wait_until("the prune", || is_locked(&used).then_some(()));
    let container = format!("libmol-test-{}", unique());
    env.engine.create_container(&container, &reference(3));
    env.engine.tag(BUSYBOX, &reference(2));
    env.engine.tag(&reference(1), &reference(1));
    env.engine.tag(&reference(0), &env.latest("hermes"));
    fs::write(&go, "").unwrap();
    let output = prune.wait_with_output().unwrap();
    assert!(output.status.success());
    env.engine.remove_container(&container);
    let report = serde_json::from_str(&field(&output, "pruned")).unwrap();
    let done = |number: usize| of_process(&report, "images", &hermes[number]);
    assert_eq!(done(4).0, "removed");
    for (number, why) in [
        (3, &*format!("the container {container} uses it")),
        (1, "used or built within the last 2 seconds"),
        (0, "the tag latest points at it"),
    ] {
        assert_eq!(
            done(number),
            ("kept".to_owned(), why.to_owned()),
            "{number}"
        );
        assert!(env.engine.inspect(&reference(number)).is_some());
    }
    assert_eq!(done(2).1, "already removed by another program");
    assert_eq!(env.engine.id(&reference(2)), env.engine.id(BUSYBOX));
}

#[test]
fn a_hit_protects_an_image_from_prune_with_another_cache() {
    let env = TestEnv::new();
    let client = env.client();
    let hermes = built(&env, &client, &env.engine, "hermes", 1);
    wait_until_unused();
    let (program, elsewhere) = (
        program("upkeep", Link::Static),
        env.scratch().join("elsewhere"),
    );
    // Taken before the hit, so that waiting for other tests does not make it old.
    let _alone = env.engine.alone();
    // The image is already the latest, so the hit does not move the tag.
    assert!(client.ensure("hermes").unwrap().cache_hit);
    env.engine.untag_at_once(&[env.latest("hermes")]);
    let output = succeed(&mut brief_prune(&env, &env.engine, &elsewhere, &program));
    let report = serde_json::from_str(&field(&output, "pruned")).unwrap();
    let why = "used or built within the last 2 seconds".to_owned();
    assert_eq!(
        of_process(&report, "images", &hermes[0]),
        ("kept".to_owned(), why)
    );
}

#[test]
fn an_unusable_cache_folder_does_not_prevent_a_hit() {
    let env = TestEnv::new();
    let client = env.client();
    built(&env, &client, &env.engine, "hermes", 1);
    let not_a_folder = env.scratch().join("file");
    fs::write(&not_a_folder, "").unwrap();
    let client = env.client_with(&[(OptionName::CacheDir, not_a_folder.to_str().unwrap())]);
    assert!(client.ensure("hermes").unwrap().cache_hit);
    assert_eq!(client.count(Kind::Warning), 0, "{:?}", client.events());
}
