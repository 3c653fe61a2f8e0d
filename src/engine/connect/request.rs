//! Requests with a connection of their own: builds and their sessions.
//!
//! [`api`](crate::engine::api) makes all other requests.

use std::borrow::Cow;
use std::{fmt, io};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use hyper::http::request::Builder;
use hyper::http::uri::InvalidUri;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::api::Version;
use crate::engine::build::pull::{Action, LayerStatus};
use crate::engine::connect;
use crate::engine::connect::endpoint::Address;
use crate::engine::refusal::{self, Refusal};
use crate::error::chain;
use crate::net::json::Object;
use crate::process::limits;

/// The longest line of a response. BuildKit sends the output of a step in messages of about 1 MiB, and drops what
/// exceeds 2 MiB for one step. Base64 makes that a third longer.
const MAX_LINE: usize = 8 << 20;

/// The most bytes of an error response that are read.
pub(in crate::engine) const MAX_REFUSAL: usize = 64 * 1024;

/// The body of a request.
pub(in crate::engine) type Body = UnsyncBoxBody<Bytes, io::Error>;

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
    /// The connection failed, or the response is invalid.
    #[error("{0}")]
    Broken(String),
    /// The response exceeds a limit.
    #[error("it sent {0}")]
    LimitExceeded(String),
    /// The request was not sent, because of an error on this side.
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
    connection: AbortOnDropHandle<()>,
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
    let request = request
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "h2c")
        .body(Empty::new().map_err(|never| match never {}).boxed_unsync())
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

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(in crate::engine) enum BodyError {
    #[error("it is too large")]
    TooLarge,
    #[error("it comes in pieces of a few bytes")]
    TinyPieces,
    #[error(transparent)]
    Broken(#[from] hyper::Error),
}

/// A body of more than this many pieces is rejected if they are smaller on average. Engines send a few KiB at a time;
/// pieces of a single byte would cost thousands of times the work.
const MIN_PIECES: usize = 10_000;
const MIN_AVERAGE_PIECE: usize = 64;

/// Reads a whole body of at most `max` bytes.
///
/// The pieces are copied into one buffer, because a small piece needs more memory than its content.
pub(in crate::engine) async fn read_body(
    mut body: Incoming,
    max: usize,
) -> Result<Vec<u8>, BodyError> {
    let (mut content, mut pieces) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        if content.len() + data.len() > max {
            return Err(BodyError::TooLarge);
        }
        content.extend_from_slice(&data);
        pieces += 1;
        if pieces > MIN_PIECES && content.len() / pieces < MIN_AVERAGE_PIECE {
            return Err(BodyError::TinyPieces);
        }
    }
    Ok(content)
}

impl Answer {
    /// The lines of a build's response, up to its end or to the first error in it.
    pub(in crate::engine) fn build_info(self) -> impl Stream<Item = Result<Info, Failure>> {
        let connection = self.connection;
        let body = self.response.into_body().into_data_stream();
        let reader = StreamReader::new(body.map_err(io::Error::other));
        FramedRead::new(reader, LinesCodec::new_with_max_length(MAX_LINE)).filter_map(move |line| {
            // Moved in here, so that the connection lives as long as the stream.
            let _ = &connection;
            std::future::ready(match line {
                Ok(line) if line.trim().is_empty() => None,
                Ok(line) => Some(parse(&line)),
                Err(error) => Some(Err(unread(error))),
            })
        })
    }
}

/// Why a line cannot be read. (`LinesCodecError` does not return the connection's error as its source.)
fn unread(error: LinesCodecError) -> Failure {
    match error {
        LinesCodecError::MaxLineLengthExceeded => {
            let limit = MAX_LINE >> 20;
            Failure::LimitExceeded(format!("a message of more than {limit} MiB"))
        }
        LinesCodecError::Io(error) => Failure::broken(&error),
    }
}

/// The content of a line.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::engine) enum Info {
    /// A piece of output, from the builders that send plain text.
    Text(String),
    /// An encoded message of BuildKit (`moby.buildkit.v1.StatusResponse`).
    Status(Vec<u8>),
    /// The classic builder pulls a layer of a base image.
    Layer(LayerStatus),
    /// Anything else.
    Other,
}

fn parse(line: &str) -> Result<Info, Failure> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Line<'a> {
        stream: Option<String>,
        status: Option<Cow<'a, str>>,
        id: Option<Cow<'a, str>>,
        #[serde(rename = "progressDetail")]
        progress: Option<Detail>,
        #[serde(borrow)]
        aux: Aux<'a>,
        #[serde(rename = "errorDetail")]
        error: Option<Reason>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Detail {
        current: i64,
        total: i64,
    }
    #[derive(Deserialize)]
    struct Reason {
        message: Option<String>,
        code: Option<i32>,
    }
    let unreadable = |error: String| Failure::Broken(format!("its answer cannot be read: {error}"));
    let Object(line) =
        serde_json::from_str::<Object<Line<'_>>>(line).map_err(|e| unreadable(e.to_string()))?;
    if let Some(Reason {
        message: Some(message),
        code,
    }) = line.error
    {
        return Err(Failure::Reported {
            message,
            exit_code: code.filter(|code| *code != 0),
        });
    }
    if let Aux(Some(message)) = line.aux {
        let message = BASE64_STANDARD.decode(message);
        return message
            .map(Info::Status)
            .map_err(|error| unreadable(error.to_string()));
    }
    if let Some(text) = line.stream {
        return Ok(Info::Text(text));
    }
    let action = match line.status.as_deref() {
        Some("Downloading") => Some(Action::Download),
        Some("Extracting") => Some(Action::Extract),
        _ => None,
    };
    Ok(match (action, line.id, line.progress) {
        (Some(action), Some(layer), Some(Detail { current, total })) => Info::Layer(LayerStatus {
            layer: layer.into_owned(),
            action,
            bytes: u64::try_from(current).unwrap_or(0),
            total: u64::try_from(total).unwrap_or(0),
        }),
        _ => Info::Other,
    })
}

/// The field `aux`: BuildKit's message in base64. Other builders send objects in it, which are ignored.
#[derive(Default)]
struct Aux<'a>(Option<&'a str>);

impl<'de: 'a, 'a> Deserialize<'de> for Aux<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Aux<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64 or an object")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Aux(Some(text)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Aux(None))
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Aux(None))
            }
        }
        from.deserialize_any(Reader)
    }
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
            unread(LinesCodecError::Io(limit())),
            unread(LinesCodecError::Io(io::Error::other(limit()))),
        ] {
            let Failure::Local(error) = failure else {
                panic!("{failure:?}");
            };
            assert_eq!(error.code, crate::Code::ProcessLimit);
        }
    }

    #[test]
    fn a_line_is_output_a_status_or_an_error() {
        let text = |text: &str| Info::Text(text.to_owned());
        for (line, expected) in [
            (
                r#"{"stream":"Step 1/2 : RUN x\n"}"#,
                text("Step 1/2 : RUN x\n"),
            ),
            (
                r#"{"id":"moby.buildkit.trace","aux":"AAEC"}"#,
                Info::Status(vec![0, 1, 2]),
            ),
            (
                r#"{"id":"moby.image.id","aux":{"ID":"sha256:x"}}"#,
                Info::Other,
            ),
            (
                r#"{"aux":null,"stream":null,"error":"without detail"}"#,
                Info::Other,
            ),
            (
                r#"{"status":"Pulling","progressDetail":{"current":1}}"#,
                Info::Other,
            ),
            (
                r#"{"status":"Waiting","progressDetail":{},"id":"05dff5d12d65"}"#,
                Info::Other,
            ),
            (
                r#"{"status":"Extracting","progressDetail":{"current":1,"total":7},"progress":"[>]","id":"05dff5d12d65"}"#,
                Info::Layer(LayerStatus {
                    layer: "05dff5d12d65".to_owned(),
                    action: Action::Extract,
                    bytes: 1,
                    total: 7,
                }),
            ),
        ] {
            assert_eq!(parse(line).unwrap(), expected, "{line}");
        }
        for (code, expected) in [
            ("", None),
            (r#""code":0,"#, None),
            (r#""code":3,"#, Some(3)),
        ] {
            let line = format!(r#"{{"errorDetail":{{{code}"message":"no"}},"error":"no"}}"#);
            let Err(Failure::Reported { message, exit_code }) = parse(&line) else {
                panic!("{line}");
            };
            assert_eq!((message.as_str(), exit_code), ("no", expected));
        }
        for line in [
            "",
            "[]",
            "7",
            "null",
            r#"{"aux":"%"}"#,
            r#"{"aux":"\u0041"}"#,
        ] {
            assert!(matches!(parse(line), Err(Failure::Broken(_))), "{line}");
        }
    }
}
