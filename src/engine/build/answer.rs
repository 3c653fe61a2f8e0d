//! The engine's answer to a build: one JSON object on each line.

use std::{fmt, io};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;

use crate::engine::build::pull::{Action, LayerStatus};
use crate::engine::connect::request::{Answer, Failure};
use crate::net::json::Object;

/// The longest line of a response. BuildKit sends the output of a step in messages of about 1 MiB, and drops what
/// exceeds 2 MiB for one step. Base64 makes that a third longer.
const MAX_LINE: usize = 8 << 20;

/// The content of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BuildMessage {
    /// A piece of output, from the builders that send plain text.
    Text(String),
    /// An encoded message of BuildKit (`moby.buildkit.v1.StatusResponse`).
    Status(Vec<u8>),
    /// The classic builder pulls a layer of a base image.
    Layer(LayerStatus),
    /// Anything else.
    Other,
}

/// The lines of a build's answer, up to its end or to the first error in it.
pub(super) fn lines(answer: Answer) -> impl Stream<Item = Result<BuildMessage, Failure>> {
    let Answer {
        response,
        connection,
    } = answer;
    let body = response.into_body().into_data_stream();
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

/// Why a line cannot be read. (`LinesCodecError` does not return the connection's error as its source.)
fn unread(error: LinesCodecError) -> Failure {
    match error {
        LinesCodecError::MaxLineLengthExceeded => {
            let limit = MAX_LINE >> 20;
            Failure::InvalidAnswer(format!("a message of more than {limit} MiB"))
        }
        LinesCodecError::Io(error) => Failure::broken(&error),
    }
}

fn parse(line: &str) -> Result<BuildMessage, Failure> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Line<'a> {
        stream: Option<String>,
        status: Option<String>,
        id: Option<String>,
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
        /// Set if these are no bytes: newer engines report an extraction in seconds.
        units: Option<serde::de::IgnoredAny>,
    }
    impl Detail {
        fn bytes(&self, count: i64) -> u64 {
            let bytes = self.units.is_none().then_some(count);
            bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or(0)
        }
    }
    #[derive(Deserialize)]
    struct Reason {
        message: Option<String>,
        code: Option<i32>,
    }
    let unreadable =
        |error: String| Failure::InvalidAnswer(format!("an answer that cannot be read: {error}"));
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
            .map(BuildMessage::Status)
            .map_err(|error| unreadable(error.to_string()));
    }
    if let Some(text) = line.stream {
        return Ok(BuildMessage::Text(text));
    }
    let action = match line.status.as_deref() {
        Some("Downloading") => Some(Action::Download),
        Some("Extracting") => Some(Action::Extract),
        _ => None,
    };
    Ok(match (action, line.id, line.progress) {
        (Some(action), Some(layer), Some(detail)) => BuildMessage::Layer(LayerStatus {
            layer,
            action,
            bytes: detail.bytes(detail.current),
            total: detail.bytes(detail.total),
            complete: false,
        }),
        _ => BuildMessage::Other,
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
    fn a_process_limit_is_recognised_in_a_failed_read() {
        let limit = || io::Error::from_raw_os_error(libc::EMFILE);
        for error in [limit(), io::Error::other(limit())] {
            let Failure::Local(error) = unread(LinesCodecError::Io(error)) else {
                panic!("not a limit");
            };
            assert_eq!(error.code, crate::Code::ProcessLimit);
        }
    }

    #[test]
    fn a_line_is_output_a_status_or_an_error() {
        let text = |text: &str| BuildMessage::Text(text.to_owned());
        for (line, expected) in [
            (
                r#"{"stream":"Step 1/2 : RUN x\n"}"#,
                text("Step 1/2 : RUN x\n"),
            ),
            (
                r#"{"id":"moby.buildkit.trace","aux":"AAEC"}"#,
                BuildMessage::Status(vec![0, 1, 2]),
            ),
            (
                r#"{"id":"moby.image.id","aux":{"ID":"sha256:x"}}"#,
                BuildMessage::Other,
            ),
            (
                r#"{"aux":null,"stream":null,"error":"without detail"}"#,
                BuildMessage::Other,
            ),
            (
                r#"{"status":"Pulling","progressDetail":{"current":1}}"#,
                BuildMessage::Other,
            ),
            (
                r#"{"status":"Waiting","progressDetail":{},"id":"05dff5d12d65"}"#,
                BuildMessage::Other,
            ),
            (
                r#"{"status":"Extracting","progressDetail":{"current":1,"total":7},"progress":"[>]","id":"05dff5d12d65"}"#,
                BuildMessage::Layer(LayerStatus {
                    layer: "05dff5d12d65".to_owned(),
                    action: Action::Extract,
                    bytes: 1,
                    total: 7,
                    complete: false,
                }),
            ),
            (
                r#"{"status":"Extracting","progressDetail":{"current":1,"units":"s"},"id":"05dff5d12d65"}"#,
                BuildMessage::Layer(LayerStatus {
                    layer: "05dff5d12d65".to_owned(),
                    action: Action::Extract,
                    bytes: 0,
                    total: 0,
                    complete: false,
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
            assert!(
                matches!(parse(line), Err(Failure::InvalidAnswer(_))),
                "{line}"
            );
        }
    }
}
