//! Cancelling stops the work within a second, in the engine too, without affecting other callers
//! (promise P4).

use std::sync::mpsc;
use std::time::{Duration, Instant};

use mol::event::Kind;
use mol::{Code, Error, OptionName};
use serde_json::json;

use crate::support::engine::{BUSYBOX, assert_gone, end_sleep_of, is_running};
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{
    CANCEL_LIMIT, End, Handling, Proxy, TestClient, TestEnv, block_on, random_below, soak, unique,
    wait_until,
};

/// A template whose build prints the returned word and then does not end. The word is also in the
/// command line of the build's process.
fn endless(env: &TestEnv, runtime: &str) -> String {
    let word = unique();
    let text = format!("FROM {BUSYBOX}\nRUN echo running {word}; sleep 600; true\n");
    env.template(runtime, dockerfile(&text));
    word
}

/// Waits until the build's process runs on this machine.
fn wait_until_it_builds(client: &TestClient, word: &str) {
    client.wait_for_line(word);
    assert!(
        is_running(word),
        "the test must see the processes of the engine"
    );
}

fn assert_cancel_stops_the_build(env: &TestEnv, client: &TestClient) {
    let word = endless(env, "hermes");
    let call = client.begin("hermes");
    wait_until_it_builds(client, &word);

    let since = Instant::now();
    client.cancel_in_time(call);
    assert_gone(&word, since);
    assert!(env.engine.references_of(&env.isolation).is_empty());
}

#[test]
fn a_cancelled_call_stops_the_build_in_the_engine_within_a_second() {
    let env = TestEnv::new();
    let client = env.client();
    assert_cancel_stops_the_build(&env, &client);
}

#[test]
fn a_cancelled_call_stops_the_classic_builder_within_a_second() {
    let env = TestEnv::new();
    let client = env.client_with(&[(OptionName::DockerBuildkit, "0")]);
    assert_cancel_stops_the_build(&env, &client);
}

#[test]
fn closing_a_client_stops_its_builds() {
    let env = TestEnv::new();
    let client = env.client();
    let word = endless(&env, "hermes");
    let call = client.begin("hermes");
    wait_until_it_builds(&client, &word);
    let since = Instant::now();
    block_on(client.inner().close());
    assert!(
        since.elapsed() < CANCEL_LIMIT,
        "it took {:?}",
        since.elapsed()
    );
    assert_eq!(call.end().unwrap_err().code, Code::Canceled);
    assert_gone(&word, since);
}

#[test]
fn dropping_a_client_cancels_its_calls() {
    let env = TestEnv::new();
    env.server
        .faults(json!([{ "match": "/api/", "hang": true }]));
    let client = mol::Client::new(&env.options(), None).unwrap();
    let (sender, ended) = mpsc::channel();
    let end = move |_, result: mol::Result<mol::Image>| sender.send(result).unwrap();
    client
        .ensure_local_image("hermes")
        .start(None, end)
        .unwrap();
    wait_until("the request", || {
        (!env.server.requests().is_empty()).then_some(())
    });
    drop(client);
    let error = ended.recv_timeout(CANCEL_LIMIT).unwrap().unwrap_err();
    assert_eq!(error.code, Code::Canceled);
}

#[test]
fn dropping_a_future_stops_its_build() {
    let env = TestEnv::new();
    let client = env.client();
    let word = endless(&env, "hermes");
    let since = block_on(async {
        let work = client.inner().ensure_local_image("hermes").wait(None);
        let seen = async {
            while !is_running(&word) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            result = work => panic!("the build must not end: {result:?}"),
            () = seen => Instant::now(),
        }
    });
    assert_gone(&word, since);
}

/// The error names the step that was running. The tests give a busy machine enough time to begin it.
fn assert_in_step(instruction: &str, error: &Error) {
    let step = error.build.as_ref().map_or("", |build| &build.step);
    assert!(step.contains(instruction), "{error:?}");
}

#[test]
fn the_deadline_of_a_call_stops_its_build() {
    let env = TestEnv::new();
    let client = env.client();
    let word = endless(&env, "hermes");
    let error = client
        .begin_within("hermes", Some(Duration::from_secs(12)))
        .end()
        .unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded);
    assert_in_step("RUN", &error);
    assert_gone(&word, Instant::now());
}

#[test]
fn without_a_deadline_the_ceiling_ends_the_call() {
    let env = TestEnv::new();
    let client = env.client_with(&[(OptionName::Ceiling, "12")]);
    let word = endless(&env, "hermes");
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::Timeout);
    assert!(error.hint.contains("MOLECULE_BUILD_CEILING_S"), "{error:?}");
    assert_in_step("RUN", &error);
    assert_gone(&word, Instant::now());
}

#[test]
fn a_deadline_replaces_the_ceiling() {
    let env = TestEnv::new();
    let text = format!("FROM {BUSYBOX}\nRUN echo {}; sleep 3\n", unique());
    env.template("hermes", dockerfile(&text));
    let client = env.client_with(&[(OptionName::Ceiling, "1")]);
    client
        .begin_within("hermes", Some(Duration::from_secs(60)))
        .end()
        .unwrap();
}

#[test]
fn a_call_cancelled_right_after_its_start_has_no_effect() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.server
        .faults(json!([{ "match": "/api/", "hang": true }]));
    let client = env.client();
    let call = client.begin("hermes");
    client.cancel(call);
    block_on(client.inner().close());
    assert!(!env.cache().exists());
    assert!(env.engine.references_of(&env.isolation).is_empty());
}

#[test]
fn a_call_cancelled_during_the_lookup_ends_at_once() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.server
        .faults(json!([{ "match": "/api/", "hang": true }]));
    let client = env.client();
    let call = client.begin("hermes");
    client.wait_for(Kind::LookupStarted, |_| true);
    client.cancel_in_time(call);
    assert!(!env.cache().exists());
}

#[test]
fn a_call_cancelled_during_the_fetch_ends_at_once_and_cleans_up() {
    for part in ["/info/refs", "/git-upload-pack"] {
        let env = TestEnv::new();
        env.template("hermes", dockerfile(PLAIN));
        env.server
            .faults(json!([{ "match": part, "truncate_after": 30, "hang": true }]));
        let client = env.client();
        let call = client.begin("hermes");
        client.wait_for(Kind::FetchStarted, |_| true);
        wait_until("the request", || {
            env.server
                .requests()
                .iter()
                .any(|r| r.path.contains(part.trim_start_matches('/')))
                .then_some(())
        });
        let since = Instant::now();
        client.cancel_in_time(call);

        wait_until("the removal of the partial tree", || {
            env.fetched().is_empty().then_some(())
        });
        assert!(
            since.elapsed() < CANCEL_LIMIT,
            "it took {:?}",
            since.elapsed()
        );
        env.server.faults(json!([]));
        env.client().ensure("hermes").unwrap();
    }
}

#[test]
fn closing_a_client_removes_partial_fetches() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.server
        .faults(json!([{ "match": "/info/refs", "truncate_after": 30, "hang": true }]));
    let client = env.client();
    let call = client.begin("hermes");
    wait_until("the fetch", || (!env.fetched().is_empty()).then_some(()));
    block_on(client.inner().close());
    assert!(env.fetched().is_empty(), "{:?}", env.fetched());
    assert_eq!(call.end().unwrap_err().code, Code::Canceled);
}

#[test]
fn cancelling_a_finished_call_has_no_effect() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let client = env.client();
    let call = client.begin("hermes");
    let id = call.id;
    call.end().unwrap();
    client.inner().cancel(id);
    client.inner().cancel(u64::MAX);
    client.ensure("hermes").unwrap();
}

#[test]
fn one_callers_cancel_does_not_affect_the_others() {
    let env = TestEnv::new();
    let word = unique();
    let text = format!("FROM {BUSYBOX}\nRUN echo running {word}; sleep 600; echo {word} > /done\n");
    env.template("hermes", dockerfile(&text));
    let client = env.client();
    let (first, second) = (client.begin("hermes"), client.begin("hermes"));
    wait_until_it_builds(&client, &word);
    client.wait_for(Kind::Waiting, |_| true);
    client.cancel(first);
    assert!(is_running(&word), "the other caller still needs the build");
    end_sleep_of(&word);
    let image = second.end().unwrap();
    assert_eq!(env.engine.read(&image.reference, "done").trim(), word);
    assert_eq!(client.count(Kind::BuildStarted), 1);
}

#[test]
fn the_build_stops_when_its_last_caller_cancels() {
    let env = TestEnv::new();
    let client = env.client();
    let word = endless(&env, "hermes");
    let calls = [client.begin("hermes"), client.begin("hermes")];
    wait_until_it_builds(&client, &word);
    client.wait_for(Kind::Waiting, |_| true);
    let since = Instant::now();
    for call in calls {
        client.cancel(call);
    }
    assert_gone(&word, since);
}

#[test]
fn the_last_of_100_callers_gets_its_image_when_99_cancel_at_random() {
    soak(|| {
        let env = TestEnv::new();
        let word = unique();
        let text = format!("FROM {BUSYBOX}\nRUN echo running {word}; sleep 600; echo > /{word}\n");
        env.template("hermes", dockerfile(&text));
        let client = env.client();
        let mut calls: Vec<_> = (0..100).map(|_| client.begin("hermes")).collect();
        wait_until_it_builds(&client, &word);
        wait_until("99 calls to wait", || {
            (client.count(Kind::Waiting) == 99).then_some(())
        });
        // Any of them may be the last, also the one that started the build.
        let last = calls.swap_remove(random_below(100) as usize);
        let mut delays: Vec<u64> = calls.iter().map(|_| random_below(1000)).collect();
        delays.sort_unstable();
        let begun = Instant::now();
        for (call, delay) in calls.into_iter().zip(delays) {
            std::thread::sleep(Duration::from_millis(delay).saturating_sub(begun.elapsed()));
            client.cancel_in_time(call);
        }
        end_sleep_of(&word);
        let image = last.end().unwrap();
        assert!(env.engine.files(&image.reference).contains_key(&word));
        assert_eq!(client.count(Kind::BuildStarted), 1);
        assert_eq!(client.count(Kind::FetchStarted), 1);
    });
}

#[test]
fn the_build_stops_when_all_of_100_callers_cancel_at_random() {
    soak(|| {
        let env = TestEnv::new();
        let client = env.client();
        let word = endless(&env, "hermes");
        let calls: Vec<_> = (0..100).map(|_| client.begin("hermes")).collect();
        wait_until_it_builds(&client, &word);
        wait_until("99 calls to wait", || {
            (client.count(Kind::Waiting) == 99).then_some(())
        });
        for call in calls {
            std::thread::sleep(Duration::from_millis(random_below(10)));
            assert!(is_running(&word), "a caller still needs the build");
            client.cancel(call);
        }
        assert_gone(&word, Instant::now());
        assert_eq!(client.count(Kind::BuildStarted), 1);
        assert!(env.engine.references_of(&env.isolation).is_empty());
        assert!(!env.cached_paths().iter().any(|path| path.contains(".work")));
    });
}

#[test]
fn no_partial_tree_remains_when_all_cancel_during_the_fetch() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.server
        .faults(json!([{ "match": "/git-upload-pack$", "truncate_after": 40, "hang": true }]));
    let client = env.client();
    let calls: Vec<_> = (0..100).map(|_| client.begin("hermes")).collect();
    wait_until("the fetch", || (!env.fetched().is_empty()).then_some(()));
    for call in calls {
        client.cancel(call);
    }
    let since = Instant::now();
    wait_until("the removal of the partial tree", || {
        env.fetched().is_empty().then_some(())
    });
    assert!(
        since.elapsed() < CANCEL_LIMIT,
        "it took {:?}",
        since.elapsed()
    );
}

#[test]
fn cancelling_during_the_build_keeps_the_fetched_tree() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    // The engine never confirms the upload, so the tree is not yet marked complete at the cancel.
    let proxy = Proxy::start(&env.engine, env.scratch(), |line| {
        match line.contains("/build?") {
            true => Handling::Answer(Vec::new(), End::Hang),
            false => Handling::Pass,
        }
    });
    let marked = || env.fetched().iter().any(|path| path.ends_with(".json"));
    let through = env.client_with(&[(OptionName::DockerHost, &proxy.url)]);
    let call = through.begin("hermes");
    through.wait_for(Kind::BuildStarted, |_| true);
    assert!(!marked());
    through.cancel(call);
    wait_until("the completion marker", || marked().then_some(()));

    let client = env.client();
    assert!(!client.ensure("hermes").unwrap().cache_hit);
    assert_eq!(client.count(Kind::FetchStarted), 0);
}

#[test]
fn a_call_after_a_cancelled_build_succeeds() {
    let env = TestEnv::new();
    let client = env.client();
    let word = endless(&env, "hermes");
    let call = client.begin("hermes");
    wait_until_it_builds(&client, &word);
    client.inner().cancel(call.id);
    call.end().unwrap_err();
    env.template("hermes", dockerfile(PLAIN));
    client.ensure("hermes").unwrap();
}
