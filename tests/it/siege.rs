//! A stress test. Template servers send wrong, slow, broken and endless responses, engines are missing or
//! die, callers cancel at any moment, and memory, files and threads are limited. The host must not crash,
//! hang or grow (promises P4, P7 and P9).

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use mol::OptionName;
use serde_json::json;

use crate::support::child::{Link, process, program, text};
use crate::support::daemon::write_program;
use crate::support::server::Server;
use crate::support::{Files, Handling, Proxy, TestEnv, file, noise, required_var};

/// The user that runs the host. Not root, because RLIMIT_NPROC does not apply to root.
const USER: &str = "65534";

/// Milliseconds. A client is freed within 2 s; the rest is for a busy machine.
const FREED: u64 = 4000;

fn seconds() -> u64 {
    let given = std::env::var("MOL_TEST_SIEGE_SECONDS").ok();
    given.map_or(16, |seconds| seconds.parse().unwrap())
}

/// One healthy server, and one for each fault.
fn servers() -> Vec<Server> {
    let templates = |server: &Server| {
        for runtime in ["hermes", "codex", "claude-code"] {
            let text = "FROM scratch\nCOPY content /\n";
            let files = Files::from([
                ("Dockerfile".to_owned(), file(text)),
                ("content".to_owned(), file(&noise(4 << 20))),
            ]);
            server.commit(&server.template(runtime), "main", files);
        }
    };
    let bad = [
        json!([]),
        json!([{ "match": "/api/", "endless": true, "body": "{\"commit\":" }]),
        json!([{ "match": "/api/", "reset": true }]),
        json!([{ "match": "/api/", "status": 500, "body": "\u{1b}[31m\r\n" }]),
        json!([{ "match": "/api/", "hang": true, "status": 200, "body": "{" }]),
        json!([{ "match": "upload-pack", "reset": true }]),
        json!([{ "match": "/git-upload-pack$", "endless": true,
                 "body_first": "000dpackfile\n", "body": "000f\x02resolving\n",
                 "headers": { "Content-Type": "application/x-git-upload-pack-result" } }]),
        json!([{ "match": "/git-upload-pack$", "truncate_after": 70_000 }]),
        json!([{ "match": "/git-upload-pack$", "drip_ms": 5, "drip_bytes": 1000 }]),
    ];
    bad.into_iter()
        .map(|faults| {
            let server = Server::start(&[]);
            templates(&server);
            server.faults(faults);
            server
        })
        .collect()
}

#[test]
fn a_limited_c_host_does_not_crash_hang_or_leak() {
    let env = TestEnv::new();
    let servers = servers();
    let programs = env.scratch().join("programs");
    let docker = required_var("MOL_TEST_DOCKER");
    let engine = &env.engine.url;
    let dies = format!(
        "(dd bs=64k count=30 2>/dev/null; kill -9 0) | {docker} --host {engine} system dial-stdio"
    );
    write_program(&programs, "ssh", &format!("PATH=/usr/bin:/bin\n{dies}\n"));
    // The host runs as another user.
    for folder in [env.scratch(), &env.scratch().join("cache")] {
        std::fs::create_dir_all(folder).unwrap();
        std::os::unix::fs::chown(folder, Some(USER.parse().unwrap()), None).unwrap();
    }

    // That user may have no access to the folder of the engine's socket.
    let open_engine = Proxy::over_tcp(&env.engine, |_| Handling::Pass);
    // Kills a host that hangs.
    let limit = Duration::from_secs(seconds() + 60);
    let mut command = process(Path::new("timeout"));
    command
        .args(["--signal=KILL", &limit.as_secs().to_string(), "setpriv"])
        .args([format!("--reuid={USER}"), format!("--regid={USER}")])
        .args(["--clear-groups", "prlimit"])
        // Limits: private memory, file descriptors, threads and processes of the user.
        .args([
            "--data=1073741824",
            "--nofile=256",
            "--nproc=200",
            "--core=0",
        ])
        .arg(program("siege", Link::Static))
        .arg(seconds().to_string())
        .args(servers.iter().map(|server| &server.repo_prefix))
        .arg("--")
        .args([
            open_engine.url.as_str(),
            "ssh://host",
            "unix:///nowhere.sock",
        ]);
    for (name, value) in env.values() {
        command.env(name.name(), value);
    }
    command.env("PATH", format!("{}:/usr/bin:/bin", programs.display()));
    command.env(OptionName::StallGrace.name(), "2");

    let begun = Instant::now();
    let output = command.output().unwrap();
    let said = text(&output);
    println!("{said}");
    assert_eq!(output.status.signal(), None, "{said}");
    assert!(output.status.success(), "{}\n{said}", output.status);
    assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
    let numbers = |name: &str| -> Vec<u64> {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap().split_whitespace();
        words.map(|word| word.parse().unwrap()).collect()
    };
    let (middle, end) = (numbers("middle"), numbers("end"));
    assert!(end[0] <= middle[0].max(12), "threads: {said}");
    assert!(end[1] <= middle[1].max(24), "files: {said}");
    assert!(end[2] <= middle[2] + (48 << 10), "memory: {said}");
    assert!(numbers("free")[0] <= FREED, "{said}");
    let defects = said.lines().any(|line| line.starts_with("status internal"));
    assert!(!defects, "{said}");
    assert!(said.contains("at last ok"), "{said}");
    // The faults took effect. Whether a call succeeds among them depends on the machine; the last one did.
    for status in ["canceled", "gitea_unreachable", "engine_unreachable"] {
        assert!(
            said.contains(&format!("\nstatus {status} ")),
            "{status}: {said}"
        );
    }
}
