//! A cache on a disk that takes `A` and `a` for the same name, as the disks of macOS do. It is exFAT, in an image file.
//!
//! `tests/run release` runs these, as root: not every container may mount a disk.

use std::collections::BTreeMap;
use std::process::Output;

use mol::Code;

use crate::support::TestEnv;
use crate::support::child::{self, Link};
use crate::support::noise;
use crate::support::server::{Files, file};

const DOCKERFILE: &str = "FROM scratch\nCOPY . /\n";

/// Calls the C program `ensure` with the cache on such a disk.
fn ensure(env: &TestEnv) -> Output {
    let image = env.scratch().join("disk");
    let mount = "truncate -s 64M \"$0\"; mkfs.exfat \"$0\" >/dev/null
        mount -t exfat-fuse -o loop,uid=0,gid=0,umask=0077 \"$0\" \"$1\"";
    let script = "touch probe; [ -e PROBE ]; rm probe; exec \"$@\"";
    let program = child::program("ensure", Link::Static);
    child::with_mount(env, mount, image.as_ref(), script, &program)
        .arg("hermes")
        .output()
        .unwrap()
}

fn files(names: &[(&str, &str)]) -> Files {
    let mut files = BTreeMap::from([("Dockerfile".to_owned(), file(DOCKERFILE))]);
    for (name, text) in names {
        files.insert((*name).to_owned(), file(text));
    }
    files
}

#[test]
#[ignore = "tests/run release runs it"]
fn names_that_differ_only_in_case_are_an_error() {
    let large = noise(3 << 20);
    for (what, names) in [
        ("files", [("README", "1"), ("readme", "2")]),
        ("folders", [("A/x", "1"), ("a/y", "2")]),
        ("folders further down", [("d/A/x", "1"), ("d/a/y", "2")]),
        ("a folder and a file", [("A/x", "1"), ("a", "2")]),
        ("letters beyond ASCII", [("\u{c4}", "1"), ("\u{e4}", "2")]),
        (
            "a large file, and a folder with one",
            [("A", large.as_str()), ("a/big", large.as_str())],
        ),
        (
            "large files",
            [("README", large.as_str()), ("readme", large.as_str())],
        ),
    ] {
        let env = TestEnv::new();
        env.template("hermes", files(&names));
        let output = ensure(&env);
        let text = child::text(&output);
        assert_eq!(
            output.status.code(),
            Some(Code::Fetch as i32),
            "{what}: {text}"
        );
        // Several threads write the files, so it is either name.
        let named = names.iter().any(|(name, _)| {
            let says = "two names that are the same on this disk: ";
            text.contains(&format!("{says}{name}\n"))
        });
        assert!(named, "{what}: {text}");
        assert!(text.contains("case-sensitive disk"), "{what}: {text}");
    }
}

#[test]
#[ignore = "tests/run release runs it"]
fn an_ordinary_template_is_built_as_on_any_disk() {
    let env = TestEnv::new();
    let sha = env.template(
        "hermes",
        files(&[
            ("README", "1"),
            ("Folder/readme", "2"),
            ("e\u{301}", "3"),
            ("\u{df}", "4"),
        ]),
    );
    let output = ensure(&env);
    let text = child::text(&output);
    assert!(output.status.success(), "{text}");
    let found = env.engine.files(&env.reference("hermes", &sha));
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "Dockerfile",
            "Folder/readme",
            "README",
            "e\u{301}",
            "\u{df}"
        ]
    );
}
