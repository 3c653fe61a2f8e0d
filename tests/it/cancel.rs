//! Cancelling stops the work within a second, in the engine too, without affecting other callers
//! (promise P4).

use std::sync::mpsc;
use std::time::{Duration, Instant};

use mol::Code;
use mol::OptionName;
use mol::event::Kind;
use serde_json::json;

use crate::support::engine::{BUSYBOX, is_running};
use crate::support::server::dockerfile;
use crate::support::{
    AT_ONCE, Bed, End, Proxy, TestClient, Treat, block_on, chance, soak, unique, until,
};

/// A template whose build prints the returned word and then does not end. The word is also in the
/// command line of the build's process.
fn endless(bed: &Bed, runtime: &str) -> String {
    let word = unique();
    let text = format!("FROM {BUSYBOX}\nRUN echo running {word}; sleep 600; true\n");
    bed.template(runtime, dockerfile(&text));
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

/// The process ends within the promised time.
fn assert_gone(word: &str, since: Instant) {
    until("the end of the build's process", || {
        (!is_running(word)).then_some(())
    });
    assert!(since.elapsed() < AT_ONCE, "it took {:?}", since.elapsed());
}

fn assert_cancel_stops_the_build(bed: &Bed, client: &TestClient) {
    let word = endless(bed, "hermes");
    let call = client.begin("hermes");
    wait_until_it_builds(client, &word);

    let since = Instant::now();
    client.cancel(&call);
    assert_eq!(call.end().unwrap_err().code, Code::Canceled);
    assert!(since.elapsed() < AT_ONCE, "it took {:?}", since.elapsed());
    assert_gone(&word, since);
    assert!(bed.engine.references_of(&bed.isolation).is_empty());
}

#[test]
fn a_cancelled_call_stops_the_build_in_the_engine_within_a_second() {
    let bed = Bed::new();
    let client = bed.client();
    assert_cancel_stops_the_build(&bed, &client);
}

#[test]
fn a_cancelled_call_stops_the_classic_builder_within_a_second() {
    let bed = Bed::new();
    let client = bed.client_with(&[(OptionName::DockerBuildkit, "0")]);
    assert_cancel_stops_the_build(&bed, &client);
}

#[test]
fn closing_a_client_stops_its_builds() {
    let bed = Bed::new();
    let client = bed.client();
    let word = endless(&bed, "hermes");
    let call = client.begin("hermes");
    wait_until_it_builds(&client, &word);
    let since = Instant::now();
    block_on(client.inner().close());
    assert!(since.elapsed() < AT_ONCE, "it took {:?}", since.elapsed());
    assert_eq!(call.end().unwrap_err().code, Code::Canceled);
    assert_gone(&word, since);
}

#[test]
fn dropping_a_client_cancels_its_calls() {
    let bed = Bed::new();
    bed.server
        .faults(json!([{ "match": "/api/", "hang": true }]));
    let client = mol::Client::new(&bed.options(), None).unwrap();
    let (sender, ended) = mpsc::channel();
    let end = move |_, result: mol::Result<mol::Image>| sender.send(result).unwrap();
    client.start("hermes", None, end).unwrap();
    until("the request", || {
        (!bed.server.requests().is_empty()).then_some(())
    });
    drop(client);
    let error = ended.recv_timeout(AT_ONCE).unwrap().unwrap_err();
    assert_eq!(error.code, Code::Canceled);
}

#[test]
fn dropping_a_future_stops_its_build() {
    let bed = Bed::new();
    let client = bed.client();
    let word = endless(&bed, "hermes");
    let since = block_on(async {
        let work = client.inner().ensure_local_image("hermes", None);
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

#[test]
fn the_deadline_of_a_call_stops_its_build() {
    let bed = Bed::new();
    let client = bed.client();
    let word = endless(&bed, "hermes");
    let error = client
        .begin_within("hermes", Some(Duration::from_secs(4)))
        .end()
        .unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded);
    assert_gone(&word, Instant::now());
}

#[test]
fn without_a_deadline_the_ceiling_ends_the_call() {
    let bed = Bed::new();
    let client = bed.client_with(&[(OptionName::Ceiling, "4")]);
    let word = endless(&bed, "hermes");
    let error = client.refused("hermes");
    assert_eq!(error.code, Code::Timeout);
    assert!(error.hint.contains("MOLECULE_BUILD_CEILING_S"), "{error:?}");
    let step = error.build.as_ref().map_or("", |build| &build.step);
    assert!(step.contains("RUN"), "the error names the step: {error:?}");
    assert_gone(&word, Instant::now());
}

#[test]
fn a_deadline_replaces_the_ceiling() {
    let bed = Bed::new();
    let text = format!("FROM {BUSYBOX}\nRUN echo {}; sleep 3\n", unique());
    bed.template("hermes", dockerfile(&text));
    let client = bed.client_with(&[(OptionName::Ceiling, "1")]);
    client
        .begin_within("hermes", Some(Duration::from_secs(60)))
        .end()
        .unwrap();
}

#[test]
fn a_call_cancelled_right_after_its_start_has_no_effect() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    bed.server
        .faults(json!([{ "match": "/api/", "delay_ms": 200 }]));
    let client = bed.client();
    let call = client.begin("hermes");
    client.cancel(&call);
    assert_eq!(call.end().unwrap_err().code, Code::Canceled);
    block_on(client.inner().close());
    assert!(!bed.cache().exists());
    assert!(bed.engine.references_of(&bed.isolation).is_empty());
}

#[test]
fn a_call_cancelled_during_the_lookup_ends_at_once() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    bed.server
        .faults(json!([{ "match": "/api/", "hang": true }]));
    let client = bed.client();
    let call = client.begin("hermes");
    client.wait_for(Kind::LookupStarted, |_| true);
    let since = Instant::now();
    client.cancel(&call);
    assert_eq!(call.end().unwrap_err().code, Code::Canceled);
    assert!(since.elapsed() < AT_ONCE);
    assert!(!bed.cache().exists());
}

#[test]
fn a_call_cancelled_during_the_fetch_ends_at_once_and_cleans_up() {
    for part in ["/info/refs", "/git-upload-pack"] {
        let bed = Bed::new();
        let sha = bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
        bed.server
            .faults(json!([{ "match": part, "truncate_after": 30, "hang": true }]));
        let client = bed.client();
        let call = client.begin("hermes");
        client.wait_for(Kind::FetchStarted, |_| true);
        until("the request", || {
            bed.server
                .requests()
                .iter()
                .any(|r| r.path.contains(part.trim_start_matches('/')))
                .then_some(())
        });
        let since = Instant::now();
        client.cancel(&call);
        assert_eq!(call.end().unwrap_err().code, Code::Canceled);
        assert!(since.elapsed() < AT_ONCE);

        until("the removal of the partial tree", || {
            leftovers(&bed, &sha).is_empty().then_some(())
        });
        assert!(since.elapsed() < AT_ONCE, "it took {:?}", since.elapsed());
        bed.server.faults(json!([]));
        bed.client().ensure("hermes").unwrap();
    }
}

/// The files of a fetch in the cache, partial or complete.
fn leftovers(bed: &Bed, sha: &str) -> Vec<String> {
    let mut paths = bed.cached_paths();
    paths.retain(|path| path.contains("work") || path.ends_with(&sha[..12]));
    paths
}

#[test]
fn closing_a_client_removes_partial_fetches() {
    let bed = Bed::new();
    let sha = bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    bed.server
        .faults(json!([{ "match": "/info/refs", "truncate_after": 30, "hang": true }]));
    let client = bed.client();
    let call = client.begin("hermes");
    until("the fetch", || {
        (!leftovers(&bed, &sha).is_empty()).then_some(())
    });
    block_on(client.inner().close());
    assert!(
        leftovers(&bed, &sha).is_empty(),
        "{:?}",
        leftovers(&bed, &sha)
    );
    assert_eq!(call.end().unwrap_err().code, Code::Canceled);
}

#[test]
fn cancelling_a_finished_call_has_no_effect() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    let client = bed.client();
    let call = client.begin("hermes");
    let id = call.id;
    call.end().unwrap();
    client.inner().cancel(id);
    client.inner().cancel(u64::MAX);
    client.ensure("hermes").unwrap();
}

#[test]
fn one_callers_cancel_does_not_affect_the_others() {
    let bed = Bed::new();
    let word = unique();
    let text = format!("FROM {BUSYBOX}\nRUN echo running {word}; sleep 3; echo {word} > /done\n");
    bed.template("hermes", dockerfile(&text));
    let client = bed.client();
    let (first, second) = (client.begin("hermes"), client.begin("hermes"));
    wait_until_it_builds(&client, &word);
    client.cancel(&first);
    assert_eq!(first.end().unwrap_err().code, Code::Canceled);
    assert!(is_running(&word), "the other caller still needs the build");
    let image = second.end().unwrap();
    assert_eq!(bed.engine.read(&image.reference, "done").trim(), word);
    assert_eq!(client.count(Kind::BuildStarted), 1);
}

#[test]
fn the_build_stops_when_its_last_caller_cancels() {
    let bed = Bed::new();
    let client = bed.client();
    let word = endless(&bed, "hermes");
    let calls = [client.begin("hermes"), client.begin("hermes")];
    wait_until_it_builds(&client, &word);
    let since = Instant::now();
    for call in calls {
        client.cancel(&call);
        assert_eq!(call.end().unwrap_err().code, Code::Canceled);
    }
    assert_gone(&word, since);
}

#[test]
fn the_last_of_100_callers_gets_its_image_when_99_cancel_at_random() {
    soak(|| {
        let bed = Bed::new();
        let word = unique();
        let text = format!("FROM {BUSYBOX}\nRUN echo running {word}; sleep 4; echo > /{word}\n");
        bed.template("hermes", dockerfile(&text));
        let client = bed.client();
        let mut calls: Vec<_> = (0..100).map(|_| client.begin("hermes")).collect();
        wait_until_it_builds(&client, &word);
        // Any of them may be the last, also the one that started the build.
        let last = calls.swap_remove(chance(100) as usize);
        let mut delays: Vec<u64> = calls.iter().map(|_| chance(2500)).collect();
        delays.sort_unstable();
        let begun = Instant::now();
        for (call, delay) in calls.into_iter().zip(delays) {
            std::thread::sleep(Duration::from_millis(delay).saturating_sub(begun.elapsed()));
            let since = Instant::now();
            client.cancel(&call);
            assert_eq!(call.end().unwrap_err().code, Code::Canceled);
            assert!(since.elapsed() < AT_ONCE, "it took {:?}", since.elapsed());
        }
        let image = last.end().unwrap();
        assert!(bed.engine.files(&image.reference).contains_key(&word));
        assert_eq!(client.count(Kind::BuildStarted), 1);
        assert_eq!(client.count(Kind::FetchStarted), 1);
    });
}

#[test]
fn the_build_stops_when_all_of_100_callers_cancel_at_random() {
    soak(|| {
        let bed = Bed::new();
        let client = bed.client();
        let word = endless(&bed, "hermes");
        let calls: Vec<_> = (0..100).map(|_| client.begin("hermes")).collect();
        wait_until_it_builds(&client, &word);
        for call in calls {
            std::thread::sleep(Duration::from_millis(chance(10)));
            assert!(is_running(&word), "a caller still needs the build");
            client.cancel(&call);
            assert_eq!(call.end().unwrap_err().code, Code::Canceled);
        }
        assert_gone(&word, Instant::now());
        assert_eq!(client.count(Kind::BuildStarted), 1);
        assert!(bed.engine.references_of(&bed.isolation).is_empty());
        assert!(!bed.cached_paths().iter().any(|path| path.contains(".work")));
    });
}

#[test]
fn no_partial_tree_remains_when_all_cancel_during_the_fetch() {
    let bed = Bed::new();
    let sha = bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    bed.server
        .faults(json!([{ "match": "/git-upload-pack$", "truncate_after": 40, "hang": true }]));
    let client = bed.client();
    let calls: Vec<_> = (0..100).map(|_| client.begin("hermes")).collect();
    until("the fetch", || {
        (!leftovers(&bed, &sha).is_empty()).then_some(())
    });
    for call in calls {
        client.cancel(&call);
        assert_eq!(call.end().unwrap_err().code, Code::Canceled);
    }
    let since = Instant::now();
    until("the removal of the partial tree", || {
        leftovers(&bed, &sha).is_empty().then_some(())
    });
    assert!(since.elapsed() < AT_ONCE, "it took {:?}", since.elapsed());
}

#[test]
fn cancelling_during_the_build_keeps_the_fetched_tree() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    // The engine never confirms the upload, so the tree is not yet marked complete at the cancel.
    let proxy = Proxy::start(&bed.engine, bed.scratch(), |line| {
        match line.contains("/build?") {
            true => Treat::Answer(Vec::new(), End::Hang),
            false => Treat::Pass,
        }
    });
    let marked = || bed.fetched().iter().any(|path| path.ends_with(".json"));
    let through = bed.client_with(&[(OptionName::DockerHost, &proxy.url)]);
    let call = through.begin("hermes");
    through.wait_for(Kind::BuildStarted, |_| true);
    assert!(!marked());
    through.cancel(&call);
    assert_eq!(call.end().unwrap_err().code, Code::Canceled);
    until("the completion marker", || marked().then_some(()));

    let client = bed.client();
    assert!(!client.ensure("hermes").unwrap().cache_hit);
    assert_eq!(client.count(Kind::FetchStarted), 0);
}

#[test]
fn a_call_after_a_cancelled_build_succeeds() {
    let bed = Bed::new();
    let client = bed.client();
    let word = endless(&bed, "hermes");
    let call = client.begin("hermes");
    wait_until_it_builds(&client, &word);
    client.cancel(&call);
    call.end().unwrap_err();
    bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    client.ensure("hermes").unwrap();
}
