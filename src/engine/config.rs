//! The docker CLI's `config.json`, as far as it matters here.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::error::{Code, Error, Result};
use crate::options::EngineSettings;
use crate::outside_file;

/// The largest file. With hundreds of logins it has some ten KiB.
const MAX_SIZE: usize = 1 << 20;

/// The file's content. What is not there is empty.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Config {
    #[serde(rename = "currentContext")]
    pub(super) current_context: String,
    /// By registry.
    pub(super) auths: Option<HashMap<String, Auth>>,
    /// The helper for every registry that has none of its own.
    #[serde(rename = "credsStore")]
    pub(super) creds_store: String,
    /// By registry.
    #[serde(rename = "credHelpers")]
    pub(super) cred_helpers: Option<HashMap<String, String>>,
}

/// A login that stands in the file itself.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Auth {
    /// `user:password`, in base64.
    pub(super) auth: Zeroizing<String>,
    pub(super) username: String,
    pub(super) password: Zeroizing<String>,
    #[serde(rename = "identitytoken")]
    pub(super) identity_token: Zeroizing<String>,
}

impl Auth {
    pub(super) fn is_set(&self) -> bool {
        !(self.auth.is_empty() && self.username.is_empty() && self.identity_token.is_empty())
    }
}

impl Config {
    /// Reads the file; without one, everything is empty. So it is with one that may not be read, which
    /// the docker CLI only complains of.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidOption`] if it is there and is not JSON of this shape.
    pub(super) fn load(settings: &EngineSettings) -> Result<Self> {
        match read(settings) {
            Some(Ok(text)) => Self::parse(settings, text),
            // The docker CLI would wait for this for ever.
            Some(Err(error)) if is_no_file(&error) => Err(invalid(settings, &error.to_string())),
            _ => Ok(Self::default()),
        }
    }

    /// The same, for someone who needs what is in it.
    ///
    /// # Errors
    ///
    /// Also if it may not be read.
    pub(super) fn load_or_complain(settings: &EngineSettings) -> Result<Self> {
        match read(settings) {
            Some(Err(error)) if !is_absent(&error) => Err(invalid(settings, &error.to_string())),
            Some(Ok(text)) => Self::parse(settings, text),
            _ => Ok(Self::default()),
        }
    }

    fn parse(settings: &EngineSettings, text: Zeroizing<Vec<u8>>) -> Result<Self> {
        serde_json::from_slice(&text).map_err(|error| {
            // Not the error's own words: they may quote what is in the file.
            let (line, column) = (error.line(), error.column());
            invalid(
                settings,
                &format!("it is wrong at line {line}, column {column}"),
            )
        })
    }
}

fn read(settings: &EngineSettings) -> Option<io::Result<Zeroizing<Vec<u8>>>> {
    let content = outside_file::read(&path(settings)?, MAX_SIZE);
    Some(content.map(Zeroizing::new))
}

/// Is there something that is no file, or no file that anybody has written?
fn is_no_file(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::FileTooLarge
    )
}

pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn invalid(settings: &EngineSettings, why: &str) -> Error {
    let file = path(settings).unwrap_or_default();
    Error::new(
        Code::InvalidOption,
        format!("{} cannot be read: {why}", file.display()),
    )
    .hint("mend the file: the docker command complains about it too")
}

/// What is read, for an error.
pub(super) fn described(settings: &EngineSettings) -> String {
    match &settings.config_dir {
        Some(dir) => format!("docker's configuration ({})", dir.display()),
        None => "docker's configuration".to_owned(),
    }
}

/// Where the file is.
fn path(settings: &EngineSettings) -> Option<PathBuf> {
    let dir = settings.config_dir.as_ref()?;
    Some(dir.join("config.json"))
}
