//! What a git checkout does to the files of a commit.

use super::Builder::{BuildKit, Classic, Podman};
use super::template::{Outcome, template};
use super::{assert_same, assert_same_in};
use crate::support::TestEnv;

const COPY_ALL: &str = "FROM scratch\nCOPY . /\n";

#[test]
fn line_endings_by_attribute() {
    assert_same(
        &template(COPY_ALL)
            .file(
                ".gitattributes",
                "[attr]windows text eol=crlf\n* text=auto eol=lf\n*.bat windows\n*.raw -text\n*.bin binary\n*.txt text\n",
            )
            .file("in/.gitattributes", "*.bat eol=lf\n*.sh eol=crlf\n")
            .bytes("lf", "one\ntwo\n")
            .bytes("crlf", "one\r\ntwo\r\n")
            .bytes("mixed", "one\r\ntwo\nthree\r")
            .bytes("binary", b"one\r\n\0two\n")
            .bytes("run.bat", "one\ntwo\n")
            .bytes("mixed.bat", "one\r\ntwo\n")
            .bytes("kept.raw", "one\r\ntwo\n")
            .bytes("kept.bin", "one\r\ntwo\n")
            .bytes("plain.txt", "one\r\ntwo\n")
            .bytes("in/run.bat", "one\ntwo\n")
            .bytes("in/run.sh", "one\ntwo\n"),
    );
}

/// The Dockerfile is a file of the checkout like any other.
#[test]
fn a_dockerfile_with_crlf_line_endings() {
    assert_same(
        &template(COPY_ALL)
            .file(".gitattributes", "* text eol=crlf\n")
            .files(["one"]),
    );
}

#[test]
fn encodings_by_attribute() {
    assert_same(
        &template(COPY_ALL)
            .file(
                ".gitattributes",
                "*.u16 text working-tree-encoding=UTF-16\n\
                 *.le text working-tree-encoding=UTF-16LE eol=crlf\n\
                 *.lebom text working-tree-encoding=UTF-16LE-BOM\n\
                 *.be text working-tree-encoding=UTF-16BE\n\
                 *.latin text working-tree-encoding=ISO-8859-1\n\
                 *.sjis text working-tree-encoding=SHIFT-JIS\n",
            )
            .bytes("one.u16", "grüße\nund mehr\n")
            .bytes("one.le", "grüße\nund mehr\n")
            .bytes("one.lebom", "grüße\nund mehr\n")
            .bytes("one.be", "grüße\nund mehr\n")
            .bytes("one.latin", "grüße\nund mehr\n")
            .bytes("one.sjis", "名前\n")
            .bytes("plain", "grüße\n"),
    );
}

#[test]
fn the_ident_attribute() {
    assert_same(
        &template(COPY_ALL)
            .file(".gitattributes", "*.c ident\n")
            .bytes("one.c", "/* $Id$ */\n/* $Id */\n")
            .bytes("one.h", "/* $Id$ */\n")
            .on(BuildKit, Outcome::Differs)
            .on(Classic, Outcome::Differs)
            .on(Podman, Outcome::Differs),
    );
}

/// They apply only to `git archive`.
#[test]
fn export_attributes_are_ignored() {
    assert_same(
        &template(COPY_ALL)
            .file(
                ".gitattributes",
                "left-out export-ignore\nfolder export-ignore\nfilled export-subst\n",
            )
            .bytes("filled", "$Format:%H$\n")
            .files(["left-out", "folder/one"]),
    );
}

/// Filter programs are not run.
#[test]
fn git_lfs_files_stay_pointers() {
    assert_same(
        &template(COPY_ALL)
            .file(
                ".gitattributes",
                "*.model filter=lfs diff=lfs merge=lfs -text\n",
            )
            .bytes(
                "big.model",
                "version https://git-lfs.github.com/spec/v1\n\
                 oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n\
                 size 12345\n",
            ),
    );
}

/// A clean checkout has an empty folder in place of a submodule.
#[test]
fn a_submodule_is_an_empty_folder() {
    assert_same(
        &template(COPY_ALL)
            .file(
                ".gitmodules",
                "[submodule \"sub\"]\n\tpath = vendor/sub\n\turl = https://example.com/sub.git\n",
            )
            .submodule("vendor/sub")
            .submodule("top")
            .files(["one"]),
    );
}

/// Files that configure git belong to the commit, unlike `.git`.
#[test]
fn git_configuration_files_are_kept() {
    assert_same(
        &template(COPY_ALL)
            .file(".gitignore", "ignored\n")
            .file(".mailmap", "\n")
            .files(["ignored", "in/.gitkeep"]),
    );
}

/// A builder could reuse a cached file, because the size and the time are the same.
#[test]
fn two_commits_in_the_same_second() {
    let env = TestEnv::new();
    for content in ["one", "two"] {
        assert_same_in(&env, &template(COPY_ALL).file("file", content));
    }
}
