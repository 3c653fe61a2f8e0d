//! The engine's store of images: what is there, who uses it, and taking a name away.

use std::collections::HashMap;
use std::time::Duration;

use bollard::errors::Error as E;
use bollard::models::ImageSummary;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListImagesOptions, RemoveImageOptions,
};
use http_body_util::{BodyExt, Empty};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::request::{Failure, get, send};
use super::{Builder, Engine, REVISION_LABEL};
use crate::error::Result;

/// What images share is a courtesy to know; an engine with many takes its time to count it.
const USAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// How often it is asked again, and the pause before.
const SETTLE_TRIES: u32 = 10;
const SETTLE_PAUSE: Duration = Duration::from_millis(50);

/// The longest answer about disk usage that is read.
const MAX_USAGE: usize = 16 * 1024 * 1024;

/// An image that the engine lists.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) id: String,
    /// All its references, as the engine lists them.
    pub(crate) references: Vec<String>,
    pub(crate) labels: HashMap<String, String>,
    /// Seconds since 1970.
    pub(crate) created: i64,
    /// With what it shares with other images.
    pub(crate) bytes: u64,
}

impl Stored {
    pub(crate) fn revision(&self) -> Option<&str> {
        self.labels.get(REVISION_LABEL).map(String::as_str)
    }
}

/// What has come of taking a name away from an image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It was the last one: the image is gone.
    Deleted,
    /// The image has others, or is needed by another image.
    Untagged,
    /// Somebody else was quicker.
    Absent,
    /// The engine does not want to, and says why: a container uses it.
    Refused(String),
}

impl Engine {
    /// All images that have a name.
    pub(crate) async fn images(&self) -> Result<Vec<Stored>> {
        Ok(self
            .list()
            .await?
            .into_iter()
            .map(|image| Stored {
                id: image.id,
                references: image.repo_tags,
                labels: image.labels,
                created: image.created,
                bytes: u64::try_from(image.size).unwrap_or(0),
            })
            .collect())
    }

    /// The engine's list.
    pub(super) async fn list(&self) -> Result<Vec<ImageSummary>> {
        let list = || self.docker.list_images(None::<ListImagesOptions>);
        self.call(|| self.settled(list)).await
    }

    /// Asks for images, again where another one is removed meanwhile: Podman then answers 500, "image not known"
    /// (seen with 4.3).
    pub(super) async fn settled<T, W>(
        &self,
        mut ask: impl FnMut() -> W,
    ) -> std::result::Result<T, E>
    where
        W: Future<Output = std::result::Result<T, E>>,
    {
        let mut again = match self.builder {
            Builder::Buildah => SETTLE_TRIES,
            _ => 0,
        };
        loop {
            match ask().await {
                Err(E::DockerResponseServerError {
                    status_code: 500, ..
                }) if again > 0 => again -= 1,
                result => return result,
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
    }

    /// Until when an image was the newest of its name, as far as the engine knows: in seconds since
    /// 1970, and nanoseconds. An image whose steps were all cached says that it is as old as they are.
    pub(crate) async fn last_tagged(&self, image: &str) -> Option<(i64, u32)> {
        let found = self.call(|| self.docker.inspect_image(image)).await.ok()?;
        let tagged = found.metadata?.last_tag_time?;
        Some((tagged.unix_timestamp(), tagged.nanosecond()))
    }

    /// What the engine's clock says, in seconds since 1970: that of another machine, or of a virtual one, may differ
    /// from this one's.
    pub(crate) async fn now(&self) -> Option<i64> {
        let info = self.call(|| self.docker.info()).await.ok()?;
        let now = OffsetDateTime::parse(&info.system_time?, &Rfc3339).ok()?;
        Some(now.unix_timestamp())
    }

    /// The names of the containers, running or not, by the id of the image they were made from.
    pub(crate) async fn users(&self) -> Result<HashMap<String, Vec<String>>> {
        let all = ListContainersOptionsBuilder::new().all(true).build();
        let list = || self.docker.list_containers(Some(all.clone()));
        let containers = self.call(|| self.settled(list)).await?;
        let mut users: HashMap<String, Vec<String>> = HashMap::new();
        for container in containers {
            let name = container.names.unwrap_or_default().into_iter().next();
            let name = name.or(container.id).unwrap_or_default();
            users
                .entry(bare(&container.image_id.unwrap_or_default()).to_owned())
                .or_default()
                .push(name.trim_start_matches('/').to_owned());
        }
        Ok(users)
    }

    /// How many bytes of each image others have too, by its id; nothing if the engine does not say.
    pub(crate) async fn shared_bytes(&self) -> HashMap<String, u64> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Usage {
            #[serde(rename = "Images")]
            images: Option<Vec<Image>>,
            /// Its place from version 1.52 of the API on.
            #[serde(rename = "ImageUsage")]
            image_usage: Option<ImageUsage>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct ImageUsage {
            #[serde(rename = "Items")]
            items: Option<Vec<Image>>,
        }
        #[derive(Deserialize)]
        struct Image {
            #[serde(rename = "Id")]
            id: String,
            #[serde(rename = "SharedSize")]
            shared: i64,
        }
        let ask = async {
            let version = self.docker.client_version();
            // Older engines count everything, whatever they are asked.
            let request = get(&version, "/system/df?type=image&verbose=true")
                .body(Empty::new().map_err(|never| match never {}).boxed_unsync())
                .map_err(|error| Failure::broken(&error))?;
            let answer = send(&self.address, request).await?;
            answer.json::<Usage>(MAX_USAGE).await
        };
        let Ok(Ok(usage)) = tokio::time::timeout(USAGE_TIMEOUT, ask).await else {
            return HashMap::new();
        };
        let of_new = usage.image_usage.and_then(|usage| usage.items);
        let images = usage.images.or(of_new).unwrap_or_default();
        let known = images
            .into_iter()
            .filter_map(|image| Some((image.id, u64::try_from(image.shared).ok()?)));
        known.collect()
    }

    /// Takes a name away from an image, and with the last one the image. Never by force.
    pub(crate) async fn remove(&self, reference: &str) -> Result<Removal> {
        let work = || async {
            let removed = self
                .docker
                .remove_image(reference, None::<RemoveImageOptions>, None);
            match removed.await {
                Ok(items) if items.iter().any(|item| item.deleted.is_some()) => {
                    Ok(Removal::Deleted)
                }
                Ok(_) => Ok(Removal::Untagged),
                Err(E::DockerResponseServerError {
                    status_code: 404, ..
                }) => Ok(Removal::Absent),
                Err(E::DockerResponseServerError {
                    status_code: 409,
                    message,
                }) => Ok(Removal::Refused(message)),
                Err(error) => Err(error),
            }
        };
        self.call(work).await
    }
}

/// An id without its algorithm, which Podman leaves out here and there.
pub(crate) fn bare(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}
