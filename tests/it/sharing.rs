//! One shared build (promise P3) for all callers of one process and of several processes.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use mol::Code;
use mol::event::Kind;
use serde_json::json;

use crate::support::child::{Link, command, program};
use crate::support::engine::{BUSYBOX, end_sleep_of, is_running};
use crate::support::server::{PLAIN, dockerfile, fetches, of_service};
use crate::support::{TestEnv, WAIT_LIMIT, unique, wait_until};

/// A template whose RUN step prints a word, which is returned, and then sleeps until [`end_sleep_of`] ends the sleep.
/// The image contains a random number, so that two builds differ.
fn slow(env: &TestEnv, runtime: &str) -> String {
    let word = unique();
    let text = format!(
        "FROM {BUSYBOX}\nRUN echo {word}; sleep 600; cat /proc/sys/kernel/random/uuid > /number\n"
    );
    env.template(runtime, dockerfile(&text));
    word
}

#[test]
fn many_callers_for_one_runtime_share_one_fetch_and_one_build() {
    let env = TestEnv::new();
    let word = slow(&env, "hermes");
    let client = env.client();
    let calls: Vec<_> = (0..50).map(|_| client.begin("hermes")).collect();
    wait_until("49 calls to wait", || {
        (client.count(Kind::Waiting) == 49).then_some(())
    });
    end_sleep_of(&word);
    let images: Vec<_> = calls.into_iter().map(|call| call.end().unwrap()).collect();
    assert!(
        images
            .iter()
            .all(|image| image.image_id == images[0].image_id)
    );
    assert_eq!(client.count(Kind::FetchStarted), 1);
    assert_eq!(client.count(Kind::BuildStarted), 1);
    assert_eq!(client.count(Kind::Waiting), 49);
    assert_eq!(fetches(&env.server.requests()), 1);
}

#[test]
fn two_clients_of_one_process_share_one_build() {
    let env = TestEnv::new();
    let word = slow(&env, "hermes");
    let (one, two) = (env.client(), env.client());
    let first = one.begin("hermes");
    one.wait_for_line(&word);
    let second = two.begin("hermes");
    let waiting = two.wait_for(Kind::Waiting, |_| true);
    assert!(waiting.holder.unwrap().contains("this process"));
    end_sleep_of(&word);
    let (first, second) = (first.end().unwrap(), second.end().unwrap());
    assert_eq!(first.image_id, second.image_id);
    assert_eq!(
        (one.count(Kind::BuildStarted), two.count(Kind::BuildStarted)),
        (1, 0)
    );
    assert!(!second.timings.wait.is_zero());
}

#[test]
fn different_runtimes_build_in_parallel() {
    let env = TestEnv::new();
    let words = [
        slow(&env, "hermes"),
        slow(&env, "codex"),
        slow(&env, "autogen"),
    ];
    let client = env.client();
    let calls: Vec<_> = ["hermes", "codex", "autogen"]
        .map(|runtime| client.begin(runtime))
        .into();
    wait_until("all builds at the same time", || {
        words.iter().all(|word| is_running(word)).then_some(())
    });
    for call in calls {
        client.cancel(call);
    }
}

fn spawn(env: &TestEnv, program_name: &'static str) -> Child {
    command(env, &program(program_name, Link::Static))
        .arg("hermes")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads the output of the program until it ends. `each` gets every line at once.
fn output_of(mut child: Child, each: impl Fn(&str)) -> String {
    let mut text = String::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        each(&line);
        text += &(line + "\n");
    }
    assert!(child.wait().unwrap().success(), "{text}");
    text
}

#[test]
fn two_processes_share_one_fetch_and_one_build() {
    let env = TestEnv::new();
    let word = slow(&env, "hermes");
    program("events", Link::Static); // compiled before the two start together
    let children = [spawn(&env, "events"), spawn(&env, "events")];
    let outputs = std::thread::scope(|scope| {
        let (sender, said) = std::sync::mpsc::channel();
        let readers = children.map(|child| {
            let sender = sender.clone();
            scope.spawn(move || output_of(child, |line| sender.send(line.to_owned()).unwrap()))
        });
        drop(sender);
        let waits = |line: &String| line.contains("\"kind\":\"waiting\"");
        let end = Instant::now() + WAIT_LIMIT;
        let next = || said.recv_timeout(end.saturating_duration_since(Instant::now()));
        let waited = std::iter::from_fn(|| next().ok()).any(|line| waits(&line));
        end_sleep_of(&word);
        let outputs = readers.map(|reader| reader.join().unwrap());
        assert!(waited, "no process waits");
        outputs
    });
    let all = outputs.concat();
    let count = |kind: &str| all.matches(&format!("\"kind\":\"{kind}\"")).count();
    assert_eq!(count("build_started"), 1, "{all}");
    assert_eq!(count("fetch_started"), 1, "{all}");
    assert_eq!(
        all.matches("\"holder\":\"process ").count(),
        1,
        "the other process waits for this one: {all}"
    );
    assert_eq!(fetches(&env.server.requests()), 1);
}

#[test]
fn a_call_that_waits_for_another_process_can_be_cancelled() {
    let env = TestEnv::new();
    let word = slow(&env, "hermes");
    let holder = spawn(&env, "events");
    wait_until("the build", || is_running(&word).then_some(()));
    let client = env.client();
    let call = client.begin("hermes");
    client.wait_for(Kind::Waiting, |_| true);
    client.cancel_in_time(call);
    assert!(is_running(&word), "the other process is not disturbed");
    end_sleep_of(&word);
    output_of(holder, |_| ());
}

#[test]
fn a_failed_build_fails_all_waiters_and_the_next_call_rebuilds() {
    let env = TestEnv::new();
    let word = unique();
    let text = format!("FROM {BUSYBOX}\nRUN echo {word}; sleep 600; exit 5\n");
    env.template("hermes", dockerfile(&text));
    let client = env.client();
    let calls = [client.begin("hermes"), client.begin("hermes")];
    client.wait_for(Kind::Waiting, |_| true);
    end_sleep_of(&word);
    for call in calls {
        let error = call.end().unwrap_err();
        assert_eq!(error.code, Code::BuildFailed);
        assert!(error.build.unwrap().step.contains("exit 5"));
    }
    assert_eq!(client.count(Kind::BuildStarted), 1);
    let again = client.begin("hermes");
    end_sleep_of(&word);
    assert_eq!(again.end().unwrap_err().code, Code::BuildFailed);
    assert_eq!(client.count(Kind::BuildStarted), 2);
}

#[test]
fn a_push_during_a_build_gives_later_calls_the_new_commit() {
    let env = TestEnv::new();
    let word = slow(&env, "hermes");
    let client = env.client();
    let first = client.begin("hermes");
    client.wait_for_line(&word);
    let sha = env.template("hermes", dockerfile(PLAIN));
    let second = client.begin("hermes").end().unwrap();
    assert_eq!(second.commit_sha, sha);
    end_sleep_of(&word);
    assert_ne!(first.end().unwrap().commit_sha, sha);
}

#[test]
fn calls_during_a_lookup_share_the_next_one_and_see_new_pushes() {
    let env = TestEnv::new();
    let old = env.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /old\n"));
    // The response to the first lookup is delayed by two seconds.
    let response = json!({ "commit": { "id": old } }).to_string();
    env.server.faults(
        json!([{ "match": "/api/", "times": 1, "delay_ms": 2000, "status": 200, "body": response }]),
    );
    let client = env.client();
    let first = client.begin("hermes");
    client.wait_for(Kind::LookupStarted, |_| true);
    wait_until("the first lookup", || {
        (!of_service(&env.server.requests(), "api").is_empty()).then_some(())
    });
    let new = env.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /new\n"));
    let later: Vec<_> = (0..100).map(|_| client.begin("hermes")).collect();
    for call in later {
        assert_eq!(call.end().unwrap().commit_sha, new);
    }
    assert_eq!(first.end().unwrap().commit_sha, old);
    let lookups = of_service(&env.server.requests(), "api").len();
    // On a busy machine some calls begin after the next lookup, and share a second one.
    assert!((1..=2).contains(&lookups), "{lookups} for all later calls");
    assert_eq!(client.count(Kind::LookupDone), 101, "one event per call");
}

#[test]
fn a_cancelled_lookup_passes_to_the_next_waiter() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.server
        .faults(json!([{ "match": "/api/", "times": 1, "hang": true }]));
    let client = env.client();
    let first = client.begin("hermes");
    wait_until("the first lookup", || {
        (!of_service(&env.server.requests(), "api").is_empty()).then_some(())
    });
    let second = client.begin("hermes");
    wait_until("the second call to wait", || {
        (client.count(Kind::LookupStarted) == 2).then_some(())
    });
    let since = Instant::now();
    client.cancel(first);
    client.wait_for(Kind::LookupDone, |_| true);
    let took = since.elapsed();
    // Without the hand-over, the waiter makes its own request after three seconds.
    assert!(took < Duration::from_millis(2500), "it took {took:?}");
    second.end().unwrap();
}

#[test]
fn waiting_calls_do_not_hold_threads() {
    let env = TestEnv::new();
    let word = slow(&env, "hermes");
    let output = env.scratch().join("output");
    // In a process of its own, so that the threads of other tests are not counted.
    let mut crowd = command(&env, &program("crowd", Link::Static))
        .args(["300", "0", "1", "hermes"])
        .stdout(File::create(&output).unwrap())
        .spawn()
        .unwrap();
    let output = || std::fs::read_to_string(&output).unwrap();
    wait_until("all but one to wait", || {
        (output().matches("\"kind\":\"waiting\"").count() == 299).then_some(())
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", crowd.id())).unwrap();
    let threads = status
        .lines()
        .find_map(|line| line.strip_prefix("Threads:"));
    let threads: usize = threads.unwrap().trim().parse().unwrap();
    println!("{threads} threads");
    end_sleep_of(&word);
    assert!(crowd.wait().unwrap().success(), "{}", output());
    assert_eq!(output().matches("end 1 hermes ok").count(), 300);
    assert!(threads < 100, "{threads} threads");
}

#[test]
fn a_freed_client_leaves_no_open_cache_file() {
    let env = TestEnv::new();
    let open = || {
        let cache = env.cache();
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .filter(|path| path.starts_with(&cache))
            .count()
    };
    let word = slow(&env, "hermes");
    let client = env.client();
    let call = client.begin("hermes");
    client.wait_for_line(&word);
    assert!(open() > 0, "the lock file must be open during the build");
    end_sleep_of(&word);
    call.end().unwrap();
    drop(client);
    assert_eq!(open(), 0);
}

#[test]
fn a_call_that_waits_for_another_client_can_be_cancelled() {
    let env = TestEnv::new();
    let word = slow(&env, "hermes");
    let (one, two) = (env.client(), env.client());
    let builds = one.begin("hermes");
    one.wait_for_line(&word);
    let waits = two.begin("hermes");
    two.wait_for(Kind::Waiting, |_| true);
    two.cancel_in_time(waits);
    assert!(is_running(&word), "the other client is not disturbed");
    end_sleep_of(&word);
    builds.end().unwrap();
}
