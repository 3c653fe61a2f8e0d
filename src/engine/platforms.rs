//! Can the engine build for a platform that is not its own?
//!
//! Only BuildKit knows what its machine can run: it tries out which emulations the kernel has. It says
//! so over `/grpc`, also where another builder is used. Podman does not say, so there it shows when the
//! first program is started.

use bollard_stubs::moby::buildkit::v1::{ListWorkersRequest, ListWorkersResponse};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, TE};
use hyper_util::rt::TokioExecutor;
use prost::Message;
use tokio_util::task::AbortOnDropHandle;

use super::{BUILDKIT_API, Builder, CALL_TIMEOUT, Engine};
use crate::engine::connect::request::{Failure, post, upgrade, whole};
use crate::error::{Code, Error, Result};
use crate::event::{Event, Sink};
use crate::names::image::Platform;

const LIST_WORKERS: &str = "/moby.buildkit.v1.Control/ListWorkers";

/// A gRPC message begins with a flag (0: not compressed) and its length in four bytes.
const PREFIX: usize = 5;

/// The longest answer that is read.
const MAX_ANSWER: usize = 1024 * 1024;

impl Engine {
    /// Warns if the platform is emulated.
    ///
    /// # Errors
    ///
    /// [`Code::PlatformUnsupported`] if the engine cannot run it.
    pub(crate) async fn check_platform(&self, platform: &Platform, emit: &Sink) -> Result<()> {
        let native = self.native_platform();
        if native
            .as_ref()
            .is_ok_and(|native| native.os_arch() == platform.os_arch())
        {
            return Ok(());
        }
        let native =
            native.map_or_else(|_| "something else".to_owned(), |native| native.to_string());
        let Some(platforms) = self.platforms().await else {
            return Ok(());
        };
        let endpoint = &self.endpoint;
        let (os, arch) = platform.os_arch();
        if !platforms
            .iter()
            .any(|(o, a)| o == os && (a == arch || runs_by_itself(a, arch)))
        {
            return Err(Error::new(
                Code::PlatformUnsupported,
                format!(
                    "the engine at {endpoint} runs {native} and cannot run {platform}: there is no \
                     emulation for it"
                ),
            )
            .hint(unsupported_hint(platform)));
        }
        if !runs_by_itself(native.split('/').nth(1).unwrap_or_default(), arch) {
            emit(Event::warning(
                format!(
                    "the engine at {endpoint} runs {native} and emulates {platform}: this will be slow"
                ),
                "a first build can take ten minutes and more; MOLECULE_IMAGE_PLATFORM=native builds \
                 for the engine itself",
            ));
        }
        Ok(())
    }

    /// What the engine's machine can run, as pairs of system and processor; `None` if it does not say.
    async fn platforms(&self) -> Option<Vec<(String, String)>> {
        if self.api.version < BUILDKIT_API || self.builder == Builder::Buildah {
            return None;
        }
        let workers = tokio::time::timeout(CALL_TIMEOUT, self.list_workers());
        let workers = workers.await.ok()?.ok()?;
        let platforms = workers
            .record
            .into_iter()
            .flat_map(|worker| worker.platforms);
        let pairs: Vec<_> = platforms.map(|p| (p.os, p.architecture)).collect();
        (!pairs.is_empty()).then_some(pairs)
    }

    async fn list_workers(&self) -> std::result::Result<ListWorkersResponse, Failure> {
        let broken = |error: &(dyn std::error::Error + 'static)| Failure::broken(error);
        let connection = upgrade(&self.address, post(self.api.version, "/grpc")).await?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), connection)
                .await
                .map_err(|error| broken(&error))?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = connection.await;
        }));

        let request = hyper::Request::post(format!("http://buildkit{LIST_WORKERS}"))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(Full::new(framed(&ListWorkersRequest::default())))
            .map_err(|error| broken(&error))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| broken(&error))?;
        let body = whole(response.into_body(), MAX_ANSWER).await;
        let body = body.map_err(|error| broken(&error))?;
        let message = body.get(PREFIX..).unwrap_or_default();
        ListWorkersResponse::decode(message).map_err(|error| broken(&error))
    }
}

/// What to do where the platform cannot be run. BuildKit's list may be 20 seconds old (since 0.14, in Docker 27).
pub(super) fn unsupported_hint(platform: &Platform) -> String {
    match platform.os_arch() {
        ("linux", arch) => format!(
            "register emulation on the engine's machine (docker run --privileged --rm \
             tonistiigi/binfmt --install {arch}, or the package qemu-user-static) and try again 20 seconds \
             later, or set MOLECULE_IMAGE_PLATFORM=native"
        ),
        (os, _) => {
            format!("use an engine that runs {os} containers, or another MOLECULE_IMAGE_PLATFORM")
        }
    }
}

/// Does an architecture run the programs of the other, 32-bit one? BuildKit may leave that one out of its list
/// (with the containerd image store), as containerd's `platforms.Only` has it.
fn runs_by_itself(larger: &str, smaller: &str) -> bool {
    matches!((larger, smaller), ("amd64", "386") | ("arm64", "arm"))
}

fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + message.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.freeze()
}
