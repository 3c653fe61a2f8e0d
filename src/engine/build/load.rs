//! The way of a builder's image into the engine: the builder sends the image's archive over the session, and each piece
//! goes on to the engine at once. There is no file in between, and the engine gives the image its tag only after the
//! end of the archive.

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
use crate::engine::connect::request::{Failure, post, send};
use crate::error::{Code, Error};

/// Receives the image of one build.
#[derive(Debug)]
pub(super) struct ImageLoad {
    engine: Engine,
    /// Set when the engine has the image, or why not.
    result: OnceLock<Result<(), Error>>,
    /// The archive broke off before its end.
    broke_off: AtomicBool,
}

impl ImageLoad {
    pub(super) fn new(engine: &Engine) -> Self {
        Self {
            engine: engine.clone(),
            result: OnceLock::new(),
            broke_off: AtomicBool::new(false),
        }
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
    pub(super) fn receive(
        self: Arc<Self>,
        request: Request<Streaming<BytesMessage>>,
    ) -> Response<impl Stream<Item = Result<BytesMessage, Status>>> {
        let pieces = request.into_inner();
        let loading = async move {
            let loaded = self.load(pieces).await;
            if self.broke_off.load(Ordering::Relaxed) {
                // The builder knows why.
                return Some(Err(Status::aborted("the archive of the image broke off")));
            }
            let result = match loaded {
                Ok(()) => Ok(()),
                Err(failure) => Err(self.error(failure).await),
            };
            let answer = result.as_ref().err();
            let answer = answer.map(|error| Err(Status::internal(error.message.clone())));
            // A second archive would be a mistake of the builder: the first one counts.
            let _ = self.result.set(result);
            answer
        };
        Response::new(futures_util::stream::once(loading).filter_map(std::future::ready))
    }

    async fn load(self: &Arc<Self>, pieces: Streaming<BytesMessage>) -> Result<(), Failure> {
        let this = Arc::clone(self);
        // An error aborts the request, so that the engine does not take what it has for a whole archive.
        let pieces = pieces.map_err(move |status| {
            this.broke_off.store(true, Ordering::Relaxed);
            io::Error::other(status)
        });
        let body = StreamBody::new(pieces.map_ok(|piece| Frame::data(Bytes::from(piece.data))));
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
