//! Logins for the registries of private base images and of the shared cache: from docker's `config.json`, or from the
//! credential helpers that it names.
//!
//! Only a registry that the Dockerfile names, or that has the shared cache, gets a login. A helper that fails is a
//! warning, not an error: the image may be there already, or be public.

mod helper;
mod source;

pub(crate) use source::Logins;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use crate::context::DOCKER_HUB;
use crate::engine::connect::config::{self, Config};
use crate::error::{Code, Result};
use crate::event::{Event, Sink};
use crate::options::EngineSettings;
use crate::process::executor::blocking;
use crate::process::outside_file::within;
use source::{Source, config_key};

/// How many logins are looked up at the same time for one build. Each lookup can start a program.
const PARALLEL_LOOKUPS: usize = 2;

/// A user name and a password, or an identity token.
#[derive(Clone, Default)]
pub(super) struct Login {
    /// Empty for an identity token.
    pub(super) username: String,
    pub(super) secret: Zeroizing<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(***)")
    }
}

/// The logins for one build, shared by all its attempts. Each registry is looked up at most once, on the first
/// request, however often the engine asks; a failed lookup is not repeated either.
#[derive(Clone)]
pub(super) struct Credentials {
    /// By registry, for those given to [`Self::new`]. A lookup continues when its first waiter is dropped.
    logins: BTreeMap<String, Once<Option<Login>>>,
    config: Once<Result<Arc<Config>>>,
    lookup: Arc<Lookup>,
}

/// A future that runs once, from the first poll of any clone. The last clone drops it, and wipes its result.
type Once<T> = Shared<BoxFuture<'static, T>>;

/// What the lookups of one build share.
struct Lookup {
    settings: EngineSettings,
    tasks: TaskTracker,
    emit: Sink,
    config: Once<Result<Arc<Config>>>,
    permits: Semaphore,
}

impl Credentials {
    /// For these registries only.
    pub(super) fn new(
        settings: EngineSettings,
        registries: BTreeSet<String>,
        tasks: TaskTracker,
        emit: Sink,
    ) -> Self {
        let config = read_config(settings.clone(), tasks.clone(), Arc::clone(&emit))
            .boxed()
            .shared();
        let lookup = Arc::new(Lookup {
            settings,
            tasks,
            emit,
            config: config.clone(),
            permits: Semaphore::new(PARALLEL_LOOKUPS),
        });
        let logins = registries.into_iter().map(|registry| {
            let (lookup, name) = (Arc::clone(&lookup), registry.clone());
            let login = async move { lookup.login(&name).await };
            (registry, login.boxed().shared())
        });
        Self {
            logins: logins.collect(),
            config,
            lookup,
        }
    }

    /// Whether a login is being looked up: by a credential helper, or in config.json.
    pub(super) fn is_looking_up(&self) -> bool {
        self.lookup.permits.available_permits() < PARALLEL_LOOKUPS
    }

    /// Reads docker's configuration, and warns about its invalid parts. Also called when no login is requested, because
    /// an invalid file loses its other settings too, such as the current context.
    pub(super) async fn check(&self) {
        // A lookup reports the error.
        let _ = self.config.clone().await;
    }

    /// The login for a registry, if the registry was given to [`Self::new`] and there is a login.
    pub(super) async fn login(&self, host: &str) -> Option<Login> {
        let registry = match host {
            // BuildKit asks for the host that it connects to.
            "registry-1.docker.io" | "index.docker.io" => DOCKER_HUB,
            host => host,
        };
        self.logins.get(registry)?.clone().await
    }

    /// The login for a registry, as the value of the header `X-Registry-Auth` (Docker Engine API, "Create an image").
    /// `None` if there is none.
    pub(super) async fn header_for(&self, registry: &str) -> Option<Zeroizing<String>> {
        let login = self.login(registry).await?;
        encode(&AuthConfig::new(config_key(registry), &login))
    }

    /// All logins, as the value of the header `X-Registry-Config` (Docker Engine API, "Build an image").
    /// `None` if there are none.
    pub(super) async fn header(&self) -> Option<Zeroizing<String>> {
        self.check().await;
        let mut logins = Vec::new();
        for (registry, login) in &self.logins {
            if let Some(login) = login.clone().await {
                logins.push((config_key(registry), login));
            }
        }
        let by_registry: HashMap<&str, AuthConfig<'_>> = logins
            .iter()
            .map(|(key, login)| (*key, AuthConfig::new(key, login)))
            .collect();
        if by_registry.is_empty() {
            return None;
        }
        encode(&by_registry)
    }
}

/// A login as the engine reads it in a header.
#[derive(Serialize)]
struct AuthConfig<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    password: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    identitytoken: &'a str,
    serveraddress: &'a str,
}

impl<'a> AuthConfig<'a> {
    fn new(key: &'a str, login: &'a Login) -> Self {
        let (password, identitytoken) = match login.username.as_str() {
            "" => ("", login.secret.as_str()),
            _ => (login.secret.as_str(), ""),
        };
        Self {
            username: &login.username,
            password,
            identitytoken,
            serveraddress: key,
        }
    }
}

fn encode(logins: &impl Serialize) -> Option<Zeroizing<String>> {
    let json = Zeroizing::new(serde_json::to_vec(logins).ok()?);
    Some(Zeroizing::new(BASE64_URL_SAFE.encode(&json)))
}

/// Reads docker's configuration, and warns about its invalid parts.
async fn read_config(
    settings: EngineSettings,
    tasks: TaskTracker,
    emit: Sink,
) -> Result<Arc<Config>> {
    let what = config::described(&settings);
    let read = move || Config::load_strict(&settings);
    let config = within(&tasks, Code::InvalidOption, &what, read).await?;
    for warning in &config.warnings {
        emit(Event::warning(warning.as_str(), config::HINT));
    }
    Ok(Arc::new(config))
}

impl Lookup {
    /// The login for a registry. A failure is a warning.
    async fn login(&self, registry: &str) -> Option<Login> {
        // Never closed, so this cannot fail.
        let _permit = self.permits.acquire().await;
        match self.find(config_key(registry)).await {
            Ok(login) => login,
            Err(error) => {
                let message = format!("no login for {registry}: {}", error.message());
                (self.emit)(Event::warning(message, error.hint));
                None
            }
        }
    }

    async fn find(&self, key: &str) -> Result<Option<Login>> {
        let config = self.config.clone().await?;
        let what = config::described(&self.settings);
        let source = {
            let (path, key) = (self.settings.search_path.clone(), key.to_owned());
            move || Source::of(&config, path.as_deref(), &key)
        };
        match within(&self.tasks, Code::InvalidOption, &what, source).await? {
            Source::File(login) => Ok(login),
            Source::Helper(name, program) => {
                let canceled = CancellationToken::new();
                let _cancel_on_drop = canceled.clone().drop_guard();
                let (key, tasks) = (key.to_owned(), self.tasks.clone());
                let get = move || helper::get(&name, &program, &key, &canceled, &tasks);
                blocking(&self.tasks, get).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::process::executor::block_on;

    /// Settings with this `config.json`, and a helper that is this shell script.
    fn user(config: impl AsRef<[u8]>, helper: &str) -> (tempfile::TempDir, EngineSettings) {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let program = dir.path().join("docker-credential-of-the-test");
        let script = format!("#!/bin/sh\ncd {}\n{helper}\n", dir.path().display());
        // By a child: a process that another thread starts meanwhile would inherit the open file, and the helper could
        // not be executed (ETXTBSY).
        let mut writer = Command::new("/bin/sh")
            .args(["-c", r#"cat >"$0" && chmod 755 "$0""#])
            .arg(&program)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let written = writer.stdin.take().unwrap().write_all(script.as_bytes());
        written.unwrap();
        assert!(writer.wait().unwrap().success());
        let settings = EngineSettings {
            config_dir: Some(dir.path().to_owned()),
            search_path: Some(format!("{}:/usr/bin:/bin", dir.path().display())),
            ..EngineSettings::default()
        };
        (dir, settings)
    }

    /// The credentials for these registries, and the warnings so far.
    fn recorded(
        settings: EngineSettings,
        registries: &[&str],
    ) -> (Credentials, Arc<Mutex<Vec<String>>>) {
        let warnings = Arc::<Mutex<Vec<String>>>::default();
        let registries = registries.iter().map(|&name| name.to_owned()).collect();
        let sink = Arc::clone(&warnings);
        let emit: Sink = Arc::new(move |event| sink.lock().unwrap().push(event.message));
        let credentials = Credentials::new(settings, registries, TaskTracker::new(), emit);
        (credentials, warnings)
    }

    /// The credentials for these registries, with this `config.json`. Any event is a failure.
    fn credentials(
        config: impl AsRef<[u8]>,
        registries: &[&str],
    ) -> (tempfile::TempDir, Credentials) {
        let (dir, settings) = user(config, "exit 1");
        let registries = registries.iter().map(|&name| name.to_owned()).collect();
        let emit: Sink = Arc::new(|event| panic!("{event:?}"));
        let credentials = Credentials::new(settings, registries, TaskTracker::new(), emit);
        (dir, credentials)
    }

    #[test]
    fn docker_hub_aliases_share_one_login() {
        let config = r#"{"auths": {
            "https://index.docker.io/v1/": {"username": "me", "password": "hub"},
            "registry.example": {"username": "me", "password": "named"},
            "other.example": {"username": "me", "password": "other"}
        }}"#;
        let (_dir, both) = credentials(config, &["docker.io", "registry.example"]);
        let secret = |credentials: &Credentials, host| {
            let login = block_on(credentials.login(host));
            login.map(|login| login.secret.to_string())
        };
        for (host, expected) in [
            ("registry-1.docker.io", Some("hub")),
            ("index.docker.io", Some("hub")),
            ("docker.io", Some("hub")),
            ("registry.example", Some("named")),
            ("registry.example:5000", None),
            // The Dockerfile does not name it.
            ("other.example", None),
        ] {
            assert_eq!(secret(&both, host).as_deref(), expected, "{host}");
        }
        let (_dir, one) = credentials(config, &["registry.example"]);
        assert_eq!(secret(&one, "registry-1.docker.io"), None);
    }

    #[test]
    fn the_classic_builder_gets_all_logins_in_one_header() {
        let config = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "bWU6aHVi"},
            "token.example": {"auth": "", "identitytoken": "idt"},
            "other.example": {"auth": "bWU6aHVi"}
        }}"#;
        let (_dir, some) = credentials(config, &["docker.io", "token.example", "none.example"]);
        let header = block_on(some.header()).unwrap();
        let json = BASE64_URL_SAFE.decode(header.as_bytes()).unwrap();
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&json).unwrap(),
            serde_json::json!({
                "https://index.docker.io/v1/": {
                    "username": "me",
                    "password": "hub",
                    "serveraddress": "https://index.docker.io/v1/",
                },
                "token.example": { "identitytoken": "idt", "serveraddress": "token.example" },
            })
        );
        let (_dir, none) = credentials(config, &["none.example"]);
        assert!(block_on(none.header()).is_none());
    }

    #[test]
    fn config_json_is_parsed_as_docker_does() {
        let login = r#""a.example": {"auth": "dTpw"}"#;
        for config in [
            format!(r#"{{"auths": {{{login}}}}} and more"#),
            format!(r#"{{"AUTHS": {{{login}}}, "credsStore": null, "credHelpers": null}}"#),
            format!(
                r#"{{"auths": {{"b.example": null, {login}, "c.example": {{"auth": null}}}}}}"#
            ),
            format!(r#"{{"auths": {{"a.example": {{"auth": "eDp5"}}, {login}}}}}"#),
            format!(r#"{{"auths": {{"b.example": {{}}}}, "auths": {{{login}}}}}"#),
            format!(
                r#"{{"credHelpers": {{"a.example": null}}, "credsStore": "x", "auths": {{{login}}}}}"#
            ),
            format!(
                r#"{{"auths": {{{login}}}, "credsStore": "", "currentContext": null, "x": 5}}"#
            ),
        ] {
            let (_dir, credentials) = credentials(&config, &["a.example"]);
            let login = block_on(credentials.login("a.example")).expect(&config);
            assert_eq!(
                (login.username.as_str(), login.secret.as_str()),
                ("u", "p"),
                "{config}"
            );
        }
        for empty in [
            "",
            " \n",
            "null",
            "{}",
            r#"{"auths": null}"#,
            r#"{"auths": {"a.example": null}}"#,
        ] {
            let (_dir, credentials) = credentials(empty, &["a.example"]);
            assert!(
                block_on(credentials.login("a.example")).is_none(),
                "{empty:?}"
            );
        }
    }

    #[test]
    fn a_bad_entry_is_reported_when_used_and_hides_no_other() {
        for bad in [
            r#"{"auth": "%hunter2"}"#,
            r#"{"auth": 5, "x": "hunter2"}"#,
            r#""hunter2""#,
            r#"["hunter2"]"#,
        ] {
            let config = format!(
                r#"{{"auths": {{"bad.example": {bad}, "a.example": {{"auth": "dTpw"}}}}, "currentContext": "x"}}"#
            );
            let (dir, settings) = user(&config, "exit 1");
            let (credentials, warnings) = recorded(settings.clone(), &["a.example", "bad.example"]);
            assert!(block_on(credentials.login("a.example")).is_some(), "{bad}");
            assert_eq!(*warnings.lock().unwrap(), Vec::<String>::new(), "{bad}");
            for _ in 0..3 {
                assert!(
                    block_on(credentials.login("bad.example")).is_none(),
                    "{bad}"
                );
            }
            let warnings = warnings.lock().unwrap();
            let [warning] = warnings.as_slice() else {
                panic!("one warning is enough: {warnings:?}");
            };
            assert!(warning.contains("bad.example"), "{warning}");
            assert!(!warning.contains("hunter2"), "{warning}");
            let logins = Logins::of(&settings).unwrap();
            assert_eq!((logins.stored, logins.warnings.len()), (1, 1), "{logins:?}");
            assert!(!format!("{logins:?}").contains("hunter2"));
            assert_eq!(Config::load(&settings).unwrap().current_context, "x");
            drop(dir);
        }
        // An invalid field of the file itself does not affect the others.
        let config = r#"{"credsStore": ["hunter2"], "auths": {"a.example": {"auth": "dTpw"}}}"#;
        let (_dir, settings) = user(config, "exit 1");
        let (credentials, warnings) = recorded(settings, &["a.example"]);
        assert!(block_on(credentials.login("a.example")).is_some());
        let warnings = warnings.lock().unwrap();
        assert!(
            warnings.len() == 1 && warnings[0].contains("credsStore"),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_broken_file_causes_one_warning_without_its_content() {
        for (config, place) in [
            ("hunter2", "line 1, column 1"),
            (
                "\u{feff}{\"auths\": {\"a.example\": {\"auth\": \"dTpw\"}}}",
                "byte-order mark",
            ),
            ("{\n// hunter2\n}", "line 2"),
            ("{\"credsStore\": \"hunter2\",}", "line 1, column 26"),
            ("[\"hunter2\"]", "not an object"),
        ] {
            let (dir, settings) = user(config, "exit 1");
            let (credentials, warnings) = recorded(settings.clone(), &["a.example", "b.example"]);
            for host in ["a.example", "b.example", "c.example", "a.example"] {
                assert!(block_on(credentials.login(host)).is_none());
            }
            block_on(credentials.check());
            let warnings = warnings.lock().unwrap();
            let [warning] = warnings.as_slice() else {
                panic!("one warning is enough: {warnings:?}");
            };
            let file = dir.path().join("config.json");
            for part in [place, file.to_str().unwrap(), "ignored"] {
                assert!(warning.contains(part), "{part}: {warning}");
            }
            assert!(!warning.contains("hunter2"), "{warning}");
            let logins = Logins::of(&settings).unwrap();
            assert_eq!(logins.warnings, *warnings);

            // An unreadable file is an error, unlike a missing one.
            std::fs::remove_file(&file).unwrap();
            assert!(Config::load_strict(&settings).is_ok());
            std::fs::create_dir(&file).unwrap();
            assert!(Config::load_strict(&settings).is_err());
            assert!(Config::load(&settings).is_ok());
        }
    }

    /// A helper that logs when it begins and ends, and its key.
    const SLOW: &str = "read key; echo begins $key >>log; sleep 0.3; echo ends $key >>log";

    fn log(dir: &tempfile::TempDir) -> Vec<String> {
        let text = std::fs::read_to_string(dir.path().join("log")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn each_registry_is_looked_up_once_per_build() {
        let config = r#"{"credsStore": "of-the-test"}"#;
        for (end, warned) in [
            (r#"echo '{"Username":"u","Secret":"s"}'"#, 0),
            ("echo the keychain is locked; exit 1", 1),
            ("echo credentials not found in native keychain; exit 1", 0),
        ] {
            let (dir, settings) = user(config, &format!("{SLOW}; {end}"));
            let (credentials, warnings) = recorded(settings, &["a.example"]);
            block_on(async {
                // The first waiter is dropped before the answer comes.
                let first = credentials.login("a.example");
                let timed_out = tokio::time::timeout(Duration::from_millis(100), first).await;
                assert!(timed_out.is_err());
                let asked = (0..10).map(|number| {
                    // As a second attempt of the build does.
                    let credentials = credentials.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(100 * number)).await;
                        credentials.login("a.example").await.is_some()
                    })
                });
                let answers = futures_util::future::join_all(asked).await;
                let expected = end.contains("Secret");
                assert!(answers.into_iter().all(|found| found.unwrap() == expected));
            });
            assert_eq!(
                block_on(credentials.header()).is_some(),
                end.contains("Secret")
            );
            assert_eq!(log(&dir), ["begins a.example", "ends a.example"], "{end}");
            assert_eq!(warnings.lock().unwrap().len(), warned, "{end}");
        }
    }

    #[test]
    fn at_most_two_registries_are_looked_up_at_a_time() {
        let config = r#"{"credsStore": "of-the-test"}"#;
        let (dir, settings) = user(config, &format!("{SLOW}; exit 1"));
        let names: Vec<String> = (0..6).map(|number| format!("{number}.example")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (credentials, warnings) = recorded(settings, &names);
        let asked = names.iter().map(|name| credentials.login(name));
        block_on(futures_util::future::join_all(asked));
        let (mut running, mut most) = (0, 0);
        for line in log(&dir) {
            running += if line.starts_with("begins") { 1 } else { -1 };
            most = most.max(running);
        }
        assert_eq!((running, most), (0, 2));
        assert_eq!(warnings.lock().unwrap().len(), names.len());
    }

    #[test]
    fn a_helper_is_killed_when_its_last_waiter_is_dropped() {
        let (dir, settings) = user(r#"{"credsStore": "of-the-test"}"#, "touch log; sleep 600");
        let (credentials, _) = recorded(settings, &["a.example"]);
        let another = credentials.clone();
        let log = dir.path().join("log");
        block_on(async {
            let login = credentials.login("a.example");
            let started = async {
                while !log.exists() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                _ = login => panic!("the helper ended"),
                started = tokio::time::timeout(Duration::from_secs(10), started) => started.unwrap(),
            }
        });
        drop(credentials);
        let running = || {
            let name = dir.path().join("docker-credential-of-the-test");
            std::fs::read_dir("/proc")
                .unwrap()
                .flatten()
                .any(|process| {
                    let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
                    String::from_utf8_lossy(&line).contains(name.to_str().unwrap())
                })
        };
        assert!(running(), "the other attempt may need it");
        drop(another);
        let start = Instant::now();
        while running() {
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn debug_output_of_a_login_hides_the_secret() {
        let login = Login {
            username: "user".to_owned(),
            secret: Zeroizing::new("secret".to_owned()),
        };
        assert_eq!(format!("{login:?}"), "Login(***)");
    }
}
