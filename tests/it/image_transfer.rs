//! The way of a builder's image into the engine: through the client, or through the registry of a shared cache that may
//! be written. Whatever happens on the way, the engine has the whole image, or none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mol::event::Kind;
use mol::{Code, Event, OptionName};
use serde_json::json;

use crate::support::builder::template;
use crate::support::child::peak;
use crate::support::registry::{PASSWORD, Registry, USER};
use crate::support::server::file;
use crate::support::{
    Builder, CANCEL_LIMIT, Call, End, Engine, Handling, Proxy, TestClient, TestEnv, noise, unique,
    wait_until,
};

/// A step whose image has this many bytes more.
fn bytes(count: u64) -> String {
    format!("RUN /bin/busybox head -c {count} /dev/urandom > /noise")
}

/// The engine of the tests, behind a proxy that treats requests to a path in this way, and passes all others.
fn proxy(
    env: &TestEnv,
    engine: &Engine,
    path: &'static str,
    handling: Handling,
) -> (Proxy, Arc<AtomicBool>) {
    let asked = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&asked);
    let proxy = Proxy::start(engine, env.scratch(), move |request| {
        match request.contains(path) {
            true => {
                seen.store(true, Ordering::Relaxed);
                handling.clone()
            }
            false => Handling::Pass,
        }
    });
    (proxy, asked)
}

fn refusal() -> Handling {
    let answer = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"message\":\"denied\"}";
    Handling::Answer(answer.as_bytes().to_vec(), End::Close)
}

/// A builder and an engine, and a shared cache that may be written.
struct Farm {
    env: TestEnv,
    registry: Registry,
    builder: Builder,
}

impl Farm {
    fn new() -> Self {
        let env = TestEnv::new();
        let registry = Registry::start(env.scratch());
        let builder = Builder::unix(&env.scratch().join("b"));
        let login = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
        std::fs::write(
            env.scratch().join("config.json"),
            json!({ "auths": { &registry.host: { "auth": login } } }).to_string(),
        )
        .unwrap();
        Self {
            env,
            registry,
            builder,
        }
    }

    /// A client that may write to the cache in this registry.
    fn client(&self, engine: &str, registry: &str, grace: &str) -> TestClient {
        self.env.client_with(&[
            (OptionName::Builder, &self.builder.address()),
            (OptionName::DockerHost, engine),
            (
                OptionName::DockerConfig,
                self.env.scratch().to_str().unwrap(),
            ),
            (OptionName::SharedCache, &format!("{registry}/cache")),
            (OptionName::SharedCacheMode, "rw"),
            (OptionName::StallGrace, grace),
        ])
    }

    /// Builds an image with a unique word, and checks that the engine has it, and no other name for it.
    fn assert_builds(&self, client: &TestClient, engine: &Engine) {
        let word = unique();
        let sha = self
            .env
            .template("hermes", template(&format!("RUN echo {word} > /word")));
        let image = client.ensure("hermes").unwrap();
        assert_eq!(image.reference, self.env.reference("hermes", &sha));
        assert_eq!(engine.read(&image.reference, "word").trim(), word);
        let inspected = engine.inspect(&image.reference).unwrap();
        let digests = inspected.repo_digests.unwrap_or_default();
        let of_registry = |name: &String| name.starts_with("127.0.0.1");
        assert!(!digests.iter().any(of_registry), "{digests:?}");
        assert!(client.ensure("hermes").unwrap().cache_hit);
        engine.remove_all_of(&self.env.isolation);
        assert!(engine.inspect(&image.image_id).is_none(), "no name is left");
    }
}

fn warnings(client: &TestClient) -> Vec<Event> {
    client.of_kind(Kind::Warning)
}

/// The one warning of a client, which says that the image could not go through the registry.
fn assert_warned(client: &TestClient, why: &str) {
    let warnings = warnings(client);
    let [warning] = &warnings[..] else {
        panic!("{warnings:#?}");
    };
    assert!(warning.message.contains("cannot go through"), "{warning:?}");
    assert!(warning.message.contains(why), "{warning:?}");
}

mod through_the_client {
    use super::*;

    /// A client whose engine treats the load of the image in this way, and has begun to take an image of 32 MiB.
    fn in_the_load(
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
    fn podman_takes_the_image_too() {
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
        let (client, call) = in_the_load(&env, &builder, slow, "60s");
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
    fn an_engine_that_takes_no_more_is_a_stall() {
        let env = TestEnv::new();
        let builder = Builder::unix(&env.scratch().join("b"));
        let (_client, call) = in_the_load(&env, &builder, STUCK, "3s");
        let since = Instant::now();
        let error = call.end().unwrap_err();
        assert_eq!(error.code, Code::Stalled, "{error:?}");
        assert!(
            error.message.contains("on the way to the engine"),
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
    fn a_slow_engine_is_no_stall() {
        let env = TestEnv::new();
        let builder = Builder::unix(&env.scratch().join("b"));
        let slow = Handling::SlowRequest(Duration::from_millis(15));
        let since = Instant::now();
        let (_client, call) = in_the_load(&env, &builder, slow, "3s");
        call.end().unwrap();
        // Otherwise it was not slow.
        assert!(
            since.elapsed() > Duration::from_secs(6),
            "{:?}",
            since.elapsed()
        );
    }

    #[test]
    fn an_engine_that_breaks_off_gets_no_tag() {
        let env = TestEnv::new();
        let builder = Builder::unix(&env.scratch().join("b"));
        let cut = Handling::CutRequest(2 << 20, End::Close);
        let (_client, call) = in_the_load(&env, &builder, cut, "60s");
        let error = call.end().unwrap_err();
        assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
        assert!(error.message.contains("cannot load the image"), "{error:?}");
        assert!(env.engine.references_of(&env.isolation).is_empty());
    }

    #[test]
    fn a_builder_killed_meanwhile_leaves_no_tag() {
        let env = TestEnv::new();
        let builder = Builder::unix(&env.scratch().join("b"));
        let (_client, call) = in_the_load(&env, &builder, STUCK, "60s");
        builder.kill();
        let error = call.end().unwrap_err();
        assert_eq!(error.code, Code::BuilderUnreachable, "{error:?}");
        assert!(env.engine.references_of(&env.isolation).is_empty());
    }

    #[test]
    fn a_builder_stopped_meanwhile_sends_the_whole_image_or_leaves_no_tag() {
        let env = TestEnv::new();
        let builder = Builder::unix(&env.scratch().join("b"));
        let slow = Handling::SlowRequest(Duration::from_millis(15));
        let (_client, call) = in_the_load(&env, &builder, slow, "60s");
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
        let (client, call) = in_the_load(&env, &builder, STUCK, "60s");
        let since = Instant::now();
        client.cancel(&call);
        assert_eq!(call.end().unwrap_err().code, Code::Canceled);
        assert!(
            since.elapsed() < CANCEL_LIMIT,
            "it took {:?}",
            since.elapsed()
        );
        assert!(env.engine.references_of(&env.isolation).is_empty());
    }
}

mod through_a_registry {
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
        assert_warned(&client, "nothing arrived for 3 seconds");
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
        let about_push = |event: &&Event| event.message.contains("cannot go through");
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
        let since = Instant::now();
        client.cancel(&call);
        assert_eq!(call.end().unwrap_err().code, Code::Canceled);
        assert!(
            since.elapsed() < CANCEL_LIMIT,
            "it took {:?}",
            since.elapsed()
        );
        assert!(
            farm.env
                .engine
                .references_of(&farm.env.isolation)
                .is_empty()
        );
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
}
