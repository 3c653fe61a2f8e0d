//! Engines behind `ssh://`, with a real sshd and the ssh client of the system.

use std::time::{Duration, Instant};

use mol::event::Kind;
use mol::{Code, OptionName};

use crate::support::daemon::write_program;
use crate::support::engine::{BUSYBOX, assert_gone, is_running};
use crate::support::server::{dockerfile, file};
use crate::support::sshd::Sshd;
use crate::support::{
    CANCEL_LIMIT, Files, TestClient, TestEnv, block_on, unique, wait_until, write_docker_context,
};

/// A template whose image has this word in the file `/out`.
fn template(env: &TestEnv, word: &str) -> Files {
    let text = format!(
        "FROM {BUSYBOX}\nCOPY content /\nRUN cat /content > /out # {}\n",
        env.isolation
    );
    Files::from([
        ("Dockerfile".to_owned(), file(&text)),
        ("content".to_owned(), file(word)),
    ])
}

fn client(env: &TestEnv, sshd: &Sshd, more: &[(OptionName, &str)]) -> TestClient {
    let (url, programs) = (sshd.url(), sshd.client());
    let mut all = vec![
        (OptionName::DockerHost, url.as_str()),
        (OptionName::SearchPath, &programs),
    ];
    all.extend_from_slice(more);
    env.client_with(&all)
}

/// Every ssh has exited and was reaped within the promised time.
fn assert_no_ssh(sshd: &Sshd, since: Instant) {
    wait_until("the end of every ssh", || {
        sshd.clients().is_empty().then_some(())
    });
    assert!(
        since.elapsed() < CANCEL_LIMIT,
        "it took {:?}",
        since.elapsed()
    );
}

#[test]
fn an_image_is_built_and_reused_over_ssh() {
    for buildkit in ["1", "0"] {
        let env = TestEnv::new();
        let sshd = Sshd::start(env.scratch());
        let client = client(&env, &sshd, &[(OptionName::DockerBuildkit, buildkit)]);

        env.template("hermes", template(&env, "one"));
        let first = client.ensure("hermes").unwrap();
        assert!(!first.cache_hit);
        assert_eq!(first.endpoint, sshd.url());
        assert_eq!(env.engine.read(&first.reference, "out"), "one");
        let again = client.ensure("hermes").unwrap();
        assert!(again.cache_hit);
        assert_eq!(again.image_id, first.image_id);
        assert_eq!(client.count(Kind::Warning), 0);
    }
}

#[test]
fn the_path_of_the_ssh_url_is_the_remote_engine_socket() {
    let env = TestEnv::new();
    let sshd = Sshd::start(env.scratch());
    env.template("hermes", template(&env, "one"));
    let socket = env.engine.url.strip_prefix("unix://").unwrap().to_owned();
    let right = sshd.url() + &socket;
    let image = client(&env, &sshd, &[(OptionName::DockerHost, &right)])
        .ensure("hermes")
        .unwrap();
    assert_eq!(image.endpoint, right);

    let wrong = format!("{}{socket}.not", sshd.url());
    let error = client(&env, &sshd, &[(OptionName::DockerHost, &wrong)]).ensure_err("hermes");
    assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
    assert!(
        error.message().contains(&format!("{socket}.not")),
        "{error:?}"
    );
    // From the docker command on the remote machine.
    assert!(error.message().contains("no such file"), "{error:?}");
}

#[test]
fn a_docker_context_may_use_ssh() {
    let env = TestEnv::new();
    let sshd = Sshd::start(env.scratch());
    let config = env.scratch().join("docker");
    write_docker_context(&config, "remote", &sshd.url());

    env.template("hermes", template(&env, "one"));
    let client = client(
        &env,
        &sshd,
        &[
            (OptionName::DockerHost, ""),
            (OptionName::DockerContext, "remote"),
            (OptionName::DockerConfig, config.to_str().unwrap()),
        ],
    );
    let image = client.ensure("hermes").unwrap();
    assert_eq!(image.endpoint, sshd.url());
    assert_eq!(env.engine.read(&image.reference, "out"), "one");
}

#[test]
fn an_unreachable_engine_is_reported_with_the_ssh_error() {
    let env = TestEnv::new();
    let sshd = Sshd::start(env.scratch());
    env.template("hermes", template(&env, "one"));
    let wrong_key = sshd.client_with_the_wrong_key();
    let no_listener = "ssh://root@127.0.0.1:1";
    // The file of known hosts has the server's address only.
    let unknown_host = format!("ssh://root@localhost:{}", sshd.port);
    for (option, value, says) in [
        (
            OptionName::SearchPath,
            wrong_key.as_str(),
            "Permission denied",
        ),
        (OptionName::DockerHost, no_listener, "Connection refused"),
        (
            OptionName::DockerHost,
            &unknown_host,
            "Host key verification failed",
        ),
    ] {
        let since = Instant::now();
        let error = client(&env, &sshd, &[(option, value)]).ensure_err("hermes");
        assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
        assert!(error.message().contains(says), "{error:?}");
        assert!(error.hint.contains("ssh HOST docker version"), "{error:?}");
        assert!(since.elapsed() < Duration::from_secs(20));
    }
    assert_no_ssh(&sshd, Instant::now());
}

#[test]
fn an_ssh_that_exits_at_once_is_reported_with_its_stderr() {
    let env = TestEnv::new();
    let sshd = Sshd::start(env.scratch());
    env.template("hermes", template(&env, "one"));
    for (script, says) in [
        (
            "echo 'no route to there' >&2; exit 255",
            "no route to there",
        ),
        (
            "exec <&-; echo 'first\nsecond' >&2; exit 255",
            "first; second",
        ),
        ("exit 0", "ssh ended without an answer"),
        // More than a pipe buffers.
        (
            "i=0; while [ $i -lt 20000 ]; do echo 'a long story' >&2; i=$((i+1)); done; exit 1",
            "a long story",
        ),
    ] {
        let programs = env.scratch().join(unique());
        write_program(&programs, "ssh", script);
        let path = programs.to_str().unwrap();
        let error = client(&env, &sshd, &[(OptionName::SearchPath, path)]).ensure_err("hermes");
        assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
        assert!(error.message().contains(says), "{error:?}");
        assert!(error.message().len() < 6000, "{}", error.message().len());
    }
}

#[test]
fn a_missing_ssh_program_is_reported() {
    let env = TestEnv::new();
    env.template("hermes", template(&env, "one"));
    for path in ["", "/nowhere", env.scratch().to_str().unwrap()] {
        let error = env
            .client_with(&[
                (OptionName::DockerHost, "ssh://host"),
                (OptionName::SearchPath, path),
            ])
            .ensure_err("hermes");
        assert_eq!(error.code, Code::InvalidOption, "{error:?}");
        assert!(error.message().contains("no ssh in PATH"), "{error:?}");
        assert!(error.hint.contains("install an ssh client"), "{error:?}");
    }
}

#[test]
fn a_cancelled_build_stops_remotely_and_leaves_no_ssh() {
    for buildkit in ["1", "0"] {
        let env = TestEnv::new();
        let sshd = Sshd::start(env.scratch());
        let word = unique();
        let text = format!("FROM {BUSYBOX}\nRUN echo running {word}; sleep 600; true\n");
        env.template("hermes", dockerfile(&text));
        let client = client(&env, &sshd, &[(OptionName::DockerBuildkit, buildkit)]);
        let call = client.begin("hermes");
        client.wait_for_line(&word);
        assert!(is_running(&word) && !sshd.connections().is_empty());

        let since = Instant::now();
        client.cancel_in_time(call);
        assert_gone(&word, since);

        let since = Instant::now();
        drop(client);
        assert_no_ssh(&sshd, since);
    }
}

#[test]
fn a_call_cancelled_while_ssh_connects_leaves_no_ssh() {
    let env = TestEnv::new();
    let sshd = Sshd::start(env.scratch());
    env.template("hermes", template(&env, "one"));
    // ssh connects, and the server then sends nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ssh://root@{}", silent.local_addr().unwrap());
    let client = client(&env, &sshd, &[(OptionName::DockerHost, &url)]);
    let call = client.begin("hermes");
    wait_until("an ssh", || (!sshd.connections().is_empty()).then_some(()));
    let since = Instant::now();
    client.cancel(call);
    assert_no_ssh(&sshd, since);
}

#[test]
fn ssh_connections_are_reused_and_end_with_the_client() {
    let env = TestEnv::new();
    let sshd = Sshd::start(env.scratch());
    env.template("hermes", template(&env, "one"));
    let client = client(&env, &sshd, &[]);
    client.ensure("hermes").unwrap();
    const HITS: usize = 10;
    let before = sshd.accepted();
    for _ in 0..HITS {
        assert!(client.ensure("hermes").unwrap().cache_hit);
    }
    // A few may be new: on a busy machine a connection is returned to the pool after the next request is made.
    let new = sshd.accepted() - before;
    assert!(new < HITS / 2, "{new} new connections for {HITS} calls");
    block_on(client.inner().close());
    let since = Instant::now();
    drop(client);
    assert_no_ssh(&sshd, since);
}
