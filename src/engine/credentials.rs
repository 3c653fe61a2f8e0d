//! Logins for the registries of private base images: from docker's `config.json`, or from the
//! credential helpers that it names.
//!
//! A registry that the Dockerfile does not name gets none, whoever asks. A helper that does not work
//! is told of and is no failure: the image may be there already, or be public.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::child::{self, Reaped};
use super::config::{Auth, Config};
use crate::context::DOCKER_HUB;
use crate::error::{Code, Error, Result};
use crate::event::{Event, Sink};
use crate::executor::blocking;
use crate::options::EngineSettings;

/// The name of Docker Hub in `config.json`.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A helper that says this has no login for the registry, which is no fault of it
/// (github.com/docker/docker-credential-helpers, `credentials/error.go`).
const NOT_FOUND: &str = "credentials not found";

/// The user name under which a helper hands out an identity token (the same, `credentials/credentials.go`).
const IDENTITY_TOKEN: &str = "<token>";

/// Longer than a helper takes that asks a keychain or a cloud; shorter than anyone wants to wait.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a helper is looked after.
const HELPER_TICK: Duration = Duration::from_millis(10);

/// What a helper may answer at most.
const MAX_ANSWER: u64 = 64 * 1024;

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
        let key = match registry {
            DOCKER_HUB => DOCKER_HUB_KEY,
            registry => registry,
        };
        let (settings, key) = (self.settings.clone(), key.to_owned());
        let unwanted = CancellationToken::new();
        let _until_dropped = unwanted.clone().drop_guard();
        match blocking(&self.tasks, move || find(&settings, &key, &unwanted)).await {
            Ok(login) => login,
            Err(error) => {
                let message = format!("no login for {registry}: {}", error.message);
                (self.emit)(Event::warning(message, error.hint));
                None
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
            let key = match registry.as_str() {
                DOCKER_HUB => DOCKER_HUB_KEY,
                registry => registry,
            };
            if let Some(login) = self.login(registry).await {
                logins.push((key, login));
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

/// The docker CLI's order: the registry's own helper, the helper for all, the file.
fn find(
    settings: &EngineSettings,
    key: &str,
    unwanted: &CancellationToken,
) -> Result<Option<Login>> {
    let config = Config::load(settings)?;
    let own = config.cred_helpers.as_ref().and_then(|own| own.get(key));
    let helper = own.unwrap_or(&config.creds_store);
    if helper.is_empty() {
        let auths = config.auths.unwrap_or_default();
        let found = auths
            .get(key)
            .or_else(|| Some(auths.iter().find(|(other, _)| host(other) == host(key))?.1));
        return found.map_or(Ok(None), |auth| in_file(auth, key));
    }
    ask(helper, key, settings, unwanted).map_err(|why| {
        Error::new(
            Code::InvalidOption,
            format!("the credential helper docker-credential-{helper} {why}"),
        )
        .hint("see whether `docker login` works, and what config.json says in credsStore and credHelpers")
    })
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
    helper: &str,
    key: &str,
    settings: &EngineSettings,
    unwanted: &CancellationToken,
) -> std::result::Result<Option<Login>, String> {
    let name = format!("docker-credential-{helper}");
    let program =
        child::find(&name, settings.search_path.as_deref()).ok_or("is in no folder of PATH")?;
    let (answer, success) =
        run(&program, "get", key, unwanted).map_err(|error| format!("does not work: {error}"))?;
    if !success {
        let said = String::from_utf8_lossy(&answer);
        return match said.contains(NOT_FOUND) {
            true => Ok(None),
            false => Err(format!("does not work: {}", said.trim())),
        };
    }
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|_| "answers something that is not a login".to_owned())?;
    let username = match answer.username.as_str() {
        IDENTITY_TOKEN => String::new(),
        _ => answer.username,
    };
    Ok(Some(Login {
        username,
        secret: answer.secret,
    }))
}

/// Runs a program to its end, at most for [`HELPER_TIMEOUT`] and until nobody wants its answer: what it
/// has written, and whether it says that all went well.
fn run(
    program: &Path,
    argument: &str,
    input: &str,
    unwanted: &CancellationToken,
) -> io::Result<(Zeroizing<Vec<u8>>, bool)> {
    let child = Command::new(program)
        .arg(argument)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Not ours to write on.
        .stderr(Stdio::null())
        .spawn()?;
    let mut child = Reaped(child);
    if let Some(mut stdin) = child.0.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It does not want to know.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result?,
        }
    }
    // On a thread of its own: a program that the helper has started may keep the pipe open.
    let stdout = child.0.stdout.take();
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new().spawn(move || {
        let mut answer = Zeroizing::new(Vec::new());
        let read = stdout.map_or(Ok(0), |out| out.take(MAX_ANSWER).read_to_end(&mut answer));
        // Nobody listens any more if it took too long.
        let _ = sender.send(read.map(|_| answer));
    })?;

    let begun = Instant::now();
    let mut answer = None;
    while begun.elapsed() < HELPER_TIMEOUT && !unwanted.is_cancelled() {
        match answer.take() {
            None => answer = receiver.recv_timeout(HELPER_TICK).ok(),
            Some(whole) => match child.0.try_wait()? {
                Some(status) => return Ok((whole?, status.success())),
                None => {
                    answer = Some(whole);
                    std::thread::sleep(HELPER_TICK);
                }
            },
        }
    }
    let seconds = HELPER_TIMEOUT.as_secs();
    let why = format!("it did not answer within {seconds} seconds");
    Err(io::Error::new(io::ErrorKind::TimedOut, why))
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_login_does_not_show_itself() {
        let login = Login {
            username: "user".to_owned(),
            secret: Zeroizing::new("secret".to_owned()),
        };
        assert_eq!(format!("{login:?}"), "Login(***)");
    }
}
