//! Builders other than the engine's own: BuildKit daemons, which send the image to the engine. The daemons are real
//! ones.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mol::event::Kind;
use mol::upkeep::diagnose::{Check, Status};
use mol::{Code, Event, OptionName};
use serde_json::{Value, json};

use crate::support::builder::{program, template};
use crate::support::child::{self, Link, succeed, text};
use crate::support::emulation::impossible;
use crate::support::engine::{BUSYBOX, assert_gone, is_running, wait_until_gone};
use crate::support::registry::Registry;
use crate::support::server::{dockerfile, of_service};
use crate::support::tls::{Certificates, Flaw};
use crate::support::{Builder, TestClient, TestEnv, block_on, required_var, unique, wait_until};

/// Commits a template whose last step prints a unique word and never ends. Returns the word, which is also in the
/// step's command line.
fn endless(env: &TestEnv) -> String {
    let word = unique();
    let steps = format!("RUN echo running {word}; busybox=/bin/busybox; $busybox sleep 600; true");
    env.template("hermes", template(&steps));
    word
}

fn client(env: &TestEnv, builder: &str) -> TestClient {
    env.client_with(&[(OptionName::Builder, builder)])
}

/// A client of a builder with TLS. `authority` is the folder with the CA certificate, `own` the one with the client's
/// certificate and key.
fn client_with_tls(
    env: &TestEnv,
    builder: &str,
    authority: &Path,
    own: Option<&Path>,
) -> TestClient {
    let path = |folder: &Path, name: &str| folder.join(name).to_str().unwrap().to_owned();
    let mut options = vec![
        (OptionName::Builder, builder.to_owned()),
        (OptionName::BuilderCa, path(authority, "ca.pem")),
    ];
    if let Some(own) = own {
        options.push((OptionName::BuilderCert, path(own, "cert.pem")));
        options.push((OptionName::BuilderKey, path(own, "key.pem")));
    }
    let options: Vec<_> = options
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    env.client_with(&options)
}

/// The image is built on the builder, and is whole in the engine.
fn assert_builds(env: &TestEnv, client: &TestClient, builder: &str) {
    let word = unique();
    let steps = format!("RUN echo {word} > /word\nENV WORD={word}");
    let sha = env.template("hermes", template(&steps));
    let image = client.ensure("hermes").unwrap();
    assert_eq!(image.reference, env.reference("hermes", &sha));
    assert!(!image.cache_hit);
    let started = client.of_kind(Kind::BuildStarted);
    let [started] = &started[..] else {
        panic!("{started:#?}");
    };
    assert_eq!(started.builder.as_deref(), Some("buildkit"));
    assert_eq!(started.endpoint.as_deref(), Some(builder));
    let files = env.engine.files(&image.reference);
    assert_eq!(files["word"].content, format!("{word}\n"));
    let inspected = env.engine.inspect(&image.reference).unwrap();
    let config = inspected.config.unwrap();
    assert_eq!(config.env.unwrap().last().unwrap(), &format!("WORD={word}"));
    assert_eq!(
        config.labels.unwrap()["org.opencontainers.image.revision"],
        sha
    );
    assert_eq!(inspected.id.as_deref(), Some(&*image.image_id));
    assert_eq!(inspected.architecture.as_deref(), Some("amd64"));
    assert_eq!(
        env.engine.id(&env.latest("hermes")),
        env.engine.id(&image.reference)
    );
    assert!(client.ensure("hermes").unwrap().cache_hit);
}

#[test]
fn an_image_is_built_on_a_builder_at_a_socket() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    assert_builds(&env, &client(&env, &builder.address()), &builder.address());
}

#[test]
fn an_image_is_built_on_a_builder_at_a_port() {
    let env = TestEnv::new();
    let builder = Builder::tcp(&env.scratch().join("b"));
    assert_builds(&env, &client(&env, &builder.address()), &builder.address());
}

#[test]
fn the_base_image_comes_from_a_registry() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let registry = Registry::public(env.scratch());
    let (base, word) = registry.publish("base");
    env.template(
        "hermes",
        dockerfile(&format!("FROM {base}\nRUN cat /base\n")),
    );
    let client = client(&env, &builder.address());
    let image = client.ensure("hermes").unwrap();
    client.wait_for_line(&word);
    assert_eq!(env.engine.read(&image.reference, "base"), word);
}

#[test]
fn a_builder_with_mutual_tls_is_used() {
    let env = TestEnv::new();
    let certificates = Certificates::new(env.scratch());
    let builder = Builder::tls(&env.scratch().join("b"), &certificates);
    let own = certificates.issue(Flaw::None);
    let client = client_with_tls(&env, &builder.address(), &own, Some(&own));
    assert_builds(&env, &client, &builder.address());
}

#[test]
fn each_tls_fault_of_a_builder_is_reported_with_its_cause() {
    let env = TestEnv::new();
    env.template("hermes", template(""));
    let certificates = Certificates::new(&env.scratch().join("c"));
    let others = Certificates::new(&env.scratch().join("o"));
    let (own, foreign) = (certificates.issue(Flaw::None), others.issue(Flaw::None));
    let old = certificates.issue(Flaw::Expired);
    let says = |address: &str, client: &TestClient, why: &str| {
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::BuilderUnreachable, "{error:?}");
        assert!(error.message().contains(address), "{error:?}");
        assert!(error.message().contains(why), "{why}: {error:?}");
        assert!(!error.hint.is_empty(), "{error:?}");
    };
    let builder = Builder::tls(&env.scratch().join("b"), &certificates);
    let address = builder.address();
    for (authority, own, why) in [
        (&foreign, Some(&own), "not signed by the configured CA"),
        (&own, None, "requires a client certificate"),
        (&own, Some(&foreign), "refuses the client's certificate"),
        (&own, Some(&old), "refuses the client's certificate"),
    ] {
        let own = own.map(|folder| folder.as_path());
        says(
            &address,
            &client_with_tls(&env, &address, authority, own),
            why,
        );
    }
    // Without TLS, the daemon does not understand the client.
    let plain = client(&env, &address);
    says(&address, &plain, "connection");
    assert!(
        plain
            .ensure_err("hermes")
            .hint
            .contains("both sides use TLS")
    );
    drop(builder);
    for (flaw, why) in [
        (Flaw::Expired, "has expired"),
        (Flaw::OtherHost, "is for another name"),
    ] {
        let folder = env.scratch().join(format!("{flaw:?}"));
        let builder = Builder::flawed_tls(&folder, &certificates, flaw);
        let address = builder.address();
        says(
            &address,
            &client_with_tls(&env, &address, &own, Some(&own)),
            why,
        );
    }
}

#[test]
fn a_builder_that_does_not_answer_is_an_error_and_never_replaced() {
    let env = TestEnv::new();
    env.template("hermes", template(""));
    let nobody = format!("unix://{}", env.scratch().join("nobody").display());
    let error = client(&env, &nobody).ensure_err("hermes");
    assert_eq!(error.code, Code::BuilderUnreachable, "{error:?}");
    assert!(error.message().contains(&nobody), "{error:?}");
    assert!(error.hint.contains("start buildkitd"), "{error:?}");
    assert!(env.engine.references_of(&env.isolation).is_empty());
    let requests = env.server.requests();
    assert!(
        of_service(&requests, "git").is_empty(),
        "the builder must be checked before the fetch"
    );
}

#[test]
fn a_platform_that_the_builder_cannot_run_is_refused_before_the_fetch() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    env.template("hermes", template(""));
    let address = builder.address();
    let client = env.client_with(&[
        (OptionName::Builder, &address),
        (OptionName::Platform, &format!("linux/{}", impossible().0)),
    ]);
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::PlatformUnsupported, "{error:?}");
    assert!(of_service(&env.server.requests(), "git").is_empty());
}

#[test]
fn a_failed_step_on_a_builder_is_reported_with_line_and_exit_code() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let word = unique();
    env.template("hermes", template(&format!("RUN echo {word}; exit 7")));
    let error = client(&env, &builder.address()).ensure_err("hermes");
    assert_eq!(error.code, Code::BuildFailed, "{error:?}");
    let failed = error.build.unwrap();
    assert_eq!((failed.line, failed.exit_code), (4, 7), "{failed:?}");
    assert!(failed.step.contains(&word), "{failed:?}");
    assert!(failed.log_tail.contains(&word), "{failed:?}");
    assert!(failed.excerpt.contains("> 4 | RUN"), "{failed:?}");
    assert!(env.engine.references_of(&env.isolation).is_empty());
}

#[test]
fn a_cancelled_call_stops_the_builder_within_a_second() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let client = client(&env, &builder.address());
    let word = endless(&env);
    let call = client.begin("hermes");
    client.wait_for_line(&word);
    assert!(
        is_running(&word),
        "the test must see the builder's processes"
    );
    let address = builder.address();
    assert_counts(
        &client,
        json!({ &address: { "ok": 0 } }),
        json!({ &address: 1 }),
    );
    let since = Instant::now();
    client.cancel_in_time(call);
    assert_gone(&word, since);
    assert_counts(
        &client,
        json!({ &address: { "ok": 0 } }),
        json!({ &address: 0 }),
    );
    assert!(env.engine.references_of(&env.isolation).is_empty());
}

#[test]
fn a_silent_build_on_a_builder_is_stopped_after_the_stall_grace() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let word = endless(&env);
    let address = builder.address();
    let client = env.client_with(&[
        (OptionName::Builder, &address),
        (OptionName::StallGrace, "10s"),
    ]);
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::Stalled, "{error:?}");
    assert!(error.build.unwrap().step.contains(&word));
    wait_until_gone(&word);
}

#[test]
fn many_callers_share_one_build_on_a_builder() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let client = client(&env, &builder.address());
    env.template(
        "hermes",
        template(&format!("RUN echo {}; /bin/busybox sleep 1", unique())),
    );
    let calls: Vec<_> = (0..20).map(|_| client.begin("hermes")).collect();
    let mut ids: Vec<String> = calls
        .into_iter()
        .map(|call| call.end().unwrap().image_id)
        .collect();
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(client.count(Kind::BuildStarted), 1);
}

#[test]
fn a_base_image_that_only_the_engine_has_is_named_before_the_build() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    // Nothing listens there, so no registry can have it.
    let base = format!("127.0.0.1:1/{}:1", unique());
    env.engine.tag(BUSYBOX, &base);
    env.template("hermes", dockerfile(&format!("FROM {base}\nRUN true\n")));
    let client = client(&env, &builder.address());
    let error = client.ensure_err("hermes");
    env.engine.untag(&base);
    let warned = client.of_kind(Kind::Warning);
    let [warning] = &warned[..] else {
        panic!("{warned:#?}");
    };
    assert!(warning.message.contains(&base), "{warning:?}");
    assert!(warning.message.contains("line 1"), "{warning:?}");
    assert_eq!(error.code, Code::BuildFailed, "{error:?}");
    assert!(error.message().contains(&base), "{error:?}");
    assert!(error.hint.contains("push it to its registry"), "{error:?}");
    assert_eq!(error.build.unwrap().line, 1);
}

/// The files of a buildx builder of the driver `remote`.
fn write_buildx(folder: &Path, name: &str, endpoints: &[String]) {
    let nodes: Vec<_> = endpoints
        .iter()
        .enumerate()
        .map(
            |(number, endpoint)| json!({ "Name": format!("{name}{number}"), "Endpoint": endpoint }),
        )
        .collect();
    let builder = json!({ "Name": name, "Driver": "remote", "Nodes": nodes });
    std::fs::create_dir_all(folder.join("instances")).unwrap();
    std::fs::write(folder.join("instances").join(name), builder.to_string()).unwrap();
}

/// A client of a buildx builder with these nodes.
fn client_of_nodes(env: &TestEnv, endpoints: &[String]) -> TestClient {
    let folder = env.scratch().join("buildx");
    write_buildx(&folder, "team", endpoints);
    client_of(env, &folder)
}

/// A client of the builder `team` in buildx's files.
fn client_of(env: &TestEnv, folder: &Path) -> TestClient {
    env.client_with(&[
        (OptionName::Builder, "team"),
        (OptionName::BuildxConfig, folder.to_str().unwrap()),
    ])
}

#[test]
fn the_only_reachable_of_three_nodes_builds() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    for number in 0..3 {
        let missing = |name: &str| format!("unix://{}/{name}.sock", env.scratch().display());
        let mut addresses = vec![missing("x"), missing("y")];
        addresses.insert(number, builder.address());
        let client = client_of_nodes(&env, &addresses);
        env.template("hermes", template(&format!("RUN echo {}", unique())));
        client.ensure("hermes").unwrap();
        let started = client.of_kind(Kind::BuildStarted);
        let endpoints: Vec<_> = started.iter().flat_map(|event| &event.endpoint).collect();
        assert_eq!(endpoints, [&builder.address()]);
        let warnings = client.of_kind(Kind::Warning);
        let names_socket = |event: &&Event| event.message.contains("the socket does not exist");
        assert_eq!(
            warnings.iter().filter(names_socket).count(),
            2,
            "{warnings:#?}"
        );
    }
}

#[test]
fn a_build_that_loses_two_of_three_nodes_is_not_tried_on_the_third() {
    let env = TestEnv::new();
    let builders = ["0", "1", "2"].map(|name| Builder::unix(&env.scratch().join(name)));
    let addresses = builders.each_ref().map(Builder::address);
    let client = client_of_nodes(&env, &addresses);
    let word = endless(&env);
    let call = client.begin("hermes");
    for lost in 0..2 {
        let started = wait_until("the build on a node", || {
            client.of_kind(Kind::BuildStarted).get(lost).cloned()
        });
        // The client must know that the step runs: a build that has not begun is tried on any other node.
        wait_until("a line of the endless step", || {
            let log = client.of_kind(Kind::Log);
            let lines = log.iter().flat_map(|event| &event.line);
            let of_step = lines.filter(|line| line.contains(&word)).count();
            (of_step > lost).then_some(())
        });
        let endpoint = started.endpoint.unwrap();
        let node = addresses.iter().position(|address| *address == endpoint);
        builders[node.unwrap()].kill();
    }
    let error = call.end().unwrap_err();
    assert_eq!(error.code, Code::BuilderUnreachable, "{error:?}");
    let each = "the builder was lost on each node that was tried";
    assert!(error.message().contains(each), "{error:?}");
    assert_eq!(client.count(Kind::BuildStarted), 2);
}

#[test]
#[ignore = "tests/run farm runs it: buildx takes minutes to compile"]
fn a_remote_builder_that_buildx_has_created_is_used_by_its_name() {
    let env = TestEnv::new();
    let certificates = Certificates::new(&env.scratch().join("c"));
    let builder = Builder::tls(&env.scratch().join("b"), &certificates);
    let own = certificates.issue(Flaw::None);
    let config = env.scratch().join("buildx");
    let option = |name: &str, file: &str| format!("{name}={}", own.join(file).display());
    let options = [
        option("cacert", "ca.pem"),
        option("cert", "cert.pem"),
        option("key", "key.pem"),
    ]
    .join(",");
    succeed(
        Command::new(program("buildx"))
            .env("BUILDX_CONFIG", &config)
            .env("DOCKER_HOST", &env.engine.url)
            .args([
                "create",
                "--name",
                "Team",
                "--driver",
                "remote",
                "--driver-opt",
                &options,
            ])
            .arg(builder.address()),
    );
    for option in [OptionName::Builder, OptionName::BuildxBuilder] {
        let client = env.client_with(&[
            (option, "team"),
            (OptionName::BuildxConfig, config.to_str().unwrap()),
        ]);
        assert_builds(&env, &client, &builder.address());
    }
}

/// The client's build counts by node: results, and builds in progress.
fn assert_counts(client: &TestClient, results: Value, running: Value) {
    let found = client.inner().metrics();
    assert_eq!(json!(found.node_builds), results);
    assert_eq!(json!(found.node_builds_in_progress), running);
}

#[test]
fn metrics_and_warnings_name_a_node_that_is_passed_over() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let down = "unix:///nowhere/buildkitd.sock".to_owned();
    let client = client_of_nodes(&env, &[down.clone(), builder.address()]);
    env.template("hermes", template(""));
    client.ensure("hermes").unwrap();
    let warnings = client.of_kind(Kind::Warning);
    let nodes: Vec<_> = warnings.iter().map(|event| event.node.as_ref()).collect();
    assert_eq!(nodes, [Some(&down)], "{warnings:#?}");
    assert_counts(
        &client,
        json!({ &down: { "ok": 0, "builder_unreachable": 1 }, builder.address(): { "ok": 1 } }),
        json!({ &down: 0, builder.address(): 0 }),
    );
}

#[test]
fn a_build_whose_node_is_killed_goes_on_at_the_other_node() {
    let env = TestEnv::new();
    let builders = ["0", "1"].map(|name| Builder::unix(&env.scratch().join(name)));
    let addresses = builders.each_ref().map(Builder::address);
    let client = client_of_nodes(&env, &addresses);
    let word = unique();
    env.template(
        "hermes",
        template(&format!(
            "RUN echo running {word}; /bin/busybox sleep 8; echo done"
        )),
    );
    let call = client.begin("hermes");
    client.wait_for_line(&word);
    let first = client.of_kind(Kind::BuildStarted)[0]
        .endpoint
        .clone()
        .unwrap();
    let index = addresses
        .iter()
        .position(|address| *address == first)
        .unwrap();
    builders[index].kill();
    call.end().unwrap();
    let endpoints: Vec<_> = client.of_kind(Kind::BuildStarted);
    let endpoints: Vec<_> = endpoints
        .iter()
        .filter_map(|event| event.endpoint.as_ref())
        .collect();
    assert_eq!(endpoints, [&addresses[index], &addresses[1 - index]]);
    let sent = client.of_kind(Kind::ContextDone);
    let sent: Vec<_> = sent.iter().map(|done| (done.files, done.bytes)).collect();
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0], sent[1], "each node gets the same context");
    let warnings = client.of_kind(Kind::Warning);
    let nodes: Vec<_> = warnings.iter().map(|event| event.node.as_ref()).collect();
    assert_eq!(nodes, [Some(&first)], "{warnings:#?}");
    assert_counts(
        &client,
        json!({
            first: { "ok": 0, "builder_unreachable": 1 },
            &addresses[1 - index]: { "ok": 1 },
        }),
        json!({ &addresses[index]: 0, &addresses[1 - index]: 0 }),
    );
    // The lost node is not asked again at once.
    client.clear_events();
    env.template("hermes", template(&format!("RUN echo {}", unique())));
    client.ensure("hermes").unwrap();
    let warnings = client.of_kind(Kind::Warning);
    assert!(warnings.is_empty(), "{warnings:#?}");
}

#[test]
fn a_build_whose_nodes_are_all_killed_fails_with_the_reason_of_each() {
    let env = TestEnv::new();
    let builders = ["0", "1"].map(|name| Builder::unix(&env.scratch().join(name)));
    let addresses = builders.each_ref().map(Builder::address);
    let client = client_of_nodes(&env, &addresses);
    let word = endless(&env);
    let call = client.begin("hermes");
    client.wait_for_line(&word);
    for builder in &builders {
        builder.kill();
    }
    let since = Instant::now();
    let error = call.end().unwrap_err();
    assert!(
        since.elapsed() < Duration::from_secs(10),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(error.code, Code::BuilderUnreachable, "{error:?}");
    for address in &addresses {
        assert!(error.message().contains(address), "{error:?}");
    }
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::BuilderUnreachable, "{error:?}");
    assert!(
        error.message().contains("none of the builder's 2 nodes"),
        "{error:?}"
    );
    assert!(env.engine.references_of(&env.isolation).is_empty());
}

#[test]
fn a_builder_that_restarts_is_used_again() {
    let env = TestEnv::new();
    let builder = Builder::unix(&env.scratch().join("b"));
    let client = client(&env, &builder.address());
    let word = endless(&env);
    let call = client.begin("hermes");
    client.wait_for_line(&word);
    builder.kill();
    let error = call.end().unwrap_err();
    assert_eq!(error.code, Code::BuilderUnreachable, "{error:?}");
    builder.restart();
    env.template("hermes", template(&format!("RUN echo {}", unique())));
    client.ensure("hermes").unwrap();
}

#[test]
fn a_wrong_builder_option_is_refused_with_advice() {
    let env = TestEnv::new();
    env.template("hermes", template(""));
    let folder = env.scratch().join("buildx");
    write_buildx(&folder, "known", &["unix:///x".to_owned()]);
    write_buildx(&folder, "empty", &[]);
    write_buildx(&folder, "large", &vec!["unix:///x".to_owned(); 101]);
    let config = folder.to_str().unwrap();
    for (value, why, hint) in [
        ("tcp://10.0.0.1:1234", "without TLS", "_CA"),
        ("ssh://host", "not an address of BuildKit", "unix:///path"),
        ("nobody", "not a buildx builder", "known"),
        ("../known", "neither an address nor", "docker buildx ls"),
        ("empty", "has no nodes", "docker buildx create"),
        (
            "large",
            "has 101 nodes, more than 100",
            "docker buildx create",
        ),
    ] {
        let client = env.client_with(&[
            (OptionName::Builder, value),
            (OptionName::BuildxConfig, config),
        ]);
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::InvalidOption, "{value}: {error:?}");
        assert!(
            error.message().contains("MOLECULE_LOCAL_BUILDER"),
            "{value}: {error:?}"
        );
        assert!(error.message().contains(why), "{value}: {error:?}");
        assert!(error.hint.contains(hint), "{value}: {error:?}");
    }
}

#[test]
fn a_buildx_node_with_a_part_of_its_tls_options_is_refused() {
    let env = TestEnv::new();
    env.template("hermes", template(""));
    let folder = env.scratch().join("buildx");
    std::fs::create_dir_all(folder.join("instances")).unwrap();
    for (options, missing) in [
        (json!({ "cert": "/c.pem", "key": "/k.pem" }), "cacert"),
        (json!({ "cacert": "/ca.pem", "cert": "/c.pem" }), "key"),
        (json!({ "cacert": "/ca.pem", "key": "/k.pem" }), "cert"),
        (json!({ "servername": "builder" }), "cacert"),
    ] {
        let node =
            json!({ "Name": "team0", "Endpoint": "tcp://127.0.0.1:1", "DriverOpts": options });
        let builder = json!({ "Name": "team", "Driver": "remote", "Nodes": [node] });
        std::fs::write(folder.join("instances/team"), builder.to_string()).unwrap();
        let error = client_of(&env, &folder).ensure_err("hermes");
        assert_eq!(error.code, Code::InvalidOption, "{error:?}");
        let expected = format!("without {missing},");
        assert!(error.message().contains(&expected), "{options}: {error:?}");
        assert!(error.hint.contains("docker buildx create"), "{error:?}");
    }
}

#[test]
fn an_unsupported_buildx_driver_is_refused_with_advice() {
    let env = TestEnv::new();
    env.template("hermes", template(""));
    let folder = env.scratch().join("buildx");
    for (driver, hint) in [
        ("docker", "MOLECULE_LOCAL_BUILDER=default"),
        ("kubernetes", "driver remote"),
        ("cloud", "driver remote"),
    ] {
        let name = format!("of-{driver}");
        std::fs::create_dir_all(folder.join("instances")).unwrap();
        let text =
            json!({ "Name": name, "Driver": driver, "Nodes": [{ "Name": "0", "Endpoint": "x" }] });
        std::fs::write(folder.join("instances").join(&name), text.to_string()).unwrap();
        let client = env.client_with(&[
            (OptionName::BuildxBuilder, &name),
            (OptionName::BuildxConfig, folder.to_str().unwrap()),
        ]);
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::InvalidOption, "{error:?}");
        assert!(error.message().contains("BUILDX_BUILDER"), "{error:?}");
        assert!(error.message().contains(driver), "{error:?}");
        assert!(error.hint.contains(hint), "{error:?}");
    }
}

#[test]
fn a_full_disk_of_the_builder_is_reported() {
    let env = TestEnv::new();
    let builder = Builder::small(&env.scratch().join("b"), 32);
    env.template(
        "hermes",
        template("RUN /bin/busybox dd if=/dev/zero of=/noise bs=1M count=64"),
    );
    let error = client(&env, &builder.address()).ensure_err("hermes");
    assert_eq!(error.code, Code::BuildFailed, "{error:?}");
    assert!(
        error.hint.contains("the disk of the builder is full"),
        "{error:?}"
    );
    assert!(env.engine.references_of(&env.isolation).is_empty());
}

/// A command (docker or buildx) that uses the tests' engine.
fn of_engine(program: &Path, env: &TestEnv) -> Command {
    let mut command = Command::new(program);
    command
        .env("DOCKER_HOST", &env.engine.url)
        .env("BUILDX_CONFIG", env.scratch().join("buildx"));
    command
}

/// Removes the container and the image of a builder when it is dropped.
struct Removed<'a>(&'a TestEnv, &'a Path, &'a str, &'a str);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        let Self(env, docker, name, image) = self;
        let container = format!("buildx_buildkit_{name}0");
        let docker = || of_engine(docker, env);
        let _ = docker()
            .args(["rm", "--force", "--volumes", &container])
            .output();
        let _ = docker().args(["image", "rm", image]).output();
    }
}

/// An image with BuildKit, as an archive for `docker import`: its programs are static, but runc is not.
fn buildkit_image() -> Vec<u8> {
    let runc = Path::new("/usr/sbin/runc");
    let libraries = text(&succeed(Command::new("ldd").arg(runc)));
    let libraries = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    let mut archive = tar::Builder::new(Vec::new());
    for (from, to) in [
        (program("buildkitd"), "bin/buildkitd"),
        (program("buildctl"), "bin/buildctl"),
        (runc.to_owned(), "bin/runc"),
    ] {
        archive.append_path_with_name(from, to).unwrap();
    }
    for library in libraries {
        let from = std::fs::canonicalize(library).unwrap();
        archive
            .append_path_with_name(from, library.trim_start_matches('/'))
            .unwrap();
    }
    archive.append_dir("tmp", "/tmp").unwrap();
    archive.into_inner().unwrap()
}

#[test]
#[ignore = "tests/run farm runs it: buildx takes minutes to compile"]
fn a_builder_in_a_container_that_buildx_has_created_is_started_and_used() {
    let env = TestEnv::new();
    let docker = PathBuf::from(required_var("MOL_TEST_DOCKER"));
    let (name, image) = (unique(), format!("libmol-test/{}", unique()));
    let _removed = Removed(&env, &docker, &name, &image);
    let archive = env.scratch().join("buildkit.tar");
    std::fs::write(&archive, buildkit_image()).unwrap();
    succeed(
        of_engine(&docker, &env)
            .args([
                "import",
                "--change",
                "ENV PATH=/bin",
                "--change",
                "ENTRYPOINT [\"buildkitd\"]",
            ])
            .args([archive.to_str().unwrap(), &image]),
    );
    succeed(
        of_engine(&program("buildx"), &env)
            .args(["create", "--name", &name, "--driver", "docker-container"])
            .args(["--driver-opt", &format!("image={image}")]),
    );
    let (config, builder) = (
        env.scratch().join("buildx"),
        format!("docker-container://buildx_buildkit_{name}0"),
    );
    let client = env.client_with(&[
        (OptionName::Builder, &name),
        (OptionName::BuildxConfig, config.to_str().unwrap()),
    ]);
    env.template("hermes", template(""));
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::BuilderUnreachable, "{error:?}");
    assert!(
        error
            .message()
            .contains("has no container buildx_buildkit_"),
        "{error:?}"
    );
    assert!(
        error.hint.contains("docker buildx inspect --bootstrap"),
        "{error:?}"
    );

    // `buildx inspect --bootstrap` would create it with all privileges, which some machines of the tests do not have.
    let container = format!("buildx_buildkit_{name}0");
    succeed(
        of_engine(&docker, &env)
            .args([
                "create",
                "--name",
                &container,
                "--cap-add",
                "SYS_ADMIN",
                "--cap-add",
                "NET_ADMIN",
            ])
            .args([
                "--security-opt",
                "seccomp=unconfined",
                "--security-opt",
                "systempaths=unconfined",
            ])
            .args([
                "--volume",
                "/sys/fs/cgroup:/sys/fs/cgroup",
                "--volume",
                "/var/lib/buildkit",
            ])
            .args(["--network", "host", &image, "--oci-worker-net=host"]),
    );
    // The diagnosis names the container and leaves it alone.
    let found = block_on(client.inner().diagnose().wait(None)).unwrap();
    let check = found
        .checks
        .iter()
        .find(|check| check.name == "builder")
        .unwrap();
    assert!(check.found.contains("is stopped"), "{check:?}");
    assert_eq!(check.status, Status::Warning, "{check:?}");
    let state = of_engine(&docker, &env)
        .args(["inspect", "--format", "{{.State.Status}}", &container])
        .output()
        .unwrap();
    assert_eq!(text(&state).trim(), "created");

    assert_builds(&env, &client, &builder);
}

/// The check of the builder in a diagnosis, and that of the platform.
fn diagnosed(client: &TestClient) -> [Check; 2] {
    let found = block_on(client.inner().diagnose().wait(None)).unwrap();
    ["builder", "platform"].map(|name| {
        let check = found.checks.iter().find(|check| check.name == name);
        check.unwrap().clone()
    })
}

#[test]
fn the_diagnosis_shows_the_cache_of_each_builder() {
    let env = TestEnv::new();
    let builders = ["0", "1"].map(|name| Builder::unix(&env.scratch().join(name)));
    // The builders of the tests have no limit. The first one gets one.
    let config = env.scratch().join("0/buildkitd.toml");
    let limit = "gc = true\n[[worker.oci.gcpolicy]]\nall = true\nmaxUsedSpace = 21474836480\n";
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("gc = false\n"), "{text}");
    std::fs::write(&config, text.replace("gc = false\n", limit)).unwrap();
    builders[0].restart();
    let client = client_of_nodes(&env, &builders.each_ref().map(Builder::address));
    let sizes = |check: &Check| -> [String; 2] {
        assert_eq!(check.status, Status::Ok, "{check:?}");
        let caches: Vec<&str> = check.found.split("; cache ").skip(1).collect();
        let [first, second] = caches[..] else {
            panic!("{check:?}");
        };
        let (first, limit) = first.split_once(", at most ").unwrap();
        assert!(limit.starts_with("20.0 GiB); buildkit "), "{check:?}");
        [first, second.strip_suffix(')').unwrap()].map(str::to_owned)
    };
    let [empty, _] = diagnosed(&client);
    assert_eq!(sizes(&empty), ["0 B", "0 B"]);
    env.template(
        "hermes",
        template("RUN /bin/busybox head -c 3145728 /dev/zero > /zero"),
    );
    client.ensure("hermes").unwrap();
    let [check, _] = diagnosed(&client);
    let found = sizes(&check);
    let used = found.iter().find(|size| *size != "0 B").unwrap();
    assert!(found.contains(&"0 B".to_owned()), "{check:?}");
    let mib: f64 = used.strip_suffix(" MiB").unwrap().parse().unwrap();
    assert!(mib >= 3.0, "{check:?}");

    builders[0].kill();
    let [builder, platform] = diagnosed(&client);
    assert_eq!(builder.status, Status::Warning, "{builder:?}");
    assert_eq!(builder.found.matches("; cache ").count(), 1, "{builder:?}");
    assert_eq!(platform.status, Status::Ok, "{platform:?}");
}

#[test]
fn a_stopped_container_of_a_builder_is_a_warning_of_the_diagnosis() {
    let env = TestEnv::new();
    let [stopped, missing] = [unique(), unique()];
    let container = |name: &str| format!("buildx_buildkit_{name}");
    env.engine.create_container(&container(&stopped), BUSYBOX);
    let folder = env.scratch().join("buildx/instances");
    std::fs::create_dir_all(&folder).unwrap();
    let client = |name: &str, nodes: &[&str]| {
        let nodes: Vec<_> = nodes
            .iter()
            .map(|node| json!({ "Name": node, "Endpoint": env.engine.url }))
            .collect();
        let builder = json!({ "Name": name, "Driver": "docker-container", "Nodes": nodes });
        std::fs::write(folder.join(name), builder.to_string()).unwrap();
        env.client_with(&[
            (OptionName::Builder, name),
            (
                OptionName::BuildxConfig,
                folder.parent().unwrap().to_str().unwrap(),
            ),
        ])
    };
    let [one, _] = diagnosed(&client("one", &[&stopped]));
    let [two, platform] = diagnosed(&client("two", &[&missing, &stopped]));
    let [none, _] = diagnosed(&client("none", &[&missing]));
    env.engine.remove_container(&container(&stopped));
    let expected = format!(
        "its container {} is stopped; a build starts it",
        container(&stopped)
    );
    for check in [&one, &two] {
        assert_eq!(check.status, Status::Warning, "{check:?}");
        assert!(check.found.contains(&expected), "{check:?}");
        assert!(
            check.fix.contains("docker buildx inspect --bootstrap"),
            "{check:?}"
        );
    }
    assert_eq!(platform.cause, "builder", "{platform:?}");
    assert_eq!(none.status, Status::Problem, "{none:?}");
}

#[test]
fn fifty_calls_in_eight_processes_make_one_build_for_each_runtime() {
    const RUNTIMES: [&str; 4] = ["hermes", "codex", "claude-code", "autogen"];
    let env = TestEnv::new();
    let builders = ["0", "1"].map(|name| Builder::unix(&env.scratch().join(name)));
    let folder = env.scratch().join("buildx");
    write_buildx(&folder, "team", &builders.each_ref().map(Builder::address));
    for runtime in RUNTIMES {
        env.template(
            runtime,
            template(&format!("RUN echo {}; /bin/busybox sleep 1", unique())),
        );
    }
    let crowd = child::program("crowd", Link::Static);
    // 50 calls.
    let processes: Vec<_> = [7, 7, 6, 6, 6, 6, 6, 6]
        .into_iter()
        .map(|calls: u32| {
            child::command(&env, &crowd)
                .args([&calls.to_string(), "0", "1"])
                .args(RUNTIMES)
                .env(OptionName::Builder.name(), "team")
                .env(OptionName::BuildxConfig.name(), &folder)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let outputs = processes
        .into_iter()
        .map(|process| process.wait_with_output().unwrap());
    let output: String = outputs.map(|output| text(&output)).collect();
    let count = |word: &str| output.lines().filter(|line| line.contains(word)).count();
    assert_eq!(count(" ok molecule-local/"), 50, "{output}");
    assert_eq!(
        count("\"kind\":\"build_started\""),
        RUNTIMES.len(),
        "{output}"
    );
    let on_a_node = |line: &&str| {
        let named =
            |builder: &Builder| line.contains(&format!("\"endpoint\":\"{}\"", builder.address()));
        line.contains("\"kind\":\"build_started\"") && builders.iter().any(named)
    };
    assert_eq!(output.lines().filter(on_a_node).count(), RUNTIMES.len());
}
