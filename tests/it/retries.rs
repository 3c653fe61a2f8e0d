//! Temporary failures are retried; permanent ones are reported at once.

use std::time::{Duration, Instant, SystemTime};

use mol::Code;
use mol::event::Kind;
use serde_json::{Value, json};

use crate::support::TestEnv;
use crate::support::server::{PLAIN, dockerfile, of_service};

/// A fault for the first `times` matching requests.
fn temporary(matches: &str, times: u32, mut fault: Value) -> Value {
    fault["match"] = json!(matches);
    fault["times"] = json!(times);
    json!([fault])
}

#[test]
fn a_temporary_lookup_failure_is_retried() {
    for fault in [
        json!({ "status": 502 }),
        json!({ "status": 503 }),
        json!({ "status": 504 }),
        json!({ "status": 429 }),
        json!({ "reset": true }),
    ] {
        let env = TestEnv::new();
        env.template("hermes", dockerfile(PLAIN));
        env.server.faults(temporary("/api/", 2, fault.clone()));
        let client = env.client();
        client
            .ensure("hermes")
            .unwrap_or_else(|error| panic!("{fault}: {error:?}"));
        let requests = env.server.requests();
        assert_eq!(of_service(&requests, "api").len(), 3, "{fault}");
        assert_eq!(client.count(Kind::Warning), 2, "one warning per retry");
    }
}

#[test]
fn a_temporary_fetch_failure_is_retried() {
    for part in ["/info/refs", "/git-upload-pack$"] {
        for fault in [json!({ "status": 503 }), json!({ "reset": true })] {
            let env = TestEnv::new();
            let sha = env.template("hermes", dockerfile(PLAIN));
            env.server.faults(temporary(part, 1, fault.clone()));
            let client = env.client();
            let image = client.ensure("hermes");
            let image = image.unwrap_or_else(|error| panic!("{part} {fault}: {error:?}"));
            assert_eq!(image.commit_sha, sha);
            assert_eq!(client.count(Kind::Warning), 1, "{part} {fault}");
        }
    }
}

#[test]
fn a_truncated_fetch_is_retried() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.server.faults(temporary(
        "/git-upload-pack$",
        1,
        json!({ "truncate_after": 20 }),
    ));
    let client = env.client();
    client.ensure("hermes").unwrap();
    assert_eq!(client.count(Kind::Warning), 1, "it was truncated once");
}

#[test]
fn a_permanent_failure_is_not_retried() {
    for status in [400, 401, 403, 410, 500, 501] {
        let env = TestEnv::new();
        env.template("hermes", dockerfile(PLAIN));
        env.server
            .faults(json!([{ "match": "/api/", "status": status }]));
        env.client().ensure_err("hermes");
        assert_eq!(env.server.requests().len(), 1, "{status}");
    }
}

#[test]
fn retry_after_in_seconds_is_respected() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.server.faults(temporary(
        "/api/",
        1,
        json!({ "status": 429, "headers": { "Retry-After": "2" } }),
    ));
    let begun = Instant::now();
    env.client().ensure("hermes").unwrap();
    assert!(
        begun.elapsed() >= Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}

/// An HTTP-date for Retry-After (RFC 9110), this many seconds from now. Its resolution is one second.
fn date(from_now: u64) -> String {
    httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(from_now))
}

#[test]
fn retry_after_as_a_date_is_respected() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let fault = json!({ "status": 503, "headers": { "Retry-After": date(4) } });
    env.server.faults(temporary("/api/", 1, fault));
    let begun = Instant::now();
    env.client().ensure("hermes").unwrap();
    // The date and the remaining time are both rounded down to seconds. Without the header the pause is at most 0.5 s.
    assert!(
        begun.elapsed() >= Duration::from_millis(1500),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_past_or_invalid_retry_after_is_ignored() {
    for value in ["Tue, 15 Nov 1994 08:12:31 GMT", "soon", "-5", ""] {
        let env = TestEnv::new();
        env.template("hermes", dockerfile(PLAIN));
        let fault = json!({ "status": 503, "headers": { "Retry-After": value } });
        env.server.faults(temporary("/api/", 1, fault));
        let client = env.client();
        client.ensure("hermes").unwrap();
        let warnings = client.of_kind(Kind::Warning);
        assert_eq!(warnings.len(), 1, "{value:?}: {warnings:?}");
        let pause = warnings[0].message.split_once("again in ").unwrap().1;
        let pause: f64 = pause.split(' ').next().unwrap().parse().unwrap();
        assert!((0.1..=1.0).contains(&pause), "{value:?}: {warnings:?}");
    }
}

#[test]
fn a_retry_after_that_is_too_long_is_reported() {
    let later = SystemTime::now() + Duration::from_secs(3 * 3600 - 60);
    let (hour, date) = ("3600".to_owned(), httpdate::fmt_http_date(later));
    for (status, value, says) in [
        (429, &hour, "a pause of 60 minutes"),
        (503, &hour, "a pause of 60 minutes"),
        (429, &date, "a pause of 3 hours"),
        (429, &"99999999999999999999".to_owned(), "hours"),
    ] {
        for (part, code) in [
            ("/api/", Code::GiteaUnreachable),
            ("/info/refs", Code::Fetch),
        ] {
            let env = TestEnv::new();
            env.template("hermes", dockerfile(PLAIN));
            env.server.faults(json!([{ "match": part, "status": status,
                "headers": { "Retry-After": value } }]));
            let error = env.client().ensure_err("hermes");
            assert_eq!(error.code, code, "{error:?}");
            assert!(error.message().contains(&status.to_string()), "{error:?}");
            assert!(error.message().contains(says), "{error:?}");
            let mut requests = env.server.requests();
            requests.retain(|request| request.path.contains(part));
            assert_eq!(requests.len(), 1, "{value} {part}: {requests:?}");
        }
    }
}

#[test]
fn a_lasting_failure_is_reported_after_four_retries() {
    let env = TestEnv::new();
    env.server
        .faults(json!([{ "match": "/api/", "status": 503 }]));
    let error = env.client().ensure_err("hermes");
    assert_eq!(error.code, Code::GiteaUnreachable);
    assert!(error.message().contains("503"), "{error:?}");
    assert_eq!(env.server.requests().len(), 1 + 4);
}

#[test]
fn the_deadline_ends_the_retries() {
    let env = TestEnv::new();
    env.server
        .faults(json!([{ "match": "/api/", "status": 503, "headers": { "Retry-After": "30" } }]));
    let client = env.client();
    let begun = Instant::now();
    let error = client
        .begin_within("hermes", Some(Duration::from_millis(500)))
        .end()
        .unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded);
    assert!(begun.elapsed() < Duration::from_secs(10));
}
