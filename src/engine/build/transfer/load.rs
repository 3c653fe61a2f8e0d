//! Through this process: the builder sends the image's archive over the session, and each piece goes on to the engine at
//! once. There is no file in between, and the engine gives the image its tag only after the end of the archive.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bollard_buildkit_proto::moby::filesync::packet::BytesMessage;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::CONTENT_TYPE;
use tonic::{Request, Response, Status, Streaming};

use crate::engine::Engine;
use crate::engine::build::answer;
use crate::engine::build::full::{FullDisk, HINT_FULL_DISK};
use crate::engine::build::place::Place;
use crate::engine::build::transfer::TransferProgress;
use crate::engine::connect::request::{Failure, post, send};
use crate::error::{Code, Error};

/// Receives the image of one build.
#[derive(Debug)]
pub(in crate::engine::build) struct ImageLoad {
    engine: Engine,
    moved: Arc<TransferProgress>,
    /// Set when the engine has the image, or why not.
    result: OnceLock<Result<(), Error>>,
    /// The builder has begun to send an archive.
    begun: AtomicBool,
    /// The archive is truncated.
    truncated: Arc<AtomicBool>,
}

impl ImageLoad {
    pub(super) fn new(engine: &Engine) -> Self {
        Self {
            engine: engine.clone(),
            moved: Arc::default(),
            result: OnceLock::new(),
            begun: AtomicBool::new(false),
            truncated: Arc::default(),
        }
    }

    pub(super) fn moved(&self) -> &Arc<TransferProgress> {
        &self.moved
    }

    /// Why the engine does not have the image, if the builder has sent it.
    pub(super) fn failure(&self) -> Option<&Error> {
        self.result.get().and_then(|result| result.as_ref().err())
    }

    /// Whether the engine has the image.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self.result.get(), Some(Ok(())))
    }

    /// Serves the builder's request to take the archive. The answer ends when the engine has the image.
    pub(in crate::engine::build) fn receive(
        self: Arc<Self>,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<impl Stream<Item = Result<BytesMessage, Status>>>, Status> {
        if self.begun.swap(true, Ordering::Relaxed) {
            return Err(Status::already_exists("a build has one image"));
        }
        let pieces = request.into_inner();
        let loading = async move {
            let loaded = self.load(pieces).await;
            if self.truncated.load(Ordering::Relaxed) {
                // Not the engine's error: the builder reports the cause.
                return Some(Err(Status::aborted(
                    "the archive of the image is truncated",
                )));
            }
            let result = match loaded {
                Ok(()) => Ok(()),
                Err(failure) => Err(self.error(failure).await),
            };
            let answer = result.as_ref().err();
            let answer = answer.map(|error| Err(Status::internal(error.message())));
            let _ = self.result.set(result);
            answer
        };
        let answer = futures_util::stream::once(loading).filter_map(std::future::ready);
        Ok(Response::new(answer))
    }

    async fn load(&self, pieces: Streaming<BytesMessage>) -> Result<(), Failure> {
        let pieces = pieces.map_ok(|piece| Bytes::from(piece.data));
        let moving = self.moved.begin();
        let pieces = pieces.inspect_ok(move |piece| moving.add(piece.len()));
        let body = StreamBody::new(whole(pieces, Arc::clone(&self.truncated)).map_ok(Frame::data));
        let request = post(self.engine.api.version, "/images/load?quiet=1")
            .header(CONTENT_TYPE, "application/x-tar")
            .body(body.boxed_unsync())
            .map_err(|error| Failure::broken(&error))?;
        let answer = send(&self.engine.address, request).await?;
        let mut lines = std::pin::pin!(answer::lines(answer));
        while let Some(line) = lines.next().await {
            line?;
        }
        Ok(())
    }

    /// The error of an engine that does not take the image.
    async fn error(&self, failure: Failure) -> Error {
        let place = Place {
            engine: &self.engine,
            worker: None,
        };
        let why = match failure {
            Failure::Local(error) => return error,
            Failure::Broken(why) => format!("the connection was lost: {why}"),
            failure => failure.to_string(),
        };
        let message = format!("{place} cannot load the image that the builder has made: {why}");
        match place.full_disk(&why, "").await {
            Some(FullDisk::Engine { folder, free }) => Error::new(
                Code::BuildFailed,
                format!("{message}; its disk is full: {} ({free})", folder.display()),
            )
            .hint(HINT_FULL_DISK),
            _ => Error::new(Code::EngineUnreachable, message).hint(
                "check the engine's log and its free space (docker system df), and try again",
            ),
        }
    }
}

/// Passes on the pieces of a tar archive, and ends with an error if the archive is incomplete. The error aborts the
/// request, so that the engine does not load a truncated image. It also sets `truncated`.
///
/// The check is needed because a builder that is stopped, or fails, may end the stream without an error. A complete
/// archive ends with two blocks of zeros, which Go's `tar.Writer` writes only after a complete last file. The structure
/// of the archive is not parsed: a stream that ends inside a file, after 1 KiB of zeros, passes, and the engine refuses
/// it, because the rest of the file is missing.
fn whole(
    pieces: impl Stream<Item = Result<Bytes, Status>> + Send + 'static,
    truncated: Arc<AtomicBool>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let mut zeros = 0;
    let checked = pieces.map(Some).chain(futures_util::stream::iter([None]));
    checked.filter_map(move |piece| {
        let result = match piece {
            Some(Ok(data)) => {
                let at_end = data.iter().rev().take_while(|byte| **byte == 0).count();
                zeros = if at_end == data.len() {
                    zeros + at_end
                } else {
                    at_end
                };
                Some(Ok(data))
            }
            Some(Err(status)) => Some(Err(io::Error::other(status))),
            None if zeros < END_OF_ARCHIVE => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            None => None,
        };
        if matches!(result, Some(Err(_))) {
            truncated.store(true, Ordering::Relaxed);
        }
        std::future::ready(result)
    })
}

/// The zeros at the end of a tar archive (POSIX, pax).
const END_OF_ARCHIVE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::executor::block_on;

    /// Whether an archive in these pieces is taken for whole.
    fn is_whole(pieces: &[&[u8]]) -> bool {
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        let truncated = Arc::<AtomicBool>::default();
        let read = whole(futures_util::stream::iter(pieces), Arc::clone(&truncated));
        let read: Vec<_> = block_on(read.collect());
        assert_eq!(
            read.last().is_some_and(Result::is_err),
            truncated.load(Ordering::Relaxed)
        );
        !truncated.load(Ordering::Relaxed)
    }

    #[test]
    fn an_archive_without_its_end_is_not_whole() {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        archive
            .append_data(&mut header, "file", &b"one"[..])
            .unwrap();
        let archive = archive.into_inner().unwrap();
        assert!(is_whole(&[&archive]));
        let (begin, end) = archive.split_at(archive.len() - 700);
        assert!(is_whole(&[begin, &[], end]));
        for length in [0, 1, 512, 515, archive.len() - 1024, archive.len() - 600] {
            assert!(!is_whole(&[&archive[..length]]), "{length}");
        }
        assert!(!is_whole(&[]));
    }
}
