//! One image in the engine's store: looking it up, comparing it with what is expected, tagging it.

use hyper::Method;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::api::{Capped, Failure, Labels, MAX_IGNORED, in_path};
use super::{Engine, PLATFORM_LABEL, REVISION_LABEL, RUNTIME_LABEL};
use crate::error::Result;
use crate::names::commit::CommitSha;
use crate::names::platform::Platform;
use crate::names::reference::without_default_host;

/// The largest answer about one image, in bytes. Most of it is the configuration, which registries limit to some
/// MiB.
const MAX_IMAGE: usize = 4 << 20;

/// The most references of one image.
pub(super) const MAX_REFERENCES: usize = 10_000;

/// An image in the engine's store.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: String,
    /// All its references, as the engine lists them.
    references: Vec<String>,
    /// The label [`REVISION_LABEL`], if this library has set it. An image also has the labels of its base image.
    pub(crate) revision: Option<String>,
    /// The label [`PLATFORM_LABEL`].
    platform: Option<String>,
    pub(crate) os: String,
    pub(crate) arch: String,
    /// When it was created, and when it was last tagged, if the engine records that: seconds since 1970.
    pub(crate) created: i64,
    pub(crate) tagged: Option<i64>,
}

impl Found {
    /// Whether the image has this reference.
    pub(crate) fn is_known_as(&self, reference: &str) -> bool {
        self.references
            .iter()
            .any(|listed| without_default_host(listed) == reference)
    }

    /// Why the image does not match the platform or, if given, the commit.
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
        let other = built_for.filter(|other| !platform.is_same_as(other))?;
        Some(format!("its label says it was built for {other}"))
    }

    /// All its references, as the engine lists them.
    pub(crate) fn references(&self) -> &[String] {
        &self.references
    }
}

impl Engine {
    /// Looks an image up by its reference. `None` if it does not exist.
    pub(crate) async fn find(&self, reference: &str) -> Result<Option<Found>> {
        let found = self.retry_concurrent_removal(&[500], || self.inspect(reference));
        let found = self.call(|| found).await?;
        Ok(found.map(|image| Found {
            created: image.created.as_deref().and_then(unix).unwrap_or(0),
            // Some engines use the year 1 for "never".
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

    /// Whether the engine has an image that was built or loaded there, and not pulled. Always false with the containerd
    /// image store and with Podman, which do not report the difference.
    pub(super) async fn is_local_only(&self, image: &str) -> Result<bool> {
        let found = self.call(|| self.inspect(image)).await?;
        Ok(found.is_some_and(|found| found.repo_digests.0.is_empty()))
    }

    pub(super) async fn inspect(
        &self,
        image: &str,
    ) -> std::result::Result<Option<Inspected>, Failure> {
        let path = format!("/images/{}/json", in_path(image));
        match self.api.get(&path, MAX_IMAGE).await {
            Ok(image) => Ok(Some(image)),
            Err(Failure::Refused(refusal)) if refusal.is_not_found() => Ok(None),
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

    /// Adds a reference to an image.
    pub(crate) async fn tag(&self, image: &str, reference: &str) -> Result<()> {
        let (repository, tag) = reference.rsplit_once(':').unwrap_or((reference, "latest"));
        let query = serde_urlencoded::to_string([("repo", repository), ("tag", tag)]);
        let query = query.unwrap_or_default();
        let path = format!("/images/{}/tag?{query}", in_path(image));
        let tag = self.api.call(&Method::POST, &path, MAX_IGNORED);
        self.call(|| tag).await.map(drop)
    }
}

/// The used fields of an image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    id: String,
    #[serde(default)]
    repo_tags: Capped<String, MAX_REFERENCES>,
    #[serde(default)]
    repo_digests: Capped<String, MAX_REFERENCES>,
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    created: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    config: Config,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    labels: Labels,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Metadata {
    pub(super) last_tag_time: Option<String>,
}

/// Parses a time of the engine to seconds since 1970.
pub(super) fn unix(time: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(time, &Rfc3339).ok()?;
    Some(time.unix_timestamp())
}

/// Treats null like a missing field.
fn or_default<'de, T: Default + Deserialize<'de>, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_of_another_registry_does_not_match() {
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
