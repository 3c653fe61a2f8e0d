//! A full disk, the cache's or the engine's: the error reports the free space, and no partial result is
//! left (promise P5). Each disk is a small file system that only the tested process sees.

use std::process::{Output, Stdio};

use mol::Code;

use crate::support::child::{Link, field, program, program_with_points, text, with_a_disk};
use crate::support::engine::{BUSYBOX, OwnEngine};
use crate::support::points::first_pass_until;
use crate::support::server::{PLAIN, dockerfile, fetches};
use crate::support::{Builder, Files, TestEnv, file, noise, wait_until};

/// Makes a first call on this disk, which must fail because the disk is full and leave nothing. Then runs
/// `free_space` on the same disk and makes a second call, which must succeed. Returns the first output.
fn fail_then_succeed(env: &TestEnv, options: &str, before: &str, free_space: &str) -> Output {
    let script = format!(
        "{before}; \"$@\" >&3 2>&3 || echo status $? >&3; find . -name '.work*' >&2; \
         {free_space}; exec \"$@\""
    );
    let first_output = env.scratch().join("first-output");
    let redirected = format!("exec 3>{}; {script}", first_output.display());
    let ensure = program("ensure", Link::Static);
    let second = with_a_disk(env, options, &redirected, &ensure)
        .arg("hermes")
        .output()
        .unwrap();
    assert_eq!(
        text(&Output {
            stdout: vec![],
            ..second.clone()
        }),
        "",
        "no partial result is left"
    );
    let first = Output {
        stdout: std::fs::read(first_output).unwrap(),
        ..second.clone()
    };
    assert_eq!(
        field(&first, "error"),
        Code::Cache.name(),
        "{}",
        text(&first)
    );
    let message = field(&first, "message");
    assert!(
        message.contains("is full") && message.contains(" free"),
        "{message}"
    );
    assert!(message.contains(env.cache().to_str().unwrap()), "{message}");
    let hint = field(&first, "hint");
    assert!(
        hint.contains("free some space") && hint.contains("MOLECULE_LOCAL_BUILD_CACHE"),
        "{hint}"
    );
    assert!(second.status.success(), "{}", text(&second));
    assert_eq!(field(&second, "hit"), "0");
    first
}

#[test]
fn a_nearly_full_disk_is_refused_before_the_fetch() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let fill = "head -c 14m /dev/zero > filler";
    let first = fail_then_succeed(&env, "size=16m,mode=700", fill, "rm filler");
    let message = field(&first, "message");
    assert!(
        message.contains("2.0 MiB free, and 4.0 MiB needed"),
        "{message}"
    );
    assert_eq!(
        fetches(&env.server.requests()),
        1,
        "only the second call fetched"
    );
}

#[test]
fn a_disk_that_fills_up_during_the_fetch_is_reported() {
    let env = TestEnv::new();
    let mut files = dockerfile(PLAIN);
    files.insert("big".to_owned(), file(&noise(12 << 20)));
    env.template("hermes", files);
    let first = fail_then_succeed(
        &env,
        "size=6m,mode=700",
        "true",
        "mount -o remount,size=64m .",
    );
    let message = field(&first, "message");
    assert!(
        message.contains("no space left") && message.contains("at the start 6.0 MiB free, now"),
        "{message}"
    );
    assert!(message.contains("MiB received"), "{message}");
}

#[test]
fn a_tree_larger_than_the_free_space_is_refused_before_checkout() {
    let env = TestEnv::new();
    let mut files = dockerfile(PLAIN);
    // Small in the pack, large in the checkout.
    files.insert("big".to_owned(), file(&"0".repeat(30 << 20)));
    env.template("hermes", files);
    let first = fail_then_succeed(
        &env,
        "size=16m,mode=700",
        "true",
        "mount -o remount,size=64m .",
    );
    let message = field(&first, "message");
    assert!(
        message.contains("and 30.0 MiB needed for the template's files"),
        "{message}"
    );
}

#[test]
fn a_disk_that_fills_up_during_the_checkout_is_reported() {
    let env = TestEnv::new();
    let mut files = dockerfile(PLAIN);
    // Few bytes in total, but each file takes a whole block.
    let small = (0..4000).map(|n| (format!("small/{n}"), file(&n.to_string())));
    files.extend(small.collect::<Files>());
    env.template("hermes", files);
    let first = fail_then_succeed(
        &env,
        "size=8m,mode=700",
        "true",
        "mount -o remount,size=64m .",
    );
    let message = field(&first, "message");
    assert!(
        message.contains("no space left") && message.contains("at the start 8.0 MiB free, now"),
        "{message}"
    );
    assert!(message.contains("of files to write"), "{message}");
}

#[test]
fn running_out_of_inodes_is_reported() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let fill = "while echo > filler$((n=n+1)); do :; done 2>/dev/null; rm filler1 filler2 filler3";
    let first = fail_then_succeed(&env, "size=64m,nr_inodes=100,mode=700", fill, "rm filler*");
    let message = field(&first, "message");
    assert!(
        message.contains("no more files can be created (inodes)"),
        "{message}"
    );
}

#[test]
fn disk_full_before_the_marker_keeps_image_drops_tree() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    let tree = format!("hermes/{}", &sha[..12]);
    // The tree is in its final place. While the library waits, the script fills the disk.
    let held = first_pass_until("tree-synced", &env.scratch().join("full"));
    let script = format!(
        "FAILPOINTS='{held}' \"$@\" & \
         until [ -e {tree} ]; do kill -0 $!; sleep 0.05; done; \
         cat /dev/zero > filler 2>/dev/null || true; \
         touch ../full; wait $!; rm filler; ls -A hermes; \
         touch ../filled; until [ -e ../go ] || [ ! -e ../filled ]; do sleep 0.05; done; \"$@\""
    );
    let ensure = program_with_points("ensure", Link::Static);
    let process = with_a_disk(&env, "size=16m,mode=700", &script, &ensure)
        .arg("hermes")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let at = |name| env.scratch().join(name);
    wait_until("a full disk", || at("filled").exists().then_some(()));
    env.engine.remove_all_of(&env.isolation);
    std::fs::write(at("go"), "").unwrap();
    let output = process.wait_with_output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    assert!(!text.contains(&format!(".{}.json", &sha[..12])), "{text}");
    assert!(!text.contains(".work"), "{text}");
    let hits: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("hit "))
        .collect();
    assert_eq!(hits, ["hit 0", "hit 0"]);
    assert_eq!(fetches(&env.server.requests()), 2);
}

#[test]
fn a_full_disk_does_not_matter_for_a_cached_tree() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let script = "\"$@\"; cat /dev/zero > filler 2>/dev/null || true; \"$@\"; \
                  touch ../filled; until [ -e ../go ] || [ ! -e ../filled ]; do sleep 0.05; done; \"$@\"";
    let ensure = program("ensure", Link::Static);
    let process = with_a_disk(&env, "size=16m,mode=700", script, &ensure)
        .arg("hermes")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let at = |name| env.scratch().join(name);
    wait_until("a full disk", || at("filled").exists().then_some(()));
    env.engine.remove_all_of(&env.isolation);
    std::fs::write(at("go"), "").unwrap();
    let output = process.wait_with_output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    let hits: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("hit "))
        .collect();
    assert_eq!(hits, ["hit 0", "hit 1", "hit 0"]);
    assert_eq!(fetches(&env.server.requests()), 1);
}

/// Makes a build that must fail because the engine's disk is full. Returns the message and the hint.
fn build_error(engine: &OwnEngine, builder: (&str, &str), files: Files) -> (String, String) {
    let env = TestEnv::new();
    env.template("hermes", files);
    let output = engine
        .beside(&program("ensure", Link::Static))
        .envs(
            env.values()
                .iter()
                .map(|(name, value)| (name.name(), value)),
        )
        .env("DOCKER_HOST", &engine.engine.url)
        .env(builder.0, builder.1)
        .arg("hermes")
        .output()
        .unwrap();
    assert_eq!(
        field(&output, "error"),
        Code::BuildFailed.name(),
        "{}",
        text(&output)
    );
    assert_eq!(engine.engine.references_of(&env.isolation), [""; 0]);
    (field(&output, "message"), field(&output, "hint"))
}

#[test]
fn a_full_engine_disk_is_reported_with_its_free_space() {
    for builder in ["1", "0"] {
        let engine = OwnEngine::small(32);
        let mut files = dockerfile("FROM scratch\nCOPY big /\n");
        files.insert("big".to_owned(), file(&noise(24 << 20)));
        let (message, hint) = build_error(&engine, ("DOCKER_BUILDKIT", builder), files);
        let place = format!(
            "the disk of the engine at {} is full: {} (",
            engine.engine.url,
            engine.data().display()
        );
        assert!(
            message.contains(&place) && message.contains(" free)"),
            "{builder}: {message}"
        );
        assert!(hint.contains("docker system df"), "{hint}");
    }
}

#[test]
fn a_build_step_that_fills_the_engine_disk_is_reported() {
    for builder in ["1", "0"] {
        let engine = OwnEngine::small(24);
        engine.engine.import_busybox();
        let text = format!("FROM {BUSYBOX}\nRUN cat /dev/zero > /filler\n");
        let (message, hint) = build_error(&engine, ("DOCKER_BUILDKIT", builder), dockerfile(&text));
        assert!(
            message.contains("in the step") && message.contains("cat /dev/zero"),
            "{message}"
        );
        assert!(
            message.contains("; the disk of the engine at "),
            "{message}"
        );
        assert!(hint.contains("docker system df"), "{hint}");
    }
}

#[test]
fn a_full_engine_disk_is_reported_when_a_builder_sends_the_image() {
    let engine = OwnEngine::small(32);
    let folder = tempfile::tempdir().unwrap();
    let builder = Builder::unix(&folder.path().join("b"));
    let mut files = dockerfile("FROM scratch\nCOPY big /\n");
    files.insert("big".to_owned(), file(&noise(24 << 20)));
    let address = builder.address();
    let (message, hint) = build_error(&engine, ("MOLECULE_LOCAL_BUILDER", &address), files);
    let full = format!("its disk is full: {} (", engine.data().display());
    assert!(
        message.contains("cannot load the image") && message.contains(&full),
        "{message}"
    );
    assert!(hint.contains("docker system df"), "{hint}");
}
