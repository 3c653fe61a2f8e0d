//! Logins for private base images: from Docker's `config.json` and credential helpers to the builder,
//! and nowhere else. The registry is a real one that requires a login.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mol::event::Kind;
use mol::upkeep::diagnose::Status;
use mol::{Code, Event, OptionName};
use serde_json::{Value, json};

use crate::support::daemon::write_program;
use crate::support::engine::{BUSYBOX, Engine, is_running, wait_until_gone};
use crate::support::registry::{PASSWORD, Registry, USER};
use crate::support::server::dockerfile;
use crate::support::{
    CANCEL_LIMIT, TestClient, TestEnv, block_on, random_below, unique, wait_until,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Builder {
    BuildKit,
    Classic,
    Podman,
}

use Builder::{BuildKit, Classic, Podman};

const BUILDERS: [Builder; 3] = [BuildKit, Classic, Podman];

/// A registry with a private base image, and a user with a `config.json` and helpers.
struct Stage {
    env: TestEnv,
    registry: Registry,
    podman: Engine,
    /// The base image. It exists only in the registry.
    base: String,
    /// The content of its file `/base`.
    word: String,
}

impl Stage {
    fn new() -> Self {
        let env = TestEnv::new();
        let registry = Registry::start(env.scratch());
        let (base, word) = registry.publish("team/base");
        Self {
            env,
            registry,
            podman: Engine::podman_of_the_tests(),
            base,
            word,
        }
    }

    fn host(&self) -> &str {
        &self.registry.host
    }

    fn engine(&self, builder: Builder) -> &Engine {
        match builder {
            BuildKit | Classic => &self.env.engine,
            Podman => &self.podman,
        }
    }

    fn docker_config(&self) -> PathBuf {
        self.env.scratch().join("docker")
    }

    fn programs(&self) -> PathBuf {
        self.env.scratch().join("programs")
    }

    /// Writes the user's `config.json`.
    fn config(&self, text: impl ToString) {
        std::fs::create_dir_all(self.docker_config()).unwrap();
        std::fs::write(self.docker_config().join("config.json"), text.to_string()).unwrap();
    }

    /// A `config.json` with the password for the registry.
    fn config_with(&self, password: &str) {
        let auth = BASE64_STANDARD.encode(format!("{USER}:{password}"));
        self.config(json!({ "auths": { self.host(): { "auth": auth } } }));
    }

    /// Installs a credential helper that runs this shell script. `$server` is the registry asked for.
    fn helper(&self, name: &str, script: &str) {
        let script = format!("read server\n{script}");
        write_program(
            &self.programs(),
            &format!("docker-credential-{name}"),
            &script,
        );
    }

    /// A helper that always returns the registry's login, and records each request.
    fn working_helper(&self, name: &str) {
        let requests = self.env.scratch().join("requests");
        let answer = json!({ "ServerURL": "any", "Username": USER, "Secret": PASSWORD });
        let script = format!(
            "echo \"$1 $server\" >> {}\necho '{answer}'",
            requests.display()
        );
        self.helper(name, &script);
    }

    /// The requests to the working helpers.
    fn requests(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.env.scratch().join("requests"));
        text.unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// A template that no builder has in its cache yet.
    fn template(&self, text: &str) {
        let text = format!("{text}\nLABEL only={}\n", unique());
        self.env.template("hermes", dockerfile(&text));
    }

    fn client(&self, builder: Builder) -> TestClient {
        self.client_with(builder, &[])
    }

    /// The same, with more options.
    fn client_with(&self, builder: Builder, more: &[(OptionName, &str)]) -> TestClient {
        let (config, programs) = (self.docker_config(), self.programs());
        let mut options = vec![
            (OptionName::DockerHost, &*self.engine(builder).url),
            (OptionName::DockerConfig, config.to_str().unwrap()),
            (OptionName::SearchPath, programs.to_str().unwrap()),
            (
                OptionName::DockerBuildkit,
                if builder == Classic { "0" } else { "1" },
            ),
        ];
        options.extend_from_slice(more);
        self.env.client_with(&options)
    }

    /// Builds the template and returns the text of one file of the image. Removes the image and its base
    /// afterwards.
    fn built(&self, builder: Builder, file: &str) -> (String, TestClient) {
        let client = self.client(builder);
        let engine = self.engine(builder);
        let images = engine.keep_images();
        let image = client
            .ensure("hermes")
            .unwrap_or_else(|error| panic!("{builder:?}: {error:?}"));
        drop(images);
        let text = engine.read(&image.reference, file);
        self.tidy(builder);
        (text, client)
    }

    /// A template based on the private image is built.
    fn assert_built(&self, builder: Builder, what: &str) {
        self.template(&format!("FROM {}", self.base));
        let (text, client) = self.built(builder, "base");
        assert_eq!(text, self.word, "{what} with {builder:?}");
        assert_eq!(warnings(&client), Vec::<String>::new(), "{what}");
    }

    /// A build based on the private image fails, and the error names the image.
    fn assert_refused(&self, builder: Builder, what: &str) -> TestClient {
        self.template(&format!("FROM {}", self.base));
        let client = self.client(builder);
        let images = self.engine(builder).keep_images();
        let error = client.ensure_err("hermes");
        drop(images);
        assert_eq!(error.code, Code::BuildFailed, "{what}: {error:?}");
        assert!(error.message().contains(&self.base), "{what}: {error:?}");
        client
    }

    fn tidy(&self, builder: Builder) {
        let engine = self.engine(builder);
        engine.remove_all_of(&self.env.isolation);
        engine.untag(&self.base);
        assert!(engine.inspect(&self.base).is_none());
    }
}

#[test]
fn a_slow_credential_helper_is_not_a_cache_registry_timeout() {
    let stage = Stage::new();
    stage.config(json!({ "credHelpers": { stage.host(): "slow" } }));
    let answer = json!({ "ServerURL": "any", "Username": USER, "Secret": PASSWORD });
    // Longer than the registry may take.
    stage.helper("slow", &format!("sleep 12\necho '{answer}'"));
    stage.template("FROM scratch\nCOPY Dockerfile /");
    let cache = format!("{}/cache", stage.host());
    let client = stage.client_with(BuildKit, &[(OptionName::SharedCache, &cache)]);
    client.ensure("hermes").unwrap();
    assert_eq!(warnings(&client), Vec::<String>::new());
}

fn warnings(client: &TestClient) -> Vec<String> {
    let text = |event: Event| format!("{} ({})", event.message, event.hint.unwrap_or_default());
    client
        .of_kind(Kind::Warning)
        .into_iter()
        .map(text)
        .collect()
}

#[test]
fn without_a_login_the_build_fails_and_names_the_image() {
    let stage = Stage::new();
    for builder in BUILDERS {
        let client = stage.assert_refused(builder, "no login");
        assert_eq!(warnings(&client), Vec::<String>::new());
    }
}

#[test]
fn a_login_in_config_json_is_used() {
    let stage = Stage::new();
    let host = stage.host();
    let auth = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
    stage.config(json!({ "auths": { host: { "auth": auth } } }));
    for builder in BUILDERS {
        stage.assert_built(builder, "auth");
    }
    stage.config(json!({ "auths": { host: { "username": USER, "password": PASSWORD } } }));
    stage.assert_built(BuildKit, "username and password");
    stage.config(json!({ "auths": { format!("https://{host}/v1/"): { "auth": auth } } }));
    stage.assert_built(BuildKit, "a legacy key");
}

#[test]
fn a_login_is_not_reused_by_later_builds() {
    let stage = Stage::new();
    for builder in BUILDERS {
        stage.config_with("wrong");
        stage.assert_refused(builder, "a wrong password");
        stage.config_with(PASSWORD);
        stage.assert_built(builder, "the right password after a wrong one");
        stage.config("{}");
        stage.assert_refused(builder, "no password after a right one");
        stage.config_with("wrong");
        stage.assert_refused(builder, "a wrong password after a right one");
    }
}

#[test]
fn a_helper_is_asked_only_for_registries_in_the_dockerfile() {
    let stage = Stage::new();
    let host = stage.host();
    stage.working_helper("of-the-test");
    let mut helpers = json!({ host: "of-the-test", "https://index.docker.io/v1/": "of-the-test" });
    let mut auths = json!({ host: {} });
    for number in 0..10 {
        let other = format!("registry-{number}.example");
        helpers[&other] = json!("of-the-test");
        auths[&other] = json!({});
    }
    for builder in BUILDERS {
        stage.config(json!({ "credHelpers": helpers, "auths": auths }));
        stage.assert_built(builder, "ten helpers");
        stage.config(json!({ "credsStore": "of-the-test", "auths": auths }));
        stage.assert_built(builder, "one helper for ten");
    }
    // Once for each build.
    let expected = vec![format!("get {host}"); 2 * BUILDERS.len()];
    assert_eq!(stage.requests(), expected);
}

#[test]
fn base_images_in_from_copy_and_mount_get_a_login() {
    let stage = Stage::new();
    let host = stage.host();
    stage.config_with(PASSWORD);
    let arg = format!("ARG BASE={host}/team/base\nARG TAG=1\nFROM ${{BASE}}:$TAG");
    let copy = format!("FROM scratch\nCOPY --from={} /base /", stage.base);
    let mount = format!(
        "FROM {BUSYBOX}\nRUN --mount=type=bind,from={},target=/mnt cat /mnt/base > /base",
        stage.base
    );
    for (builder, texts) in [
        (BuildKit, &[&arg, &copy, &mount][..]),
        (Classic, &[&copy]),
        (Podman, &[&arg, &copy]),
    ] {
        for text in texts {
            stage.template(text);
            assert_eq!(stage.built(builder, "base").0, stage.word, "{text}");
        }
    }
}

#[test]
fn a_helper_without_a_login_causes_no_warning() {
    let stage = Stage::new();
    stage.helper(
        "empty",
        "echo credentials not found in native keychain; exit 1",
    );
    stage.config(json!({ "credsStore": "empty" }));
    for builder in [BuildKit, Classic] {
        let client = stage.assert_refused(builder, "an empty store");
        assert_eq!(warnings(&client), Vec::<String>::new());
    }
}

#[test]
fn a_failing_helper_or_invalid_login_is_only_a_warning() {
    let stage = Stage::new();
    stage.helper("angry", "echo the keychain is locked; exit 1");
    stage.helper("silent", "exit 3");
    stage.helper("odd", "echo this is not JSON");
    stage.helper("half", "echo '{\"Username\": \"me\"}'");
    stage.helper("endless", "while echo and more; do :; done");
    stage.helper(
        "failing",
        &format!("echo '{{\"Secret\": \"{PASSWORD}\"}}'; exit 1"),
    );
    let helper = |name: &str| json!({ "credsStore": name }).to_string();
    let auths = |auth: Value| json!({ "auths": { stage.host(): auth } }).to_string();
    let assert_warned = |client: &TestClient, says: &str| {
        let warnings = warnings(client);
        let [warning] = warnings.as_slice() else {
            panic!("{says}: expected one warning: {warnings:?}");
        };
        assert!(warning.contains(says), "{says}: {warning}");
        assert!(warning.contains(stage.host()), "{says}: {warning}");
        assert!(!warning.contains(PASSWORD), "{says}: {warning}");
    };
    for (config, says) in [
        (helper("absent"), "docker-credential-absent is not in PATH"),
        (helper("../angry"), "is not in PATH"),
        (helper("angry"), "the keychain is locked"),
        (helper("silent"), "exit status: 3"),
        (helper("odd"), "returned something that is not a login"),
        (helper("half"), "returned something that is not a login"),
        (helper("endless"), "its answer is too long"),
        (helper("failing"), "exit status: 1"),
        (auths(json!({ "auth": "%" })), "is not base64"),
        (auths(json!(PASSWORD)), "is not an object"),
        (auths(json!({ "auth": [PASSWORD] })), "is not a string"),
    ] {
        stage.config(&config);
        assert_warned(&stage.assert_refused(BuildKit, says), says);
    }
    // The classic builder gets all logins with the request, also if the engine has the base image.
    stage.config(helper("angry"));
    for builder in [Classic, BuildKit] {
        stage.env.engine.tag(BUSYBOX, &stage.base);
        stage.template(&format!("FROM {}", stage.base));
        let (_, client) = stage.built(builder, "bin/sh");
        match builder {
            Classic => assert_warned(&client, "the keychain is locked"),
            // BuildKit asks when it needs a login; with the containerd image store, always.
            _ => {
                let asks = usize::from(stage.env.engine.has_containerd_store());
                assert_eq!(warnings(&client).len(), asks, "{:?}", warnings(&client));
            }
        }
    }
}

#[test]
fn an_invalid_config_json_is_ignored_with_a_warning() {
    let stage = Stage::new();
    let good = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let good = json!({ "auths": { stage.host(): { "auth": good } } }).to_string();
    let assert_warned = |client: &TestClient, says: &str| {
        let warnings = warnings(client);
        let [warning] = warnings.as_slice() else {
            panic!("{says}: expected one warning: {warnings:?}");
        };
        let file = stage.docker_config().join("config.json");
        for part in [says, file.to_str().unwrap(), "ignored"] {
            assert!(warning.contains(part), "{part}: {warning}");
        }
        assert!(!warning.contains(PASSWORD), "{warning}");
    };
    for (config, says) in [
        (format!("\u{feff}{good}"), "byte-order mark"),
        (format!("// mine\n{good}"), "line 1, column 1"),
        (good.replace("}}}", "},}}"), "line 1, column"),
        ("{ nonsense".to_owned(), "line 1, column 3"),
    ] {
        stage.config(config);
        assert_warned(&stage.assert_refused(BuildKit, says), says);
        let found = block_on(stage.client(BuildKit).inner().diagnose().wait(None)).unwrap();
        let logins = found.checks.iter().find(|check| check.name == "logins");
        let logins = logins.unwrap();
        assert_eq!(logins.status, Status::Warning, "{logins:?}");
        assert!(logins.found.contains(says), "{logins:?}");
        assert!(!logins.fix.is_empty());
    }
    // With every builder, and also if the build needs no login.
    let says = "line 1, column 3";
    for builder in BUILDERS {
        assert_warned(&stage.assert_refused(builder, says), says);
        stage.template("FROM scratch\nCOPY Dockerfile /base\n");
        assert_warned(&stage.built(builder, "base").1, says);
    }
}

#[test]
fn config_json_is_parsed_as_leniently_as_docker_does() {
    let stage = Stage::new();
    let host = stage.host();
    let auth = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let (first, second) = auth.split_at(4);
    for config in [
        format!(
            r#"{{"auths": {{"bad.example": "x", "{host}": {{"auth": "{auth}"}}, "worse.example": {{"auth": "%"}}}}}}"#
        ),
        format!(
            r#"{{"AUTHS": {{"{host}": {{"Auth": "{first}\r\n{second}\n"}}}}, "credsStore": null}} trailing"#
        ),
        format!(
            r#"{{"auths": {{"{host}": null, "{host}": {{"auth": "eDp5", "auth": "{auth}"}}}}, "credHelpers": null}}"#
        ),
    ] {
        stage.config(&config);
        stage.assert_built(BuildKit, &config);
    }
    let answer = json!({ "username": USER, "secret": PASSWORD, "ServerURL": null });
    stage.helper("odd", &format!("echo '{answer}'; echo have a nice day"));
    stage.config(json!({ "credsStore": "odd" }));
    stage.assert_built(BuildKit, "a helper with trailing output");
    for empty in ["", "null", r#"{"auths": null, "credsStore": null}"#] {
        stage.config(empty);
        let client = stage.assert_refused(BuildKit, empty);
        assert_eq!(warnings(&client), Vec::<String>::new(), "{empty:?}");
    }
}

#[test]
fn a_helper_is_asked_once_per_registry_and_build() {
    let stage = Stage::new();
    let requests = stage.env.scratch().join("requests");
    let note = format!("echo \"$1 $server\" >> {}", requests.display());
    stage.helper(
        "locked",
        &format!("{note}; sleep 0.2; echo the keychain is locked; exit 1"),
    );
    stage.working_helper("open");
    let mut text = format!("FROM {}\n", stage.base);
    let mut others = Vec::new();
    for number in 0..8 {
        let (other, _) = stage.registry.publish(&format!("team/other-{number}"));
        others.push(other.clone());
        text += &format!("COPY --from={other} /base /other-{number}\n");
    }
    for builder in BUILDERS {
        for (helper, works) in [("locked", false), ("open", true)] {
            let _ = std::fs::remove_file(&requests);
            stage.config(json!({ "credsStore": helper }));
            stage.template(&text);
            let client = stage.client(builder);
            let images = stage.engine(builder).keep_images();
            let end = client.ensure("hermes");
            drop(images);
            assert_eq!(end.is_ok(), works, "{builder:?}: {end:?}");
            assert_eq!(
                stage.requests(),
                [format!("get {}", stage.host())],
                "{builder:?}"
            );
            assert_eq!(warnings(&client).len(), usize::from(!works), "{builder:?}");
        }
        stage.tidy(builder);
        others
            .iter()
            .for_each(|other| stage.engine(builder).untag(other));
    }
}

#[test]
fn cancelling_a_call_kills_and_reaps_a_hanging_helper() {
    let stage = Stage::new();
    let word = unique();
    // The sleeps do not have the word: they are known by their time.
    let time = format!("600.{:09}", random_below(1_000_000_000));
    for (builder, script) in [
        (BuildKit, format!("sleep {time}; true")),
        (BuildKit, format!("exec >&- 2>&-; sleep {time}; true")),
        (BuildKit, format!("sleep {time} & wait")),
        (Classic, format!("sleep {time}; true")),
        (Podman, format!("sleep {time}; true")),
    ] {
        // The word is in the helper's command line.
        let pid_file = stage.env.scratch().join("pid");
        let note = format!("echo $$ > {}", pid_file.display());
        stage.helper("hangs", &format!("{note}; sh -c '{script}' {word}"));
        stage.config(json!({ "credsStore": "hangs" }));
        stage.template(&format!("FROM {}", stage.base));
        let client = stage.client(builder);
        let call = client.begin("hermes");
        let sleep = format!("sleep\0{time}");
        wait_until("the helper", || {
            (is_running(&word) && is_running(&sleep)).then_some(())
        });
        let since = Instant::now();
        client.cancel(call);
        wait_until_gone(&word);
        wait_until_gone(&time);
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        wait_until("the helper to be reaped", || {
            (!Path::new("/proc").join(pid.trim()).exists()).then_some(())
        });
        assert!(
            since.elapsed() < CANCEL_LIMIT,
            "{script}: {:?}",
            since.elapsed()
        );
    }
}

#[test]
fn a_login_is_not_exposed_in_processes_events_or_images() {
    let stage = Stage::new();
    let pair = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let secrets = [PASSWORD, pair.trim_end_matches('=')];
    stage.working_helper("of-the-test");
    let helper = json!({ "credsStore": "of-the-test" });
    let auths = json!({ "auths": { stage.host(): { "auth": &pair } } });
    for (builder, config) in [
        (BuildKit, &helper),
        (BuildKit, &auths),
        (Classic, &helper),
        (Podman, &auths),
    ] {
        stage.config(config);
        let client = stage.client(builder);
        let engine = stage.engine(builder);
        let images = engine.keep_images();
        let mut shown = std::thread::scope(|scope| {
            // A failed test drops the sender too.
            let (building, done) = channel::<()>();
            scope.spawn(move || {
                while done.recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Timeout)
                {
                    let shown = secrets.iter().find(|secret| is_running(secret));
                    assert_eq!(shown, None, "a process has the secret in its arguments");
                }
            });
            // A failure shows more than a success. This step prints its environment and arguments.
            let text = format!("FROM {}\nRUN env; echo \"$0 $*\"; exit 3", stage.base);
            stage.template(&text);
            let failed = client.ensure("hermes");
            stage.template(&format!("FROM {}/not/there", stage.host()));
            let absent = client.ensure("hermes");
            stage.template(&format!("FROM {}", stage.base));
            let image = client.ensure("hermes");
            drop(building);
            let image = image.unwrap();
            let history = engine.history(&image.reference);
            let inspected = engine.inspect(&image.reference);
            let (failed, absent) = (failed.unwrap_err(), absent.unwrap_err());
            assert_eq!(failed.build.as_ref().unwrap().exit_code, 3, "{failed:?}");
            format!("{failed:?}\n{absent:?}\n{image:?}\n{history}\n{inspected:?}\n")
        });
        drop(images);
        for event in client.events() {
            shown += &serde_json::to_string(&event).unwrap();
        }
        assert!(shown.contains(stage.host()));
        for secret in secrets {
            assert!(
                !shown.contains(secret),
                "{builder:?} shows {secret}:\n{shown}"
            );
        }
        stage.tidy(builder);
    }
}
