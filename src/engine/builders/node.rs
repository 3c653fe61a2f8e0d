//! One BuildKit daemon: its address, a connection to it, and what it can run.

use std::fmt;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{
    DiskUsageRequest, InfoRequest, ListWorkersRequest,
};
use hyper::http::uri::PathAndQuery;
use tonic::Request;
use tonic_prost::ProstCodec;

use crate::engine::builders::container;
use crate::engine::builders::trouble::Trouble;
use crate::engine::connect;
use crate::engine::connect::address::Address;
use crate::engine::connect::grpc::Grpc;
use crate::engine::platforms::runs;
use crate::names::platform::Platform;

/// The time limit for a daemon to report what it can run.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);

/// The time limit for a daemon to report its cache size, for which it inspects every cache record.
const SIZE_TIMEOUT: Duration = Duration::from_secs(3);

const DISK_USAGE: &str = "/moby.buildkit.v1.Control/DiskUsage";

/// The pause before a daemon in a container is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// The most platforms of a daemon that are kept. Those with all emulations have about fifteen.
const MAX_PLATFORMS: usize = 100;

/// A daemon that the user has named.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    At(Address),
    /// In a container on an engine.
    In {
        engine: Address,
        container: String,
    },
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::At(address) => fmt::Display::fmt(address, f),
            // As in BuildKit's own addresses.
            Node::In { container, .. } => write!(f, "docker-container://{container}"),
        }
    }
}

/// A daemon that has answered.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) node: Node,
    /// The version of BuildKit, if it reports it (since 0.11).
    pub(crate) version: String,
    /// What it can run, its own platform first.
    pub(crate) platforms: Vec<Platform>,
    /// The maximum cache size in bytes, if it reports it (since 0.17).
    pub(crate) cache_limit: Option<u64>,
}

/// The answer of `DiskUsage`, of which only the sizes are decoded: a decoded record can take a hundred times as much
/// memory as its encoded form.
#[derive(Clone, PartialEq, prost::Message)]
struct Usage {
    #[prost(message, repeated, tag = "1")]
    records: Vec<UsageRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UsageRecord {
    #[prost(int64, tag = "4")]
    size: i64,
}

impl Node {
    /// Opens a connection. Each build has its own, because behind one address there may be several daemons. `start` is
    /// whether a container that is stopped may be started.
    pub(in crate::engine) async fn connect(&self, start: bool) -> Result<Grpc, Trouble> {
        let grpc = match self {
            Node::At(address) => {
                let connection = connect::dial_for_grpc(address).await;
                Grpc::over(connection.map_err(|error| Trouble::of(&error))?).await
            }
            Node::In { engine, container } => {
                Grpc::over(container::connect(engine, container, start).await?).await
            }
        };
        grpc.map_err(|error| Trouble::of(&error))
    }

    /// Asks the daemon what it can run.
    pub(in crate::engine) async fn ask(&self, start: bool) -> Result<Worker, Trouble> {
        let mut last = None;
        let work = async {
            loop {
                let grpc = self.connect(start).await?;
                let trouble = match self.ask_over(&grpc).await {
                    // A daemon whose container was just started does not listen yet.
                    Err(trouble) if matches!(self, Node::In { .. }) => trouble,
                    answer => return answer,
                };
                last = Some(trouble);
                tokio::time::sleep(PAUSE).await;
            }
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, work).await;
        answer.unwrap_or_else(|_| {
            let seconds = ANSWER_TIMEOUT.as_secs();
            Err(last.unwrap_or_else(|| {
                let why = format!("it did not answer within {seconds} seconds");
                Trouble::new(why, "check whether it hangs")
            }))
        })
    }

    async fn ask_over(&self, grpc: &Grpc) -> Result<Worker, Trouble> {
        let mut client = grpc.control();
        let workers = match client.list_workers(ListWorkersRequest::default()).await {
            Ok(workers) => workers.into_inner().record,
            Err(status) => return Err(Trouble::of_request(grpc, &status).await),
        };
        let version = client.info(InfoRequest {}).await.ok();
        let version = version.and_then(|info| info.into_inner().buildkit_version);
        // The last rule is the one for all of the cache.
        let rules = workers.iter().filter_map(|worker| worker.gc_policy.last());
        let limits = rules.filter_map(|rule| u64::try_from(rule.max_used_space).ok());
        let cache_limit = limits.filter(|limit| *limit > 0).max();
        let platforms = workers.into_iter().flat_map(|worker| worker.platforms);
        let platforms = platforms.filter_map(|p| {
            let variant = match p.variant.as_str() {
                "" => String::new(),
                variant => format!("/{variant}"),
            };
            Platform::parse(&format!("{}/{}{variant}", p.os, p.architecture))
        });
        Ok(Worker {
            node: self.clone(),
            version: version.map(|known| known.version).unwrap_or_default(),
            platforms: platforms.take(MAX_PLATFORMS).collect(),
            cache_limit,
        })
    }

    /// The size of the daemon's cache in bytes, if it reports it in time.
    pub(super) async fn cache_size(&self) -> Option<u64> {
        let work = async {
            let grpc = self.connect(false).await.ok()?;
            let mut client = grpc.raw();
            client.ready().await.ok()?;
            let path = PathAndQuery::from_static(DISK_USAGE);
            let codec = ProstCodec::<DiskUsageRequest, Usage>::default();
            let request = Request::new(DiskUsageRequest::default());
            let answer = client.unary(request, path, codec).await.ok()?;
            let records = answer.into_inner().records;
            let sizes = records
                .iter()
                .map(|record| record.size.max(0).cast_unsigned());
            Some(sizes.fold(0, u64::saturating_add))
        };
        tokio::time::timeout(SIZE_TIMEOUT, work).await.ok()?
    }
}

impl Worker {
    /// The platform of its machine.
    pub(crate) fn native(&self) -> Option<&Platform> {
        self.platforms.first()
    }

    /// Whether it builds for the platform without emulation.
    pub(crate) fn is_native(&self, platform: &Platform) -> bool {
        let (os, arch) = platform.os_arch();
        let native = self.native().map(Platform::os_arch);
        native.is_some_and(|(o, a)| o == os && runs(a, arch))
    }

    /// Whether it builds for the platform at all.
    pub(crate) fn can_build(&self, platform: &Platform) -> bool {
        let (os, arch) = platform.os_arch();
        let mut listed = self.platforms.iter().map(Platform::os_arch);
        listed.any(|(o, a)| o == os && runs(a, arch))
    }
}
