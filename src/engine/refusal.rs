//! A request that was refused: by the engine, or by something in between (a socket proxy, an authorization
//! plugin, a reverse proxy).

use std::fmt;

use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Response, StatusCode};

use crate::engine::connect::body::{BodyError, MAX_REFUSAL, read_body};
use crate::net::http::media_type;

/// Which request was refused, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The method and the path, without the API's version and the query: `POST /session`.
    pub(super) request: String,
    /// The HTTP status.
    pub(super) status: u16,
    pub(super) message: String,
    /// The answer is JSON, as the engine writes it. A proxy can imitate it.
    pub(super) has_engine_form: bool,
    /// The request was to upgrade the connection.
    pub(super) upgrade: bool,
}

impl Refusal {
    /// Reads the reason from the response.
    pub(super) async fn read(
        request: String,
        upgrade: bool,
        response: Response<Incoming>,
    ) -> Result<Self, hyper::Error> {
        let (head, body) = response.into_parts();
        let (message, has_engine_form) = reason(head.status, &head.headers, body).await?;
        Ok(Self {
            request,
            status: head.status.as_u16(),
            message,
            has_engine_form,
            upgrade,
        })
    }

    /// The engine itself says that it does not have the image, or what else was requested.
    pub(super) fn is_not_found(&self) -> bool {
        self.status == 404 && self.has_engine_form
    }

    /// What to do next.
    pub(super) fn hint(&self) -> String {
        let request = &self.request;
        // The engine itself answers 400, 404, 409 and 500. It refuses no upgrade: something in between does.
        let in_between = self.upgrade
            || !self.has_engine_form
            || matches!(self.status, 401 | 403 | 405 | 407 | 421 | 501);
        if !in_between {
            return "read the engine's log".to_owned();
        }
        let headers = match self.upgrade {
            true => ", and forward its headers Connection and Upgrade",
            false => "",
        };
        format!(
            "if a proxy or an authorization plugin limits access to the engine, allow {request} there{headers}; \
             else read the engine's log"
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

/// A request's name in messages, without the API version and the query, which may be long.
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

/// The message, and whether it has the engine's form, `{"message": "…"}`. A body in another form is shown as it
/// is, unless it is HTML.
async fn reason(
    status: StatusCode,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<(String, bool), hyper::Error> {
    #[derive(serde::Deserialize)]
    struct Reason {
        message: String,
    }
    let kind = media_type(headers).unwrap_or_default();
    let is_json = kind.eq_ignore_ascii_case(b"application/json");
    let (body, too_large) = match read_body(body, MAX_REFUSAL).await {
        Ok(body) => (body, false),
        Err(BodyError::Broken(error)) => return Err(error),
        Err(_) => (Vec::new(), true),
    };
    let reason = serde_json::from_slice::<Reason>(&body);
    let has_engine_form = reason.is_ok() || (too_large && is_json);
    let text = match reason {
        Ok(reason) => reason.message,
        // A page for a browser: the status is enough.
        Err(_) if kind.eq_ignore_ascii_case(b"text/html") => String::new(),
        Err(_) => String::from_utf8_lossy(&body).into_owned(),
    };
    let text = match (text.trim(), status) {
        ("", status) if status == StatusCode::SWITCHING_PROTOCOLS || status.is_success() => {
            "the connection was not upgraded".to_owned()
        }
        ("", status) => status
            .canonical_reason()
            .unwrap_or("no reason given")
            .to_owned(),
        (text, _) => text.to_owned(),
    };
    Ok((text, has_engine_form))
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
    fn the_hint_for_a_proxy_names_the_request_to_allow() {
        let refused = |status, upgrade, has_engine_form| Refusal {
            request: "POST /session".to_owned(),
            status,
            message: String::new(),
            has_engine_form,
            upgrade,
        };
        let hint = |status, upgrade| refused(status, upgrade, true).hint();
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
        for status in [400, 404, 500, 502] {
            let hint = refused(status, false, false).hint();
            assert!(hint.contains("allow POST /session"), "{status}");
        }
    }
}
