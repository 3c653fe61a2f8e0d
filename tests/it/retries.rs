//! What fails for a moment only is tried again; what does not is told at once.

use std::time::{Duration, Instant, SystemTime};

use mol::Code;
use mol::event::Kind;
use serde_json::{Value, json};

use crate::support::Bed;
use crate::support::server::{dockerfile, of_service};

const PLAIN: &str = "FROM scratch\nCOPY Dockerfile /\n";

/// A fault for the first requests that match.
fn passing(matches: &str, times: u32, mut fault: Value) -> Value {
    fault["match"] = json!(matches);
    fault["times"] = json!(times);
    json!([fault])
}

#[test]
fn a_lookup_that_fails_for_a_moment_is_tried_again() {
    for fault in [
        json!({ "status": 502 }),
        json!({ "status": 503 }),
        json!({ "status": 504 }),
        json!({ "status": 429 }),
        json!({ "reset": true }),
    ] {
        let bed = Bed::new();
        bed.template("hermes", dockerfile(PLAIN));
        bed.server.faults(passing("/api/", 2, fault.clone()));
        let client = bed.client();
        client
            .ensure("hermes")
            .unwrap_or_else(|error| panic!("{fault}: {error:?}"));
        let requests = bed.server.requests();
        assert_eq!(of_service(&requests, "api").len(), 3, "{fault}");
        assert_eq!(client.count(Kind::Warning), 2, "each is told");
    }
}

#[test]
fn a_fetch_that_fails_for_a_moment_is_tried_again() {
    for part in ["/info/refs", "/git-upload-pack$"] {
        for fault in [json!({ "status": 503 }), json!({ "reset": true })] {
            let bed = Bed::new();
            let sha = bed.template("hermes", dockerfile(PLAIN));
            bed.server.faults(passing(part, 1, fault.clone()));
            let image = bed.client().ensure("hermes");
            let image = image.unwrap_or_else(|error| panic!("{part} {fault}: {error:?}"));
            assert_eq!(image.commit_sha, sha);
        }
    }
}

#[test]
fn a_fetch_that_breaks_off_is_tried_again() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    bed.server.faults(passing(
        "/git-upload-pack$",
        1,
        json!({ "truncate_after": 20 }),
    ));
    bed.client().ensure("hermes").unwrap();
}

#[test]
fn what_stays_as_it_is_is_asked_for_once() {
    for status in [400, 401, 403, 410, 500, 501] {
        let bed = Bed::new();
        bed.template("hermes", dockerfile(PLAIN));
        bed.server
            .faults(json!([{ "match": "/api/", "status": status }]));
        bed.client().refused("hermes");
        assert_eq!(bed.server.requests().len(), 1, "{status}");
    }
}

#[test]
fn the_server_says_when_to_come_back() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    bed.server.faults(passing(
        "/api/",
        1,
        json!({ "status": 429, "headers": { "Retry-After": "2" } }),
    ));
    let begun = Instant::now();
    bed.client().ensure("hermes").unwrap();
    assert!(
        begun.elapsed() >= Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}

/// A moment from now as Retry-After may have it (RFC 9110, "HTTP-date"): in whole seconds.
fn date(from_now: u64) -> String {
    httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(from_now))
}

#[test]
fn the_server_says_when_to_come_back_with_a_date() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    let fault = json!({ "status": 503, "headers": { "Retry-After": date(4) } });
    bed.server.faults(passing("/api/", 1, fault));
    let begun = Instant::now();
    bed.client().ensure("hermes").unwrap();
    // The date, and what is left until then, are cut to whole seconds. Without it the pause is 0.5 s at most.
    assert!(
        begun.elapsed() >= Duration::from_millis(1500),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_date_that_has_passed_or_is_none_means_soon() {
    for value in ["Tue, 15 Nov 1994 08:12:31 GMT", "soon", "-5", ""] {
        let bed = Bed::new();
        bed.template("hermes", dockerfile(PLAIN));
        let fault = json!({ "status": 503, "headers": { "Retry-After": value } });
        bed.server.faults(passing("/api/", 1, fault));
        let client = bed.client();
        client.ensure("hermes").unwrap();
        assert_eq!(client.count(Kind::Warning), 1, "{value:?}");
    }
}

#[test]
fn a_server_that_wants_an_hour_is_told_of_at_once() {
    for after in ["3600".to_owned(), date(3600)] {
        let bed = Bed::new();
        bed.server.faults(
            json!([{ "match": "/api/", "status": 503, "headers": { "Retry-After": after } }]),
        );
        let begun = Instant::now();
        let error = bed.client().refused("hermes");
        assert_eq!(error.code, Code::GiteaUnreachable);
        assert!(error.message.contains("503"), "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert_eq!(bed.server.requests().len(), 1, "{after}");
    }
}

#[test]
fn the_pause_that_a_server_wants_is_told_where_it_is_not_waited_for() {
    let later = SystemTime::now() + Duration::from_secs(3 * 3600 - 60);
    let (hour, date) = ("3600".to_owned(), httpdate::fmt_http_date(later));
    for (status, value, says) in [
        (429, &hour, "a pause of 60 minutes"),
        (503, &hour, "a pause of 60 minutes"),
        (429, &date, "a pause of 3 hours"),
        (429, &"99999999999999999999".to_owned(), "hours"),
    ] {
        for part in ["/api/", "/info/refs"] {
            let bed = Bed::new();
            bed.template("hermes", dockerfile(PLAIN));
            bed.server.faults(json!([{ "match": part, "status": status,
                "headers": { "Retry-After": value } }]));
            let begun = Instant::now();
            let error = bed.client().refused("hermes");
            assert!(error.message.contains(&status.to_string()), "{error:?}");
            assert!(error.message.contains(says), "{error:?}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{value}");
        }
    }
}

#[test]
fn a_failure_that_does_not_pass_is_told_in_the_end() {
    let bed = Bed::new();
    bed.server
        .faults(json!([{ "match": "/api/", "status": 503 }]));
    let error = bed.client().refused("hermes");
    assert_eq!(error.code, Code::GiteaUnreachable);
    assert!(error.message.contains("503"), "{error:?}");
    let tries = bed.server.requests().len();
    assert!((3..10).contains(&tries), "{tries}");
}

#[test]
fn the_deadline_ends_the_trying() {
    let bed = Bed::new();
    bed.server
        .faults(json!([{ "match": "/api/", "status": 503, "headers": { "Retry-After": "30" } }]));
    let client = bed.client();
    let begun = Instant::now();
    let error = client
        .begin_within("hermes", Some(Duration::from_millis(500)))
        .end()
        .unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded);
    assert!(begun.elapsed() < Duration::from_millis(1500));
}
