//! A template server that disconnects, sends a byte at a time, never stops sending, or does not speak
//! HTTP. In each of the three requests, the call ends in time with the right error, leaves nothing
//! behind and takes little memory (promises P1, P4, P5 and P9).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mol::{Code, Error, OptionName};
use serde_json::json;
use tokio::task::block_in_place;

use crate::support::child::peak;
use crate::support::git::{Object, entry, packet};
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{End, Files, Handling, Proxy, TestEnv, file, in_parallel, noise};

/// The three requests of a job, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// The API request for the head of the branch.
    Head,
    /// The git request for the capabilities.
    Capabilities,
    /// The git request for the objects.
    Objects,
}

use Request::{Capabilities, Head, Objects};

const ALL: [Request; 3] = [Head, Capabilities, Objects];

/// Applies `handling` to the first `times` requests of this kind and passes all others on.
fn treat_requests(
    request: Request,
    times: usize,
    handling: Handling,
) -> impl Fn(&str) -> Handling + Send + Sync + 'static {
    let left = AtomicUsize::new(times);
    move |line| {
        let found = if line.contains("/api/") {
            Head
        } else if line.contains("/info/refs") {
            Capabilities
        } else {
            Objects
        };
        let take = |left: usize| left.checked_sub(1);
        if found == request
            && left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
                .is_ok()
        {
            handling.clone()
        } else {
            Handling::Pass
        }
    }
}

/// After this many bytes, the response to each request is in its body.
const BODY: usize = 340;

const ALWAYS: usize = usize::MAX;

/// How a job through a proxy ended.
struct Job {
    error: Error,
    took: Duration,
}

/// Runs a job through a proxy. The template has no Dockerfile, so a job whose three requests succeed
/// ends after the last one with that error, without an engine. In every case, nothing is left in the
/// cache and no connection stays open after the client is freed.
fn job(
    env: &TestEnv,
    proxy: &Proxy,
    deadline: Option<Duration>,
    more: &[(OptionName, &str)],
) -> Job {
    let prefix = proxy.repo_prefix(&env.server);
    let mut options = vec![(OptionName::RepoPrefix, prefix.as_str())];
    options.extend_from_slice(more);
    let client = env.client_with(&options);
    let begun = Instant::now();
    let error = client.begin_within("hermes", deadline).end().unwrap_err();
    let took = begun.elapsed();
    assert!(!error.hint.is_empty(), "{error:?}");
    if error.code != Code::NoDockerfile {
        assert!(env.is_clean(), "{error:?}: {:?}", env.fetched());
    }
    drop(client);
    proxy.until_closed();
    Job { error, took }
}

/// A template of some size without a Dockerfile.
fn env() -> TestEnv {
    let env = TestEnv::new();
    env.template(
        "hermes",
        Files::from([("content".to_owned(), file(&noise(20_000)))]),
    );
    env
}

#[test]
fn a_connection_that_breaks_once_is_retried() {
    let mut rows = Vec::new();
    for request in ALL {
        for end in [End::Close, End::Reset] {
            // Before and within the request, then before the response, within its status line, its
            // headers and its body.
            rows.push((request, Handling::CutRequest(0, end)));
            rows.push((request, Handling::CutRequest(30, end)));
            for answered in [0, 5, 50, 400] {
                rows.push((request, Handling::CutAnswer(answered, end)));
            }
        }
    }
    for answered in [500, 1000, 5000, 15_000, 20_000] {
        rows.push((Objects, Handling::CutAnswer(answered, End::Reset)));
    }
    in_parallel(rows.iter(), |(request, handling)| {
        let env = env();
        let proxy = Proxy::before(&env.server, treat_requests(*request, 1, handling.clone()));
        let job = job(&env, &proxy, None, &[]);
        let error = &job.error;
        assert_eq!(
            error.code,
            Code::NoDockerfile,
            "{request:?} {handling:?}: {error:?}"
        );
        let tree = std::fs::read_dir(env.cache().join("hermes"))
            .unwrap()
            .flatten();
        let content = tree
            .map(|entry| entry.path().join("content"))
            .find(|path| path.exists());
        assert_eq!(
            std::fs::read_to_string(content.unwrap()).unwrap(),
            noise(20_000)
        );
    });
}

#[test]
fn a_connection_that_always_breaks_is_reported() {
    let mut rows = Vec::new();
    for request in ALL {
        for end in [End::Close, End::Reset] {
            rows.push((request, Handling::CutAnswer(0, end), Code::GiteaUnreachable));
        }
        let code = if request == Head {
            Code::GiteaUnreachable
        } else {
            Code::Fetch
        };
        rows.push((request, Handling::CutAnswer(BODY, End::Close), code));
    }
    in_parallel(rows.iter(), |(request, handling, code)| {
        let env = env();
        let proxy = Proxy::before(
            &env.server,
            treat_requests(*request, ALWAYS, handling.clone()),
        );
        let job = job(&env, &proxy, None, &[]);
        assert_eq!(
            job.error.code, *code,
            "{request:?} {handling:?}: {:?}",
            job.error
        );
        assert!(job.took < Duration::from_secs(30), "{:?}", job.took);
    });
}

/// One byte per second.
const DRIP: Handling = Handling::Drip(1, Duration::from_secs(1));

#[test]
fn a_slow_or_silent_response_ends_at_its_time_limit() {
    let seconds = Duration::from_secs;
    let endless_continue = Handling::Endless(Vec::new(), b"HTTP/1.1 100 Continue\r\n\r\n".to_vec());
    // The API's own timeout of 30 seconds is tested in `lookup`.
    let mut rows = vec![(Head, DRIP, Some(seconds(2)), Code::DeadlineExceeded, 2)];
    for request in [Capabilities, Objects] {
        // The stall grace, 3 seconds here, applies to the headers of a git response and to each pause
        // after them.
        rows.push((request, DRIP, None, Code::Stalled, 3));
        rows.push((
            request,
            Handling::CutAnswer(0, End::Hang),
            None,
            Code::Stalled,
            3,
        ));
        rows.push((
            request,
            Handling::CutAnswer(BODY, End::Hang),
            None,
            Code::Stalled,
            3,
        ));
        rows.push((request, endless_continue.clone(), None, Code::Stalled, 3));
        rows.push((
            request,
            Handling::CutAnswer(BODY, End::Hang),
            Some(seconds(2)),
            Code::DeadlineExceeded,
            2,
        ));
    }
    in_parallel(rows.iter(), |(request, handling, deadline, code, after)| {
        let env = env();
        let proxy = Proxy::before(
            &env.server,
            treat_requests(*request, ALWAYS, handling.clone()),
        );
        let job = job(&env, &proxy, *deadline, &[(OptionName::StallGrace, "3")]);
        let what = format!(
            "{request:?} {handling:?} after {:?}: {:?}",
            job.took, job.error
        );
        assert_eq!(job.error.code, *code, "{what}");
        assert!(
            job.took >= seconds(*after) - Duration::from_millis(100),
            "{what}"
        );
        assert!(job.took < seconds(*after) + seconds(20), "{what}");
    });
}

#[test]
fn an_endlessly_slow_body_ends_at_the_ceiling() {
    for (part, body) in [("/info/refs", ""), ("/git-upload-pack$", "fetch")] {
        let env = env();
        env.server
            .faults(json!([{ "match": part, "match_body": body, "drip_ms": 1000 }]));
        let client = env.client_with(&[(OptionName::StallGrace, "3"), (OptionName::Ceiling, "4")]);
        let begun = Instant::now();
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::Timeout, "{part} {body}: {error:?}");
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{:?}",
            begun.elapsed()
        );
        assert!(env.is_clean());
    }
}

#[test]
fn a_response_that_is_not_http_is_an_error() {
    let head = |text: &str| text.replace('\n', "\r\n").into_bytes();
    let answers = [
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20),
        vec![0; 4096],
        head("HTTP/1.1\n\n"),
        head("HTTP/1.1 0 none\n\n"),
        head("HTTP/1.1 99999 too many\n\n"),
        head("HTTP/9.9 200 OK\n\n"),
        head("HTTP/1.1 101 Switching Protocols\nUpgrade: x\nConnection: upgrade\n\n"),
        head("HTTP/1.1 200 OK\nContent-Length: -1\n\n{}"),
        head("HTTP/1.1 200 OK\nContent-Length: 99999999999999999999999\n\n{}"),
        head("HTTP/1.1 200 OK\nContent-Length: 2\nContent-Length: 3\n\n{}"),
        head("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\nffffffffffffffffff\n{}"),
        head("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\nzz\n{}"),
        head("HTTP/1.1 200 OK\nno colon\n\n"),
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n".to_vec(),
        head(&format!("HTTP/1.1 200 OK\nX: {}\n\n", "x".repeat(1 << 20))),
        head(&format!("HTTP/1.1 200 OK\n{}\n", "X: y\n".repeat(10_000))),
    ];
    let mut rows = Vec::new();
    for answer in answers {
        rows.extend(ALL.map(|request| (request, Handling::Answer(answer.clone(), End::Close))));
    }
    for request in ALL {
        let start = b"HTTP/1.1 200 OK\r\n".to_vec();
        rows.push((
            request,
            Handling::Endless(start.clone(), b"X: y\r\n".repeat(1000)),
        ));
        rows.push((request, Handling::Endless(start, b"x".repeat(10_000))));
        rows.push((request, Handling::Endless(Vec::new(), vec![0; 10_000])));
        rows.push((request, Handling::Endless(Vec::new(), b"\r\n".repeat(1000))));
    }
    in_parallel(rows.iter(), |(request, handling)| {
        let env = env();
        let proxy = Proxy::before(
            &env.server,
            treat_requests(*request, ALWAYS, handling.clone()),
        );
        let job = job(&env, &proxy, Some(Duration::from_secs(60)), &[]);
        let what = format!(
            "{request:?} {:.200} after {:?}: {:?}",
            format!("{handling:?}"),
            job.took,
            job.error
        );
        let fits = match request {
            Head => [Code::GiteaUnreachable, Code::BadResponse].contains(&job.error.code),
            _ => [Code::GiteaUnreachable, Code::Fetch].contains(&job.error.code),
        };
        assert!(fits, "{what}");
        assert!(job.took < Duration::from_secs(30), "{what}");
    });
}

/// The headers of a git response whose body ends when the connection closes.
fn git_head(kind: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-{kind}\r\n\r\n")
        .into_bytes()
}

/// The same packet 1000 times.
fn packets(text: &str) -> Vec<u8> {
    packet(text).repeat(1000)
}

#[test]
fn an_endless_git_response_uses_little_memory() {
    let sha = "0123456789abcdef0123456789abcdef01234567";
    let preamble = |head: Vec<u8>, start: &str| {
        let start = if start.is_empty() {
            Vec::new()
        } else {
            packet(start)
        };
        [head, start].concat()
    };
    let (offer, result) = (git_head("advertisement"), git_head("result"));
    let rows = [
        (
            "white space",
            Capabilities,
            offer.clone(),
            vec![b' '; 10_000],
        ),
        (
            "services",
            Capabilities,
            preamble(offer.clone(), "# service=git-upload-pack\n"),
            packets("more\n"),
        ),
        (
            "capabilities",
            Capabilities,
            preamble(offer.clone(), "version 2\n"),
            packets("agent=evil\n"),
        ),
        (
            "branches of an old git",
            Capabilities,
            offer,
            packets(&format!("{sha} refs/heads/a\0agent=evil\n")),
        ),
        (
            "shallow info",
            Objects,
            preamble(result.clone(), "shallow-info\n"),
            packets(&format!("shallow {sha}\n")),
        ),
        (
            "acknowledgments",
            Objects,
            preamble(result.clone(), "acknowledgments\n"),
            packets(&format!("ACK {sha}\n")),
        ),
        (
            "progress",
            Objects,
            preamble(result, "packfile\n"),
            packets("\x02Counting objects: 7\r"),
        ),
    ];
    in_parallel(rows.iter(), |(what, request, head, rest)| {
        let env = env();
        let handling = Handling::Endless(head.clone(), rest.clone());
        let proxy = Proxy::before(&env.server, treat_requests(*request, ALWAYS, handling));
        let prefix = proxy.repo_prefix(&env.server);
        let end = peak(
            &env,
            &[(OptionName::RepoPrefix, &prefix)],
            Some(Duration::from_secs(60)),
        );
        assert_eq!(end.status, "fetch", "{what}: {end:?}");
        assert!(end.growth_mib < 64, "{what}: {end:?}");
        assert_eq!((end.sockets, end.files), (0, 0), "{what}: {end:?}");
        assert!(env.is_clean(), "{what}: {:?}", env.fetched());
    });
}

/// A response to `command=fetch` whose pack has `count` declared objects, begins with `start` and then repeats `rest`
/// without end.
fn endless_pack(count: u32, start: &[u8], rest: &[u8]) -> Handling {
    let band = |data: &[u8]| {
        let packets = data
            .chunks(60_000)
            .map(|data| packet([b"\x01", data].concat()));
        packets.collect::<Vec<_>>().concat()
    };
    let pack = [&b"PACK\0\0\0\x02"[..], &count.to_be_bytes(), start].concat();
    let head = [git_head("result"), packet("packfile\n"), band(&pack)].concat();
    Handling::Endless(head, band(rest))
}

#[test]
fn an_endless_pack_is_refused_or_ends_at_the_deadline() {
    // A stream of stored blocks of 65535 bytes (RFC 1951, 3.2.4), none of which is marked as the last.
    let block = [&[0, 0xff, 0xff, 0, 0][..], &[b'x'; 0xffff]].concat();
    let small = Object::blob("x").entry().repeat(1000);
    let minute = Duration::from_secs(60);
    // The pack begins shortly before this deadline, counted from the first request: too late to read 2 GB of
    // incompressible objects, or 500 MiB as packets of git.
    let (deadline, late) = (Duration::from_secs(10), Duration::from_secs(8));
    let at_once = Duration::ZERO;
    let larger = Object::blob(noise(4096)).entry().repeat(100);
    let rows = [
        (
            "one file, until the deadline",
            endless_pack(1, &entry(3, 500 << 20, &[0x78, 0x01]), &block),
            late,
            deadline,
            "deadline_exceeded",
        ),
        (
            "one file, until the size limit",
            endless_pack(1, &entry(3, 500 << 20, &[0x78, 0x01]), &block),
            at_once,
            minute,
            "fetch",
        ),
        (
            "small objects",
            endless_pack(100_000, &small, &small),
            at_once,
            minute,
            "fetch",
        ),
        (
            "many large objects, until the deadline",
            endless_pack(490_000, &larger, &larger),
            late,
            deadline,
            "deadline_exceeded",
        ),
        (
            "more than any template has",
            endless_pack(3_000_000, &small, &small),
            at_once,
            minute,
            "fetch",
        ),
    ];
    for (what, handling, start, limit, status) in rows {
        let env = env();
        let begun = OnceLock::new();
        let rule = treat_requests(Objects, ALWAYS, handling);
        let proxy = Proxy::before(&env.server, move |line| {
            let begun = begun.get_or_init(Instant::now);
            let handling = rule(line);
            if handling != Handling::Pass {
                let left = start.saturating_sub(begun.elapsed());
                block_in_place(|| std::thread::sleep(left));
            }
            handling
        });
        let prefix = proxy.repo_prefix(&env.server);
        let options = [(OptionName::RepoPrefix, prefix.as_str())];
        let end = peak(&env, &options, Some(limit));
        assert_eq!(end.status, status, "{what}: {end:?}");
        let asked = proxy.sent().contains("command=fetch");
        assert!(asked, "{what}: the call ended before its fetch");
        assert!(end.growth_mib < 64, "{what}: {end:?}");
        assert_eq!((end.sockets, end.files), (0, 0), "{what}: {end:?}");
        assert!(env.is_clean(), "{what}: {:?}", env.fetched());
    }
}

#[test]
fn an_endless_api_response_uses_little_memory() {
    for (status, code) in [
        (200, "bad_response"),
        (404, "repo_not_found"),
        (500, "gitea_unreachable"),
    ] {
        let env = env();
        env.server
            .faults(json!([{ "match": "/api/", "status": status, "endless": true }]));
        let end = peak(&env, &[], None);
        assert_eq!(end.status, code, "{end:?}");
        assert!(end.growth_mib < 32, "{end:?}");
        assert_eq!(end.sockets, 0);
    }
}

#[test]
fn an_unrequested_compressed_response_is_not_decompressed() {
    // 40 MiB of white space in 40 KiB.
    let bomb = std::process::Command::new("sh")
        .args([
            "-c",
            "head -c 41943040 /dev/zero | tr '\\0' ' ' | gzip -9 | base64 -w 0",
        ])
        .output()
        .unwrap();
    let bomb = String::from_utf8(bomb.stdout).unwrap();
    assert!(bomb.len() < 64 * 1024);
    let rows = [
        ("/api/", "", "application/json", "bad_response"),
        (
            "/info/refs",
            "",
            "application/x-git-upload-pack-advertisement",
            "fetch",
        ),
        (
            "/git-upload-pack$",
            "command=fetch",
            "application/x-git-upload-pack-result",
            "fetch",
        ),
    ];
    for encoding in ["gzip", "deflate", "br", "identity, gzip"] {
        for (part, body, kind, status) in rows {
            let env = env();
            env.server.faults(
                json!([{ "match": part, "match_body": body, "body_base64": bomb,
                "headers": { "Content-Type": kind, "Content-Encoding": encoding } }]),
            );
            let end = peak(&env, &[], None);
            assert_eq!(end.status, status, "{part} {encoding}: {end:?}");
            assert!(
                end.message.contains("compressed") && end.message.contains(encoding),
                "{end:?}"
            );
            assert!(end.growth_mib < 32, "{part} {encoding}: {end:?}");
        }
    }
}

#[test]
fn no_accept_encoding_header_is_sent() {
    let env = env();
    let proxy = Proxy::before(&env.server, |_| Handling::Pass);
    job(&env, &proxy, None, &[]);
    let sent = proxy.sent().to_lowercase();
    assert!(
        sent.contains("get /api/") && sent.contains("command=fetch"),
        "{sent}"
    );
    assert!(!sent.contains("accept-encoding"), "{sent}");
}

#[test]
fn a_git_response_needs_a_git_content_type() {
    let git = ["/info/refs", "/git-upload-pack$"];
    for part in git {
        for kind in [
            "text/html",
            "",
            "application/x-git-receive-pack-advertisement",
            "application/x-git-upload-pack-result-not",
        ] {
            let env = env();
            env.server.faults(json!([{ "match": part, "status": 200, "body": "001e# service=git-upload-pack\n0000",
                "headers": { "Content-Type": kind } }]));
            let error = env.client().ensure_err("hermes");
            assert_eq!(error.code, Code::Fetch, "{part} {kind}: {error:?}");
            assert!(
                error.message().contains("did not answer as git does"),
                "{error:?}"
            );
            assert!(error.message().contains(kind), "{error:?}");
            assert!(error.hint.contains("login page"), "{error:?}");
            assert!(env.is_clean());
        }
    }
}

#[test]
fn the_api_response_is_parsed_whatever_its_content_type() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    let body = json!({ "commit": { "id": sha } }).to_string();
    for kind in ["text/html", "application/octet-stream"] {
        env.server.faults(json!([{ "match": "/api/", "status": 200, "body": body, "headers": { "Content-Type": kind } }]));
        assert_eq!(env.client().ensure("hermes").unwrap().commit_sha, sha);
    }
}

#[test]
fn a_repository_with_50000_branches_works() {
    let env = env();
    let sha = env.template("hermes", Files::from([("content".to_owned(), file("x"))]));
    env.server
        .branches(&env.server.template("hermes"), 50_000, &sha);
    let begun = Instant::now();
    let end = peak(&env, &[], None);
    assert_eq!(end.status, "no_dockerfile", "{end:?}");
    assert!(end.growth_mib < 64, "{end:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_git_server_with_protocol_0_works() {
    // Protocol 0 (gitprotocol-pack(5)) lists all refs first. Only this list is faked; git itself answers the fetch.
    let env = env();
    let sha = env.template("hermes", Files::from([("content".to_owned(), file("x"))]));
    let mut offer = packet("# service=git-upload-pack\n");
    offer.extend_from_slice(b"0000");
    let capabilities = "multi_ack_detailed side-band-64k ofs-delta shallow no-progress allow-tip-sha1-in-want allow-reachable-sha1-in-want agent=git/2.1";
    offer.extend(packet(format!("{sha} HEAD\0{capabilities}\n")));
    for number in 0..50_000 {
        offer.extend(packet(format!("{sha} refs/heads/branch-{number}\n")));
    }
    offer.extend_from_slice(b"0000");
    env.server.faults(
        json!([{ "match": "/info/refs", "body": String::from_utf8(offer).unwrap(),
        "headers": { "Content-Type": "application/x-git-upload-pack-advertisement" } }]),
    );
    let error = env.client().ensure_err("hermes");
    assert_eq!(error.code, Code::NoDockerfile, "{error:?}");
}
