//! What a host program can choose: runtimes, tags, commits, engine.

use std::time::Duration;

use mol::event::Kind;
use mol::names::image::Image;
use mol::upkeep::prune::{Action, PruneOptions};
use mol::{Code, Event, OptionName};

use crate::support::child::{Link, command, field, program, succeed};
use crate::support::engine::{BUSYBOX, end_sleep_of};
use crate::support::git::{Object, packed};
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{TestClient, TestEnv, block_on, required_var, unique, write_docker_context};

/// A prefix on a port without a listener.
const NOWHERE: &str = "http://127.0.0.1:1/molecule-ai/molecule-ai-workspace-template-";

fn at(client: &TestClient, runtime: &str, commit: &str) -> mol::Result<Image> {
    block_on(client.inner().ensure_commit(runtime, commit).wait(None))
}

fn kinds(events: &[Event]) -> Vec<Kind> {
    events.iter().map(|event| event.kind).collect()
}

// --- commits ------------------------------------------------------------------------------------

#[test]
fn a_given_commit_is_built_without_lookup_and_hit_without_network() {
    let env = TestEnv::new();
    let old = env.template("hermes", dockerfile(PLAIN));
    env.template("hermes", dockerfile("FROM nothing\n"));
    let client = env.client();
    let image = at(&client, "hermes", &old.to_uppercase()).unwrap();
    assert!(!image.cache_hit);
    assert_eq!(image.commit_sha, old);
    assert_eq!(image.reference, env.reference("hermes", &old));
    assert_eq!(env.engine.id(&env.latest("hermes")), Some(image.image_id));
    let requests = env.server.requests();
    assert!(
        requests.iter().all(|request| request.service != "api"),
        "{requests:?}"
    );
    assert_eq!(
        client.count(Kind::LookupStarted) + client.count(Kind::LookupDone),
        0
    );

    let client = env.client_with(&[(OptionName::RepoPrefix, NOWHERE)]);
    let again = at(&client, "hermes", &old).unwrap();
    assert!(again.cache_hit);
    assert_eq!(again.reference, image.reference);
    assert_eq!(kinds(&client.events()), [Kind::CacheHit]);
}

#[test]
fn calls_by_commit_and_by_branch_share_a_build() {
    let (env, word) = (TestEnv::new(), unique());
    let sha = env.template(
        "hermes",
        dockerfile(&format!(
            "FROM {BUSYBOX}\nRUN echo {word}; sleep 600; echo done\n"
        )),
    );
    let client = env.client();
    let head = client.begin("hermes");
    client.wait_for_line(&word);
    let given = std::thread::scope(|scope| {
        let given = scope.spawn(|| at(&client, "hermes", &sha).unwrap());
        client.wait_for(Kind::Waiting, |_| true);
        end_sleep_of(&word);
        given.join().unwrap()
    });
    assert_eq!(given.image_id, head.end().unwrap().image_id);
    assert_eq!(client.count(Kind::BuildStarted), 1);
    assert_eq!(client.count(Kind::Waiting), 1);
}

#[test]
fn a_missing_commit_or_repository_is_named() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let error = at(&env.client(), "hermes", commit).unwrap_err();
    assert_eq!(error.code, Code::Fetch, "{error:?}");
    let repository = format!("{}hermes", env.server.repo_prefix);
    let message = format!("{repository} does not have the commit {commit}");
    assert!(error.message().starts_with(&message), "{error:?}");
    assert!(error.hint.starts_with("check the commit"), "{error:?}");
    assert!(env.is_clean());

    let error = at(&env.client(), "codex", commit).unwrap_err();
    assert_eq!(error.code, Code::RepoNotFound, "{error:?}");
    let message = format!("{}codex was not found: ", env.server.repo_prefix);
    assert!(error.message().starts_with(&message), "{error:?}");
    assert!(error.hint.contains("MOLECULE_GITEA_TOKEN"), "{error:?}");
}

/// `git rev-parse v1` prints the id of an annotated tag, not that of its commit.
#[test]
fn the_id_of_an_annotated_tag_is_reported_as_a_tag() {
    let env = TestEnv::new();
    let file = Object::blob(PLAIN);
    let tree = Object::tree([("100644", &b"Dockerfile"[..], file.id())]);
    let commit = Object::commit(&tree);
    let tag = Object::tag(&commit);
    let pack = packed(&[file, tree, commit, tag.clone()]);
    env.server
        .answer_with(&env.server.template("hermes"), &tag, &pack);
    let error = at(&env.client(), "hermes", &tag.hex()).unwrap_err();
    assert_eq!(error.code, Code::Fetch, "{error:?}");
    assert!(
        error.message().ends_with("is a tag, not a commit"),
        "{error:?}"
    );
    assert!(error.hint.contains("git rev-parse"), "{error:?}");
}

#[test]
fn an_invalid_commit_id_is_refused_without_showing_the_token() {
    let env = TestEnv::new();
    let token = "0123456789abcdef0123456789abcdef01234567";
    let client = env.client_with(&[(OptionName::Token, token)]);
    for commit in ["", "main", "0123456789ab", " 0123", token, &"g".repeat(40)] {
        let error = at(&client, "hermes", commit).unwrap_err();
        assert_eq!(error.code, Code::InvalidArgument, "{commit}: {error:?}");
        assert!(!error.hint.is_empty(), "{error:?}");
        assert!(!format!("{error:?}").contains(token), "{error:?}");
    }
    let error = at(&client, "hermse", &"a".repeat(40)).unwrap_err();
    assert_eq!(error.code, Code::UnknownRuntime, "{error:?}");
    assert!(env.server.requests().is_empty());
}

#[test]
fn offline_a_given_commit_is_found_or_reported_missing() {
    let env = TestEnv::new();
    let old = env.template("hermes", dockerfile(PLAIN));
    at(&env.client(), "hermes", &old).unwrap();
    let new = env.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /new\n"));
    at(&env.client(), "hermes", &new).unwrap();

    let client = env.client_with(&[
        (OptionName::Offline, "1"),
        (OptionName::RepoPrefix, NOWHERE),
    ]);
    assert_eq!(at(&client, "hermes", &old).unwrap().commit_sha, old);
    assert_eq!(at(&client, "hermes", &new).unwrap().commit_sha, new);
    let error = at(&client, "hermes", &"a".repeat(40)).unwrap_err();
    assert_eq!(error.code, Code::NoLocalImage, "{error:?}");
    assert!(error.message().contains("aaaaaaaaaaaa"), "{error:?}");
}

#[test]
fn a_pinned_runtime_uses_its_commit_and_others_their_head() {
    let env = TestEnv::new();
    let old = env.template("hermes", dockerfile(PLAIN));
    env.template("hermes", dockerfile("FROM nothing\n"));
    let head = env.template("codex", dockerfile(PLAIN));
    let pins = format!("hermes={old}");
    let client = env.client_with(&[(OptionName::Pins, &pins)]);
    assert_eq!(client.ensure("hermes").unwrap().commit_sha, old);
    assert_eq!(client.count(Kind::LookupStarted), 0);
    assert_eq!(client.ensure("codex").unwrap().commit_sha, head);
    assert_eq!(client.count(Kind::LookupStarted), 1);
}

// --- runtimes -----------------------------------------------------------------------------------

#[test]
fn a_custom_allowlist_replaces_the_default_everywhere() {
    let env = TestEnv::new();
    env.template("google-adk", dockerfile(PLAIN));
    env.template("hermes", dockerfile(PLAIN));
    env.client().ensure("hermes").unwrap();
    let client = env.client_with(&[(OptionName::Runtimes, "google-adk,codex")]);
    let image = client.ensure("google-adk").unwrap();
    let name = "molecule-local/workspace-template-google-adk:";
    assert!(image.reference.starts_with(name), "{image:?}");

    let error = block_on(client.inner().ensure_local_image("hermes").wait(None)).unwrap_err();
    assert_eq!(error.code, Code::UnknownRuntime);
    assert_eq!(error.message(), "unknown runtime \"hermes\"");
    assert_eq!(error.hint, "the known runtimes are codex, google-adk");

    let listed = block_on(client.inner().list().wait(None)).unwrap();
    let of = |runtime: &str| {
        listed
            .images
            .iter()
            .filter(|image| image.runtime == runtime)
            .count()
    };
    assert_eq!((of("google-adk"), of("hermes")), (1, 0));
    let trees: Vec<_> = listed.trees.iter().map(|tree| &*tree.runtime).collect();
    assert_eq!(trees, ["google-adk"]);
    let found = block_on(client.inner().diagnose().wait(None)).unwrap();
    let names: Vec<_> = found.checks.iter().map(|check| &*check.name).collect();
    assert!(
        names.ends_with(&["clock", "codex", "google-adk"]),
        "{names:?}"
    );
    block_on(client.inner().build_log("google-adk").wait(None)).unwrap();
}

// --- tags ---------------------------------------------------------------------------------------

#[test]
fn an_image_tagged_with_the_architecture_by_another_tool_is_a_hit() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile("FROM nothing\n"));
    let (isolation, short) = (&env.isolation, &sha[..12]);
    let tagged = format!("molecule-local/workspace-template-hermes:{short}-amd64--{isolation}");
    env.engine.tag(BUSYBOX, &tagged);
    let always = [(OptionName::TagArch, "always")];
    let image = env.client_with(&always).ensure("hermes").unwrap();
    assert!(image.cache_hit);
    assert_eq!(image.reference, tagged);
    assert_eq!(image.latest_reference, env.latest("hermes"));
    assert_eq!(env.engine.id(&env.latest("hermes")), env.engine.id(BUSYBOX));
}

/// An image inherits the labels of its base image, and many base images have a revision label.
#[test]
fn a_revision_label_of_a_foreign_image_is_ignored() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile("FROM nothing\n"));
    let tagged = env.reference("hermes", &sha);
    let dockerfile =
        format!("FROM {BUSYBOX}\nLABEL org.opencontainers.image.revision=0123456789abcdef\n");
    let folder = env.scratch().join("foreign");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("Dockerfile"), dockerfile).unwrap();
    let mut docker = std::process::Command::new(required_var("MOL_TEST_DOCKER"));
    docker
        .env("DOCKER_CONFIG", env.scratch())
        .arg("--host")
        .arg(&env.engine.url);
    succeed(docker.args(["build", "--tag", &tagged]).arg(&folder));
    let image = env.client().ensure("hermes").unwrap();
    assert!(image.cache_hit);
    assert_eq!(image.commit_sha, sha);
}

/// Both variants have the same tag; only the label differs.
#[test]
fn an_image_for_another_variant_with_the_same_tag_is_rebuilt() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let of = |platform: &str| {
        let options = [
            (OptionName::TagArch, "always"),
            (OptionName::Platform, platform),
        ];
        let client = env.client_with(&options);
        let image = client.ensure("hermes").unwrap();
        let reason = client
            .of_kind(Kind::CacheMiss)
            .pop()
            .and_then(|event| event.reason);
        (image, reason.unwrap_or_default())
    };
    let (first, _) = of("linux/amd64");
    let (second, reason) = of("linux/amd64/v2");
    assert_eq!(first.reference, second.reference);
    assert!(!second.cache_hit);
    assert!(reason.contains("linux/amd64"), "{reason}");
    assert_eq!(second.platform, "linux/amd64/v2");
    assert!(of("linux/amd64/v2").0.cache_hit);

    let offline = |platform: &str| {
        let client = env.client_with(&[
            (OptionName::TagArch, "always"),
            (OptionName::Platform, platform),
            (OptionName::Offline, "1"),
        ]);
        client.ensure("hermes").map(|image| image.platform)
    };
    assert_eq!(offline("linux/amd64/v2").unwrap(), "linux/amd64/v2");
    assert_eq!(offline("linux/amd64").unwrap_err().code, Code::NoLocalImage);
}

/// As in containerd. Otherwise two servers that use different spellings would rebuild in turn.
#[test]
fn amd64_and_amd64_v1_are_the_same_platform() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let of = |platform: &str| {
        let options = [
            (OptionName::TagArch, "always"),
            (OptionName::Platform, platform),
        ];
        env.client_with(&options)
            .ensure("hermes")
            .unwrap()
            .cache_hit
    };
    assert!(!of("linux/amd64"));
    assert!(of("linux/amd64/v1") && of("linux/amd64"));
}

#[test]
fn prune_and_offline_recognise_tags_with_the_architecture() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /old\n"));
    let always = [(OptionName::TagArch, "always")];
    let client = env.client_with(&always);
    let old = client.ensure("hermes").unwrap();
    env.template("hermes", dockerfile(PLAIN));
    let image = client.ensure("hermes").unwrap();
    let all = PruneOptions {
        keep_per_runtime: 1,
        recent: Duration::ZERO,
        dry_run: false,
    };
    // A client with another allowlist ignores hermes.
    let others = env.client_with(&[(OptionName::Runtimes, "codex")]);
    let report = block_on(others.inner().prune(all).wait(None)).unwrap();
    assert!(
        report.images.is_empty() && report.trees.is_empty(),
        "{report:?}"
    );
    let report = {
        let _alone = env.engine.alone();
        block_on(client.inner().prune(all).wait(None)).unwrap()
    };
    let done: Vec<_> = report
        .images
        .iter()
        .map(|pruned| (&*pruned.image.r#ref, pruned.action))
        .collect();
    assert_eq!(
        done,
        [
            (&*image.reference, Action::Kept),
            (&*old.reference, Action::Removed)
        ]
    );
    let offline = [(OptionName::TagArch, "always"), (OptionName::Offline, "1")];
    let found = env.client_with(&offline).ensure("hermes").unwrap();
    assert_eq!(found.reference, image.reference);
    assert_eq!(found.latest_reference, env.latest("hermes"));
}

// --- the engine ---------------------------------------------------------------------------------

/// For other clients of the engine, which read `DOCKER_HOST` and do not support docker contexts.
#[test]
fn the_engine_of_a_docker_context_is_reported_as_docker_host() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let host = env.engine.url.clone();
    let docker = env.scratch().join("docker");
    write_docker_context(&docker, "lab", &host);
    let client = env.client_with(&[
        (OptionName::DockerHost, ""),
        (OptionName::DockerContext, "lab"),
        (OptionName::DockerConfig, docker.to_str().unwrap()),
    ]);
    let found = block_on(client.inner().engine_host().wait(None)).unwrap();
    assert_eq!(found.docker_host, host);
    for _ in 0..2 {
        assert_eq!(client.ensure("hermes").unwrap().endpoint, host);
    }
    let warnings = client.of_kind(Kind::Warning);
    assert_eq!(warnings.len(), 1, "one warning per client: {warnings:?}");
    let hint = warnings[0].hint.as_deref().unwrap();
    assert!(warnings[0].message.contains(&host), "{warnings:?}");
    assert!(hint.contains("set DOCKER_HOST"), "{warnings:?}");

    let client = env.client();
    assert_eq!(
        block_on(client.inner().engine_host().wait(None))
            .unwrap()
            .docker_host,
        host
    );
    client.ensure("hermes").unwrap();
    assert_eq!(client.count(Kind::Warning), 0, "DOCKER_HOST is set");
}

// --- C ------------------------------------------------------------------------------------------

#[test]
fn a_c_program_sets_runtimes_tags_pins_and_commits() {
    let env = TestEnv::new();
    let sha = env.template("google-adk", dockerfile(PLAIN));
    env.template("google-adk", dockerfile("FROM nothing\n"));
    let mut choices = command(&env, &program("choices", Link::Static));
    let output = succeed(choices.args(["google-adk", &sha]));
    let reference = field(&output, "commit");
    assert!(
        reference.contains(&format!(":{}-amd64--", &sha[..12])),
        "{reference}"
    );
    assert_eq!(field(&output, "pinned"), reference);
    let engine = format!("{{\"docker_host\":\"{}\"}}", env.engine.url);
    assert_eq!(field(&output, "engine"), engine);
}
