//! Requests with a connection of their own: builds and their sessions.
//!
//! [`api`](crate::engine::api) makes all other requests.

use std::io;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use hyper::http::request::Builder;
use hyper::http::uri::InvalidUri;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use tokio_util::task::AbortOnDropHandle;

use crate::engine::connect;
use crate::engine::connect::address::Address;
use crate::engine::refusal::{self, Refusal};
use crate::engine::version::Version;
use crate::error::chain;
use crate::process::limits;

/// The body of a request.
pub(in crate::engine) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The body of a request without one.
pub(in crate::engine) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::engine) enum Failure {
    /// The engine, or a proxy in front of it, refused the request.
    #[error("it {0}")]
    Refused(Refusal),
    /// The builder reported an error. The classic builder adds the exit code if a command failed.
    #[error("{message}")]
    Reported {
        message: String,
        exit_code: Option<i32>,
    },
    /// The connection failed.
    #[error("{0}")]
    Broken(String),
    /// The response is invalid, or exceeds a limit. The text says what was sent.
    #[error("it sent {0}")]
    InvalidAnswer(String),
    /// An error to report as it is: a limit of this process, or the error of another request.
    #[error("{0}")]
    Local(crate::error::Error),
}

impl Failure {
    pub(in crate::engine) fn broken(error: &(dyn std::error::Error + 'static)) -> Self {
        match limits::reached(error) {
            Some(limit) => Failure::Local(limit),
            None => Failure::Broken(chain(error)),
        }
    }
}

/// A response, and the connection that it arrives on.
pub(in crate::engine) struct Answer {
    pub(in crate::engine) response: Response<Incoming>,
    pub(in crate::engine) connection: AbortOnDropHandle<()>,
}

/// Starts a POST request to `path` of the API.
pub(in crate::engine) fn post(version: Version, path: &str) -> Builder {
    Request::post(format!("/v{version}{path}"))
}

/// Sets the `Host` header and the path prefix for the engine at `address`.
fn addressed(address: &Address, mut request: Request<Body>) -> Result<Request<Body>, Failure> {
    let host = HeaderValue::try_from(address.host_header()).map_err(|e| Failure::broken(&e))?;
    let uri = format!("{}{}", address.base_path(), request.uri());
    *request.uri_mut() = uri.parse().map_err(|e: InvalidUri| Failure::broken(&e))?;
    request.headers_mut().insert(HOST, host);
    Ok(request)
}

/// Sends a request over a new connection, and waits for the head of the response.
pub(in crate::engine) async fn send(
    address: &Address,
    request: Request<Body>,
) -> Result<Answer, Failure> {
    exchange(address, request, false).await
}

/// Sends a request that upgrades the connection to HTTP/2.
pub(in crate::engine) async fn upgrade(
    address: &Address,
    request: Builder,
) -> Result<Upgraded, Failure> {
    upgrade_with(address, request, "h2c", empty()).await
}

/// Sends a request with a body that upgrades the connection to a protocol.
pub(in crate::engine) async fn upgrade_with(
    address: &Address,
    request: Builder,
    protocol: &'static str,
    body: Body,
) -> Result<Upgraded, Failure> {
    let request = request
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, protocol)
        .body(body)
        .map_err(|error| Failure::broken(&error))?;
    let answer = exchange(address, request, true).await?;
    hyper::upgrade::on(answer.response)
        .await
        .map_err(|error| Failure::broken(&error))
}

async fn exchange(
    address: &Address,
    request: Request<Body>,
    upgrade: bool,
) -> Result<Answer, Failure> {
    let name = refusal::name(request.method(), request.uri().path());
    let request = addressed(address, request)?;
    let stream = connect::dial(address)
        .await
        .map_err(|e| Failure::broken(&e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(|error| Failure::broken(&error))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // An error here also fails the response, which reports it.
        let _ = connection.with_upgrades().await;
    }));
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| Failure::broken(&error))?;
    let status = response.status();
    let accepted = match upgrade {
        true => status == StatusCode::SWITCHING_PROTOCOLS,
        false => status.is_success(),
    };
    if accepted {
        return Ok(Answer {
            response,
            connection,
        });
    }
    Err(match Refusal::read(name, upgrade, response).await {
        Ok(refusal) => Failure::Refused(refusal),
        Err(error) => Failure::broken(&error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_limit_is_recognised_in_every_failure() {
        let limit = || io::Error::from_raw_os_error(libc::EMFILE);
        for failure in [
            Failure::broken(&limit()),
            Failure::broken(&io::Error::other(limit())),
        ] {
            let Failure::Local(error) = failure else {
                panic!("{failure:?}");
            };
            assert_eq!(error.code, crate::Code::ProcessLimit);
        }
    }
}
