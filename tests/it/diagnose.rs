//! The diagnosis: true when all is well, useful when nothing is, and never a secret in it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use mol::OptionName;
use mol::upkeep::diagnose::{Check, Diagnosis, Status};
use serde_json::json;

use crate::support::child::{BOTH, command, field, program, succeed};
use crate::support::engine::Engine;
use crate::support::server::dockerfile;
use crate::support::{Bed, TestClient, block_on};

/// Every line, in its order.
const NAMES: [&str; 21] = [
    "engine",
    "version",
    "builder",
    "platform",
    "engine disk",
    "cache",
    "cache disk",
    "logins",
    "proxy",
    "gitea",
    "token",
    "clock",
    "autogen",
    "claude-code",
    "codex",
    "crewai",
    "deepagents",
    "gemini-cli",
    "hermes",
    "langgraph",
    "openclaw",
];

fn diagnose(client: &TestClient) -> Diagnosis {
    let found = block_on(client.inner().diagnose(None)).unwrap();
    let names: Vec<&str> = found.checks.iter().map(|check| &*check.name).collect();
    assert_eq!(names, NAMES, "always the same lines");
    let worst = found.checks.iter().map(|check| check.status).max();
    assert_eq!(Some(found.status), worst);
    for check in &found.checks {
        assert!(!check.found.is_empty(), "{check:?}");
        assert_eq!(
            check.fix.is_empty(),
            check.status == Status::Ok,
            "{check:?}"
        );
        assert!(
            !check.found.contains('\n') && !check.fix.contains('\n'),
            "{check:?}"
        );
    }
    found
}

fn with(bed: &Bed, more: &[(OptionName, &str)]) -> Diagnosis {
    diagnose(&bed.client_with(more))
}

fn line<'d>(found: &'d Diagnosis, name: &str) -> &'d Check {
    found
        .checks
        .iter()
        .find(|check| check.name == name)
        .unwrap()
}

/// The line is of this kind and says all of this.
fn says(found: &Diagnosis, name: &str, status: Status, parts: &[&str]) {
    let check = line(found, name);
    assert_eq!(check.status, status, "{check:?}");
    for part in parts {
        let said = format!("{}; {}", check.found, check.fix);
        assert!(said.contains(part), "{part} in {check:?}");
    }
}

#[test]
fn when_all_is_well_every_line_says_what_there_is() {
    let bed = Bed::new();
    let sha = bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    let client = bed.client();
    let found = diagnose(&client);
    says(
        &found,
        "engine",
        Status::Ok,
        &[&bed.engine.url, "(DOCKER_HOST)"],
    );
    says(
        &found,
        "version",
        Status::Ok,
        &["Docker Engine ", "API 1.", "linux/"],
    );
    says(&found, "builder", Status::Ok, &["buildkit"]);
    says(&found, "platform", Status::Ok, &["linux/amd64"]);
    says(&found, "cache", Status::Ok, &["the first build makes it"]);
    assert!(!bed.cache().exists(), "looking makes nothing");
    says(&found, "logins", Status::Ok, &["none"]);
    says(&found, "proxy", Status::Ok, &["none"]);
    says(&found, "gitea", Status::Ok, &["http://127.0.0.1:", " ms"]);
    says(&found, "token", Status::Ok, &["not set"]);
    says(&found, "clock", Status::Ok, &["as the server's"]);
    says(&found, "hermes", Status::Ok, &["main at", &sha[..12]]);
    says(&found, "codex", Status::Ok, &["no repository"]);
    assert!(line(&found, "engine disk").found.contains(" free at /"));

    client.ensure("hermes").unwrap();
    let cache = bed.cache();
    says(
        &diagnose(&client),
        "cache",
        Status::Ok,
        &[cache.to_str().unwrap(), ": 1 whole, "],
    );
    fs::create_dir(cache.join("hermes/.work-0123456789ab-Xy")).unwrap();
    says(
        &diagnose(&client),
        "cache",
        Status::Warning,
        &["1 half-written", "mol prune"],
    );
}

#[test]
fn podman_and_the_classic_builder_are_named() {
    let (bed, podman) = (Bed::new(), Engine::podman_of_the_tests());
    // It does one thing after the other; what others have it do must not take all of the time.
    let alone = podman.alone();
    let found = with(&bed, &[(OptionName::DockerHost, &podman.url)]);
    drop(alone);
    says(&found, "version", Status::Ok, &["Podman "]);
    says(&found, "builder", Status::Ok, &["buildah"]);
    let found = with(&bed, &[(OptionName::DockerBuildkit, "0")]);
    says(
        &found,
        "builder",
        Status::Warning,
        &["classic", "unset DOCKER_BUILDKIT"],
    );
}

#[test]
fn when_everything_is_broken_each_line_says_so_and_in_time() {
    let bed = Bed::new();
    // A cache that is a file, an engine that accepts and says nothing, no network.
    fs::write(bed.cache(), "").unwrap();
    let socket = bed.scratch().join("silent.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let host = format!("unix://{}", socket.display());
    fs::create_dir(bed.scratch().join("config.json")).unwrap();
    let begun = Instant::now();
    let found = with(
        &bed,
        &[
            (OptionName::DockerHost, &host),
            (OptionName::RepoPrefix, "http://127.0.0.1:1/org/tpl-"),
            (OptionName::DockerConfig, bed.scratch().to_str().unwrap()),
        ],
    );
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(25), "{took:?}");
    assert_eq!(found.status, Status::Problem);
    says(
        &found,
        "engine",
        Status::Problem,
        &["did not answer within 10 seconds"],
    );
    says(
        &found,
        "version",
        Status::Warning,
        &["not known", "see engine"],
    );
    says(
        &found,
        "cache",
        Status::Problem,
        &["MOLECULE_LOCAL_BUILD_CACHE"],
    );
    says(
        &found,
        "logins",
        Status::Problem,
        &["config.json", "fix the file"],
    );
    says(
        &found,
        "gitea",
        Status::Problem,
        &["refused", "check the network"],
    );
    says(
        &found,
        "hermes",
        Status::Problem,
        &["http://127.0.0.1:1/org/tpl-hermes"],
    );
    says(&found, "clock", Status::Warning, &["not known"]);
}

#[test]
fn a_server_that_never_answers_does_not_hold_it_up() {
    let bed = Bed::new();
    bed.server
        .faults(json!([{ "match": "/api/", "hang": true }]));
    let begun = Instant::now();
    let found = with(&bed, &[]);
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    says(
        &found,
        "gitea",
        Status::Problem,
        &["did not answer within 10 seconds"],
    );
    says(&found, "engine", Status::Ok, &[&bed.engine.url]);
}

#[test]
fn a_token_is_told_to_be_accepted_or_refused_and_never_shown() {
    const TOKEN: &str = "t0ken-of-4-nobody";
    let bed = Bed::with(&["--token", TOKEN]);
    bed.template("hermes", dockerfile("FROM scratch\n"));
    says(
        &with(&bed, &[]),
        "token",
        Status::Problem,
        &["not set", "MOLECULE_GITEA_TOKEN"],
    );
    let wrong = with(&bed, &[(OptionName::Token, "another-t0ken")]);
    says(&wrong, "token", Status::Problem, &["refused"]);
    let config = bed.scratch().join("docker");
    fs::create_dir(&config).unwrap();
    let login =
        r#"{"auths": {"registry.example": {"auth": "bWU6aHVudGVyMg=="}}, "credsStore": "nowhere"}"#;
    fs::write(config.join("config.json"), login).unwrap();
    let found = with(
        &bed,
        &[
            (OptionName::Token, TOKEN),
            (
                OptionName::HttpsProxy,
                "http://me:hunter2@proxy.example:3128",
            ),
            (OptionName::HttpProxy, ""),
            (OptionName::DockerConfig, config.to_str().unwrap()),
        ],
    );
    says(&found, "token", Status::Ok, &["set, and accepted"]);
    says(
        &found,
        "proxy",
        Status::Ok,
        &["HTTPS_PROXY http://***@proxy.example:3128"],
    );
    let missing = ["1 in config.json", "docker-credential-nowhere"];
    says(&found, "logins", Status::Warning, &missing);
    let all = serde_json::to_string(&found).unwrap() + &format!("{wrong:?}{found:?}");
    for secret in [TOKEN, "another-t0ken", "hunter2", "bWU6aHVudGVyMg"] {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
}

#[test]
fn a_clock_that_is_wrong_and_a_prefix_that_is_are_told() {
    let bed = Bed::new();
    let found = with(&bed, &[]);
    says(
        &found,
        "gitea",
        Status::Problem,
        &[
            "no template repository is there",
            "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX",
        ],
    );
    bed.template("hermes", dockerfile("FROM scratch\n"));
    bed.server.faults(json!([{
        "match": "/api/v1/version$",
        "status": 404,
        "headers": { "Date": "Tue, 15 Nov 1994 08:12:31 GMT" },
    }]));
    let found = with(&bed, &[]);
    says(
        &found,
        "clock",
        Status::Warning,
        &["ahead of the server's", "timedatectl"],
    );
}

#[test]
fn a_cache_that_others_can_write_is_a_problem_and_offline_nobody_is_asked() {
    let bed = Bed::new();
    fs::create_dir(bed.cache()).unwrap();
    fs::set_permissions(bed.cache(), PermissionsExt::from_mode(0o777)).unwrap();
    let found = with(&bed, &[(OptionName::Offline, "1")]);
    says(
        &found,
        "cache",
        Status::Problem,
        &["written by other users", "chmod go-w"],
    );
    says(&found, "gitea", Status::Ok, &["not asked"]);
    says(&found, "hermes", Status::Ok, &["not asked"]);
    assert_eq!(bed.server.requests().len(), 0);
}

#[test]
fn a_c_program_gets_it_too() {
    for link in BOTH {
        let bed = Bed::new();
        let output = succeed(command(&bed, &program("upkeep", link)).arg("diagnose"));
        for name in ["diagnosis", "result"] {
            let mut found: serde_json::Value = serde_json::from_str(&field(&output, name)).unwrap();
            if name == "result" {
                found = found["result"].take();
            }
            assert_eq!(found["checks"][0]["name"], "engine");
            assert_eq!(found["checks"][0]["status"], "ok");
            assert_eq!(found["version"], env!("CARGO_PKG_VERSION"));
        }
    }
}
