//! A build on a builder other than the engine's: BuildKit's own API, `moby.buildkit.v1.Control`.
//!
//! `Session`, `Solve` and `Status` go over one connection: behind one address there may be several daemons, and each
//! knows only its own builds.

use std::collections::HashMap;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{
    CacheOptions, CacheOptionsEntry, SolveRequest, SolveResponse, StatusRequest,
};
use bytes::Buf;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt, TryStreamExt};
use hyper::http::uri::PathAndQuery;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstEncoder;

use crate::context::DOCKERFILE;
use crate::engine::build::answer::BuildMessage;
use crate::engine::build::session::{Session, SessionServices};
use crate::engine::build::shared_cache::CacheUse;
use crate::engine::build::transfer::Transfer;
use crate::engine::build::{Build, session_id};
use crate::engine::builders::{Node, Trouble};
use crate::engine::connect::grpc::{END_TIMEOUT, Grpc};
use crate::engine::connect::request::Failure;
use crate::options::RuntimeCache;

const STATUS: &str = "/moby.buildkit.v1.Control/Status";

/// What is written to a shared cache: also the results of steps whose files are not in the image, as in other stages.
const CACHE_MODE: &str = "max";

/// How long to wait for the last progress after a build has ended.
const LAST_PROGRESS: Duration = Duration::from_secs(1);

type Solved = Result<Response<SolveResponse>, Status>;

/// A running build.
struct Running {
    progress: BoxStream<'static, Result<Vec<u8>, Status>>,
    solve: AbortOnDropHandle<Solved>,
    transfer: Transfer,
    /// Set when the build has ended: its result, and the deadline for its last progress.
    result: Option<(Result<(), Failure>, Instant)>,
    grpc: Grpc,
    _session: Session,
}

/// Starts a build on a node. The stream ends with the build, or has its failure as the last item; dropping it cancels
/// the build.
pub(super) async fn solve(
    node: &Node,
    build: &Build<'_>,
    cache: CacheUse<'_>,
    transfer: Transfer,
    services: SessionServices,
    ended: CancellationToken,
) -> Result<impl Stream<Item = Result<BuildMessage, Failure>> + use<>, Failure> {
    let grpc = node.connect(true).await.map_err(connection_failure)?;
    let id = session_id();
    let session = Session::over(&grpc, &id, build.commit, services, ended).await;
    let session = match session {
        Ok(session) => session,
        Err(status) => {
            return Err(connection_failure(
                Trouble::of_request(&grpc, &status).await,
            ));
        }
    };
    let request = build.solve_request(&id, cache, &transfer);
    let status = StatusRequest {
        r#ref: request.r#ref.clone(),
    };
    let mut client = grpc.control();
    let solve = tokio::spawn(async move { client.solve(request).await });
    let mut client = grpc.raw();
    let progress = async move {
        client
            .ready()
            .await
            .map_err(|error| Status::from_error(error.into()))?;
        let path = PathAndQuery::from_static(STATUS);
        let answer = client.server_streaming(Request::new(status), path, Undecoded);
        Ok::<_, Status>(answer.await?.into_inner())
    };
    let running = Running {
        progress: stream::once(progress).try_flatten().boxed(),
        solve: AbortOnDropHandle::new(solve),
        transfer,
        result: None,
        grpc,
        _session: session,
    };
    Ok(stream::unfold(Some(running), |running| async {
        let mut running = running?;
        match running.next().await {
            Ok(Some(status)) => Some((Ok(BuildMessage::Status(status)), Some(running))),
            Ok(None) => None,
            // The session is still needed: whether it has ended tells what failed.
            Err(failure) => Some((Err(failure), Some(running))),
        }
    }))
}

impl Build<'_> {
    /// The parameters that the docker CLI's `build` would give, and the transfer of the image as the result.
    fn solve_request(&self, id: &str, cache: CacheUse<'_>, transfer: &Transfer) -> SolveRequest {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut attributes = HashMap::from([
            pair("filename", DOCKERFILE),
            pair("platform", self.platform.as_str()),
        ]);
        for (prefix, values) in [("label:", &self.labels), ("build-arg:", &self.build_args)] {
            attributes.extend(
                values
                    .iter()
                    .map(|(name, value)| pair(&format!("{prefix}{name}"), value)),
            );
        }
        let exporter = transfer.exporter(self.reference);
        let entry = |cache: &RuntimeCache, more: &[(&str, &str)]| CacheOptionsEntry {
            r#type: "registry".to_owned(),
            attrs: HashMap::from_iter(
                [pair("ref", &cache.reference())]
                    .into_iter()
                    .chain(more.iter().map(|(name, value)| pair(name, value))),
            ),
        };
        let read = cache.read.map(|cache| entry(cache, &[]));
        let written = cache
            .write
            .map(|cache| entry(cache, &[("mode", CACHE_MODE), ("ignore-error", "true")]));
        if cache.no_cache {
            // For all stages.
            attributes.extend([pair("no-cache", "")]);
        }
        if let Some(CacheOptionsEntry { r#type, attrs }) = &read {
            // The frontend asks for it by this attribute; its JSON has Go's names.
            let entry = serde_json::json!([{ "Type": r#type, "Attrs": attrs }]);
            attributes.insert("cache-imports".to_owned(), entry.to_string());
        }
        SolveRequest {
            r#ref: id.to_owned(),
            session: id.to_owned(),
            frontend: "dockerfile.v0".to_owned(),
            frontend_attrs: attributes,
            // Before 0.13, BuildKit read only these two.
            exporter_deprecated: exporter.r#type.clone(),
            exporter_attrs_deprecated: exporter.attrs.clone(),
            exporters: vec![exporter],
            cache: Some(CacheOptions {
                imports: read.into_iter().collect(),
                exports: written.into_iter().collect(),
                ..CacheOptions::default()
            }),
            ..SolveRequest::default()
        }
    }
}

impl Running {
    /// The next progress, or `None` after a build that has succeeded.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            let until = self.result.as_ref().map(|(_, until)| *until);
            tokio::select! {
                biased;
                item = self.progress.next() => match item {
                    Some(Ok(status)) => return Ok(Some(status)),
                    Some(Err(status)) => return self.without_progress(Some(status)).await,
                    None => return self.without_progress(None).await,
                },
                result = &mut self.solve, if until.is_none() => {
                    let result = outcome(&self.grpc, &self.transfer, result).await;
                    self.result = Some((result, Instant::now() + LAST_PROGRESS));
                }
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    return self.without_progress(None).await;
                }
            }
        }
    }

    /// The result of the build, after its progress has ended. `why`, the error that ended the progress, matters only if
    /// `Solve` does not end soon after it.
    async fn without_progress(&mut self, why: Option<Status>) -> Result<Option<Vec<u8>>, Failure> {
        let result = match (self.result.take(), why) {
            (Some((result, _)), _) => result,
            (None, None) => {
                let result = (&mut self.solve).await;
                outcome(&self.grpc, &self.transfer, result).await
            }
            (None, Some(status)) => {
                match tokio::time::timeout(END_TIMEOUT, &mut self.solve).await {
                    Ok(result) => outcome(&self.grpc, &self.transfer, result).await,
                    Err(_) if status.code() == Code::OutOfRange => Err(Failure::InvalidAnswer(
                        "a message of progress that is too large".to_owned(),
                    )),
                    Err(_) => Err(connection_failure(
                        Trouble::of_request(&self.grpc, &status).await,
                    )),
                }
            }
        };
        result.map(|()| None)
    }
}

/// What the end of `Solve` means.
async fn outcome(
    grpc: &Grpc,
    transfer: &Transfer,
    result: Result<Solved, tokio::task::JoinError>,
) -> Result<(), Failure> {
    match result {
        Ok(Ok(result)) => {
            if let Transfer::ThroughRegistry(image) = transfer {
                image.pushed(result.into_inner().exporter_response);
            }
            Ok(())
        }
        Ok(Err(status)) => Err(failed(grpc, status).await),
        Err(error) => Err(Failure::broken(&error)),
    }
}

/// What the failure of `Solve` means.
async fn failed(grpc: &Grpc, status: Status) -> Failure {
    // When a daemon shuts down, it first cancels its builds, and then closes its connections.
    let stopped = matches!(status.code(), Code::Unavailable | Code::Cancelled)
        && tokio::time::timeout(END_TIMEOUT, grpc.ended.cancelled())
            .await
            .is_ok();
    if stopped || std::error::Error::source(&status).is_some() || grpc.ended.is_cancelled() {
        return connection_failure(Trouble::of_request(grpc, &status).await);
    }
    Failure::Reported {
        message: status.message().to_owned(),
        exit_code: None,
    }
}

fn connection_failure(trouble: Trouble) -> Failure {
    match trouble.limit {
        Some(limit) => Failure::Local(*limit),
        None => Failure::Broken(trouble.why),
    }
}

/// Leaves the messages of `Status` undecoded: the reader of the graph decodes them within limits.
struct Undecoded;

impl Codec for Undecoded {
    type Encode = StatusRequest;
    type Decode = Vec<u8>;
    type Encoder = ProstEncoder<StatusRequest>;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Decoder for Undecoded {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}
