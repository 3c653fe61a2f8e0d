//! The metrics of a client.

use mol::event::Kind;
use serde_json::json;

use crate::support::child::{BOTH, command, field, program, succeed};
use crate::support::engine::{BUSYBOX, end_sleep_of};
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{TestEnv, wait_until};

#[test]
fn calls_hits_misses_builds_and_failures_add_up() {
    let env = TestEnv::new();
    let client = env.client();
    let before = client.inner().metrics();
    assert_eq!(before.calls["ok"], 0);
    assert_eq!(before.call_durations.count, 0);

    env.template("hermes", dockerfile(PLAIN));
    client.ensure("hermes").unwrap();
    client.ensure("hermes").unwrap();
    client.ensure_err("codex");
    env.template(
        "hermes",
        dockerfile(&format!("FROM {BUSYBOX}\nRUN exit 3\n")),
    );
    client.ensure_err("hermes");

    let found = client.inner().metrics();
    assert_eq!(
        json!(found.calls),
        json!({ "ok": 2, "repo_not_found": 1, "build_failed": 1 })
    );
    assert_eq!(json!(found.builds), json!({ "ok": 1, "build_failed": 1 }));
    assert_eq!(
        json!(found.node_builds),
        json!({ "engine": { "ok": 1, "build_failed": 1 } })
    );
    assert_eq!(json!(found.node_builds_in_progress), json!({ "engine": 0 }));
    assert_eq!((found.hits, found.misses, found.in_progress), (1, 2, 0));
    assert_eq!(found.call_durations.count, 4);
    for (step, times) in [
        ("lookup", 4),
        ("inspect", 3),
        ("fetch", 2),
        ("build", 2),
        ("tag", 1),
        ("wait", 2),
    ] {
        let durations = &found.step_durations[step];
        assert_eq!(durations.count, times, "{step}");
        assert!(
            durations.buckets.is_sorted_by_key(|bucket| bucket.count),
            "{step}"
        );
        assert!(durations.buckets.last().unwrap().count <= times, "{step}");
        assert!(
            durations.sum_seconds <= found.call_durations.sum_seconds,
            "{step}"
        );
    }
}

#[test]
fn a_shared_build_counts_once_and_its_waiters_are_counted() {
    let env = TestEnv::new();
    let client = env.client();
    env.template(
        "hermes",
        dockerfile(&format!(
            "FROM {BUSYBOX}\nRUN echo {}; sleep 600; true\n",
            env.isolation
        )),
    );
    let calls: Vec<_> = (0..10).map(|_| client.begin("hermes")).collect();
    client.wait_for_line(&env.isolation);
    wait_until("9 calls to wait", || {
        (client.count(Kind::Waiting) == 9).then_some(())
    });
    let found = client.inner().metrics();
    assert_eq!(found.in_progress, 10);
    assert_eq!(json!(found.node_builds_in_progress), json!({ "engine": 1 }));
    end_sleep_of(&env.isolation);
    for call in calls {
        call.end().unwrap();
    }
    let found = client.inner().metrics();
    assert_eq!(found.calls["ok"], 10);
    assert_eq!(found.builds["ok"], 1);
    assert_eq!(found.waits, 9);
    assert_eq!(found.hits + found.misses, 10);
    assert_eq!(found.step_durations["build"].count, 1);
}

#[test]
fn events_name_documented_spans() {
    let env = TestEnv::new();
    let client = env.client();
    env.template("hermes", dockerfile(PLAIN));
    client.ensure("hermes").unwrap();
    let mut spans: Vec<&str> = client
        .events()
        .iter()
        .filter_map(|event| event.span)
        .collect();
    spans.sort_unstable();
    spans.dedup();
    for span in [
        "mol.lookup",
        "mol.inspect",
        "mol.fetch",
        "mol.build",
        "mol.build.step",
        "mol.tag",
    ] {
        assert!(spans.contains(&span), "{span} in {spans:?}");
    }
    let document = include_str!("../../docs/events.md");
    for kind in Kind::ALL {
        if let Some(span) = kind.span() {
            assert!(document.contains(&format!("`{span}`")), "{span}");
        }
    }
}

#[test]
fn a_c_program_reads_metrics_and_build_log() {
    for link in BOTH {
        let env = TestEnv::new();
        env.template("hermes", dockerfile(PLAIN));
        let output = succeed(command(&env, &program("upkeep", link)).arg("metrics"));
        let json_field = |name: &str| -> serde_json::Value {
            serde_json::from_str(&field(&output, name)).unwrap()
        };
        assert_eq!(json_field("metrics")["calls"], json!({ "ok": 1 }));
        assert!(json_field("log")["text"].as_str().unwrap().contains("done"));
    }
}
