//! The container engine, through its API: Docker's, or Podman's that is compatible with it.

mod build;
mod buildkit;
mod child;
mod classic;
mod config;
mod connect;
mod credentials;
mod endpoint;
mod full;
mod lines;
mod platforms;
mod request;
mod session;
mod ssh;
mod store;
mod watch;

pub(crate) use lines::Lines;

use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error as E;
use bollard::models::{ImageInspect, SystemVersion};
use bollard::query_parameters::TagImageOptionsBuilder;
use bollard::{API_DEFAULT_VERSION, Docker};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub(crate) use build::{Build, Builder};
pub(crate) use credentials::Logins;
pub(crate) use store::{Removal, Stored, bare};

use crate::error::{Code, Error, Result};
use crate::image::{Platform, as_given};
use crate::limits;
use crate::options::EngineSettings;
use endpoint::{Address, Endpoint};

/// Time for a whole answer to an ordinary call. It is generous: an engine under load is slow.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Ten thousand callers are not to open ten thousand connections.
const CALLS: usize = 32;

/// The first API version with BuildKit (Docker 18.09).
const BUILDKIT_API: (usize, usize) = (1, 39);

/// An engine that has answered.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    docker: Docker,
    settings: EngineSettings,
    /// How many ordinary calls may be under way at once.
    turns: Arc<Semaphore>,
    address: Address,
    endpoint: String,
    /// Who chose it: `DOCKER_HOST`, a context, a well-known place.
    named_by: String,
    version: SystemVersion,
    builder: Builder,
}

/// An image in the engine's store.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: String,
    /// All its references, as the engine lists them.
    references: Vec<String>,
    /// The label [`REVISION_LABEL`].
    pub(crate) revision: Option<String>,
    pub(crate) os: String,
    pub(crate) arch: String,
    /// When it was made, and when it was last tagged, if the engine keeps that: seconds since 1970.
    pub(crate) created: i64,
    pub(crate) tagged: Option<i64>,
}

impl Found {
    /// Does the engine know it under this reference?
    pub(crate) fn is_known_as(&self, reference: &str) -> bool {
        self.references
            .iter()
            .any(|listed| as_given(listed) == reference)
    }

    /// All its references, as the engine lists them.
    pub(crate) fn references(&self) -> &[String] {
        &self.references
    }
}

const HINT_START: &str = "start Docker or Podman, or set DOCKER_HOST to its address; on \
     \"permission denied\", join the group that owns the socket";
const HINT_SSH: &str = "see whether `ssh HOST docker version` works for the same user without \
     asking for anything: the key, the known hosts and the configuration are that user's";
const HINT_TCP: &str = "start Docker or Podman there, or correct the address; with TLS it wants \
     DOCKER_TLS_VERIFY=1, or a context, with the ca.pem of its authority, and a cert.pem and key.pem of the same";

/// The label with the full commit id (OCI image specification, annotations).
pub(crate) const REVISION_LABEL: &str = "org.opencontainers.image.revision";

impl Engine {
    /// Finds the engine and asks for its version.
    ///
    /// # Errors
    ///
    /// [`Code::EngineUnreachable`], with every endpoint that was tried and why it did not do;
    /// [`Code::ProcessLimit`]. `tasks` counts the programs that are started for connections.
    pub(crate) async fn connect(settings: &EngineSettings, tasks: &TaskTracker) -> Result<Self> {
        let (mut tried, mut hint) = (Vec::new(), HINT_START);
        for mut endpoint in endpoint::candidates(settings)? {
            if let Address::Ssh(destination) = &mut endpoint.address {
                destination.count(tasks);
            }
            let attempt = Self::try_connect(&endpoint, settings);
            let why = match tokio::time::timeout(CALL_TIMEOUT, attempt).await {
                Ok(Ok(engine)) => return Ok(engine),
                Ok(Err(error)) => match limits::reached(&error) {
                    Some(limit) => return Err(limit),
                    None => deepest(&error),
                },
                Err(_) => "it does not answer".to_owned(),
            };
            hint = match endpoint.address {
                Address::Unix(_) => HINT_START,
                Address::Ssh(_) => HINT_SSH,
                Address::Tcp { .. } => HINT_TCP,
            };
            tried.push(format!("{endpoint}: {why}"));
        }
        Err(Error::new(
            Code::EngineUnreachable,
            format!("no container engine answers; tried {}", tried.join("; ")),
        )
        .hint(hint))
    }

    async fn try_connect(
        endpoint: &Endpoint,
        settings: &EngineSettings,
    ) -> std::result::Result<Self, E> {
        let address = &endpoint.address;
        let docker = connect::client(address, API_DEFAULT_VERSION)?;
        let docker = docker.negotiate_version().await?;
        let version = docker.version().await?;
        let builder = choose_builder(settings, &version, &docker);
        Ok(Self {
            docker,
            settings: settings.clone(),
            turns: Arc::new(Semaphore::new(CALLS)),
            address: endpoint.address.clone(),
            endpoint: endpoint.address.to_string(),
            named_by: endpoint.named_by.clone(),
            version,
            builder,
        })
    }

    /// The engine's address, as `DOCKER_HOST` would have it.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Why it is this one.
    pub(crate) fn named_by(&self) -> &str {
        &self.named_by
    }

    pub(crate) fn builder(&self) -> Builder {
        self.builder
    }

    /// What it is, in a few words.
    pub(crate) fn description(&self) -> String {
        let components = self.version.components.iter().flatten();
        let podman = components
            .filter(|component| component.name.contains("Podman"))
            .map(|component| format!("Podman {}", component.version))
            .next();
        let docker = || {
            let version = self
                .version
                .version
                .as_deref()
                .unwrap_or("of an unknown version");
            format!("Docker Engine {version}")
        };
        let api = self.docker.client_version();
        format!(
            "{}, API {}.{}, {}/{}",
            podman.unwrap_or_else(docker),
            api.major_version,
            api.minor_version,
            self.version.os.as_deref().unwrap_or("unknown"),
            self.version.arch.as_deref().unwrap_or("unknown"),
        )
    }

    /// What the engine itself runs on.
    pub(crate) fn native_platform(&self) -> Result<Platform> {
        let os = self.version.os.as_deref().unwrap_or("linux");
        let arch = self.version.arch.as_deref().unwrap_or_default();
        Platform::parse(&format!("{os}/{arch}")).ok_or_else(|| {
            Error::new(
                Code::PlatformUnsupported,
                format!(
                    "the engine at {} does not say what it runs on",
                    self.endpoint
                ),
            )
            .hint("set MOLECULE_IMAGE_PLATFORM to os/arch, linux/amd64 for example")
        })
    }

    /// Looks an image up. `None` if there is none of that name.
    pub(crate) async fn find(&self, reference: &str) -> Result<Option<Found>> {
        let inspect = || async {
            let inspect = || self.docker.inspect_image(reference);
            match self.settled(inspect).await {
                Ok(image) => Ok(Some(found(image))),
                Err(E::DockerResponseServerError {
                    status_code: 404, ..
                }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.call(inspect).await
    }

    /// The references of all images, the newest image first. No filter: Docker and Podman do not agree
    /// on what one matches.
    pub(crate) async fn references(&self) -> Result<Vec<String>> {
        let mut images = self.list().await?;
        images.sort_by_key(|image| std::cmp::Reverse(image.created));
        Ok(images
            .into_iter()
            .flat_map(|image| image.repo_tags)
            .collect())
    }

    /// Gives an image one more reference.
    pub(crate) async fn tag(&self, image: &str, reference: &str) -> Result<()> {
        let (repository, tag) = reference.rsplit_once(':').unwrap_or((reference, "latest"));
        let options = TagImageOptionsBuilder::new()
            .repo(repository)
            .tag(tag)
            .build();
        self.call(|| self.docker.tag_image(image, Some(options)))
            .await
    }

    /// One ordinary call, in its turn, with its time limit, and with what went wrong in words.
    async fn call<T, W>(&self, work: impl FnOnce() -> W) -> Result<T>
    where
        W: Future<Output = std::result::Result<T, E>>,
    {
        let endpoint = &self.endpoint;
        // Never closed, so this cannot fail.
        let _turn = self.turns.acquire().await;
        // On the heap, and from here on only: those who wait for their turn are many.
        let work = Box::pin(work());
        match tokio::time::timeout(CALL_TIMEOUT, work).await {
            Ok(result) => result.map_err(|error| told(endpoint, &error)),
            Err(_) => Err(Error::new(
                Code::EngineUnreachable,
                format!(
                    "the engine at {endpoint} did not answer within {} seconds",
                    CALL_TIMEOUT.as_secs()
                ),
            )
            .hint("see whether the engine hangs; restarting it usually helps")),
        }
    }
}

fn found(image: ImageInspect) -> Found {
    let labels = image.config.and_then(|config| config.labels);
    let tagged = image.metadata.and_then(|metadata| metadata.last_tag_time);
    let tagged = tagged.map(|tagged| tagged.unix_timestamp());
    Found {
        id: image.id.unwrap_or_default(),
        references: image.repo_tags.unwrap_or_default(),
        revision: labels.and_then(|labels| labels.get(REVISION_LABEL).cloned()),
        os: image.os.unwrap_or_default(),
        arch: image.architecture.unwrap_or_default(),
        created: image.created.map_or(0, |created| created.unix_timestamp()),
        // Some engines have the year 1 for "never".
        tagged: tagged.filter(|tagged| *tagged > 0),
    }
}

/// BuildKit where the engine has it. `_ping` may not say so although it has, and Podman's API
/// accepts BuildKit's requests without being one.
fn choose_builder(settings: &EngineSettings, version: &SystemVersion, docker: &Docker) -> Builder {
    let podman = version
        .components
        .iter()
        .flatten()
        .any(|component| component.name.contains("Podman"));
    let api = docker.client_version();
    let old = (api.major_version, api.minor_version) < BUILDKIT_API;
    if podman {
        Builder::Buildah
    } else if settings.classic_builder || old {
        Builder::Classic
    } else {
        Builder::BuildKit
    }
}

fn told(endpoint: &str, error: &E) -> Error {
    if let Some(limit) = limits::reached(error) {
        return limit;
    }
    match error {
        E::DockerResponseServerError {
            status_code,
            message,
        } => Error::new(
            Code::EngineUnreachable,
            format!("the engine at {endpoint} answered {status_code}: {message}"),
        )
        .hint("see the engine's own log"),
        other => Error::new(
            Code::EngineUnreachable,
            format!(
                "the engine at {endpoint} cannot be reached: {}",
                deepest(other)
            ),
        )
        .hint("see whether it is running"),
    }
}

/// The innermost cause says it best: "permission denied", "connection refused".
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_of_another_registry_is_not_ours() {
        let known = |listed: &str| {
            let found = Found {
                id: String::new(),
                references: vec![listed.to_owned()],
                revision: None,
                os: String::new(),
                arch: String::new(),
                created: 0,
                tagged: None,
            };
            found.is_known_as("molecule-local/x:latest")
        };
        assert!(known("molecule-local/x:latest"));
        assert!(known("docker.io/molecule-local/x:latest"));
        assert!(!known("registry.example/molecule-local/x:latest"));
        assert!(!known("molecule-local/x:latest--ci"));
    }
}
