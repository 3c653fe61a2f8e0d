//! A build cache in a registry, which machines share. It makes builds faster; one that cannot be used is a warning.

use std::path::Path;

use mol::event::Kind;
use mol::{Event, OptionName};

use crate::support::registry::Registry;
use crate::support::server::dockerfile;
use crate::support::{Builder, End, Handling, Proxy, TestClient, TestEnv, unique};

/// A client with a builder, a shared cache and its mode.
fn client(env: &TestEnv, builder: &str, cache: &str, mode: &str) -> TestClient {
    env.client_with(&[
        (OptionName::Builder, builder),
        (OptionName::SharedCache, cache),
        (OptionName::SharedCacheMode, mode),
    ])
}

/// A template with two stages, each with a RUN step. The image contains only `/made`, copied from the first stage.
/// Returns the content of that file.
fn two_stages(env: &TestEnv, base: &str) -> String {
    let word = unique();
    let text = format!(
        "FROM {base} AS compile\nRUN echo {word} > /made\nFROM {base}\nCOPY --from=compile /made /made\nRUN cat /made\n"
    );
    env.template("hermes", dockerfile(&text));
    word
}

/// The RUN steps that ended, and whether each was cached.
fn run_steps(client: &TestClient) -> Vec<bool> {
    let is_run = |event: &Event| {
        event
            .step_name
            .as_ref()
            .is_some_and(|name| name.contains("] RUN "))
    };
    let done = client.of_kind(Kind::StepDone);
    done.iter()
        .filter(|event| is_run(event))
        .map(|event| event.cached == Some(true))
        .collect()
}

fn builder(folder: &Path, name: &str) -> Builder {
    Builder::unix(&folder.join(name))
}

#[test]
fn an_empty_builder_with_the_shared_cache_runs_no_step() {
    let env = TestEnv::new();
    let registry = Registry::public(env.scratch());
    let (base, _) = registry.publish("base");
    let cache = format!("{}/cache", registry.host);
    let word = two_stages(&env, &base);

    let first = builder(env.scratch(), "1");
    let writer = client(&env, &first.address(), &cache, "rw");
    let built = writer.ensure("hermes").unwrap();
    assert_eq!(run_steps(&writer), [false, false]);
    env.engine.remove_all_of(&env.isolation);

    let second = builder(env.scratch(), "2");
    let reader = client(&env, &second.address(), &cache, "ro");
    let image = reader.ensure("hermes").unwrap();
    assert_eq!(run_steps(&reader), [true, true]);
    assert_eq!(image.reference, built.reference);
    assert_eq!(env.engine.read(&image.reference, "made").trim(), word);
    for client in [&writer, &reader] {
        assert_eq!(
            client.count(Kind::Warning),
            0,
            "{:#?}",
            client.of_kind(Kind::Warning)
        );
    }
}

#[test]
fn a_reader_does_not_write_the_shared_cache() {
    let env = TestEnv::new();
    let registry = Registry::public(env.scratch());
    let (base, _) = registry.publish("base");
    let cache = format!("{}/cache", registry.host);
    two_stages(&env, &base);
    let first = builder(env.scratch(), "1");
    client(&env, &first.address(), &cache, "ro")
        .ensure("hermes")
        .unwrap();
    env.engine.remove_all_of(&env.isolation);
    let second = builder(env.scratch(), "2");
    let reader = client(&env, &second.address(), &cache, "ro");
    reader.ensure("hermes").unwrap();
    assert_eq!(run_steps(&reader), [false, false]);
}

#[test]
fn the_engines_buildkit_reads_the_cache_and_warns_that_it_cannot_write() {
    let env = TestEnv::new();
    let registry = Registry::public(env.scratch());
    let (base, _) = registry.publish("base");
    let cache = format!("{}/cache", registry.host);
    two_stages(&env, &base);
    let writer = builder(env.scratch(), "1");
    client(&env, &writer.address(), &cache, "rw")
        .ensure("hermes")
        .unwrap();
    env.engine.remove_all_of(&env.isolation);

    let engine = env.client_with(&[
        (OptionName::SharedCache, &cache),
        (OptionName::SharedCacheMode, "rw"),
    ]);
    engine.ensure("hermes").unwrap();
    // BuildKit before 0.12 does not understand what newer ones write.
    let reads = env.engine.version() >= [25, 0, 0];
    assert_eq!(run_steps(&engine), [reads, reads]);
    two_stages(&env, &base);
    engine.ensure("hermes").unwrap();
    let warnings = engine.of_kind(Kind::Warning);
    let [warning] = &warnings[..] else {
        panic!("{warnings:#?}");
    };
    assert!(
        warning.message.contains("read, but not written"),
        "{warning:?}"
    );
}

#[test]
fn a_shared_cache_that_cannot_be_used_is_a_warning() {
    let env = TestEnv::new();
    let registry = Registry::public(env.scratch());
    let (base, _) = registry.publish("base");
    let rubbish = Proxy::before_registry(&registry.host, |_| {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nrubbish";
        Handling::Answer(answer.as_bytes().to_vec(), End::Close)
    });
    let (_, rubbish) = rubbish.url.split_once("://").unwrap();
    let builder = builder(env.scratch(), "b");
    for host in ["127.0.0.1:1", rubbish] {
        for mode in ["ro", "rw"] {
            two_stages(&env, &base);
            let client = client(&env, &builder.address(), &format!("{host}/cache"), mode);
            client.ensure("hermes").unwrap();
            // With rw, a second attempt sends the image through the client.
            let run = run_steps(&client).into_iter().filter(|cached| !cached);
            assert_eq!(run.count(), 2);
            let warnings = client.of_kind(Kind::Warning);
            let told = warnings.iter().any(|event| {
                event.message.contains("shared cache cannot be used")
                    && event.message.contains(host)
            });
            assert!(told, "{host} {mode}: {warnings:#?}");
        }
    }
}

#[test]
fn a_registry_that_never_answers_is_not_used_for_the_shared_cache() {
    let env = TestEnv::new();
    let registry = Registry::public(env.scratch());
    let (base, _) = registry.publish("base");
    let silent =
        Proxy::before_registry(&registry.host, |_| Handling::Answer(Vec::new(), End::Hang));
    let host = silent.url.strip_prefix("http://").unwrap();
    let own = builder(env.scratch(), "b");
    for (builder, mode) in [(&*own.address(), "rw"), ("default", "ro")] {
        two_stages(&env, &base);
        let client = env.client_with(&[
            (OptionName::Builder, builder),
            (OptionName::SharedCache, &format!("{host}/cache")),
            (OptionName::SharedCacheMode, mode),
        ]);
        client.ensure("hermes").unwrap();
        assert_eq!(run_steps(&client), [false, false]);
        let warnings = client.of_kind(Kind::Warning);
        let [warning] = &warnings[..] else {
            panic!("{warnings:#?}");
        };
        let expected = format!(
            "the shared cache {host}/cache/hermes:linux-amd64 is not used: its registry did not answer the "
        );
        assert!(warning.message.starts_with(&expected), "{warning:?}");
        assert!(
            warning.message.ends_with(" within 10 seconds"),
            "{warning:?}"
        );
        let hint = warning.hint.as_deref().unwrap_or_default();
        assert!(hint.contains("MOLECULE_LOCAL_SHARED_CACHE"), "{warning:?}");
    }
}

#[test]
fn a_step_whose_cached_result_cannot_be_downloaded_runs_again() {
    let env = TestEnv::new();
    let registry = Registry::public(env.scratch());
    let (base, _) = registry.publish("base");
    let cache = format!("{}/cache", registry.host);
    let first = builder(env.scratch(), "first");
    let answer = |status: &str| {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 7\r\n\r\nrubbish");
        Handling::Answer(answer.into_bytes(), End::Close)
    };
    for (name, handling, mode) in [
        ("deleted", answer("404 Not Found"), "ro"),
        ("deleted-rw", answer("404 Not Found"), "rw"),
        ("fails", answer("500 Internal Server Error"), "ro"),
        ("rubbish", answer("200 OK"), "ro"),
        ("hangs", Handling::Answer(Vec::new(), End::Hang), "ro"),
        ("hangs-rw", Handling::Answer(Vec::new(), End::Hang), "rw"),
    ] {
        let word = two_stages(&env, &base);
        client(&env, &first.address(), &cache, "rw")
            .ensure("hermes")
            .unwrap();
        env.engine.remove_all_of(&env.isolation);

        // BuildKit keeps a partly downloaded layer and resumes it. Wrong bytes in a layer of the base image would make
        // that image unusable on this builder, so those layers are passed.
        let except = (name == "rubbish").then_some("base");
        let proxy = registry.with_layers("cache/hermes", except, handling);
        let host = proxy.url.strip_prefix("http://").unwrap();
        let empty = builder(env.scratch(), name);
        let client = env.client_with(&[
            (OptionName::Builder, &empty.address()),
            (OptionName::SharedCache, &format!("{host}/cache")),
            (OptionName::SharedCacheMode, mode),
            (OptionName::StallGrace, "6s"),
        ]);
        let image = client.ensure("hermes");
        let image =
            image.unwrap_or_else(|error| panic!("{name}: {error:?}\n{:#?}", client.events()));
        assert_eq!(env.engine.read(&image.reference, "made").trim(), word);
        assert!(run_steps(&client).ends_with(&[false, false]), "{name}");
        let warnings = client.of_kind(Kind::Warning);
        let again = format!(
            "the build starts again without the shared cache {host}/cache/hermes:linux-amd64: "
        );
        let told = warnings
            .iter()
            .filter(|event| event.message.starts_with(&again));
        assert_eq!(told.count(), 1, "{name}: {warnings:#?}");
        if name.starts_with("hangs") {
            // BuildKit gets time to cancel the first build.
            let events = client.events();
            let mut events = events
                .iter()
                .map(|event| (event.time_unix_ms, &event.message));
            let (told, _) = events
                .find(|(_, message)| message.starts_with(&again))
                .unwrap();
            let (next, _) = events.next().unwrap();
            assert!(next >= told + 2000, "{name}: {} ms", next - told);
        }
        // The engine cannot pull the image from such a registry: a second warning.
        let others = usize::from(mode == "rw");
        assert_eq!(warnings.len(), 1 + others, "{name}: {warnings:#?}");
        env.engine.remove_all_of(&env.isolation);
    }
}

#[test]
fn the_engines_buildkit_reruns_a_step_it_cannot_download() {
    let env = TestEnv::new();
    let registry = Registry::public(env.scratch());
    let (base, _) = registry.publish("base");
    let first = builder(env.scratch(), "first");
    for handling in [
        Handling::Answer(b"HTTP/1.1 404 Not Found\r\n\r\n".to_vec(), End::Close),
        Handling::Answer(Vec::new(), End::Hang),
    ] {
        let word = two_stages(&env, &base);
        client(
            &env,
            &first.address(),
            &format!("{}/cache", registry.host),
            "rw",
        )
        .ensure("hermes")
        .unwrap();
        env.engine.remove_all_of(&env.isolation);
        let proxy = registry.with_layers("cache/hermes", None, handling);
        let host = proxy.url.strip_prefix("http://").unwrap();
        let engine = env.client_with(&[
            (OptionName::SharedCache, &format!("{host}/cache")),
            (OptionName::StallGrace, "6s"),
        ]);
        let image = engine.ensure("hermes").unwrap();
        assert_eq!(env.engine.read(&image.reference, "made").trim(), word);
        assert!(run_steps(&engine).ends_with(&[false, false]));
        // BuildKit before 0.12 does not read what newer ones write.
        let reads = env.engine.version() >= [25, 0, 0];
        let warnings = engine.of_kind(Kind::Warning);
        assert_eq!(warnings.len(), usize::from(reads), "{warnings:#?}");
        env.engine.remove_all_of(&env.isolation);
    }
}

#[test]
fn a_failed_step_is_not_retried_without_the_shared_cache() {
    let env = TestEnv::new();
    let registry = Registry::public(env.scratch());
    let (base, _) = registry.publish("base");
    let builder = builder(env.scratch(), "b");
    let template = |last: &str| {
        let text = format!("FROM {base}\nRUN echo once > /once\n{last}\n");
        env.template("hermes", dockerfile(&text));
    };
    let client = client(
        &env,
        &builder.address(),
        &format!("{}/cache", registry.host),
        "ro",
    );
    template("RUN true");
    client.ensure("hermes").unwrap();
    for (last, code) in [
        ("RUN echo ran; exit 3", 3),
        ("RUN sh -c 'kill -9 $$'; exit $?", 137),
        ("COPY does-not-exist /", 0),
    ] {
        template(last);
        client.clear_events();
        let error = client.ensure("hermes").unwrap_err();
        let failed = error.build.as_ref().unwrap();
        assert_eq!((failed.line, failed.exit_code), (3, code), "{error:?}");
        // The builder has the first RUN in its own cache, so this build counts as one that used a cached result.
        assert!(run_steps(&client)[0], "{last}");
        let ended = client.of_kind(Kind::StepDone);
        let failures = ended.iter().filter(|event| event.error.is_some());
        assert_eq!(failures.count(), 1, "{last}: {ended:#?}");
        assert_eq!(client.count(Kind::Warning), 0, "{last}");
    }
}

#[test]
fn the_classic_builder_warns_once_that_it_does_not_use_the_cache() {
    let env = TestEnv::new();
    let client = env.client_with(&[
        (OptionName::SharedCache, "127.0.0.1:1/cache"),
        (OptionName::DockerBuildkit, "0"),
    ]);
    for _ in 0..2 {
        env.template(
            "hermes",
            dockerfile(&format!("FROM scratch\nCOPY Dockerfile /{}\n", unique())),
        );
        client.ensure("hermes").unwrap();
    }
    let warnings = client.of_kind(Kind::Warning);
    let [warning] = &warnings[..] else {
        panic!("{warnings:#?}");
    };
    assert!(
        warning
            .message
            .contains("is not used: the classic builder does not support it"),
        "{warning:?}"
    );
}
