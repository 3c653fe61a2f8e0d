//! An engine that drops connections, restarts, sends garbage or hangs: each fault is reported with the
//! right code and in time, no connection stays open, and the next call of the same client succeeds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mol::{Code, Error, OptionName};

use crate::support::engine::{BUSYBOX, Engine, OwnEngine};
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{
    End, Files, Handling, Proxy, TestEnv, file, in_parallel, noise, unique, wait_until,
};

/// The kinds of requests that the library makes to the engine, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Version,
    /// Checks whether the image exists.
    Inspect,
    /// BuildKit requests the files over this connection.
    Session,
    Build,
    /// Checks whether the new image exists.
    Built,
}

use Call::{Build, Built, Inspect, Session, Version};

const ALL: [Call; 5] = [Version, Inspect, Session, Build, Built];

/// The values of DOCKER_BUILDKIT to test: both builders if it makes a difference for this call.
fn builders(call: Call) -> &'static [&'static str] {
    if call == Build { &["1", "0"] } else { &["1"] }
}

/// A proxy rule that applies `handling` to one kind of call while the switch is on, and counts how often.
fn treating(
    call: Call,
    handling: Handling,
    switch: &Arc<AtomicBool>,
    applied: &Arc<AtomicUsize>,
) -> impl Fn(&str) -> Handling + Send + Sync + 'static {
    let (built, on) = (AtomicBool::new(false), Arc::clone(switch));
    let applied = Arc::clone(applied);
    move |line| {
        let found = if line.contains("/build?") {
            built.store(true, Ordering::SeqCst);
            Some(Build)
        } else if line.contains("/session") {
            Some(Session)
        } else if line.contains("/version") {
            Some(Version)
        } else if line.starts_with("GET") && line.contains("/images/") {
            let built = built.load(Ordering::SeqCst);
            Some(if built { Built } else { Inspect })
        } else {
            None
        };
        match found == Some(call) && on.load(Ordering::SeqCst) {
            true => {
                applied.fetch_add(1, Ordering::SeqCst);
                handling.clone()
            }
            false => Handling::Pass,
        }
    }
}

/// A stall grace in seconds that no test reaches.
const LONG_GRACE: u64 = 240;

/// Makes a call that fails because of this fault. Checks that the next call succeeds without the fault.
fn fail_then_recover(
    call: Call,
    handling: &Handling,
    builder: &str,
    deadline: Option<Duration>,
    grace: u64,
) -> (Error, Duration) {
    let env = TestEnv::new();
    env.template("hermes", template());
    let switch = Arc::new(AtomicBool::new(true));
    let applied = Arc::default();
    let rule = treating(call, handling.clone(), &switch, &applied);
    let proxy = Proxy::start(&env.engine, env.scratch(), rule);
    let options = [
        (OptionName::DockerHost, proxy.url.as_str()),
        (OptionName::DockerBuildkit, builder),
        (OptionName::StallGrace, &grace.to_string()),
    ];
    let mut client = env.client_with(&options);
    let images = (builder == "0").then(|| env.engine.keep_images());
    let begun = Instant::now();
    let end = client.begin_within("hermes", deadline).end();
    let error = end.expect_err(&format!("{call:?} {handling:?} {builder}"));
    let took = begun.elapsed();
    assert!(!error.hint.is_empty(), "{error:?}");
    let reached = applied.load(Ordering::SeqCst) > 0;
    assert!(reached, "{call:?} {handling:?} {builder}: {error:?}");
    // A call that ends at its deadline does not wait for its folder to be removed.
    let partial = |path: &String| path.contains("/.work-");
    wait_until("no unfinished folder in the cache", || {
        (!env.cached_paths().iter().any(partial)).then_some(())
    });

    switch.store(false, Ordering::SeqCst);
    if grace < LONG_GRACE {
        // On a busy machine a healthy engine may be silent for longer than the short grace.
        client = env.client_with(&options[..2]);
    }
    let next = client.ensure("hermes");
    next.unwrap_or_else(|next| panic!("after {error:?}: {next:?}"));
    drop(images);
    drop(client);
    proxy.until_closed();
    (error, took)
}

/// A template with a context that is large enough to cut the upload in the middle.
fn template() -> Files {
    let text = format!("FROM scratch\nCOPY content /{}\n", unique());
    let mut files = dockerfile(&text);
    files.insert("content".to_owned(), file(&noise(500_000)));
    files
}

#[test]
fn a_dropped_engine_connection_is_reported_at_every_point() {
    let mut rows = Vec::new();
    for call in ALL {
        for builder in builders(call) {
            for answered in [0, 20, 300] {
                rows.push((call, Handling::CutAnswer(answered, End::Close), builder));
            }
        }
    }
    // The classic builder gets the files in the body of the build request.
    for (call, builder) in [(Session, &"1"), (Build, &"0")] {
        for uploaded in [0, 1000, 100_000, 400_000] {
            rows.push((call, Handling::CutRequest(uploaded, End::Close), builder));
        }
    }
    in_parallel(rows.iter(), |(call, handling, builder)| {
        let (error, took) = fail_then_recover(*call, handling, builder, None, LONG_GRACE);
        let what = format!("{call:?} {handling:?} {builder} {took:?}: {error:?}");
        assert_eq!(error.code, Code::EngineUnreachable, "{what}");
        assert!(error.message().contains("proxy.sock"), "{what}");
        assert!(took < Duration::from_secs(20), "{what}");
    });
}

#[test]
fn a_500_from_the_engine_is_reported_with_its_message() {
    let mut rows = Vec::new();
    for call in ALL {
        rows.extend(builders(call).iter().map(|builder| (call, builder)));
    }
    in_parallel(rows.iter(), |(call, builder)| {
        let (error, _) = fail_then_recover(*call, &Handling::Fail, builder, None, LONG_GRACE);
        // The classic builder also answers an invalid Dockerfile with a 500.
        let (code, says) = match call {
            Build => (Code::BuildFailed, "injected failure"),
            _ => (Code::EngineUnreachable, "with 500: injected failure"),
        };
        assert_eq!(error.code, code, "{call:?} {builder}: {error:?}");
        assert!(
            error.message().contains(says),
            "{call:?} {builder}: {error:?}"
        );
    });
}

#[test]
fn a_refused_engine_request_is_reported_with_status_and_hint() {
    let page = "<html><body><h1>403 Forbidden</h1>\nRequest forbidden by rules.\n</body></html>\n";
    let forbidden = Handling::answer("403 Forbidden", "text/html; charset=utf-8", page);
    let denied = r#"{"message":"authorization denied by plugin opa: request rejected"}"#;
    let denied = Handling::answer("403 Forbidden", "application/json", denied);
    let misdirected = Handling::answer("421 Misdirected Request", "text/plain", "");
    // The engine itself answers 400, 404 and 500 too, but in JSON.
    let unknown = Handling::answer("404 Not Found", "text/plain", "Not Found\n");
    let invalid = Handling::answer("400 Bad Request", "text/html", page);
    let broken = Handling::answer("500 Internal Server Error", "text/html", page);
    let no_upgrade = Handling::answer("200 OK", "text/plain", "");
    let mut rows = Vec::new();
    for (call, request) in [
        (Version, "GET /version"),
        (Inspect, "GET /images/"),
        (Session, "POST /session"),
        (Build, "POST /build"),
        (Built, "GET /images/"),
    ] {
        let mut answers = vec![
            (&forbidden, "with 403: Forbidden"),
            (&denied, "with 403: authorization denied by plugin opa"),
            (&misdirected, "with 421: Misdirected Request"),
            (&unknown, "with 404: Not Found"),
        ];
        if call == Build {
            answers.push((&invalid, "with 400: Bad Request"));
            answers.push((&broken, "with 500: Internal Server Error"));
        }
        for (handling, said) in answers {
            rows.extend(
                builders(call)
                    .iter()
                    .map(|builder| (call, request, handling, said, builder)),
            );
        }
    }
    for (handling, said) in [
        (
            &Handling::WithoutUpgrade,
            "with 400: no upgrade proto in request",
        ),
        (&no_upgrade, "with 200: "),
    ] {
        rows.push((Session, "POST /session", handling, said, &"1"));
    }
    in_parallel(rows.iter(), |(call, request, handling, said, builder)| {
        let (error, took) = fail_then_recover(*call, handling, builder, None, LONG_GRACE);
        let what = format!("{call:?} {handling:?} {builder} {took:?}: {error:?}");
        assert_eq!(error.code, Code::EngineUnreachable, "{what}");
        assert!(error.message().contains(request), "{what}");
        assert!(error.message().contains(said), "{what}");
        assert!(!error.message().contains("was lost"), "{what}");
        assert!(!error.message().contains("<html>"), "{what}");
        assert!(error.hint.contains(&format!("allow {request}")), "{what}");
        assert_eq!(error.hint.contains("Upgrade"), *call == Session, "{what}");
    });
}

/// BuildKit's message about a failed step (`moby.buildkit.v1.StatusResponse`).
fn failed_vertex(name: &str, error: &str) -> String {
    let field = |number: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).unwrap();
        assert!(length < 128, "the length must fit into one byte");
        [&[number << 3 | 2, length], content].concat()
    };
    // digest, name, started, completed, error
    let vertex = [
        field(1, b"sha256:1"),
        field(3, name.as_bytes()),
        field(5, b""),
        field(6, b""),
        field(7, error.as_bytes()),
    ];
    let status = BASE64_STANDARD.encode(field(1, &vertex.concat()));
    format!(r#"{{"id":"moby.buildkit.trace","aux":"{status}"}}"#)
}

#[test]
fn a_build_disturbed_by_a_concurrent_cancel_or_removal_is_retried() {
    let id = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945";
    let failed = |message: &str| serde_json::json!({ "errorDetail": { "message": message } });
    let (docker, podman) = (Engine::of_the_tests(), Engine::podman_of_the_tests());
    // Docker 20.10 answers like this for a moment after a build was cancelled, Podman while an image is removed.
    for (engine, builder, answer) in [
        (
            &podman,
            "0",
            failed(
                "checking if cached image exists from a previous build: getting top layer info: layer not known",
            )
            .to_string(),
        ),
        (
            &docker,
            "0",
            failed(&format!("unable to find image \"sha256:{id}\"")).to_string(),
        ),
        (
            &docker,
            "1",
            format!(
                "{}\n{}",
                failed_vertex("[2/2] COPY content /x", "duplicate output 0"),
                failed("failed to solve: duplicate output 0")
            ),
        ),
    ] {
        let env = TestEnv::new();
        env.template("hermes", template());
        let builds = Arc::new(AtomicUsize::new(0));
        let rule = {
            let (builds, answer) = (Arc::clone(&builds), Handling::json(&format!("{answer}\n")));
            move |line: &str| match line.contains("/build?") {
                true if builds.fetch_add(1, Ordering::SeqCst) == 0 => answer.clone(),
                _ => Handling::Pass,
            }
        };
        let proxy = Proxy::start(engine, env.scratch(), rule);
        let client = env.client_with(&[
            (OptionName::DockerHost, proxy.url.as_str()),
            (OptionName::DockerBuildkit, builder),
        ]);
        let _images = engine.keep_images();
        client.ensure("hermes").unwrap();
        assert_eq!(builds.load(Ordering::SeqCst), 2, "{builder}");
    }
}

#[test]
fn an_invalid_engine_answer_is_reported() {
    let invalid_http = [
        vec![0; 4096],
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
        format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)).into_bytes(),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(10_000)).into_bytes(),
    ];
    let invalid_json = ["<html>sign in</html>", "{\"Id\":", "[]", "7"].map(Handling::json);
    let mut rows = Vec::new();
    for call in ALL {
        for builder in builders(call) {
            let answers = invalid_http.clone().into_iter();
            rows.extend(
                answers.map(|answer| (call, Handling::Answer(answer, End::Close), builder)),
            );
            if ![Session, Build].contains(&call) {
                let answers = invalid_json.clone().into_iter();
                rows.extend(answers.map(|answer| (call, answer, builder)));
            }
        }
    }
    in_parallel(rows.iter(), |(call, handling, builder)| {
        let (error, took) = fail_then_recover(*call, handling, builder, None, LONG_GRACE);
        let handling: String = format!("{handling:?}").chars().take(200).collect();
        let what = format!("{call:?} {handling} {builder} {took:?}: {error:?}");
        assert_eq!(error.code, Code::EngineUnreachable, "{what}");
        assert!(took < Duration::from_secs(20), "{what}");
    });
}

#[test]
fn a_hanging_engine_is_reported_within_the_limits() {
    let mut rows = Vec::new();
    // The call must reach the fault before its deadline; the last one has a whole build before it.
    for (call, deadline) in [(Version, 2), (Inspect, 5), (Built, 10)] {
        for cut in [
            Handling::CutAnswer(0, End::Hang),
            Handling::CutRequest(0, End::Hang),
        ] {
            let code = Code::DeadlineExceeded;
            rows.push((call, cut, &"1", Some(deadline), code, deadline));
        }
    }
    for (call, builder) in [(Session, &"1"), (Build, &"1"), (Build, &"0")] {
        for cut in [
            Handling::CutRequest(0, End::Hang),
            Handling::CutAnswer(0, End::Hang),
            Handling::CutAnswer(300, End::Hang),
        ] {
            rows.push((call, cut, builder, None, Code::Stalled, 3));
        }
    }
    for (call, builder) in [(Session, &"1"), (Build, &"0")] {
        let cut = Handling::CutRequest(100_000, End::Hang);
        rows.push((call, cut, builder, None, Code::Stalled, 3));
    }
    in_parallel(
        rows.iter(),
        |(call, handling, builder, deadline, code, limit)| {
            let deadline = deadline.map(Duration::from_secs);
            // A busy engine could be silent for longer than the short grace before the deadline.
            let grace = if deadline.is_some() { LONG_GRACE } else { 3 };
            let (error, took) = fail_then_recover(*call, handling, builder, deadline, grace);
            let what = format!("{call:?} {handling:?} {builder} {took:?}: {error:?}");
            assert_eq!(error.code, *code, "{what}");
            assert!(took >= Duration::from_secs(*limit), "{what}");
            assert!(took < Duration::from_secs(limit + 10), "{what}");
        },
    );
}

#[test]
fn an_engine_restart_fails_the_build_and_the_next_call_works() {
    let own = OwnEngine::start();
    for builder in builders(Build) {
        own.engine.import_busybox();
        let env = TestEnv::new();
        let word = unique();
        let text = format!("FROM {BUSYBOX}\nRUN echo {word}; sleep 600\n");
        env.template("hermes", dockerfile(&text));
        let client = env.client_with(&[
            (OptionName::DockerHost, &own.engine.url),
            (OptionName::DockerBuildkit, builder),
        ]);
        let call = client.begin("hermes");
        client.wait_for_line(&word);
        own.stop();
        let begun = Instant::now();
        let error = call.end().unwrap_err();
        assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
        assert!(error.message().contains(&own.engine.url), "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert_eq!(client.ensure_err("hermes").code, Code::EngineUnreachable);

        own.start_again();
        env.template("hermes", dockerfile(PLAIN));
        client.ensure("hermes").unwrap();
    }
}
