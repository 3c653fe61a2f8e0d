//! The C ABI, as a C program sees it: compiled without a warning, linked in both ways, run as a
//! process of its own.

use std::path::Path;
use std::time::Instant;

use mol::Code;
use serde_json::json;

use crate::support::child::{
    self, BOTH, Link, command, compiler, field, program, source, succeed, text,
};
use crate::support::daemon::write_program;
use crate::support::engine::{BUSYBOX, is_running};
use crate::support::server::{dockerfile, of_service, script};
use crate::support::sshd::Sshd;
use crate::support::{CANCEL_LIMIT, Files, TestEnv, file, unique, wait_until};

const PLAIN: &str = "FROM scratch\nCOPY Dockerfile /\n";

#[test]
fn a_c_program_gets_an_image_with_the_static_and_the_shared_library() {
    for link in BOTH {
        let env = TestEnv::new();
        let sha = env.template("hermes", dockerfile(PLAIN));
        let ensure = program("ensure", link);
        let first = succeed(command(&env, &ensure).arg("hermes"));
        assert_eq!(field(&first, "mode"), "local");
        assert_eq!(field(&first, "prefix"), "molecule-local");
        assert_eq!(field(&first, "masked"), "https://***@host/?t=***");
        assert_eq!(field(&first, "reference"), env.reference("hermes", &sha));
        assert_eq!(field(&first, "latest"), env.latest("hermes"));
        assert_eq!(field(&first, "commit"), sha);
        assert_eq!(field(&first, "platform"), "linux/amd64");
        assert_eq!(field(&first, "hit"), "0");
        assert_eq!(
            env.engine.id(&field(&first, "reference")),
            Some(field(&first, "id"))
        );
        let second = succeed(command(&env, &ensure).arg("hermes"));
        assert_eq!(field(&second, "hit"), "1");
        assert_eq!(second.stderr, b"", "the library writes nothing");
    }
}

#[test]
fn a_c_program_gets_errors_with_every_field() {
    let env = TestEnv::new();
    let text = format!("FROM {BUSYBOX}\nRUN echo says {}; exit 9\n", env.isolation);
    env.template("hermes", dockerfile(&text));
    for link in BOTH {
        let ensure = program("ensure", link);
        let output = command(&env, &ensure).arg("hermes").output().unwrap();
        assert_eq!(output.status.code(), Some(Code::BuildFailed as i32));
        assert_eq!(field(&output, "error"), "build_failed");
        assert_eq!(field(&output, "runtime"), "hermes");
        assert!(field(&output, "step").contains("exit 9"));
        assert!(field(&output, "tail").contains(&env.isolation));
        assert!(!field(&output, "hint").is_empty());

        let output = command(&env, &ensure).arg("codex").output().unwrap();
        assert_eq!(output.status.code(), Some(Code::RepoNotFound as i32));
        assert_eq!(
            field(&output, "url"),
            format!("{}codex", env.server.repo_prefix)
        );
        assert_eq!(output.stderr, b"");
    }
}

#[test]
fn a_timeout_from_c_is_a_deadline() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.server
        .faults(json!([{ "match": "/api/", "hang": true }]));
    let output = command(&env, &program("ensure", Link::Static))
        .args(["hermes", "300"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(Code::DeadlineExceeded as i32));
}

#[test]
fn a_c_program_takes_events_and_one_end() {
    for link in BOTH {
        let env = TestEnv::new();
        let sha = env.template("hermes", dockerfile(PLAIN));
        let output = succeed(command(&env, &program("queue", link)).arg("hermes"));
        assert_eq!(field(&output, "reference"), env.reference("hermes", &sha));
        let text = text(&output);
        let events: Vec<serde_json::Value> = text
            .lines()
            .filter_map(|line| line.strip_prefix("event "))
            .map(|json| serde_json::from_str(json).expect("each event is one JSON object"))
            .collect();
        let kinds: Vec<&str> = events
            .iter()
            .map(|event| event["kind"].as_str().unwrap())
            .collect();
        for kind in [
            "lookup_started",
            "lookup_done",
            "cache_miss",
            "fetch_done",
            "build_started",
            "step_done",
            "tagged",
        ] {
            assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
        }
        for event in events {
            let event = event.as_object().unwrap();
            assert!(
                event
                    .values()
                    .all(|value| !value.is_object() && !value.is_array() && !value.is_null()),
                "flat: {event:?}"
            );
            assert!(
                event["message"].is_string()
                    && event["runtime"] == "hermes"
                    && event["call"].is_u64()
            );
        }
    }
}

#[test]
fn a_c_program_cancels_and_the_build_is_gone() {
    for link in BOTH {
        let env = TestEnv::new();
        let word = unique();
        let text = format!("FROM {BUSYBOX}\nRUN echo go $((1+1)) {word}; sleep 600; true\n");
        env.template("hermes", dockerfile(&text));
        let output = command(&env, &program("queue", link))
            .args(["hermes", "go 2"])
            .output()
            .unwrap();
        let since = Instant::now();
        assert_eq!(field(&output, "error"), "canceled");
        wait_until("the end of the build's process", || {
            (!is_running(&word)).then_some(())
        });
        assert!(since.elapsed() < CANCEL_LIMIT);
    }
}

#[test]
fn every_parameter_refuses_what_it_must_not_get() {
    for link in BOTH {
        let env = TestEnv::new();
        let output = succeed(&mut command(&env, &program("refusals", link)));
        assert_eq!(text(&output), "all refused\n");
        assert!(env.server.requests().is_empty());
    }
}

#[test]
fn a_host_keeps_its_signals_its_children_and_its_output() {
    for link in BOTH {
        let env = TestEnv::new();
        // Long enough to be looked at.
        let text = format!("FROM {BUSYBOX}\nRUN echo {}; sleep 1\n", env.isolation);
        env.template("hermes", dockerfile(&text));
        let output = succeed(command(&env, &program("host", link)).arg("hermes"));
        assert_eq!(child::text(&output), "as it was\n");
    }
}

#[test]
fn a_host_forks_and_executes_while_a_build_runs_and_the_child_is_a_host_again() {
    for link in BOTH {
        let env = TestEnv::new();
        let text = format!("FROM {BUSYBOX}\nRUN echo {}; sleep 1\n", env.isolation);
        env.template("hermes", dockerfile(&text));
        let host = program("host", link);
        let output = succeed(command(&env, &host).args(["after", "hermes"]));
        assert_eq!(child::text(&output), "as it was\n");
        let builds = of_service(&env.server.requests(), "git").len();
        assert!(builds > 0, "the first made it");
    }
}

#[test]
fn a_client_that_is_freed_lets_everyone_go() {
    let env = TestEnv::new();
    env.server
        .faults(json!([{ "match": "/api/", "hang": true }]));
    let output = succeed(command(&env, &program("close", Link::Static)).arg("hermes"));
    assert_eq!(text(&output), "closed\n");
}

#[test]
fn a_value_in_the_environment_that_is_no_text_is_an_error_that_names_it() {
    use std::os::unix::ffi::OsStrExt;
    let env = TestEnv::new();
    let output = command(&env, &program("ensure", Link::Static))
        .env(
            "MOLECULE_LOCAL_TEMPLATE_BRANCH",
            std::ffi::OsStr::from_bytes(b"\xff"),
        )
        .arg("hermes")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(Code::InvalidOption as i32));
    assert!(field(&output, "message").contains("MOLECULE_LOCAL_TEMPLATE_BRANCH"));
    assert!(env.server.requests().is_empty());
}

#[test]
fn the_job_is_done_with_an_empty_path() {
    for link in BOTH {
        let env = TestEnv::new();
        let sha = env.template("hermes", dockerfile(PLAIN));
        let output = succeed(
            command(&env, &program("ensure", link))
                .env("PATH", "")
                .arg("hermes"),
        );
        assert_eq!(field(&output, "reference"), env.reference("hermes", &sha));
    }
}

#[test]
fn a_working_directory_that_is_gone_stops_nothing() {
    let env = TestEnv::new();
    let sshd = Sshd::start(env.scratch());
    // A helper, which the classic builder needs whether the image is there or not.
    let base = format!("registry-{}.example/base:1", env.isolation);
    env.engine.tag(BUSYBOX, &base);
    let (docker, asked) = (env.scratch().join("docker"), env.scratch().join("asked"));
    std::fs::create_dir(&docker).unwrap();
    std::fs::write(
        docker.join("config.json"),
        r#"{"credsStore": "of-the-test"}"#,
    )
    .unwrap();
    let helper = format!("cat >> {}; echo '{{}}'", asked.display());
    let programs = env.scratch().join("programs");
    write_program(&programs, "docker-credential-of-the-test", &helper);
    let gone_script = r#"mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@""#;
    let ssh = sshd.url();
    let engines = [
        (env.engine.url.as_str(), "1"),
        (&env.engine.url, "0"),
        (&ssh, "1"),
    ];
    for (number, (engine, buildkit)) in engines.into_iter().enumerate() {
        let files = Files::from([
            (
                "Dockerfile".to_owned(),
                file(&format!(
                    "FROM {base}\nCOPY . /files/\nRUN true # {number}\n"
                )),
            ),
            (
                ".gitattributes".to_owned(),
                file("*.txt eol=crlf\n*.w working-tree-encoding=UTF-16LE\n"),
            ),
            (".dockerignore".to_owned(), file("ignored\n")),
            ("a/b.txt".to_owned(), file("x\n")),
            ("a/b.w".to_owned(), file("x")),
            ("run".to_owned(), script("#!/bin/sh\n")),
        ]);
        let sha = env.template("hermes", files);
        let mut command = command(&env, Path::new("/bin/sh"));
        let gone = env.scratch().join("gone");
        command
            .args(["-c", gone_script])
            .arg(gone)
            .arg(program("ensure", Link::Static));
        let path = format!("{}:{}:/usr/bin:/bin", programs.display(), sshd.client());
        command
            .env("DOCKER_HOST", engine)
            .env("DOCKER_BUILDKIT", buildkit)
            .env("DOCKER_CONFIG", &docker)
            .env("PATH", path);
        let output = succeed(command.arg("hermes"));
        let reference = env.reference("hermes", &sha);
        assert_eq!(field(&output, "reference"), reference);
        assert_eq!(env.engine.read(&reference, "files/a/b.txt"), "x\r\n");
    }
    let asked = std::fs::read_to_string(asked).unwrap();
    assert!(asked.contains(base.split('/').next().unwrap()), "{asked}");
    env.engine.remove_all_of(&env.isolation);
    env.engine.untag(&base);
}

#[test]
fn no_program_is_started_that_happens_to_be_on_the_path() {
    let env = TestEnv::new();
    env.template(
        "hermes",
        Files::from([
            ("Dockerfile".to_owned(), file(PLAIN)),
            ("page".to_owned(), file("text")),
            // A clone would start a filter program for this, if one is configured.
            (".gitattributes".to_owned(), file("page filter=trap\n")),
            ("run".to_owned(), script("#!/bin/sh\n")),
        ]),
    );
    let traps = env.scratch().join("bin");
    let sprung = env.scratch().join("sprung");
    std::fs::create_dir(&traps).unwrap();
    for name in [
        "git",
        "docker",
        "docker-buildx",
        "docker-credential-trap",
        "sh",
        "trap",
        "ssh",
        "podman",
    ] {
        let path = traps.join(name);
        std::fs::write(
            &path,
            format!("#!/bin/sh\necho {name} \"$@\" >> {}\n", sprung.display()),
        )
        .unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
    }
    let config = "[filter \"trap\"]\n\tsmudge = trap\n\tclean = trap\n\tprocess = trap\n[core]\n\tfsmonitor = trap\n\tsshCommand = trap\n";
    std::fs::write(env.scratch().join(".gitconfig"), config).unwrap();
    succeed(
        command(&env, &program("ensure", Link::Static))
            .env("PATH", &traps)
            .arg("hermes"),
    );
    assert!(
        !sprung.exists(),
        "{}",
        std::fs::read_to_string(&sprung).unwrap()
    );
}

#[test]
fn the_users_git_configuration_changes_nothing() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    let nowhere = format!(
        "[url \"http://127.0.0.1:1/\"]\n\tinsteadOf = {}\n[core]\n\tautocrlf = true\n",
        env.server.url
    );
    std::fs::write(env.scratch().join(".gitconfig"), nowhere).unwrap();
    let output = succeed(command(&env, &program("ensure", Link::Static)).arg("hermes"));
    assert_eq!(field(&output, "commit"), sha);
    let image = env.engine.read(&field(&output, "reference"), "Dockerfile");
    assert_eq!(image, PLAIN);
    assert!(!of_service(&env.server.requests(), "git").is_empty());
}

#[test]
fn the_header_compiles_as_cpp17() {
    succeed(
        compiler(true)
            .args([
                "-std=c++17",
                "-Wall",
                "-Wextra",
                "-Wpedantic",
                "-Werror",
                "-fsyntax-only",
                "-I",
            ])
            .arg(source("include"))
            .arg(source("tests/c/header.cc")),
    );
}

#[test]
fn the_header_compiles_as_the_next_c_too() {
    let header = source("include/mol.h");
    for standard in ["-std=c99", "-std=c11", "-std=c17", "-std=c2x"] {
        succeed(
            compiler(false)
                .args([
                    standard,
                    "-Wall",
                    "-Wextra",
                    "-Wpedantic",
                    "-Werror",
                    "-fsyntax-only",
                    "-x",
                    "c",
                ])
                .arg(&header),
        );
    }
}

#[test]
fn the_saas_mode_is_told_to_c_verbatim() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let output = command(&env, &program("ensure", Link::Static))
        .env("MOLECULE_IMAGE_REGISTRY", " registry.example/x ")
        .arg("hermes")
        .output()
        .unwrap();
    assert_eq!(field(&output, "mode"), "saas");
    assert_eq!(field(&output, "prefix"), " registry.example/x ");
    child::text(&output);
}
