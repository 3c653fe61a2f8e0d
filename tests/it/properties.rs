//! Property tests: the invariants of tests/properties on random values near their edge cases.
//! `make fuzz` checks the same invariants for longer with a fuzzer.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};

use mol::testing::internals;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use crate::support::child::{Link, process, program, succeed, text};
use crate::support::for_all;
use crate::support::go_oracle::GoOracle;

#[path = "../properties/mod.rs"]
mod invariants;

use invariants::masking::Spelling;
use invariants::tree::Entry;
use invariants::{branch_url, head_sha, ignore_file, masking, tree};

/// Concatenations of `count` of these parts.
fn strings(
    parts: impl Strategy<Value = &'static str>,
    count: Range<usize>,
) -> impl Strategy<Value = String> {
    prop::collection::vec(parts, count).prop_map(|parts| parts.concat())
}

/// Strings of `count` characters from these ranges.
fn chars(
    ranges: &'static [RangeInclusive<char>],
    count: Range<usize>,
) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::char::ranges(ranges.into()), count).prop_map(String::from_iter)
}

/// Strings of any characters that are not control characters.
fn visible(count: Range<usize>) -> impl Strategy<Value = String> {
    let char = any::<char>().prop_filter("no control character", |c| !c.is_control());
    prop::collection::vec(char, count).prop_map(String::from_iter)
}

#[test]
fn a_property_that_panics_is_shown_with_its_smallest_value() {
    let outcome = std::panic::catch_unwind(|| {
        for_all(1000, &(0..100_000u32), |number| {
            assert!(number < 1234);
            Ok(())
        });
    });
    let message = *outcome.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("minimal failing input: 1234"), "{message}");
}

// Masking -----------------------------------------------------------------------------------------

/// Tokens as servers issue them, and some with characters that are special in the encodings.
fn token() -> impl Strategy<Value = String> {
    let odd = chars(&['!'..=')', '+'..='~'], 8..25);
    let hex = chars(&['0'..='9', 'a'..='f'], 40..41);
    let same = strings(select(vec!["ab", "a", "%2", "==", "//"]), 8..13);
    let letters = chars(&['a'..='z', 'é'..='é', '日'..='日'], 6..13);
    prop_oneof![odd, hex, same, letters].prop_filter("a token", |token| masking::is_token(token))
}

fn spelling() -> impl Strategy<Value = Spelling> {
    prop_oneof![
        Just(Spelling::Percent {
            encoded: 0,
            lower: 0
        }),
        any::<(u64, u64)>().prop_map(|(encoded, lower)| Spelling::Percent { encoded, lower }),
        any::<u64>().prop_map(|forms| Spelling::Mixed { forms }),
        any::<bool>().prop_map(|upper| Spelling::Hex { upper }),
        any::<(u8, u8, u8)>().prop_map(|(flavour, user, after)| Spelling::Base64 {
            flavour,
            user,
            after
        }),
    ]
}

/// Text that may merge with the token beside it.
fn surroundings() -> impl Strategy<Value = String> {
    let parts = select(vec![
        "",
        " ",
        "\n",
        "a",
        "Zm9v",
        "ab",
        "=",
        "==",
        "%",
        "%2",
        "%25",
        "+",
        "/",
        "-",
        "_",
        "\\",
        "\\\\",
        "\\u00",
        "\\x",
        "\\1",
        "\"",
        "&",
        "&#",
        "&#x",
        "&amp;",
        ";",
        "61",
        "@",
        ":",
        "https://",
        "u:p@",
        "é",
        "\u{fffd}",
        "Authorization: Basic ",
        "Bearer ",
        "token=",
        "&",
    ]);
    prop_oneof![strings(parts, 0..8), visible(0..21)]
}

#[test]
fn no_spelling_of_a_token_survives_in_any_text() {
    let values = (surroundings(), token(), spelling(), surroundings());
    for_all(3000, &values, |(before, token, spelling, after)| {
        masking::no_spelling_survives(&before, &token, spelling, &after);
        masking::other_lines_stay(&before, &token, spelling, &after);
        masking::text_without_secret_stays(&before, &token);
        Ok(())
    });
}

#[test]
fn no_spelling_of_a_token_survives_in_build_output_in_any_chunks() {
    let output = prop::collection::vec((surroundings(), spelling()), 1..5);
    let cuts = prop::collection::vec(any::<usize>(), 0..8);
    // A token that is set as an option is visible ASCII.
    let token = token().prop_filter("visible ASCII", |token| token.is_ascii());
    for_all(1500, &(output, token, cuts), |(output, token, cuts)| {
        let output = output
            .iter()
            .map(|(text, spelling)| format!("{text}{}\r\n", spelling.of(&token)));
        masking::chunking_does_not_matter(output.collect::<String>().as_bytes(), &cuts, &token);
        Ok(())
    });
    let bytes = prop::collection::vec(any::<u8>(), 0..300);
    let cuts = prop::collection::vec(any::<usize>(), 0..8);
    for_all(500, &(bytes, cuts), |(bytes, cuts)| {
        masking::chunking_does_not_matter(&bytes, &cuts, "s3cr3t-t0ken");
        Ok(())
    });
}

#[test]
fn any_text_is_shown_as_one_printable_line_without_the_token() {
    let harmful = select(vec![
        "\x1b[",
        "\x1b[31m",
        "\x1b]",
        "\x1b]0;",
        "\x07",
        "\x1b\\",
        "\u{9b}",
        "\u{9d}",
        "\u{9c}",
        "\x1b",
        "\r",
        "\0",
        "\u{200b}",
        "\u{202e}",
        "\u{feff}",
        "\u{e0041}",
        "\u{2028}",
        "é",
        "m",
        "[",
        "0;",
        "\t",
        "\u{ad}",
    ]);
    let inside = strings(harmful.clone(), 0..3);
    // A token that is set as an option is visible ASCII.
    let token = token().prop_filter("visible ASCII", |token| token.is_ascii());
    let values = (
        strings(harmful, 0..8),
        surroundings(),
        token,
        inside,
        any::<usize>(),
        spelling(),
    );
    for_all(
        3000,
        &values,
        |(noise, before, token, inside, at, spelling)| {
            let mut spelled = spelling.of(&token);
            if !matches!(spelling, Spelling::Base64 { .. }) {
                spelled.insert_str(at % spelled.len(), &inside);
            }
            masking::is_shown_as_one_printable_line(
                &format!("{noise}{before}{spelled}{noise}"),
                &token,
            );
            Ok(())
        },
    );
}

// URLs --------------------------------------------------------------------------------------------

const PREFIXES: &[&str] = &[
    "https://git.moleculesai.app/molecule-ai/molecule-ai-workspace-template-",
    "https://host/org/tpl-",
    "http://127.0.0.1:3000/git/sub/org/tpl-",
    "http://[::1]:3000/o/",
    "HTTPS://Host:443/O-r_g/T.p",
];

fn branch() -> impl Strategy<Value = String> {
    let parts = select(vec![
        "a",
        "main",
        "/",
        ".",
        "..",
        "%",
        "%2F",
        "%2e",
        "?",
        "#",
        "@",
        "@{",
        ":",
        "//",
        "\\",
        " ",
        "\t",
        "\0",
        "+",
        "&",
        "=",
        ";",
        "é",
        "日本",
        "~",
        "^",
        "*",
        "[",
        "-",
        ".lock",
        "\u{85}",
        "\u{202e}",
        "\u{10ffff}",
        "x",
        "//host/",
        "http:",
    ]);
    prop_oneof![
        strings(parts, 0..8),
        visible(0..33),
        chars(&['a'..='a'], 250..261)
    ]
}

#[test]
fn any_branch_gives_a_url_for_it_on_the_configured_server() {
    let go = RefCell::new(GoOracle::start());
    let runtime = select(mol::names::runtimes::DEFAULT_RUNTIMES.to_vec());
    let values = (select(PREFIXES), runtime, branch());
    for_all(3000, &values, |(prefix, runtime, branch)| {
        branch_url::url_names_the_branch(prefix, runtime, &branch);
        if branch.is_empty() {
            return Ok(());
        }
        let core = internals::branch_url(prefix, runtime, &branch);
        let core = core.map_err(|error| error.code.name().to_owned());
        prop_assert_eq!(go.borrow_mut().branch_url(prefix, runtime, &branch), core);
        Ok(())
    });
}

#[test]
fn any_prefix_is_refused_or_gives_a_url_on_its_server() {
    let parts = select(vec![
        "https://",
        "http://",
        "host",
        "127.0.0.1",
        "[::1]",
        ":80",
        ":",
        "/",
        "//",
        "org",
        "tpl-",
        "..",
        ".",
        "%2e%2e",
        "%2F",
        "?",
        "#",
        "@",
        "u:p@",
        "é",
        "\\",
        "ssh://",
        "a",
        "%",
        "xn--",
        " ",
    ]);
    let prefix = prop_oneof![
        strings(parts, 0..10),
        visible(0..33),
        select(PREFIXES).prop_map(str::to_owned)
    ];
    for_all(3000, &(prefix, branch()), |(prefix, branch)| {
        branch_url::url_names_the_branch(&prefix, "hermes", &branch);
        Ok(())
    });
}

// The Gitea response ------------------------------------------------------------------------------

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// JSON with the relevant field names in many places, sometimes with a valid commit id.
fn response() -> impl Strategy<Value = String> {
    let id = prop_oneof![
        4 => Just(json!(SHA)),
        1 => Just(json!(SHA.repeat(2)[..64])),
        1 => chars(&['0'..='9', 'a'..='f', 'A'..='F'], 38..43).prop_map(|id| json!(id)),
        1 => any::<i64>().prop_map(|id| json!(id)),
        1 => Just(Value::Null),
    ];
    let value = id.prop_recursive(4, 24, 4, |inner| {
        let name = select(vec!["id", "commit", "Commit", "ID", "user", "tree", "commit ", "c\u{0}"]);
        prop_oneof![
            3 => prop::collection::vec((name, inner.clone()), 0..4).prop_map(|fields| {
                Value::Object(fields.into_iter().map(|(name, v)| (name.to_owned(), v)).collect::<Map<_, _>>())
            }),
            1 => prop::collection::vec(inner, 0..3).prop_map(Value::Array),
        ]
    });
    let commit = (value.clone(), value.clone(), any::<bool>());
    let commit = commit.prop_map(|(commit, other, right)| {
        let commit = if right {
            json!({ "tree": other, "id": SHA })
        } else {
            commit
        };
        json!({ "user": { "id": SHA.replace('0', "f") }, "commit": commit, "id": other })
    });
    prop_oneof![commit, value].prop_map(|value| value.to_string())
}

/// The same in another JSON notation, or corrupted.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let change = select(vec![
        ("", ""),
        ("", ""),
        ("", ""),
        (",", " ,\n"),
        ("{", "{\"id\":1,"),
        ("\"id\"", "\"\\u0069d\""),
        ("\"commit\"", "\"commit\":{},\"commit\""),
        ("}", ""),
        ("}", "}}"),
        ("a", "\u{0}"),
        ("f", "\\ud800"),
        ("\"user\":{", "\"user\":{\"x\":1e999,"),
    ]);
    let text =
        (response(), change).prop_map(|(text, (from, to))| text.replacen(from, to, 1).into_bytes());
    let broken =
        (response(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(text, at, byte)| {
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes
        });
    prop_oneof![3 => text, 1 => broken, 1 => prop::collection::vec(any::<u8>(), 0..200)]
}

#[test]
fn the_commit_id_is_the_one_in_the_response_or_none() {
    let go = RefCell::new(GoOracle::start());
    let found = RefCell::new(0);
    for_all(4000, &body(), |body| {
        head_sha::sha_is_the_commit_id(&body);
        let core = internals::head_sha(&body).map_err(|error| error.code.name().to_owned());
        *found.borrow_mut() += u32::from(core.is_ok());
        prop_assert_eq!(go.borrow_mut().head_sha(&body), core);
        Ok(())
    });
    assert!(
        *found.borrow() > 100,
        "only {found:?} of the responses have a commit"
    );
}

// .dockerignore -----------------------------------------------------------------------------------

#[test]
fn any_dockerignore_is_parsed_or_refused_quickly() {
    let parts = select(vec![
        "a",
        "b",
        "/",
        "*",
        "**",
        "?",
        "[",
        "]",
        "^",
        "-",
        "!",
        "\\",
        "{",
        "}",
        "{1000}",
        "|",
        "(",
        "#",
        "\n",
        "\r",
        " ",
        "\u{feff}",
        "é",
        "..",
        ".",
        "d",
        "Q",
        "[:alpha:]",
        "$",
        "+",
    ]);
    let file = prop_oneof![strings(parts, 0..40), visible(0..33)];
    let first = chars(&['a'..='b', '*'..='*', 'é'..='é'], 1..4);
    let rest = prop::collection::vec(chars(&['a'..='b'], 1..3), 0..4);
    let path = (first, rest).prop_map(|(first, rest)| [vec![first], rest].concat().join("/"));
    let paths = prop::collection::vec(path, 1..5);
    for_all(2000, &(file, paths), |(file, paths)| {
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        ignore_file::is_parsed_or_refused(&file, &paths);
        Ok(())
    });
}

#[test]
fn a_hostile_dockerignore_is_not_slow() {
    let deep = vec!["a".repeat(200); 20].join("/");
    let lines = |line: &str| format!("{line}\n").repeat(2000);
    for file in [
        "*a".repeat(30_000),
        "**/".repeat(20_000) + "x",
        "a**".repeat(20_000),
        "[^b]".repeat(16_000),
        "?".repeat(65_000),
        "(*".repeat(30_000),
        "[".repeat(60_000),
        lines(&"*a".repeat(40)),
        lines("!**/a/**/b/**/c/**/d"),
        lines("a{1000}*"),
    ] {
        ignore_file::is_parsed_or_refused(&file, &[&deep]);
    }
}

// A commit's tree ---------------------------------------------------------------------------------

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let name = || {
        let odd = select(vec![
            "a",
            "b",
            "Dockerfile",
            ".dockerignore",
            "..",
            ".",
            ".git",
            ".GIT",
            ".git ",
            "git~1",
            "",
            "a/b",
            "../out",
            "/etc/passwd",
            "a\\b",
            ".gitattributes",
            ".gitmodules",
            ".g\u{200c}it",
            "CON",
            "a\nb",
            "é",
            "witness",
            "../witness",
        ]);
        let usual = chars(&['a'..='c'], 1..3);
        prop_oneof![
            2 => usual.prop_map(String::into_bytes),
            3 => odd.prop_map(|name| name.as_bytes().to_vec()),
            1 => prop::collection::vec(1u8.., 1..4),
        ]
    };
    let target = select(vec![
        "a",
        "..",
        "../witness",
        "/etc",
        "/etc/passwd",
        "a/../..",
        "",
        ".git",
        "b/c",
    ]);
    let content = select(vec!["one", "two", "*\n", "* text eol=crlf\n", "!**\n", ""]);
    let leaf = prop_oneof![
        3 => (name(), any::<bool>(), content).prop_map(|(name, executable, content)| Entry::File {
            name,
            executable,
            content: content.as_bytes().to_vec(),
        }),
        2 => (name(), target).prop_map(|(name, target)| Entry::Link {
            name,
            target: target.as_bytes().to_vec(),
        }),
        1 => name().prop_map(|name| Entry::Submodule { name }),
    ];
    let entry = leaf.prop_recursive(3, 12, 4, move |inner| {
        (name(), prop::collection::vec(inner, 0..4))
            .prop_map(|(name, entries)| Entry::Folder { name, entries })
    });
    prop::collection::vec(entry, 0..4)
}

#[test]
fn any_tree_stays_inside_its_folder_in_checkout_and_upload() {
    for_all(400, &(entries(), any::<bool>()), |(entries, sorted)| {
        tree::stays_inside(&entries, sorted);
        Ok(())
    });
}

// The C ABI ---------------------------------------------------------------------------------------

#[test]
fn random_c_calls_all_return_a_status() {
    for_all(3, &(any::<u32>(), 1..6u32), |(seed, threads)| {
        let mut calls = process(&program("random_calls", Link::Static));
        let output = succeed(calls.args([seed, 40, 400, threads].map(|n| n.to_string())));
        prop_assert_eq!(text(&output), "passed\n");
        Ok(())
    });
}
