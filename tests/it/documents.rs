//! The references in the documents to tests, files and other documents are valid; names and the header are short.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::support::child::{source, strict_compiler, text};
use crate::support::header::Header;

/// The documents that name tests.
const DOCUMENTS: [&str; 3] = [
    "docs/promises.md",
    "docs/reliability.md",
    "docs/security.md",
];

/// Every file below a folder with this suffix, except build output and hidden files.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name == "target" || name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_str().is_some_and(|path| path.ends_with(ending)) {
            found.push(path);
        }
    }
    found
}

/// The names of all functions in Go test files.
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

/// Whether a Rust test with this name exists. The name is `module::test` for those in tests/it, and
/// `src/file.rs::test` for unit tests. `module::file` stands for all tests of a file in a folder.
fn is_rust_test(name: &str) -> bool {
    let Some((place, test)) = name.rsplit_once("::") else {
        return false;
    };
    let file = match place.starts_with("src/") {
        true => source(place),
        false => source(&format!("tests/it/{}.rs", place.replace("::", "/"))),
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
fn every_test_named_in_a_document_exists() {
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
        assert!(named > 20, "{document} names too few tests: {named}");
        assert!(
            missing.is_empty(),
            "{document} names tests that do not exist: {missing:#?}"
        );
    }
}

#[test]
fn test_names_are_short() {
    let rust = ["src", "tests", "benches"].map(|folder| files(&source(folder), ".rs"));
    let rust: BTreeSet<String> = (rust.into_iter().flatten())
        .map(|file| std::fs::read_to_string(file).unwrap())
        .flat_map(|text| {
            let after = text.split("#[test]").skip(1);
            let names = after.filter_map(|text| text.split_once("fn ")?.1.split('(').next());
            names.map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    assert!(rust.len() > 800, "{}", rust.len());
    let go = go_tests();
    let long: Vec<_> = (rust.iter().chain(&go))
        .filter(|name| name.len() >= 70)
        .collect();
    assert!(long.is_empty(), "70 letters or more: {long:#?}");
}

#[test]
fn the_header_has_under_450_lines_and_at_most_26_functions() {
    let header = std::fs::read_to_string(source("include/mol.h")).unwrap();
    assert!(header.lines().count() < 450);
    let functions = Header::read().functions().count();
    assert!(functions <= 26, "{functions}");
}

/// The documents, with their texts.
fn documents() -> BTreeMap<PathBuf, String> {
    let texts = files(&source(""), ".md").into_iter().map(|path| {
        let text = std::fs::read_to_string(&path).unwrap();
        (path.canonicalize().unwrap(), text)
    });
    texts.collect()
}

fn markdown(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
}

/// The anchors of a document: its headings, as forges spell them in a link.
fn anchors(text: &str) -> BTreeSet<String> {
    let (mut anchors, mut heading) = (BTreeSet::new(), None::<String>);
    for event in markdown(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => anchors.extend(heading.take()),
            Event::Text(text) | Event::Code(text) => {
                let letters = text
                    .chars()
                    .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
                let letters = letters.flat_map(char::to_lowercase);
                if let Some(heading) = &mut heading {
                    heading.extend(letters.map(|c| if c == ' ' { '-' } else { c }));
                }
            }
            _ => {}
        }
    }
    anchors
}

#[test]
fn links_between_documents_are_valid() {
    let documents = documents();
    let (mut followed, mut broken) = (0, Vec::new());
    for (document, text) in &documents {
        for event in markdown(text) {
            let (Event::Start(Tag::Link { dest_url: link, .. })
            | Event::Start(Tag::Image { dest_url: link, .. })) = event
            else {
                continue;
            };
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => Ok(document.clone()),
                _ => document.parent().unwrap().join(file).canonicalize(),
            };
            let valid = target.is_ok_and(|target| {
                anchor.is_empty()
                    || documents
                        .get(&target)
                        .is_some_and(|text| anchors(text).contains(anchor))
            });
            if !valid {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(followed > 50, "found only {followed} links");
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_path_named_in_a_document_exists() {
    const ROOTS: [&str; 9] = [
        "src",
        "tests",
        "scripts",
        "packaging",
        "docs",
        "examples",
        "benches",
        "include",
        "go",
    ];
    let (mut named, mut missing) = (0, Vec::new());
    for (document, text) in &documents() {
        // The changelog may name files that no longer exist.
        if document.ends_with("CHANGELOG.md") {
            continue;
        }
        for event in markdown(text) {
            let Event::Code(code) = event else { continue };
            let is_path = code
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
            if is_path
                && code
                    .split_once('/')
                    .is_some_and(|(root, _)| ROOTS.contains(&root))
            {
                named += 1;
                if !source(&code).exists() {
                    missing.push(format!("{}: {code}", document.display()));
                }
            }
        }
    }
    assert!(named > 50, "found only {named} paths");
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn architecture_md_lists_every_source_file() {
    let text = std::fs::read_to_string(source("docs/architecture.md")).unwrap();
    let src = source("src");
    let missing = files(&src, ".rs").into_iter().filter(|file| {
        let below = file.strip_prefix(&src).unwrap();
        let folder = below.parent().unwrap().to_str().unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        let row = format!("| `src/{folder}/` |");
        let mut rows = text.lines().filter(|line| line.starts_with(&row));
        let in_row = rows.any(|row| name == "mod.rs" || row.contains(&format!("`{name}`")));
        !(in_row || text.contains(&format!("`src/{}`", below.display())))
    });
    let missing: Vec<_> = missing.collect();
    assert!(
        missing.is_empty(),
        "docs/architecture.md has no row for {missing:#?}"
    );
}

/// The C code in a document: its blocks that are marked as C.
fn c_blocks(text: &str) -> Vec<String> {
    let (mut blocks, mut block) = (Vec::new(), None::<String>);
    for event in markdown(text) {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) if &*language == "c" => {
                block = Some(String::new());
            }
            Event::End(TagEnd::CodeBlock) => blocks.extend(block.take()),
            Event::Text(text) => {
                if let Some(block) = &mut block {
                    block.push_str(&text);
                }
            }
            _ => {}
        }
    }
    blocks
}

/// The example at the head of include/mol.h.
fn example_of_the_header() -> String {
    let header = std::fs::read_to_string(source("include/mol.h")).unwrap();
    let is_code = |line: &&str| line.starts_with(" *     ");
    let lines = header.lines().skip_while(|line| !is_code(line));
    let code = lines.take_while(|line| is_code(line) || *line == " *");
    let code: Vec<&str> = code.map(|line| &line[2..]).collect();
    code.join("\n")
}

/// A block without `int main(` is a fragment: the body of a function that has these variables, and in which the
/// standard headers of this list are included.
fn c_program(block: &str) -> String {
    if block.contains("int main(") {
        return block.to_owned();
    }
    format!(
        "#include <mol.h>\n\
         #include <stdio.h>\n\
         #include <stdlib.h>\n\
         mol_status fragment(mol_options options, mol_client client, mol_call call);\n\
         mol_status fragment(mol_options options, mol_client client, mol_call call)\n\
         {{\n\
         mol_status status = MOL_OK;\n\
         mol_error *error = NULL;\n\
         (void)options, (void)client, (void)call, (void)error;\n\
         {{\n\
         {block}\n\
         }}\n\
         return status;\n\
         }}\n"
    )
}

#[test]
fn every_c_block_of_a_document_compiles() {
    let mut blocks = vec![("include/mol.h".into(), example_of_the_header())];
    for (document, text) in documents() {
        let of_document = c_blocks(&text).into_iter();
        blocks.extend(of_document.map(|block| (document.clone(), block)));
    }
    assert!(blocks.len() > 3, "only {} C blocks found", blocks.len());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("block.c");
    for (document, block) in blocks {
        std::fs::write(&file, c_program(&block)).unwrap();
        let output = strict_compiler(false, "c11")
            .arg("-fsyntax-only")
            .arg(&file)
            .output()
            .unwrap();
        let messages = text(&output);
        let document = document.display();
        assert!(output.status.success(), "{document}:\n{block}\n{messages}");
    }
}
