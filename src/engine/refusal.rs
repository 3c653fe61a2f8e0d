//! A request that was refused: by the engine, or by what stands between (a socket proxy, an authorization
//! plugin, a reverse proxy).

use std::fmt;

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Method, Response, StatusCode};

use crate::engine::connect::request::{MAX_REFUSAL, Unread, whole};

/// Which request was refused, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The method and the path, without the API's version and the query: `POST /session`.
    pub(super) request: String,
    /// The HTTP status.
    pub(super) status: u16,
    pub(super) message: String,
    /// The request wanted the connection for itself.
    pub(super) upgrade: bool,
}

impl Refusal {
    /// Reads the reason of a refusal.
    pub(super) async fn read(
        request: String,
        upgrade: bool,
        response: Response<Incoming>,
    ) -> Result<Self, hyper::Error> {
        let (head, body) = response.into_parts();
        Ok(Self {
            request,
            status: head.status.as_u16(),
            message: reason(head.status, &head.headers, body).await?,
            upgrade,
        })
    }

    /// What to do about it.
    pub(super) fn hint(&self) -> String {
        let request = &self.request;
        // The engine has its own meaning for 400, 404 and 500, but it upgrades a connection if it can.
        let in_between = self.upgrade || matches!(self.status, 401 | 403 | 405 | 407 | 421 | 501);
        if !in_between {
            return "see the engine's own log".to_owned();
        }
        let headers = match self.upgrade {
            true => ", and pass its headers Connection and Upgrade on",
            false => "",
        };
        format!(
            "if a proxy or an authorization plugin limits access to the engine, allow {request} there{headers}; \
             else see the engine's own log"
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            request,
            status,
            message,
            ..
        } = self;
        write!(f, "answered {request} with {status}: {message}")
    }
}

/// A request's name in messages: the version would be noise there, and the query may be long.
pub(super) fn name(method: &Method, path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let rest = path.strip_prefix("/v").and_then(|rest| {
        let (version, _) = rest.split_once('/')?;
        let is_version = version
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
        is_version.then(|| &rest[version.len()..])
    });
    format!("{method} {}", rest.unwrap_or(path))
}

/// The engine's words, from `{"message": "…"}`; those of a proxy, if they are plain text.
async fn reason(
    status: StatusCode,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<String, hyper::Error> {
    #[derive(serde::Deserialize)]
    struct Reason {
        message: String,
    }
    let body = match whole(body, MAX_REFUSAL).await {
        Ok(body) => body,
        Err(Unread::Broken(error)) => return Err(error),
        Err(_) => Vec::new(),
    };
    let kind = headers
        .get(CONTENT_TYPE)
        .map_or(&b""[..], |value| value.as_bytes());
    let said = match serde_json::from_slice::<Reason>(&body) {
        Ok(reason) => reason.message,
        // A page for a browser. The status says as much.
        Err(_) if kind.to_ascii_lowercase().starts_with(b"text/html") => String::new(),
        Err(_) => String::from_utf8_lossy(&body).into_owned(),
    };
    Ok(match (said.trim(), status) {
        ("", StatusCode::SWITCHING_PROTOCOLS) => "it hands over no connection".to_owned(),
        ("", status) if status.is_success() => "it keeps the connection".to_owned(),
        ("", status) => status
            .canonical_reason()
            .unwrap_or("no reason given")
            .to_owned(),
        (said, _) => said.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_named_without_version_and_query() {
        for (path, expected) in [
            ("/v1.41/session", "POST /session"),
            ("/v1.41/build?t=x&q=/v1.2/y", "POST /build"),
            ("/version", "POST /version"),
            ("/vault/x", "POST /vault/x"),
        ] {
            assert_eq!(name(&Method::POST, path), expected);
        }
    }

    #[test]
    fn the_hint_says_what_to_allow_where_something_stands_between() {
        let hint = |status, upgrade| {
            let refusal = Refusal {
                request: "POST /session".to_owned(),
                status,
                message: String::new(),
                upgrade,
            };
            refusal.hint()
        };
        for status in [401, 403, 405, 407, 421, 501] {
            assert!(
                hint(status, false).contains("allow POST /session"),
                "{status}"
            );
        }
        for status in [200, 400, 403, 404, 500] {
            assert!(hint(status, true).contains("Upgrade"), "{status}");
        }
        assert!(!hint(500, false).contains("allow"));
    }
}
