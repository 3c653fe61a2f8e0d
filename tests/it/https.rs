//! TLS: which certificates are trusted, and how plain-text HTTP is limited.

use mol::event::Kind;
use mol::{Code, OptionName};
use serde_json::json;

use crate::support::server::{PLAIN, dockerfile};
use crate::support::tls::{Flaw, Https};
use crate::support::{Server, TestEnv, block_on};

const TOKEN: &str = "0b5e9d2a4f6188c1e0b7a6d5943210fedcba7f3c";

#[test]
fn a_certificate_of_an_unknown_issuer_is_refused() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let https = Https::before(&env.server, env.scratch());
    let client = env.client_with(&[(OptionName::RepoPrefix, &https.repo_prefix)]);
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::GiteaUnreachable, "{error:?}");
    assert!(error.message().contains("TLS"), "{error:?}");
    assert!(error.message().contains("UnknownIssuer"), "{error:?}");
    assert!(error.hint.contains("SSL_CERT_FILE"), "{error:?}");
    assert!(env.server.requests().is_empty());
}

#[test]
fn an_invalid_certificate_is_refused_without_retry() {
    for (flaw, says) in [
        (Flaw::Expired, "expired"),
        (Flaw::NotYetValid, "not valid yet"),
        (Flaw::OtherHost, "not valid for name"),
        (Flaw::OwnSignature, "invalid peer certificate"),
        (Flaw::ClientOnly, "server authentication"),
        (Flaw::BadSignature, "BadSignature"),
        (Flaw::OtherKey, "BadSignature"),
    ] {
        let env = TestEnv::with(&["--token", TOKEN]);
        env.template("hermes", dockerfile(PLAIN));
        let https = Https::with(&env.server, env.scratch(), flaw);
        let client = env.client_with(&[
            (OptionName::RepoPrefix, &https.repo_prefix),
            (OptionName::SslCertFile, https.ca.to_str().unwrap()),
            (OptionName::Token, TOKEN),
        ]);
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::GiteaUnreachable, "{flaw:?}: {error:?}");
        assert!(error.message().contains("TLS"), "{flaw:?}: {error:?}");
        assert!(error.message().contains(says), "{flaw:?}: {error:?}");
        assert!(error.hint.contains("clock"), "{flaw:?}: {error:?}");
        let retries = client.of_kind(Kind::Warning);
        assert!(retries.is_empty(), "{flaw:?}: {retries:?}");
        assert!(env.server.requests().is_empty(), "the token is not sent");
    }
}

/// A whole job succeeds with the certificate in SSL_CERT_FILE, and in SSL_CERT_DIR under this name.
fn trusted_in_a_file_and_in_a_folder(https: impl Fn(&TestEnv) -> Https, name_in_folder: &str) {
    let env = TestEnv::with(&["--token", TOKEN]);
    let sha = env.template("hermes", dockerfile(PLAIN));
    let https = https(&env);
    let folder = env.scratch().join("certificates");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(&https.ca, folder.join(name_in_folder)).unwrap();
    for (name, path) in [
        (OptionName::SslCertFile, &https.ca),
        (OptionName::SslCertDir, &folder),
    ] {
        env.engine.remove_all_of(&env.isolation);
        let client = env.client_with(&[
            (OptionName::RepoPrefix, &https.repo_prefix),
            (OptionName::Token, TOKEN),
            (name, path.to_str().unwrap()),
        ]);
        assert_eq!(client.ensure("hermes").unwrap().commit_sha, sha);
    }
}

#[test]
fn a_ca_in_a_file_or_a_folder_is_trusted() {
    // Certificate folders name files by a hash of the subject; any name works here.
    trusted_in_a_file_and_in_a_folder(
        |env| Https::before(&env.server, env.scratch()),
        "12345678.0",
    );
}

#[test]
fn a_self_signed_certificate_in_a_file_or_a_folder_is_trusted() {
    trusted_in_a_file_and_in_a_folder(
        |env| Https::self_signed(&env.server, env.scratch(), Flaw::None),
        "gitea.crt",
    );
}

#[test]
fn an_invalid_self_signed_certificate_is_refused_even_if_trusted() {
    for (flaw, says) in [
        (Flaw::Expired, "expired"),
        (Flaw::NotYetValid, "not valid yet"),
        (Flaw::OtherHost, "not valid for name"),
        (Flaw::ClientOnly, "invalid peer certificate"),
        (Flaw::OtherKey, "BadSignature"),
    ] {
        let env = TestEnv::with(&["--token", TOKEN]);
        env.template("hermes", dockerfile(PLAIN));
        let https = Https::self_signed(&env.server, env.scratch(), flaw);
        let client = env.client_with(&[
            (OptionName::RepoPrefix, &https.repo_prefix),
            (OptionName::SslCertFile, https.ca.to_str().unwrap()),
            (OptionName::Token, TOKEN),
        ]);
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::GiteaUnreachable, "{flaw:?}: {error:?}");
        assert!(error.message().contains(says), "{flaw:?}: {error:?}");
        assert!(env.server.requests().is_empty(), "the token is not sent");
    }
}

#[test]
fn an_untrusted_self_signed_certificate_of_the_same_name_is_refused() {
    let env = TestEnv::with(&["--token", TOKEN]);
    env.template("hermes", dockerfile(PLAIN));
    let https = Https::self_signed(&env.server, env.scratch(), Flaw::None);
    let other = Https::self_signed(&env.server, env.scratch(), Flaw::None);
    let client = env.client_with(&[
        (OptionName::RepoPrefix, &https.repo_prefix),
        (OptionName::SslCertFile, other.ca.to_str().unwrap()),
        (OptionName::Token, TOKEN),
    ]);
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::GiteaUnreachable, "{error:?}");
    assert!(error.message().contains("CaUsedAsEndEntity"), "{error:?}");
    assert!(error.hint.contains("SSL_CERT_FILE"), "{error:?}");
    assert!(env.server.requests().is_empty(), "the token is not sent");
}

#[test]
fn a_redirect_from_https_to_http_is_refused() {
    let env = TestEnv::new();
    let other = Server::start(&[]);
    let https = Https::before(&env.server, env.scratch());
    env.server.faults(json!([{ "match": "/api/", "status": 302,
        "headers": { "Location": format!("{}/api/v1/repos/x/y/branches/main", other.url) } }]));
    let client = env.client_with(&[
        (OptionName::RepoPrefix, &https.repo_prefix),
        (OptionName::SslCertFile, https.ca.to_str().unwrap()),
    ]);
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::GiteaUnreachable, "{error:?}");
    assert!(error.message().contains(&other.url), "{error:?}");
    assert!(other.requests().is_empty());
}

#[test]
fn sending_the_token_in_plain_text_warns_once() {
    let env = TestEnv::with(&["--token", TOKEN]);
    let sha = env.template("hermes", dockerfile(PLAIN));
    // A remote server, reached through a proxy on this machine.
    let away = env
        .server
        .repo_prefix
        .replace(&env.server.url, "http://git.example.com");
    let warnings = |prefix: &str, token: &str| {
        let client = env.client_with(&[
            (OptionName::RepoPrefix, prefix),
            (OptionName::HttpProxy, &env.server.url),
            (OptionName::NoProxy, "127.0.0.1"),
            (OptionName::Token, token),
        ]);
        for _ in 0..2 {
            if !token.is_empty() {
                assert_eq!(client.ensure("hermes").unwrap().commit_sha, sha);
            } else {
                client.ensure_err("hermes");
            }
        }
        client.of_kind(Kind::Warning)
    };
    let by_commit = env.client_with(&[
        (OptionName::RepoPrefix, &away),
        (OptionName::HttpProxy, &env.server.url),
        (OptionName::NoProxy, "127.0.0.1"),
        (OptionName::Token, TOKEN),
    ]);
    let given = by_commit.inner().ensure_commit("hermes", &sha).wait(None);
    assert_eq!(block_on(given).unwrap().commit_sha, sha);
    assert_eq!(by_commit.count(Kind::Warning), 1, "also without a lookup");

    let shown = warnings(&away, TOKEN);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!(
        shown[0].message,
        "the token goes to http://git.example.com in plain text"
    );
    assert!(
        shown[0].hint.as_ref().unwrap().contains("https://"),
        "{shown:?}"
    );

    assert!(warnings(&away, "").is_empty(), "no token, no warning");
    assert!(
        warnings(&env.server.repo_prefix, TOKEN).is_empty(),
        "no warning on loopback"
    );
}
