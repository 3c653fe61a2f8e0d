//! Logins for the registries of private base images: from docker's `config.json`, or from the
//! credential helpers that it names.
//!
//! A registry that the Dockerfile does not name gets none, whoever asks. A helper that does not work
//! is told of and is no failure: the image may be there already, or be public.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_URL_SAFE;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use rustix::io::ioctl_fionbio;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use crate::context::DOCKER_HUB;
use crate::engine::child::{self, Reaped};
use crate::engine::connect::config::{self, Auth, Config, Entry};
use crate::engine::go_json::{self, WrongType};
use crate::error::{Code, Error, Result};
use crate::event::{Event, Sink};
use crate::options::EngineSettings;
use crate::process::executor::blocking;
use crate::process::limits;
use crate::process::outside_file::within;

/// The name of Docker Hub in `config.json`.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A helper that says this has no login for the registry, which is no fault of it
/// (github.com/docker/docker-credential-helpers, `credentials/error.go`).
const NOT_FOUND: &str = "credentials not found in native keychain";

/// The user name under which a helper hands out an identity token (the same, `credentials/credentials.go`).
const IDENTITY_TOKEN: &str = "<token>";

/// Longer than a helper takes that asks a keychain or a cloud; shorter than anyone wants to wait.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// How many logins are looked up at once for one build.
const QUESTIONS: usize = 2;

/// How often a helper is looked after.
const HELPER_TICK: Duration = Duration::from_millis(10);

/// What a helper may answer at most.
const MAX_ANSWER: usize = 64 * 1024;

/// The longest reason of a helper that is told.
const MAX_REASON: usize = 500;

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

/// The logins for one build, and for every attempt at it: a clone has the same answers. An engine may ask
/// as often as it likes; each is looked up once, and so is why there is none.
#[derive(Clone)]
pub(super) struct Credentials {
    /// By registry: those of the Dockerfile. A lookup goes on when who has asked first has gone.
    logins: BTreeMap<String, Answer<Option<Login>>>,
    config: Answer<Result<Arc<Config>>>,
}

/// What is found out when somebody wants to know it, for all who do. It is given up, and wiped, with the
/// last clone.
type Answer<T> = Shared<BoxFuture<'static, T>>;

/// What a lookup needs.
struct Lookup {
    settings: EngineSettings,
    tasks: TaskTracker,
    emit: Sink,
    config: Answer<Result<Arc<Config>>>,
    /// Each can start a program.
    turns: Semaphore,
}

impl Credentials {
    /// Those for these registries, and no other.
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
            turns: Semaphore::new(QUESTIONS),
        });
        let logins = registries.into_iter().map(|registry| {
            let (lookup, wanted) = (Arc::clone(&lookup), registry.clone());
            let login = async move { lookup.login(&wanted).await };
            (registry, login.boxed().shared())
        });
        Self {
            logins: logins.collect(),
            config,
        }
    }

    /// Reads docker's configuration, and warns of what in it cannot be read, whether anybody wants a login
    /// or not: what else it says is missing too.
    pub(super) async fn check(&self) {
        // Who wants a login is told of the error.
        let _ = self.config.clone().await;
    }

    /// The login for a registry, if the Dockerfile names it and there is one.
    pub(super) async fn login(&self, host: &str) -> Option<Login> {
        let registry = match host {
            // BuildKit asks for the host that it talks to.
            "registry-1.docker.io" | "index.docker.io" => DOCKER_HUB,
            host => host,
        };
        self.logins.get(registry)?.clone().await
    }

    /// All of them, as the value of the header `X-Registry-Config` (Docker Engine API, "Build an
    /// image"). `None` if there are none.
    pub(super) async fn header(&self) -> Option<Zeroizing<String>> {
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
        self.check().await;
        let mut logins = Vec::new();
        for (registry, login) in &self.logins {
            if let Some(login) = login.clone().await {
                logins.push((key(registry), login));
            }
        }
        let by_registry: HashMap<&str, AuthConfig<'_>> = logins
            .iter()
            .map(|(key, login)| {
                let (password, identitytoken) = match login.username.as_str() {
                    "" => ("", login.secret.as_str()),
                    _ => (login.secret.as_str(), ""),
                };
                let config = AuthConfig {
                    username: &login.username,
                    password,
                    identitytoken,
                    serveraddress: key,
                };
                (*key, config)
            })
            .collect();
        if by_registry.is_empty() {
            return None;
        }
        let json = Zeroizing::new(serde_json::to_vec(&by_registry).ok()?);
        Some(Zeroizing::new(BASE64_URL_SAFE.encode(&json)))
    }
}

/// Docker's configuration, as it is now. What in it cannot be read is a warning.
async fn read_config(
    settings: EngineSettings,
    tasks: TaskTracker,
    emit: Sink,
) -> Result<Arc<Config>> {
    let what = config::described(&settings);
    let read = move || Config::load_or_complain(&settings);
    let config = within(&tasks, Code::InvalidOption, &what, read).await?;
    for complaint in &config.complaints {
        emit(Event::warning(complaint.as_str(), config::HINT));
    }
    Ok(Arc::new(config))
}

impl Lookup {
    /// The login for a registry. That it cannot be had is a warning.
    async fn login(&self, registry: &str) -> Option<Login> {
        // Never closed, so this cannot fail.
        let _turn = self.turns.acquire().await;
        match self.find(key(registry)).await {
            Ok(login) => login,
            Err(error) => {
                let message = format!("no login for {registry}: {}", error.message);
                (self.emit)(Event::warning(message, error.hint));
                None
            }
        }
    }

    async fn find(&self, key: &str) -> Result<Option<Login>> {
        let config = self.config.clone().await?;
        let (what, path) = (
            config::described(&self.settings),
            self.settings.search_path.clone(),
        );
        let look = {
            let key = key.to_owned();
            move || look(&config, path.as_deref(), &key)
        };
        match within(&self.tasks, Code::InvalidOption, &what, look).await? {
            Source::File(login) => Ok(login),
            Source::Helper(name, program) => {
                let unwanted = CancellationToken::new();
                let _until_dropped = unwanted.clone().drop_guard();
                let (key, tasks) = (key.to_owned(), self.tasks.clone());
                let ask = move || ask(&name, &program, &key, &unwanted, &tasks);
                blocking(&self.tasks, ask).await
            }
        }
    }
}

/// Where logins would come from. None is looked up: a helper may open a window.
#[derive(Debug)]
pub(crate) struct Logins {
    /// How many stand in `config.json` itself.
    pub(crate) stored: usize,
    /// The programs, and whether they are in `PATH`.
    pub(crate) helpers: Vec<(String, bool)>,
    /// What in the file cannot be read.
    pub(crate) complaints: Vec<String>,
}

impl Logins {
    pub(crate) fn of(settings: &EngineSettings) -> Result<Self> {
        let config = Config::load_or_complain(settings)?;
        let mut complaints = config.complaints;
        let mut helpers = BTreeSet::from([config.creds_store]);
        for (registry, helper) in config.cred_helpers {
            match helper {
                Ok(helper) => drop(helpers.insert(helper)),
                Err(wrong) => complaints.push(wrong_entry("credHelpers", &registry, wrong).message),
            }
        }
        let mut stored = 0;
        for (registry, auth) in &config.auths {
            match in_file(auth, registry) {
                // With a helper for all, the docker CLI leaves empty ones there.
                Ok(_) => stored += usize::from(auth.as_ref().is_ok_and(Auth::is_set)),
                Err(error) => complaints.push(error.message),
            }
        }
        Ok(Self {
            stored,
            helpers: helpers
                .into_iter()
                .filter(|name| !name.is_empty())
                .map(|name| {
                    let program = format!("docker-credential-{name}");
                    let there = child::find(&program, settings.search_path.as_deref()).is_some();
                    (program, there)
                })
                .collect(),
            complaints,
        })
    }
}

/// The name of a registry in `config.json`.
fn key(registry: &str) -> &str {
    match registry {
        DOCKER_HUB => DOCKER_HUB_KEY,
        registry => registry,
    }
}

/// Where a login is.
enum Source {
    /// In the file itself, or nowhere.
    File(Option<Login>),
    /// This helper has it, which is this program.
    Helper(String, PathBuf),
}

/// The docker CLI's order: the registry's own helper, the helper for all, the file.
fn look(config: &Config, path: Option<&str>, key: &str) -> Result<Source> {
    let helper = match config.cred_helpers.get(key) {
        Some(Ok(own)) => own,
        Some(Err(wrong)) => return Err(wrong_entry("credHelpers", key, *wrong)),
        None => &config.creds_store,
    };
    if helper.is_empty() {
        let auths = &config.auths;
        let found = auths
            .get(key)
            .or_else(|| Some(auths.iter().find(|(other, _)| host(other) == host(key))?.1));
        let login = found.map_or(Ok(None), |auth| in_file(auth, key));
        return login.map(Source::File);
    }
    let name = format!("docker-credential-{helper}");
    match child::find(&name, path) {
        Some(program) => Ok(Source::Helper(helper.clone(), program)),
        None => Err(of_helper(helper, "is in no folder of PATH")),
    }
}

fn wrong_entry(field: &str, key: &str, wrong: WrongType) -> Error {
    Error::new(
        Code::InvalidOption,
        format!("the entry of {key} in {field} of config.json has something that {wrong}"),
    )
    .hint("log in again: docker login")
}

fn of_helper(helper: &str, why: &str) -> Error {
    Error::new(
        Code::InvalidOption,
        format!("the credential helper docker-credential-{helper} {why}"),
    )
    .hint(
        "see whether `docker login` works, and what config.json says in credsStore and credHelpers",
    )
}

/// The host of a key, which in older files is a URL.
fn host(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or(key.strip_prefix("http://"))
        .unwrap_or(key);
    key.split_once('/').map_or(key, |(host, _)| host)
}

fn in_file(auth: &Entry<Auth>, key: &str) -> Result<Option<Login>> {
    let auth = match auth {
        Ok(auth) => auth,
        Err(wrong) => return Err(wrong_entry("auths", key, *wrong)),
    };
    if !auth.identity_token.is_empty() {
        return Ok(Some(Login {
            username: String::new(),
            secret: auth.identity_token.clone(),
        }));
    }
    if auth.auth.is_empty() {
        let login = Login {
            username: auth.username.clone(),
            secret: auth.password.clone(),
        };
        return Ok((!login.username.is_empty()).then_some(login));
    }
    let decoded = decoded(&auth.auth);
    match decoded.split_once(':') {
        Some((username, password)) if !username.is_empty() => Ok(Some(Login {
            username: username.to_owned(),
            // The docker CLI does so too: some tools have written NULs.
            secret: Zeroizing::new(password.trim_matches('\0').to_owned()),
        })),
        _ => Err(Error::new(
            Code::InvalidOption,
            format!("the auth of {key} in config.json is not base64 of user:password"),
        )
        .hint("log in again: docker login")),
    }
}

/// What base64 stands for, as Go's `StdEncoding` reads it: line breaks and the last bits do not count. Empty
/// if it is not base64, or not UTF-8.
fn decoded(base64: &str) -> Zeroizing<String> {
    const GO: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
    );
    let mut text = Zeroizing::new(base64.as_bytes().to_vec());
    text.retain(|byte| !b"\r\n".contains(byte));
    let decoded = GO.decode(&*text).ok();
    let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    Zeroizing::new(decoded.unwrap_or_default())
}

/// Asks the helper `name`.
fn ask(
    name: &str,
    program: &Path,
    key: &str,
    unwanted: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<Option<Login>> {
    let failed = |why: &str| of_helper(name, &format!("does not work: {why}"));
    let (answer, status) = run(program, "get", key, HELPER_TIMEOUT, unwanted, tasks)
        .map_err(|error| limits::reached(&error).unwrap_or_else(|| failed(&error.to_string())))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        if said.trim() == NOT_FOUND {
            return Ok(None);
        }
        // One line says why. What is more than that is not meant for people, and may be a login.
        return Err(match said.trim().lines().next() {
            Some(why) if why.len() <= MAX_REASON && !why.starts_with('{') => failed(why),
            _ => failed(&status.to_string()),
        });
    }
    // Its own words may hold the secret.
    answered(&answer).ok_or_else(|| of_helper(name, "answers something that is not a login"))
}

/// The login in the answer to `get` (github.com/docker/docker-credential-helpers, `client.Get`), which may
/// have none. `None` for what is no answer.
fn answered(answer: &[u8]) -> Option<Option<Login>> {
    let answer = go_json::first(answer).ok()??;
    let (username, secret) = (answer.text("Username").ok()?, answer.text("Secret").ok()?);
    if secret.is_empty() {
        return username.is_empty().then_some(None);
    }
    let username = match username {
        IDENTITY_TOKEN => "",
        username => username,
    };
    Some(Some(Login {
        username: username.to_owned(),
        secret: Zeroizing::new(secret.to_owned()),
    }))
}

/// Runs a program to its end, at most for `limit` and until nobody wants its answer: what it has
/// written, and how it ended.
fn run(
    program: &Path,
    argument: &str,
    input: &str,
    limit: Duration,
    unwanted: &CancellationToken,
    tasks: &TaskTracker,
) -> io::Result<(Zeroizing<Vec<u8>>, ExitStatus)> {
    let (mut stdin, theirs) = child::input()?;
    let mut child = Reaped::spawn(
        Command::new(program)
            .arg(argument)
            .stdin(theirs)
            .stdout(Stdio::piped())
            // Not ours to write on.
            .stderr(Stdio::null()),
        tasks,
    )?;
    stdin.set_write_timeout(Some(limit))?;
    match stdin.write_all(input.as_bytes()) {
        // It does not want to know.
        Err(error) if child::is_gone(&error) => {}
        result => result?,
    }
    drop(stdin);
    let mut stdout = child.child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    ioctl_fionbio(&stdout, true)?;

    let begun = Instant::now();
    // With room for all of it: a vector that grows leaves its content behind.
    let mut answer = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
    while begun.elapsed() < limit && !unwanted.is_cancelled() {
        let ended = child.child.try_wait()?;
        // In this order, so that its last words are there. The end of the pipe is not waited for: what
        // the helper has started may keep it open.
        read_some(&mut stdout, &mut answer)?;
        if let Some(status) = ended {
            return Ok((answer, status));
        }
        std::thread::sleep(HELPER_TICK);
    }
    let why = format!("it did not answer within {limit:?}");
    Err(io::Error::new(io::ErrorKind::TimedOut, why))
}

/// Reads what there is, without waiting for more.
fn read_some(pipe: &mut impl Read, answer: &mut Vec<u8>) -> io::Result<()> {
    let mut piece = Zeroizing::new([0; 4096]);
    loop {
        match pipe.read(&mut *piece) {
            Ok(0) => return Ok(()),
            Ok(length) if answer.len() + length > MAX_ANSWER => {
                return Err(io::Error::other("its answer is too long"));
            }
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn auth(json: &str) -> Result<Option<Login>> {
        let json = go_json::first(json.as_bytes()).unwrap().unwrap();
        in_file(&Auth::of(&json), "registry.example")
    }

    #[test]
    fn a_login_in_the_file_is_read_in_all_its_forms() {
        for (json, username, secret) in [
            (r#"{"auth": "dXNlcjpwYXNzOndvcmQ="}"#, "user", "pass:word"),
            (
                r#"{"username": "user", "password": "pass"}"#,
                "user",
                "pass",
            ),
            (
                r#"{"auth": "dXNlcjpwYXNz", "identitytoken": "idt"}"#,
                "",
                "idt",
            ),
            // Line breaks, as `base64` of coreutils makes them, and bits that are not used.
            (r#"{"AUTH": "dXNl\ncjpw\r\nYXNz\n"}"#, "user", "pass"),
            (r#"{"auth": "dXNlcjpwYX=\n="}"#, "user", "pa"),
            (r#"{"auth": "dXNlcjpwYXNzAAA="}"#, "user", "pass"),
            (
                r#"{"auth": null, "Username": "user", "password": "a", "PASSWORD": "b"}"#,
                "user",
                "b",
            ),
        ] {
            let login = auth(json).unwrap().unwrap();
            assert_eq!(
                (login.username.as_str(), login.secret.as_str()),
                (username, secret)
            );
        }
        for none in ["{}", "null", r#"{"auth": null}"#, r#"{"auth": ""}"#] {
            assert!(auth(none).unwrap().is_none(), "{none}");
        }
        for broken in [
            r#"{"auth": "%"}"#,
            r#"{"auth": "dXNlcg=="}"#,
            // Without its padding; with a space; without a user.
            r#"{"auth": "dXNlcjpwYQ"}"#,
            r#"{"auth": "dXNl cjpwYXNz"}"#,
            r#"{"auth": "OnBhc3M="}"#,
            r#"{"auth": 5}"#,
            "[]",
        ] {
            assert!(auth(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_key_that_is_a_url_is_found_by_its_host() {
        for (key, expected) in [
            ("registry.example", "registry.example"),
            ("https://registry.example/v2/", "registry.example"),
            ("http://registry.example:5000", "registry.example:5000"),
        ] {
            assert_eq!(host(key), expected);
        }
    }

    /// The settings of a user with this `config.json`, and a helper that is this shell script.
    fn user(config: impl AsRef<[u8]>, helper: &str) -> (tempfile::TempDir, EngineSettings) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let program = dir.path().join("docker-credential-of-the-test");
        let script = format!("#!/bin/sh\ncd {}\n{helper}\n", dir.path().display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let settings = EngineSettings {
            host: None,
            context: None,
            config_dir: Some(dir.path().to_owned()),
            tls_verify: false,
            cert_path: None,
            classic_builder: false,
            home: None,
            runtime_dir: None,
            search_path: Some(format!("{}:/usr/bin:/bin", dir.path().display())),
        };
        (dir, settings)
    }

    /// The credentials for these registries, and what they have warned of.
    fn told(
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

    /// The credentials for these registries, of a user with this `config.json`, where nothing is to be
    /// warned of.
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

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        crate::process::executor::runtime().unwrap().block_on(work)
    }

    #[test]
    fn docker_hub_is_known_by_all_its_names_and_others_by_their_own() {
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
    fn the_classic_builder_gets_them_in_one_header() {
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
    fn a_helpers_answer_is_read_as_docker_reads_it() {
        let login = |answer: &str| {
            answered(answer.as_bytes()).map(|found| {
                found.map_or_else(String::new, |login| {
                    format!("{}:{}", login.username, *login.secret)
                })
            })
        };
        for (answer, expected) in [
            (
                r#"{"ServerURL": "x", "Username": "me", "Secret": "pw"}"#,
                Some("me:pw"),
            ),
            (r#"{"Username": "<token>", "Secret": "idt"}"#, Some(":idt")),
            (r#"{"username": "me", "secret": "pw"}"#, Some("me:pw")),
            (
                "{\"Username\":\"me\",\"Secret\":\"pw\"}\nlogged in\n",
                Some("me:pw"),
            ),
            (
                r#"{"Username": "you", "Secret": "pw", "Username": "me"}"#,
                Some("me:pw"),
            ),
            (
                r#"{"Username": "me", "Secret": "pw", "ServerURL": null, "x": [1]}"#,
                Some("me:pw"),
            ),
            // It has none, and docker asks as nobody.
            ("null", Some("")),
            ("{}", Some("")),
            (r#"{"Username": null, "Secret": null}"#, Some("")),
            (r#"{"Username": "me"}"#, None),
            (r#"{"Username": "me", "Secret": 5}"#, None),
            ("logged in {}", None),
            ("[]", None),
            ("", None),
        ] {
            assert_eq!(login(answer).as_deref(), expected, "{answer}");
        }
    }

    #[test]
    fn docker_config_is_read_as_docker_reads_it() {
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
    fn a_bad_entry_loses_no_good_login_and_is_told_when_it_is_wanted() {
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
            let (credentials, warnings) = told(settings.clone(), &["a.example", "bad.example"]);
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
            assert_eq!(
                (logins.stored, logins.complaints.len()),
                (1, 1),
                "{logins:?}"
            );
            assert!(!format!("{logins:?}").contains("hunter2"));
            assert_eq!(Config::load(&settings).unwrap().current_context, "x");
            drop(dir);
        }
        // Of the fields of the file itself, the others count.
        let config = r#"{"credsStore": ["hunter2"], "auths": {"a.example": {"auth": "dTpw"}}}"#;
        let (_dir, settings) = user(config, "exit 1");
        let (credentials, warnings) = told(settings, &["a.example"]);
        assert!(block_on(credentials.login("a.example")).is_some());
        let warnings = warnings.lock().unwrap();
        assert!(
            warnings.len() == 1 && warnings[0].contains("credsStore"),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_broken_file_is_ignored_with_one_warning_that_has_nothing_of_it() {
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
            let (credentials, warnings) = told(settings.clone(), &["a.example", "b.example"]);
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
            assert_eq!(logins.complaints, *warnings);

            // Nor is one that may not be read taken for one that is not there.
            std::fs::remove_file(&file).unwrap();
            assert!(Config::load_or_complain(&settings).is_ok());
            std::fs::create_dir(&file).unwrap();
            assert!(Config::load_or_complain(&settings).is_err());
            assert!(Config::load(&settings).is_ok());
        }
    }

    /// What a helper that is this shell script answers.
    fn helper(script: &str, limit: Duration) -> io::Result<(String, bool)> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("helper");
        std::fs::write(&file, script).unwrap();
        let (shell, wanted) = (Path::new("/bin/sh"), CancellationToken::new());
        let (answer, status) = run(
            shell,
            file.to_str().unwrap(),
            "key",
            limit,
            &wanted,
            &TaskTracker::new(),
        )?;
        Ok((
            String::from_utf8(answer.to_vec()).unwrap(),
            status.success(),
        ))
    }

    #[test]
    fn a_helper_is_heard_to_its_last_word_and_not_longer() {
        let answer = |script| helper(script, HELPER_TIMEOUT).unwrap();
        assert_eq!(answer("cat; exit 0"), ("key".to_owned(), true));
        assert_eq!(answer("echo no; exit 1"), ("no\n".to_owned(), false));
        // What it has started keeps the pipe open.
        assert_eq!(answer("sleep 30 & echo yes"), ("yes\n".to_owned(), true));
    }

    #[test]
    fn a_helper_without_an_end_is_ended() {
        for script in ["exec sleep 600", "sleep 600", "exec >&-; sleep 600"] {
            let begun = Instant::now();
            let error = helper(script, Duration::from_millis(200)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{script}");
            assert!(begun.elapsed() < Duration::from_secs(10), "{script}");
        }
        let error = helper("while echo more; do :; done", HELPER_TIMEOUT).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }

    /// A helper that writes down when it begins and ends, and for what.
    const SLOW: &str = "read key; echo begins $key >>log; sleep 0.3; echo ends $key >>log";

    fn log(dir: &tempfile::TempDir) -> Vec<String> {
        let text = std::fs::read_to_string(dir.path().join("log")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_registry_is_looked_up_once_however_often_and_by_whom_it_is_asked_for() {
        let config = r#"{"credsStore": "of-the-test"}"#;
        for (end, warned) in [
            (r#"echo '{"Username":"u","Secret":"s"}'"#, 0),
            ("echo the keychain is locked; exit 1", 1),
            ("echo credentials not found in native keychain; exit 1", 0),
        ] {
            let (dir, settings) = user(config, &format!("{SLOW}; {end}"));
            let (credentials, warnings) = told(settings, &["a.example"]);
            block_on(async {
                // Who asks first goes away before there is an answer.
                let first = credentials.login("a.example");
                let gone = tokio::time::timeout(Duration::from_millis(100), first).await;
                assert!(gone.is_err());
                let asked = (0..10).map(|number| {
                    // As another attempt at the build does.
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
    fn of_many_registries_two_are_looked_up_at_a_time() {
        let config = r#"{"credsStore": "of-the-test"}"#;
        let (dir, settings) = user(config, &format!("{SLOW}; exit 1"));
        let names: Vec<String> = (0..6).map(|number| format!("{number}.example")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (credentials, warnings) = told(settings, &names);
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
    fn a_helper_ends_with_the_last_who_could_want_its_answer() {
        let (dir, settings) = user(r#"{"credsStore": "of-the-test"}"#, "touch log; sleep 600");
        let (credentials, _) = told(settings, &["a.example"]);
        let another = credentials.clone();
        block_on(async {
            let login = credentials.login("a.example");
            let _ = tokio::time::timeout(Duration::from_millis(300), login).await;
        });
        drop(credentials);
        assert!(dir.path().join("log").exists());
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
        assert!(running(), "the other attempt may want it");
        drop(another);
        let begun = Instant::now();
        while running() {
            assert!(begun.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_login_does_not_show_itself() {
        let login = Login {
            username: "user".to_owned(),
            secret: Zeroizing::new("secret".to_owned()),
        };
        assert_eq!(format!("{login:?}"), "Login(***)");
    }
}
