//! `.dockerignore`: what is sent is what docker would send. By a table, by the docker CLI of the
//! machine, by the code of today's docker CLI and buildx, and for any tree and any file.

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
use crate::support::docker_context::{Answer, Choice, DOCKER, DockerContext, Recorder, paths};
use crate::support::{Engine, for_all, unique};

/// The builder reads these, so they are sent to it whatever the file says; that has tests of its own.
const FOR_THE_BUILDER: [&str; 2] = ["Dockerfile", ".dockerignore"];

/// A tree with these files, a Dockerfile and an ignore file. `a -> b` is a link; what cannot be,
/// because its folder is a file already, is left out.
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

/// What is sent to the classic builder.
fn classic(tree: &Path) -> Choice {
    chosen(internals::archive(tree))
}

/// What is sent to BuildKit, when it asks for the tree without what these patterns match.
fn buildkit(tree: &Path, patterns: &[String]) -> Choice {
    chosen(internals::archive_without(tree, patterns))
}

fn chosen(archive: mol::Result<Vec<u8>>) -> Choice {
    archive
        .map(|archive| paths(&archive))
        .map_err(|error| error.message)
}

fn without_the_builder_s(choice: Choice) -> Choice {
    let mut paths = choice?;
    paths.retain(|path| !FOR_THE_BUILDER.contains(&path.as_str()));
    Ok(paths)
}

/// One row of tests/vectors/dockerignore.json, which says what the fields are.
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

    /// Compares what was chosen with what the row says. An ignored folder is not sent, and one whose
    /// files are all ignored is: the table is about files.
    fn check(&self, who: &str, choice: Choice) {
        match choice {
            Ok(_) if self.error => panic!("{who} does not refuse {}: {:?}", self.name, self.file),
            Err(why) if !self.error => panic!("{who} refuses {}: {why}", self.name),
            Err(_) => {}
            Ok(paths) => {
                let chosen: BTreeSet<&str> = paths
                    .iter()
                    .map(String::as_str)
                    .filter(|path| !path.ends_with('/') && !FOR_THE_BUILDER.contains(path))
                    .collect();
                let wanted: BTreeSet<&str> = self
                    .sent
                    .iter()
                    .map(|file| file.split(" -> ").next().unwrap())
                    .collect();
                assert_eq!(chosen, wanted, "{who}, {}: {:?}", self.name, self.file);
            }
        }
    }
}

#[test]
fn the_table_holds_for_what_is_sent() {
    let mut today = DockerContext::start();
    for case in Case::all() {
        let tree = case.tree();
        if case.is_for("classic") {
            case.check("to the classic builder", classic(tree.path()));
        }
        // The lines of a file that BuildKit itself cannot read never come to be patterns.
        let patterns = today.ask(tree.path()).patterns;
        if case.is_for("buildkit") && (!case.error || !patterns.is_empty()) {
            case.check("to BuildKit", buildkit(tree.path(), &patterns));
        }
    }
}

#[test]
fn the_table_holds_for_today_s_docker_cli_and_buildx() {
    let mut today = DockerContext::start();
    for case in Case::all() {
        let tree = case.tree();
        let answer = today.ask(tree.path());
        if case.is_for("classic") {
            case.check("the docker CLI", answer.classic);
        }
        if case.is_for("buildkit") {
            case.check("buildx", answer.buildkit);
        }
    }
}

#[test]
fn the_table_holds_for_the_docker_cli_of_this_machine() {
    let cases = Case::all();
    std::thread::scope(|threads| {
        for half in cases.chunks(cases.len().div_ceil(2)) {
            threads.spawn(move || {
                let recorder = Recorder::start();
                for case in half.iter().filter(|case| case.is_for("classic")) {
                    let tree = case.tree();
                    let choice = recorder.docker_build(tree.path());
                    if case.docker_20_10 == Some(false) {
                        let ours = without_the_builder_s(classic(tree.path()));
                        assert_ne!(without_the_builder_s(choice), ours, "{}", case.name);
                    } else {
                        case.check("the docker CLI of this machine", choice);
                    }
                }
            });
        }
    });
}

#[test]
fn an_image_by_docker_build_has_the_files_that_are_sent() {
    let engine = Engine::of_the_tests();
    for case in Case::all()
        .iter()
        .filter(|case| case.name.contains("template") || case.name.contains("list"))
    {
        let tree = case.tree();
        let image = format!("libmol-test/{}", unique());
        succeed(
            Command::new(DOCKER)
                .args(["build", "--quiet", "--tag", &image])
                .arg(tree.path())
                .env_clear()
                .env("HOME", tree.path())
                .env("DOCKER_HOST", &engine.url)
                .env("DOCKER_BUILDKIT", "0"),
        );
        let files = engine.files(&image).into_keys().collect();
        engine.untag(&image);
        case.check("docker build", Ok(files));
    }
}

/// Any tree, with any file.
#[derive(Clone, Debug)]
struct Any {
    paths: Vec<String>,
    file: String,
}

/// Names that are close to patterns, so that something matches now and then.
const NAMES: &[&str] = &[
    "a", "b", "c", "ab", "a.b", "x1", "é", "-", "]", "[", "*", "a\\", "d", ".x", "a b", "^a", "_",
    "#", "!a", "\t", "a\nb", "\u{fffd}", "{a}", "+", "$", "|",
];

/// What lines are made of.
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

fn any_case() -> impl Strategy<Value = Any> {
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
        (paths_of(names), file).prop_map(|(paths, file)| Any { paths, file })
    })
}

/// Without what the docker CLI of Debian 12 does otherwise: exceptions in ignored folders, `**` right
/// before a name, and what its regular expressions make of `^`, `|`, `+` and brackets of all kinds.
fn plain_case() -> impl Strategy<Value = Any> {
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
        (paths_of(names), file).prop_map(|(paths, file)| Any { paths, file })
    })
}

#[test]
fn any_tree_with_any_file_is_sent_as_docker_and_buildx_send_it_today() {
    let today = RefCell::new(DockerContext::start());
    for_all(1000, &any_case(), |case| {
        let tree = tree(&case.paths, &case.file);
        let Answer {
            patterns,
            classic: docker,
            buildkit: buildx,
        } = today.borrow_mut().ask(tree.path());
        for (ours, theirs) in [
            (classic(tree.path()), docker),
            (buildkit(tree.path(), &patterns), buildx),
        ] {
            let (ours, theirs) = (without_the_builder_s(ours), without_the_builder_s(theirs));
            match (ours, theirs) {
                (Err(_), Err(_)) => {}
                // Docker finds out about a pattern only if some path gets as far. By itself, every
                // path does.
                (Err(ours), Ok(_)) => {
                    let alone = patterns.iter().any(|pattern| {
                        // Not as an exception, nor as a comment.
                        let pattern = format!("./{}", pattern.trim_start_matches('!'));
                        std::fs::write(tree.path().join(".dockerignore"), pattern).unwrap();
                        today.borrow_mut().ask(tree.path()).classic.is_err()
                    });
                    prop_assert!(alone, "only here: {ours}");
                }
                (ours, theirs) => prop_assert_eq!(ours, theirs),
            }
        }
        Ok(())
    });
}

#[test]
fn any_tree_with_a_plain_file_is_sent_as_the_docker_cli_of_this_machine_sends_it() {
    let check = || {
        let recorder = Recorder::start();
        for_all(60, &plain_case(), |case| {
            let tree = tree(&case.paths, &case.file);
            let ours = without_the_builder_s(classic(tree.path()));
            let theirs = without_the_builder_s(recorder.docker_build(tree.path()));
            prop_assert_eq!(ours, theirs);
            Ok(())
        });
    };
    std::thread::scope(|threads| {
        threads.spawn(check);
        threads.spawn(check);
    });
}
