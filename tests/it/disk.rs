//! Not enough room, on the disk of the cache or on the engine's: told with how much there is, and
//! nothing half-done is left (promise P5). The disks are small ones that only who is tested sees.

use std::process::{Output, Stdio};

use mol::Code;

use crate::support::child::{Link, field, program, program_with_points, text, with_a_disk};
use crate::support::engine::{BUSYBOX, OwnEngine};
use crate::support::server::dockerfile;
use crate::support::{Bed, Files, file, noise, until};

const PLAIN: &str = "FROM scratch\nCOPY Dockerfile /\n";

/// How many fetches were begun.
fn fetches(bed: &Bed) -> usize {
    let requests = bed.server.requests();
    requests
        .iter()
        .filter(|request| request.path.ends_with("/info/refs"))
        .count()
}

/// A first call on this disk, which must fail for want of room and leave nothing; then, on the same
/// disk, what makes room, and a call that must succeed. Gives the output of the first.
fn full_and_then(bed: &Bed, options: &str, before: &str, makes_room: &str) -> Output {
    let script = format!(
        "{before}; \"$@\" >&3 || echo status $? >&3; find . -name '.work*' >&2; \
         {makes_room}; exec \"$@\""
    );
    let told = bed.scratch().join("told");
    let redirected = format!("exec 3>{}; {script}", told.display());
    let ensure = program("ensure", Link::Static);
    let second = with_a_disk(bed, options, &redirected, &ensure)
        .arg("hermes")
        .output()
        .unwrap();
    assert_eq!(
        text(&Output {
            stdout: vec![],
            ..second.clone()
        }),
        "",
        "nothing half-done is left"
    );
    let first = Output {
        stdout: std::fs::read(told).unwrap(),
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
    assert!(message.contains(bed.cache().to_str().unwrap()), "{message}");
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
fn a_disk_that_is_as_good_as_full_is_refused_before_the_fetch() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    let fill = "head -c 14m /dev/zero > filler";
    let first = full_and_then(&bed, "size=16m,mode=700", fill, "rm filler");
    let message = field(&first, "message");
    assert!(
        message.contains("2.0 MiB free, and 4.0 MiB needed"),
        "{message}"
    );
    assert_eq!(fetches(&bed), 1, "only the second call fetched");
}

#[test]
fn a_disk_that_runs_full_during_the_fetch_is_told() {
    let bed = Bed::new();
    let mut files = dockerfile(PLAIN);
    files.insert("big".to_owned(), file(&noise(12 << 20)));
    bed.template("hermes", files);
    let first = full_and_then(
        &bed,
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
fn a_tree_that_cannot_fit_is_refused_before_its_checkout() {
    let bed = Bed::new();
    let mut files = dockerfile(PLAIN);
    // It travels well, and is large when it is there.
    files.insert("big".to_owned(), file(&"0".repeat(30 << 20)));
    bed.template("hermes", files);
    let first = full_and_then(
        &bed,
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
fn a_disk_that_runs_full_during_the_checkout_is_told() {
    let bed = Bed::new();
    let mut files = dockerfile(PLAIN);
    // Few bytes, but each file takes a block.
    let small = (0..4000).map(|n| (format!("small/{n}"), file(&n.to_string())));
    files.extend(small.collect::<Files>());
    bed.template("hermes", files);
    let first = full_and_then(
        &bed,
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
fn a_disk_without_another_inode_is_told_as_such() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    let fill = "while echo > filler$((n=n+1)); do :; done 2>/dev/null; rm filler1 filler2 filler3";
    let first = full_and_then(&bed, "size=64m,nr_inodes=100,mode=700", fill, "rm filler*");
    let message = field(&first, "message");
    assert!(
        message.contains("no more files can be created (inodes)"),
        "{message}"
    );
}

#[test]
fn a_disk_that_runs_full_before_the_tree_is_vouched_for_costs_no_image_and_leaves_no_tree_that_is_used()
 {
    let bed = Bed::new();
    let sha = bed.template("hermes", dockerfile(PLAIN));
    let tree = format!("hermes/{}", &sha[..12]);
    // The tree is in its place; while the library pauses, somebody else takes what is left.
    let script = format!(
        "FAILPOINTS='tree-synced=sleep(3000)' \"$@\" & \
         until [ -e {tree} ]; do sleep 0.05; done; \
         cat /dev/zero > filler 2>/dev/null || true; \
         wait $!; rm filler; ls -A hermes; \
         touch ../filled; until [ -e ../go ]; do sleep 0.05; done; \"$@\""
    );
    let ensure = program_with_points("ensure", Link::Static);
    let process = with_a_disk(&bed, "size=16m,mode=700", &script, &ensure)
        .arg("hermes")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let at = |name| bed.scratch().join(name);
    until("a full disk", || at("filled").exists().then_some(()));
    bed.engine.remove_all_of(&bed.isolation);
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
    assert_eq!(fetches(&bed), 2);
}

#[test]
fn a_full_disk_is_no_matter_where_the_tree_is_there_already() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    let script = "\"$@\"; cat /dev/zero > filler 2>/dev/null || true; \"$@\"; \
                  touch ../filled; until [ -e ../go ]; do sleep 0.05; done; \"$@\"";
    let ensure = program("ensure", Link::Static);
    let process = with_a_disk(&bed, "size=16m,mode=700", script, &ensure)
        .arg("hermes")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let at = |name| bed.scratch().join(name);
    until("a full disk", || at("filled").exists().then_some(()));
    bed.engine.remove_all_of(&bed.isolation);
    std::fs::write(at("go"), "").unwrap();
    let output = process.wait_with_output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    let hits: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("hit "))
        .collect();
    assert_eq!(hits, ["hit 0", "hit 1", "hit 0"]);
    assert_eq!(fetches(&bed), 1);
}

/// A build that must fail for want of room on the engine's disk. Gives the message and the hint.
fn refused_by(engine: &OwnEngine, builder: &str, files: Files) -> (String, String) {
    let bed = Bed::new();
    bed.template("hermes", files);
    let output = engine
        .beside(&program("ensure", Link::Static))
        .envs(
            bed.values()
                .iter()
                .map(|(name, value)| (name.name(), value)),
        )
        .env("DOCKER_HOST", &engine.engine.url)
        .env("DOCKER_BUILDKIT", builder)
        .arg("hermes")
        .output()
        .unwrap();
    assert_eq!(
        field(&output, "error"),
        Code::BuildFailed.name(),
        "{}",
        text(&output)
    );
    assert_eq!(engine.engine.references_of(&bed.isolation), [""; 0]);
    (field(&output, "message"), field(&output, "hint"))
}

#[test]
fn an_engine_whose_disk_is_full_is_told_with_how_much_is_there() {
    for builder in ["1", "0"] {
        let engine = OwnEngine::small(32);
        let mut files = dockerfile("FROM scratch\nCOPY big /\n");
        files.insert("big".to_owned(), file(&noise(24 << 20)));
        let (message, hint) = refused_by(&engine, builder, files);
        let place = format!(
            "there is no room left on the disk of the engine at {}, at {} (",
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
fn a_step_that_fills_the_engines_disk_is_told_too() {
    for builder in ["1", "0"] {
        let engine = OwnEngine::small(24);
        engine.engine.import_busybox();
        let text = format!("FROM {BUSYBOX}\nRUN cat /dev/zero > /filler\n");
        let (message, hint) = refused_by(&engine, builder, dockerfile(&text));
        assert!(
            message.contains("in the step") && message.contains("cat /dev/zero"),
            "{message}"
        );
        assert!(
            message.contains("there is no room left on the disk of the engine"),
            "{message}"
        );
        assert!(hint.contains("docker system df"), "{hint}");
    }
}
