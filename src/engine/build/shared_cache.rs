//! The shared cache of a build: how an attempt uses it, and whether its registry answers the builder.
//!
//! BuildKit 0.34 waits for a cache in the one loop that schedules all builds of a daemon, without a limit
//! (`lazyCacheManager` in `solver/llbsolver/bridge.go`). So a registry that accepts requests and never answers holds up
//! every build there, and cancelling the one that uses it does not help. Therefore the builder is first asked to look up
//! the cache as if it were a base image: that holds up nothing else, and ends when it is cancelled.

use std::collections::HashMap;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::SolveRequest;
use bollard_buildkit_proto::pb;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::build::credentials::Credentials;
use crate::engine::build::place::Place;
use crate::engine::build::session::{Session, SessionServices};
use crate::engine::build::session_id;
use crate::engine::connect::grpc::Grpc;
use crate::names::commit::hex;
use crate::names::platform::Platform;
use crate::options::RuntimeCache;

/// The time limit for the registry.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// The time limit for the builder to accept the request.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);

/// What an attempt does with the registry of the shared cache.
#[derive(Clone, Copy, Default)]
pub(super) struct CacheUse<'a> {
    pub(super) read: Option<&'a RuntimeCache>,
    pub(super) write: Option<&'a RuntimeCache>,
    /// The image goes through this repository into the engine.
    pub(super) repository: Option<&'a str>,
    /// Run all steps, and use no cached results. BuildKit merges equal steps of concurrent builds: without this option,
    /// the attempt could join another build on the same daemon that still waits for the cache.
    pub(super) no_cache: bool,
}

impl<'a> CacheUse<'a> {
    pub(super) fn of(cache: &'a RuntimeCache) -> Self {
        let write = Some(cache).filter(|cache| cache.write);
        Self {
            read: Some(cache),
            write,
            // A builder that writes the cache pushes most layers to this repository anyway.
            repository: write.map(|cache| &*cache.repository),
            no_cache: false,
        }
    }
}

impl Place<'_> {
    /// Whether the registry of a cache does not answer the builder. An error is an answer too: the build itself reports
    /// it.
    pub(super) async fn registry_does_not_answer(
        &self,
        reference: &str,
        platform: &Platform,
        credentials: &Credentials,
        tasks: &TaskTracker,
    ) -> bool {
        let id = session_id();
        let begun = tokio::time::timeout(BEGIN_LIMIT, self.begin(&id, credentials, tasks));
        // If the builder does not answer, the build itself reports it.
        let Ok(Some((grpc, _session))) = begun.await else {
            return false;
        };
        let mut client = grpc.control();
        let mut answer = std::pin::pin!(client.solve(lookup(id, reference, platform)));
        while tokio::time::timeout(LIMIT, &mut answer).await.is_err() {
            // The builder may wait for a login, and not for the registry.
            if !credentials.is_looking_up() {
                return true;
            }
        }
        false
    }

    /// A connection to BuildKit with a session that serves only logins.
    async fn begin(
        &self,
        id: &str,
        credentials: &Credentials,
        tasks: &TaskTracker,
    ) -> Option<(Grpc, Session)> {
        let services = SessionServices {
            credentials: credentials.clone(),
            tasks: tasks.clone(),
            context: None,
            image: None,
        };
        let ended = CancellationToken::new();
        match self.worker {
            Some(worker) => {
                let grpc = worker.node.connect(true).await.ok()?;
                let session = Session::over(&grpc, id, id, services, ended).await.ok()?;
                Some((grpc, session))
            }
            None => {
                let (address, version) = (&self.engine.address, self.engine.api.version);
                let session = Session::open(address, version, id, id, services, ended);
                let session = session.await.ok()?;
                Some((self.engine.grpc().await?, session))
            }
        }
    }
}

/// The request for an image's manifest and configuration, without its layers.
fn lookup(id: String, reference: &str, platform: &Platform) -> SolveRequest {
    let (os, architecture) = platform.os_arch();
    let image = pb::Op {
        platform: Some(pb::Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            ..pb::Platform::default()
        }),
        op: Some(pb::op::Op::Source(pb::SourceOp {
            identifier: format!("docker-image://{reference}"),
            // Not an image of this name in the engine.
            attrs: HashMap::from([("image.resolvemode".to_owned(), "pull".to_owned())]),
        })),
        ..pb::Op::default()
    };
    let image = image.encode_to_vec();
    // The last operation of a definition only names the result.
    let result = pb::Op {
        inputs: vec![pb::Input {
            digest: format!("sha256:{}", hex(&Sha256::digest(&image))),
            index: 0,
        }],
        ..pb::Op::default()
    };
    SolveRequest {
        r#ref: id.clone(),
        session: id,
        definition: Some(pb::Definition {
            def: vec![image, result.encode_to_vec()],
            ..pb::Definition::default()
        }),
        // Keeps it out of the builder's history.
        internal: true,
        ..SolveRequest::default()
    }
}
