//! The bodies of answers, within limits.

use http_body_util::BodyExt;
use hyper::body::Incoming;

/// The most bytes of an error response that are read.
pub(in crate::engine) const MAX_REFUSAL: usize = 64 * 1024;

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
