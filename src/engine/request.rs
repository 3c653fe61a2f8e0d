//! Requests that hold a connection of their own for as long as they last: a build, and the session of
//! one.
//!
//! bollard makes all the others. Its builds with BuildKit bring a session of their own, which has no
//! files to give; see docs/adr/0004.

use std::io;

use bollard::ClientVersion;
use bollard_stubs::models::{BuildInfo, ErrorDetail};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::http::request::Builder;
use hyper::{Request, Response, StatusCode};
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;
use tokio_util::task::AbortOnDropHandle;

use super::connect;
use super::endpoint::Address;
use crate::error::chain;
use crate::limits;

/// The longest line of an answer. BuildKit's own limit for a message is 16 MiB, which base64 makes a
/// third longer.
const MAX_LINE: usize = 32 * 1024 * 1024;

/// The longest refusal that is read.
const MAX_REFUSAL: usize = 64 * 1024;

/// A request's body.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The engine said no.
    #[error("it answered {status}: {message}")]
    Refused { status: u16, message: String },
    /// The builder says why.
    #[error("{0}")]
    Reported(String),
    /// The connection, or what came over it, is broken.
    #[error("{0}")]
    Broken(String),
    /// It was never asked.
    #[error("{0}")]
    Ours(crate::error::Error),
}

impl Failure {
    pub(super) fn broken(error: &(dyn std::error::Error + 'static)) -> Self {
        match limits::reached(error) {
            Some(limit) => Failure::Ours(limit),
            None => Failure::Broken(chain(error)),
        }
    }
}

/// An answer, and the connection over which it comes.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    connection: AbortOnDropHandle<()>,
}

/// The beginning of a request to `path` of the API.
pub(super) fn post(version: &ClientVersion, path: &str) -> Builder {
    let (major, minor) = (version.major_version, version.minor_version);
    Request::post(format!("/v{major}.{minor}{path}")).header(HOST, connect::HOST)
}

/// The same, for a request that only asks.
pub(super) fn get(version: &ClientVersion, path: &str) -> Builder {
    let (major, minor) = (version.major_version, version.minor_version);
    Request::get(format!("/v{major}.{minor}{path}")).header(HOST, connect::HOST)
}

/// Sends a request over a connection of its own, and waits for the beginning of the answer.
pub(super) async fn send(address: &Address, request: Request<Body>) -> Result<Answer, Failure> {
    let stream = connect::dial(address)
        .await
        .map_err(|e| Failure::broken(&e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(|error| Failure::broken(&error))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // What goes wrong here goes wrong for the answer too, and is told there.
        let _ = connection.with_upgrades().await;
    }));
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| Failure::broken(&error))?;
    let status = response.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Answer {
            response,
            connection,
        });
    }
    Err(Failure::Refused {
        status: status.as_u16(),
        message: refusal(response.into_body()).await,
    })
}

/// The engine's words, from `{"message": "…"}`.
async fn refusal(body: Incoming) -> String {
    #[derive(serde::Deserialize)]
    struct Refusal {
        message: String,
    }
    let body = match Limited::new(body, MAX_REFUSAL).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let said = match serde_json::from_slice::<Refusal>(&body) {
        Ok(refusal) => refusal.message,
        Err(_) => String::from_utf8_lossy(&body).into_owned(),
    };
    match said.trim() {
        "" => "it does not say why; see its own log".to_owned(),
        said => said.to_owned(),
    }
}

impl Answer {
    /// The whole of an answer in JSON, of at most `max` bytes.
    pub(super) async fn json<T: serde::de::DeserializeOwned>(
        self,
        max: usize,
    ) -> Result<T, Failure> {
        let body = Limited::new(self.response.into_body(), max).collect().await;
        let body = body.map_err(|error| Failure::Broken(error.to_string()))?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| Failure::broken(&error))
    }

    /// The lines of a build's answer, to its end or to the error in it.
    pub(super) fn build_info(self) -> impl Stream<Item = Result<BuildInfo, Failure>> {
        let connection = self.connection;
        let body = self.response.into_body().into_data_stream();
        let reader = StreamReader::new(body.map_err(io::Error::other));
        FramedRead::new(reader, LinesCodec::new_with_max_length(MAX_LINE)).filter_map(move |line| {
            // It lives as long as the stream.
            let _ = &connection;
            std::future::ready(match line {
                Ok(line) if line.trim().is_empty() => None,
                Ok(line) => Some(parse(&line)),
                Err(error) => Some(Err(Failure::broken(&error))),
            })
        })
    }
}

fn parse(line: &str) -> Result<BuildInfo, Failure> {
    let info: BuildInfo = serde_json::from_str(line)
        .map_err(|error| Failure::Broken(format!("its answer cannot be read: {error}")))?;
    match info.error_detail {
        Some(ErrorDetail {
            message: Some(message),
            ..
        }) => Err(Failure::Reported(message)),
        _ => Ok(info),
    }
}
