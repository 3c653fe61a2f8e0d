//! How a builder's image gets into the engine: through the client, or through the registry of a writable shared cache.
//! Whatever fails on the way, the engine has the whole image or none.

mod through_a_registry;
mod through_the_client;

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
    Builder, Call, End, Engine, Handling, Proxy, TestClient, TestEnv, noise, unique, wait_until,
};

/// A RUN step that adds this many random bytes to the image.
fn bytes(count: u64) -> String {
    format!("RUN /bin/busybox head -c {count} /dev/urandom > /noise")
}

/// A proxy in front of the engine that applies `handling` to the requests to `path` and passes all others on. The flag
/// is set when such a request arrives.
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
    Handling::answer(
        "403 Forbidden",
        "application/json",
        r#"{"message":"denied"}"#,
    )
}

/// A builder and an engine, and a shared cache that may be written.
struct Farm {
    // `env` is dropped last, because the others need files in its folder to stop.
    builder: Builder,
    registry: Registry,
    env: TestEnv,
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
            builder,
            registry,
            env,
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
    assert!(
        warning.message.contains("cannot be transferred through"),
        "{warning:?}"
    );
    assert!(warning.message.contains(why), "{warning:?}");
}
