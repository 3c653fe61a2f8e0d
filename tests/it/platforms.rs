//! Foreign platforms: one that the engine cannot run is refused before any work, and one that it
//! emulates causes a warning.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mol::event::Kind;
use mol::{Code, OptionName};
use serde_json::json;

use crate::support::child::succeed;
use crate::support::emulation::{Emulation, impossible};
use crate::support::engine::Engine;
use crate::support::server::{PLAIN, dockerfile, of_service};
use crate::support::{Files, TestEnv, file, wait_until};

/// A template whose only RUN step runs this program.
fn with_program(program: &[u8]) -> Files {
    let program = BASE64_STANDARD.encode(program);
    Files::from([
        (
            "Dockerfile".to_owned(),
            file("FROM scratch\nCOPY prog /\nRUN [\"/prog\"]\n"),
        ),
        (
            "prog".to_owned(),
            json!({ "base64": program, "mode": "100755" }),
        ),
    ])
}

/// An arm64 program that writes the file `/written`.
fn arm64_program(folder: &Path) -> Vec<u8> {
    let source = folder.join("main.go");
    let text = r#"package main

import "syscall"

func main() {
	file, err := syscall.Open("/written", syscall.O_CREAT|syscall.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	if _, err := syscall.Write(file, []byte("by a program for arm64")); err != nil {
		panic(err)
	}
}
"#;
    std::fs::write(&source, text).unwrap();
    succeed(
        Command::new("go")
            .current_dir(folder)
            .envs([("GOARCH", "arm64"), ("CGO_ENABLED", "0"), ("GOWORK", "off")])
            .args(["build", "-ldflags=-s -w", "-o", "prog", "main.go"]),
    );
    std::fs::read(folder.join("prog")).unwrap()
}

#[test]
fn an_unsupported_platform_is_refused_before_the_fetch() {
    let (arch, _) = impossible();
    for buildkit in ["1", "0"] {
        let env = TestEnv::new();
        env.template("hermes", dockerfile(PLAIN));
        let platform = format!("linux/{arch}");
        let client = env.client_with(&[
            (OptionName::Platform, &platform),
            (OptionName::DockerBuildkit, buildkit),
        ]);
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::PlatformUnsupported, "{error:?}");
        assert!(error.message().contains(&platform), "{error:?}");
        assert_eq!(error.url, "", "the cause is not the template");
        assert!(error.message().contains("linux/amd64"), "{error:?}");
        assert!(
            error.hint.contains(&format!("--install {arch}")),
            "{error:?}"
        );
        assert!(error.hint.contains("20 seconds later"), "{error:?}");
        assert!(error.hint.contains("MOLECULE_IMAGE_PLATFORM"), "{error:?}");
        assert_eq!(client.count(Kind::FetchStarted), 0);
        assert_eq!(client.count(Kind::BuildStarted), 0);
        let fetches = of_service(&env.server.requests(), "git").len();
        assert_eq!(fetches, 0, "the template must not be fetched");
    }
}

#[test]
fn windows_images_need_a_windows_engine() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let error = env
        .client_with(&[(OptionName::Platform, "windows/amd64")])
        .ensure_err("hermes");
    assert_eq!(error.code, Code::PlatformUnsupported, "{error:?}");
    assert!(error.hint.contains("windows containers"), "{error:?}");
}

#[test]
fn an_emulated_platform_builds_with_a_slowness_warning() {
    let env = TestEnv::new();
    env.template("hermes", with_program(&arm64_program(env.scratch())));
    let _emulation = Emulation::of_arm64();
    for (buildkit, isolation) in [
        ("1", env.isolation.clone()),
        ("0", env.isolation.clone() + "c"),
    ] {
        let client = env.client_with(&[
            (OptionName::Platform, "linux/arm64"),
            (OptionName::DockerBuildkit, buildkit),
            (OptionName::Isolation, &isolation),
        ]);
        // Since BuildKit 0.14 (Docker 27), its list of platforms may be 20 seconds old.
        let image = wait_until("the engine to see the emulation", || {
            client.clear_events();
            match client.ensure("hermes") {
                Err(error)
                    if error.code == Code::PlatformUnsupported
                        && env.engine.version() >= [27, 0, 0] =>
                {
                    None
                }
                result => Some(result.unwrap()),
            }
        });
        assert_eq!(image.platform, "linux/arm64");
        let written = env.engine.read(&image.reference, "written");
        assert_eq!(written, "by a program for arm64");
        let architecture = env.engine.inspect(&image.reference).unwrap().architecture;
        assert_eq!(architecture.as_deref(), Some("arm64"));

        let warnings = client.of_kind(Kind::Warning);
        let [warning] = warnings.as_slice() else {
            panic!("expected one warning: {warnings:?}");
        };
        assert!(
            warning.message.contains("emulates linux/arm64"),
            "{warning:?}"
        );
        assert!(warning.message.contains("slow"), "{warning:?}");
        assert!(
            warning.hint.as_deref().unwrap().contains("native"),
            "{warning:?}"
        );

        client.clear_events();
        assert!(client.ensure("hermes").unwrap().cache_hit);
        assert_eq!(
            client.count(Kind::Warning),
            0,
            "a cache hit runs nothing and needs no warning"
        );
        env.engine.remove_all_of(&isolation);
    }
}

#[test]
fn amd64_runs_386_natively() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let client = env.client_with(&[(OptionName::Platform, "linux/386")]);
    client.ensure("hermes").unwrap();
    assert_eq!(client.count(Kind::Warning), 0);
}

#[test]
fn an_exec_format_error_is_platform_unsupported() {
    let (env, podman) = (TestEnv::new(), Engine::podman_of_the_tests());
    let (arch, machine) = impossible();
    // The offset of e_machine (System V ABI, "ELF Header").
    let mut program = arm64_program(env.scratch());
    program[18..20].copy_from_slice(&machine.to_le_bytes());
    env.template("hermes", with_program(&program));

    let platform = format!("linux/{arch}");
    for host in [&podman.url, &env.engine.url] {
        // Docker lists its platforms and would refuse this one, so it gets a supported platform with a foreign program.
        let requested = match host == &podman.url {
            true => platform.as_str(),
            false => "linux/amd64",
        };
        let _images = podman.keep_images();
        let client = env.client_with(&[
            (OptionName::DockerHost, host),
            (OptionName::Platform, requested),
        ]);
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::PlatformUnsupported, "{error:?}");
        assert!(error.url.contains("hermes"), "{error:?}");
        let (message, build) = (
            error.message(),
            error.build.expect("the error has build details"),
        );
        // Docker has it in its error message, Podman in the step's output.
        let said = format!("{message}\n{}", build.log_tail);
        // The case depends on the container runtime.
        assert!(said.to_lowercase().contains("exec format error"), "{said}");
        assert!(build.step.contains("RUN"), "{build:?}");
        assert_eq!(build.line, 3);
    }
}
