//! From a runtime name to an image: the first build, a hit, and a new commit.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use mol::OptionName;
use mol::event::Kind;
use serde_json::json;

use crate::support::child::succeed;
use crate::support::engine::BUSYBOX;
use crate::support::server::{copying, dockerfile, of_service};
use crate::support::{Files, TestEnv, file, noise};

#[test]
fn the_image_is_built_from_the_head_commit_and_named_after_it() {
    let env = TestEnv::new();
    let sha = env.template("hermes", copying("one"));
    let client = env.client();
    let image = client.ensure("hermes").unwrap();

    assert_eq!(image.reference, env.reference("hermes", &sha));
    assert_eq!(image.latest_reference, env.latest("hermes"));
    assert_eq!(image.commit_sha, sha);
    assert_eq!(image.runtime, "hermes");
    assert_eq!(image.platform, "linux/amd64");
    assert_eq!(image.endpoint, env.engine.url);
    assert!(!image.cache_hit);
    assert_eq!(
        env.engine.id(&image.reference),
        Some(image.image_id.clone())
    );
    assert_eq!(env.engine.id(&image.latest_reference), Some(image.image_id));
    assert_eq!(env.engine.read(&image.reference, "content"), "one");
}

#[test]
fn a_hit_is_one_api_request_without_fetch_or_build() {
    let env = TestEnv::new();
    env.template("hermes", copying("one"));
    let client = env.client();
    let first = client.ensure("hermes").unwrap();
    env.server.requests();
    client.clear_events();

    let second = client.ensure("hermes").unwrap();
    assert!(second.cache_hit);
    assert_eq!(second.reference, first.reference);
    assert_eq!(second.image_id, first.image_id);
    let requests = env.server.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!(requests[0].service, "api");
    let kinds: Vec<Kind> = client.events().iter().map(|event| event.kind).collect();
    assert_eq!(
        kinds,
        [Kind::LookupStarted, Kind::LookupDone, Kind::CacheHit]
    );
    assert!(second.timings.fetch.is_zero() && second.timings.build.is_zero());
    assert!(!second.timings.lookup.is_zero() && !second.timings.total.is_zero());
}

#[test]
fn another_client_with_an_empty_cache_hits_the_same_image() {
    let env = TestEnv::new();
    let sha = env.template("hermes", copying("one"));
    env.client().ensure("hermes").unwrap();
    let elsewhere = env.scratch().join("elsewhere");
    let client = env.client_with(&[(OptionName::CacheDir, elsewhere.to_str().unwrap())]);
    assert!(client.ensure("hermes").unwrap().cache_hit);
    let written: Vec<_> = std::fs::read_dir(elsewhere.join("hermes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let noted = format!(".{}.used", &sha[..12]);
    assert_eq!(written, [noted], "a hit only records its use");
}

#[test]
fn a_new_commit_is_built_and_the_old_image_stays() {
    let env = TestEnv::new();
    env.template("hermes", copying("one"));
    let client = env.client();
    let first = client.ensure("hermes").unwrap();
    env.template("hermes", copying("two"));
    let second = client.ensure("hermes").unwrap();

    assert!(!second.cache_hit);
    assert_ne!(second.reference, first.reference);
    assert_eq!(env.engine.read(&first.reference, "content"), "one");
    assert_eq!(env.engine.read(&second.reference, "content"), "two");
    assert_eq!(
        env.engine.id(&second.latest_reference),
        Some(second.image_id)
    );
}

#[test]
fn a_push_between_lookup_and_fetch_does_not_change_the_commit() {
    let env = TestEnv::new();
    let sha = env.template("hermes", copying("looked up"));
    env.server.faults(json!([{
        "match": "/info/refs", "times": 1,
        "before_commit": {
            "repo": env.server.template("hermes"), "branch": "main",
            "files": { "content": { "text": "came in between" } },
        },
    }]));
    let client = env.client();
    let image = client.ensure("hermes").unwrap();
    assert_eq!(image.commit_sha, sha);
    assert_eq!(env.engine.read(&image.reference, "content"), "looked up");

    let next = client.ensure("hermes").unwrap();
    assert_ne!(next.commit_sha, sha);
    assert_eq!(
        env.engine.read(&next.reference, "content"),
        "came in between"
    );
}

#[test]
fn a_force_push_between_lookup_and_fetch_keeps_the_commit() {
    let env = TestEnv::new();
    let sha = env.template("hermes", copying("looked up"));
    env.server.faults(json!([{
        "match": "/info/refs", "times": 1,
        "before_commit": {
            "repo": env.server.template("hermes"), "branch": "main",
            "orphan": true, "reset": true, "files": copying("force-pushed"),
        },
    }]));
    let client = env.client();
    let image = client.ensure("hermes").unwrap();
    assert_eq!(image.commit_sha, sha);
    assert_eq!(env.engine.read(&image.reference, "content"), "looked up");

    let next = client.ensure("hermes").unwrap();
    assert_ne!(next.commit_sha, sha);
    assert_eq!(env.engine.read(&next.reference, "content"), "force-pushed");
}

#[test]
fn only_one_commit_without_history_is_fetched() {
    let env = TestEnv::new();
    // Incompressible, because the test counts the received bytes.
    let old = noise(1_000_000);
    env.template("hermes", copying(&old));
    env.template("hermes", copying("small"));
    let client = env.client();
    client.ensure("hermes").unwrap();
    let done = client.wait_for(Kind::FetchDone, |_| true);
    assert_eq!(done.files, Some(2));
    assert_eq!(done.objects, Some(4), "a commit, its tree and two files");
    assert!(done.bytes.unwrap() < 5_000, "{done:?}");
}

#[test]
fn events_are_emitted_in_pipeline_order() {
    let env = TestEnv::new();
    // Unique content, so that the engine has no cached step.
    let sha = env.template("hermes", copying(&env.isolation));
    let client = env.client();
    let image = client.ensure("hermes").unwrap();
    let events = client.events();
    let order = [
        Kind::LookupStarted,
        Kind::LookupDone,
        Kind::CacheMiss,
        Kind::FetchStarted,
        Kind::FetchDone,
        Kind::BuildStarted,
        Kind::ContextDone,
        Kind::StepStarted,
        Kind::ExportStarted,
        Kind::ExportDone,
        Kind::Tagged,
    ];
    // BuildKit may report the end of a step after the start of the export.
    let step = [Kind::StepStarted, Kind::StepDone, Kind::Tagged];
    let at = |kind| events.iter().position(|event| event.kind == kind);
    for pair in order.windows(2).chain(step.windows(2)) {
        let (before, after) = (at(pair[0]), at(pair[1]));
        assert!(
            before.is_some() && before < after,
            "{pair:?} in {events:#?}"
        );
    }
    for event in &events {
        assert_eq!(event.runtime, "hermes");
        assert_eq!(event.call, events[0].call);
        assert!(
            !event.message.is_empty() && event.time_unix_ms > 0,
            "{event:?}"
        );
    }
    let looked_up = client.wait_for(Kind::LookupDone, |_| true);
    assert_eq!(looked_up.commit_sha.as_deref(), Some(&*sha));
    assert_eq!(looked_up.branch.as_deref(), Some("main"));
    let tagged = client.wait_for(Kind::Tagged, |_| true);
    assert_eq!(tagged.r#ref, Some(image.reference));
    assert_eq!(tagged.latest_ref, Some(image.latest_reference));
    let step = client.wait_for(Kind::StepStarted, |_| true);
    assert!(step.step_name.unwrap().contains("COPY content /"));
}

#[test]
fn both_builders_produce_the_same_files() {
    let env = TestEnv::with_samples();
    let buildkit = env.client();
    let image = buildkit.ensure("langgraph").unwrap();
    let of_buildkit = env.engine.files(&image.reference);
    env.engine.untag(&image.reference);

    let classic = env.client_with(&[(OptionName::DockerBuildkit, "0")]);
    let image = classic.ensure("langgraph").unwrap();
    assert!(!image.cache_hit);
    assert_eq!(env.engine.files(&image.reference), of_buildkit);

    let builder =
        |client: &crate::support::TestClient| client.wait_for(Kind::BuildStarted, |_| true).builder;
    assert_eq!(builder(&buildkit).as_deref(), Some("buildkit"));
    assert_eq!(builder(&classic).as_deref(), Some("classic"));
}

#[test]
fn the_sample_with_links_modes_and_ignores_is_built_right() {
    let env = TestEnv::with_samples();
    let image = env.client().ensure("langgraph").unwrap();
    let files = env.engine.files(&image.reference);
    let paths: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(
        paths,
        [
            "workspace/Dockerfile",
            "workspace/VERSION",
            "workspace/bin/workspace",
            "workspace/drafts/ready.txt",
            "workspace/greeting",
            "workspace/skills/grüße.md",
            "workspace/tools/about.txt",
            "workspace/tools/hello",
        ],
        ".dockerignore excludes files, except its exceptions"
    );
    assert_eq!(files["workspace/tools/hello"].mode, 0o755);
    assert_eq!(files["workspace/tools/about.txt"].mode, 0o644);
    assert_eq!(
        files["workspace/greeting"].link.as_deref(),
        Some("skills/grüße.md")
    );
    let sample = std::fs::read_to_string(
        crate::support::required_var("MOL_TEST_TEMPLATES") + "/langgraph/skills/grüße.md",
    );
    assert_eq!(files["workspace/skills/grüße.md"].content, sample.unwrap());
}

#[test]
fn every_sample_template_can_be_built() {
    let env = TestEnv::with_samples();
    let client = env.client();
    for entry in std::fs::read_dir(crate::support::required_var("MOL_TEST_TEMPLATES")).unwrap() {
        let runtime = entry.unwrap().file_name().into_string().unwrap();
        client.ensure(&runtime).unwrap();
    }
}

#[test]
fn the_image_has_the_files_as_git_checks_them_out() {
    let env = TestEnv::new();
    env.template(
        "hermes",
        Files::from([
            ("Dockerfile".to_owned(), file("FROM scratch\nCOPY . /\n")),
            (".gitattributes".to_owned(), file("*.txt text eol=crlf\n")),
            ("windows.txt".to_owned(), file("one\ntwo\n")),
            ("unix.dat".to_owned(), file("one\ntwo\n")),
            ("deep/er/file".to_owned(), file("deep")),
            (
                "dangling".to_owned(),
                json!({ "text": "/nowhere", "mode": "120000" }),
            ),
            ("empty".to_owned(), file("")),
        ]),
    );
    let image = env.client().ensure("hermes").unwrap();
    let files = env.engine.files(&image.reference);
    assert_eq!(files["windows.txt"].content, "one\r\ntwo\r\n");
    assert_eq!(files["unix.dat"].content, "one\ntwo\n");
    assert_eq!(files["deep/er/file"].content, "deep");
    assert_eq!(files["empty"].content, "");
    assert_eq!(files["dangling"].link.as_deref(), Some("/nowhere"));
    assert!(
        !files.keys().any(|path| path.starts_with(".git/")),
        "{files:?}"
    );
}

#[test]
fn gitattributes_with_bom_or_crlf_apply_as_in_a_git_clone() {
    const MARK: &str = "\u{feff}";
    const ALL: &str = "*.txt text eol=crlf\n";
    let env = TestEnv::new();
    let client = env.client();
    for attributes in [
        // On checkout git does not skip a byte-order mark: it becomes part of the first line's pattern.
        format!("{MARK}{ALL}"),
        format!("{MARK}{ALL}b.txt text eol=crlf\n"),
        format!("{MARK}\n{ALL}"),
        format!("{MARK}\r\n{ALL}"),
        format!("{MARK}# Windows\n{ALL}"),
        format!("{MARK}[attr]windows text eol=crlf\n*.txt windows\n"),
        format!("{MARK}# Windows\n{MARK}{ALL}"),
        format!("{MARK}{MARK}{ALL}"),
        format!("\n{MARK}{ALL}"),
        format!("{MARK}\"*.txt\" text eol=crlf\n"),
        format!("{ALL}*.txt{MARK} -text\n"),
        format!("a.txt {MARK}text eol=crlf\n"),
        // The byte-order mark of UTF-7, and a line that only begins like it.
        format!("+/v8{ALL}"),
        format!("+/v9{ALL}b.txt text eol=crlf\n"),
        format!("+b.txt text eol=crlf\n{ALL}"),
        // CRLF, and a lone CR.
        "*.txt text eol=crlf\r\nb.txt -text\r\n".to_owned(),
        "*.txt text\reol=crlf\n".to_owned(),
        "a.txt text eol=crlf\rb.txt text eol=crlf\n".to_owned(),
        // A line that git ignores because of its length, and a file with a NUL byte.
        format!("{MARK}{}\n{ALL}", "x".repeat(3000)),
        format!("{ALL}\0\nb.txt -text\n"),
    ] {
        let names = ["a.txt", "b.txt", "\u{feff}c.txt", "sub/a.txt"];
        let mut files: Files = names
            .iter()
            .map(|name| ((*name).to_owned(), file("one\ntwo\n")))
            .collect();
        files.insert("Dockerfile".to_owned(), file("FROM scratch\nCOPY . /\n"));
        files.insert(".gitattributes".to_owned(), file(&attributes));
        let below = format!("{MARK}{ALL}");
        files.insert("sub/.gitattributes".to_owned(), file(&below));
        let sha = env.template("hermes", files);

        let clone = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            let command = command.args(arguments).current_dir(clone.path());
            succeed(
                command
                    .env_clear()
                    .env("PATH", "/usr/bin:/bin")
                    .env("HOME", clone.path()),
            );
        };
        let url = format!("{}hermes", env.server.repo_prefix);
        git(&["clone", "--quiet", &url, "tree"]);
        client.ensure("hermes").unwrap();
        let tree = env.cache().join("hermes").join(&sha[..12]);
        for name in names
            .into_iter()
            .chain([".gitattributes", "sub/.gitattributes"])
        {
            let read = |root: &Path| std::fs::read_to_string(root.join(name)).unwrap();
            let ours = read(&tree);
            assert_eq!(
                ours,
                read(&clone.path().join("tree")),
                "{name}: {attributes:?}"
            );
        }
    }
}

#[test]
fn image_labels_name_the_source_and_the_commit() {
    let env = TestEnv::new();
    let sha = env.template("hermes", copying("one"));
    let image = env.client().ensure("hermes").unwrap();
    let expected = BTreeMap::from([
        (
            "org.opencontainers.image.source",
            format!("{}hermes", env.server.repo_prefix),
        ),
        ("org.opencontainers.image.revision", sha),
        ("ai.moleculesai.libmol.runtime", "hermes".to_owned()),
        ("ai.moleculesai.libmol.platform", "linux/amd64".to_owned()),
    ]);
    let labels = env.engine.labels(&image.reference);
    for (name, value) in expected {
        assert_eq!(labels.get(name), Some(&value), "{name}");
    }
}

#[test]
fn a_gitea_server_below_a_url_path_works() {
    let env = TestEnv::with(&["--base-path", "/git"]);
    let sha = env.template("hermes", copying("one"));
    let image = env.client().ensure("hermes").unwrap();
    assert_eq!(image.commit_sha, sha);
    let requests = env.server.requests();
    assert!(!of_service(&requests, "git").is_empty());
    assert!(
        requests
            .iter()
            .all(|request| request.path.starts_with("/git/")),
        "{requests:?}"
    );
}

#[test]
fn each_runtime_has_its_own_image() {
    let env = TestEnv::new();
    env.template("hermes", copying("of hermes"));
    env.template("autogen", copying("of autogen"));
    let client = env.client();
    for runtime in ["hermes", "autogen"] {
        let image = client.ensure(runtime).unwrap();
        assert_eq!(
            env.engine.read(&image.reference, "content"),
            format!("of {runtime}")
        );
        assert_eq!(image.runtime, runtime);
    }
}

#[test]
fn a_template_may_consist_of_only_a_dockerfile() {
    let env = TestEnv::new();
    env.template(
        "codex",
        dockerfile("FROM scratch\nCOPY Dockerfile /as-sent\n"),
    );
    let image = env.client().ensure("codex").unwrap();
    let files = env.engine.files(&image.reference);
    assert_eq!(files.keys().collect::<Vec<_>>(), ["as-sent"]);
}

#[test]
fn the_classic_builder_reports_every_step_and_its_output_in_order() {
    let env = TestEnv::new();
    // No engine has run this step before, so its build cache has no result for it.
    let text = format!("FROM {BUSYBOX}\nRUN echo says {}\n", env.isolation);
    let sha = env.template("hermes", dockerfile(&text));
    let client = env.client_with(&[(OptionName::DockerBuildkit, "0")]);
    let image = client.ensure("hermes").unwrap();
    // There are no export events: each step of the classic builder is an image already.
    let mut rest = vec![
        Kind::LookupStarted,
        Kind::LookupDone,
        Kind::CacheMiss,
        Kind::FetchStarted,
        Kind::FetchDone,
        Kind::BuildStarted,
        Kind::ContextDone,
        Kind::StepStarted,
        Kind::Log,
        Kind::StepDone,
        Kind::Tagged,
    ];
    let events = client.events();
    for event in &events {
        let step = event.step_name.as_deref();
        let other_step = step.is_some_and(|step| !step.contains(&env.isolation));
        if rest.first() == Some(&event.kind) && !other_step {
            rest.remove(0);
        }
    }
    assert!(rest.is_empty(), "{rest:?} missing in {events:#?}");
    assert_eq!(events.last().unwrap().kind, Kind::Tagged);
    let miss = client.wait_for(Kind::CacheMiss, |_| true);
    assert_eq!(miss.r#ref, Some(env.reference("hermes", &sha)));
    let begun = client.wait_for(Kind::BuildStarted, |_| true);
    assert_eq!(begun.builder.as_deref(), Some("classic"));
    assert_eq!(begun.endpoint.as_deref(), Some(env.engine.url.as_str()));
    let said = client.wait_for_line(&format!("says {}", env.isolation));
    assert!(said.step_name.unwrap().contains(&env.isolation));
    let tagged = client.wait_for(Kind::Tagged, |_| true);
    assert_eq!(tagged.latest_ref, Some(image.latest_reference));
}
