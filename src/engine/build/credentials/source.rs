//! Where the login for a registry comes from: an entry of `config.json`, or a credential helper.

use std::collections::BTreeSet;
use std::path::PathBuf;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use super::{Login, helper};
use crate::context::DOCKER_HUB;
use crate::engine::child;
use crate::engine::connect::config::{Auth, Config, Entry};
use crate::engine::go_json::WrongType;
use crate::error::{Code, Error, Result};
use crate::options::EngineSettings;

/// The key of Docker Hub in `config.json`.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

const HINT_LOGIN: &str = "log in again: docker login";

/// The sources of logins, for the diagnosis. No helper is started: it may open a window.
#[derive(Debug)]
pub(crate) struct Logins {
    /// How many logins `config.json` itself has.
    pub(crate) stored: usize,
    /// The helper programs, and whether each is in `PATH`.
    pub(crate) helpers: Vec<(String, bool)>,
    /// Which parts of the file are invalid.
    pub(crate) warnings: Vec<String>,
}

impl Logins {
    pub(crate) fn of(settings: &EngineSettings) -> Result<Self> {
        let config = Config::load_strict(settings)?;
        let mut warnings = config.warnings;
        let mut helpers = BTreeSet::from([config.creds_store]);
        for (registry, helper) in config.cred_helpers {
            match helper {
                Ok(helper) => drop(helpers.insert(helper)),
                Err(wrong) => warnings.push(wrong_entry("credHelpers", &registry, wrong).message()),
            }
        }
        let mut stored = 0;
        for (registry, auth) in &config.auths {
            match stored_login(auth, registry) {
                // With a credsStore, the docker CLI leaves empty entries there.
                Ok(_) => stored += usize::from(auth.as_ref().is_ok_and(Auth::is_set)),
                Err(error) => warnings.push(error.message()),
            }
        }
        Ok(Self {
            stored,
            helpers: helpers
                .into_iter()
                .filter(|name| !name.is_empty())
                .map(|name| {
                    let program = helper::program_name(&name);
                    let found = child::find(&program, settings.search_path.as_deref()).is_some();
                    (program, found)
                })
                .collect(),
            warnings,
        })
    }
}

/// The key of a registry in `config.json`.
pub(super) fn config_key(registry: &str) -> &str {
    match registry {
        DOCKER_HUB => DOCKER_HUB_KEY,
        registry => registry,
    }
}

/// Where the login for one registry is.
pub(super) enum Source {
    /// The entry of the file, if there is one.
    File(Option<Login>),
    /// The helper of this name, with the path of its program.
    Helper(String, PathBuf),
}

impl Source {
    /// Looks for the login of `key` in the docker CLI's order: the registry's own helper, the helper for all
    /// registries, the file. `path` is the value of `PATH`.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidOption`] if the entry is invalid or the helper is not in `PATH`.
    pub(super) fn of(config: &Config, path: Option<&str>, key: &str) -> Result<Self> {
        let helper = match config.cred_helpers.get(key) {
            Some(Ok(own)) => own,
            Some(Err(wrong)) => return Err(wrong_entry("credHelpers", key, *wrong)),
            None => &config.creds_store,
        };
        if helper.is_empty() {
            let auths = &config.auths;
            let same_host = || auths.iter().find(|(other, _)| host(other) == host(key));
            let entry = auths.get(key).or_else(|| Some(same_host()?.1));
            let login = entry.map_or(Ok(None), |auth| stored_login(auth, key));
            return login.map(Source::File);
        }
        match child::find(&helper::program_name(helper), path) {
            Some(program) => Ok(Source::Helper(helper.clone(), program)),
            None => Err(helper::error(helper, "is not in PATH")),
        }
    }
}

fn wrong_entry(field: &str, key: &str, wrong: WrongType) -> Error {
    Error::new(
        Code::InvalidOption,
        format!("the entry of {key} in {field} of config.json has a value that {wrong}"),
    )
    .hint(HINT_LOGIN)
}

/// The host of a key. In files of old docker versions, a key is a URL.
fn host(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or(key.strip_prefix("http://"))
        .unwrap_or(key);
    key.split_once('/').map_or(key, |(host, _)| host)
}

/// The login of an entry of `auths`; `None` if the entry is empty.
fn stored_login(auth: &Entry<Auth>, key: &str) -> Result<Option<Login>> {
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
    let decoded = decode(&auth.auth);
    match decoded.split_once(':') {
        Some((username, password)) if !username.is_empty() => Ok(Some(Login {
            username: username.to_owned(),
            // As the docker CLI does: some tools have written NULs.
            secret: Zeroizing::new(password.trim_matches('\0').to_owned()),
        })),
        _ => Err(Error::new(
            Code::InvalidOption,
            format!("the auth of {key} in config.json is not base64 of user:password"),
        )
        .hint(HINT_LOGIN)),
    }
}

/// Decodes base64 as Go's `StdEncoding` does: line breaks and the unused last bits are ignored. Empty if the
/// text is not base64, or the result not UTF-8.
fn decode(base64: &str) -> Zeroizing<String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::go_json;

    fn auth(json: &str) -> Result<Option<Login>> {
        let json = go_json::first(json.as_bytes()).unwrap().unwrap();
        stored_login(&Auth::of(&json), "registry.example")
    }

    #[test]
    fn stored_logins_are_read_in_every_form() {
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
    fn a_key_that_is_a_url_matches_by_its_host() {
        for (key, expected) in [
            ("registry.example", "registry.example"),
            ("https://registry.example/v2/", "registry.example"),
            ("http://registry.example:5000", "registry.example:5000"),
        ] {
            assert_eq!(host(key), expected);
        }
    }
}
