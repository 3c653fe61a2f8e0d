//! The container engine, through its API: Docker's, or Podman's that is compatible with it.

mod api;
mod build;
mod child;
mod connect;
mod go_json;
mod platforms;
mod refusal;
mod store;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

#[cfg(feature = "internals")]
pub(crate) use build::Lines;
pub(crate) use build::{Build, Builder, Logins};
pub(crate) use store::{Removal, Stored, bare};

use crate::error::{Code, Error, Result};
use crate::event::human_bytes;
use crate::names::image::{CommitSha, Platform, as_given};
use crate::options::EngineSettings;
use api::{About, Api, Capped, Failure, Labels, MAX_IGNORED, Version, in_path};
use connect::endpoint::{self, Address, DEFAULT_SOCKET, Endpoint};

/// Time for a whole answer to an ordinary call. It is generous: an engine under load is slow.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Ten thousand callers are not to open ten thousand connections.
const CALLS: usize = 32;

/// The first API version with BuildKit (Docker 18.09).
const BUILDKIT_API: Version = Version {
    major: 1,
    minor: 39,
};

/// The largest answer about one image. Most of it is its configuration, which registries limit to some
/// MiB.
const MAX_IMAGE: usize = 4 << 20;

/// The most references of one image.
const MAX_REFERENCES: usize = 10_000;

/// An engine that has answered.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    api: Api,
    settings: EngineSettings,
    /// How many ordinary calls may be under way at once.
    turns: Arc<Semaphore>,
    /// The same for lists, which may be large.
    lists: Arc<Semaphore>,
    address: Address,
    endpoint: String,
    /// Who chose it: `DOCKER_HOST`, a context, a well-known place.
    named_by: String,
    about: About,
    builder: Builder,
}

/// An image in the engine's store.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: String,
    /// All its references, as the engine lists them.
    references: Vec<String>,
    /// The label [`REVISION_LABEL`], if this library has set it: an image has the labels of its base image too.
    pub(crate) revision: Option<String>,
    /// The label [`PLATFORM_LABEL`].
    platform: Option<String>,
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

    /// What it says of itself that contradicts a reference of this commit, if one is asked for, and this platform.
    pub(crate) fn contradiction(
        &self,
        commit: Option<&CommitSha>,
        platform: &Platform,
    ) -> Option<String> {
        if let (Some(commit), Some(other)) = (commit, &self.revision)
            && other != commit.as_str()
        {
            return Some(format!("its label says it is of the commit {other}"));
        }
        if (self.os.as_str(), self.arch.as_str()) != platform.os_arch() {
            return Some(format!("it is for {}/{}", self.os, self.arch));
        }
        // Variants of one architecture may share a tag, see `TagArch`.
        let built_for = self.platform.as_deref();
        let other = built_for.filter(|other| !platform.is_the_same_as(other))?;
        Some(format!("its label says it was built for {other}"))
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

/// The beginning of the labels that are this library's own (reverse DNS, as docker's guidelines ask).
const LABEL_PREFIX: &str = "ai.moleculesai.libmol.";

/// The label with the runtime: what has it was made by this library.
pub(crate) const RUNTIME_LABEL: &str = "ai.moleculesai.libmol.runtime";

/// The label with the platform that was asked for.
pub(crate) const PLATFORM_LABEL: &str = "ai.moleculesai.libmol.platform";

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
        let (mut tried, mut hint) = (Vec::new(), Cow::Borrowed(HINT_START));
        for mut endpoint in endpoint::in_time(settings, tasks).await? {
            if let Address::Ssh(destination) = &mut endpoint.address {
                destination.count(tasks);
            }
            let attempt = Self::try_connect(&endpoint, settings);
            hint = Cow::Borrowed(match endpoint.address {
                Address::Unix(_) => HINT_START,
                Address::Ssh(_) => HINT_SSH,
                Address::Tcp { .. } => HINT_TCP,
            });
            let why = match tokio::time::timeout(CALL_TIMEOUT, attempt).await {
                Ok(Ok(engine)) => return Ok(engine),
                Ok(Err(Failure::Limit(limit))) => return Err(limit),
                Ok(Err(error)) => {
                    if let Failure::Refused(refusal) = &error {
                        hint = Cow::Owned(refusal.hint());
                    }
                    error.to_string()
                }
                Err(_) => "it does not answer".to_owned(),
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
    ) -> std::result::Result<Self, Failure> {
        let (api, about) = Api::open(&endpoint.address).await?;
        let builder = choose_builder(settings, &about, api.version);
        Ok(Self {
            api,
            settings: settings.clone(),
            turns: Arc::new(Semaphore::new(CALLS)),
            lists: Arc::new(Semaphore::new(1)),
            address: endpoint.address.clone(),
            endpoint: endpoint.address.to_string(),
            named_by: endpoint.named_by.clone(),
            about,
            builder,
        })
    }

    /// The engine's address, as `DOCKER_HOST` would have it.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Is it another one than a program finds that reads `DOCKER_HOST`, which is not set, and nothing else?
    pub(crate) fn is_elsewhere(&self) -> bool {
        let default = std::fs::canonicalize(DEFAULT_SOCKET);
        let is_default = match &self.address {
            // Docker Desktop has a link at the default place.
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

    /// Does it take more than its address to reach it?
    pub(crate) fn has_tls(&self) -> bool {
        matches!(self.address, Address::Tcp { tls: Some(_), .. })
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
        let components = self.about.components.0.iter();
        let podman = components
            .filter(|component| component.name.contains("Podman"))
            .map(|component| format!("Podman {}", component.version))
            .next();
        let docker = || {
            let version = self
                .about
                .version
                .as_deref()
                .unwrap_or("of an unknown version");
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

    /// What the engine itself runs on.
    pub(crate) fn native_platform(&self) -> Result<Platform> {
        let os = self.about.os.as_deref().unwrap_or("linux");
        let arch = self.about.arch.as_deref().unwrap_or_default();
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
        let found = self.settled(&[500], || self.inspect(reference));
        let found = self.call(|| found).await?;
        Ok(found.map(|image| Found {
            created: image.created.as_deref().and_then(unix).unwrap_or(0),
            // Some engines have the year 1 for "never".
            tagged: (image.metadata.last_tag_time.as_deref())
                .and_then(unix)
                .filter(|tagged| *tagged > 0),
            revision: (image.config.labels.get(RUNTIME_LABEL))
                .and_then(|_| image.config.labels.get(REVISION_LABEL))
                .map(str::to_owned),
            platform: image.config.labels.get(PLATFORM_LABEL).map(str::to_owned),
            id: image.id,
            references: image.repo_tags.0,
            os: image.os,
            arch: image.architecture,
        }))
    }

    async fn inspect(&self, image: &str) -> std::result::Result<Option<Inspected>, Failure> {
        let path = format!("/images/{}/json", in_path(image));
        match self.api.get(&path, MAX_IMAGE).await {
            Ok(image) => Ok(Some(image)),
            Err(Failure::Refused(refusal)) if refusal.status == 404 => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The references of this library's images, the newest image first.
    pub(crate) async fn references(&self) -> Result<Vec<String>> {
        let mut images = self.images().await?;
        images.sort_by_key(|image| std::cmp::Reverse(image.created));
        Ok(images
            .into_iter()
            .flat_map(|image| image.references)
            .collect())
    }

    /// Gives an image one more reference.
    pub(crate) async fn tag(&self, image: &str, reference: &str) -> Result<()> {
        let (repository, tag) = reference.rsplit_once(':').unwrap_or((reference, "latest"));
        let query = serde_urlencoded::to_string([("repo", repository), ("tag", tag)]);
        let query = query.unwrap_or_default();
        let path = format!("/images/{}/tag?{query}", in_path(image));
        let tag = self.api.call(&Method::POST, &path, MAX_IGNORED);
        self.call(|| tag).await.map(drop)
    }

    /// One ordinary call, in its turn, with its time limit, and with what went wrong in words.
    async fn call<T, W>(&self, work: impl FnOnce() -> W) -> Result<T>
    where
        W: Future<Output = std::result::Result<T, Failure>>,
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

/// An image, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    #[serde(default)]
    repo_tags: Capped<String, MAX_REFERENCES>,
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    created: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    config: Config,
    #[serde(default, deserialize_with = "or_default")]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    labels: Labels,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Metadata {
    last_tag_time: Option<String>,
}

/// A time of the engine's, in seconds since 1970.
fn unix(time: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(time, &Rfc3339).ok()?;
    Some(time.unix_timestamp())
}

/// What is not there may also be null.
fn or_default<'de, T: Default + Deserialize<'de>, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// BuildKit where the engine has it. `_ping` may not say so although it has, and Podman's API
/// accepts BuildKit's requests without being one.
fn choose_builder(settings: &EngineSettings, about: &About, api: Version) -> Builder {
    let mut components = about.components.0.iter();
    let podman = components.any(|component| component.name.contains("Podman"));
    if podman {
        Builder::Buildah
    } else if settings.classic_builder || api < BUILDKIT_API {
        Builder::Classic
    } else {
        Builder::BuildKit
    }
}

fn told(endpoint: &str, failure: &Failure) -> Error {
    let engine = format!("the engine at {endpoint}");
    let (message, hint) = match failure {
        Failure::Refused(refusal) => {
            let error = Error::new(Code::EngineUnreachable, format!("{engine} {refusal}"));
            return error.hint(refusal.hint());
        }
        Failure::TooLarge { what, max } => (
            format!(
                "{engine} sent more than {} in answer to {what}, which is not read",
                human_bytes(*max as u64)
            ),
            "see whether it is a container engine; docker system prune makes its lists shorter",
        ),
        Failure::Unreadable { what, why } => (
            format!("{engine} sent an answer to {what} that cannot be read: {why}"),
            "see whether it is a container engine, and its own log",
        ),
        Failure::Broken(why) => (
            format!("{engine} cannot be reached: {why}"),
            "see whether it is running",
        ),
        Failure::Limit(limit) => return limit.clone(),
    };
    Error::new(Code::EngineUnreachable, message).hint(hint)
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
                platform: None,
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
