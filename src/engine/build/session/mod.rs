//! A session of BuildKit: while a build runs, the engine requests what only the client has.
//!
//! `POST /session` upgrades the connection to HTTP/2 with the roles reversed: this library serves gRPC on it,
//! and the engine is the client. It requests the files of the template and credentials of registries, and
//! sends health checks. Each build has its own session, which ends with the build. With a builder other than the
//! engine's own, the HTTP/2 connection goes through the messages of `Control/Session`, and the image can come back over
//! it.
//!
//! bollard has a session too, but it serves neither files nor logins. The services of `bollard-buildkit-proto`
//! are not used, only their messages: each requires all methods of BuildKit's interface, also those that no
//! template may call, and `FileSync` has messages that do not fit (see `wire`).

mod filesync;
mod wire;

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use bollard_buildkit_proto::health::health_check_response::ServingStatus;
use bollard_buildkit_proto::health::{HealthCheckRequest, HealthCheckResponse};
use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use bollard_buildkit_proto::moby::filesync::v1::{CredentialsRequest, CredentialsResponse};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tokio_util::sync::{CancellationToken, PollSender};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::metadata::MetadataValue;
use tonic::server;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::context::Context;
use crate::engine::build::credentials::Credentials;
use crate::engine::build::transfer::ImageLoad;
use crate::engine::connect::address::Address;
use crate::engine::connect::grpc::Grpc;
use crate::engine::connect::request::{Failure, post, upgrade};
use crate::engine::version::Version;

const DIFF_COPY: &str = "/moby.filesync.v1.FileSync/DiffCopy";
const CREDENTIALS: &str = "/moby.filesync.v1.Auth/Credentials";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

const FILE_SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";

/// The methods that every session announces.
const METHODS: [&str; 3] = [DIFF_COPY, CREDENTIALS, HEALTH];

/// What a session is called in BuildKit's log.
const NAME: &str = "libmol";

/// Upper bound of the outgoing pieces that wait in a session over gRPC. Each has at most some tens of KiB.
const QUEUE: usize = 16;

/// The largest header of a request in bytes, as HTTP/2 counts it (RFC 9113, section 6.5.2: each field counts 32
/// bytes more). BuildKit sends each pattern of `.dockerignore` in a field of its own, in which a byte that is
/// not ASCII takes three. The largest ignore file fits: 3 * MAX_IGNORE_FILE for the patterns, and 48 * MAX_PATTERNS for
/// the fields (32 bytes each, and 16 for the name `exclude-patterns`).
const MAX_HEADER: u32 = 2 << 20;

/// Upper bound of concurrent requests of a session. BuildKit has one or two.
const MAX_STREAMS: u32 = 32;

/// How many bytes BuildKit may send before they are read, on all streams together: more than on one, so that an engine
/// that is slow to load an image does not hold up the health checks.
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Upper bound of concurrent file transfers. Each takes two threads and some MiB. Further requests wait.
const MAX_COPIES: usize = 3;

/// What the session serves.
#[derive(Clone)]
pub(super) struct SessionServices {
    pub(super) credentials: Credentials,
    pub(super) tasks: TaskTracker,
    /// The template's files; `None` for a cache lookup, which needs only logins.
    pub(super) context: Option<Arc<Context>>,
    /// Takes the image, if it goes through this process.
    pub(super) image: Option<Arc<ImageLoad>>,
}

/// An open session. Dropping it ends it.
pub(super) struct Session {
    _serving: AbortOnDropHandle<()>,
}

impl Session {
    /// Opens the session `id` with the engine. It keeps the files under `shared_key`, for later sessions with the same
    /// key. `ended` is cancelled when the engine closes the session.
    pub(super) async fn open(
        address: &Address,
        version: Version,
        id: &str,
        shared_key: &str,
        services: SessionServices,
        ended: CancellationToken,
    ) -> Result<Self, Failure> {
        let mut request = post(version, "/session")
            .header("X-Docker-Expose-Session-Uuid", id)
            .header("X-Docker-Expose-Session-Name", NAME)
            .header("X-Docker-Expose-Session-Sharedkey", shared_key);
        for method in METHODS {
            request = request.header("X-Docker-Expose-Session-Grpc-Method", method);
        }
        let connection = upgrade(address, request).await?;
        Ok(Self::serve(connection, services, ended))
    }

    /// Like [`Self::open`], with a builder, over the connection of the build: the session's bytes are the messages of
    /// `Control/Session`.
    pub(super) async fn over(
        grpc: &Grpc,
        id: &str,
        shared_key: &str,
        services: SessionServices,
        ended: CancellationToken,
    ) -> Result<Self, Status> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let outgoing = stream::unfold(receiver, |mut receiver| async {
            let data: Bytes = receiver.recv().await?;
            let data = data.to_vec();
            Some((BytesMessage { data }, receiver))
        });
        let mut request = Request::new(outgoing);
        let metadata = request.metadata_mut();
        for (name, value) in [
            ("x-docker-expose-session-uuid", id),
            ("x-docker-expose-session-name", NAME),
            ("x-docker-expose-session-sharedkey", shared_key),
        ] {
            let value = value.parse();
            metadata.insert(
                name,
                value.map_err(|_| Status::internal("invalid session id or shared key"))?,
            );
        }
        for method in METHODS.into_iter().chain([FILE_SEND]) {
            let value = MetadataValue::from_static(method);
            metadata.append("x-docker-expose-session-grpc-method", value);
        }
        let incoming = grpc.session().session(request).await?.into_inner();
        let incoming = incoming.map(|message| match message {
            Ok(message) => Ok(Bytes::from(message.data)),
            Err(status) => Err(io::Error::other(status)),
        });
        let outgoing =
            PollSender::new(sender).sink_map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe));
        let outgoing = SinkWriter::new(CopyToBytes::new(outgoing));
        let connection = tokio::io::join(StreamReader::new(incoming), outgoing);
        Ok(Self::serve(TokioIo::new(connection), services, ended))
    }

    /// Serves the session on an open connection.
    fn serve<C>(connection: C, services: SessionServices, ended: CancellationToken) -> Self
    where
        C: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    {
        let credentials = services.credentials.clone();
        let services = Arc::new(services);
        let copies = Arc::new(Semaphore::new(MAX_COPIES));
        let serve = service_fn(move |request| {
            let (services, copies) = (Arc::clone(&services), Arc::clone(&copies));
            async move { Ok::<_, Infallible>(route(&services, &copies, request).await) }
        });
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(MAX_HEADER)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .serve_connection(connection, serve);
        let serving = tokio::spawn(async move {
            // BuildKit closes the session after the build. If it closes earlier, the build fails.
            let serving = async {
                let _ = serving.await;
                ended.cancel();
            };
            tokio::join!(serving, credentials.check());
        });
        Self {
            _serving: AbortOnDropHandle::new(serving),
        }
    }
}

/// Serves one request of the engine.
async fn route(
    services: &Arc<SessionServices>,
    copies: &Arc<Semaphore>,
    request: hyper::Request<Incoming>,
) -> hyper::Response<tonic::body::Body> {
    match request.uri().path() {
        DIFF_COPY if let Some(context) = &services.context => {
            let (context, tasks) = (Arc::clone(context), services.tasks.clone());
            let copies = Arc::clone(copies);
            let serve = Method(move |request| {
                let (context, tasks) = (Arc::clone(&context), tasks.clone());
                let copies = Arc::clone(&copies);
                async move {
                    let permit = copies.acquire_owned().await;
                    let permit =
                        permit.map_err(|_| Status::unavailable("the session has ended"))?;
                    filesync::diff_copy(context, tasks, permit, request).await
                }
            });
            server::Grpc::new(ProstCodec::default())
                .streaming(serve, request)
                .await
        }
        CREDENTIALS => {
            let services = Arc::clone(services);
            let serve = Method(move |request: Request<CredentialsRequest>| {
                let services = Arc::clone(&services);
                async move { Ok(credentials(&services, &request.get_ref().host).await) }
            });
            server::Grpc::new(ProstCodec::default())
                .unary(serve, request)
                .await
        }
        HEALTH => {
            let serve = Method(|_: Request<HealthCheckRequest>| async {
                Ok(Response::new(HealthCheckResponse {
                    status: ServingStatus::Serving.into(),
                }))
            });
            server::Grpc::new(ProstCodec::default())
                .unary(serve, request)
                .await
        }
        FILE_SEND if let Some(image) = &services.image => {
            let image = Arc::clone(image);
            let serve = Method(move |request| {
                let image = Arc::clone(&image);
                async move { image.receive(request) }
            });
            server::Grpc::new(ProstCodec::default())
                .streaming(serve, request)
                .await
        }
        _ => Status::unimplemented("libmol does not serve this method").into_http(),
    }
}

async fn credentials(services: &SessionServices, host: &str) -> Response<CredentialsResponse> {
    // With an empty login, the engine pulls anonymously.
    let login = services.credentials.login(host).await.unwrap_or_default();
    Response::new(CredentialsResponse {
        username: login.username,
        secret: login.secret.to_string(),
    })
}

/// Makes a function a method of a tonic service.
struct Method<F>(F);

impl<F, R, A, W> tower_service::Service<Request<R>> for Method<F>
where
    F: FnMut(Request<R>) -> W,
    W: Future<Output = Result<Response<A>, Status>> + Send + 'static,
{
    type Response = Response<A>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<A>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        Box::pin((self.0)(request))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use futures_util::stream::FuturesUnordered;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use hyper::header::CONTENT_TYPE;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::context::{MAX_IGNORE_FILE, MAX_PATTERNS};
    use crate::process::executor::block_on;

    /// A body that never ends.
    type Silent = StreamBody<futures_util::stream::Pending<Result<Frame<Bytes>, Infallible>>>;

    /// An engine that upgrades the connection, and returns a client for its requests.
    async fn engine(listener: UnixListener) -> hyper::client::conn::http2::SendRequest<Silent> {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        sender
    }

    fn diff_copy(patterns: usize) -> hyper::Request<Silent> {
        let mut request = hyper::Request::post(format!("http://session{DIFF_COPY}"))
            .header(CONTENT_TYPE, "application/grpc")
            .header("dir-name", "context")
            .header("exclude-patterns-encoded", "1");
        // Each is a line of two-byte letters, of which each byte is encoded.
        let pattern = "%C3%B6".repeat((MAX_IGNORE_FILE / MAX_PATTERNS - 1) / 2);
        for _ in 0..patterns {
            request = request.header("exclude-patterns", &pattern);
        }
        let silent = StreamBody::new(futures_util::stream::pending());
        request.body(silent).unwrap()
    }

    #[test]
    fn large_headers_are_accepted_and_transfers_are_limited() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::write(tree.path().join("Dockerfile"), "FROM scratch\n").unwrap();
        let beside = tempfile::tempdir().unwrap();
        let socket = beside.path().join("socket");
        block_on(async {
            let listener = UnixListener::bind(&socket).unwrap();
            let engine = tokio::spawn(engine(listener));
            let tasks = TaskTracker::new();
            let settings = crate::options::EngineSettings::default();
            let emit: crate::event::Sink = Arc::new(|_| {});
            let registries = std::collections::BTreeSet::new();
            let context = Context::open(tree.path(), 0, CancellationToken::new()).unwrap();
            let services = SessionServices {
                credentials: Credentials::new(settings, registries, tasks.clone(), emit),
                tasks,
                context: Some(Arc::new(context)),
                image: None,
            };
            let version = Version {
                major: 1,
                minor: 41,
            };
            let address = Address::Unix(socket);
            let ended = CancellationToken::new();
            let _session = Session::open(&address, version, "id", "key", services, ended)
                .await
                .unwrap();
            let mut sender = engine.await.unwrap();
            let largest = sender.send_request(diff_copy(MAX_PATTERNS)).await;
            // A transfer goes on while its answer exists.
            let mut answered = vec![largest.unwrap()];
            let mut asked: FuturesUnordered<_> =
                (0..10).map(|_| sender.send_request(diff_copy(0))).collect();
            while answered.len() < MAX_COPIES {
                answered.push(asked.next().await.unwrap().unwrap());
            }
            for answer in &answered {
                let headers = answer.headers();
                assert_eq!(answer.status(), 200, "{headers:?}");
                assert_eq!(headers.get("grpc-status"), None, "{headers:?}");
            }
            // The others wait.
            let more = tokio::time::timeout(Duration::from_millis(300), asked.next());
            assert!(more.await.is_err());
        });
    }
}
