//! The builder pushes the image to the registry of the shared cache, and the engine pulls it from there.

use super::*;

#[test]
fn the_engine_pulls_what_the_builder_has_pushed() {
    let farm = Farm::new();
    let podman = Engine::podman_of_the_tests();
    for engine in [&farm.env.engine, &podman] {
        let (proxy, pulled) = proxy(&farm.env, engine, "/images/create?", Handling::Pass);
        let client = farm.client(&proxy.url, &farm.registry.host, "60s");
        farm.assert_builds(&client, engine);
        assert!(pulled.load(Ordering::Relaxed));
        assert!(!proxy.sent().contains("/images/load"));
        assert!(warnings(&client).is_empty(), "{:#?}", warnings(&client));
        assert_eq!(client.count(Kind::ExportDone), 1);
        std::fs::remove_file(farm.env.scratch().join("proxy.sock")).unwrap();
    }
}

#[test]
fn only_the_layers_that_the_engine_lacks_are_pulled() {
    const NOISE: usize = 8 << 20;
    let farm = Farm::new();
    let client = farm.client(&farm.env.engine.url, &farm.registry.host, "60s");
    let noise = noise(NOISE);
    let pulled = |word: &str| {
        let mut files = template(&format!("COPY noise /\nRUN echo {word} > /word"));
        files.insert("noise".to_owned(), file(&noise));
        farm.env.template("hermes", files);
        client.clear_events();
        client.ensure("hermes").unwrap();
        let progress = client.of_kind(Kind::ExportProgress);
        progress.last().map_or(0, |event| event.bytes.unwrap())
    };
    let first = pulled(&unique());
    let second = pulled(&unique());
    assert!(first > 1 << 20, "{first}");
    assert!(second < first / 4, "{second} of {first}");
}

#[test]
fn an_engine_that_cannot_pull_gets_the_image_through_the_client() {
    let farm = Farm::new();
    let (proxy, _) = proxy(&farm.env, &farm.env.engine, "/images/create?", refusal());
    let client = farm.client(&proxy.url, &farm.registry.host, "60s");
    farm.assert_builds(&client, &farm.env.engine);
    assert_warned(&client, "denied");
}

#[test]
fn an_engine_that_hangs_in_the_pull_gets_the_image_through_the_client() {
    let farm = Farm::new();
    let hang = Handling::Answer(Vec::new(), End::Hang);
    let (proxy, _) = proxy(&farm.env, &farm.env.engine, "/images/create?", hang);
    let client = farm.client(&proxy.url, &farm.registry.host, "3s");
    farm.assert_builds(&client, &farm.env.engine);
    assert_warned(&client, "no data for 3 seconds");
}

#[test]
fn a_builder_that_cannot_push_sends_the_image_through_the_client() {
    let farm = Farm::new();
    let read_only = Proxy::before_registry(&farm.registry.host, |request| {
        match request.starts_with("GET") || request.starts_with("HEAD") {
            true => Handling::Pass,
            false => refusal(),
        }
    });
    let (_, host) = read_only.url.split_once("://").unwrap();
    let config = farm.env.scratch().join("config.json");
    let login = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, login.replace(&farm.registry.host, host)).unwrap();
    let client = farm.client(&farm.env.engine.url, host, "60s");
    farm.assert_builds(&client, &farm.env.engine);
    let warnings = warnings(&client);
    let about_push = |event: &&Event| event.message.contains("cannot be transferred through");
    assert_eq!(
        warnings.iter().filter(about_push).count(),
        1,
        "{warnings:#?}"
    );
}

#[test]
fn a_failed_step_is_not_tried_again_through_the_client() {
    let farm = Farm::new();
    let client = farm.client(&farm.env.engine.url, &farm.registry.host, "60s");
    let text = "RUN echo exporting to image; echo failed to push; exit 3";
    farm.env.template("hermes", template(text));
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::BuildFailed, "{error:?}");
    assert!(warnings(&client).is_empty(), "{:#?}", warnings(&client));
    assert_eq!(client.count(Kind::StepStarted), 2);
}

#[test]
fn a_call_cancelled_during_the_pull_leaves_no_tag() {
    let farm = Farm::new();
    let hang = Handling::Answer(Vec::new(), End::Hang);
    let (proxy, asked) = proxy(&farm.env, &farm.env.engine, "/images/create?", hang);
    let client = farm.client(&proxy.url, &farm.registry.host, "60s");
    farm.env
        .template("hermes", template(&format!("RUN echo {}", unique())));
    let call = client.begin("hermes");
    wait_until("the pull", || asked.load(Ordering::Relaxed).then_some(()));
    client.cancel_in_time(call);
    assert!(
        farm.env
            .engine
            .references_of(&farm.env.isolation)
            .is_empty()
    );
}

#[test]
fn a_call_cancelled_after_the_pull_leaves_no_name_of_the_registry() {
    let farm = Farm::new();
    let hang = Handling::Answer(Vec::new(), End::Hang);
    let (proxy, asked) = proxy(&farm.env, &farm.env.engine, "/tag?", hang);
    let client = farm.client(&proxy.url, &farm.registry.host, "60s");
    farm.env
        .template("hermes", template(&format!("RUN echo {}", unique())));
    let call = client.begin("hermes");
    wait_until("the tag", || asked.load(Ordering::Relaxed).then_some(()));
    let repository = format!("{}/cache/hermes", farm.registry.host);
    assert!(!farm.env.engine.digests_of(&repository).is_empty());
    client.cancel(call);
    wait_until("the removal", || {
        let digests = farm.env.engine.digests_of(&repository);
        digests.is_empty().then_some(())
    });
}

#[test]
fn a_reader_of_the_cache_pushes_nothing() {
    let farm = Farm::new();
    let pushes = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&pushes);
    let watched = Proxy::before_registry(&farm.registry.host, move |request| {
        let reads = request.starts_with("GET") || request.starts_with("HEAD");
        seen.fetch_or(!reads, Ordering::Relaxed);
        Handling::Pass
    });
    let (_, host) = watched.url.split_once("://").unwrap();
    let cache = format!("{host}/cache");
    let client = farm.env.client_with(&[
        (OptionName::Builder, &farm.builder.address()),
        (OptionName::SharedCache, &cache),
    ]);
    farm.assert_builds(&client, &farm.env.engine);
    assert!(!pushes.load(Ordering::Relaxed));
}
