//! Files whose paths come from outside. One that is not a regular file, is too large or is on a hung disk is
//! an error that names it, and does not affect other clients.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mol::upkeep::diagnose::Status;
use mol::{Client, Code, OptionName};
use serde_json::json;

use crate::support::child::{Link, command, program, source, strict_compiler, succeed, text};
use crate::support::engine::builders;
use crate::support::server::{PLAIN, dockerfile};
use crate::support::tls::EngineTls;
use crate::support::{CANCEL_LIMIT, Files, TestEnv, block_on, docker_context_id, file, unique};

/// The time limit of a healthy client while others hang.
const DEADLINE: Duration = Duration::from_secs(3);

/// Upper bound for a call that does not block on a file, also on a busy machine.
const NOT_BLOCKED: Duration = Duration::from_secs(20);

fn fifo(path: &Path) {
    succeed(Command::new("mkfifo").arg(path));
}

/// An irregular file: its name, how to create it, part of the error message.
type Irregular = (&'static str, fn(&Path), &'static str);

const IRREGULAR: [Irregular; 6] = [
    ("FIFO", fifo, "it is a FIFO, not a regular file"),
    (
        "zero",
        |path| symlink("/dev/zero", path).unwrap(),
        "it is a device, not a regular file",
    ),
    (
        "folder",
        |path| fs::create_dir(path).unwrap(),
        "it is a folder, not a regular file",
    ),
    (
        "socket",
        |path| {
            // The path given to bind may have at most 108 bytes.
            let short = tempfile::tempdir().unwrap();
            UnixListener::bind(short.path().join("s")).unwrap();
            fs::rename(short.path().join("s"), path).unwrap();
        },
        "it is a socket, not a regular file",
    ),
    (
        "sparse",
        |path| fs::File::create(path).unwrap().set_len(1 << 30).unwrap(),
        "it is larger than",
    ),
    (
        "dangling",
        |path| symlink("nowhere", path).unwrap(),
        "No such file",
    ),
];

/// Replaces `path` with each irregular file in turn.
fn each_irregular(path: &Path, check: impl Fn(&str, &str)) {
    for (name, make, says) in IRREGULAR {
        let _ = fs::remove_file(path);
        let _ = fs::remove_dir(path);
        make(path);
        let begun = Instant::now();
        check(name, says);
        let took = begun.elapsed();
        assert!(took < NOT_BLOCKED, "{name}: {took:?}");
    }
    let _ = fs::remove_file(path);
}

/// Options that find the engine through a docker configuration.
fn by_config(folder: &Path) -> [(OptionName, &str); 2] {
    [
        (OptionName::DockerHost, ""),
        (OptionName::DockerConfig, folder.to_str().unwrap()),
    ]
}

#[test]
fn an_irregular_config_json_is_an_error_of_its_own_client_only() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let healthy = env.client();
    healthy.ensure("hermes").unwrap();
    let folder = env.scratch().join("docker");
    fs::create_dir(&folder).unwrap();
    let config = folder.join("config.json");
    for (name, make, says) in IRREGULAR
        .into_iter()
        .filter(|(name, ..)| ["FIFO", "zero", "socket", "sparse"].contains(name))
    {
        let _ = fs::remove_file(&config);
        make(&config);
        let others = [
            env.client_with(&by_config(&folder)),
            env.client_with(&by_config(&folder)),
        ];
        let calls: Vec<_> = others.iter().map(|client| client.begin("hermes")).collect();
        let begun = Instant::now();
        let call = healthy.begin_within("hermes", Some(DEADLINE));
        assert!(call.end().unwrap().cache_hit, "{name}");
        for call in calls {
            let error = call.end().unwrap_err();
            assert_eq!(error.code, Code::InvalidOption, "{name}: {error:?}");
            for part in [config.to_str().unwrap(), says] {
                assert!(error.message().contains(part), "{name}: {error:?}");
            }
            assert!(!error.hint.is_empty(), "{name}");
        }
        assert!(begun.elapsed() < NOT_BLOCKED, "{name}");
    }
}

#[test]
fn irregular_docker_context_and_tls_files_are_reported() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let folder = env.scratch().join("docker");
    let id = docker_context_id("work");
    let meta = folder.join("contexts/meta").join(&id).join("meta.json");
    fs::create_dir_all(meta.parent().unwrap()).unwrap();
    let by_context = env.client_with(&[
        by_config(&folder)[0],
        by_config(&folder)[1],
        (OptionName::DockerContext, "work"),
    ]);
    each_irregular(&meta, |name, says| {
        let error = by_context.ensure_err("hermes");
        assert_eq!(error.code, Code::InvalidOption, "{name}: {error:?}");
        assert!(error.message().contains("meta.json"), "{name}: {error:?}");
        assert!(error.message().contains(says), "{name}: {error:?}");
    });

    let engine = EngineTls::before(&env.engine, &env.scratch().join("certificates"));
    let by_variables = env.client_with(&[
        (OptionName::DockerHost, &engine.host),
        (OptionName::DockerTlsVerify, "1"),
        (
            OptionName::DockerCertPath,
            engine.certificates.to_str().unwrap(),
        ),
    ]);
    for part in ["ca.pem", "cert.pem", "key.pem"] {
        let path = engine.certificates.join(part);
        let good = fs::read(&path).unwrap();
        each_irregular(&path, |name, says| {
            let error = by_variables.ensure_err("hermes");
            assert_eq!(error.code, Code::InvalidOption, "{part} {name}: {error:?}");
            assert!(error.message().contains(part), "{name}: {error:?}");
            assert!(error.message().contains(says), "{part} {name}: {error:?}");
        });
        fs::write(&path, good).unwrap();
    }
    by_variables.ensure("hermes").unwrap();
}

#[test]
fn irregular_ca_files_fail_client_creation() {
    let env = TestEnv::new();
    let (file, folder) = (
        env.scratch().join("bundle.pem"),
        env.scratch().join("certificates"),
    );
    fs::create_dir(&folder).unwrap();
    let refused = |name: OptionName, path: &Path| {
        let mut options = env.options();
        options.set(name, path.to_str().unwrap());
        let error = Client::new(&options, None).unwrap_err();
        assert_eq!(error.code, Code::InvalidOption, "{error:?}");
        assert!(error.hint.contains("SSL_CERT_FILE"), "{error:?}");
        error.message()
    };
    each_irregular(&file, |name, says| {
        let message = refused(OptionName::SslCertFile, &file);
        assert!(message.contains(says), "{name}: {message}");
        assert!(message.contains("bundle.pem"), "{name}: {message}");
    });
    // In a folder, an irregular file is skipped, and a file that is too large is an error.
    let inner = folder.join("a.pem");
    each_irregular(&inner, |name, says| {
        let message = refused(OptionName::SslCertDir, &folder);
        let is_error = message.contains(says);
        assert!(is_error == (name == "sparse"), "{name}: {message}");
    });
    for number in 0..20 {
        fs::write(folder.join(format!("{number}.pem")), vec![b'x'; 1 << 20]).unwrap();
    }
    let message = refused(OptionName::SslCertDir, &folder);
    assert!(message.contains("more than 16 MiB"), "{message}");
}

#[test]
fn a_hung_disk_delays_no_other_client_and_no_deadline() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.client().ensure("hermes").unwrap();
    let hang = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hang.so");
    succeed(
        strict_compiler(false, "gnu11")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&hang)
            .arg(source("tests/c/hang.c"))
            .arg("-ldl"),
    );
    let folder = env.scratch().join("hangs");
    fs::create_dir(&folder).unwrap();
    let mut command = command(&env, &program("hung_disk", Link::Shared));
    command.env("LD_PRELOAD", &hang).arg("hermes").arg(&folder);
    let begun = Instant::now();
    let output = text(&succeed(&mut command));
    assert!(begun.elapsed() < Duration::from_secs(25), "{output}");

    let lines = |name: &str| -> Vec<(String, u64, String)> {
        let found = output.lines().filter_map(|line| line.strip_prefix(name));
        let found = found.map(|line| {
            let mut words = line.trim().splitn(3, ' ');
            let mut word = || words.next().unwrap_or_default().to_owned();
            (word(), word().parse().unwrap(), word())
        });
        found.collect()
    };
    let (status, took, _) = &lines("healthy")[0];
    assert_eq!(status, "ok", "{output}");
    assert!(*took < 3000, "{output}");
    let hung = lines("hung");
    assert_eq!(hung.len(), 38, "{output}");
    for (status, took, _) in hung {
        assert_eq!(status, "deadline_exceeded", "{output}");
        assert!(took < 4000, "{output}");
    }
    let doctor = lines("doctor");
    assert_eq!(doctor.len(), 2, "{output}");
    for (status, took, report) in doctor {
        assert_eq!(status, "ok", "no report: {output}");
        assert!(took < 3000, "{output}");
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        for (name, status) in [("engine", "problem"), ("logins", "warning")] {
            let checks = report["checks"].as_array().unwrap();
            let check = checks.iter().find(|check| check["name"] == name).unwrap();
            assert_eq!(check["status"], status, "{check}");
            assert!(
                check["found"].as_str().unwrap().contains("did not answer"),
                "{check}"
            );
        }
    }
    let (status, took, message) = &lines("new")[0];
    assert_eq!(status, "invalid_option", "{output}");
    assert!(*took < 12_000, "{output}");
    for part in ["SSL_CERT_FILE", "bundle.pem", "10 seconds"] {
        assert!(message.contains(part), "{output}");
    }
}

#[test]
fn diagnose_returns_before_its_deadline_if_a_server_hangs() {
    let env = TestEnv::new();
    env.server
        .faults(json!([{ "match": "/api/", "hang": true }]));
    let socket = env.scratch().join("silent.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let host = format!("unix://{}", socket.display());
    let client = env.client_with(&[(OptionName::DockerHost, &host)]);
    for deadline in [Duration::from_secs(2), DEADLINE] {
        let begun = Instant::now();
        let found = block_on(client.inner().diagnose().wait(Some(deadline))).unwrap();
        assert!(begun.elapsed() < deadline + CANCEL_LIMIT);
        for name in ["engine", "gitea"] {
            let check = found
                .checks
                .iter()
                .find(|check| check.name == name)
                .unwrap();
            assert_eq!(check.status, Status::Problem, "{check:?}");
            assert!(check.found.contains("did not answer within"), "{check:?}");
        }
    }
}

fn with(name: &str, text: &str) -> Files {
    let mut files = dockerfile(&format!(
        "FROM scratch\nCOPY . /\nLABEL only={}\n",
        unique()
    ));
    files.insert(name.to_owned(), file(text));
    files
}

#[test]
fn an_oversized_dockerignore_or_dockerfile_is_refused_by_name() {
    let lines = |count: usize| (0..count).map(|n| format!("f{n}\n")).collect::<String>();
    let (large, many) = ("xx\n".repeat(100_000), lines(10_001));
    let rows: [(&str, &str, &str); 5] = [
        (".dockerignore", &large, "it is larger than 256.0 KiB"),
        (
            ".dockerignore",
            &many,
            "it has 10001 patterns, and 10000 are allowed",
        ),
        (
            "Dockerfile.dockerignore",
            &large,
            "it is larger than 256.0 KiB",
        ),
        ("Dockerfile.dockerignore", &many, "it has 10001 patterns"),
        (
            "Dockerfile",
            &format!("FROM scratch\n{}", "# c\n".repeat(1 << 18)),
            "it is larger than 1.0 MiB",
        ),
    ];
    for (_, engine, buildkit) in builders() {
        let env = TestEnv::new();
        let client = env.client_with(&[
            (OptionName::DockerHost, &engine.url),
            (OptionName::DockerBuildkit, buildkit),
        ]);
        for (name, text, says) in &rows {
            env.template("hermes", with(name, text));
            let error = client.ensure_err("hermes");
            assert_eq!(error.code, Code::BuildFailed, "{error:?}");
            let says = format!("the template's {name} cannot be used: {says}");
            assert!(error.message().contains(&says), "{error:?}");
            assert!(error.hint.contains("template repository"), "{error:?}");
        }
    }
}

#[test]
fn a_dockerignore_of_200_kib_works_with_every_builder() {
    let mut text = String::from("secret-*\n");
    for number in 0..5000 {
        text += &match number % 4 {
            0 => format!("folder/of/module-{number}/build\n"),
            1 => format!("**/cache-{number}/*.tmp\n"),
            2 => format!("module-{number}/**/größe\n"),
            _ => format!("!kept/of/module-{number}/readme\n"),
        };
    }
    text += &"# a comment\n".repeat(6000);
    assert!(
        (190 << 10..256 << 10).contains(&text.len()),
        "{}",
        text.len()
    );
    for (_, engine, buildkit) in builders() {
        let env = TestEnv::new();
        let mut files = with(".dockerignore", &text);
        files.insert("secret-key".to_owned(), file("s"));
        files.insert("kept".to_owned(), file("k"));
        env.template("hermes", files);
        let client = env.client_with(&[
            (OptionName::DockerHost, &engine.url),
            (OptionName::DockerBuildkit, buildkit),
        ]);
        let images = engine.keep_images();
        let image = client.ensure("hermes").unwrap();
        drop(images);
        let paths: Vec<PathBuf> = engine
            .files(&image.reference)
            .into_keys()
            .map(PathBuf::from)
            .collect();
        assert!(paths.iter().any(|path| path.ends_with("kept")), "{paths:?}");
        assert!(
            !paths.iter().any(|path| path.ends_with("secret-key")),
            "{paths:?}"
        );
        engine.remove_all_of(&env.isolation);
    }
}
