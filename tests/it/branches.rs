//! Branch selection: the configured branch, else `main`, else the repository's default branch.

use mol::event::Kind;
use mol::{Code, OptionName};
use serde_json::json;

use crate::support::Bed;
use crate::support::server::dockerfile;

const PLAIN: &str = "FROM scratch\nCOPY Dockerfile /\n";

fn api_paths(bed: &Bed) -> Vec<String> {
    let mut requests = bed.server.requests();
    requests.retain(|request| request.service == "api");
    let path = |path: &str| {
        path.split("/molecule-ai/")
            .last()
            .unwrap()
            .split_once('/')
            .map_or("", |(_, rest)| rest)
            .to_owned()
    };
    requests.iter().map(|request| path(&request.path)).collect()
}

#[test]
fn main_is_preferred_over_the_default_branch_with_one_api_request() {
    let bed = Bed::new();
    let repository = bed.server.template("hermes");
    bed.server
        .repository(&repository, json!({ "default_branch": "develop" }));
    bed.server
        .commit(&repository, "develop", dockerfile("FROM nothing\n"));
    let sha = bed.server.commit(&repository, "main", dockerfile(PLAIN));
    assert_eq!(bed.client().ensure("hermes").unwrap().commit_sha, sha);
    assert_eq!(api_paths(&bed), ["branches/main"]);
}

#[test]
fn the_default_branch_is_built_if_main_is_missing() {
    for branch in ["master", "feature/deep/er", "größe/日本", "a+b&c=d#e;f"] {
        let bed = Bed::new();
        let repository = bed.server.template("hermes");
        bed.server
            .repository(&repository, json!({ "default_branch": branch }));
        let sha = bed.server.commit(&repository, branch, dockerfile(PLAIN));
        let client = bed.client();
        assert_eq!(client.ensure("hermes").unwrap().commit_sha, sha);
        assert_eq!(
            client
                .wait_for(Kind::LookupDone, |_| true)
                .branch
                .as_deref(),
            Some(branch)
        );
        assert_eq!(api_paths(&bed).len(), 3);
    }
}

#[test]
fn an_empty_repository_is_reported_as_empty() {
    let bed = Bed::new();
    bed.server
        .repository(&bed.server.template("hermes"), json!({ "empty": true }));
    let error = bed.client().refused("hermes");
    assert_eq!(error.code, Code::RepoNotFound, "{error:?}");
    assert!(error.message.contains("empty"), "{error:?}");
    assert!(error.message.contains(&bed.server.repo_prefix), "{error:?}");
    assert!(error.hint.contains("push"), "{error:?}");
}

#[test]
fn a_repository_without_a_default_branch_counts_as_empty() {
    for answer in [
        json!({ "empty": false, "default_branch": "" }),
        json!({ "empty": true, "default_branch": "main" }),
        json!({}),
    ] {
        let bed = Bed::new();
        bed.server.faults(json!([
            { "match": "/branches/", "status": 404 },
            { "match": "/api/", "status": 200, "body": answer.to_string() },
        ]));
        let error = bed.client().refused("hermes");
        assert_eq!(error.code, Code::RepoNotFound, "{error:?}");
        assert!(error.message.contains("is empty"), "{answer}: {error:?}");
        assert_eq!(bed.server.requests().len(), 2, "{answer}");
    }
}

#[test]
fn a_missing_default_branch_is_named_in_the_error() {
    let bed = Bed::new();
    let repository = bed.server.template("hermes");
    bed.server.commit(&repository, "other", dockerfile(PLAIN));
    bed.server
        .repository(&repository, json!({ "default_branch": "gone" }));
    let error = bed.client().refused("hermes");
    assert_eq!(error.code, Code::RepoNotFound, "{error:?}");
    assert!(error.message.contains("gone"), "{error:?}");
    assert!(
        error.hint.contains("MOLECULE_LOCAL_TEMPLATE_BRANCH"),
        "{error:?}"
    );
}

#[test]
fn a_configured_branch_is_built_without_probing_for_others() {
    for branch in ["develop", "feature/x", "größe/日本"] {
        let bed = Bed::new();
        let repository = bed.server.template("hermes");
        bed.server
            .commit(&repository, "main", dockerfile("FROM nothing\n"));
        let sha = bed.server.commit(&repository, branch, dockerfile(PLAIN));
        let client = bed.client_with(&[(OptionName::Branch, branch)]);
        assert_eq!(client.ensure("hermes").unwrap().commit_sha, sha);
        assert_eq!(api_paths(&bed).len(), 1);
    }
}

#[test]
fn a_missing_configured_branch_is_an_error_without_fallback() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    let error = bed
        .client_with(&[(OptionName::Branch, "no/such")])
        .refused("hermes");
    assert_eq!(error.code, Code::RepoNotFound, "{error:?}");
    assert!(error.message.contains("no/such"), "{error:?}");
    assert!(error.message.contains(&bed.server.repo_prefix), "{error:?}");
    assert!(
        error.hint.contains("MOLECULE_LOCAL_TEMPLATE_BRANCH"),
        "{error:?}"
    );
    assert_eq!(api_paths(&bed).len(), 1);
}
