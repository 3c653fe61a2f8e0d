//! The builder sends the image through the client, which passes it on to the engine.

use super::*;

/// Starts the build of an image of 32 MiB on the builder, with an engine that applies `handling` to the request that
/// loads the image. Returns when that request has arrived.
fn begin_load(
    env: &TestEnv,
    builder: &Builder,
    handling: Handling,
    grace: &str,
) -> (TestClient, Call) {
    let (proxy, asked) = proxy(env, &env.engine, "/images/load", handling);
    env.template("hermes", template(&bytes(32 << 20)));
    let client = env.client_with(&[
        (OptionName::Builder, &builder.address()),
        (OptionName::DockerHost, &proxy.url),
        (OptionName::StallGrace, grace),
    ]);
    let call = client.begin("hermes");
    wait_until("the load of the image", || {
        asked.load(Ordering::Relaxed).then_some(())
    });
    (client, call)
}

const STUCK: Handling = Handling::SlowRequest(Duration::from_secs(600));

#[test]
fn podman_loads_the_image_of_a_builder() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let podman = Engine::podman_of_the_tests();
    let client = env.client_with(&[
        (OptionName::Builder, &builder.address()),
        (OptionName::DockerHost, &podman.url),
    ]);
    env.template("hermes", template(&format!("RUN echo {}", unique())));
    let image = client.ensure("hermes").unwrap();
    assert_eq!(podman.id(&image.reference), Some(image.image_id));
    assert!(client.ensure("hermes").unwrap().cache_hit);
    podman.remove_all_of(&env.isolation);
}

#[test]
fn a_large_image_needs_little_memory() {
    const IMAGE: u64 = 128 << 20;
    const MAX_MIB: u64 = 64;
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let sha = env.template("hermes", template(&bytes(IMAGE)));
    let peak = peak(&env, &[(OptionName::Builder, &builder.address())], None);
    assert_eq!(peak.status, "ok", "{peak:?}");
    assert!(peak.growth_mib < MAX_MIB, "{peak:?}");
    let image = env.engine.inspect(&env.reference("hermes", &sha)).unwrap();
    assert!(image.size.unwrap() > IMAGE as i64, "{image:?}");
}

#[test]
fn the_progress_of_the_image_is_reported() {
    const PAUSE: Duration = Duration::from_millis(2);
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let slow = Handling::SlowRequest(PAUSE);
    let (client, call) = begin_load(&env, &builder, slow, "60s");
    call.end().unwrap();
    let progress = client.of_kind(Kind::ExportProgress);
    let bytes: Vec<u64> = progress.iter().map(|event| event.bytes.unwrap()).collect();
    assert!(bytes.is_sorted() && bytes.len() > 1, "{progress:#?}");
    assert!(*bytes.last().unwrap() > 1 << 20, "{progress:#?}");
    let kinds: Vec<Kind> = client.events().iter().map(|event| event.kind).collect();
    let place = |kind| kinds.iter().position(|&other| other == kind).unwrap();
    assert!(place(Kind::ExportStarted) < place(Kind::ExportProgress));
    assert!(place(Kind::ExportProgress) < place(Kind::ExportDone));
    assert_eq!(client.count(Kind::ExportDone), 1);
}

#[test]
fn an_engine_that_stops_reading_the_image_is_a_stall() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let (_client, call) = begin_load(&env, &builder, STUCK, "3s");
    let since = Instant::now();
    let error = call.end().unwrap_err();
    assert_eq!(error.code, Code::Stalled, "{error:?}");
    assert!(
        error.message().contains("during the transfer of its image"),
        "{error:?}"
    );
    assert!(
        since.elapsed() < Duration::from_secs(20),
        "{:?}",
        since.elapsed()
    );
    assert!(env.engine.references_of(&env.isolation).is_empty());
}

#[test]
fn a_slow_engine_is_not_a_stall() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let slow = Handling::SlowRequest(Duration::from_millis(15));
    let (_client, call) = begin_load(&env, &builder, slow, "3s");
    let since = Instant::now();
    call.end().unwrap();
    // The load must have taken longer than the stall grace.
    assert!(
        since.elapsed() > Duration::from_secs(6),
        "{:?}",
        since.elapsed()
    );
}

#[test]
fn an_engine_that_disconnects_during_the_load_gets_no_tag() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let cut = Handling::CutRequest(2 << 20, End::Close);
    let (_client, call) = begin_load(&env, &builder, cut, "60s");
    let error = call.end().unwrap_err();
    assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
    assert!(
        error.message().contains("cannot load the image"),
        "{error:?}"
    );
    assert!(env.engine.references_of(&env.isolation).is_empty());
}

#[test]
fn a_builder_killed_during_the_load_leaves_no_tag() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let (_client, call) = begin_load(&env, &builder, STUCK, "60s");
    builder.kill();
    let error = call.end().unwrap_err();
    assert_eq!(error.code, Code::BuilderUnreachable, "{error:?}");
    assert!(env.engine.references_of(&env.isolation).is_empty());
}

#[test]
fn a_builder_stopped_during_the_load_sends_all_or_leaves_no_tag() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let slow = Handling::SlowRequest(Duration::from_millis(15));
    let (_client, call) = begin_load(&env, &builder, slow, "60s");
    builder.terminate();
    match call.end() {
        Ok(image) => {
            let size = env.engine.inspect(&image.reference).unwrap().size;
            assert!(size.unwrap() > 32 << 20, "{size:?}");
        }
        Err(error) => {
            assert_eq!(error.code, Code::BuilderUnreachable, "{error:?}");
            assert!(env.engine.references_of(&env.isolation).is_empty());
        }
    }
}

#[test]
fn a_cancelled_call_leaves_no_tag() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let (client, call) = begin_load(&env, &builder, STUCK, "60s");
    client.cancel_in_time(call);
    assert!(env.engine.references_of(&env.isolation).is_empty());
}
