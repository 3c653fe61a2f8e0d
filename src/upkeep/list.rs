//! Lists the images and the cached trees of this library.
//!
//! An image belongs to this library if it has one of its names, under the configured isolation. Pruning also checks
//! its labels.

use std::cmp::Reverse;
use std::sync::Arc;

use serde::Serialize;

use crate::cache::{Cache, CacheEntry};
use crate::engine::{PLATFORM_LABEL, RUNTIME_LABEL, Stored, bare};
use crate::error::Result;
use crate::job::shared::Shared;
use crate::names::commit::full_id;
use crate::names::reference::{LocalName, without_default_host};
use crate::names::runtimes::Runtime;
use crate::process::executor::blocking;
use crate::redact::{self, Masker, Redact};
use crate::upkeep::unix_seconds;

/// An image in the engine, under a name that this library gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LocalImage {
    /// The reference that is pinned to the commit; if there is none, the moving one.
    pub r#ref: String,
    /// The runtime.
    pub runtime: String,
    /// The platform; empty if the image has no such label.
    pub platform: String,
    /// The full id of the commit; empty if the image has no such label.
    pub commit_sha: String,
    /// The engine's id of the image.
    pub image_id: String,
    /// When it was built or last tagged, whichever is later, in seconds since 1970.
    pub created_unix: i64,
    /// Its size in bytes, including layers that it shares with other images.
    pub bytes: u64,
    /// The bytes that no other image shares, as the engine counts them: about what its removal would free. Layers in the
    /// engine's build cache stay there. Docker's containerd store counts the compressed copy of a shared layer as the
    /// image's own (seen on 28.5.2: `Size` is the content and the snapshots, `SharedSize` the snapshots alone).
    pub own_bytes: u64,
    /// Whether the moving reference points to it.
    pub latest: bool,
    /// The containers that were created from it, running or not.
    pub used_by: Vec<String>,
    /// Other names of the image, which this library did not set.
    pub other_refs: Vec<String>,
}

/// A checked-out tree in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedTree {
    /// Its path.
    pub path: String,
    /// The runtime.
    pub runtime: String,
    /// The full id of the commit; only its first twelve digits if the tree is incomplete.
    pub commit_sha: String,
    /// When it was created, in seconds since 1970.
    pub created_unix: i64,
    /// Its size on the disk, in bytes.
    pub bytes: u64,
    /// False for an incomplete tree, of a killed process or of a fetch that is still running.
    pub whole: bool,
}

/// The images, grouped by runtime and platform, and the trees, grouped by runtime; the newest of a group is first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// The address of the engine that has the images, as in [`Image::endpoint`](crate::Image::endpoint).
    pub endpoint: String,
    /// The images.
    pub images: Vec<LocalImage>,
    /// The trees.
    pub trees: Vec<CachedTree>,
}

/// An image, with the facts that pruning needs.
#[derive(Clone)]
pub(super) struct FoundImage {
    pub(super) image: LocalImage,
    pub(super) runtime: Runtime,
    /// The pinned references, as the engine lists them, each with the first twelve digits of its commit.
    pub(super) pinned: Vec<(String, String)>,
    /// The platform suffix of the tag.
    pub(super) platform: String,
    /// The nanoseconds of the image's time, to sort images of the same second.
    nanos: u32,
    /// Whether it has the labels of this library.
    pub(super) labelled: bool,
}

/// A tree, with the facts that pruning needs.
pub(super) struct FoundTree {
    pub(super) tree: CachedTree,
    pub(super) entry: CacheEntry,
    pub(super) cache: Cache,
}

/// Lists the images and the trees.
pub(crate) async fn inventory(shared: &Arc<Shared>) -> Result<Inventory> {
    let (images, trees) = survey(shared).await?;
    Ok(Inventory {
        endpoint: shared.engine().await?.endpoint().to_owned(),
        images: images.into_iter().map(|found| found.image).collect(),
        trees: trees.into_iter().map(|found| found.tree).collect(),
    })
}

/// The images and the trees, in the order of [`Inventory`].
pub(super) async fn survey(shared: &Arc<Shared>) -> Result<(Vec<FoundImage>, Vec<FoundTree>)> {
    let (root, runtimes) = (
        shared.settings.cache_dir.clone(),
        shared.settings.runtimes.clone(),
    );
    let trees = blocking(&shared.tasks, move || {
        let mut trees = Vec::new();
        for runtime in runtimes.iter() {
            if let Some(cache) = Cache::existing(&root, runtime)? {
                let mut found: Vec<FoundTree> = cache
                    .entries()
                    .into_iter()
                    .map(|entry| FoundTree::new(runtime, &cache, entry))
                    .collect();
                found.sort_by_key(|found| Reverse(found.entry.made));
                trees.append(&mut found);
            }
        }
        Ok(trees)
    })
    .await?;
    Ok((images(shared).await?, trees))
}

async fn images(shared: &Shared) -> Result<Vec<FoundImage>> {
    let engine = shared.engine().await?;
    let named: Vec<(Stored, Vec<(String, LocalName)>)> = engine
        .images()
        .await?
        .into_iter()
        .filter_map(|stored| {
            let parse = |listed: &String| Some((listed.clone(), shared.local_name(listed)?));
            let names: Vec<_> = stored.references.iter().filter_map(parse).collect();
            (!names.is_empty()).then_some((stored, names))
        })
        .collect();
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let (users, shared_bytes) = tokio::join!(engine.containers_by_image(), engine.shared_bytes());
    let users = users?;
    let mut images = Vec::with_capacity(named.len());
    for (stored, names) in named {
        let tagged = engine.last_tagged(&stored.id).await;
        let used_by = users.get(bare(&stored.id)).cloned().unwrap_or_default();
        let shared = shared_bytes.get(&stored.id).copied().unwrap_or(0);
        images.extend(FoundImage::new(&stored, names, tagged, used_by, shared));
    }
    images.sort_by_key(|found| {
        (
            found.runtime.clone(),
            found.platform.clone(),
            Reverse((found.image.created_unix, found.nanos)),
        )
    });
    Ok(images)
}

impl FoundImage {
    fn new(
        stored: &Stored,
        names: Vec<(String, LocalName)>,
        tagged: Option<(i64, u32)>,
        used_by: Vec<String>,
        shared_bytes: u64,
    ) -> Option<Self> {
        let (first, name) = names
            .iter()
            .find(|(_, name)| name.commit.is_some())
            .or(names.first())?;
        let label = |name: &str| stored.labels.get(name).cloned().unwrap_or_default();
        let tagged = tagged.unwrap_or_default();
        // This library never gives one image the names of two runtimes.
        let runtime = name.runtime.clone();
        let labelled = names
            .iter()
            .all(|(_, name)| name.runtime.as_str() == label(RUNTIME_LABEL));
        let is_other = |listed: &&String| {
            !names.iter().any(|(own, _)| own == *listed) && !listed.starts_with("<none>")
        };
        Some(Self {
            image: LocalImage {
                r#ref: without_default_host(first).to_owned(),
                runtime: runtime.to_string(),
                platform: label(PLATFORM_LABEL),
                commit_sha: full_id(stored.revision()),
                image_id: stored.id.clone(),
                created_unix: stored.created.max(tagged.0),
                bytes: stored.bytes,
                own_bytes: stored.bytes.saturating_sub(shared_bytes),
                latest: names.iter().any(|(_, name)| name.commit.is_none()),
                used_by,
                other_refs: stored.references.iter().filter(is_other).cloned().collect(),
            },
            runtime,
            platform: name.platform.clone(),
            nanos: if tagged.0 >= stored.created {
                tagged.1
            } else {
                0
            },
            labelled,
            pinned: names
                .into_iter()
                .filter_map(|(listed, name)| Some((listed, name.commit?)))
                .collect(),
        })
    }
}

impl FoundTree {
    fn new(runtime: &Runtime, cache: &Cache, entry: CacheEntry) -> Self {
        let commit = entry.commit.as_ref();
        Self {
            tree: CachedTree {
                path: entry.path.display().to_string(),
                runtime: runtime.to_string(),
                commit_sha: commit.map_or(entry.short.clone(), ToString::to_string),
                created_unix: unix_seconds(entry.made),
                bytes: entry.bytes,
                whole: commit.is_some(),
            },
            entry,
            cache: cache.clone(),
        }
    }
}

impl Redact for Inventory {
    fn masked(mut self, masker: &Masker) -> Self {
        masker.endpoint(&mut self.endpoint);
        self.images.iter_mut().for_each(|image| image.mask(masker));
        self.trees.iter_mut().for_each(|tree| tree.mask(masker));
        self
    }
}

impl LocalImage {
    pub(super) fn mask(&mut self, masker: &Masker) {
        let names = [&mut self.r#ref, &mut self.commit_sha, &mut self.image_id];
        names
            .into_iter()
            .chain(&mut self.other_refs)
            .for_each(redact::clean);
        [&mut self.platform]
            .into_iter()
            .chain(&mut self.used_by)
            .for_each(|text| masker.in_place(text));
    }
}

impl CachedTree {
    pub(super) fn mask(&mut self, masker: &Masker) {
        masker.in_place(&mut self.path);
        redact::clean(&mut self.commit_sha);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use super::*;

    use crate::names::reference::Isolation;
    use crate::names::runtimes::Runtimes;

    pub(in crate::upkeep) const NOW: i64 = 1_800_000_000;
    pub(in crate::upkeep) const PINNED: &str =
        "molecule-local/workspace-template-hermes:0123456789ab";

    /// An image with these references and the labels of hermes, created at [`NOW`].
    pub(in crate::upkeep) fn image(references: &[&str], tagged: Option<(i64, u32)>) -> FoundImage {
        let stored = Stored {
            id: "sha256:1".to_owned(),
            references: references.iter().map(|&name| name.to_owned()).collect(),
            labels: HashMap::from([(RUNTIME_LABEL.to_owned(), "hermes".to_owned())]),
            created: NOW,
            bytes: 100,
        };
        let (runtimes, isolation) = (Runtimes::default(), Isolation::default());
        let parse = |listed: &String| {
            let name = LocalName::parse(listed, &runtimes, &isolation)?;
            Some((listed.clone(), name))
        };
        let names = stored.references.iter().filter_map(parse).collect();
        FoundImage::new(&stored, names, tagged, Vec::new(), 30).unwrap()
    }

    #[test]
    fn an_image_with_names_of_two_runtimes_is_not_labelled() {
        let other = "molecule-local/workspace-template-codex:0123456789ab";
        assert!(image(&[PINNED], None).labelled);
        for names in [[PINNED, other], [other, PINNED]] {
            assert!(!image(&names, None).labelled);
        }
        assert!(!image(&[other], None).labelled);
    }

    #[test]
    fn the_last_tag_sets_the_age_and_shared_layers_do_not_count() {
        let tagged = |tagged| image(&[PINNED], tagged).image;
        assert_eq!(tagged(None).created_unix, NOW);
        assert_eq!(tagged(Some((NOW + 5, 7))).created_unix, NOW + 5);
        assert_eq!(tagged(Some((NOW - 5, 7))).created_unix, NOW);
        assert_eq!(tagged(None).own_bytes, 70);
        // Within one second, the later tag makes the newer image.
        assert_eq!(image(&[PINNED], Some((NOW, 7))).nanos, 7);
        assert_eq!(image(&[PINNED], Some((NOW - 5, 7))).nanos, 0);
    }

    #[test]
    fn only_foreign_names_are_listed_as_other_refs() {
        let others = |names: &[&str]| image(names, None).image.other_refs;
        assert_eq!(others(&[PINNED, "<none>:<none>"]), [""; 0]);
        assert_eq!(others(&[PINNED, "busybox:latest"]), ["busybox:latest"]);
        let latest = "molecule-local/workspace-template-hermes:latest";
        assert_eq!(others(&[PINNED, latest]), [""; 0]);
        assert!(image(&[PINNED, latest], None).image.latest);
    }
}
