//! Podman, through its Docker-compatible socket.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mol::event::Kind;
use mol::{Code, Image, OptionName};

use crate::support::engine::{BUSYBOX, Engine, is_running, wait_until_gone};
use crate::support::server::{Files, copying, dockerfile, file};
use crate::support::{Handling, Proxy, TestClient, TestEnv, block_on, unique};

/// Ensures the image while no other test removes images.
fn ensure(client: &TestClient, podman: &Engine) -> mol::Result<Image> {
    let _images = podman.keep_images();
    client.ensure("hermes")
}

fn client(env: &TestEnv, podman: &Engine) -> TestClient {
    env.client_with(&[(OptionName::DockerHost, &podman.url)])
}

#[test]
fn an_image_is_built_reused_and_rebuilt_for_a_new_commit() {
    let (env, podman) = (TestEnv::new(), Engine::podman_of_the_tests());
    let client = client(&env, &podman);

    let sha = env.template("hermes", copying("one"));
    let first = ensure(&client, &podman).unwrap();
    assert_eq!(first.reference, env.reference("hermes", &sha));
    assert_eq!(first.endpoint, podman.url);
    assert_eq!(podman.read(&first.reference, "content"), "one");
    let labels = podman.labels(&first.reference);
    assert_eq!(labels["org.opencontainers.image.revision"], sha);

    let again = ensure(&client, &podman).unwrap();
    assert!(again.cache_hit);
    assert_eq!(again.image_id, first.image_id);
    assert_eq!(client.count(Kind::BuildStarted), 1);

    env.template("hermes", copying("two"));
    let second = ensure(&client, &podman).unwrap();
    assert_eq!(podman.read(&second.reference, "content"), "two");
    assert_eq!(
        podman.id(&second.latest_reference),
        Some(second.image_id.clone())
    );
    podman.remove_all_of(&env.isolation);
}

#[test]
fn offline_finds_the_newest_image_under_its_podman_name() {
    let (env, podman) = (TestEnv::new(), Engine::podman_of_the_tests());
    env.template("hermes", copying("one"));
    let online = ensure(&client(&env, &podman), &podman).unwrap();
    let offline = env.client_with(&[
        (OptionName::DockerHost, &podman.url),
        (OptionName::Offline, "1"),
    ]);
    assert_eq!(
        ensure(&offline, &podman).unwrap().reference,
        online.reference
    );
    podman.remove_all_of(&env.isolation);
}

#[test]
fn a_cancelled_build_starts_no_further_step() {
    let (env, podman) = (TestEnv::new(), Engine::podman_of_the_tests());
    let (first, second) = (unique(), unique());
    let text = format!(
        "FROM {BUSYBOX}\nRUN echo {first}; sleep 10; true\nRUN echo {second}; sleep 600; true\n"
    );
    let sha = env.template("hermes", dockerfile(&text));
    let client = client(&env, &podman);
    {
        let _images = podman.keep_images();
        let call = client.begin("hermes");
        client.wait_for_line(&first);
        client.cancel_in_time(call);
        // Podman's API cannot stop a running step.
        wait_until_gone(&first);
        std::thread::sleep(Duration::from_secs(2));
        assert!(!is_running(&second));
        assert!(podman.inspect(&env.reference("hermes", &sha)).is_none());
    }

    env.template("hermes", copying("after"));
    ensure(&client, &podman).unwrap();
    podman.remove_all_of(&env.isolation);
}

#[test]
fn a_failed_step_is_named() {
    let (env, podman) = (TestEnv::new(), Engine::podman_of_the_tests());
    env.template(
        "hermes",
        Files::from([(
            "Dockerfile".to_owned(),
            file("FROM scratch\nCOPY nothing /\n"),
        )]),
    );
    let error = ensure(&client(&env, &podman), &podman).unwrap_err();
    assert_eq!(error.code, mol::Code::BuildFailed, "{error:?}");
    let named = error.message().matches("COPY nothing").count();
    assert_eq!(named, 1, "{error:?}");
    let build = error.build.unwrap();
    assert!(build.step.contains("COPY nothing"), "{build:?}");
}

/// A proxy in front of an engine. It answers 500 to the first `times` requests for each of these lists.
fn failing_lists(env: &TestEnv, engine: &Engine, paths: [&'static str; 2], times: u32) -> Proxy {
    let counts = paths.map(|path| (path, AtomicU32::new(0)));
    Proxy::start(engine, env.scratch(), move |line| {
        let found = counts.iter().find(|(path, _)| line.contains(path));
        match found.map(|(_, count)| count.fetch_add(1, Ordering::SeqCst)) {
            Some(before) if before < times => Handling::Fail,
            _ => Handling::Pass,
        }
    })
}

/// Podman answers 500 to a list while another client removes an image (seen with 4.3).
#[test]
fn a_list_that_fails_for_a_moment_is_retried() {
    const LISTS: [&str; 2] = ["/images/json", "/containers/json"];
    let (env, podman) = (TestEnv::new(), Engine::podman_of_the_tests());
    env.template("hermes", copying("one"));
    let made = ensure(&client(&env, &podman), &podman).unwrap();

    let proxy = failing_lists(&env, &podman, LISTS, 3);
    let through = env.client_with(&[(OptionName::DockerHost, &proxy.url)]);
    let images = podman.keep_images();
    let found = block_on(through.inner().list().wait(None)).unwrap();
    assert!(
        found
            .images
            .iter()
            .any(|image| image.r#ref == made.reference)
    );
    for list in LISTS {
        assert_eq!(proxy.sent().matches(list).count(), 4, "{list}");
    }
    drop(images);
    podman.remove_all_of(&env.isolation);
}

#[test]
fn a_list_that_keeps_failing_is_reported_and_retried_only_on_podman() {
    const LISTS: [&str; 2] = ["/images/json", "/containers/json"];
    for (engine, most) in [
        (Engine::podman_of_the_tests(), 20),
        (Engine::of_the_tests(), 1),
    ] {
        let env = TestEnv::new();
        let proxy = failing_lists(&env, &engine, LISTS, u32::MAX);
        let through = env.client_with(&[(OptionName::DockerHost, &proxy.url)]);
        let error = block_on(through.inner().list().wait(None)).unwrap_err();
        assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
        assert!(
            error
                .message()
                .contains("answered GET /images/json with 500"),
            "{error:?}"
        );
        let requests = proxy.sent().matches(LISTS[0]).count();
        assert!((1..=most).contains(&requests), "{requests} times");
        assert!(requests > 1 || most == 1, "a list of Podman is retried");
    }
}
