//! Tests against a real Gitea: its responses, and how libmol handles them. Only `tests/run gitea` runs this,
//! because Gitea must be built first.
//!
//! It writes docs/gitea.md, and the responses to tests/vectors/gitea, against which the tests of
//! go/templateserver compare that server.

// Only a part of the shared support code is used here.
#[allow(dead_code, unused_imports)]
#[path = "../support/mod.rs"]
mod support;

mod job;
mod record;
mod server;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::json;

use record::Record;
use server::{As, Commit, Place, Server};

/// The organization of the templates, which are named `<PREFIX><runtime>`.
const ORGANIZATION: &str = "molecule-ai";
const PREFIX: &str = "molecule-ai-workspace-template-";

/// The repository of a runtime's template.
fn template(runtime: &str) -> String {
    format!("{ORGANIZATION}/{PREFIX}{runtime}")
}

/// The path that git requests for a template.
fn git(runtime: &str) -> String {
    format!("/{}/info/refs?service=git-upload-pack", template(runtime))
}

/// A template's path in the API.
fn api(runtime: &str, rest: &str) -> String {
    format!("/api/v1/repos/{}{rest}", template(runtime))
}

/// A template whose image contains one file with this text.
fn plain(text: &str) -> Commit {
    Commit {
        message: "A template".into(),
        files: vec![
            ("Dockerfile", "FROM scratch\nCOPY content /\n".into()),
            ("content", text.into()),
        ],
        submodules: Vec::new(),
    }
}

/// Responses to clients with and without access.
fn responses(record: &mut Record, place: &Place) {
    let open = Server::start(place, "open", &[]);
    let reader = open.user("reader", &["read:repository"]);
    let narrow = open.user("narrow", &["read:user"]);
    let public_only = open.user("public", &["read:repository", "public-only"]);
    let stranger = open.user("stranger", &["read:repository"]);
    let (anonymous, bad) = (
        As::Anonymous,
        As::Token("0123456789abcdef0123456789abcdef01234567".into()),
    );

    open.repository(&template("hermes"), json!({}));
    open.push(&template("hermes"), "main", &plain("hermes"));
    open.repository(&template("codex"), json!({ "private": true }));
    open.push(&template("codex"), "main", &plain("codex"));
    for user in ["reader", "narrow", "public"] {
        let path = format!("/repos/{}/collaborators/{user}", template("codex"));
        open.change("PUT", &path, json!({ "permission": "read" }));
    }
    open.repository(&template("crewai"), json!({}));

    let mut request = |name, about, path: &str, client: &As, status| {
        record.request(&open, name, about, (path, client), status)
    };
    let public = "a public repository";
    let branch = api("hermes", "/branches/main");
    let response = request("branch", (public, "anonymous"), &branch, &anonymous, 200);
    let head = response.json()["commit"]["id"].as_str().unwrap().to_owned();
    request(
        "repository",
        (public, "anonymous"),
        &api("hermes", ""),
        &anonymous,
        200,
    );
    let references = api("hermes", "/git/refs/heads/main");
    request(
        "references",
        (public, "anonymous"),
        &references,
        &anonymous,
        200,
    );
    let tree = api("hermes", "/git/trees/refs%2Fheads%2Fmain?per_page=1");
    request("tree", (public, "anonymous"), &tree, &anonymous, 200);
    let commit = |id: &str| {
        api(
            "hermes",
            &format!("/git/commits/{id}?stat=false&verification=false&files=false"),
        )
    };
    request(
        "commit",
        (public, "anonymous"),
        &commit(&head),
        &anonymous,
        200,
    );
    request(
        "git",
        (public, "anonymous"),
        &git("hermes"),
        &anonymous,
        200,
    );
    let expired = (public, "a wrong or expired token");
    request("bad_token", expired, &branch, &bad, 401);
    request("bad_token_git", expired, &git("hermes"), &bad, 401);
    let scope = (public, "a token without the scope read:repository");
    request("wrong_scope_public", scope, &branch, &narrow, 403);

    let private = "a private repository";
    let branch = api("codex", "/branches/main");
    request(
        "private_nobody",
        (private, "anonymous"),
        &branch,
        &anonymous,
        404,
    );
    request(
        "private_nobody_git",
        (private, "anonymous"),
        &git("codex"),
        &anonymous,
        401,
    );
    request(
        "private_reader",
        (private, "a token with read access"),
        &branch,
        &reader,
        200,
    );
    request(
        "private_reader_git",
        (private, "a token with read access"),
        &git("codex"),
        &reader,
        200,
    );
    let scope = (private, "a token without the scope read:repository");
    request("wrong_scope", scope, &branch, &narrow, 403);
    request("wrong_scope_git", scope, &git("codex"), &narrow, 403);
    let limited = (private, "a token for public repositories only");
    request("public_only", limited, &branch, &public_only, 403);
    request("public_only_git", limited, &git("codex"), &public_only, 403);
    let no_access = (private, "the token of a user without access");
    request("no_access", no_access, &branch, &stranger, 404);
    request("no_access_git", no_access, &git("codex"), &stranger, 404);

    let missing = "a missing repository";
    let branch = api("openclaw", "/branches/main");
    request("missing", (missing, "anonymous"), &branch, &anonymous, 404);
    request(
        "missing_git",
        (missing, "anonymous"),
        &git("openclaw"),
        &anonymous,
        401,
    );
    request("missing_token", (missing, "a token"), &branch, &reader, 404);
    // Gitea itself panics here (`CheckRepoScopedToken` without a repository).
    request(
        "missing_token_git",
        (missing, "a token"),
        &git("openclaw"),
        &reader,
        404,
    );

    let absent = api("hermes", "/branches/no/such");
    request(
        "missing_branch",
        ("a missing branch", "anonymous"),
        &absent,
        &anonymous,
        404,
    );
    let references = api("hermes", "/git/refs/heads/no/such");
    request(
        "missing_reference",
        ("a missing branch", "anonymous"),
        &references,
        &anonymous,
        404,
    );
    let gone = commit("0123456789abcdef0123456789abcdef01234567");
    request(
        "missing_commit",
        ("a missing commit", "anonymous"),
        &gone,
        &anonymous,
        404,
    );
    let empty = "a repository without a commit";
    request(
        "empty",
        (empty, "anonymous"),
        &api("crewai", ""),
        &anonymous,
        200,
    );
    request(
        "empty_branch",
        (empty, "anonymous"),
        &api("crewai", "/branches/main"),
        &anonymous,
        404,
    );

    open.repository(&template("autogen"), json!({}));
    open.push(&template("autogen"), "main", &plain("autogen"));
    let path = format!("/repos/{}", template("autogen"));
    open.change(
        "PATCH",
        &path,
        json!({ "name": format!("{PREFIX}renamed") }),
    );
    let renamed = "a renamed repository";
    let branch = api("autogen", "/branches/main");
    request("renamed", (renamed, "anonymous"), &branch, &anonymous, 301);
    request(
        "renamed_git",
        (renamed, "anonymous"),
        &git("autogen"),
        &anonymous,
        301,
    );

    job::errors(
        &open,
        &job::Users {
            reader,
            narrow,
            public_only,
            stranger,
            bad,
        },
    );
    job::changes_after_lookup(&open);
    job::successes(&open);
}

/// A server that requires a login.
fn closed(record: &mut Record, place: &Place) {
    let server = Server::start(place, "closed", &["service:REQUIRE_SIGNIN_VIEW=true"]);
    server.repository(&template("hermes"), json!({}));
    server.push(&template("hermes"), "main", &plain("hermes"));
    let about = ("a server that requires a login", "anonymous");
    let branch = api("hermes", "/branches/main");
    record.request(&server, "sign_in", about, (&branch, &As::Anonymous), 403);
    record.request(
        &server,
        "sign_in_git",
        about,
        (&git("hermes"), &As::Anonymous),
        401,
    );
    job::sign_in(&server);
}

/// A server without git over HTTP.
fn without_git(record: &mut Record, place: &Place) {
    let settings = ["repository:DISABLE_HTTP_GIT=true"];
    let server = Server::start(place, "without-git", &settings);
    server.repository(&template("hermes"), json!({ "auto_init": true }));
    let about = ("a server without git over HTTP", "anonymous");
    record.request(
        &server,
        "no_git",
        about,
        (&git("hermes"), &As::Anonymous),
        403,
    );
    job::no_git(&server);
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = Place::new();
    let mut record = Record::default();
    let mut failed = 0;
    type Part = fn(&mut Record, &Place);
    let parts: [(&str, Part); 4] = [
        ("responses, errors and jobs", responses),
        ("a server that requires a login", closed),
        ("a server without git over HTTP", without_git),
        (
            "a server below a path, with its own certificate",
            |_, place| job::path_and_certificate(place),
        ),
    ];
    for (name, part) in parts {
        println!("{name}");
        failed +=
            usize::from(catch_unwind(AssertUnwindSafe(|| part(&mut record, &place))).is_err());
    }
    // Dropped before `exit`, which runs no destructors, so that its folder is removed.
    drop(place);
    if failed > 0 {
        eprintln!("{failed} of the parts failed");
        std::process::exit(1);
    }
    record.write_vectors(&root.join("tests/vectors/gitea"));
    let text = include_str!("gitea.md").replace("TABLE\n", &record.table());
    std::fs::write(root.join("docs/gitea.md"), text).unwrap();
    println!("all passed; docs/gitea.md and tests/vectors/gitea are written");
}
