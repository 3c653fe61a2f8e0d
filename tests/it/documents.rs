//! What the documents say of the tests is so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::child::source;

/// The documents that name tests.
const DOCUMENTS: [&str; 3] = [
    "docs/promises.md",
    "docs/reliability.md",
    "docs/security.md",
];

/// Every file below a folder with this ending.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_str().is_some_and(|path| path.ends_with(ending)) {
            found.push(path);
        }
    }
    found
}

/// The Go tests that there are.
fn go_tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in files(&source("go"), "_test.go") {
        for line in std::fs::read_to_string(file).unwrap().lines() {
            let name = line
                .strip_prefix("func ")
                .and_then(|line| line.split('(').next());
            names.extend(name.map(str::to_owned));
        }
    }
    names
}

/// Is there a Rust test of this name in this file? The name is `module::test` for those in tests/it, and
/// `src/file.rs::test` for the others. `module::file` stands for all tests of a file in a folder.
fn is_rust_test(name: &str) -> bool {
    let Some((place, test)) = name.split_once("::") else {
        return false;
    };
    let file = match place.starts_with("src/") {
        true => source(place),
        false => source(&format!("tests/it/{place}.rs")),
    };
    if !place.starts_with("src/") && source(&format!("tests/it/{place}/{test}.rs")).exists() {
        return true;
    }
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let test = format!("fn {test}()");
    text.match_indices(&test)
        .any(|(at, _)| text[..at].trim_end().ends_with(']'))
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let go = go_tests();
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(source(document)).unwrap();
        let quoted = text.split('`').skip(1).step_by(2);
        let (mut named, mut missing) = (0, Vec::new());
        for name in quoted {
            let is_go = name.starts_with("Test") && name.chars().all(char::is_alphanumeric);
            let is_rust = name.contains("::")
                && name
                    .chars()
                    .all(|c| c.is_alphanumeric() || "_:/.".contains(c));
            if is_go || is_rust {
                named += 1;
                if !(go.contains(name) || is_rust && is_rust_test(name)) {
                    missing.push(name);
                }
            }
        }
        assert!(
            named > 20,
            "{document} names tests, and this test sees them"
        );
        assert!(
            missing.is_empty(),
            "{document} names tests that are not there: {missing:#?}"
        );
    }
}
