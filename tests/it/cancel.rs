//! Cancel means stop (promise P4): at once, in the engine too, and for nobody else.

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

/// A template whose build says that it runs and then does not end. The word is in the command line
/// of its process.
fn endless(bed: &Bed, runtime: &str) -> String {
    let word = unique();
    let text = format!("FROM {BUSYBOX}\nRUN echo running {word}; sleep 600; true\n");
    bed.template(runtime, dockerfile(&text));
    word
}

/// Waits until the build's process runs, on this machine.
fn wait_until_it_builds(client: &TestClient, word: &str) {
    client.wait_for_line(word);
    assert!(
        is_running(word),
        "the test sees the processes of the engine"
    );
}

/// The process is gone within the time that is promised.
fn assert_gone(word: &str, since: Instant) {
    until("the end of the build's process", || {
        (!is_running(word)).then_some(())
    });
    assert!(since.elapsed() < AT_ONCE, "it took {:?}", since.elapsed());
}

fn cancelled_during_the_build(bed: &Bed, client: &TestClient) {
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
    cancelled_during_the_build(&bed, &client);
}

#[test]
fn with_the_classic_builder_too() {
    let bed = Bed::new();
    let client = bed.client_with(&[(OptionName::DockerBuildkit, "0")]);
    cancelled_during_the_build(&bed, &client);
}

#[test]
fn a_client_that_is_closed_stops_its_builds() {
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
fn a_client_that_is_dropped_cancels_its_calls() {
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
fn a_future_that_is_dropped_stops_its_build() {
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
            result = work => panic!("it cannot have ended: {result:?}"),
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
fn without_a_deadline_the_ceiling_ends_it_and_says_so() {
    let bed = Bed::new();
    let client = bed.client_with(&[(OptionName::Ceiling, "4")]);
    let word = endless(&bed, "hermes");
    let error = client.refused("hermes");
    assert_eq!(error.code, Code::Timeout);
    assert!(error.hint.contains("MOLECULE_BUILD_CEILING_S"), "{error:?}");
    let step = error.build.as_ref().map_or("", |build| &build.step);
    assert!(step.contains("RUN"), "it says where it was: {error:?}");
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
fn a_call_that_is_cancelled_as_soon_as_it_is_begun_makes_nothing() {
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
fn a_call_that_is_cancelled_during_the_lookup_ends_at_once() {
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
fn a_call_that_is_cancelled_during_the_fetch_ends_at_once_and_leaves_nothing() {
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

        until("the removal of what was half-written", || {
            leftovers(&bed, &sha).is_empty().then_some(())
        });
        assert!(since.elapsed() < AT_ONCE, "it took {:?}", since.elapsed());
        bed.server.faults(json!([]));
        bed.client().ensure("hermes").unwrap();
    }
}

/// What a fetch has in the cache before it is whole, or when it is.
fn leftovers(bed: &Bed, sha: &str) -> Vec<String> {
    let mut paths = bed.cached_paths();
    paths.retain(|path| path.contains("work") || path.ends_with(&sha[..12]));
    paths
}

#[test]
fn a_client_that_is_closed_has_left_nothing_behind() {
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
fn a_call_that_has_ended_can_be_cancelled_and_nothing_happens() {
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
fn one_callers_cancel_does_not_disturb_the_others() {
    let bed = Bed::new();
    let word = unique();
    let text = format!("FROM {BUSYBOX}\nRUN echo running {word}; sleep 3; echo {word} > /done\n");
    bed.template("hermes", dockerfile(&text));
    let client = bed.client();
    let (first, second) = (client.begin("hermes"), client.begin("hermes"));
    wait_until_it_builds(&client, &word);
    client.cancel(&first);
    assert_eq!(first.end().unwrap_err().code, Code::Canceled);
    assert!(is_running(&word), "the other one still wants it");
    let image = second.end().unwrap();
    assert_eq!(bed.engine.read(&image.reference, "done").trim(), word);
    assert_eq!(client.count(Kind::BuildStarted), 1);
}

#[test]
fn when_the_last_caller_leaves_the_build_stops() {
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
fn of_a_hundred_callers_ninety_nine_leave_at_random_and_the_last_gets_its_image() {
    soak(|| {
        let bed = Bed::new();
        let word = unique();
        let text = format!("FROM {BUSYBOX}\nRUN echo running {word}; sleep 4; echo > /{word}\n");
        bed.template("hermes", dockerfile(&text));
        let client = bed.client();
        let mut calls: Vec<_> = (0..100).map(|_| client.begin("hermes")).collect();
        wait_until_it_builds(&client, &word);
        // Any of them may be the last, also the one that began it.
        let last = calls.swap_remove(chance(100) as usize);
        let mut moments: Vec<u64> = calls.iter().map(|_| chance(2500)).collect();
        moments.sort_unstable();
        let begun = Instant::now();
        for (call, moment) in calls.into_iter().zip(moments) {
            std::thread::sleep(Duration::from_millis(moment).saturating_sub(begun.elapsed()));
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
fn when_all_of_a_hundred_callers_leave_at_random_nothing_goes_on() {
    soak(|| {
        let bed = Bed::new();
        let client = bed.client();
        let word = endless(&bed, "hermes");
        let calls: Vec<_> = (0..100).map(|_| client.begin("hermes")).collect();
        wait_until_it_builds(&client, &word);
        for call in calls {
            std::thread::sleep(Duration::from_millis(chance(10)));
            assert!(is_running(&word), "somebody still wants it");
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
fn when_all_leave_during_the_fetch_no_half_written_tree_stays() {
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
    until("the removal of what was half-written", || {
        leftovers(&bed, &sha).is_empty().then_some(())
    });
    assert!(since.elapsed() < AT_ONCE, "it took {:?}", since.elapsed());
}

#[test]
fn a_tree_is_kept_when_its_call_is_cancelled_during_the_build() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    // The engine never says that it has the tree, so it is not yet kept when the call is cancelled.
    let proxy = Proxy::start(&bed.engine, bed.scratch(), |line| {
        match line.contains("/build?") {
            true => Treat::Answer(Vec::new(), End::Hang),
            false => Treat::Pass,
        }
    });
    let kept = || bed.fetched().iter().any(|path| path.ends_with(".json"));
    let through = bed.client_with(&[(OptionName::DockerHost, &proxy.url)]);
    let call = through.begin("hermes");
    through.wait_for(Kind::BuildStarted, |_| true);
    assert!(!kept());
    through.cancel(&call);
    assert_eq!(call.end().unwrap_err().code, Code::Canceled);
    until("the tree to be kept", || kept().then_some(()));

    let client = bed.client();
    assert!(!client.ensure("hermes").unwrap().cache_hit);
    assert_eq!(client.count(Kind::FetchStarted), 0);
}

#[test]
fn a_build_that_was_cancelled_can_be_made_after_all() {
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
