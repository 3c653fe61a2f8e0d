//! The docker CLI's `config.json`, as far as it matters here.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::error::{Code, Error, Result};
use crate::options::EngineSettings;

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

impl Config {
    /// Reads the file; without one, everything is empty.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidOption`] if it is there and is not JSON of this shape.
    pub(super) fn load(settings: &EngineSettings) -> Result<Self> {
        let Some(file) = path(settings) else {
            return Ok(Self::default());
        };
        let Ok(text) = std::fs::read(&file) else {
            return Ok(Self::default());
        };
        let text = Zeroizing::new(text);
        serde_json::from_slice(&text).map_err(|error| {
            Error::new(
                Code::InvalidOption,
                format!("{} cannot be read: {error}", file.display()),
            )
            .hint("mend the file: the docker command complains about it too")
        })
    }
}

/// Where the file is.
pub(super) fn path(settings: &EngineSettings) -> Option<PathBuf> {
    let dir = settings.config_dir.as_ref()?;
    Some(dir.join("config.json"))
}
