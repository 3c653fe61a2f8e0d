//! Base images from a registry: the progress of a pull, and the errors when an image cannot be pulled. The registry
//! is a real one.

use std::time::Duration;

use mol::event::Kind;
use mol::{Code, Event, OptionName};

use crate::support::engine::{BUSYBOX, builders};
use crate::support::proxy::{End, Handling, Proxy};
use crate::support::registry::Registry;
use crate::support::server::dockerfile;
use crate::support::{Builder, Engine, TestClient, TestEnv, noise, unique};

fn client(env: &TestEnv, engine: &Engine, buildkit: &str) -> TestClient {
    env.client_with(&[
        (OptionName::DockerHost, &engine.url),
        (OptionName::DockerBuildkit, buildkit),
    ])
}

#[test]
fn a_pull_without_progress_is_a_stall() {
    let env = TestEnv::new();
    let registry = Registry::public(env.scratch());
    registry.publish("base");
    let hangs = Handling::CutAnswer(300, End::Hang);
    let proxy = registry.with_layers("base", None, hangs);
    let (_, host) = proxy.url.split_once("://").unwrap();
    let text = format!("FROM {host}/base:1\nRUN echo {}\n", unique());
    env.template("hermes", dockerfile(&text));
    let builder = Builder::unix(&env.scratch().join("builder"));
    for builder in ["default", &builder.address()] {
        let client = env.client_with(&[
            (OptionName::Builder, builder),
            (OptionName::StallGrace, "3s"),
        ]);
        let error = client.ensure("hermes").unwrap_err();
        assert_eq!(error.code, Code::Stalled, "{error:?}");
        let message = "a download made no progress for 3 seconds";
        assert!(error.message().contains(message), "{error:?}");
        assert!(
            error.message().contains(&format!("FROM {host}/base:1")),
            "{error:?}"
        );
        assert!(error.hint.contains("registry"), "{error:?}");
    }
}

#[test]
fn a_slow_pull_is_reported_layer_by_layer() {
    const SIZE: u64 = 6_000_000;
    let env = TestEnv::new();
    let registry = Registry::public(env.scratch());
    let slow = Proxy::before_registry(&registry.host, |request| {
        match request.starts_with("GET") && request.contains("/blobs/sha256:") {
            true => Handling::Drip(64 << 10, Duration::from_millis(40)),
            false => Handling::Pass,
        }
    });
    let (_, host) = slow.url.split_once("://").unwrap();
    for (builder, engine, buildkit) in builders() {
        let name = format!("team/{builder}");
        registry.publish_with(&name, noise(SIZE.try_into().unwrap()).as_bytes());
        let base = format!("{host}/{name}:1");
        let text = format!("FROM {base}\nLABEL a={}\n", unique());
        env.template("hermes", dockerfile(&text));
        let client = client(&env, &engine, buildkit);
        let images = engine.keep_images();
        client.ensure("hermes").unwrap();
        drop(images);
        engine.remove_all_of(&env.isolation);
        engine.untag(&base);

        let of = |kind| client.of_kind(kind);
        let ([started], [done]) = (&of(Kind::PullStarted)[..], &of(Kind::PullDone)[..]) else {
            panic!("{builder}: {:#?}", client.events());
        };
        assert!(
            started.step_name.as_ref().unwrap().contains(&base),
            "{started:?}"
        );
        assert_eq!(
            (started.step, &started.step_name),
            (done.step, &done.step_name)
        );
        assert!(done.duration_ms.unwrap() > 1000, "{builder}: {done:?}");
        let progress = of(Kind::PullProgress);
        assert!(
            progress
                .iter()
                .all(|event| event.step == started.step && event.layer.is_some())
        );
        if builder == "buildah" {
            // Podman names the layers and no sizes.
            assert!(
                progress.iter().all(|event| event.bytes.is_none()),
                "{progress:?}"
            );
            continue;
        }
        assert_eq!(
            client.count(Kind::BaseImage),
            usize::from(builder == "buildkit"),
            "only BuildKit reports that it looks up an image"
        );
        assert!(done.bytes.unwrap() > SIZE * 2 / 3, "{builder}: {done:?}");
        let largest = progress
            .iter()
            .max_by_key(|event| event.bytes_total)
            .unwrap();
        let layer: Vec<&Event> = progress
            .iter()
            .filter(|event| event.layer == largest.layer)
            .collect();
        let downloads: Vec<u64> = layer
            .iter()
            .filter(|event| event.action == Some("download"))
            .map(|event| event.bytes.unwrap_or(0))
            .collect();
        assert!(
            downloads.len() >= 3 && downloads.is_sorted(),
            "{builder}: {downloads:?}"
        );
        assert!(
            layer.iter().any(|event| event.bytes_per_second.is_some()),
            "{layer:?}"
        );
        assert_eq!(layer.last().unwrap().action, Some("extract"), "{layer:?}");
    }
}

#[test]
fn a_layer_that_cannot_be_downloaded_is_reported_with_its_line() {
    let env = TestEnv::new();
    let registry = Registry::public(env.scratch());
    let broken = Proxy::before_registry(&registry.host, |request| {
        let layer = request.starts_with("GET") && request.contains("/blobs/sha256:");
        match layer {
            true => Handling::Answer(
                b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_vec(),
                End::Close,
            ),
            false => Handling::Pass,
        }
    });
    let (_, host) = broken.url.split_once("://").unwrap();
    for (builder, engine, buildkit) in builders() {
        let name = format!("team/broken-{builder}");
        registry.publish(&name);
        let base = format!("{host}/{name}:1");
        env.template(
            "hermes",
            dockerfile(&format!("# {}\nFROM {base}\nRUN true\n", unique())),
        );
        let client = client(&env, &engine, buildkit);
        let images = engine.keep_images();
        let error = client.ensure_err("hermes");
        drop(images);
        let build = error.build.as_deref().unwrap();
        assert!(
            error.message().contains(&format!("the base image {base}")),
            "{builder}: {error:?}"
        );
        assert_eq!(build.line, 2, "{builder}: {error:?}");
        assert!(build.excerpt.contains("> 2 | FROM"), "{builder}: {error:?}");
    }
}

#[test]
fn an_image_that_the_engine_has_is_not_pulled() {
    for (_, engine, buildkit) in builders() {
        let env = TestEnv::new();
        let text = format!("FROM {}\nLABEL a={}\n", BUSYBOX, unique());
        env.template("hermes", dockerfile(&text));
        let client = client(&env, &engine, buildkit);
        let images = engine.keep_images();
        client.ensure("hermes").unwrap();
        drop(images);
        assert_eq!(client.count(Kind::PullStarted), 0, "{:#?}", client.events());
        engine.remove_all_of(&env.isolation);
    }
}

#[test]
fn an_image_that_cannot_be_pulled_is_reported_with_the_cause() {
    let env = TestEnv::new();
    let private = Registry::start(env.scratch());
    let folder = env.scratch().join("public");
    std::fs::create_dir(&folder).unwrap();
    let public = Registry::public(&folder);
    let limited = Proxy::before_registry(&public.host, |request| {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit"}]}"#;
        let length = body.len();
        // The answer to HEAD has no body. A client would read it as its next answer.
        let body = if request.starts_with("HEAD ") {
            ""
        } else {
            body
        };
        match request.contains("/manifests/") {
            true => Handling::Answer(
                format!(
                    "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
                )
                .into_bytes(),
                End::Close,
            ),
            false => Handling::Pass,
        }
    });
    let (_, limited) = limited.url.split_once("://").unwrap();
    for (builder, engine, buildkit) in builders() {
        for (registry, what, hint) in [
            // Nothing listens there.
            ("127.0.0.1:1", "the engine cannot reach 127.0.0.1:1", "VPN"),
            // Names below .invalid do not exist (RFC 6761).
            (
                "registry.invalid",
                "the engine cannot find the host of registry.invalid",
                "DNS",
            ),
            (&public.host, "has no such image", "name and the tag"),
            (
                &private.host,
                "denies access, or has no such image",
                "docker login 127.0.0.1:",
            ),
            (
                limited,
                "limits how often images are pulled",
                "try again later",
            ),
        ] {
            // Podman itself retries for minutes.
            if builder == "buildah" && registry == limited {
                continue;
            }
            let image = format!("{registry}/team/denied-x509:1");
            env.template(
                "hermes",
                dockerfile(&format!("FROM {image}\nRUN echo {}\n", unique())),
            );
            let client = client(&env, &engine, buildkit);
            let images = engine.keep_images();
            let error = client.ensure_err("hermes");
            drop(images);
            assert_eq!(error.code, Code::BuildFailed, "{error:?}");
            let said = format!("the base image {image} cannot be pulled: ");
            assert!(error.message().contains(&said), "{builder}: {error:?}");
            assert!(
                error.message().contains(what),
                "{builder}: {what}: {error:?}"
            );
            assert!(error.message().contains(registry), "{builder}: {error:?}");
            assert!(error.hint.contains(hint), "{builder}: {hint}: {error:?}");
            let build = error.build.as_deref().unwrap();
            assert_eq!(build.line, 1, "{builder}: {error:?}");
            assert!(
                build
                    .excerpt
                    .starts_with(&format!("> 1 | FROM {image}\n  2 | RUN")),
                "{build:?}"
            );
            assert!(!error.message().contains("LLB"), "{error:?}");
        }
    }
}
