//! Branch selection: the configured branch, else `main`, else the repository's default branch.

use mol::event::Kind;
use mol::{Code, OptionName};
use serde_json::json;

use crate::support::TestEnv;
use crate::support::server::{PLAIN, dockerfile};

fn api_paths(env: &TestEnv) -> Vec<String> {
    let mut requests = env.server.requests();
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
    let env = TestEnv::new();
    let repository = env.server.template("hermes");
    env.server
        .repository(&repository, json!({ "default_branch": "develop" }));
    env.server
        .commit(&repository, "develop", dockerfile("FROM nothing\n"));
    let sha = env.server.commit(&repository, "main", dockerfile(PLAIN));
    assert_eq!(env.client().ensure("hermes").unwrap().commit_sha, sha);
    assert_eq!(api_paths(&env), ["branches/main"]);
}

#[test]
fn the_default_branch_is_built_if_main_is_missing() {
    for branch in ["master", "feature/deep/er", "größe/日本", "a+b&c=d#e;f"] {
        let env = TestEnv::new();
        let repository = env.server.template("hermes");
        env.server
            .repository(&repository, json!({ "default_branch": branch }));
        let sha = env.server.commit(&repository, branch, dockerfile(PLAIN));
        let client = env.client();
        assert_eq!(client.ensure("hermes").unwrap().commit_sha, sha);
        assert_eq!(
            client
                .wait_for(Kind::LookupDone, |_| true)
                .branch
                .as_deref(),
            Some(branch)
        );
        assert_eq!(api_paths(&env).len(), 3);
    }
}

#[test]
fn an_empty_repository_is_reported_as_empty() {
    let env = TestEnv::new();
    env.server
        .repository(&env.server.template("hermes"), json!({ "empty": true }));
    let error = env.client().ensure_err("hermes");
    assert_eq!(error.code, Code::RepoNotFound, "{error:?}");
    assert!(error.message().contains("empty"), "{error:?}");
    assert!(
        error.message().contains(&env.server.repo_prefix),
        "{error:?}"
    );
    assert!(error.hint.contains("push"), "{error:?}");
}

#[test]
fn a_repository_without_a_default_branch_counts_as_empty() {
    for answer in [
        json!({ "empty": false, "default_branch": "" }),
        json!({ "empty": true, "default_branch": "main" }),
        json!({}),
    ] {
        let env = TestEnv::new();
        env.server.faults(json!([
            { "match": "/branches/", "status": 404 },
            { "match": "/api/", "status": 200, "body": answer.to_string() },
        ]));
        let error = env.client().ensure_err("hermes");
        assert_eq!(error.code, Code::RepoNotFound, "{error:?}");
        assert!(error.message().contains("is empty"), "{answer}: {error:?}");
        assert_eq!(env.server.requests().len(), 2, "{answer}");
    }
}

#[test]
fn a_missing_default_branch_is_named_in_the_error() {
    let env = TestEnv::new();
    let repository = env.server.template("hermes");
    env.server.commit(&repository, "other", dockerfile(PLAIN));
    env.server
        .repository(&repository, json!({ "default_branch": "gone" }));
    let error = env.client().ensure_err("hermes");
    assert_eq!(error.code, Code::RepoNotFound, "{error:?}");
    assert!(error.message().contains("gone"), "{error:?}");
    assert!(
        error.hint.contains("MOLECULE_LOCAL_TEMPLATE_BRANCH"),
        "{error:?}"
    );
}

#[test]
fn a_configured_branch_is_built_without_probing_for_others() {
    for branch in ["develop", "feature/x", "größe/日本"] {
        let env = TestEnv::new();
        let repository = env.server.template("hermes");
        env.server
            .commit(&repository, "main", dockerfile("FROM nothing\n"));
        let sha = env.server.commit(&repository, branch, dockerfile(PLAIN));
        let client = env.client_with(&[(OptionName::Branch, branch)]);
        assert_eq!(client.ensure("hermes").unwrap().commit_sha, sha);
        assert_eq!(api_paths(&env).len(), 1);
    }
}

#[test]
fn a_missing_configured_branch_is_an_error_without_fallback() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let error = env
        .client_with(&[(OptionName::Branch, "no/such")])
        .ensure_err("hermes");
    assert_eq!(error.code, Code::RepoNotFound, "{error:?}");
    assert!(error.message().contains("no/such"), "{error:?}");
    assert!(
        error.message().contains(&env.server.repo_prefix),
        "{error:?}"
    );
    assert!(
        error.hint.contains("MOLECULE_LOCAL_TEMPLATE_BRANCH"),
        "{error:?}"
    );
    assert_eq!(api_paths(&env).len(), 1);
}
