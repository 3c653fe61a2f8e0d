//! Fetching exactly one commit, also from a server that misbehaves.

use std::time::{Duration, Instant};

use mol::event::Kind;
use mol::{Code, OptionName};
use serde_json::json;

use crate::support::server::{GIT, PLAIN, copying, dockerfile, fetches};
use crate::support::{CANCEL_LIMIT, TestEnv, in_parallel, noise};

fn has_tree(env: &TestEnv, sha: &str) -> bool {
    env.cached_paths()
        .iter()
        .any(|path| path.ends_with(&sha[..12]))
}

/// Makes the lookup answer with a commit that no longer exists.
fn gone(env: &TestEnv) -> &'static str {
    const GONE: &str = "0123456789abcdef0123456789abcdef01234567";
    let body = json!({ "commit": { "id": GONE } }).to_string();
    env.server
        .faults(json!([{ "match": "/branches/", "body": body }]));
    GONE
}

#[test]
fn a_commit_pruned_after_the_lookup_is_reported_as_gone() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    let commit = gone(&env);
    let client = env.client();
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::Fetch, "{error:?}");
    assert!(error.url.starts_with(&env.server.repo_prefix), "{error:?}");
    let says = format!("the commit {commit} is gone from {}", error.url);
    assert!(error.message().starts_with(&says), "{error:?}");
    assert!(
        error
            .message()
            .contains("the server says: upload-pack: not our ref"),
        "{error:?}"
    );
    assert!(error.hint.contains("force-pushed"), "{error:?}");
    assert_eq!(client.count(Kind::BuildStarted), 0);
    assert!(!has_tree(&env, commit));
    env.server.faults(json!([]));
    assert_eq!(client.ensure("hermes").unwrap().commit_sha, sha);
}

#[test]
fn an_err_packet_of_git_is_shown_complete_and_masked() {
    const TOKEN: &str = "0b5e9d2a4f6188c1e0b7a6d5943210fedcba7f3c";
    let said = format!("upload-pack: no, {TOKEN}, not this one");
    let packet = format!("{:04x}ERR {said}", said.len() + 8);
    // In one chunk, and in many.
    for in_pieces in [false, true] {
        let env = TestEnv::new();
        env.template("hermes", dockerfile(PLAIN));
        let mut fault = json!({ "match": "/git-upload-pack$", "body": packet,
            "headers": { "Content-Type": "application/x-git-upload-pack-result" } });
        if in_pieces {
            fault["drip_ms"] = json!(1);
            fault["drip_bytes"] = json!(3);
        }
        // The API cannot say whether the commit is gone.
        let api = json!({ "match": "/git/commits/", "status": 500 });
        env.server.faults(json!([fault, api]));
        let error = env
            .client_with(&[(OptionName::Token, TOKEN)])
            .ensure_err("hermes");
        assert_eq!(error.code, Code::Fetch, "{error:?}");
        let says = "cannot be fetched: the server says: upload-pack: no, ***, not this one";
        assert!(error.message().ends_with(says), "{error:?}");
        assert!(!error.message().contains("is gone"), "{error:?}");
        assert!(!error.hint.is_empty(), "{error:?}");
    }
}

#[test]
fn the_api_explains_why_git_refuses_after_the_lookup() {
    const REPOSITORY: &str = "/api/v1/repos/[^/]+/[^/]+$";
    for (git, api, code, says) in [
        (
            401,
            404,
            Code::RepoNotFound,
            "was deleted or made private after the lookup",
        ),
        (
            404,
            404,
            Code::RepoNotFound,
            "was deleted or made private after the lookup",
        ),
        (
            403,
            404,
            Code::RepoNotFound,
            "was deleted or made private after the lookup",
        ),
        (401, 403, Code::Auth, "refuses access (403"),
        (401, 500, Code::Auth, "answered 401"),
        (403, 200, Code::Auth, "answered 403"),
    ] {
        for (part, token) in [
            ("/info/refs", ""),
            ("/git-upload-pack$", "the-token-of-this-test"),
        ] {
            let env = TestEnv::new();
            env.template("hermes", dockerfile(PLAIN));
            env.server.faults(json!([
                { "match": part, "status": git },
                { "match": REPOSITORY, "status": api },
                { "match": "/git/commits/", "status": 404 },
            ]));
            let error = env
                .client_with(&[(OptionName::Token, token)])
                .ensure_err("hermes");
            assert_eq!(error.code, code, "{git} {api}: {error:?}");
            assert!(error.message().contains(says), "{git} {api}: {error:?}");
            assert!(error.message().contains(&error.url), "{error:?}");
        }
    }
}

#[test]
fn the_reason_for_a_403_is_shown_if_it_is_plain_text() {
    let off = "Interacting with repositories by HTTP protocol is not allowed";
    for (kind, shown) in [("text/plain;charset=utf-8", true), ("text/html", false)] {
        let env = TestEnv::new();
        env.template("hermes", dockerfile(PLAIN));
        env.server
            .faults(json!([{ "match": "/info/refs", "status": 403, "body": off,
            "headers": { "Content-Type": kind } }]));
        let error = env.client().ensure_err("hermes");
        assert_eq!(error.code, Code::Auth, "{error:?}");
        assert_eq!(error.message().contains(off), shown, "{error:?}");
        assert!(error.hint.contains("git over HTTP"), "{error:?}");
    }
}

#[test]
fn a_403_with_an_endless_body_is_still_reported() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    for fault in [
        json!({ "endless": true }),
        json!({ "body": "xx", "truncate_after": 1, "hang": true }),
    ] {
        let mut fault = fault;
        fault["match"] = json!("/info/refs");
        fault["status"] = json!(403);
        env.server.faults(json!([fault]));
        let begun = Instant::now();
        assert_eq!(env.client().ensure_err("hermes").code, Code::Auth);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn git_content_types_are_parsed_as_media_types() {
    for (advertisement, result) in [
        (
            "application/x-git-upload-pack-advertisement; charset=utf-8",
            "application/x-git-upload-pack-result;charset=utf-8",
        ),
        (
            "Application/X-Git-Upload-Pack-Advertisement",
            "APPLICATION/X-GIT-UPLOAD-PACK-RESULT ; a=\"b;c\"",
        ),
    ] {
        let env = TestEnv::new();
        let sha = env.template("hermes", dockerfile(PLAIN));
        let typed = |part: &str, kind: &str| {
            // A drip passes git's own answer; only its headers are replaced.
            json!({ "match": part, "drip_ms": 1, "drip_bytes": 1 << 20,
                "headers": { "Content-Type": kind } })
        };
        env.server.faults(json!([
            typed("/info/refs", advertisement),
            typed("/git-upload-pack$", result),
        ]));
        assert_eq!(env.client().ensure("hermes").unwrap().commit_sha, sha);
        // Any other content type is refused.
        env.server.faults(json!([typed("/info/refs", result)]));
        env.template(
            "hermes",
            dockerfile("FROM scratch\nCOPY Dockerfile /other\n"),
        );
        assert_eq!(env.client().ensure_err("hermes").code, Code::Fetch);
    }
}

#[test]
fn a_sha_256_repository_is_built() {
    let env = TestEnv::new();
    let folder = env.server.bare_repository("hermes");
    std::fs::remove_dir_all(&folder).unwrap();
    let git = |arguments: &[&str], input: &str| {
        use std::io::Write as _;
        use std::process::{Command, Stdio};
        let mut child = Command::new("git")
            .args(arguments)
            .env("GIT_DIR", &folder)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    git(
        &[
            "init",
            "--quiet",
            "--bare",
            "--object-format=sha256",
            "--initial-branch=main",
        ],
        "",
    );
    git(&["config", "http.receivepack", "false"], "");
    git(&["config", "uploadpack.allowAnySHA1InWant", "true"], "");
    let file = git(&["hash-object", "-w", "--stdin"], PLAIN);
    let tree = git(&["mktree"], &format!("100644 blob {file}\tDockerfile\n"));
    let who = "A <a@example.com> 1700000000 +0000";
    let commit = format!("tree {tree}\nauthor {who}\ncommitter {who}\n\nA template\n");
    let sha = git(&["hash-object", "-t", "commit", "-w", "--stdin"], &commit);
    assert_eq!(sha.len(), 64);
    git(&["update-ref", "refs/heads/main", &sha], "");
    let image = env.client().ensure("hermes").unwrap();
    assert_eq!(image.commit_sha, sha);
    assert_eq!(env.engine.read(&image.reference, "Dockerfile"), PLAIN);
}

#[test]
fn git_http_errors_map_to_error_codes() {
    for (status, code) in [
        (401, Code::Auth),
        (403, Code::Auth),
        (404, Code::RepoNotFound),
        (500, Code::Fetch),
        (418, Code::Fetch),
    ] {
        for part in ["/info/refs", "/git-upload-pack$"] {
            let env = TestEnv::new();
            let sha = env.template("hermes", dockerfile(PLAIN));
            env.server
                .faults(json!([{ "match": part, "status": status }]));
            let error = env.client().ensure_err("hermes");
            assert_eq!(error.code, code, "{part} {status}: {error:?}");
            assert!(error.message().contains(&status.to_string()), "{error:?}");
            assert!(
                !error.hint.is_empty() && error.url.contains("hermes"),
                "{error:?}"
            );
            let api_knows = error.hint.starts_with("the API knows the repository");
            assert_eq!(api_knows, status == 404, "{error:?}");
            assert!(!has_tree(&env, &sha));
        }
    }
}

#[test]
fn an_invalid_git_answer_is_a_fetch_error() {
    for (part, kind) in GIT {
        for body in [
            "",
            "<html>sign in</html>",
            "0000",
            "zzzz",
            "ffff",
            "0008NAK\n",
        ] {
            let env = TestEnv::new();
            let sha = env.template("hermes", dockerfile(PLAIN));
            env.server
                .faults(json!([{ "match": part, "status": 200, "body": body,
                "headers": { "Content-Type": kind } }]));
            let error = env.client().ensure_err("hermes");
            assert_eq!(error.code, Code::Fetch, "{part} {body:?}: {error:?}");
            assert!(
                !error.message().contains("did not answer as git does"),
                "the content type is right: {error:?}"
            );
            assert!(!has_tree(&env, &sha));
        }
    }
}

#[test]
fn a_truncated_pack_is_never_used() {
    // Large enough that a cut is inside the pack.
    let content = noise(20_000);
    // In parallel, because most of the time is spent waiting between retries.
    let cuts = [0, 1, 10, 50, 100, 200, 1000, 5000, 10_000];
    in_parallel(cuts.into_iter(), |cut| {
        let env = TestEnv::new();
        let sha = env.template("hermes", copying(&content));
        // Every request is cut, because the fetch is retried.
        env.server
            .faults(json!([{ "match": "/git-upload-pack$", "truncate_after": cut }]));
        let client = env.client();
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::Fetch, "{cut}: {error:?}");
        assert!(!has_tree(&env, &sha), "{cut}");
        assert_eq!(client.count(Kind::BuildStarted), 0);
        env.server.faults(json!([]));
        let image = client.ensure("hermes").unwrap();
        assert_eq!(env.engine.read(&image.reference, "content"), content);
    });
}

#[test]
fn a_silent_git_server_counts_as_stalled() {
    for part in ["/info/refs", "/git-upload-pack$"] {
        let env = TestEnv::new();
        env.template("hermes", dockerfile(PLAIN));
        env.server
            .faults(json!([{ "match": part, "truncate_after": 40, "hang": true }]));
        let begun = Instant::now();
        let error = env
            .client_with(&[(OptionName::StallGrace, "1")])
            .ensure_err("hermes");
        assert_eq!(error.code, Code::Stalled, "{part}: {error:?}");
        assert!(
            error.hint.contains("MOLECULE_BUILD_STALL_GRACE_S"),
            "{error:?}"
        );
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn a_slow_git_server_does_not_count_as_stalled() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    // A few bytes at a time: the answer takes longer than the grace. Each pause is a tenth of the grace, so
    // that a busy machine does not turn it into a stall.
    env.server
        .faults(json!([{ "match": "/git-upload-pack$", "drip_ms": 300, "drip_bytes": 20 }]));
    let client = env.client_with(&[(OptionName::StallGrace, "3")]);
    client.ensure("hermes").unwrap();
    let took = client.wait_for(Kind::FetchDone, |_| true).duration_ms;
    assert!(took > Some(3000), "{took:?}");
    let progress = client.of_kind(Kind::FetchProgress);
    assert!(
        !progress.is_empty() && progress.last().unwrap().bytes > Some(0),
        "{progress:?}"
    );
}

#[test]
fn an_endless_git_answer_ends_at_the_deadline() {
    // Valid packets, sent slowly enough that the size limits are not reached.
    let packets = [
        ("", "001e# service=git-upload-pack\n"),
        ("000dpackfile\n", "000f\x02resolving\n"),
    ];
    for ((part, kind), (first, packet)) in GIT.into_iter().zip(packets) {
        let env = TestEnv::new();
        env.template("hermes", dockerfile(PLAIN));
        env.server.faults(
            json!([{ "match": part, "endless": true, "body_first": first, "body": packet,
            "drip_ms": 5, "headers": { "Content-Type": kind }, "drip_bytes": 100 }]),
        );
        let limit = Duration::from_secs(2);
        let client = env.client();
        let begun = Instant::now();
        let call = client.begin_within("hermes", Some(limit));
        let error = call.end().unwrap_err();
        assert_eq!(error.code, Code::DeadlineExceeded, "{part}: {error:?}");
        assert!(
            begun.elapsed() < limit + CANCEL_LIMIT,
            "{:?}",
            begun.elapsed()
        );
    }
}

#[test]
fn the_checkout_is_in_the_cache_by_runtime_and_commit() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    env.client().ensure("hermes").unwrap();
    let tree = env.cache().join("hermes").join(&sha[..12]);
    assert_eq!(
        std::fs::read_to_string(tree.join("Dockerfile")).unwrap(),
        PLAIN
    );
    assert!(!tree.join(".git").exists());
}

#[test]
fn a_fetch_requests_the_capabilities_once() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.client().ensure("hermes").unwrap();
    let requests = env.server.requests();
    assert_eq!(fetches(&requests), 1, "{requests:?}");
}
