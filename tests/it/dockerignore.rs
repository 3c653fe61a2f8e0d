//! `.dockerignore`: the library sends the files that docker would send. The references are a table of
//! test vectors, the installed docker CLI, and the code of the current docker CLI and buildx, on fixed and
//! on random trees and ignore files.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use mol::testing::internals;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde::Deserialize;
use tempfile::TempDir;

use crate::support::child::{source, succeed};
use crate::support::docker_context::{Answer, Choice, DockerContext, Recorder, paths};
use crate::support::{Engine, for_all, required_var, unique};

/// The builder reads these, so they are always sent; `fidelity::ignore_files` tests that.
const BUILDER_FILES: [&str; 2] = ["Dockerfile", ".dockerignore"];

/// A tree with these files, a Dockerfile and an ignore file. `a -> b` is a symlink. A path whose folder
/// already exists as a file is skipped.
fn tree<'a>(files: impl IntoIterator<Item = &'a String>, ignore_file: &str) -> TempDir {
    let tree = tempfile::tempdir().unwrap();
    for file in files {
        let (path, target) = file.split_once(" -> ").unwrap_or((file, ""));
        let path = tree.path().join(path);
        if std::fs::create_dir_all(path.parent().unwrap()).is_err() {
            continue;
        }
        if target.is_empty() {
            let _ = std::fs::write(path, "");
        } else {
            std::os::unix::fs::symlink(target, path).unwrap();
        }
    }
    let write = |name: &str, text: &str| std::fs::write(tree.path().join(name), text).unwrap();
    write("Dockerfile", "FROM scratch\nCOPY . /\n");
    write(".dockerignore", ignore_file);
    tree
}

/// The files that the library sends to the classic builder.
fn classic(tree: &Path) -> Choice {
    chosen(internals::archive(tree))
}

/// The files that the library sends to BuildKit if it asks for the tree with these exclude patterns.
fn buildkit(tree: &Path, patterns: &[String]) -> Choice {
    chosen(internals::archive_without(tree, patterns))
}

fn chosen(archive: mol::Result<Vec<u8>>) -> Choice {
    archive
        .map(|archive| paths(&archive))
        .map_err(|error| error.message())
}

fn without_builder_files(choice: Choice) -> Choice {
    let mut paths = choice?;
    paths.retain(|path| !BUILDER_FILES.contains(&path.as_str()));
    Ok(paths)
}

/// One row of tests/vectors/dockerignore.json, which documents the fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    file: String,
    #[serde(default)]
    sent: Vec<String>,
    #[serde(default)]
    ignored: Vec<String>,
    #[serde(default)]
    error: bool,
    #[serde(default)]
    built: bool,
    builder: Option<String>,
    docker_20_10: Option<bool>,
}

impl Case {
    fn all() -> Vec<Self> {
        #[derive(Deserialize)]
        struct Vectors {
            cases: Vec<Case>,
        }
        let text = std::fs::read_to_string(source("tests/vectors/dockerignore.json")).unwrap();
        let cases = serde_json::from_str::<Vectors>(&text).unwrap().cases;
        assert!(cases.len() >= 150, "{}", cases.len());
        cases
    }

    fn tree(&self) -> TempDir {
        match self.file.as_str() {
            "@64KiB" => tree(&[], &"a".repeat(64 * 1024)),
            file => tree(self.sent.iter().chain(&self.ignored), file),
        }
    }

    fn is_for(&self, builder: &str) -> bool {
        self.builder.as_ref().is_none_or(|only| only == builder)
    }

    /// Compares the chosen files with the row. Folders are not compared: an ignored folder is not sent,
    /// but a folder with only ignored files is.
    fn check(&self, who: &str, choice: Choice) {
        match choice {
            Ok(_) if self.error => panic!("{who} does not refuse {}: {:?}", self.name, self.file),
            Err(why) if !self.error => panic!("{who} refuses {}: {why}", self.name),
            Err(_) => {}
            Ok(paths) => {
                let chosen: BTreeSet<&str> = paths
                    .iter()
                    .map(String::as_str)
                    .filter(|path| !path.ends_with('/') && !BUILDER_FILES.contains(path))
                    .collect();
                let expected: BTreeSet<&str> = self
                    .sent
                    .iter()
                    .map(|file| file.split(" -> ").next().unwrap())
                    .collect();
                assert_eq!(chosen, expected, "{who}, {}: {:?}", self.name, self.file);
            }
        }
    }
}

#[test]
fn the_library_sends_the_files_of_the_vectors() {
    let mut current = DockerContext::start();
    for case in Case::all() {
        let tree = case.tree();
        if case.is_for("classic") {
            case.check("to the classic builder", classic(tree.path()));
        }
        // BuildKit sends no patterns for an ignore file that it cannot parse.
        let patterns = current.ask(tree.path()).patterns;
        if case.is_for("buildkit") && (!case.error || !patterns.is_empty()) {
            case.check("to BuildKit", buildkit(tree.path(), &patterns));
        }
    }
}

#[test]
fn the_vectors_hold_for_the_current_docker_cli_and_buildx() {
    let mut current = DockerContext::start();
    for case in Case::all() {
        let tree = case.tree();
        let answer = current.ask(tree.path());
        if case.is_for("classic") {
            case.check("the docker CLI", answer.classic);
        }
        if case.is_for("buildkit") {
            case.check("buildx", answer.buildkit);
        }
    }
}

#[test]
fn the_vectors_hold_for_the_installed_docker_cli() {
    let cases = Case::all();
    std::thread::scope(|threads| {
        for half in cases.chunks(cases.len().div_ceil(2)) {
            threads.spawn(move || {
                let recorder = Recorder::start();
                for case in half.iter().filter(|case| case.is_for("classic")) {
                    let tree = case.tree();
                    let choice = recorder.docker_build(tree.path());
                    if case.docker_20_10 == Some(false) {
                        let ours = without_builder_files(classic(tree.path()));
                        assert_ne!(without_builder_files(choice), ours, "{}", case.name);
                    } else {
                        case.check("the docker CLI of this machine", choice);
                    }
                }
            });
        }
    });
}

#[test]
fn an_image_built_by_docker_has_the_files_of_the_chosen_vectors() {
    let engine = Engine::of_the_tests();
    let mut cases = Case::all();
    cases.retain(|case| case.built);
    assert!(cases.len() >= 4, "{cases:?}");
    for case in cases {
        let tree = case.tree();
        let image = format!("libmol-test/{}", unique());
        let kept = engine.keep_images();
        succeed(
            Command::new(required_var("MOL_TEST_DOCKER"))
                .args(["build", "--quiet", "--tag", &image])
                .arg(tree.path())
                .env_clear()
                .env("HOME", tree.path())
                .env("DOCKER_HOST", &engine.url)
                .env("DOCKER_BUILDKIT", "0"),
        );
        drop(kept);
        let files = engine.files(&image).into_keys().collect();
        engine.untag(&image);
        case.check("docker build", Ok(files));
    }
}

/// A random tree and ignore file.
#[derive(Clone, Debug)]
struct RandomCase {
    paths: Vec<String>,
    file: String,
}

/// Names that are similar to patterns, so that some of them match.
const NAMES: &[&str] = &[
    "a", "b", "c", "ab", "a.b", "x1", "é", "-", "]", "[", "*", "a\\", "d", ".x", "a b", "^a", "_",
    "#", "!a", "\t", "a\nb", "\u{fffd}", "{a}", "+", "$", "|",
];

/// Parts of pattern lines.
const PIECES: &[&str] = &[
    "a",
    "b",
    "é",
    "1",
    "x",
    "_",
    "*",
    "**",
    "/",
    "?",
    "!",
    "[",
    "]",
    "-",
    "^",
    "\\",
    ".",
    "..",
    "[a-c]",
    "[^a]",
    "[*]",
    "[?]",
    "[a&&b]",
    "[\\d-z]",
    "[[:alpha:]]",
    "[:digit:]",
    "\\d",
    "\\w",
    "\\S",
    "\\b",
    "\\B",
    "\\A",
    "\\z",
    "\\Q",
    "\\E",
    "\\t",
    "\\n",
    "\\x41",
    "\\x{61}",
    "\\141",
    "\\<",
    "\\_",
    "\\\\",
    "\\]",
    " ",
    "#",
    "+",
    "$",
    "{",
    "}",
    "{2}",
    "{,2}",
    "a{1,2}",
    "x{2,}",
    "(",
    ")",
    "|",
    ":",
    "~~",
    "--",
    "**/",
    "/**",
    "\u{feff}",
];

fn paths_of(names: Vec<&'static str>) -> impl Strategy<Value = Vec<String>> {
    let path = prop::collection::vec(select(names), 1..5).prop_map(|names| names.join("/"));
    prop::collection::vec(path, 1..12)
}

fn any_case() -> impl Strategy<Value = RandomCase> {
    subsequence(NAMES, 3..7).prop_flat_map(|names| {
        let path = {
            let wild = select(vec!["*", "**", "?", "*/**"]);
            let name = prop_oneof![3 => select(names.clone()), 1 => wild];
            prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
        };
        let pieces = prop::collection::vec(select(PIECES), 1..6).prop_map(|pieces| pieces.concat());
        let line = (
            prop_oneof![2 => Just(""), 1 => Just("!")],
            prop_oneof![path, pieces],
            prop_oneof![6 => Just("\n"), 1 => Just("\r\n"), 1 => Just(" \n\n")],
        );
        let line = line.prop_map(|(mark, pattern, end)| format!("{mark}{pattern}{end}"));
        let start = prop_oneof![9 => Just(""), 1 => Just("\u{feff}")];
        let file = (start, prop::collection::vec(line, 1..6));
        let file = file.prop_map(|(start, lines)| start.to_owned() + &lines.concat());
        (paths_of(names), file).prop_map(|(paths, file)| RandomCase { paths, file })
    })
}

/// Cases without the features in which the docker CLI of Debian 12 differs: exceptions in ignored
/// folders, `**` directly before a name, and `^`, `|`, `+` and brackets in its regular expressions.
fn plain_case() -> impl Strategy<Value = RandomCase> {
    let names = [
        "a", "b", "c", "ab", "a.b", "x1", "é", ".x", "a b", "_", "#", "-",
    ];
    subsequence(names.to_vec(), 3..7).prop_flat_map(|names| {
        let wild = select(vec![
            "*", "**", "?", "a*", "*b", "[ab]", "?b", "[^a-c]", "\\*", "a?*",
        ]);
        let part = prop_oneof![3 => select(names.clone()), 2 => wild];
        let line = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/") + "\n");
        let file = prop::collection::vec(line, 1..4).prop_map(|lines| lines.concat());
        (paths_of(names), file).prop_map(|(paths, file)| RandomCase { paths, file })
    })
}

#[test]
fn random_trees_are_sent_as_current_docker_and_buildx_send_them() {
    let current = RefCell::new(DockerContext::start());
    for_all(1000, &any_case(), |case| {
        let tree = tree(&case.paths, &case.file);
        let Answer {
            patterns,
            classic: docker,
            buildkit: buildx,
        } = current.borrow_mut().ask(tree.path());
        for (ours, theirs) in [
            (classic(tree.path()), docker),
            (buildkit(tree.path(), &patterns), buildx),
        ] {
            let (ours, theirs) = (without_builder_files(ours), without_builder_files(theirs));
            match (ours, theirs) {
                (Err(_), Err(_)) => {}
                // Docker parses a pattern only if a path is matched against it. With one pattern alone,
                // every path is.
                (Err(ours), Ok(_)) => {
                    let alone = patterns.iter().any(|pattern| {
                        // `./` keeps the pattern from being a comment; `!` is removed.
                        let pattern = format!("./{}", pattern.trim_start_matches('!'));
                        std::fs::write(tree.path().join(".dockerignore"), pattern).unwrap();
                        current.borrow_mut().ask(tree.path()).classic.is_err()
                    });
                    prop_assert!(alone, "an error only in the library: {ours}");
                }
                (ours, theirs) => prop_assert_eq!(ours, theirs),
            }
        }
        Ok(())
    });
}

#[test]
fn random_plain_trees_are_sent_as_the_installed_docker_sends_them() {
    let recorder = Recorder::start();
    for_all(120, &plain_case(), |case| {
        let tree = tree(&case.paths, &case.file);
        let ours = without_builder_files(classic(tree.path()));
        let theirs = without_builder_files(recorder.docker_build(tree.path()));
        prop_assert_eq!(ours, theirs);
        Ok(())
    });
}
