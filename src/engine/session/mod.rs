//! A session of BuildKit: while a build runs, the engine calls us for what only the client has.
//!
//! `POST /session` turns a connection round. From then on we serve gRPC on it, and the engine is the
//! client: it asks for the files of the template, for credentials of registries, and now and then
//! whether we are still there. Every build has a session of its own, which ends with it.

mod filesync;
mod wire;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Polled, Poll};

use bollard::ClientVersion;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::credentials::Credentials;
use super::endpoint::Address;
use super::request::{Failure, post, send};
use crate::context::Context;
use wire::{CredentialsRequest, CredentialsResponse, HealthCheckRequest, HealthCheckResponse};

const DIFF_COPY: &str = "/moby.filesync.v1.FileSync/DiffCopy";
const CREDENTIALS: &str = "/moby.filesync.v1.Auth/Credentials";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// What the engine is told that it may call.
const EXPOSED: [&str; 3] = [DIFF_COPY, CREDENTIALS, HEALTH];

/// What the engine may ask for.
pub(super) struct Offer {
    pub(super) context: Arc<Context>,
    pub(super) credentials: Credentials,
    pub(super) tasks: TaskTracker,
}

/// An open session. It ends when it is dropped.
pub(super) struct Session {
    _serving: AbortOnDropHandle<()>,
}

impl Session {
    /// Opens the session `id`. What the engine gets over it is kept under `shared_key`, for the next
    /// session with the same key.
    pub(super) async fn open(
        address: &Address,
        version: &ClientVersion,
        id: &str,
        shared_key: &str,
        offer: Offer,
    ) -> Result<Self, Failure> {
        let mut request = post(version, "/session")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "h2c")
            .header("X-Docker-Expose-Session-Uuid", id)
            .header("X-Docker-Expose-Session-Name", "libmol")
            .header("X-Docker-Expose-Session-Sharedkey", shared_key);
        for method in EXPOSED {
            request = request.header("X-Docker-Expose-Session-Grpc-Method", method);
        }
        let request = request
            .body(Empty::new().map_err(|never| match never {}).boxed_unsync())
            .map_err(|error| Failure::broken(&error))?;
        let answer = send(address, request).await?;
        let connection = hyper::upgrade::on(answer.response)
            .await
            .map_err(|error| Failure::broken(&error))?;

        let offer = Arc::new(offer);
        let serve = service_fn(move |request| {
            let offer = Arc::clone(&offer);
            async move { Ok::<_, Infallible>(route(&offer, request).await) }
        });
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(connection, serve);
        let serving = tokio::spawn(async move {
            // The engine hangs up when it has what it wants; if it was too early, the build says so.
            let _ = serving.await;
        });
        Ok(Self {
            _serving: AbortOnDropHandle::new(serving),
        })
    }
}

/// One call of the engine.
async fn route(
    offer: &Arc<Offer>,
    request: hyper::Request<Incoming>,
) -> hyper::Response<tonic::body::Body> {
    match request.uri().path() {
        DIFF_COPY => {
            let offer = Arc::clone(offer);
            let serve = Method(move |request| {
                let (context, tasks) = (Arc::clone(&offer.context), offer.tasks.clone());
                filesync::diff_copy(context, tasks, request)
            });
            Grpc::new(ProstCodec::default())
                .streaming(serve, request)
                .await
        }
        CREDENTIALS => {
            let offer = Arc::clone(offer);
            let serve = Method(move |request: Request<CredentialsRequest>| {
                let offer = Arc::clone(&offer);
                async move { Ok(credentials(&offer, &request.get_ref().host).await) }
            });
            Grpc::new(ProstCodec::default()).unary(serve, request).await
        }
        HEALTH => {
            let serve = Method(|_: Request<HealthCheckRequest>| async {
                Ok(Response::new(HealthCheckResponse { status: 1 }))
            });
            Grpc::new(ProstCodec::default()).unary(serve, request).await
        }
        _ => Status::unimplemented("libmol does not offer this").into_http(),
    }
}

async fn credentials(offer: &Offer, host: &str) -> Response<CredentialsResponse> {
    // Without any, the engine asks the registry as nobody in particular.
    let login = offer.credentials.login(host).await.unwrap_or_default();
    Response::new(CredentialsResponse {
        username: login.username,
        secret: login.secret.to_string(),
    })
}

/// A function, as tonic wants a method of a service.
struct Method<F>(F);

impl<F, R, A, W> tower_service::Service<Request<R>> for Method<F>
where
    F: FnMut(Request<R>) -> W,
    W: Future<Output = Result<Response<A>, Status>> + Send + 'static,
{
    type Response = Response<A>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<A>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Polled<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        Box::pin((self.0)(request))
    }
}
