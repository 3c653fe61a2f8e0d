//! Credential helpers: programs named `docker-credential-NAME` that look a login up, in a keychain for example
//! (github.com/docker/docker-credential-helpers).
//!
//! Written by hand, because the crate `docker_credential` (1.4) does not fit: it waits for a helper without a time
//! limit, keeps answers of any size in strings that are not wiped, puts a failed helper's output into the
//! error text, and reads `PATH` from the environment, which the host may change meanwhile. Its JSON is strict,
//! where docker's is not.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionbio;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::Login;
use crate::engine::child::{self, ChildProcess};
use crate::engine::go_json;
use crate::error::{Code, Error, Result};
use crate::process::limits;

/// A helper's answer when it has no login for the registry, which is not an error
/// (docker-credential-helpers, `credentials/error.go`).
const NOT_FOUND: &str = "credentials not found in native keychain";

/// The user name with which a helper returns an identity token (the same, `credentials/credentials.go`).
const IDENTITY_TOKEN: &str = "<token>";

/// Enough for a helper that asks a keychain or a cloud.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How often the helper's output and exit status are polled.
const TICK: Duration = Duration::from_millis(10);

/// The largest answer of a helper, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// The longest reason of a helper that is shown, in bytes.
const MAX_REASON: usize = 500;

pub(super) fn program_name(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

pub(super) fn error(helper: &str, why: &str) -> Error {
    Error::new(
        Code::InvalidOption,
        format!("the credential helper {} {why}", program_name(helper)),
    )
    .hint("check that `docker login` works, and credsStore and credHelpers in config.json")
}

/// Asks a helper for the login of `key`. The helper is killed when `canceled` is cancelled.
///
/// # Errors
///
/// [`Code::InvalidOption`] if it fails or its answer is invalid; [`Code::ProcessLimit`].
pub(super) fn get(
    helper: &str,
    program: &Path,
    key: &str,
    canceled: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<Option<Login>> {
    let failed = |why: &str| error(helper, &format!("failed: {why}"));
    let (answer, status) = run(program, "get", key, TIMEOUT, canceled, tasks)
        .map_err(|error| limits::reached(&error).unwrap_or_else(|| failed(&error.to_string())))?;
    if !status.success() {
        let output = String::from_utf8_lossy(&answer);
        if output.trim() == NOT_FOUND {
            return Ok(None);
        }
        // The first line is the reason. A long line or JSON is not meant for people, and may be a login.
        return Err(match output.trim().lines().next() {
            Some(why) if why.len() <= MAX_REASON && !why.starts_with('{') => failed(why),
            _ => failed(&status.to_string()),
        });
    }
    // The answer is not quoted, because it may contain the secret.
    parse(&answer).ok_or_else(|| error(helper, "returned something that is not a login"))
}

/// Parses the answer to `get` (docker-credential-helpers, `client.Get`). The inner `None` means no login, the
/// outer one an invalid answer.
fn parse(answer: &[u8]) -> Option<Option<Login>> {
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

/// Runs a program until it exits, `limit` is over, or `canceled` is cancelled. Returns its output and exit
/// status.
fn run(
    program: &Path,
    argument: &str,
    input: &str,
    limit: Duration,
    canceled: &CancellationToken,
    tasks: &TaskTracker,
) -> io::Result<(Zeroizing<Vec<u8>>, ExitStatus)> {
    let (mut stdin, theirs) = child::stdin_socket()?;
    let mut child = ChildProcess::spawn(
        Command::new(program)
            .arg(argument)
            .stdin(theirs)
            .stdout(Stdio::piped())
            // The host's stderr is not ours to write to.
            .stderr(Stdio::null()),
        tasks,
    )?;
    stdin.set_write_timeout(Some(limit))?;
    match stdin.write_all(input.as_bytes()) {
        // The helper may exit without reading stdin.
        Err(error) if child::is_gone(&error) => {}
        result => result?,
    }
    drop(stdin);
    let mut stdout = child.child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    ioctl_fionbio(&stdout, true)?;

    let start = Instant::now();
    // With its full capacity: a vector that grows leaves copies of the secret behind.
    let mut answer = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
    while start.elapsed() < limit && !canceled.is_cancelled() {
        // Check for the exit before reading, so that no output is missed. Do not wait for the end of the
        // pipe: a grandchild may keep it open.
        let exited = child.exit_status()?;
        read_available(&mut stdout, &mut answer)?;
        if let Some(status) = exited {
            return Ok((answer, status));
        }
        std::thread::sleep(TICK);
    }
    let why = format!("it did not answer within {limit:?}");
    Err(io::Error::new(io::ErrorKind::TimedOut, why))
}

/// Reads what a non-blocking pipe has.
fn read_available(pipe: &mut impl Read, answer: &mut Vec<u8>) -> io::Result<()> {
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
    use super::*;

    #[test]
    fn helper_answers_are_parsed_as_docker_does() {
        let login = |answer: &str| {
            parse(answer.as_bytes()).map(|found| {
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
            // No login: docker pulls anonymously.
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

    /// Runs a shell script as a helper: its output, and whether it succeeded.
    fn helper(script: &str, limit: Duration) -> io::Result<(String, bool)> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("helper");
        std::fs::write(&file, script).unwrap();
        let (shell, canceled) = (Path::new("/bin/sh"), CancellationToken::new());
        let (answer, status) = run(
            shell,
            file.to_str().unwrap(),
            "key",
            limit,
            &canceled,
            &TaskTracker::new(),
        )?;
        Ok((
            String::from_utf8(answer.to_vec()).unwrap(),
            status.success(),
        ))
    }

    #[test]
    fn all_output_of_a_helper_is_read_until_it_exits() {
        let answer = |script| helper(script, TIMEOUT).unwrap();
        assert_eq!(answer("cat; exit 0"), ("key".to_owned(), true));
        assert_eq!(answer("echo no; exit 1"), ("no\n".to_owned(), false));
        // A grandchild keeps the pipe open.
        assert_eq!(answer("sleep 30 & echo yes"), ("yes\n".to_owned(), true));
    }

    #[test]
    fn a_helper_that_does_not_end_is_killed() {
        for script in ["exec sleep 600", "sleep 600", "exec >&-; sleep 600"] {
            let start = Instant::now();
            let error = helper(script, Duration::from_millis(200)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{script}");
            assert!(start.elapsed() < Duration::from_secs(10), "{script}");
        }
        let error = helper("while echo more; do :; done", TIMEOUT).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }
}
