//! Removes old images from the engine, and old trees from the cache.
//!
//! Pruning only removes an image that has the names and the labels of this library, under the configured isolation. It
//! never forces a removal: if the engine refuses, the image stays, and the report has the reason.
//!
//! Other calls continue meanwhile. So pruning first claims what it wants to remove, which keeps calls from using it, and
//! then checks it again; `job/lease.rs` describes the order.

mod claim;
mod reason;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::engine::{Engine, Removal, bare};
use crate::error::Result;
use crate::job::ledger;
use crate::job::shared::Shared;
use crate::names::runtimes::Runtime;
use crate::process::executor::blocking;
use crate::redact::{Masker, Redact};
use crate::upkeep::list::{CachedTree, FoundImage, FoundTree, LocalImage, survey};
use crate::upkeep::prune::claim::Claim;
use crate::upkeep::prune::reason::Reason;
use crate::upkeep::unix_seconds;

/// Options for pruning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneOptions {
    /// How many images of each runtime and platform, and trees of each runtime, to keep: the newest. An image that a
    /// container uses or that `:latest` points to is kept too.
    pub keep_per_runtime: u32,
    /// Keep what was built, or returned by a call, within this time. Zero: recent use does not matter. This includes
    /// calls of other processes with the same cache; for all others see docs/upkeep.md.
    pub recent: Duration,
    /// Only report what would be done.
    pub dry_run: bool,
}

/// The default of [`PruneOptions::recent`]: enough time to create a container from a reference that a call has returned.
pub(crate) const RECENT: Duration = Duration::from_secs(600);

impl Default for PruneOptions {
    /// Keeps the newest two, and what was used within the last ten minutes.
    fn default() -> Self {
        Self {
            keep_per_runtime: 2,
            recent: RECENT,
            dry_run: false,
        }
    }
}

/// What was done with an image or a tree; with [`PruneOptions::dry_run`], what would be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It was kept.
    Kept,
    /// The image has lost this library's name and stays: it has another name, or another image needs it.
    Untagged,
    /// It was removed.
    Removed,
}

/// An image, and what was done with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PrunedImage {
    /// The image.
    #[serde(flatten)]
    pub image: LocalImage,
    /// What was done.
    pub action: Action,
    /// Why.
    pub reason: String,
}

/// A tree, and what was done with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PrunedTree {
    /// The tree.
    #[serde(flatten)]
    pub tree: CachedTree,
    /// What was done.
    pub action: Action,
    /// Why.
    pub reason: String,
}

/// All images and trees, and what was done with each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Whether this is only what would be done.
    pub dry_run: bool,
    /// The size of the removed trees, and an estimate for the removed images: the sum of their `own_bytes`. The real
    /// value is lower if the build cache has the same layers, and higher if only removed images shared a layer.
    pub freed_bytes: u64,
    /// The images.
    pub images: Vec<PrunedImage>,
    /// The trees.
    pub trees: Vec<PrunedTree>,
}

/// Removes what is old.
pub(crate) async fn prune(shared: &Arc<Shared>, options: PruneOptions) -> Result<PruneReport> {
    let (images, trees) = survey(shared).await?;
    let clock = EngineClock::read(shared.engine().await?).await;
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
            None => remove_image(shared, &mut found, options, &clock).await?,
        };
        if action == Action::Removed && reason != Reason::AlreadyRemoved {
            report.freed_bytes += found.image.own_bytes;
        }
        report.images.push(PrunedImage {
            image: found.image,
            action,
            reason: reason.to_string(),
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
                Reason::Newest(options.keep_per_runtime, tree.runtime.clone()),
            ),
            false => blocking(&shared.tasks, move || Ok(remove_tree(&found, options))).await?,
        };
        if action == Action::Removed {
            report.freed_bytes += tree.bytes;
        }
        report.trees.push(PrunedTree {
            tree,
            action,
            reason: reason.to_string(),
        });
    }
    Ok(report)
}

/// The engine's clock, which sets the times of its images. If the engine does not report it, this machine's clock.
struct EngineClock {
    read: i64,
    since: Instant,
}

impl EngineClock {
    async fn read(engine: &Engine) -> Self {
        let now = engine.now().await;
        Self {
            read: now.unwrap_or_else(|| unix_seconds(SystemTime::now())),
            since: Instant::now(),
        }
    }

    /// In seconds since 1970.
    fn now(&self) -> i64 {
        let since = i64::try_from(self.since.elapsed().as_secs()).unwrap_or(i64::MAX);
        self.read.saturating_add(since)
    }
}

/// Whether a time is within the window. A time in the future counts too, up to the window, because clocks are set back.
fn is_within(window: Option<Duration>, then: i64, now: i64) -> bool {
    window.is_some_and(|window| now.abs_diff(then) < window.as_secs())
}

/// The first reason to keep an image. `now` is the time of the engine's clock.
fn why_kept(found: &FoundImage, newest: bool, options: PruneOptions, now: i64) -> Option<Reason> {
    let image = &found.image;
    if !found.labelled {
        return Some(Reason::NotLabelled);
    }
    if !image.used_by.is_empty() {
        return Some(Reason::Containers(image.used_by.clone()));
    }
    if image.latest {
        return Some(Reason::Latest);
    }
    if newest {
        return Some(Reason::Newest(
            options.keep_per_runtime,
            image.runtime.clone(),
        ));
    }
    is_within(ledger::window(options.recent), image.created_unix, now)
        .then_some(Reason::Recent(options.recent))
}

/// Removes each pinned name of an image, after it was claimed and checked again.
async fn remove_image(
    shared: &Shared,
    found: &mut FoundImage,
    options: PruneOptions,
    clock: &EngineClock,
) -> Result<(Action, Reason)> {
    let engine = shared.engine().await?;
    let mut outcome = Outcome::default();
    for (reference, short) in found.pinned.clone() {
        let claim = Claim::take(shared, &found.runtime, &reference, &short, options).await?;
        let _claim = match claim {
            Ok(claim) => claim,
            Err(reason) => {
                outcome.kept.get_or_insert(reason);
                continue;
            }
        };
        if options.dry_run {
            outcome.deleted = true;
            continue;
        }
        point!("image-claimed");
        match inspect_again(shared, found, &reference).await {
            Ok(Some(now)) => *found = now,
            Ok(None) => continue,
            Err(error) => {
                outcome.kept = Some(Reason::Failed(error.message()));
                continue;
            }
        }
        if let Some(reason) = why_kept(found, false, options, clock.now()) {
            outcome.kept = Some(reason);
            continue;
        }
        point!("image-judged");
        outcome.add(engine.remove(&reference).await);
    }
    Ok(outcome.result(options.keep_per_runtime, found.image.other_refs.first()))
}

/// The result of removing all pinned names of an image.
#[derive(Default)]
struct Outcome {
    deleted: bool,
    untagged: bool,
    kept: Option<Reason>,
}

impl Outcome {
    fn add(&mut self, removal: Result<Removal>) {
        match removal {
            Ok(Removal::Deleted) => self.deleted = true,
            Ok(Removal::Untagged) => self.untagged = true,
            Ok(Removal::Absent) => {}
            Ok(Removal::Refused(why)) => self.kept = Some(Reason::Refused(why)),
            // The other names and images are still tried. Each of them reports its own error.
            Err(error) => self.kept = Some(Reason::Failed(error.message())),
        }
    }

    fn result(self, keep: u32, other: Option<&String>) -> (Action, Reason) {
        if let Some(reason) = self.kept {
            return (Action::Kept, reason);
        }
        match other {
            None if self.deleted => (Action::Removed, Reason::Older(keep)),
            Some(other) if self.deleted || self.untagged => {
                (Action::Untagged, Reason::OtherName(keep, other.clone()))
            }
            None if self.untagged => (Action::Untagged, Reason::Parent(keep)),
            _ => (Action::Removed, Reason::AlreadyRemoved),
        }
    }
}

/// The image as it is now, right before its removal; `None` if the name no longer points to it. Its labels cannot have
/// changed: the image id is a digest that covers them.
async fn inspect_again(
    shared: &Shared,
    found: &FoundImage,
    reference: &str,
) -> Result<Option<FoundImage>> {
    let engine = shared.engine().await?;
    let users = engine.containers_by_image().await?;
    let Some(now) = engine.find(reference).await? else {
        return Ok(None);
    };
    let id = bare(&now.id);
    if id != bare(&found.image.image_id) {
        return Ok(None);
    }
    let is_moving = |listed: &String| {
        let name = shared.local_name(listed);
        name.is_some_and(|name| name.commit.is_none())
    };
    let mut found = found.clone();
    found.image.latest = now.references().iter().any(is_moving);
    found.image.used_by = users.get(id).cloned().unwrap_or_default();
    found.image.created_unix = now.created.max(now.tagged.unwrap_or(0));
    Ok(Some(found))
}

fn remove_tree(found: &FoundTree, options: PruneOptions) -> (Action, Reason) {
    match discard_tree(found, options) {
        Ok(Some(reason)) => (Action::Kept, reason),
        // The other trees are still tried. Each of them reports its own error.
        Err(error) => (Action::Kept, Reason::Failed(error.message())),
        Ok(None) if found.tree.whole => (Action::Removed, Reason::Older(options.keep_per_runtime)),
        Ok(None) => (Action::Removed, Reason::Incomplete),
    }
}

/// Removes a tree, or returns the reason to keep it.
fn discard_tree(found: &FoundTree, options: PruneOptions) -> Result<Option<Reason>> {
    let (cache, entry, short) = (&found.cache, &found.entry, &found.entry.short);
    let _lock = match options.dry_run {
        true if cache.is_locked(short) => return Ok(Some(Reason::InUse)),
        true => None,
        false => match cache.try_lock(short)? {
            None => return Ok(Some(Reason::InUse)),
            lock => lock,
        },
    };
    let window = ledger::window(options.recent);
    let made = unix_seconds(cache.made(entry).unwrap_or(entry.made));
    let made_recently = is_within(window, made, unix_seconds(SystemTime::now()));
    // The lock also corrects a use that is recorded in the future, so that it ages.
    let is_used = cache.is_used(short, window)
        && (options.dry_run || cache.try_lock_unused(short, window)?.is_none());
    // No call uses an incomplete tree.
    if found.tree.whole && (made_recently || is_used) {
        return Ok(Some(Reason::Recent(options.recent)));
    }
    let removed = options.dry_run || cache.discard(entry)?;
    Ok((!removed).then_some(Reason::InUse))
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

#[cfg(test)]
mod tests {
    use super::*;

    use crate::upkeep::list::tests::{NOW, PINNED, image};

    const MINUTES: Duration = Duration::from_secs(600);

    fn options(recent: Duration) -> PruneOptions {
        PruneOptions {
            keep_per_runtime: 0,
            recent,
            dry_run: false,
        }
    }

    #[test]
    fn a_recently_built_image_is_kept_with_any_other_option() {
        let found = image(&[PINNED], None);
        let kept = |age, recent| why_kept(&found, false, options(recent), NOW + age).is_some();
        // One lease longer than ten minutes, also if the clock was set back.
        for (age, expected) in [
            (0, true),
            (600, true),
            (606, false),
            (-600, true),
            (-606, false),
        ] {
            assert_eq!(kept(age, MINUTES), expected, "{age}");
        }
        assert!(!kept(0, Duration::ZERO), "recent use does not matter");
        assert!(kept(i64::from(u32::MAX), Duration::from_secs(u64::MAX)));
        assert_eq!(PruneOptions::default().recent, MINUTES);
    }

    #[test]
    fn the_first_matching_reason_to_keep_an_image_is_reported() {
        let why = |change: fn(&mut FoundImage), newest| {
            let mut found = image(&[PINNED], None);
            change(&mut found);
            why_kept(&found, newest, options(MINUTES), NOW).unwrap()
        };
        assert_eq!(
            why(|found| found.labelled = false, true),
            Reason::NotLabelled
        );
        let used = |found: &mut FoundImage| found.image.used_by.push("a".to_owned());
        assert_eq!(why(used, true), Reason::Containers(vec!["a".to_owned()]));
        assert_eq!(why(|found| found.image.latest = true, true), Reason::Latest);
        let newest = Reason::Newest(0, "hermes".to_owned());
        assert_eq!(why(|_| (), true), newest);
        assert_eq!(
            why(|_| (), false).to_string(),
            "used or built within the last 10 minutes"
        );
    }
}
