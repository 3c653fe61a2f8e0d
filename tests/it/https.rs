//! TLS: whom the library believes, and what it does not do for plain text.

use mol::{Code, OptionName};
use serde_json::json;

use crate::support::server::dockerfile;
use crate::support::tls::Https;
use crate::support::{Bed, Server};

const PLAIN: &str = "FROM scratch\nCOPY Dockerfile /\n";

#[test]
fn a_server_whose_certificate_nobody_knows_is_refused() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    let https = Https::before(&bed.server, bed.scratch());
    let client = bed.client_with(&[(OptionName::RepoPrefix, &https.repo_prefix)]);
    let error = client.refused("hermes");
    assert_eq!(error.code, Code::GiteaUnreachable, "{error:?}");
    assert!(error.message.contains("TLS"), "{error:?}");
    assert!(error.message.contains("UnknownIssuer"), "{error:?}");
    assert!(error.hint.contains("SSL_CERT_FILE"), "{error:?}");
    assert!(bed.server.requests().is_empty());
}

#[test]
fn with_the_authority_in_a_file_or_a_folder_the_whole_job_is_done() {
    let token = "0b5e9d2a4f6188c1e0b7a6d5943210fedcba7f3c";
    let bed = Bed::with(&["--token", token]);
    let sha = bed.template("hermes", dockerfile(PLAIN));
    let https = Https::before(&bed.server, bed.scratch());
    let folder = bed.scratch().join("certificates");
    std::fs::create_dir(&folder).unwrap();
    // A folder of certificates names them by a hash of their subject; any will do here.
    std::fs::copy(&https.ca, folder.join("12345678.0")).unwrap();
    for (name, path) in [
        (OptionName::SslCertFile, &https.ca),
        (OptionName::SslCertDir, &folder),
    ] {
        bed.engine.remove_all_of(&bed.isolation);
        let client = bed.client_with(&[
            (OptionName::RepoPrefix, &https.repo_prefix),
            (OptionName::Token, token),
            (name, path.to_str().unwrap()),
        ]);
        assert_eq!(client.ensure("hermes").unwrap().commit_sha, sha);
    }
}

#[test]
fn no_redirect_leads_from_tls_to_plain_text() {
    let bed = Bed::new();
    let other = Server::start(&[]);
    let https = Https::before(&bed.server, bed.scratch());
    bed.server.faults(json!([{ "match": "/api/", "status": 302,
        "headers": { "Location": format!("{}/api/v1/repos/x/y/branches/main", other.url) } }]));
    let client = bed.client_with(&[
        (OptionName::RepoPrefix, &https.repo_prefix),
        (OptionName::SslCertFile, https.ca.to_str().unwrap()),
    ]);
    let error = client.refused("hermes");
    assert_eq!(error.code, Code::GiteaUnreachable, "{error:?}");
    assert!(error.message.contains(&other.url), "{error:?}");
    assert!(other.requests().is_empty());
}
