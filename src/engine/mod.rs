//! The container engine, through the Docker Engine API. Podman serves a compatible one.

mod api;
mod build;
mod builders;
mod child;
mod connect;
mod go_json;
mod image;
mod platforms;
mod refusal;
mod store;
mod version;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

#[cfg(feature = "internals")]
pub(crate) use build::Lines;
pub(crate) use build::{Build, Builder, HINT_SHARED_CACHE, Logins};
#[cfg(feature = "internals")]
pub(crate) use builders::order_by_address;
pub(crate) use builders::{NodeAnswer, Nodes};
pub(crate) use image::Found;
pub(crate) use store::{Removal, Stored, bare};

use crate::error::{Code, Error, Result};
use crate::names::platform::Platform;
use crate::options::EngineSettings;
use crate::process::outside_file::within;
use api::{About, Api, Failure};
use builders::NodeStates;
use connect::address::Address;
use connect::endpoint::{self, Endpoint};
use connect::places::DEFAULT_SOCKET;
use connect::unreachable::{self, Attempt};
use version::Version;

/// The time limit of an ordinary request, response included. It is generous: an engine under load is slow.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Upper bound of concurrent requests, and so of connections, for all callers.
const MAX_CALLS: usize = 32;

/// The first API version with BuildKit (Docker 18.09).
const BUILDKIT_API: Version = Version {
    major: 1,
    minor: 39,
};

/// An engine that has answered a request for its version.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    api: Api,
    settings: EngineSettings,
    /// Limits concurrent ordinary requests.
    calls: Arc<Semaphore>,
    /// Limits concurrent lists, which may be large.
    lists: Arc<Semaphore>,
    address: Address,
    endpoint: String,
    /// The source of the address: `DOCKER_HOST`, a context, a well-known path.
    named_by: String,
    about: About,
    builder: Builder,
    /// What is known of the nodes of a builder other than the engine's own.
    known: NodeStates,
    warned_of_cache: Arc<AtomicBool>,
}

/// The prefix of this library's own labels (reverse DNS, as docker's guidelines ask).
const LABEL_PREFIX: &str = "ai.moleculesai.libmol.";

/// The label with the runtime. An image with it was built by this library.
pub(crate) const RUNTIME_LABEL: &str = "ai.moleculesai.libmol.runtime";

/// The label with the platform of the build.
pub(crate) const PLATFORM_LABEL: &str = "ai.moleculesai.libmol.platform";

/// The label with the full commit id (OCI image specification, annotations).
pub(crate) const REVISION_LABEL: &str = "org.opencontainers.image.revision";

impl Engine {
    /// Finds the engine and requests its version. `tasks` tracks the programs that are started for connections.
    ///
    /// # Errors
    ///
    /// [`Code::EngineUnreachable`], with the cause and all endpoints that were tried; [`Code::ProcessLimit`].
    pub(crate) async fn connect(settings: &EngineSettings, tasks: &TaskTracker) -> Result<Self> {
        let mut attempts = Vec::new();
        for mut endpoint in endpoint::resolve(settings, tasks).await? {
            endpoint.address.track_in(tasks);
            let attempt = Self::try_connect(&endpoint, settings);
            let failure = match tokio::time::timeout(CALL_TIMEOUT, attempt).await {
                Ok(Ok(engine)) => return Ok(engine),
                Ok(Err(Failure::Local(error))) => return Err(error),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Broken {
                    why: format!(
                        "it did not answer within {} seconds",
                        CALL_TIMEOUT.as_secs()
                    ),
                    kind: None,
                },
            };
            attempts.push(Attempt {
                endpoint,
                why: match failure {
                    Failure::Broken { .. } | Failure::Local(_) => failure.to_string(),
                    _ => format!("it {failure}"),
                },
                kind: match failure {
                    Failure::Broken { kind, .. } => kind,
                    _ => None,
                },
                hint: match &failure {
                    Failure::Refused(refusal) => Some(refusal.hint()),
                    _ => None,
                },
            });
        }
        let tried = attempts.clone();
        let explain = move || Ok(unreachable::explain(&tried));
        // If the disk hangs, the error lacks the explanation.
        let addresses = attempts
            .iter()
            .map(|attempt| attempt.endpoint.address.to_string());
        let what = addresses.collect::<Vec<_>>().join(", ");
        Err(within(tasks, Code::EngineUnreachable, &what, explain)
            .await
            .unwrap_or_else(|_| unreachable::unexplained(&attempts)))
    }

    async fn try_connect(
        endpoint: &Endpoint,
        settings: &EngineSettings,
    ) -> std::result::Result<Self, Failure> {
        let (api, about) = Api::open(&endpoint.address).await?;
        let builder = builder_kind(settings, &about, api.version);
        Ok(Self {
            api,
            settings: settings.clone(),
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
            lists: Arc::new(Semaphore::new(1)),
            address: endpoint.address.clone(),
            endpoint: endpoint.address.to_string(),
            named_by: endpoint.named_by.clone(),
            about,
            builder,
            known: NodeStates::default(),
            warned_of_cache: Arc::default(),
        })
    }

    /// The engine's address, as `DOCKER_HOST` would have it.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Whether a program that reads only `DOCKER_HOST` would use another engine. Accesses files, so it may block.
    pub(crate) fn is_elsewhere(&self) -> bool {
        let default = std::fs::canonicalize(DEFAULT_SOCKET);
        let is_default = match &self.address {
            // Docker Desktop has a link at the default path.
            Address::Unix(path) => {
                path == Path::new(DEFAULT_SOCKET)
                    || default.is_ok_and(|default| {
                        std::fs::canonicalize(path).is_ok_and(|path| path == default)
                    })
            }
            _ => false,
        };
        self.settings.host.is_none() && !is_default
    }

    /// Whether a connection needs certificates besides the address.
    pub(crate) fn has_tls(&self) -> bool {
        matches!(self.address, Address::Tcp { tls: Some(_), .. })
    }

    /// The source of the address.
    pub(crate) fn named_by(&self) -> &str {
        &self.named_by
    }

    pub(crate) fn builder(&self) -> Builder {
        self.builder
    }

    /// The name and version for people.
    pub(crate) fn description(&self) -> String {
        let podman = self.about.podman();
        let podman = podman.map(|podman| format!("Podman {}", podman.version));
        let docker = || {
            let version = self.about.version.as_deref().unwrap_or("(unknown version)");
            format!("Docker Engine {version}")
        };
        format!(
            "{}, API {}, {}/{}",
            podman.unwrap_or_else(docker),
            self.api.version,
            self.about.os.as_deref().unwrap_or("unknown"),
            self.about.arch.as_deref().unwrap_or("unknown"),
        )
    }

    /// The platform of the engine's machine.
    pub(crate) fn native_platform(&self) -> Result<Platform> {
        let os = self.about.os.as_deref().unwrap_or("linux");
        let arch = self.about.arch.as_deref().unwrap_or_default();
        Platform::parse(&format!("{os}/{arch}")).ok_or_else(|| {
            Error::new(
                Code::PlatformUnsupported,
                format!(
                    "the engine at {} does not report its platform",
                    self.endpoint
                ),
            )
            .hint("set MOLECULE_IMAGE_PLATFORM to os/arch, linux/amd64 for example")
        })
    }

    /// Makes one ordinary request: limits concurrency and time, and maps the error.
    async fn call<T, W>(&self, work: impl FnOnce() -> W) -> Result<T>
    where
        W: Future<Output = std::result::Result<T, Failure>>,
    {
        let endpoint = &self.endpoint;
        // Never closed, so this cannot fail.
        let _permit = self.calls.acquire().await;
        // Boxed after acquiring, so that waiting futures stay small.
        let work = Box::pin(work());
        match tokio::time::timeout(CALL_TIMEOUT, work).await {
            Ok(result) => result.map_err(|failure| map_error(endpoint, &failure)),
            Err(_) => Err(Error::new(
                Code::EngineUnreachable,
                format!(
                    "the engine at {endpoint} did not answer within {} seconds",
                    CALL_TIMEOUT.as_secs()
                ),
            )
            .hint("check whether the engine hangs; restarting it usually helps")),
        }
    }
}

/// BuildKit if the engine has it. The API version decides: `_ping` does not always report BuildKit, and Podman's
/// API accepts requests for BuildKit although it has none.
fn builder_kind(settings: &EngineSettings, about: &About, api: Version) -> Builder {
    if about.podman().is_some() {
        Builder::Buildah
    } else if settings.classic_builder || api < BUILDKIT_API {
        Builder::Classic
    } else {
        Builder::BuildKit
    }
}

fn map_error(endpoint: &str, failure: &Failure) -> Error {
    let what = match failure {
        Failure::Local(error) => return error.clone(),
        Failure::Broken { why, .. } => format!("cannot be reached: {why}"),
        answer => answer.to_string(),
    };
    let hint = match failure {
        Failure::Refused(refusal) => refusal.hint(),
        Failure::TooLarge { .. } => {
            "check that it is a container engine; docker system prune makes its lists shorter"
                .to_owned()
        }
        Failure::Unreadable { .. } => {
            "check that it is a container engine, and read its log".to_owned()
        }
        _ => "check that it is running".to_owned(),
    };
    let message = format!("the engine at {endpoint} {what}");
    Error::new(Code::EngineUnreachable, message).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_this_process_is_not_blamed_on_the_engine() {
        let limit = Error::new(Code::ProcessLimit, "no file descriptor is left");
        let error = map_error("unix:///engine.sock", &Failure::Local(limit));
        assert_eq!(error.code, Code::ProcessLimit);
        assert_eq!(error.message(), "no file descriptor is left");
    }
}
