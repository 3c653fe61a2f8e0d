//! Valid templates, and the errors for templates that cannot be built.

use mol::event::Kind;
use mol::{Code, OptionName};
use serde_json::json;

use crate::support::engine::{BUSYBOX, end_sleep_of, is_running, wait_until_gone};
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{Files, TestClient, TestEnv, file, script, unique};

const BUILDERS: [&str; 2] = ["1", "0"];

fn with_builder(env: &TestEnv, buildkit: &str) -> TestClient {
    env.client_with(&[(OptionName::DockerBuildkit, buildkit)])
}

/// The call fails with this message before the build.
fn assert_no_dockerfile(env: &TestEnv, says: &str) {
    let client = env.client();
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::NoDockerfile, "{error:?}");
    assert!(error.message().contains(says), "{error:?}");
    let repository = format!("{}hermes", env.server.repo_prefix);
    assert!(error.message().contains(&repository), "{error:?}");
    assert!(error.hint.contains("Dockerfile"), "{error:?}");
    assert_eq!(error.runtime, "hermes");
    assert_eq!(client.count(Kind::BuildStarted), 0);
    assert!(env.engine.references_of(&env.isolation).is_empty());
}

#[test]
fn a_template_without_a_dockerfile_is_refused() {
    let env = TestEnv::new();
    env.template("hermes", Files::from([("README".to_owned(), file("none"))]));
    assert_no_dockerfile(&env, "no Dockerfile at its root");
}

#[test]
fn a_dockerfile_in_a_subfolder_or_in_lower_case_does_not_count() {
    let env = TestEnv::new();
    env.template(
        "hermes",
        Files::from([
            ("docker/Dockerfile".to_owned(), file("FROM scratch\n")),
            ("dockerfile".to_owned(), file("FROM scratch\n")),
        ]),
    );
    assert_no_dockerfile(&env, "no Dockerfile at its root");
}

#[test]
fn a_dockerfile_that_is_a_folder_is_refused() {
    let env = TestEnv::new();
    env.template(
        "hermes",
        Files::from([("Dockerfile/x".to_owned(), file("FROM scratch\n"))]),
    );
    assert_no_dockerfile(&env, "folder");
}

#[test]
fn a_dockerfile_symlink_out_of_the_template_is_refused() {
    let env = TestEnv::new();
    for target in ["/etc/passwd", "../../../../../../etc/passwd", "nowhere"] {
        let link = json!({ "text": target, "mode": "120000" });
        env.template("hermes", Files::from([("Dockerfile".to_owned(), link)]));
        assert_no_dockerfile(&env, "Dockerfile");
    }
}

#[test]
fn a_template_with_a_fixed_dockerfile_is_built() {
    let env = TestEnv::new();
    env.template("hermes", Files::from([("README".to_owned(), file("none"))]));
    let client = env.client();
    client.ensure_err("hermes");
    env.template("hermes", dockerfile(PLAIN));
    client.ensure("hermes").unwrap();
}

#[test]
fn a_failed_step_is_reported_with_the_end_of_its_output() {
    for buildkit in BUILDERS {
        let env = TestEnv::new();
        let text = format!(
            // The pause keeps standard output and error in order: each comes to the engine through its own pipe.
            "FROM {BUSYBOX}\nRUN true\nRUN seq 1 200; sleep 0.5; echo about to fail >&2; echo {}; exit 42\nRUN echo never\n",
            env.isolation
        );
        env.template("hermes", dockerfile(&text));
        let client = with_builder(&env, buildkit);
        let error = client.ensure_err("hermes");

        assert_eq!(error.code, Code::BuildFailed, "{error:?}");
        assert!(error.message().contains("exit code 42"), "{error:?}");
        assert_eq!(error.message().matches("seq 1 200").count(), 1, "{error:?}");
        assert!(
            error.message().contains(&env.server.repo_prefix),
            "{error:?}"
        );
        assert!(
            !error.hint.is_empty() && error.runtime == "hermes",
            "{error:?}"
        );
        let build = error.build.as_deref().expect("the error has build details");
        assert!(build.step.contains("RUN seq 1 200"), "{build:?}");
        assert_eq!((build.line, build.exit_code), (3, 42), "{build:?}");
        assert!(
            error.message().contains("line 3 of the Dockerfile"),
            "{error:?}"
        );
        let excerpt: Vec<&str> = build.excerpt.lines().collect();
        let [first, second, failed, after] = excerpt[..] else {
            panic!("{build:?}");
        };
        assert_eq!(first, format!("  1 | FROM {BUSYBOX}"));
        assert_eq!((second, after), ("  2 | RUN true", "  4 | RUN echo never"));
        assert!(failed.starts_with("> 3 | RUN seq 1 200; "), "{build:?}");
        let tail: Vec<&str> = build.log_tail.lines().collect();
        assert!(tail.contains(&"about to fail"), "{build:?}");
        assert!(
            tail.contains(&"200") && !tail.contains(&"100"),
            "only the last lines are kept: {build:?}"
        );
        assert!(tail.len() <= 50, "{build:?}");
        assert!(client.count(Kind::Log) >= 201, "one event per line");
        assert!(env.engine.references_of(&env.isolation).is_empty());
    }
}

#[test]
fn a_failed_step_is_also_an_event() {
    for buildkit in BUILDERS {
        let env = TestEnv::new();
        let text = format!("FROM {BUSYBOX}\nRUN echo {}; exit 7\n", env.isolation);
        env.template("hermes", dockerfile(&text));
        let client = with_builder(&env, buildkit);
        client.ensure_err("hermes");
        let done = client.wait_for(Kind::StepDone, |event| event.error.is_some());
        let error = done.error.unwrap();
        assert!(error.contains("code: 7"), "{error}");
        assert!(done.step_name.unwrap().contains("exit 7"));
    }
}

#[test]
fn an_invalid_dockerfile_is_a_failed_build() {
    for buildkit in BUILDERS {
        for (text, says) in [
            ("FROM scratch\nFLY me to the moon\n", "FLY"),
            ("RUN true\n", "no build stage in current context"),
            ("FROM scratch\nCOPY missing-file /\n", "missing-file"),
        ] {
            let env = TestEnv::new();
            env.template("hermes", dockerfile(text));
            let error = with_builder(&env, buildkit).ensure_err("hermes");
            assert_eq!(error.code, Code::BuildFailed, "{error:?}");
            assert!(
                error
                    .message()
                    .to_uppercase()
                    .contains(&says.to_uppercase()),
                "{error:?}"
            );
        }
    }
}

#[test]
fn an_empty_dockerfile_is_a_failed_build() {
    for buildkit in BUILDERS {
        let env = TestEnv::new();
        env.template("hermes", dockerfile(""));
        let error = with_builder(&env, buildkit).ensure_err("hermes");
        assert_eq!(error.code, Code::BuildFailed, "{error:?}");
    }
}

#[test]
fn build_output_arrives_line_by_line_during_the_build() {
    for buildkit in BUILDERS {
        let env = TestEnv::new();
        let word = unique();
        let text = format!(
            "FROM {BUSYBOX}\nRUN echo begun {word}; sleep 600; echo -e '\\033[31mred\\033[0m\\n'\n"
        );
        env.template("hermes", dockerfile(&text));
        let client = with_builder(&env, buildkit);
        let call = client.begin("hermes");
        client.wait_for(Kind::Log, |event| {
            event.line.as_deref() == Some(&format!("begun {word}"))
        });
        assert!(
            is_running(&word),
            "the line must arrive before the build ends"
        );
        end_sleep_of(&word);
        call.end().unwrap();
        let red = client.wait_for(Kind::Log, |event| event.line.as_deref() == Some("red"));
        assert!(red.step_name.unwrap().contains(&word));
    }
}

#[test]
fn a_very_long_output_line_is_accepted_and_truncated() {
    for buildkit in BUILDERS {
        let env = TestEnv::new();
        let text = format!(
            "FROM {BUSYBOX}\nRUN head -c 8000000 /dev/zero | tr '\\0' x; echo; echo after {}; exit 3\n",
            env.isolation
        );
        env.template("hermes", dockerfile(&text));
        let error = with_builder(&env, buildkit).ensure_err("hermes");
        assert!(error.message().len() < 4096);
        let build = error.build.expect("the error has build details");
        assert!(
            build.log_tail.contains("after "),
            "{}",
            build.log_tail.len()
        );
        assert!(build.log_tail.len() < 64 * 1024, "{}", build.log_tail.len());
    }
}

#[test]
fn an_image_is_not_tagged_before_its_build_succeeds() {
    for buildkit in ["1", "0"] {
        let env = TestEnv::new();
        let client = env.client_with(&[(OptionName::DockerBuildkit, buildkit)]);
        let references = || env.engine.references_of(&env.isolation);
        for (end, left) in [("exit 1", 0), ("true", 2)] {
            let word = unique();
            // One layer already exists while the last step runs.
            let text = format!(
                "FROM {BUSYBOX}\nCOPY Dockerfile /\nRUN echo running {word}; sleep 600; {end}\n"
            );
            env.template("hermes", dockerfile(&text));
            let call = client.begin("hermes");
            client.wait_for_line(&word);
            let early = references();
            assert!(early.is_empty(), "{buildkit} {end}: {early:?}");
            end_sleep_of(&word);
            assert_eq!(call.end().is_ok(), left > 0, "{buildkit} {end}");
            assert_eq!(references().len(), left, "{buildkit} {end}");
        }
    }
}

#[test]
fn a_build_silent_for_the_stall_grace_is_stopped() {
    let env = TestEnv::new();
    let word = unique();
    let text = format!("FROM {BUSYBOX}\nRUN echo {word}; sleep 600; true\n");
    env.template("hermes", dockerfile(&text));
    let error = env
        .client_with(&[(OptionName::StallGrace, "10s")])
        .ensure_err("hermes");
    assert_eq!(error.code, Code::Stalled, "{error:?}");
    assert!(
        error.hint.contains("MOLECULE_BUILD_STALL_GRACE_S"),
        "{error:?}"
    );
    assert!(error.build.unwrap().step.contains(&word));
    wait_until_gone(&word);
}

#[test]
fn a_slow_build_with_output_is_not_stopped() {
    let env = TestEnv::new();
    let text = format!(
        "FROM {BUSYBOX}\nRUN for i in $(seq 24); do echo {} $i; sleep 0.5; done\n",
        env.isolation
    );
    env.template("hermes", dockerfile(&text));
    // The pauses are far shorter, and the whole build is longer.
    env.client_with(&[(OptionName::StallGrace, "10s")])
        .ensure("hermes")
        .unwrap();
}

#[test]
fn the_executable_bit_is_kept() {
    let env = TestEnv::new();
    env.template(
        "hermes",
        Files::from([
            (
                "Dockerfile".to_owned(),
                file(&format!("FROM {BUSYBOX}\nCOPY . /t/\nRUN /t/go > /out\n")),
            ),
            ("go".to_owned(), script("#!/bin/sh\necho ran\n")),
        ]),
    );
    let image = env.client().ensure("hermes").unwrap();
    assert_eq!(env.engine.read(&image.reference, "out"), "ran\n");
}

#[test]
fn buildkit_specific_syntax_works() {
    let env = TestEnv::new();
    let text = format!(
        "FROM {BUSYBOX} AS base\nRUN --mount=type=cache,target=/cache echo {} > /cache/x && cat /cache/x > /out\nFROM scratch\nCOPY --from=base --chmod=600 /out /\n",
        env.isolation
    );
    env.template("hermes", dockerfile(&text));
    let image = env.client().ensure("hermes").unwrap();
    let files = env.engine.files(&image.reference);
    assert_eq!(files["out"].content.trim(), env.isolation);
    assert_eq!(files["out"].mode, 0o600);
}

#[test]
fn runtime_version_is_sent_only_if_the_pin_option_is_set() {
    let env = TestEnv::new();
    let files = |pin: &str| {
        let text = format!(
            "FROM {BUSYBOX}\nARG RUNTIME_VERSION=none\nRUN echo \"$RUNTIME_VERSION\" > /version # {}\n",
            env.isolation
        );
        Files::from([
            ("Dockerfile".to_owned(), file(&text)),
            (".runtime-version".to_owned(), file(pin)),
        ])
    };
    let pinned = |pin: &str, on: &str| {
        env.template("hermes", files(pin));
        let client = env.client_with(&[(OptionName::RuntimeVersionPin, on)]);
        let image = client.ensure("hermes").unwrap();
        (
            env.engine
                .read(&image.reference, "version")
                .trim()
                .to_owned(),
            client,
        )
    };
    assert_eq!(pinned("1.0.0", "").0, "none");
    assert_eq!(pinned("1.0.1", "0").0, "none");
    assert_eq!(pinned(" @scope/pkg@v1.2.3 \nmore\n", "1").0, "1.2.3");

    let (version, client) = pinned("latest; rm -rf /\n", "1");
    assert_eq!(version, "none", "an invalid version is not used");
    let warning = client.wait_for(Kind::Warning, |_| true);
    assert!(warning.message.contains(".runtime-version"), "{warning:?}");
    assert!(warning.hint.is_some());
}

#[test]
fn a_template_without_a_version_file_builds_with_the_pin_option() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let client = env.client_with(&[(OptionName::RuntimeVersionPin, "1")]);
    client.ensure("hermes").unwrap();
    assert_eq!(client.count(Kind::Warning), 0);
}

#[test]
fn two_commits_with_the_same_tree_get_two_references() {
    let env = TestEnv::new();
    let first = env.template("hermes", dockerfile(PLAIN));
    let second = env.template("hermes", dockerfile(PLAIN));
    assert_ne!(first, second);
    let client = env.client();
    let image = client.ensure("hermes").unwrap();
    assert_eq!(image.reference, env.reference("hermes", &second));
    let label = env.engine.labels(&image.reference)["org.opencontainers.image.revision"].clone();
    assert_eq!(label, second);
}
