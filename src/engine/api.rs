//! Ordinary requests of the engine's API: short ones, over connections that are kept alive.
//!
//! Every answer has a size limit, and only the needed fields are decoded, so that no engine can use up the
//! memory. bollard is not used here: it reads each answer without a limit and decodes all of it.

use std::fmt;
use std::io;
use std::marker::PhantomData;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::{
    DeserializeOwned, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::connect::{self, Pool};
use super::refusal::{self, Refusal};
use crate::engine::connect::address::Address;
use crate::engine::connect::body::{BodyError, MAX_REFUSAL, read_body};
use crate::engine::version::Version;
use crate::error::{Error, causes};
use crate::event::human_bytes;
use crate::net::json::Object;
use crate::process::limits;

/// The characters that are not escaped in a path. An image's name has a `/` and a `:`.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':')
    .remove(b'@');

/// The newest API version that this library supports.
const NEWEST: Version = Version {
    major: 1,
    minor: 53,
};

/// The largest answer of `/version`, in bytes. Engines send some KiB.
const MAX_VERSION: usize = 256 << 10;

/// The largest answer of `/info`, in bytes. With many plugins and registries it has some tens of KiB.
pub(super) const MAX_INFO: usize = 1 << 20;

/// Why a request failed. The messages of `Refused`, `TooLarge` and `Unreadable` have no subject: the caller puts one in
/// front, such as "it" or "the engine at …".
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The engine, or a proxy in front of it, answered with an error.
    #[error("{0}")]
    Refused(Refusal),
    /// The answer is larger than the limit.
    #[error("sent more than {} in answer to {what}", human_bytes(*max as u64))]
    TooLarge { what: String, max: usize },
    /// The answer is not what the API specifies.
    #[error("sent an answer to {what} that cannot be read: {why}")]
    Unreadable { what: String, why: String },
    /// The connection failed before the end of the answer.
    #[error("{why}")]
    Broken {
        why: String,
        /// The error of the operating system, if it is one.
        kind: Option<io::ErrorKind>,
    },
    /// An error of this process: for example, it has no thread or file descriptor left.
    #[error("{0}")]
    Local(Error),
}

type Result<T> = std::result::Result<T, Failure>;

/// The answer of `/version`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct About {
    pub(super) version: Option<String>,
    api_version: Option<String>,
    pub(super) os: Option<String>,
    pub(super) arch: Option<String>,
    pub(super) components: Capped<Component, 100>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Component {
    pub(super) name: String,
    pub(super) version: String,
}

impl About {
    /// Podman's component, if this is Podman.
    pub(super) fn podman(&self) -> Option<&Component> {
        let mut components = self.components.0.iter();
        components.find(|component| component.name.contains("Podman"))
    }
}

/// The API of one engine.
#[derive(Clone, Debug)]
pub(super) struct Api {
    pool: Pool,
    /// The `Host` header.
    host: String,
    /// The prefix of every path.
    base_path: String,
    pub(super) version: Version,
}

impl Api {
    /// Requests the engine's version, and selects the newest API version that both support.
    pub(super) async fn open(address: &Address) -> Result<(Self, About)> {
        let mut api = Self {
            pool: connect::pool(address),
            host: address.host_header(),
            base_path: address.base_path().to_owned(),
            version: NEWEST,
        };
        const WHAT: &str = "/version";
        let body = api.send(&Method::GET, WHAT, WHAT, MAX_VERSION).await?;
        let about: About = parse(WHAT, &body)?;
        let theirs = about.api_version.as_deref().and_then(Version::parse);
        let theirs = theirs.ok_or_else(|| Failure::Unreadable {
            what: WHAT.to_owned(),
            why: "it has no valid ApiVersion".to_owned(),
        })?;
        api.version = api.version.min(theirs);
        Ok((api, about))
    }

    /// Sends a GET request to `path`, without the API version, and decodes at most `max` bytes.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str, max: usize) -> Result<T> {
        let body = self.call(&Method::GET, path, max).await?;
        parse(path, &body)
    }

    /// Sends a request to `path` and returns the body of at most `max` bytes.
    pub(super) async fn call(&self, method: &Method, path: &str, max: usize) -> Result<Vec<u8>> {
        let versioned = format!("/v{}{path}", self.version);
        self.send(method, &versioned, path, max).await
    }

    async fn send(&self, method: &Method, path: &str, what: &str, max: usize) -> Result<Vec<u8>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{}{path}", connect::HOST, self.base_path))
            .header(HOST, &self.host)
            .body(Empty::<Bytes>::new())
            .map_err(|error| broken(&error))?;
        let response = self.pool.request(request).await;
        let response = response.map_err(|error| broken(&error))?;
        let status = response.status();
        let success = status.is_success() || status == StatusCode::NOT_MODIFIED;
        if !success {
            let name = refusal::name(method, path);
            return Err(match Refusal::read(name, false, response).await {
                Ok(refusal) => Failure::Refused(refusal),
                Err(error) => broken(&error),
            });
        }
        read_body(response.into_body(), max)
            .await
            .map_err(|error| match error {
                BodyError::TooLarge => Failure::TooLarge {
                    what: without_query(what),
                    max,
                },
                BodyError::TinyPieces => Failure::Unreadable {
                    what: without_query(what),
                    why: error.to_string(),
                },
                BodyError::Broken(error) => broken(&error),
            })
    }
}

/// The size limit of an answer that is ignored.
pub(super) const MAX_IGNORED: usize = MAX_REFUSAL;

/// Escapes a name for a path.
pub(super) fn in_path(name: &str) -> impl fmt::Display {
    utf8_percent_encode(name, PATH)
}

/// Decodes an answer, which must be an object.
fn parse<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T> {
    match serde_json::from_slice(body) {
        Ok(Object(found)) => Ok(found),
        Err(error) => Err(unreadable(what, &error)),
    }
}

pub(super) fn unreadable(what: &str, error: &serde_json::Error) -> Failure {
    Failure::Unreadable {
        what: without_query(what),
        why: error.to_string(),
    }
}

fn without_query(path: &str) -> String {
    path.split('?').next().unwrap_or_default().to_owned()
}

fn broken(error: &(dyn std::error::Error + 'static)) -> Failure {
    match limits::reached(error) {
        Some(limit) => Failure::Local(limit),
        None => {
            // The innermost cause is the clearest: "permission denied", "connection refused".
            let cause = causes(error).last().unwrap_or(error);
            Failure::Broken {
                why: cause.to_string(),
                kind: cause.downcast_ref().map(io::Error::kind),
            }
        }
    }
}

/// A list of at most `MAX` entries, or null. The byte limit of the answer is not enough: an entry of two bytes can
/// decode to hundreds.
#[derive(Clone, Debug)]
pub(super) struct Capped<T, const MAX: usize>(pub(super) Vec<T>);

impl<T, const MAX: usize> Default for Capped<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Capped<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Reader<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Reader<T, MAX> {
            type Value = Capped<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX}")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> std::result::Result<Self::Value, A::Error> {
                let mut found = Vec::new();
                while let Some(entry) = list.next_element()? {
                    if found.len() == MAX {
                        return Err(A::Error::custom(format!("a list of more than {MAX}")));
                    }
                    found.push(entry);
                }
                Ok(Capped(found))
            }

            fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
                Ok(Capped::default())
            }
        }
        from.deserialize_any(Reader(PhantomData))
    }
}

/// The labels of an image that are used: those of this library, and the commit.
#[derive(Clone, Debug, Default)]
pub(super) struct Labels(pub(super) Vec<(String, String)>);

/// Upper bound of the labels that are kept: more than this library sets.
const MAX_LABELS: usize = 16;

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Labels, A::Error> {
                let mut labels = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let known =
                        name == super::REVISION_LABEL || name.starts_with(super::LABEL_PREFIX);
                    if known && labels.len() < MAX_LABELS {
                        labels.push((name, map.next_value()?));
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Labels(labels))
            }

            fn visit_unit<E>(self) -> std::result::Result<Labels, E> {
                Ok(Labels::default())
            }
        }
        from.deserialize_any(Reader)
    }
}

impl Labels {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name)?;
        Some(&found.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_over_the_limit_are_refused_and_null_is_empty() {
        let read = serde_json::from_str::<Capped<String, 2>>;
        assert_eq!(read(r#"["a", "b"]"#).unwrap().0, ["a", "b"]);
        assert_eq!(read("null").unwrap().0.len(), 0);
        assert!(read(r#"["a", "b", "c"]"#).is_err());
        assert!(read("{}").is_err());
    }

    #[test]
    fn only_used_labels_are_kept() {
        let mut text = String::from("{");
        for number in 0..100_000 {
            text += &format!(r#""{}x{number}": "", "#, super::super::LABEL_PREFIX);
        }
        text += r#""other": "x"}"#;
        let labels: Labels = serde_json::from_str(&text).unwrap();
        assert_eq!(labels.0.len(), MAX_LABELS);
        assert_eq!(labels.get("other"), None);
    }
}
