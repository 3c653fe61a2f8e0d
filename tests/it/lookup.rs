//! The lookup of the branch head, and all its failures. Each has its own error, which names the URL
//! and the next step and does not mention a registry (promise P1).

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use mol::event::Kind;
use mol::{Code, Error, OptionName};
use serde_json::{Value, json};

use crate::support::server::{PLAIN, dockerfile, of_service};
use crate::support::{CANCEL_LIMIT, TestEnv, in_parallel, wait_until};

/// Checks what all lookup errors have in common.
fn assert_reported(env: &TestEnv, error: &Error) {
    assert_eq!(error.runtime, "hermes");
    assert!(
        error.message().contains("hermes"),
        "the URL is missing: {error:?}"
    );
    assert!(error.url.contains("workspace-template-hermes"), "{error:?}");
    assert!(!error.hint.is_empty(), "no hint: {error:?}");
    let said = format!("{error:?}").to_lowercase();
    for registry in ["ghcr", "ecr.", " ecr", "registry", "pull"] {
        assert!(!said.contains(registry), "{registry} in {error:?}");
    }
    assert!(env.engine.references_of(&env.isolation).is_empty());
    assert!(!env.cache().exists(), "nothing is written to the cache");
}

/// The error when the branch request gets this response.
fn lookup_error(env: &TestEnv, fault: Value) -> Error {
    let mut fault = fault;
    fault["match"] = json!("/api/");
    env.server.faults(json!([fault]));
    let client = env.client();
    let error = client.ensure_err("hermes");
    assert_reported(env, &error);
    let repository = format!("{}hermes", env.server.repo_prefix);
    assert!(error.message().contains(&repository), "{error:?}");
    assert_eq!(client.count(Kind::LookupDone), 0);
    let requests = env.server.requests();
    assert!(
        of_service(&requests, "git").is_empty(),
        "nothing is fetched: {requests:?}"
    );
    error
}

fn unreachable(env: &TestEnv, prefix: &str) -> Error {
    let error = env
        .client_with(&[(OptionName::RepoPrefix, prefix)])
        .ensure_err("hermes");
    assert_eq!(error.code, Code::GiteaUnreachable, "{error:?}");
    assert_reported(env, &error);
    error
}

#[test]
fn a_refused_connection_is_reported() {
    let env = TestEnv::new();
    let error = unreachable(&env, "http://127.0.0.1:1/o/workspace-template-");
    assert!(error.message().contains("refused"), "{error:?}");
}

#[test]
fn an_unresolvable_host_is_reported() {
    let env = TestEnv::new();
    let error = unreachable(&env, "https://no-such-host.invalid/o/workspace-template-");
    assert!(error.message().contains("resolve"), "{error:?}");
}

#[test]
fn a_server_without_tls_is_reported() {
    let env = TestEnv::new();
    let prefix = env.server.repo_prefix.replace("http://", "https://");
    let error = unreachable(&env, &prefix);
    assert!(error.message().contains("TLS"), "{error:?}");
    assert!(error.hint.contains("SSL_CERT_FILE"), "{error:?}");
}

#[test]
fn a_lookup_on_a_hanging_server_ends_at_the_deadline() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.server
        .faults(json!([{ "match": "/api/", "hang": true }]));
    let client = env.client();
    let begun = Instant::now();
    let limit = Duration::from_millis(700);
    let error = client
        .begin_within("hermes", Some(limit))
        .end()
        .unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded);
    assert!(begun.elapsed() < limit + CANCEL_LIMIT);
    assert_eq!(client.count(Kind::LookupDone), 0);
}

#[test]
fn a_lookup_times_out_after_30_seconds() {
    // Also when a response keeps coming and never ends.
    let answers = [
        ("", ""),
        ("", "HTTP/1.1 100 Continue\r\n\r\n"),
        ("HTTP/1.1 200 OK\r\nX: ", "x"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n{", " "),
    ];
    in_parallel(answers.into_iter(), |(begin, more)| {
        let env = TestEnv::new();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let prefix = format!(
            "http://{}/o/workspace-template-",
            server.local_addr().unwrap()
        );
        std::thread::spawn(move || {
            let mut client = server.accept().unwrap().0;
            assert!(client.read(&mut [0; 4096]).unwrap() > 0);
            let pause = Some(Duration::from_millis(100));
            client.set_read_timeout(pause).unwrap();
            let _ = client.write_all(begin.as_bytes());
            while client.write_all(more.as_bytes()).is_ok() {
                if let Ok(0) = client.read(&mut [0; 4096]) {
                    break;
                }
            }
        });
        let begun = Instant::now();
        let error = unreachable(&env, &prefix);
        assert!(
            error.message().contains("30 seconds") || error.message().contains("timed out"),
            "{error:?}"
        );
        assert!(begun.elapsed() < Duration::from_secs(40), "{begin}{more}");
    });
}

#[test]
fn a_server_that_does_not_speak_http_is_reported() {
    let env = TestEnv::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let prefix = format!(
        "http://{}/o/workspace-template-",
        other.local_addr().unwrap()
    );
    std::thread::spawn(move || {
        for stream in other.incoming() {
            let _ = stream.unwrap().write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
        }
    });
    unreachable(&env, &prefix);
}

#[test]
fn only_the_missing_repository_is_named() {
    let env = TestEnv::new();
    env.template("codex", dockerfile(PLAIN));
    let error = env.client().ensure_err("hermes");
    assert_eq!(error.code, Code::RepoNotFound);
    assert_reported(&env, &error);
    assert!(
        error
            .message()
            .contains(&format!("{}hermes", env.server.repo_prefix)),
        "{error:?}"
    );
    for other in mol::names::runtimes::DEFAULT_RUNTIMES {
        assert!(!error.hint.contains(other), "{error:?}");
    }
}

/// The hint never says to set a token that is already set.
#[test]
fn the_hint_depends_on_the_status_and_on_a_token_being_set() {
    for (status, has_token, says) in [
        (401, false, "set MOLECULE_GITEA_TOKEN to a token"),
        (
            401,
            true,
            "does not accept the token in MOLECULE_GITEA_TOKEN",
        ),
        (403, false, "set MOLECULE_GITEA_TOKEN to a token"),
        (403, true, "the scope read:repository"),
        (
            404,
            false,
            "for a private repository, set MOLECULE_GITEA_TOKEN",
        ),
        (
            404,
            true,
            "if the token in MOLECULE_GITEA_TOKEN may not read",
        ),
    ] {
        for branch in ["", "main"] {
            let env = TestEnv::new();
            // The hint does not depend on the server's text.
            let body = json!({ "message": "expired scope; sign in; set MOLECULE_GITEA_TOKEN" });
            env.server
                .faults(json!([{ "match": "/api/", "status": status,
                "headers": { "Content-Type": "application/json" }, "body": body.to_string() }]));
            let token = if has_token {
                "the-token-of-this-test"
            } else {
                ""
            };
            let error = env
                .client_with(&[(OptionName::Token, token), (OptionName::Branch, branch)])
                .ensure_err("hermes");
            assert!(error.hint.contains(says), "{status} {has_token}: {error:?}");
            let says_to_set = error.hint.contains("set MOLECULE_GITEA_TOKEN");
            assert_eq!(says_to_set, !has_token, "{status}: {error:?}");
        }
    }
}

#[test]
fn the_server_message_is_shown_truncated_printable_and_masked() {
    const TOKEN: &str = "0b5e9d2a4f6188c1e0b7a6d5943210fedcba7f3c";
    let json = "application/json;charset=utf-8";
    let said = |status: u16, kind: &str, body: String| {
        let env = TestEnv::new();
        env.server
            .faults(json!([{ "match": "/api/", "status": status,
            "headers": { "Content-Type": kind }, "body": body }]));
        let client = env.client_with(&[(OptionName::Token, TOKEN)]);
        client.ensure_err("hermes").message()
    };
    let message = |text: &str| json!({ "message": text, "url": "x" }).to_string();
    for status in [400, 401, 403, 500] {
        let text = said(
            status,
            json,
            message("token scope is limited\nto public repos"),
        );
        let shown = "; the server says: token scope is limited to public repos";
        assert!(text.ends_with(shown), "{text}");
    }
    let text = said(
        403,
        "Application/JSON",
        message(&format!("not with {TOKEN}")),
    );
    assert!(text.ends_with("the server says: not with ***"), "{text}");
    let text = said(
        403,
        json,
        message(&format!("{}{TOKEN}", "long ".repeat(8000))),
    );
    assert!(text.contains("the server says: long long"), "{text}");
    assert!(text.len() < 800 && !text.contains(&TOKEN[..6]), "{text}");
    let text = said(403, "text/plain", "git is off".into());
    assert!(text.ends_with("the server says: git is off"), "{text}");
    // Empty, or not meant for people.
    for (kind, body) in [
        ("text/html", "<html>sign in</html>".into()),
        ("text/plain", "Forbidden\n".into()),
        (json, message("")),
        (json, "{\"message\":7}".into()),
        (json, "{".into()),
        (json, "[]".into()),
    ] {
        let text = said(403, kind, body);
        assert!(text.ends_with("(403 Forbidden)"), "{kind}: {text}");
    }
}

#[test]
fn a_long_commit_message_does_not_fail_the_lookup() {
    // Also if other branches share its prefix, or if it has a slash.
    for branch in ["main", "feature/größe#1"] {
        let env = TestEnv::new();
        let repository = env.server.template("hermes");
        let commit = |branch: &str, message: String| {
            let files = dockerfile(PLAIN);
            let commit =
                json!({ "branch": branch, "message": message, "files": files, "orphan": true });
            env.server.commit_as(&repository, commit)
        };
        let sha = commit(branch, "A long message.\n".repeat(10_000));
        for more in ["-2", "-3", "line"] {
            commit(&format!("{branch}{more}"), "short".into());
        }
        let client = env.client_with(&[(OptionName::Branch, branch)]);
        assert_eq!(client.ensure("hermes").unwrap().commit_sha, sha);
        let requests = env.server.requests();
        assert_eq!(of_service(&requests, "api").len(), 2, "{requests:?}");
    }
}

#[test]
fn a_long_commit_message_among_many_branches_does_not_fail_the_lookup() {
    for branch in ["main", "feature/größe#1"] {
        let env = TestEnv::new();
        let repository = env.server.template("hermes");
        let files = dockerfile(PLAIN);
        let message = "A long message.\n".repeat(10_000);
        let commit = json!({ "branch": branch, "message": message, "files": files });
        let sha = env.server.commit_as(&repository, commit);
        let branches: String = (0..500)
            .map(|number| format!("{sha} refs/heads/{branch}-{number}\n"))
            .collect();
        let folder = env.server.bare_repository("hermes");
        std::fs::write(folder.join("packed-refs"), branches).unwrap();
        let client = env.client_with(&[(OptionName::Branch, branch)]);
        assert_eq!(client.ensure("hermes").unwrap().commit_sha, sha);
        let requests = env.server.requests();
        assert_eq!(of_service(&requests, "api").len(), 3, "{requests:?}");
    }
}

#[test]
fn a_branch_with_only_the_same_prefix_is_not_built() {
    let env = TestEnv::new();
    let repository = env.server.template("hermes");
    env.server.commit(&repository, "main-2", dockerfile(PLAIN));
    env.server
        .repository(&repository, json!({ "default_branch": "main-2" }));
    env.server
        .faults(json!([{ "match": "/branches/main$", "body": " ", "body_repeat": 70_000 }]));
    let client = env.client_with(&[(OptionName::Branch, "main")]);
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::RepoNotFound, "{error:?}");
}

#[test]
fn a_single_ref_is_read_like_a_list_of_one() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    let reference = |name: &str, sha: &str| json!({ "ref": name, "url": "", "object": { "type": "commit", "sha": sha, "url": "" } });
    let right = reference("refs/heads/main", &sha);
    for (body, code) in [
        (right.clone(), None),
        (json!([reference("refs/heads/main-2", "x"), right]), None),
        (json!([]), Some(Code::RepoNotFound)),
        (reference("refs/heads/mai", &sha), Some(Code::RepoNotFound)),
        (
            reference("refs/heads/main", &sha[1..]),
            Some(Code::BadResponse),
        ),
        (json!({}), Some(Code::BadResponse)),
        (
            json!([["refs/heads/main", { "sha": sha }]]),
            Some(Code::BadResponse),
        ),
        (json!("x"), Some(Code::BadResponse)),
    ] {
        env.server.faults(json!([
            { "match": "/branches/", "body": " ", "body_repeat": 70_000 },
            { "match": "/git/refs/heads/main$", "body": body.to_string() },
        ]));
        let client = env.client_with(&[(OptionName::Branch, "main")]);
        let result = client.ensure("hermes");
        assert_eq!(result.err().map(|error| error.code), code, "{body}");
    }
}

#[test]
fn a_branch_deleted_between_two_requests_is_not_found() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.server.faults(json!([
        { "match": "/branches/", "body": " ", "body_repeat": 70_000 },
        { "match": "/git/refs/heads/main$", "status": 404, "body": "{}" },
    ]));
    let client = env.client_with(&[(OptionName::Branch, "main")]);
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::RepoNotFound, "{error:?}");
}

#[test]
fn a_401_or_403_names_the_token_variable() {
    let env = TestEnv::new();
    for status in [401, 403] {
        let error = lookup_error(
            &env,
            json!({ "status": status, "body": "{\"message\":\"token is required\"}" }),
        );
        assert_eq!(error.code, Code::Auth, "{error:?}");
        assert!(error.hint.contains("MOLECULE_GITEA_TOKEN"), "{error:?}");
        assert!(error.message().contains(&status.to_string()), "{error:?}");
    }
}

#[test]
fn a_missing_or_wrong_token_is_an_auth_error() {
    let env = TestEnv::with(&["--token", "the-right-token"]);
    env.template("hermes", dockerfile(PLAIN));
    for token in ["", "a-wrong-token"] {
        let error = env
            .client_with(&[(OptionName::Token, token)])
            .ensure_err("hermes");
        assert_eq!(error.code, Code::Auth, "{error:?}");
        assert_reported(&env, &error);
    }
    let client = env.client_with(&[(OptionName::Token, "the-right-token")]);
    client.ensure("hermes").unwrap();

    env.server
        .repository(&env.server.template("hermes"), json!({ "forbidden": true }));
    assert_eq!(client.ensure_err("hermes").code, Code::Auth);
}

#[test]
fn a_server_error_is_unreachable_and_names_the_status() {
    let env = TestEnv::new();
    for status in [408, 500, 501, 505] {
        let error = lookup_error(&env, json!({ "status": status, "body": "trouble" }));
        assert_eq!(error.code, Code::GiteaUnreachable, "{error:?}");
        assert!(error.message().contains(&status.to_string()), "{error:?}");
    }
}

#[test]
fn any_other_status_is_a_bad_response() {
    let env = TestEnv::new();
    for status in [201, 204, 304, 400, 405, 410, 418] {
        let error = lookup_error(&env, json!({ "status": status, "body": "{}" }));
        assert_eq!(error.code, Code::BadResponse, "{error:?}");
        assert!(error.message().contains(&status.to_string()), "{error:?}");
    }
}

#[test]
fn a_body_that_is_not_a_branch_is_a_bad_response() {
    let env = TestEnv::new();
    for body in [
        "",
        "null",
        "[]",
        "{",
        "<html>sign in</html>",
        "{\"commit\":{}}",
        "{\"commit\":{\"id\":7}}",
        "\"x\"",
    ] {
        let error = lookup_error(&env, json!({ "status": 200, "body": body }));
        assert_eq!(error.code, Code::BadResponse, "{body}: {error:?}");
    }
}

#[test]
fn an_invalid_commit_id_is_a_bad_response() {
    let env = TestEnv::new();
    let full = "0123456789abcdef0123456789abcdef01234567";
    for id in [
        &full[..12],
        &full[..39],
        &format!("{full}8"),
        &full.to_uppercase(),
        &full.replace('a', "g"),
        &format!(" {full}"),
        &full.replace("0123456789", "../../../x"),
        "",
    ] {
        let error = lookup_error(
            &env,
            json!({ "status": 200, "body": json!({ "commit": { "id": id } }).to_string() }),
        );
        assert_eq!(error.code, Code::BadResponse, "{id}: {error:?}");
    }
}

#[test]
fn a_sha256_commit_id_is_accepted() {
    let env = TestEnv::new();
    let id = "0123456789abcdef".repeat(4);
    env.server.faults(json!([{ "match": "/branches/", "status": 200, "body": json!({ "commit": { "id": id } }).to_string() }]));
    let client = env.client();
    let error = client.ensure_err("hermes");
    assert_ne!(error.code, Code::BadResponse, "{error:?}");
    assert_eq!(
        client.wait_for(Kind::LookupDone, |_| true).commit_sha,
        Some(id.clone())
    );
    assert_eq!(
        client.wait_for(Kind::CacheMiss, |_| true).r#ref,
        Some(env.reference("hermes", &id))
    );
}

#[test]
fn a_response_of_64_kib_is_read_and_a_longer_one_is_refused() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    let body = |length: usize| {
        let answer = json!({ "commit": { "id": sha } }).to_string();
        let padding = " ".repeat(length - answer.len());
        answer + &padding
    };
    let error = lookup_error(&env, json!({ "status": 200, "body": body(64 * 1024 + 1) }));
    assert_eq!(error.code, Code::BadResponse, "{error:?}");
    assert!(
        error.message().contains("65536"),
        "the limit is missing: {error:?}"
    );

    env.server
        .faults(json!([{ "match": "/api/", "status": 200, "body": body(64 * 1024) }]));
    assert_eq!(env.client().ensure("hermes").unwrap().commit_sha, sha);
}

#[test]
fn an_endless_response_is_refused() {
    let env = TestEnv::new();
    let begun = Instant::now();
    let error = lookup_error(&env, json!({ "endless": true }));
    assert_eq!(error.code, Code::BadResponse, "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_error_status_counts_whatever_the_size_of_its_page() {
    let env = TestEnv::new();
    for (status, code) in [
        (401, Code::Auth),
        (403, Code::Auth),
        (404, Code::RepoNotFound),
        (429, Code::GiteaUnreachable),
        (502, Code::GiteaUnreachable),
    ] {
        for size in [
            json!({ "endless": true }),
            json!({ "body": " ", "body_repeat": 70_000 }),
        ] {
            let mut fault = size;
            fault["status"] = json!(status);
            let error = lookup_error(&env, fault);
            assert_eq!(error.code, code, "{status}: {error:?}");
        }
    }
}

#[test]
fn a_truncated_response_is_reported() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let error = lookup_error(&env, json!({ "truncate_after": 100 }));
    assert_eq!(error.code, Code::GiteaUnreachable, "{error:?}");
}

#[test]
fn the_gitea_response_is_read_in_any_json_layout() {
    for flags in [
        &[][..],
        &["--compact"],
        &["--sorted-keys"],
        &["--sorted-keys", "--compact"],
    ] {
        let env = TestEnv::with(flags);
        let sha = env.template("hermes", dockerfile(PLAIN));
        assert_eq!(
            env.client().ensure("hermes").unwrap().commit_sha,
            sha,
            "{flags:?}"
        );
    }
}

#[test]
fn api_requests_carry_the_user_agent() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.client().ensure("hermes").unwrap();
    let requests = env.server.requests();
    let api = of_service(&requests, "api");
    assert_eq!(api.len(), 1);
    assert!(api[0].user_agent.contains("libmol/"), "{api:?}");
}

#[test]
fn at_most_32_requests_are_sent_at_once() {
    let env = TestEnv::new();
    env.server
        .faults(json!([{ "match": "/api/", "hang": true }]));
    let client = env.client();
    // A caller waits three seconds for the request of another one, and then makes its own.
    let _calls: Vec<_> = (0..40).map(|_| client.begin("hermes")).collect();
    let mut seen = 0;
    wait_until("32 requests", || {
        seen += env.server.requests().len();
        (seen >= 32).then_some(())
    });
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(seen + env.server.requests().len(), 32);
}
