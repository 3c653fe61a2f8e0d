//! Logins for the registries of private base images: from docker's `config.json`, or from the
//! credential helpers that it names.
//!
//! A registry that the Dockerfile does not name gets none, whoever asks. A helper that does not work
//! is told of and is no failure: the image may be there already, or be public.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use rustix::io::ioctl_fionbio;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::child::{self, Reaped};
use super::config::{self, Auth, Config};
use crate::context::DOCKER_HUB;
use crate::error::{Code, Error, Result};
use crate::event::{Event, Sink};
use crate::executor::blocking;
use crate::limits;
use crate::options::EngineSettings;
use crate::outside_file::within;

/// The name of Docker Hub in `config.json`.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A helper that says this has no login for the registry, which is no fault of it
/// (github.com/docker/docker-credential-helpers, `credentials/error.go`).
const NOT_FOUND: &str = "credentials not found";

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

/// The logins for one build.
pub(super) struct Credentials {
    settings: EngineSettings,
    registries: BTreeSet<String>,
    tasks: TaskTracker,
    emit: Sink,
    /// The engine may ask as often as it likes. Each question can start a program.
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
        Self {
            settings,
            registries,
            tasks,
            emit,
            turns: Semaphore::new(QUESTIONS),
        }
    }

    /// The login for a registry, if the Dockerfile names it and there is one.
    pub(super) async fn login(&self, host: &str) -> Option<Login> {
        let registry = match host {
            // BuildKit asks for the host that it talks to.
            "registry-1.docker.io" | "index.docker.io" => DOCKER_HUB,
            host => host,
        };
        if !self.registries.contains(registry) {
            return None;
        }
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
        let (settings, key) = (self.settings.clone(), key.to_owned());
        let what = config::described(&settings);
        let read = {
            let key = key.clone();
            move || look(&settings, &key)
        };
        match within(&self.tasks, Code::InvalidOption, &what, read).await? {
            Source::File(login) => Ok(login),
            Source::Helper(name, program) => {
                let unwanted = CancellationToken::new();
                let _until_dropped = unwanted.clone().drop_guard();
                let tasks = self.tasks.clone();
                let ask = move || {
                    ask(&program, &key, &unwanted, &tasks).map_err(|why| of_helper(&name, &why))
                };
                blocking(&self.tasks, ask).await
            }
        }
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
        let mut logins = Vec::new();
        for registry in &self.registries {
            if let Some(login) = self.login(registry).await {
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

/// Where logins would come from. None is looked up: a helper may open a window.
#[derive(Debug)]
pub(crate) struct Logins {
    /// How many stand in `config.json` itself.
    pub(crate) stored: usize,
    /// The programs, and whether they are in `PATH`.
    pub(crate) helpers: Vec<(String, bool)>,
}

impl Logins {
    pub(crate) fn of(settings: &EngineSettings) -> Result<Self> {
        let config = Config::load_or_complain(settings)?;
        let mut helpers: BTreeSet<String> = config
            .cred_helpers
            .unwrap_or_default()
            .into_values()
            .collect();
        helpers.insert(config.creds_store);
        let auths = config.auths.unwrap_or_default();
        Ok(Self {
            // With a helper for all, the docker CLI leaves empty ones there.
            stored: auths.values().filter(|auth| auth.is_set()).count(),
            helpers: helpers
                .into_iter()
                .filter(|name| !name.is_empty())
                .map(|name| {
                    let program = format!("docker-credential-{name}");
                    let there = child::find(&program, settings.search_path.as_deref()).is_some();
                    (program, there)
                })
                .collect(),
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
fn look(settings: &EngineSettings, key: &str) -> Result<Source> {
    let config = Config::load_or_complain(settings)?;
    let own = config.cred_helpers.as_ref().and_then(|own| own.get(key));
    let helper = own.unwrap_or(&config.creds_store);
    if helper.is_empty() {
        let auths = config.auths.unwrap_or_default();
        let found = auths
            .get(key)
            .or_else(|| Some(auths.iter().find(|(other, _)| host(other) == host(key))?.1));
        let login = found.map_or(Ok(None), |auth| in_file(auth, key));
        return login.map(Source::File);
    }
    let name = format!("docker-credential-{helper}");
    match child::find(&name, settings.search_path.as_deref()) {
        Some(program) => Ok(Source::Helper(helper.clone(), program)),
        None => Err(of_helper(helper, "is in no folder of PATH")),
    }
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

fn in_file(auth: &Auth, key: &str) -> Result<Option<Login>> {
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
    let decoded = BASE64_STANDARD.decode(auth.auth.as_bytes()).ok();
    let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let decoded = Zeroizing::new(decoded.unwrap_or_default());
    let Some((username, password)) = decoded.split_once(':') else {
        return Err(Error::new(
            Code::InvalidOption,
            format!("the auth of {key} in config.json is not base64 of user:password"),
        )
        .hint("log in again: docker login"));
    };
    Ok(Some(Login {
        username: username.to_owned(),
        // The docker CLI does so too: some tools have written NULs.
        secret: Zeroizing::new(password.trim_matches('\0').to_owned()),
    }))
}

/// What a helper answers to `get`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Zeroizing<String>,
}

/// Asks a helper. The error completes the sentence "the credential helper …".
fn ask(
    program: &Path,
    key: &str,
    unwanted: &CancellationToken,
    tasks: &TaskTracker,
) -> std::result::Result<Option<Login>, String> {
    let (answer, status) = run(program, "get", key, HELPER_TIMEOUT, unwanted, tasks)
        .map_err(|error| format!("does not work: {}", reason(&error)))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        if said.contains(NOT_FOUND) {
            return Ok(None);
        }
        // One line says why. What is more than that is not meant for people, and may be a login.
        let why = match said.trim().lines().next() {
            Some(why) if why.len() <= MAX_REASON && !why.starts_with('{') => why.to_owned(),
            _ => status.to_string(),
        };
        return Err(format!("does not work: {why}"));
    }
    match serde_json::from_slice::<Answer>(&answer) {
        Ok(answer) => Ok(Some(answer.into())),
        // Its own words may hold the secret.
        Err(_) => Err("answers something that is not a login".to_owned()),
    }
}

impl From<Answer> for Login {
    fn from(answer: Answer) -> Self {
        let username = match answer.username.as_str() {
            IDENTITY_TOKEN => String::new(),
            _ => answer.username,
        };
        Self {
            username,
            secret: answer.secret,
        }
    }
}

/// What the operating system says, or which limit of this process it means.
fn reason(error: &io::Error) -> String {
    limits::reached(error).map_or_else(|| error.to_string(), |limit| limit.message)
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
    use std::sync::Arc;

    use super::*;

    fn auth(json: &str) -> Result<Option<Login>> {
        in_file(&serde_json::from_str(json).unwrap(), "registry.example")
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
        ] {
            let login = auth(json).unwrap().unwrap();
            assert_eq!(
                (login.username.as_str(), login.secret.as_str()),
                (username, secret)
            );
        }
        assert!(auth("{}").unwrap().is_none());
        for broken in [r#"{"auth": "%"}"#, r#"{"auth": "dXNlcg=="}"#] {
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

    /// The credentials for these registries, of a user with this `config.json`.
    fn credentials(config: &str, registries: &[&str]) -> (tempfile::TempDir, Credentials) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let settings = EngineSettings {
            host: None,
            context: None,
            config_dir: Some(dir.path().to_owned()),
            tls_verify: false,
            cert_path: None,
            classic_builder: false,
            home: None,
            runtime_dir: None,
            search_path: None,
        };
        let registries = registries.iter().map(|&name| name.to_owned()).collect();
        let emit: Sink = Arc::new(|event| panic!("{event:?}"));
        let credentials = Credentials::new(settings, registries, TaskTracker::new(), emit);
        (dir, credentials)
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        crate::executor::runtime().unwrap().block_on(work)
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
    fn a_helper_may_have_an_identity_token() {
        for (json, username, secret) in [
            (
                r#"{"ServerURL": "x", "Username": "me", "Secret": "pw"}"#,
                "me",
                "pw",
            ),
            (r#"{"Username": "<token>", "Secret": "idt"}"#, "", "idt"),
        ] {
            let login = Login::from(serde_json::from_str::<Answer>(json).unwrap());
            assert_eq!(
                (login.username.as_str(), login.secret.as_str()),
                (username, secret)
            );
        }
    }

    #[test]
    fn a_broken_file_is_told_without_what_is_in_it() {
        for config in [r#"{"auths": {"registry.example": "hunter2"}}"#, "hunter2"] {
            let (dir, credentials) = credentials(config, &[]);
            let error = Config::load_or_complain(&credentials.settings)
                .err()
                .unwrap();
            assert_eq!(error.code, Code::InvalidOption);
            assert!(error.message.contains("line 1"), "{error:?}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");

            // Nor is one that may not be read taken for one that is not there.
            let file = dir.path().join("config.json");
            std::fs::remove_file(&file).unwrap();
            assert!(Config::load_or_complain(&credentials.settings).is_ok());
            std::fs::create_dir(&file).unwrap();
            assert!(Config::load_or_complain(&credentials.settings).is_err());
            assert!(Config::load(&credentials.settings).is_ok());
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

    #[test]
    fn however_often_an_engine_asks_two_helpers_run_at_a_time() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, mut credentials) = credentials(r#"{"credsStore": "slow"}"#, &["a.example"]);
        let (program, log) = (
            dir.path().join("docker-credential-slow"),
            dir.path().join("log"),
        );
        let script = format!(
            "#!/bin/sh\ncd {}\necho begins >>log\nsleep 0.3\necho ends >>log\n\
             echo '{{\"Username\":\"u\",\"Secret\":\"s\"}}'\n",
            dir.path().display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        credentials.settings.search_path = Some(path);
        let asked = (0..10).map(|_| credentials.login("a.example"));
        let logins = block_on(futures_util::future::join_all(asked));
        assert!(logins.iter().all(Option::is_some));
        let (mut running, mut most) = (0, 0);
        for line in std::fs::read_to_string(log).unwrap().lines() {
            running += if line == "begins" { 1 } else { -1 };
            most = most.max(running);
        }
        assert_eq!((running, most), (0, 2));
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
