//! The fields of the docker CLI's `config.json` that matter here: the current context and the logins.
//!
//! Libraries looked at: `docker_credential` 1.4 reads the logins but no context, and its JSON is strict, where docker's
//! is not.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::engine::go_json::{self, Json, WrongType};
use crate::error::{Code, Error, Result};
use crate::options::EngineSettings;
use crate::process::limits;
use crate::process::outside_file;

/// The largest file. With hundreds of logins, it has a few tens of KiB.
const MAX_SIZE: usize = 1 << 20;

/// The hint for a file whose content is wrong.
pub(in crate::engine) const HINT: &str = "fix the file: the docker CLI reports this error too";

/// The fields that can be read. Missing ones are empty.
#[derive(Default)]
pub(in crate::engine) struct Config {
    pub(in crate::engine) current_context: String,
    /// By registry.
    pub(in crate::engine) auths: BTreeMap<String, Entry<Auth>>,
    /// The helper for registries that are not in `cred_helpers`.
    pub(in crate::engine) creds_store: String,
    /// By registry.
    pub(in crate::engine) cred_helpers: BTreeMap<String, Entry<String>>,
    /// The fields that could not be read. They count as not set, which is no error, as in the docker CLI.
    pub(in crate::engine) warnings: Vec<String>,
}

/// The entry of a registry. One that cannot be read is reported when it is needed.
pub(in crate::engine) type Entry<T> = std::result::Result<T, WrongType>;

/// A login in the file itself.
#[derive(Default)]
pub(in crate::engine) struct Auth {
    /// `user:password`, in base64.
    pub(in crate::engine) auth: Zeroizing<String>,
    pub(in crate::engine) username: String,
    pub(in crate::engine) password: Zeroizing<String>,
    pub(in crate::engine) identity_token: Zeroizing<String>,
}

impl Auth {
    pub(in crate::engine) fn of(entry: &Json) -> Entry<Self> {
        Ok(Self {
            auth: Zeroizing::new(entry.text("auth")?.to_owned()),
            username: entry.text("username")?.to_owned(),
            password: Zeroizing::new(entry.text("password")?.to_owned()),
            identity_token: Zeroizing::new(entry.text("identitytoken")?.to_owned()),
        })
    }

    pub(in crate::engine) fn is_set(&self) -> bool {
        !(self.auth.is_empty() && self.username.is_empty() && self.identity_token.is_empty())
    }
}

impl Config {
    /// Reads the file. If it does not exist or cannot be read, everything is empty: the docker CLI only warns about
    /// missing permissions.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidOption`] if the path is a FIFO, a socket or a device, or the file is too large;
    /// [`Code::ProcessLimit`].
    pub(in crate::engine) fn load(settings: &EngineSettings) -> Result<Self> {
        match read(settings) {
            // The docker CLI would wait forever.
            Some(Err(error)) if is_unusable_file(&error) || limits::reached(&error).is_some() => {
                Err(invalid(settings, &error))
            }
            Some(Ok(text)) => Ok(Self::parse(settings, &text)),
            _ => Ok(Self::default()),
        }
    }

    /// Like [`Config::load`], for callers that need the content.
    ///
    /// # Errors
    ///
    /// Also [`Code::InvalidOption`] if the file exists but cannot be read.
    pub(in crate::engine) fn load_strict(settings: &EngineSettings) -> Result<Self> {
        match read(settings) {
            Some(Err(error)) if !is_absent(&error) => Err(invalid(settings, &error)),
            Some(Ok(text)) => Ok(Self::parse(settings, &text)),
            _ => Ok(Self::default()),
        }
    }

    fn parse(settings: &EngineSettings, text: &[u8]) -> Self {
        let mut config = Self::default();
        let file = path(settings).unwrap_or_default();
        match go_json::first(text) {
            Ok(None) => {}
            Ok(Some(json)) => config.take(&json, |field, wrong| {
                format!("{field} in {} {wrong}, and is ignored", file.display())
            }),
            Err(why) => config.warnings.push(format!(
                "{} cannot be read: {why}, so all of it is ignored",
                file.display()
            )),
        }
        config
    }

    /// Copies the fields that have the right type.
    fn take(&mut self, json: &Json, warning: impl Fn(&str, WrongType) -> String) {
        if let Err(wrong) = json.as_object() {
            self.warnings.push(warning("the JSON value", wrong));
            return;
        }
        for (name, field) in [
            ("currentContext", &mut self.current_context),
            ("credsStore", &mut self.creds_store),
        ] {
            match json.text(name) {
                Ok(text) => text.clone_into(field),
                Err(wrong) => self.warnings.push(warning(name, wrong)),
            }
        }
        match json.map("auths") {
            Ok(auths) => self.auths = entries(auths, Auth::of),
            Err(wrong) => self.warnings.push(warning("auths", wrong)),
        }
        match json.map("credHelpers") {
            Ok(helpers) => {
                self.cred_helpers = entries(helpers, |name| {
                    Ok(name.as_text()?.unwrap_or_default().to_owned())
                });
            }
            Err(wrong) => self.warnings.push(warning("credHelpers", wrong)),
        }
    }
}

fn entries<T>(
    map: BTreeMap<&str, &Json>,
    read: impl Fn(&Json) -> Entry<T>,
) -> BTreeMap<String, Entry<T>> {
    map.into_iter()
        .map(|(key, value)| (key.to_owned(), read(value)))
        .collect()
}

fn read(settings: &EngineSettings) -> Option<io::Result<Zeroizing<Vec<u8>>>> {
    let content = outside_file::read(&path(settings)?, MAX_SIZE);
    Some(content.map(Zeroizing::new))
}

/// Whether the path is a FIFO, a socket or a device, or the file is too large.
fn is_unusable_file(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::FileTooLarge
    )
}

/// Whether the file does not exist.
pub(in crate::engine) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn invalid(settings: &EngineSettings, why: &io::Error) -> Error {
    limits::reached(why).unwrap_or_else(|| {
        let file = path(settings).unwrap_or_default();
        let text = format!("{} cannot be read: {why}", file.display());
        Error::new(Code::InvalidOption, text)
            .hint("make config.json a readable, regular file of at most 1 MiB")
    })
}

/// A description of the configuration, for an error.
pub(in crate::engine) fn described(settings: &EngineSettings) -> String {
    match &settings.config_dir {
        Some(dir) => format!("docker's configuration ({})", dir.display()),
        None => "docker's configuration".to_owned(),
    }
}

/// The path of the file.
fn path(settings: &EngineSettings) -> Option<PathBuf> {
    let dir = settings.config_dir.as_ref()?;
    Some(dir.join("config.json"))
}
