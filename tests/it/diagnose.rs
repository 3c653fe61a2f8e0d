//! The diagnosis: correct if everything works, useful if nothing does, and free of secrets.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use mol::OptionName;
use mol::upkeep::diagnose::{Check, Diagnosis, Status};
use serde_json::json;

use crate::support::child::{BOTH, command, field, program, succeed};
use crate::support::engine::Engine;
use crate::support::registry::Registry;
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{Handling, Proxy, TestClient, TestEnv, block_on};

/// The names of all checks, in order.
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
    let found = block_on(client.inner().diagnose().wait(None)).unwrap();
    let names: Vec<&str> = found.checks.iter().map(|check| &*check.name).collect();
    assert_eq!(names, NAMES, "always the same checks");
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

fn with(env: &TestEnv, more: &[(OptionName, &str)]) -> Diagnosis {
    diagnose(&env.client_with(more))
}

fn check<'d>(found: &'d Diagnosis, name: &str) -> &'d Check {
    found
        .checks
        .iter()
        .find(|check| check.name == name)
        .unwrap()
}

/// The check has this status, and its text contains all of these parts.
fn assert_check(found: &Diagnosis, name: &str, status: Status, parts: &[&str]) {
    let check = check(found, name);
    assert_eq!(check.status, status, "{check:?}");
    for part in parts {
        let said = format!("{}; {}", check.found, check.fix);
        assert!(said.contains(part), "{part} in {check:?}");
    }
}

#[test]
fn on_a_healthy_system_every_check_reports_what_it_found() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    let client = env.client();
    let found = diagnose(&client);
    assert_check(
        &found,
        "engine",
        Status::Ok,
        &[&env.engine.url, "(DOCKER_HOST)"],
    );
    assert_check(
        &found,
        "version",
        Status::Ok,
        &["Docker Engine ", "API 1.", "linux/"],
    );
    assert_check(&found, "builder", Status::Ok, &["buildkit"]);
    assert_check(&found, "platform", Status::Ok, &["linux/amd64"]);
    assert_check(&found, "cache", Status::Ok, &["the first build creates it"]);
    assert!(!env.cache().exists(), "the diagnosis creates nothing");
    assert_check(&found, "logins", Status::Ok, &["none"]);
    assert_check(&found, "proxy", Status::Ok, &["none"]);
    assert_check(&found, "gitea", Status::Ok, &["http://127.0.0.1:", " ms"]);
    assert_check(&found, "token", Status::Ok, &["not set"]);
    assert_check(&found, "clock", Status::Ok, &["same as the server's"]);
    assert_check(&found, "hermes", Status::Ok, &["main at", &sha[..12]]);
    assert_check(&found, "codex", Status::Ok, &["no repository"]);
    assert!(check(&found, "engine disk").found.contains(" free at /"));
    let pin = "0123456789abcdef0123456789abcdef01234567";
    let pinned = env.client_with(&[(OptionName::Pins, &format!("hermes={pin}"))]);
    let expected = ["pinned to 0123456789ab; main at", &sha[..12]];
    assert_check(&diagnose(&pinned), "hermes", Status::Ok, &expected);

    client.ensure("hermes").unwrap();
    let cache = env.cache();
    assert_check(
        &diagnose(&client),
        "cache",
        Status::Ok,
        &[cache.to_str().unwrap(), ": complete trees: 1; "],
    );
    fs::create_dir(cache.join("hermes/.work-0123456789ab-Xy")).unwrap();
    assert_check(
        &diagnose(&client),
        "cache",
        Status::Warning,
        &["1 incomplete", "mol prune"],
    );
}

#[test]
fn podman_and_the_classic_builder_are_named() {
    let (env, podman) = (TestEnv::new(), Engine::podman_of_the_tests());
    // Podman handles requests one by one. Other tests' requests must not use up the time limit.
    let alone = podman.alone();
    let found = with(&env, &[(OptionName::DockerHost, &podman.url)]);
    drop(alone);
    assert_check(&found, "version", Status::Ok, &["Podman "]);
    assert_check(&found, "builder", Status::Ok, &["buildah"]);
    let found = with(&env, &[(OptionName::DockerBuildkit, "0")]);
    assert_check(
        &found,
        "builder",
        Status::Warning,
        &["classic", "unset DOCKER_BUILDKIT"],
    );
}

#[test]
fn on_a_broken_system_each_failed_check_is_reported_in_time() {
    let env = TestEnv::new();
    // The cache is a file, the engine accepts connections and never answers, the server refuses them.
    fs::write(env.cache(), "").unwrap();
    let socket = env.scratch().join("silent.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let host = format!("unix://{}", socket.display());
    fs::create_dir(env.scratch().join("config.json")).unwrap();
    let begun = Instant::now();
    let found = with(
        &env,
        &[
            (OptionName::DockerHost, &host),
            (OptionName::RepoPrefix, "http://127.0.0.1:1/org/tpl-"),
            (OptionName::DockerConfig, env.scratch().to_str().unwrap()),
        ],
    );
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(25), "{took:?}");
    assert_eq!(found.status, Status::Problem);
    assert_check(
        &found,
        "engine",
        Status::Problem,
        &["did not answer within 10 seconds"],
    );
    assert_check(
        &found,
        "version",
        Status::Warning,
        &["unknown", "see engine"],
    );
    assert_check(
        &found,
        "cache",
        Status::Problem,
        &["MOLECULE_LOCAL_BUILD_CACHE"],
    );
    assert_check(
        &found,
        "logins",
        Status::Warning,
        &["make config.json a readable, regular file"],
    );
    assert_check(
        &found,
        "gitea",
        Status::Problem,
        &["refused", "check the network"],
    );
    assert_check(
        &found,
        "hermes",
        Status::Problem,
        &["http://127.0.0.1:1/org/tpl-hermes"],
    );
    assert_check(&found, "clock", Status::Warning, &["unknown"]);
    // A check that fails because of another one names that check as its cause.
    for (name, cause) in [
        ("engine", ""),
        ("version", "engine"),
        ("engine disk", "engine"),
        ("cache", ""),
        ("logins", ""),
        ("gitea", ""),
        ("clock", "gitea"),
        ("hermes", "gitea"),
    ] {
        assert_eq!(check(&found, name).cause, cause, "{name}");
    }
}

#[test]
fn a_hanging_server_does_not_block_the_diagnosis() {
    let env = TestEnv::new();
    env.server
        .faults(json!([{ "match": "/api/", "hang": true }]));
    let begun = Instant::now();
    let found = with(&env, &[]);
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    assert_check(
        &found,
        "gitea",
        Status::Problem,
        &["did not answer within 10 seconds"],
    );
    assert_check(&found, "engine", Status::Ok, &[&env.engine.url]);
}

#[test]
fn a_token_is_reported_as_accepted_or_refused_never_shown() {
    const TOKEN: &str = "t0ken-of-4-nobody";
    let env = TestEnv::with(&["--token", TOKEN]);
    env.template("hermes", dockerfile("FROM scratch\n"));
    assert_check(
        &with(&env, &[]),
        "token",
        Status::Problem,
        &["not set", "MOLECULE_GITEA_TOKEN"],
    );
    let wrong = with(&env, &[(OptionName::Token, "another-t0ken")]);
    assert_check(&wrong, "token", Status::Problem, &["refused"]);
    assert_eq!(check(&wrong, "hermes").cause, "token");
    let config = env.scratch().join("docker");
    fs::create_dir(&config).unwrap();
    let login =
        r#"{"auths": {"registry.example": {"auth": "bWU6aHVudGVyMg=="}}, "credsStore": "nowhere"}"#;
    fs::write(config.join("config.json"), login).unwrap();
    let found = with(
        &env,
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
    assert_check(&found, "token", Status::Ok, &["set, and accepted"]);
    assert_check(
        &found,
        "proxy",
        Status::Ok,
        &["HTTPS_PROXY http://***@proxy.example:3128"],
    );
    let missing = ["1 in config.json", "docker-credential-nowhere"];
    assert_check(&found, "logins", Status::Warning, &missing);
    let all = serde_json::to_string(&found).unwrap() + &format!("{wrong:?}{found:?}");
    for secret in [TOKEN, "another-t0ken", "hunter2", "bWU6aHVudGVyMg"] {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
}

#[test]
fn an_engine_disk_that_cannot_be_checked_is_only_a_warning() {
    let env = TestEnv::new();
    let forbids = Proxy::start(&env.engine, env.scratch(), |head: &str| {
        match head.contains("/info ") {
            true => Handling::Fail,
            false => Handling::Pass,
        }
    });
    let found = with(&env, &[(OptionName::DockerHost, &forbids.url)]);
    assert_check(&found, "engine", Status::Ok, &[]);
    assert_check(&found, "engine disk", Status::Warning, &["/info", "500"]);
}

#[test]
fn a_wrong_clock_and_a_wrong_prefix_are_reported() {
    let env = TestEnv::new();
    let found = with(&env, &[]);
    assert_check(
        &found,
        "gitea",
        Status::Problem,
        &[
            "no template repository exists",
            "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX",
        ],
    );
    assert_check(&found, "clock", Status::Ok, &["same as the server's"]);
    env.template("hermes", dockerfile("FROM scratch\n"));
    env.server.faults(json!([{
        "match": "/api/v1/version$",
        "status": 404,
        "headers": { "Date": "Tue, 15 Nov 1994 08:12:31 GMT" },
    }]));
    let found = with(&env, &[]);
    assert_check(
        &found,
        "clock",
        Status::Warning,
        &["ahead of the server's", "timedatectl"],
    );
}

#[test]
fn a_branch_that_does_not_exist_is_reported() {
    const BRANCH: &str = "MOLECULE_LOCAL_TEMPLATE_BRANCH";
    let env = TestEnv::new();
    env.template("hermes", dockerfile("FROM scratch\n"));
    let found = with(&env, &[(OptionName::Branch, "typo")]);
    let expected = ["no template repository with the branch \"typo\"", BRANCH];
    assert_check(&found, "gitea", Status::Problem, &expected);
    let expected = ["the branch \"typo\" or its repository", BRANCH];
    assert_check(&found, "hermes", Status::Warning, &expected);
    assert_eq!(check(&found, "hermes").cause, "gitea");

    let found = with(&env, &[(OptionName::Branch, "main")]);
    assert_check(&found, "gitea", Status::Ok, &[]);
    assert_check(&found, "hermes", Status::Ok, &["main at"]);
    assert_check(&found, "codex", Status::Warning, &[BRANCH]);
    assert_eq!(check(&found, "codex").cause, "");
}

#[test]
fn one_missing_repository_does_not_stand_for_those_that_fail() {
    let env = TestEnv::new();
    env.server
        .faults(json!([{ "match": "/api/v1/repos/.*template-[^c]", "status": 500 }]));
    let found = with(&env, &[]);
    assert_check(&found, "gitea", Status::Ok, &[]);
    assert_check(&found, "codex", Status::Ok, &["no repository"]);
    assert_check(&found, "hermes", Status::Problem, &["500"]);
}

#[test]
fn an_unusable_shared_cache_is_only_a_warning_in_the_diagnosis() {
    let env = TestEnv::new();
    let registry = Registry::public(env.scratch());
    let with_cache = |host: &str, more: &[(OptionName, &str)]| -> Check {
        let cache = format!("{host}/team/cache");
        let mut options = vec![(OptionName::SharedCache, &*cache)];
        options.extend_from_slice(more);
        let found = block_on(env.client_with(&options).inner().diagnose().wait(None)).unwrap();
        let names: Vec<&str> = found.checks.iter().map(|check| &*check.name).collect();
        assert_eq!(names[8..11], ["proxy", "shared cache", "gitea"]);
        check(&found, "shared cache").clone()
    };
    let expect = |check: Check, status: Status, found: &str, fix: &str| {
        assert_eq!(check.status, status, "{check:?}");
        let after = check.found.split_once("/team/cache").unwrap().1;
        assert_eq!(after, found);
        assert!(check.fix.contains(fix), "{check:?}");
        assert_eq!(check.fix.is_empty(), fix.is_empty(), "{check:?}");
    };
    let (rw, classic) = (
        (OptionName::SharedCacheMode, "rw"),
        (OptionName::DockerBuildkit, "0"),
    );
    let builder = (OptionName::Builder, "unix:///nowhere/buildkitd.sock");
    expect(
        with_cache(&registry.host, &[]),
        Status::Ok,
        " (ro): its registry answers",
        "",
    );
    expect(
        with_cache(&registry.host, &[rw, builder]),
        Status::Ok,
        " (rw): its registry answers",
        "",
    );
    expect(
        with_cache(&registry.host, &[rw]),
        Status::Warning,
        " (rw): read, but not written: the engine's own builder cannot write it",
        "MOLECULE_LOCAL_BUILDER",
    );
    expect(
        with_cache(&registry.host, &[classic]),
        Status::Warning,
        " (ro): not used: the classic builder does not support it",
        "MOLECULE_LOCAL_BUILDER",
    );
    expect(
        with_cache("127.0.0.1:1", &[]),
        Status::Warning,
        " (ro): its registry cannot be reached from here: the connection was refused",
        "MOLECULE_LOCAL_SHARED_CACHE",
    );
    let down = Proxy::before_registry(&registry.host, |_| Handling::Fail);
    expect(
        with_cache(down.url.strip_prefix("http://").unwrap(), &[]),
        Status::Warning,
        " (ro): its registry answers 500 Internal Server Error",
        "log",
    );
    // Nothing calls accept, but the kernel completes the handshake, so connections succeed and get no answer.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    expect(
        with_cache(&host, &[]),
        Status::Warning,
        " (ro): its registry did not answer within 10 seconds",
        "MOLECULE_LOCAL_SHARED_CACHE",
    );
    expect(
        with_cache(&host, &[(OptionName::Offline, "1")]),
        Status::Ok,
        " (ro): not checked: MOLECULE_LOCAL_OFFLINE is set",
        "",
    );
}

#[test]
fn an_offline_diagnosis_reports_an_unsafe_cache_without_requests() {
    let env = TestEnv::new();
    fs::create_dir(env.cache()).unwrap();
    fs::set_permissions(env.cache(), PermissionsExt::from_mode(0o777)).unwrap();
    let found = with(&env, &[(OptionName::Offline, "1")]);
    assert_check(
        &found,
        "cache",
        Status::Problem,
        &["written by other users", "chmod go-w"],
    );
    assert_check(&found, "gitea", Status::Ok, &["not checked"]);
    assert_check(&found, "hermes", Status::Ok, &["not checked"]);
    assert_eq!(env.server.requests().len(), 0);
}

#[test]
fn a_c_program_gets_the_diagnosis() {
    for link in BOTH {
        let env = TestEnv::new();
        let output = succeed(command(&env, &program("upkeep", link)).arg("diagnose"));
        let found = field(&output, "diagnosis");
        let found: serde_json::Value = serde_json::from_str(&found).unwrap();
        assert_eq!(found["checks"][0]["name"], "engine");
        assert_eq!(found["checks"][0]["status"], "ok");
        assert_eq!(found["version"], env!("CARGO_PKG_VERSION"));
    }
}
