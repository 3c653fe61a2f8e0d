//! What this library has left in the engine and in the cache: to see it, and to remove what is old.
//!
//! An image is ours if it has a name that this library gives, under the isolation that is set, and the
//! labels that it gives. Nothing else is touched, and nothing is ever forced: where the engine says no,
//! the image stays, and the report says why.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::cache::{Cache, Kept};
use crate::engine::{Engine, Removal, Stored, bare};
use crate::error::Result;
use crate::executor::blocking;
use crate::image::LocalName;
use crate::mask::{Masker, Told};
use crate::pipeline::{Shared, platform_label, runtime_label};
use crate::runtimes::{KNOWN_RUNTIMES, Runtime};

/// What may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneOptions {
    /// How many images of each runtime and platform, and trees of each runtime, stay in any case: the
    /// newest. What a container uses and what `:latest` points at stays too.
    pub keep_per_runtime: u32,
    /// Only say what would be done.
    pub dry_run: bool,
}

impl Default for PruneOptions {
    /// The newest two.
    fn default() -> Self {
        Self {
            keep_per_runtime: 2,
            dry_run: false,
        }
    }
}

/// An image in the engine, under a name that this library gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LocalImage {
    /// The reference that is pinned to the commit; where there is none, the moving one.
    pub r#ref: String,
    /// The runtime it is of.
    pub runtime: String,
    /// What it was built for; empty if it does not say.
    pub platform: String,
    /// The full id of the commit; empty if it does not say.
    pub commit_sha: String,
    /// The engine's id of the image.
    pub image_id: String,
    /// When it was made or last tagged, whichever is later, in seconds since 1970.
    pub created_unix: i64,
    /// Its size, with what it shares with other images.
    pub bytes: u64,
    /// What no other image has too: what its removal would free.
    pub own_bytes: u64,
    /// Does the reference that moves with the branch point at it?
    pub latest: bool,
    /// The containers that were made from it, running or not.
    pub used_by: Vec<String>,
    /// Names that somebody else has given it.
    pub other_refs: Vec<String>,
}

/// A checked-out tree in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedTree {
    /// Where it is.
    pub path: String,
    /// The runtime it is of.
    pub runtime: String,
    /// The full id of the commit; its first twelve digits where the tree is not whole.
    pub commit_sha: String,
    /// When it was made, in seconds since 1970.
    pub created_unix: i64,
    /// What it takes on the disk.
    pub bytes: u64,
    /// False for what a process that was killed, or is at it now, has begun.
    pub whole: bool,
}

/// What is here. The newest comes first, within each runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// The images.
    pub images: Vec<LocalImage>,
    /// The trees.
    pub trees: Vec<CachedTree>,
}

/// What has become of a thing; with [`PruneOptions::dry_run`], what would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It stays.
    Kept,
    /// The image has lost our name and stays: another name or another image needs it.
    Untagged,
    /// It is gone.
    Removed,
}

/// One image, and what has become of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PrunedImage {
    /// The image.
    #[serde(flatten)]
    pub image: LocalImage,
    /// What has become of it.
    pub action: Action,
    /// Why.
    pub reason: String,
}

/// One tree, and what has become of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PrunedTree {
    /// The tree.
    #[serde(flatten)]
    pub tree: CachedTree,
    /// What has become of it.
    pub action: Action,
    /// Why.
    pub reason: String,
}

/// Everything that was looked at, and what has become of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// What the removed images and trees took. Of an image only what no other had too counts, so that
    /// it may have been more.
    pub freed_bytes: u64,
    /// The images.
    pub images: Vec<PrunedImage>,
    /// The trees.
    pub trees: Vec<PrunedTree>,
}

/// An image with what is needed to judge it.
struct Candidate {
    image: LocalImage,
    runtime: Runtime,
    /// Our pinned references, as the engine lists them, each with the digits of its commit.
    pinned: Vec<(String, String)>,
    /// As it stands in the tag.
    platform: String,
    /// Images can be younger than one another by less than a second.
    nanos: u32,
    /// It has the labels of this library.
    labelled: bool,
}

/// A tree with what is needed to remove it.
struct Tree {
    tree: CachedTree,
    kept: Kept,
    cache: Cache,
}

/// What is here.
pub(crate) async fn list(shared: &Arc<Shared>) -> Result<Inventory> {
    let (images, trees) = survey(shared).await?;
    Ok(Inventory {
        images: images.into_iter().map(|found| found.image).collect(),
        trees: trees.into_iter().map(|found| found.tree).collect(),
    })
}

/// Removes what is old.
pub(crate) async fn prune(shared: &Arc<Shared>, options: PruneOptions) -> Result<PruneReport> {
    let (images, trees) = survey(shared).await?;
    let mut report = PruneReport {
        dry_run: options.dry_run,
        freed_bytes: 0,
        images: Vec::with_capacity(images.len()),
        trees: Vec::with_capacity(trees.len()),
    };
    let mut seen: HashMap<(Runtime, String), u32> = HashMap::new();
    for found in images {
        let nth = seen
            .entry((found.runtime, found.platform.clone()))
            .or_default();
        let newest = found.labelled && {
            *nth += 1;
            *nth <= options.keep_per_runtime
        };
        let (action, reason) = match why_kept(&found, newest, options) {
            Some(reason) => (Action::Kept, reason),
            None => drop_image(shared, &found, options).await?,
        };
        if action == Action::Removed && reason != ALREADY_GONE {
            report.freed_bytes += found.image.own_bytes;
        }
        report.images.push(PrunedImage {
            image: found.image,
            action,
            reason,
        });
    }
    let mut seen: HashMap<String, u32> = HashMap::new();
    for found in trees {
        let nth = seen.entry(found.tree.runtime.clone()).or_default();
        let newest = found.tree.whole && {
            *nth += 1;
            *nth <= options.keep_per_runtime
        };
        let tree = found.tree.clone();
        let (action, reason) = match newest {
            true => (
                Action::Kept,
                newest_of(options.keep_per_runtime, &tree.runtime),
            ),
            false => blocking(&shared.tasks, move || drop_tree(&found, options)).await?,
        };
        if action == Action::Removed {
            report.freed_bytes += tree.bytes;
        }
        report.trees.push(PrunedTree {
            tree,
            action,
            reason,
        });
    }
    Ok(report)
}

const ALREADY_GONE: &str = "somebody else has removed it meanwhile";
const IN_WORK: &str = "a call is at this commit just now";

/// Everything of ours, the newest first within each runtime.
async fn survey(shared: &Arc<Shared>) -> Result<(Vec<Candidate>, Vec<Tree>)> {
    let root = shared.settings.cache_dir.clone();
    let trees = blocking(&shared.tasks, move || {
        let mut trees = Vec::new();
        for name in KNOWN_RUNTIMES {
            let runtime = Runtime::parse(name)?;
            if let Some(cache) = Cache::existing(&root, runtime)? {
                let mut found: Vec<Tree> = cache
                    .kept()
                    .into_iter()
                    .map(|kept| Tree::new(runtime, &cache, kept))
                    .collect();
                found.sort_by_key(|found| Reverse(found.kept.made));
                trees.append(&mut found);
            }
        }
        Ok(trees)
    })
    .await?;
    Ok((images(shared).await?, trees))
}

async fn images(shared: &Shared) -> Result<Vec<Candidate>> {
    let engine = shared.engine().await?;
    let ours: Vec<(Stored, Vec<(String, LocalName)>)> = engine
        .images()
        .await?
        .into_iter()
        .filter_map(|stored| {
            let isolation = &shared.settings.isolation;
            let parse =
                |listed: &String| Some((listed.clone(), LocalName::parse(listed, isolation)?));
            let names: Vec<_> = stored.references.iter().filter_map(parse).collect();
            (!names.is_empty()).then_some((stored, names))
        })
        .collect();
    if ours.is_empty() {
        return Ok(Vec::new());
    }
    let (users, shared_bytes) = tokio::join!(engine.users(), engine.shared_bytes());
    let users = users?;
    let mut images = Vec::with_capacity(ours.len());
    for (stored, names) in ours {
        let tagged = engine.last_tagged(&stored.id).await;
        let used_by = users.get(bare(&stored.id)).cloned().unwrap_or_default();
        let shared = shared_bytes.get(&stored.id).copied().unwrap_or(0);
        images.extend(Candidate::new(&stored, names, tagged, used_by, shared));
    }
    images.sort_by_key(|found| {
        (
            found.runtime.as_str(),
            found.platform.clone(),
            Reverse((found.image.created_unix, found.nanos)),
        )
    });
    Ok(images)
}

impl Candidate {
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
        // One image under the names of two runtimes was not made by this library.
        let runtime = name.runtime;
        let labelled = names
            .iter()
            .all(|(_, name)| name.runtime.as_str() == label(&runtime_label()));
        let foreign = |listed: &&String| {
            !names.iter().any(|(ours, _)| ours == *listed) && !listed.starts_with("<none>")
        };
        Some(Self {
            image: LocalImage {
                r#ref: crate::image::as_given(first).to_owned(),
                runtime: runtime.to_string(),
                platform: label(&platform_label()),
                commit_sha: stored.revision().unwrap_or_default().to_owned(),
                image_id: stored.id.clone(),
                created_unix: stored.created.max(tagged.0),
                bytes: stored.bytes,
                own_bytes: stored.bytes.saturating_sub(shared_bytes),
                latest: names.iter().any(|(_, name)| name.commit.is_none()),
                used_by,
                other_refs: stored.references.iter().filter(foreign).cloned().collect(),
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

impl Tree {
    fn new(runtime: Runtime, cache: &Cache, kept: Kept) -> Self {
        let commit = kept.commit.as_ref();
        Self {
            tree: CachedTree {
                path: kept.path.display().to_string(),
                runtime: runtime.to_string(),
                commit_sha: commit.map_or(kept.short.clone(), ToString::to_string),
                created_unix: seconds(kept.made),
                bytes: kept.bytes,
                whole: commit.is_some(),
            },
            kept,
            cache: cache.clone(),
        }
    }
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn newest_of(keep: u32, runtime: &str) -> String {
    match keep {
        1 => format!("the newest of {runtime}"),
        keep => format!("one of the newest {keep} of {runtime}"),
    }
}

fn older_than(keep: u32) -> String {
    match keep {
        0 => "none is to be kept".to_owned(),
        1 => "older than the newest".to_owned(),
        keep => format!("older than the newest {keep}"),
    }
}

/// The first reason for which an image stays.
fn why_kept(found: &Candidate, newest: bool, options: PruneOptions) -> Option<String> {
    let image = &found.image;
    if !found.labelled {
        return Some("it has not the labels of libmol: somebody else made it".to_owned());
    }
    if let Some(container) = image.used_by.first() {
        let more = match image.used_by.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        return Some(format!("the container {container}{more} uses it"));
    }
    if image.latest {
        return Some("the tag latest points at it".to_owned());
    }
    newest.then(|| newest_of(options.keep_per_runtime, &image.runtime))
}

/// Takes our names away from an image, each while nobody builds the commit.
async fn drop_image(
    shared: &Arc<Shared>,
    found: &Candidate,
    options: PruneOptions,
) -> Result<(Action, String)> {
    let engine = shared.engine().await?;
    let mut outcome = Outcome::default();
    for (reference, short) in &found.pinned {
        let (root, runtime, short) = (
            shared.settings.cache_dir.clone(),
            found.runtime,
            short.clone(),
        );
        let lock = blocking(&shared.tasks, move || {
            // Where there is no cache, nobody builds.
            let Some(cache) = Cache::existing(&root, runtime)? else {
                return Ok(Some(None));
            };
            Ok(match options.dry_run {
                true => (!cache.is_locked(&short)).then_some(None),
                false => cache.try_lock(&short)?.map(Some),
            })
        });
        let Some(_lock) = lock.await? else {
            outcome.refused.get_or_insert(IN_WORK.to_owned());
            continue;
        };
        match options.dry_run {
            true => outcome.deleted = true,
            false => outcome.take(remove(engine, reference, &found.image.image_id).await),
        }
    }
    let older = older_than(options.keep_per_runtime);
    Ok(match (outcome, found.image.other_refs.first()) {
        (
            Outcome {
                refused: Some(why), ..
            },
            _,
        ) => (Action::Kept, why),
        (Outcome { deleted: true, .. }, None) => (Action::Removed, older),
        (Outcome { untagged: true, .. } | Outcome { deleted: true, .. }, Some(other)) => (
            Action::Untagged,
            format!("{older}; the image stays, for it is {other} too"),
        ),
        (Outcome { untagged: true, .. }, None) => (
            Action::Untagged,
            format!("{older}; the image stays, for another image needs it"),
        ),
        _ => (Action::Removed, ALREADY_GONE.to_owned()),
    })
}

/// What has come of taking away all names of an image.
#[derive(Default)]
struct Outcome {
    deleted: bool,
    untagged: bool,
    refused: Option<String>,
}

impl Outcome {
    fn take(&mut self, removal: Result<Removal>) {
        match removal {
            Ok(Removal::Deleted) => self.deleted = true,
            Ok(Removal::Untagged) => self.untagged = true,
            Ok(Removal::Absent) => {}
            Ok(Removal::Refused(why)) => self.refused = Some(format!("the engine says: {why}")),
            // The others are tried all the same; what is wrong with the engine is told at each.
            Err(error) => self.refused = Some(error.message),
        }
    }
}

/// Takes a name away, if it still is that image's.
async fn remove(engine: &Engine, reference: &str, image: &str) -> Result<Removal> {
    match engine.find(reference).await? {
        Some(found) if bare(&found.id) == bare(image) => engine.remove(reference).await,
        _ => Ok(Removal::Absent),
    }
}

fn drop_tree(found: &Tree, options: PruneOptions) -> Result<(Action, String)> {
    let reason = match found.tree.whole {
        true => older_than(options.keep_per_runtime),
        false => "a process that was stopped has left it half-written".to_owned(),
    };
    let short = &found.kept.short;
    let held = match options.dry_run {
        true => found.cache.is_locked(short),
        false => match found.cache.try_lock(short)? {
            None => true,
            Some(_lock) => match found.cache.discard(&found.kept) {
                Ok(gone) => !gone,
                Err(error) => return Ok((Action::Kept, error.message)),
            },
        },
    };
    Ok(match held {
        true => (Action::Kept, IN_WORK.to_owned()),
        false => (Action::Removed, reason),
    })
}

impl Told for Inventory {
    fn masked(mut self, masker: &Masker) -> Self {
        self.images.iter_mut().for_each(|image| image.mask(masker));
        self.trees.iter_mut().for_each(|tree| tree.mask(masker));
        self
    }
}

impl Told for PruneReport {
    fn masked(mut self, masker: &Masker) -> Self {
        for pruned in &mut self.images {
            pruned.image.mask(masker);
            masker.in_place(&mut pruned.reason);
        }
        for pruned in &mut self.trees {
            pruned.tree.mask(masker);
            masker.in_place(&mut pruned.reason);
        }
        self
    }
}

impl LocalImage {
    fn mask(&mut self, masker: &Masker) {
        let texts = [
            &mut self.r#ref,
            &mut self.platform,
            &mut self.commit_sha,
            &mut self.image_id,
        ];
        texts
            .into_iter()
            .chain(&mut self.used_by)
            .chain(&mut self.other_refs)
            .for_each(|text| masker.in_place(text));
    }
}

impl CachedTree {
    fn mask(&mut self, masker: &Masker) {
        masker.in_place(&mut self.path);
        masker.in_place(&mut self.commit_sha);
    }
}
