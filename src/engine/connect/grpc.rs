//! gRPC over a connection that is open already: to BuildKit in the engine, and to a builder.
//!
//! tonic's own `Channel` dials and reconnects. Here a lost connection is the end of a build, and a connection may have
//! been upgraded.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::rt::{Executor, Read, Write};
use hyper::{Request, Response, Uri};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;

/// The origin of the requests. Nothing resolves it.
const ORIGIN: &str = "http://buildkit";

/// How long to wait after a failure for its cause to show: the end of the session, of the connection, or of `Solve`.
pub(in crate::engine) const END_TIMEOUT: Duration = Duration::from_millis(500);

/// The largest answer that is decoded. It has about ten platforms for each worker, and two bytes of it can decode to
/// hundreds.
const MAX_ANSWER: usize = 256 << 10;

/// The largest piece of a session, and of a build's progress.
const MAX_PIECE: usize = 4 << 20;
const MAX_PROGRESS: usize = 8 << 20;

/// An open connection. Dropping it closes it.
pub(in crate::engine) struct Grpc {
    channel: Channel,
    /// Cancelled when the connection ends.
    pub(in crate::engine) ended: CancellationToken,
    /// Why it ended, unless it was closed in order.
    error: Arc<OnceLock<hyper::Error>>,
    _close: DropGuard,
    _connection: AbortOnDropHandle<()>,
}

impl Grpc {
    /// Speaks HTTP/2 on an open connection.
    pub(in crate::engine) async fn over<C>(connection: C) -> hyper::Result<Self>
    where
        C: Read + Write + Send + Unpin + 'static,
    {
        let closed = CancellationToken::new();
        let (sender, connection) = handshake(Until(closed.clone()), connection).await?;
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        let error = Arc::new(OnceLock::new());
        let set_error = Arc::clone(&error);
        Ok(Self {
            channel: Channel(sender),
            ended,
            error,
            _close: closed.drop_guard(),
            _connection: AbortOnDropHandle::new(tokio::spawn(async move {
                if let Err(error) = connection.await {
                    let _ = set_error.set(error);
                }
                drop(end);
            })),
        })
    }

    /// Why the connection ended, if it did. The requests on it fail too, but may have no reason.
    pub(in crate::engine) async fn error(&self) -> Option<&hyper::Error> {
        let ended = tokio::time::timeout(END_TIMEOUT, self.ended.cancelled()).await;
        self.error.get().filter(|_| ended.is_ok())
    }

    /// A client for BuildKit's `Control` service.
    pub(in crate::engine) fn control(&self) -> ControlClient<Channel> {
        ControlClient::with_origin(self.channel.clone(), Uri::from_static(ORIGIN))
            .max_decoding_message_size(MAX_ANSWER)
    }

    /// Like [`Self::control`], with the message limit of a session.
    pub(in crate::engine) fn session(&self) -> ControlClient<Channel> {
        self.control().max_decoding_message_size(MAX_PIECE)
    }

    /// A client for a method whose generated one does not fit.
    pub(in crate::engine) fn raw(&self) -> tonic::client::Grpc<Channel> {
        tonic::client::Grpc::with_origin(self.channel.clone(), Uri::from_static(ORIGIN))
            .max_decoding_message_size(MAX_PROGRESS)
    }
}

/// Runs hyper's tasks until the token is cancelled. One of them has the socket, and would wait for a peer that does not
/// read.
#[derive(Clone)]
struct Until(CancellationToken);

impl<F> Executor<F> for Until
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let token = self.0.clone();
        tokio::spawn(async move {
            token.run_until_cancelled(task).await;
        });
    }
}

/// The connection, as tonic's clients take one.
#[derive(Clone)]
pub(in crate::engine) struct Channel(SendRequest<Body>);

impl tower_service::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
