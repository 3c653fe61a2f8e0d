//! Which files are sent: all forms of `.dockerignore`.

use super::Builder::{Classic, Podman};
use super::assert_same;
use super::template::{Outcome, template};
use crate::support::engine::BUSYBOX;
use crate::support::server::PLAIN;

const COPY_ALL: &str = "FROM scratch\nCOPY . /\n";

/// Every form of a pattern that moby/patternmatcher knows.
#[test]
fn patterns_of_every_form() {
    let ignore = "\
*.log
**/*.tmp
/rooted
folder/
./dotted
up/../down
a?c
[x-z]1
q[^p]2
**/node_modules
docs/**/draft
deep/**
\\*star
middle/*/leaf
";
    assert_same(
        &template(COPY_ALL)
            .file(".dockerignore", ignore)
            .files(["a.log", "in/a.log", "a.tmp", "in/deeper/a.tmp"])
            .files(["rooted", "in/rooted", "folder/one", "in/folder/one"])
            .files(["dotted", "down", "up/down", "abc", "ac", "a/c", "in/abc"])
            .files([
                "x1",
                "w1",
                "qp2",
                "qq2",
                "in/node_modules/x",
                "node_modules/y",
            ])
            .files([
                "docs/draft",
                "docs/a/b/draft",
                "docs/a/drafts",
                "deep/a/b",
                "deeper",
            ])
            .files([
                "*star",
                "astar",
                "middle/a/leaf",
                "middle/a/b/leaf",
                "middle/leaf",
            ]),
    );
}

/// Comments, blank lines, spaces, CRLF line endings and a byte order mark are not part of a pattern.
#[test]
fn an_ignore_file_written_on_windows() {
    assert_same(
        &template(COPY_ALL)
            .bytes(
                ".dockerignore",
                "\u{feff}first\r\n\r\n# second\r\n  third  \r\n#fourth\r\n! kept\r\n",
            )
            .files(["first", "second", "third", "fourth", "#fourth", "kept"]),
    );
}

/// The last pattern that matches decides, at every depth.
#[test]
fn nested_negations() {
    assert_same(
        &template(COPY_ALL)
            .file(
                ".dockerignore",
                "*\n!Dockerfile\n!kept\nkept/out\n!kept/out/in\nkept/out/in/*.bin\n!kept/**/x.bin\n!a/b/c\n",
            )
            .files(["out", "kept/one", "kept/out/one", "kept/out/in/one"])
            .files(["kept/out/in/a.bin", "kept/out/in/x.bin", "kept/out/x.bin"])
            .files(["a/one", "a/b/one", "a/b/c/one", "a/b/d/one"]),
    );
}

/// The parent folders of a kept file are sent, other ignored folders are not.
#[test]
fn an_exception_deep_in_an_ignored_folder() {
    assert_same(
        &template(COPY_ALL)
            .file(".dockerignore", "vendor\n!vendor/a/b/LICENSE\n")
            .files(["vendor/a/b/LICENSE", "vendor/a/b/code", "vendor/c/code"]),
    );
}

/// A folder whose only file is ignored is still a folder of the context.
#[test]
fn a_folder_that_the_ignore_file_empties() {
    assert_same(
        &template(COPY_ALL)
            .file(".dockerignore", "**/.gitkeep\nemptied/all\n")
            .files(["kept/.gitkeep", "data/.gitkeep", "data/in/.gitkeep"])
            .files(["emptied/all", "other"]),
    );
}

#[test]
fn everything_is_ignored() {
    assert_same(
        &template(&format!("FROM {BUSYBOX}\nCOPY . /all/\n"))
            .file(".dockerignore", "**\n")
            .files(["one", "in/two"]),
    );
}

#[test]
fn an_empty_ignore_file() {
    assert_same(&template(COPY_ALL).bytes(".dockerignore", "").files(["one"]));
}

/// The builder needs the Dockerfile, but the image must not contain it.
#[test]
fn an_ignored_dockerfile() {
    assert_same(
        &template(COPY_ALL)
            .file(".dockerignore", "Dockerfile\n")
            .files(["one", "in/Dockerfile"]),
    );
}

#[test]
fn an_ignored_ignore_file() {
    assert_same(
        &template(COPY_ALL)
            .file(".dockerignore", ".dockerignore\n")
            .files(["one", "in/.dockerignore"]),
    );
}

#[test]
fn an_ignored_dockerfile_and_ignore_file() {
    assert_same(
        &template(COPY_ALL)
            .file(".dockerignore", "Dockerfile*\n.docker*\n")
            .files(["one", "Dockerfile.old"]),
    );
}

/// An ignored file cannot be copied by name either.
#[test]
fn an_ignored_dockerfile_that_is_copied_by_name() {
    assert_same(
        &template(PLAIN)
            .file(".dockerignore", "Dockerfile\n")
            .fails_on(super::Builder::BuildKit, "Dockerfile")
            .fails_on(Classic, "Dockerfile")
            .fails_on(Podman, "Dockerfile"),
    );
}

/// BuildKit prefers `Dockerfile.dockerignore`; the classic builder does not know it.
#[test]
fn a_dockerfile_specific_ignore_file() {
    assert_same(
        &template(COPY_ALL)
            .file(".dockerignore", "general\n")
            .file("Dockerfile.dockerignore", "own\n")
            .files(["general", "own", "other"]),
    );
}

/// `.dockerignore` is then a plain file, and may itself be ignored.
#[test]
fn a_dockerfile_specific_ignore_file_that_ignores_build_files() {
    for own in ["Dockerfile\n", ".dockerignore\n", "*ocker*\n"] {
        assert_same(
            &template(COPY_ALL)
                .file(".dockerignore", "general\nother\n")
                .file("Dockerfile.dockerignore", own)
                .files(["general", "other", "in/Dockerfile"]),
        );
    }
}

/// `Dockerfile.dockerignore` without a `.dockerignore`.
#[test]
fn only_a_dockerfile_specific_ignore_file() {
    assert_same(
        &template(COPY_ALL)
            .file("Dockerfile.dockerignore", "own\nDockerfile*\n")
            .files(["own", "other"]),
    );
}

/// Only Podman knows these file names.
#[test]
fn podman_specific_file_names() {
    assert_same(
        &template(COPY_ALL)
            .file("Containerfile", "FROM scratch\nCOPY one /wrong\n")
            .file(".containerignore", "one\n")
            .file(".dockerignore", "two\n")
            .files(["one", "two", "three"])
            .on(Podman, Outcome::Differs),
    );
}

#[test]
fn an_ignore_file_in_a_subfolder_is_a_plain_file() {
    assert_same(
        &template("FROM scratch\nCOPY in /\n")
            .file("in/.dockerignore", "one\n")
            .files(["in/one"]),
    );
}

#[test]
fn an_ignore_file_that_is_a_symlink() {
    assert_same(
        &template(COPY_ALL)
            .link(".dockerignore", "in/rules")
            .file("in/rules", "one\n")
            .files(["one", "two"]),
    );
}

#[test]
fn an_ignore_file_that_is_a_folder() {
    assert_same(
        &template(COPY_ALL)
            .files([".dockerignore/one", "one"])
            .fails_on(Classic, "is a directory")
            .fails_on(Podman, "ignore"),
    );
}

#[test]
fn an_invalid_pattern() {
    assert_same(
        &template(COPY_ALL)
            .file(".dockerignore", "[\n")
            .files(["one"])
            .fails_on(super::Builder::BuildKit, "pattern")
            .fails_on(Classic, "pattern")
            .fails_on(Podman, "pattern"),
    );
}

/// A pattern does not match through a symlink to a folder.
#[test]
fn patterns_and_symlinks() {
    assert_same(
        &template(COPY_ALL)
            .file(".dockerignore", "link-out\nlink-in/one\ntarget/two\n")
            .link("link-out", "target")
            .link("link-in", "target")
            .files(["target/one", "target/two"]),
    );
}

#[test]
fn patterns_with_non_ascii_names() {
    assert_same(
        &template(COPY_ALL)
            .file(".dockerignore", "größe?\n**/名*\nna\u{308}\n")
            .files(["größe1", "größe12", "in/名前", "nä", "na\u{308}"])
            .files(["with space", "in/with space"]),
    );
}
