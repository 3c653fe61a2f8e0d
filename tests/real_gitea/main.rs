//! libmol and a real Gitea: what that answers, and what libmol makes of it. `tests/run gitea` runs it, and
//! nothing else does: the server has to be built first.
//!
//! It writes docs/gitea.md and the answers in tests/vectors/gitea, which the template server of the other
//! tests is compared with (go/templateserver).

// Of what the other tests use too, this needs a part.
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

/// The templates are here, as `<PREFIX><runtime>`.
const ORGANIZATION: &str = "molecule-ai";
const PREFIX: &str = "molecule-ai-workspace-template-";

/// The repository of a runtime's template.
fn template(runtime: &str) -> String {
    format!("{ORGANIZATION}/{PREFIX}{runtime}")
}

/// Where git asks for a template.
fn git(runtime: &str) -> String {
    format!("/{}/info/refs?service=git-upload-pack", template(runtime))
}

/// A template's address in the API.
fn api(runtime: &str, rest: &str) -> String {
    format!("/api/v1/repos/{}{rest}", template(runtime))
}

/// A template with this file in its image, and nothing else.
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

/// What Gitea shows of itself to those who may and who may not see it.
fn answers(record: &mut Record, place: &Place) {
    let open = Server::start(place, "open", &[]);
    let reader = open.user("reader", &["read:repository"]);
    let narrow = open.user("narrow", &["read:user"]);
    let public_only = open.user("public", &["read:repository", "public-only"]);
    let stranger = open.user("stranger", &["read:repository"]);
    let (nobody, bad) = (
        As::Nobody,
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

    let mut ask = |name, about, path: &str, who: &As, status| {
        record.ask(&open, name, about, (path, who), status)
    };
    let public = "a public repository";
    let branch = api("hermes", "/branches/main");
    let answer = ask("branch", (public, "anonymous"), &branch, &nobody, 200);
    let head = answer.json()["commit"]["id"].as_str().unwrap().to_owned();
    ask(
        "repository",
        (public, "anonymous"),
        &api("hermes", ""),
        &nobody,
        200,
    );
    let references = api("hermes", "/git/refs/heads/main");
    ask(
        "references",
        (public, "anonymous"),
        &references,
        &nobody,
        200,
    );
    let commit = |id: &str| {
        api(
            "hermes",
            &format!("/git/commits/{id}?stat=false&verification=false&files=false"),
        )
    };
    ask(
        "commit",
        (public, "anonymous"),
        &commit(&head),
        &nobody,
        200,
    );
    ask("git", (public, "anonymous"), &git("hermes"), &nobody, 200);
    let expired = (public, "a wrong or expired token");
    ask("bad_token", expired, &branch, &bad, 401);
    ask("bad_token_git", expired, &git("hermes"), &bad, 401);
    let scope = (public, "a token without the scope read:repository");
    ask("wrong_scope_public", scope, &branch, &narrow, 403);

    let private = "a private repository";
    let branch = api("codex", "/branches/main");
    ask(
        "private_nobody",
        (private, "anonymous"),
        &branch,
        &nobody,
        404,
    );
    ask(
        "private_nobody_git",
        (private, "anonymous"),
        &git("codex"),
        &nobody,
        401,
    );
    ask(
        "private_reader",
        (private, "a token that may read it"),
        &branch,
        &reader,
        200,
    );
    ask(
        "private_reader_git",
        (private, "a token that may read it"),
        &git("codex"),
        &reader,
        200,
    );
    let scope = (private, "a token without the scope read:repository");
    ask("wrong_scope", scope, &branch, &narrow, 403);
    ask("wrong_scope_git", scope, &git("codex"), &narrow, 403);
    let limited = (private, "a token for public repositories only");
    ask("public_only", limited, &branch, &public_only, 403);
    ask("public_only_git", limited, &git("codex"), &public_only, 403);
    let without = (private, "a token of a user without access");
    ask("no_access", without, &branch, &stranger, 404);
    ask("no_access_git", without, &git("codex"), &stranger, 404);

    let missing = "a missing repository";
    let branch = api("openclaw", "/branches/main");
    ask("missing", (missing, "anonymous"), &branch, &nobody, 404);
    ask(
        "missing_git",
        (missing, "anonymous"),
        &git("openclaw"),
        &nobody,
        401,
    );
    ask("missing_token", (missing, "a token"), &branch, &reader, 404);
    // In fact it ends in a panic of the server's (`CheckRepoScopedToken` without a repository).
    ask(
        "missing_token_git",
        (missing, "a token"),
        &git("openclaw"),
        &reader,
        404,
    );

    let absent = api("hermes", "/branches/no/such");
    ask(
        "missing_branch",
        ("a missing branch", "anonymous"),
        &absent,
        &nobody,
        404,
    );
    let references = api("hermes", "/git/refs/heads/no/such");
    ask(
        "missing_reference",
        ("a missing branch", "anonymous"),
        &references,
        &nobody,
        404,
    );
    let gone = commit("0123456789abcdef0123456789abcdef01234567");
    ask(
        "missing_commit",
        ("a missing commit", "anonymous"),
        &gone,
        &nobody,
        404,
    );
    let empty = "an empty repository";
    ask(
        "empty",
        (empty, "anonymous"),
        &api("crewai", ""),
        &nobody,
        200,
    );
    ask(
        "empty_branch",
        (empty, "anonymous"),
        &api("crewai", "/branches/main"),
        &nobody,
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
    ask("renamed", (renamed, "anonymous"), &branch, &nobody, 301);
    ask(
        "renamed_git",
        (renamed, "anonymous"),
        &git("autogen"),
        &nobody,
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
    job::since_the_lookup(&open);
    job::whole(&open);
}

/// A server that lets nobody in without signing in.
fn closed(record: &mut Record, place: &Place) {
    let server = Server::start(place, "closed", &["service:REQUIRE_SIGNIN_VIEW=true"]);
    server.repository(&template("hermes"), json!({}));
    server.push(&template("hermes"), "main", &plain("hermes"));
    let about = ("a server that requires sign-in", "anonymous");
    let branch = api("hermes", "/branches/main");
    record.ask(&server, "sign_in", about, (&branch, &As::Nobody), 403);
    record.ask(
        &server,
        "sign_in_git",
        about,
        (&git("hermes"), &As::Nobody),
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
    record.ask(&server, "no_git", about, (&git("hermes"), &As::Nobody), 403);
    job::no_git(&server);
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = Place::new();
    let mut record = Record::default();
    let mut failed = 0;
    type Part = fn(&mut Record, &Place);
    let parts: [(&str, Part); 4] = [
        ("answers, errors and jobs", answers),
        ("a server that requires sign-in", closed),
        ("a server without git over HTTP", without_git),
        ("a path and a self-signed certificate", |_, place| {
            job::path_and_certificate(place)
        }),
    ];
    for (name, part) in parts {
        println!("{name}");
        failed +=
            usize::from(catch_unwind(AssertUnwindSafe(|| part(&mut record, &place))).is_err());
    }
    // Its folder goes, whatever has happened.
    drop(place);
    if failed > 0 {
        eprintln!("{failed} parts failed");
        std::process::exit(1);
    }
    record.write_vectors(&root.join("tests/vectors/gitea"));
    let text = include_str!("gitea.md").replace("TABLE\n", &record.table());
    std::fs::write(root.join("docs/gitea.md"), text).unwrap();
    println!("all passed; docs/gitea.md and tests/vectors/gitea were written");
}
