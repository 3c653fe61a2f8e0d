//! Step four: exactly one commit, from a server that misbehaves.

use std::time::{Duration, Instant};

use mol::event::Kind;
use mol::{Code, OptionName};
use serde_json::json;

use crate::support::server::{dockerfile, of_service};
use crate::support::{Bed, Files, file, noise};

const PLAIN: &str = "FROM scratch\nCOPY Dockerfile /\n";

fn has_tree(bed: &Bed, sha: &str) -> bool {
    bed.cached_paths()
        .iter()
        .any(|path| path.ends_with(&sha[..12]))
}

#[test]
fn a_commit_that_the_server_does_not_have_is_an_error_that_names_it() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    let gone = "0123456789abcdef0123456789abcdef01234567";
    bed.server.faults(json!([{ "match": "/api/", "status": 200, "body": json!({ "commit": { "id": gone } }).to_string() }]));
    let client = bed.client();
    let error = client.refused("hermes");
    assert_eq!(error.code, Code::Fetch, "{error:?}");
    assert!(error.message.contains(gone), "{error:?}");
    assert!(error.message.contains(&bed.server.repo_prefix), "{error:?}");
    assert!(!error.hint.is_empty());
    assert_eq!(client.count(Kind::BuildStarted), 0);
    assert!(!has_tree(&bed, gone));
}

#[test]
fn git_s_refusals_are_told_apart() {
    for (status, code) in [
        (401, Code::Auth),
        (403, Code::Auth),
        (404, Code::RepoNotFound),
        (500, Code::Fetch),
        (418, Code::Fetch),
    ] {
        for part in ["/info/refs", "/git-upload-pack$"] {
            let bed = Bed::new();
            let sha = bed.template("hermes", dockerfile(PLAIN));
            bed.server
                .faults(json!([{ "match": part, "status": status }]));
            let error = bed.client().refused("hermes");
            assert_eq!(error.code, code, "{part} {status}: {error:?}");
            assert!(error.message.contains(&status.to_string()), "{error:?}");
            assert!(
                !error.hint.is_empty() && error.url.contains("hermes"),
                "{error:?}"
            );
            assert!(!has_tree(&bed, &sha));
        }
    }
}

#[test]
fn an_answer_that_is_no_git_is_a_failed_fetch() {
    for part in ["/info/refs", "/git-upload-pack$"] {
        for body in [
            "",
            "<html>sign in</html>",
            "0000",
            "zzzz",
            "ffff",
            "0008NAK\n",
        ] {
            let bed = Bed::new();
            let sha = bed.template("hermes", dockerfile(PLAIN));
            bed.server
                .faults(json!([{ "match": part, "status": 200, "body": body }]));
            let error = bed.client().refused("hermes");
            assert_eq!(error.code, Code::Fetch, "{part} {body:?}: {error:?}");
            assert!(!has_tree(&bed, &sha));
        }
    }
}

#[test]
fn a_pack_that_is_cut_at_any_place_is_never_used() {
    // Big enough that a cut falls into the pack.
    let content = noise(20_000);
    let template = || {
        Files::from([
            (
                "Dockerfile".to_owned(),
                file("FROM scratch\nCOPY content /\n"),
            ),
            ("content".to_owned(), file(&content)),
        ])
    };
    for cut in [0, 1, 10, 50, 100, 200, 1000, 5000, 10_000] {
        let bed = Bed::new();
        let sha = bed.template("hermes", template());
        // Not only for once: it is tried again.
        bed.server
            .faults(json!([{ "match": "/git-upload-pack$", "truncate_after": cut }]));
        let client = bed.client();
        let error = client.refused("hermes");
        assert_eq!(error.code, Code::Fetch, "{cut}: {error:?}");
        assert!(!has_tree(&bed, &sha), "{cut}");
        assert_eq!(client.count(Kind::BuildStarted), 0);
        bed.server.faults(json!([]));
        let image = client.ensure("hermes").unwrap();
        assert_eq!(bed.engine.read(&image.reference, "content"), content);
    }
}

#[test]
fn a_server_that_falls_silent_counts_as_stalled() {
    for part in ["/info/refs", "/git-upload-pack$"] {
        let bed = Bed::new();
        bed.template("hermes", dockerfile(PLAIN));
        bed.server
            .faults(json!([{ "match": part, "truncate_after": 40, "hang": true }]));
        let begun = Instant::now();
        let error = bed
            .client_with(&[(OptionName::StallGrace, "1")])
            .refused("hermes");
        assert_eq!(error.code, Code::Stalled, "{part}: {error:?}");
        assert!(
            error.hint.contains("MOLECULE_BUILD_STALL_GRACE_S"),
            "{error:?}"
        );
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn a_slow_server_is_not_a_stalled_one() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    // A byte now and then: the whole takes longer than the grace, no pause does.
    bed.server
        .faults(json!([{ "match": "/git-upload-pack$", "drip_ms": 300, "drip_bytes": 40 }]));
    let begun = Instant::now();
    let client = bed.client_with(&[(OptionName::StallGrace, "1")]);
    client.ensure("hermes").unwrap();
    assert!(
        begun.elapsed() > Duration::from_secs(1),
        "the test is slow enough"
    );
    let progress = client.of_kind(Kind::FetchProgress);
    assert!(
        !progress.is_empty() && progress.last().unwrap().bytes > Some(0),
        "{progress:?}"
    );
}

#[test]
fn an_endless_answer_to_git_ends_with_the_deadline() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    bed.server
        .faults(json!([{ "match": "/info/refs", "endless": true }]));
    let client = bed.client();
    let begun = Instant::now();
    client
        .begin_within("hermes", Some(Duration::from_secs(3)))
        .end()
        .unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn the_tree_is_checked_out_below_the_cache_under_its_runtime_and_commit() {
    let bed = Bed::new();
    let sha = bed.template("hermes", dockerfile(PLAIN));
    bed.client().ensure("hermes").unwrap();
    let tree = bed.cache().join("hermes").join(&sha[..12]);
    assert_eq!(
        std::fs::read_to_string(tree.join("Dockerfile")).unwrap(),
        PLAIN
    );
    assert!(!tree.join(".git").exists());
}

#[test]
fn paths_that_would_leave_the_tree_are_not_written() {
    // git itself refuses to make most of these; what it does make must stay within the folder.
    let bed = Bed::new();
    let outside = bed.scratch().join("outside");
    std::fs::create_dir(&outside).unwrap();
    bed.template(
        "hermes",
        Files::from([
            ("Dockerfile".to_owned(), file(PLAIN)),
            (
                "link".to_owned(),
                json!({ "text": outside.to_str().unwrap(), "mode": "120000" }),
            ),
        ]),
    );
    bed.client().ensure("hermes").unwrap();
    let left: Vec<_> = std::fs::read_dir(&outside).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn one_fetch_is_one_conversation() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    bed.client().ensure("hermes").unwrap();
    let requests = bed.server.requests();
    let git = of_service(&requests, "git");
    let asked = git
        .iter()
        .filter(|request| request.path.ends_with("/info/refs"))
        .count();
    assert_eq!(asked, 1, "{git:?}");
}
