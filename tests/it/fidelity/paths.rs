//! Names, links, modes and sizes.

use super::Builder::{BuildKit, Classic, Podman};
use super::assert_same;
use super::template::{Outcome, template};
use crate::support::engine::BUSYBOX;

const COPY_ALL: &str = "FROM scratch\nCOPY . /all/\n";

#[test]
fn symlinks_stay_symlinks() {
    assert_same(
        &template(COPY_ALL)
            .files(["file", "folder/file", "a/b/c"])
            .link("to-file", "file")
            .link("to-folder", "folder")
            .link("to-folder-with-slash", "folder/")
            .link("a/up", "../file")
            .link("to-link", "to-file")
            .link("to-itself", "to-itself")
            .link("dangling", "nowhere")
            .link("a/b/dangling", "../../no/where"),
    );
}

/// No file of the build machine gets into the image through a symlink.
#[test]
fn symlinks_out_of_the_template() {
    assert_same(
        &template(COPY_ALL)
            .link("absolute", "/etc/passwd")
            .link("relative", "../../../../../../../../etc/passwd")
            .link("folder", "/etc")
            .link("in/root", "/")
            .on(Podman, Outcome::DiffersBefore([5, 8, 2])),
    );
}

#[test]
fn symlinks_copied_by_name() {
    assert_same(
        &template("FROM scratch\nCOPY to-file to-folder /x/\nCOPY to-folder/ /y/\nCOPY to-folder/file /z\n")
            .files(["file", "folder/file", "folder/in/file"])
            .link("to-file", "file")
            .link("to-folder", "folder")
            .link("folder/to-sibling", "file"),
    );
}

#[test]
fn a_symlink_out_of_the_template_copied_by_name() {
    assert_same(
        &template("FROM scratch\nCOPY out /\n")
            .link("out", "/etc/machine-id-that-does-not-exist")
            .fails_on(BuildKit, "COPY out /")
            .fails_on(Classic, "out")
            .fails_on(Podman, "out"),
    );
}

#[test]
fn a_dockerfile_that_is_a_symlink() {
    let mut all = template(COPY_ALL).files(["one"]);
    all.rename("Dockerfile", "build/Dockerfile");
    assert_same(&all.link("Dockerfile", "build/Dockerfile"));
}

#[test]
fn executable_bits() {
    assert_same(
        &template(&format!("FROM {BUSYBOX}\nCOPY . /all/\nRUN /all/in/run\n"))
            .script("run", "#!/bin/sh\n")
            .script("in/run", "#!/bin/sh\ntrue\n")
            .file("not-run", "#!/bin/sh\n"),
    );
}

/// A tar header has room for a name of 100 bytes.
#[test]
fn long_paths() {
    let name = |letter: &str, length| letter.repeat(length);
    let folders = [name("d", 120), name("e", 120), name("f", 120)].join("/");
    assert_same(
        &template(COPY_ALL)
            .file(name("a", 100), "100")
            .file(name("b", 101), "101")
            .file(name("c", 255), "255")
            .file(name("g", 90) + "/" + &name("h", 9), "100")
            .file(name("g", 90) + "/" + &name("h", 10), "101")
            .file(folders.clone() + "/file", "367")
            .script(folders.clone() + "/script", "367")
            .link(name("i", 101), name("j", 101))
            .link("to-long", &folders),
    );
}

#[test]
fn non_ascii_names() {
    assert_same(
        &template("FROM scratch\nCOPY . /all/\nCOPY grüße.md /größe\n").files([
            "grüße.md",
            "nä",
            "na\u{308}",
            "名前/ファイル",
            "🦀",
            "\u{202e}right-to-left",
        ]),
    );
}

/// To git and the kernel a name is bytes. To gRPC it is text, and current BuildKit versions refuse others.
#[test]
fn non_utf8_names() {
    assert_same(
        &template(COPY_ALL)
            .file(b"latin-\xe9", "one")
            .file(b"\xff\xfe/\xc3(", "two")
            .link(b"link-\xe9", b"latin-\xe9")
            .on(BuildKit, Outcome::VersionDependent),
    );
}

#[test]
fn names_with_special_characters() {
    assert_same(&template(COPY_ALL).files([
        "with space",
        " leading",
        "trailing ",
        "new\nline",
        "tab\there",
        "back\\slash",
        "100%",
        "%2e%2e",
        "quote\"quote'",
        "$HOME",
        "-rf",
        "#hash",
        "!bang",
        "*star?",
        "[a]",
        "a:b",
        "~",
        "...",
        "\u{1b}[31m",
    ]));
}

/// Names that are special on Windows, on macOS, in a container or in a layer.
#[test]
fn names_with_a_meaning_on_other_systems() {
    assert_same(&template(COPY_ALL).files([
        "con",
        "aux.txt",
        "trailing.",
        "Case",
        "case",
        ".dockerenv",
        "dev/null",
        "etc/hosts",
        "proc/self",
        "in/Dockerfile",
        "in/.gitignore",
        ".github/workflows/x.yml",
    ]));
}

#[test]
fn a_template_with_only_a_dockerfile() {
    assert_same(&template(COPY_ALL));
}

#[test]
fn empty_and_identical_files() {
    assert_same(
        &template(COPY_ALL)
            .bytes("empty", "")
            .bytes("in/empty", "")
            .bytes("one", "the same")
            .bytes("two", "the same")
            .bytes("in/three", "the same"),
    );
}

/// Larger than all buffers on the way. `make bench` builds a template of 1 GiB.
#[test]
fn a_file_of_24_mib() {
    assert_same(&template("FROM scratch\nCOPY large /\n").large_file("large", 24 << 20));
}

/// `make bench` builds a template of 20,000 files.
#[test]
fn two_thousand_small_files() {
    let mut all = template(COPY_ALL);
    for number in 0..2_000 {
        let path = format!("{}/{number}", number % 20);
        all = all.bytes(&path, &path);
    }
    assert_same(&all);
}
