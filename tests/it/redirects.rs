//! The token is sent only to the origin that it was set for (promise P6).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mol::{Code, OptionName};
use serde_json::json;

use crate::support::server::{PLAIN, Request, dockerfile, of_service};
use crate::support::{Server, TestEnv};

const TOKEN: &str = "7f3c0b5e9d2a4f6188c1e0b7a6d5943210fedcba";

/// A template server that requires this token, if it is not empty.
fn env_with(token: &str) -> TestEnv {
    match token {
        "" => TestEnv::new(),
        token => TestEnv::with(&["--token", token]),
    }
}

fn has_token(request: &Request) -> bool {
    let encoded = request
        .authorization
        .strip_prefix("Basic ")
        .and_then(|text| STANDARD.decode(text).ok());
    let basic = encoded.map(|text| String::from_utf8_lossy(&text).into_owned());
    format!("{}{basic:?}", request.authorization).contains(TOKEN)
}

#[test]
fn the_token_is_sent_as_api_header_and_as_git_credentials() {
    let env = TestEnv::with(&["--token", TOKEN]);
    env.template("hermes", dockerfile(PLAIN));
    env.client_with(&[(OptionName::Token, TOKEN)])
        .ensure("hermes")
        .unwrap();
    let requests = env.server.requests();
    let api = of_service(&requests, "api");
    assert_eq!(api.len(), 1);
    assert_eq!(api[0].authorization, format!("token {TOKEN}"));
    let git = of_service(&requests, "git");
    assert!(git.len() >= 2);
    for request in git {
        assert!(
            request.authorization.starts_with("Basic ") && has_token(request),
            "{request:?}"
        );
    }
    for request in requests {
        assert!(
            !request.path.contains(TOKEN) && !request.query.contains(TOKEN),
            "{request:?}"
        );
    }
}

#[test]
fn without_a_token_no_credentials_are_sent() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.client().ensure("hermes").unwrap();
    assert!(
        env.server
            .requests()
            .iter()
            .all(|request| request.authorization.is_empty())
    );
}

/// `hermes` was renamed to `codex`, so Gitea answers with redirects, here to this server.
fn renamed(env: &TestEnv, server: &Server) {
    let to = |rest: &str| format!("{}/{rest}", server.url);
    let new = server.template("codex");
    env.server.faults(json!([
        { "match": "/api/v1/repos/[^/]*/[^/]*hermes/branches/main$", "status": 307,
          "headers": { "Location": to(&format!("api/v1/repos/{new}/branches/main")) } },
        { "match": "hermes/info/refs\\?service=git-upload-pack", "status": 301,
          "headers": { "Location": to(&format!("{new}/info/refs?service=git-upload-pack")) } },
    ]));
}

#[test]
fn a_redirect_of_a_renamed_repository_is_followed() {
    for token in ["", TOKEN] {
        let env = env_with(token);
        let sha = env.template("codex", dockerfile(PLAIN));
        renamed(&env, &env.server);
        let client = env.client_with(&[(OptionName::Token, token)]);
        let image = client.ensure("hermes").unwrap();
        assert_eq!(image.commit_sha, sha);
        assert_eq!(image.reference, env.reference("hermes", &sha));
    }
}

#[test]
fn with_a_token_a_redirect_to_another_origin_is_refused() {
    let env = TestEnv::with(&["--token", TOKEN]);
    let other = Server::start(&[]);
    other.commit(&other.template("codex"), "main", dockerfile(PLAIN));
    renamed(&env, &other);
    let error = env
        .client_with(&[(OptionName::Token, TOKEN)])
        .ensure_err("hermes");
    assert_eq!(error.code, Code::GiteaUnreachable, "{error:?}");
    assert!(
        error.message().contains(&other.url),
        "the target is missing: {error:?}"
    );
    assert!(
        error.hint.contains("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX"),
        "{error:?}"
    );
    assert!(
        other.requests().is_empty(),
        "a request reached the other origin"
    );
}

#[test]
fn with_a_token_a_fetch_redirect_to_another_origin_is_refused() {
    let env = TestEnv::with(&["--token", TOKEN]);
    env.template("hermes", dockerfile(PLAIN));
    let other = Server::start(&[]);
    let target = format!(
        "{}/{}/info/refs?service=git-upload-pack",
        other.url,
        other.template("hermes")
    );
    env.server.faults(
        json!([{ "match": "/info/refs", "status": 302, "headers": { "Location": target } }]),
    );
    let error = env
        .client_with(&[(OptionName::Token, TOKEN)])
        .ensure_err("hermes");
    assert_eq!(error.code, Code::GiteaUnreachable, "{error:?}");
    assert!(error.message().contains(&other.url), "{error:?}");
    assert!(
        error.hint.contains("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX"),
        "{error:?}"
    );
    assert!(other.requests().is_empty());
}

#[test]
fn without_a_token_a_redirect_to_another_origin_is_followed() {
    let env = TestEnv::new();
    let other = Server::start(&[]);
    let sha = other.commit(&other.template("codex"), "main", dockerfile(PLAIN));
    renamed(&env, &other);
    assert_eq!(env.client().ensure("hermes").unwrap().commit_sha, sha);
}

#[test]
fn a_password_in_a_redirect_is_not_shown() {
    let env = TestEnv::with(&["--token", TOKEN]);
    env.server.faults(json!([{ "match": "/api/", "status": 302,
        "headers": { "Location": format!("http://me:hunter2@127.0.0.1:1/{TOKEN}") } }]));
    let error = env
        .client_with(&[(OptionName::Token, TOKEN)])
        .ensure_err("hermes");
    let said = format!("{error:?}");
    assert!(!said.contains("hunter2") && !said.contains(TOKEN), "{said}");
    assert!(
        said.contains("http://127.0.0.1:1"),
        "the rest of the URL is missing: {said}"
    );
}

#[test]
fn a_redirect_loop_ends() {
    let env = TestEnv::new();
    env.server.faults(
        json!([{ "match": "/api/", "status": 302, "headers": { "Location": "/api/v1/again" } }]),
    );
    let error = env.client().ensure_err("hermes");
    assert_eq!(error.code, Code::GiteaUnreachable, "{error:?}");
    assert!(error.message().contains("redirects"), "{error:?}");
    assert!(error.hint.contains("a Gitea server"), "{error:?}");
    assert!(env.server.requests().len() < 20);
}

#[test]
fn a_redirect_loop_ends_in_each_git_request() {
    for (part, body) in [("/info/refs", ""), ("/git-upload-pack$", "fetch")] {
        for token in ["", TOKEN] {
            let env = env_with(token);
            env.template("hermes", dockerfile(PLAIN));
            for status in [301, 302, 307, 308] {
                env.server.faults(json!([
                    { "match": part, "match_body": body, "status": status, "headers": { "Location": "?again" } },
                    { "match": "\\?again$", "status": status, "headers": { "Location": "?again" } },
                ]));
                env.server.requests();
                let error = env
                    .client_with(&[(OptionName::Token, token)])
                    .ensure_err("hermes");
                assert_eq!(
                    error.code,
                    Code::GiteaUnreachable,
                    "{part} {body} {status}: {error:?}"
                );
                assert!(error.message().contains("redirects"), "{error:?}");
                assert!(env.server.requests().len() < 30);
                assert!(env.is_clean(), "{:?}", env.fetched());
            }
        }
    }
}

#[test]
fn with_a_token_no_post_is_redirected_to_another_origin() {
    for status in [301, 307, 308] {
        let env = TestEnv::with(&["--token", TOKEN]);
        env.template("hermes", dockerfile(PLAIN));
        let other = Server::start(&[]);
        let target = format!("{}/{}/git-upload-pack", other.url, other.template("hermes"));
        env.server.faults(
            json!([{ "match": "/git-upload-pack$", "match_body": "command=fetch", "status": status,
                "headers": { "Location": target } }]),
        );
        let error = env
            .client_with(&[(OptionName::Token, TOKEN)])
            .ensure_err("hermes");
        assert_eq!(error.code, Code::GiteaUnreachable, "{status}: {error:?}");
        assert!(error.message().contains(&other.url), "{error:?}");
        assert!(other.requests().is_empty());
        assert!(env.is_clean());
    }
}

#[test]
fn a_redirect_to_an_invalid_or_non_http_url_is_refused() {
    for target in [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "javascript:alert(1)",
        "unix:///var/run/docker.sock",
        "http://",
        "http://[::1",
    ] {
        for part in ["/api/", "/info/refs", "/git-upload-pack$"] {
            for token in ["", TOKEN] {
                let env = env_with(token);
                env.template("hermes", dockerfile(PLAIN));
                env.server.faults(
                    json!([{ "match": part, "status": 307, "headers": { "Location": target } }]),
                );
                let error = env
                    .client_with(&[(OptionName::Token, token)])
                    .ensure_err("hermes");
                let codes = [Code::GiteaUnreachable, Code::BadResponse, Code::Fetch];
                assert!(codes.contains(&error.code), "{part} {target}: {error:?}");
                assert!(!error.hint.is_empty(), "{part} {target}: {error:?}");
                assert!(env.is_clean());
            }
        }
    }
}

#[test]
fn a_redirect_without_a_location_is_a_bad_response() {
    let env = TestEnv::new();
    env.server
        .faults(json!([{ "match": "/api/", "status": 302 }]));
    assert_eq!(env.client().ensure_err("hermes").code, Code::BadResponse);
}
