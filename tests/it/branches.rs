//! Which branch? `main`, else the default branch; or the one that was asked for.

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
fn main_is_built_with_one_question_also_where_it_is_not_the_default_branch() {
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
fn without_main_the_default_branch_is_built() {
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
fn an_empty_repository_has_an_error_of_its_own() {
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
fn a_repository_without_a_default_branch_is_empty_whatever_else_it_says() {
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
fn a_default_branch_that_does_not_exist_is_named() {
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
fn a_branch_that_is_asked_for_is_built_without_probing() {
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
fn a_branch_that_is_asked_for_and_not_there_is_an_error_and_never_another_branch() {
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
