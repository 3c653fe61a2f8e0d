//! The engine's image store: lists images and their users, and removes references.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use hyper::Method;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::task::TaskTracker;

use super::api::{Capped, Failure, Labels, MAX_INFO, in_path, unreadable};
use super::image::{MAX_REFERENCES, unix};
use super::{Builder, Engine, REVISION_LABEL};
use crate::error::Result;
use crate::names::reference::without_default_host;
use crate::names::registry::LOCAL_IMAGE_PREFIX;
use crate::process::executor::blocking;

/// The time limit of the disk usage, which is optional. An engine with many images takes long to compute it.
const USAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// The number of retries after a concurrent removal, and the pause before each.
const REMOVAL_RETRIES: u32 = 10;
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);

/// The largest answer with a list, in bytes. A list of ten thousand images or containers has about 10 MiB, or
/// 40 MiB with long labels.
const MAX_LIST: usize = 64 << 20;

/// The largest answer about disk usage, in bytes.
const MAX_USAGE: usize = 16 << 20;

/// The most entries of a list that are kept.
const MAX_KEPT: usize = 100_000;

/// The largest answer to a removal, in bytes. An image has some hundred layers at most.
const MAX_REMOVED: usize = 1 << 20;

/// An image in a list.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) id: String,
    /// All its references, as the engine lists them.
    pub(crate) references: Vec<String>,
    pub(crate) labels: HashMap<String, String>,
    /// Seconds since 1970.
    pub(crate) created: i64,
    /// The size, including layers shared with other images.
    pub(crate) bytes: u64,
}

impl Stored {
    pub(crate) fn revision(&self) -> Option<&str> {
        self.labels.get(REVISION_LABEL).map(String::as_str)
    }
}

/// The result of removing a reference.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It was the last reference: the image was deleted.
    Deleted,
    /// The image has other references, or another image needs it.
    Untagged,
    /// The reference does not exist any more.
    Absent,
    /// The engine refused, for this reason: for example, a container uses the image.
    Refused(String),
}

impl Engine {
    /// All images with a reference of this library.
    pub(crate) async fn images(&self) -> Result<Vec<Stored>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Image {
            id: String,
            #[serde(default)]
            repo_tags: Capped<String, MAX_REFERENCES>,
            #[serde(default)]
            labels: Labels,
            created: i64,
            size: i64,
        }
        let ours = |image: Image| {
            let named = |listed: &String| {
                let rest = without_default_host(listed).strip_prefix(LOCAL_IMAGE_PREFIX);
                rest.is_some_and(|rest| rest.starts_with('/'))
            };
            image.repo_tags.0.iter().any(named).then(|| Stored {
                id: image.id,
                references: image.repo_tags.0,
                labels: image.labels.0.into_iter().collect(),
                created: image.created,
                bytes: u64::try_from(image.size).unwrap_or(0),
            })
        };
        self.list(
            "/images/json",
            |image: &Stored| image.references.len(),
            ours,
        )
        .await
    }

    /// Requests a list and decodes it entry by entry, so that entries which `keep` drops use no memory. An entry
    /// counts `weight` times towards [`MAX_KEPT`].
    async fn list<T: DeserializeOwned, K: Send + 'static>(
        &self,
        path: &'static str,
        weight: impl Fn(&K) -> usize + Send + 'static,
        keep: impl Fn(T) -> Option<K> + Send + 'static,
    ) -> Result<Vec<K>> {
        // One at a time: each may be large. Never closed, so this cannot fail.
        let _permit = self.lists.acquire().await;
        let read = async {
            let ask = || self.api.call(&Method::GET, path, MAX_LIST);
            let body = self.retry_concurrent_removal(&[404, 500], ask).await?;
            // Decoding takes too long for the runtime's own threads.
            let parse = move || Ok(parse_list(path, &body, weight, keep));
            blocking(&TaskTracker::new(), parse)
                .await
                .unwrap_or_else(|error| Err(Failure::Local(error)))
        };
        self.call(|| read).await
    }

    /// Retries a request about images that fails because another image is being removed. Podman then answers 500,
    /// "image not known" (seen with 4.3), and Docker's containerd store 404, "content digest not found" (seen with
    /// 28.5). `statuses` are those that have no other meaning for this request.
    pub(super) async fn retry_concurrent_removal<T, W>(
        &self,
        statuses: &[u16],
        mut ask: impl FnMut() -> W,
    ) -> std::result::Result<T, Failure>
    where
        W: Future<Output = std::result::Result<T, Failure>>,
    {
        let is_transient = |status| match self.builder {
            Builder::Buildah => statuses.contains(&status),
            _ => status != 500 && statuses.contains(&status),
        };
        let mut retries = REMOVAL_RETRIES;
        loop {
            match ask().await {
                Err(Failure::Refused(refusal)) if is_transient(refusal.status) && retries > 0 => {
                    retries -= 1
                }
                result => return result,
            }
            tokio::time::sleep(REMOVAL_PAUSE).await;
        }
    }

    /// The engine's clock, in seconds since 1970. It may differ from this machine's if the engine runs on another
    /// one, or in a VM.
    pub(crate) async fn now(&self) -> Option<i64> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Info {
            system_time: Option<String>,
        }
        let info = self.api.get::<Info>("/info", MAX_INFO);
        unix(&self.call(|| info).await.ok()?.system_time?)
    }

    /// When an image was last tagged, if the engine records it: seconds since 1970, and nanoseconds. The creation
    /// time does not help here: an image whose steps were all cached has that of the cached result.
    pub(crate) async fn last_tagged(&self, image: &str) -> Option<(i64, u32)> {
        let found = self.retry_concurrent_removal(&[500], || self.inspect(image));
        let found = self.call(|| found).await.ok()??;
        let tagged = found.metadata.last_tag_time?;
        let tagged = OffsetDateTime::parse(&tagged, &Rfc3339).ok()?;
        Some((tagged.unix_timestamp(), tagged.nanosecond()))
    }

    /// The names of all containers, running or not, by the id of their image.
    pub(crate) async fn containers_by_image(&self) -> Result<HashMap<String, Vec<String>>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Container {
            id: String,
            #[serde(default)]
            names: Capped<String, MAX_REFERENCES>,
            #[serde(default, rename = "ImageID")]
            image: String,
        }
        let pair = |container: Container| {
            let name = container.names.0.into_iter().next();
            let name = name.unwrap_or(container.id);
            Some((
                bare(&container.image).to_owned(),
                name.trim_start_matches('/').to_owned(),
            ))
        };
        let containers = self.list("/containers/json?all=true", |_| 1, pair).await?;
        let mut users: HashMap<String, Vec<String>> = HashMap::new();
        for (image, name) in containers {
            users.entry(image).or_default().push(name);
        }
        Ok(users)
    }

    /// The bytes of each image that are shared with others, by its id. Empty if the engine does not report them.
    pub(crate) async fn shared_bytes(&self) -> HashMap<String, u64> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Usage {
            #[serde(rename = "Images")]
            images: Option<Capped<Image, MAX_KEPT>>,
            /// Used instead of `Images` since API version 1.52.
            #[serde(rename = "ImageUsage")]
            image_usage: Option<ImageUsage>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct ImageUsage {
            #[serde(rename = "Items")]
            items: Option<Capped<Image, MAX_KEPT>>,
        }
        #[derive(Deserialize)]
        struct Image {
            #[serde(rename = "Id")]
            id: String,
            #[serde(rename = "SharedSize")]
            shared: i64,
        }
        // Older engines ignore the parameters, and compute everything.
        let path = "/system/df?type=image&verbose=true";
        let usage = self.call(|| self.api.get::<Usage>(path, MAX_USAGE));
        let Ok(Ok(usage)) = tokio::time::timeout(USAGE_TIMEOUT, usage).await else {
            return HashMap::new();
        };
        let of_new = usage.image_usage.and_then(|usage| usage.items);
        let images = usage.images.or(of_new).unwrap_or_default().0;
        let known = images
            .into_iter()
            .filter_map(|image| Some((image.id, u64::try_from(image.shared).ok()?)));
        known.collect()
    }

    /// Removes a reference, and with the last one the image. Never with force.
    pub(crate) async fn remove(&self, reference: &str) -> Result<Removal> {
        #[derive(Deserialize)]
        struct Item {
            #[serde(rename = "Deleted")]
            deleted: Option<IgnoredAny>,
        }
        let path = format!("/images/{}", in_path(reference));
        let work = async {
            match self.api.call(&Method::DELETE, &path, MAX_REMOVED).await {
                Ok(body) => {
                    let items: Capped<Item, MAX_KEPT> =
                        serde_json::from_slice(&body).map_err(|error| unreadable(&path, &error))?;
                    Ok(match items.0.iter().any(|item| item.deleted.is_some()) {
                        true => Removal::Deleted,
                        false => Removal::Untagged,
                    })
                }
                Err(Failure::Refused(refusal)) if refusal.is_not_found() => Ok(Removal::Absent),
                Err(Failure::Refused(refusal)) if refusal.status == 409 => {
                    Ok(Removal::Refused(refusal.message))
                }
                Err(failure) => Err(failure),
            }
        };
        self.call(|| work).await
    }
}

/// Decodes a list entry by entry.
fn parse_list<T: DeserializeOwned, K>(
    path: &str,
    body: &[u8],
    weight: impl Fn(&K) -> usize,
    keep: impl Fn(T) -> Option<K>,
) -> std::result::Result<Vec<K>, Failure> {
    struct Reader<T, W, F>(PhantomData<T>, W, F);

    impl<'de, T, K, W, F> Visitor<'de> for Reader<T, W, F>
    where
        T: Deserialize<'de>,
        W: Fn(&K) -> usize,
        F: Fn(T) -> Option<K>,
    {
        type Value = Vec<K>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(
            self,
            mut list: A,
        ) -> std::result::Result<Vec<K>, A::Error> {
            let (mut found, mut kept) = (Vec::new(), 0);
            while let Some(entry) = list.next_element()? {
                if let Some(entry) = (self.2)(entry) {
                    kept += (self.1)(&entry).max(1);
                    if kept > MAX_KEPT {
                        return Err(A::Error::custom(format!("there are more than {MAX_KEPT}")));
                    }
                    found.push(entry);
                }
            }
            Ok(found)
        }
    }

    let mut json = serde_json::Deserializer::from_slice(body);
    let found = json
        .deserialize_seq(Reader(PhantomData, weight, keep))
        .and_then(|found| json.end().map(|()| found));
    found.map_err(|error| unreadable(path, &error))
}

/// An id without its algorithm, which Podman omits in some answers.
pub(crate) fn bare(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}
