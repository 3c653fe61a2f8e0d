//! What this library has left in the engine and in the cache: to see it, and to remove what is old.
//!
//! An image is ours if it has a name that this library gives, under the isolation that is set, and the
//! labels that it gives. Nothing else is touched, and nothing is ever forced: where the engine says no,
//! the image stays, and the report says why.
//!
//! Other calls go on meanwhile. So what is to go is claimed first, which keeps calls from taking it up, and looked
//! at again; `job/lease.rs` has the order.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::cache::{Cache, CacheEntry, Lock, UnusedLock};
use crate::engine::{Engine, PLATFORM_LABEL, RUNTIME_LABEL, Removal, Stored, bare};
use crate::error::Result;
use crate::job::lease::{self, Removing};
use crate::job::shared::Shared;
use crate::names::reference::{LocalName, full_id};
use crate::names::runtimes::Runtime;
use crate::process::executor::blocking;
use crate::redact::{self, Masker, Redact};

/// What may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneOptions {
    /// How many images of each runtime and platform, and trees of each runtime, stay in any case: the
    /// newest. What a container uses and what `:latest` points at stays too.
    pub keep_per_runtime: u32,
    /// What was built, or returned by a call, within this time stays in any case. Zero: nothing stays for that.
    /// The call may have been another process's if it has the same cache; for all others see docs/upkeep.md.
    pub recent: Duration,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// Time enough to make a container from a reference that a call has returned.
pub(crate) const RECENT: Duration = Duration::from_secs(600);

impl Default for PruneOptions {
    /// The newest two, and what was used in the last ten minutes.
    fn default() -> Self {
        Self {
            keep_per_runtime: 2,
            recent: RECENT,
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
    /// What no other image has too, as the engine counts it: about what its removal would free. What the
    /// engine's build cache has as well stays there. Docker's containerd store counts the compressed copy of
    /// a shared layer as the image's own (seen on 28.5.2: `Size` is the content and the snapshots, `SharedSize`
    /// the snapshots alone).
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
    /// What the removed trees took, and about what the removed images did: the sum of their `own_bytes`. It is
    /// less than that where the build cache has the same layers, and more where only removed images shared
    /// them.
    pub freed_bytes: u64,
    /// The images.
    pub images: Vec<PrunedImage>,
    /// The trees.
    pub trees: Vec<PrunedTree>,
}

/// An image with what is needed to judge it.
#[derive(Clone)]
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
    kept: CacheEntry,
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
    let clock = Clock::of(shared.engine().await?).await;
    let mut report = PruneReport {
        dry_run: options.dry_run,
        freed_bytes: 0,
        images: Vec::with_capacity(images.len()),
        trees: Vec::with_capacity(trees.len()),
    };
    let mut seen: HashMap<(Runtime, String), u32> = HashMap::new();
    for mut found in images {
        let nth = seen
            .entry((found.runtime.clone(), found.platform.clone()))
            .or_default();
        let newest = found.labelled && {
            *nth += 1;
            *nth <= options.keep_per_runtime
        };
        let (action, reason) = match why_kept(&found, newest, options, clock.now()) {
            Some(reason) => (Action::Kept, reason),
            None => drop_image(shared, &mut found, options, &clock).await?,
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

/// The engine's clock, by which its images have their times; this machine's if the engine does not say.
struct Clock {
    then: i64,
    since: Instant,
}

impl Clock {
    async fn of(engine: &Engine) -> Self {
        let then = engine.now().await;
        Self {
            then: then.unwrap_or_else(|| seconds(SystemTime::now())),
            since: Instant::now(),
        }
    }

    /// In seconds since 1970.
    fn now(&self) -> i64 {
        let since = i64::try_from(self.since.elapsed().as_secs()).unwrap_or(i64::MAX);
        self.then.saturating_add(since)
    }
}

/// Everything of ours, the newest first within each runtime.
async fn survey(shared: &Arc<Shared>) -> Result<(Vec<Candidate>, Vec<Tree>)> {
    let (root, runtimes) = (
        shared.settings.cache_dir.clone(),
        shared.settings.runtimes.clone(),
    );
    let trees = blocking(&shared.tasks, move || {
        let mut trees = Vec::new();
        for runtime in runtimes.iter() {
            if let Some(cache) = Cache::existing(&root, runtime)? {
                let mut found: Vec<Tree> = cache
                    .entries()
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
            let parse = |listed: &String| Some((listed.clone(), shared.local_name(listed)?));
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
            found.runtime.clone(),
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
        let runtime = name.runtime.clone();
        let labelled = names
            .iter()
            .all(|(_, name)| name.runtime.as_str() == label(RUNTIME_LABEL));
        let foreign = |listed: &&String| {
            !names.iter().any(|(ours, _)| ours == *listed) && !listed.starts_with("<none>")
        };
        Some(Self {
            image: LocalImage {
                r#ref: crate::names::reference::without_default_host(first).to_owned(),
                runtime: runtime.to_string(),
                platform: label(PLATFORM_LABEL),
                commit_sha: full_id(stored.revision()),
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
    fn new(runtime: &Runtime, cache: &Cache, kept: CacheEntry) -> Self {
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

fn used_lately(recent: Duration) -> String {
    let (number, unit) = match recent.as_secs() {
        seconds if seconds >= 60 && seconds.is_multiple_of(60) => (seconds / 60, "minute"),
        seconds => (seconds, "second"),
    };
    match number {
        1 => format!("used or built within the last {unit}"),
        _ => format!("used or built within the last {number} {unit}s"),
    }
}

/// Is a time within the window? One that lies as far ahead counts too: clocks are set back.
fn is_within(window: Option<Duration>, then: i64, now: i64) -> bool {
    window.is_some_and(|window| now.abs_diff(then) < window.as_secs())
}

/// The first reason for which an image stays. `now` is by the engine's clock.
fn why_kept(found: &Candidate, newest: bool, options: PruneOptions, now: i64) -> Option<String> {
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
    if newest {
        return Some(newest_of(options.keep_per_runtime, &image.runtime));
    }
    is_within(lease::window(options.recent), image.created_unix, now)
        .then(|| used_lately(options.recent))
}

/// The right to take one name away: while it is held, no call builds the commit or takes its image up.
#[derive(Default)]
struct Claim {
    _lock: Option<Lock>,
    _unused: Option<UnusedLock>,
    _removing: Option<Removing>,
}

impl Claim {
    /// Or the reason for which there is none. A dry run only looks for one.
    async fn take(
        shared: &Shared,
        runtime: &Runtime,
        reference: &str,
        short: &str,
        options: PruneOptions,
    ) -> Result<std::result::Result<Self, String>> {
        let (root, runtime, short) = (
            shared.settings.cache_dir.clone(),
            runtime.clone(),
            short.to_owned(),
        );
        let window = lease::window(options.recent);
        let claim = blocking(&shared.tasks, move || {
            let cache = match Cache::existing(&root, &runtime)? {
                Some(cache) => cache,
                None if options.dry_run => return Ok(Ok(Self::default())),
                // A call that begins now makes the folder, so that it would not see this.
                None => match Cache::open(&root, &runtime) {
                    Ok(cache) => cache,
                    // Nor can such a call make it.
                    Err(_) => return Ok(Ok(Self::default())),
                },
            };
            let lately = || window.map_or(IN_WORK.to_owned(), |_| used_lately(options.recent));
            if options.dry_run {
                return Ok(match () {
                    () if cache.is_locked(&short) => Err(IN_WORK.to_owned()),
                    () if cache.is_used(&short, window) => Err(lately()),
                    () => Ok(Self::default()),
                });
            }
            let Some(lock) = cache.try_lock(&short)? else {
                return Ok(Err(IN_WORK.to_owned()));
            };
            let Some(unused) = cache.try_lock_unused(&short, window)? else {
                return Ok(Err(lately()));
            };
            Ok(Ok(Self {
                _lock: Some(lock),
                _unused: Some(unused),
                _removing: None,
            }))
        });
        let claim = match claim.await? {
            Ok(claim) => claim,
            Err(reason) => return Ok(Err(reason)),
        };
        let pinned = crate::names::reference::without_default_host(reference);
        let removing = match options.dry_run {
            true if Removing::is_used(pinned, window) => None,
            true => return Ok(Ok(claim)),
            false => Removing::begin(pinned, window),
        };
        Ok(match removing {
            Some(removing) => Ok(Self {
                _removing: Some(removing),
                ..claim
            }),
            None => Err(used_lately(options.recent)),
        })
    }
}

/// Takes our names away from an image, each one claimed, and looked at again.
async fn drop_image(
    shared: &Shared,
    found: &mut Candidate,
    options: PruneOptions,
    clock: &Clock,
) -> Result<(Action, String)> {
    let engine = shared.engine().await?;
    let mut outcome = Outcome::default();
    for (reference, short) in found.pinned.clone() {
        let claim = Claim::take(shared, &found.runtime, &reference, &short, options).await?;
        let _claim = match claim {
            Ok(claim) => claim,
            Err(reason) => {
                outcome.refused.get_or_insert(reason);
                continue;
            }
        };
        if options.dry_run {
            outcome.deleted = true;
            continue;
        }
        point!("image-claimed");
        match again(shared, found, &reference).await {
            Ok(Some(now)) => *found = now,
            Ok(None) => continue,
            Err(error) => {
                outcome.refused = Some(error.message);
                continue;
            }
        }
        if let Some(reason) = why_kept(found, false, options, clock.now()) {
            outcome.refused = Some(reason);
            continue;
        }
        point!("image-judged");
        outcome.take(engine.remove(&reference).await);
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

/// The image as it is now, if the name still is that image's. Its labels cannot change: they are in what its id is
/// the digest of. It is asked for last, right before it is removed.
async fn again(shared: &Shared, found: &Candidate, reference: &str) -> Result<Option<Candidate>> {
    let engine = shared.engine().await?;
    let users = engine.users().await?;
    let Some(now) = engine.find(reference).await? else {
        return Ok(None);
    };
    let id = bare(&now.id);
    if id != bare(&found.image.image_id) {
        return Ok(None);
    }
    let moving = |listed: &String| {
        let name = shared.local_name(listed);
        name.is_some_and(|name| name.commit.is_none())
    };
    let mut found = found.clone();
    found.image.latest = now.references().iter().any(moving);
    found.image.used_by = users.get(id).cloned().unwrap_or_default();
    found.image.created_unix = now.created.max(now.tagged.unwrap_or(0));
    Ok(Some(found))
}

fn drop_tree(found: &Tree, options: PruneOptions) -> Result<(Action, String)> {
    let (cache, kept, short) = (&found.cache, &found.kept, &found.kept.short);
    let _lock = match options.dry_run {
        true if cache.is_locked(short) => return Ok((Action::Kept, IN_WORK.to_owned())),
        true => None,
        false => match cache.try_lock(short)? {
            None => return Ok((Action::Kept, IN_WORK.to_owned())),
            lock => lock,
        },
    };
    let window = lease::window(options.recent);
    let made = seconds(cache.made(kept).unwrap_or(kept.made));
    let lately =
        cache.is_used(short, window) || is_within(window, made, seconds(SystemTime::now()));
    // What was left half-written is of no use to anybody.
    if found.tree.whole && lately {
        return Ok((Action::Kept, used_lately(options.recent)));
    }
    if !options.dry_run {
        match cache.discard(kept) {
            Ok(true) => {}
            Ok(false) => return Ok((Action::Kept, IN_WORK.to_owned())),
            Err(error) => return Ok((Action::Kept, error.message)),
        }
    }
    let reason = match found.tree.whole {
        true => older_than(options.keep_per_runtime),
        false => "a process that was stopped has left it half-written".to_owned(),
    };
    Ok((Action::Removed, reason))
}

impl Redact for Inventory {
    fn masked(mut self, masker: &Masker) -> Self {
        self.images.iter_mut().for_each(|image| image.mask(masker));
        self.trees.iter_mut().for_each(|tree| tree.mask(masker));
        self
    }
}

impl Redact for PruneReport {
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
    fn mask(&mut self, masker: &Masker) {
        masker.in_place(&mut self.path);
        redact::clean(&mut self.commit_sha);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::names::reference::Isolation;
    use crate::names::runtimes::{Runtimes, known};

    const NOW: i64 = 1_800_000_000;

    fn candidate(age: i64) -> Candidate {
        Candidate {
            image: LocalImage {
                r#ref: "molecule-local/workspace-template-hermes:0123456789ab".to_owned(),
                runtime: "hermes".to_owned(),
                platform: "linux/amd64".to_owned(),
                commit_sha: String::new(),
                image_id: String::new(),
                created_unix: NOW - age,
                bytes: 0,
                own_bytes: 0,
                latest: false,
                used_by: Vec::new(),
                other_refs: Vec::new(),
            },
            runtime: known("hermes"),
            pinned: Vec::new(),
            platform: String::new(),
            nanos: 0,
            labelled: true,
        }
    }

    fn none_but_recent(recent: u64) -> PruneOptions {
        PruneOptions {
            keep_per_runtime: 0,
            recent: Duration::from_secs(recent),
            dry_run: false,
        }
    }

    #[test]
    fn what_was_built_lately_stays_whatever_is_asked_for() {
        let kept =
            |age, recent| why_kept(&candidate(age), false, none_but_recent(recent), NOW).is_some();
        // A lease more than ten minutes, and a clock that was set back.
        for (age, stays) in [
            (0, true),
            (600, true),
            (606, false),
            (-600, true),
            (-606, false),
        ] {
            assert_eq!(kept(age, 600), stays, "{age}");
        }
        assert!(!kept(0, 0), "nothing is asked for");
        assert!(kept(i64::from(u32::MAX), u64::MAX));
        assert_eq!(PruneOptions::default().recent, Duration::from_secs(600));
    }

    #[test]
    fn the_first_reason_to_stay_is_the_one_that_lasts_longest() {
        let why = |change: fn(&mut Candidate), newest| {
            let mut found = candidate(0);
            change(&mut found);
            why_kept(&found, newest, none_but_recent(600), NOW).unwrap()
        };
        assert!(why(|found| found.labelled = false, true).contains("labels"));
        let used = |found: &mut Candidate| found.image.used_by.push("a".to_owned());
        assert!(why(used, true).contains("the container a"));
        assert!(why(|found| found.image.latest = true, true).contains("latest"));
        assert!(why(|_| (), true).contains("newest"));
        assert_eq!(
            why(|_| (), false),
            "used or built within the last 10 minutes"
        );
    }

    #[test]
    fn a_time_is_told_in_minutes_where_it_is_some() {
        for (seconds, told) in [
            (1, "second"),
            (2, "2 seconds"),
            (60, "minute"),
            (90, "90 seconds"),
        ] {
            let told = format!("used or built within the last {told}");
            assert_eq!(used_lately(Duration::from_secs(seconds)), told);
        }
    }

    /// What is seen of an image with these references that says it is of hermes.
    fn seen(references: &[&str], tagged: Option<(i64, u32)>) -> Candidate {
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
        Candidate::new(&stored, names, tagged, Vec::new(), 30).unwrap()
    }

    const PINNED: &str = "molecule-local/workspace-template-hermes:0123456789ab";

    #[test]
    fn an_image_under_the_names_of_two_runtimes_is_not_ours() {
        let other = "molecule-local/workspace-template-codex:0123456789ab";
        assert!(seen(&[PINNED], None).labelled);
        for names in [[PINNED, other], [other, PINNED]] {
            assert!(!seen(&names, None).labelled);
        }
        assert!(!seen(&[other], None).labelled);
    }

    #[test]
    fn an_image_is_as_young_as_its_last_tag_and_as_large_as_what_it_shares_with_none() {
        let image = |tagged| seen(&[PINNED], tagged).image;
        assert_eq!(image(None).created_unix, NOW);
        assert_eq!(image(Some((NOW + 5, 7))).created_unix, NOW + 5);
        assert_eq!(image(Some((NOW - 5, 7))).created_unix, NOW);
        assert_eq!(image(None).own_bytes, 70);
        // Two of the same second: the later tag is the younger image.
        assert_eq!(seen(&[PINNED], Some((NOW, 7))).nanos, 7);
        assert_eq!(seen(&[PINNED], Some((NOW - 5, 7))).nanos, 0);
    }

    #[test]
    fn a_name_of_somebody_else_is_told_and_no_name_is_none() {
        let others = |names: &[&str]| seen(names, None).image.other_refs;
        assert_eq!(others(&[PINNED, "<none>:<none>"]), [""; 0]);
        assert_eq!(others(&[PINNED, "busybox:latest"]), ["busybox:latest"]);
        let latest = "molecule-local/workspace-template-hermes:latest";
        assert_eq!(others(&[PINNED, latest]), [""; 0]);
        assert!(seen(&[PINNED, latest], None).image.latest);
    }
}
