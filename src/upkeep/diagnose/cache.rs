//! The cache, and its disk.

use std::path::Path;
use std::sync::Arc;

use crate::cache::{Cache, HINT_PERMISSIONS, disk, ownership};
use crate::error::Result;
use crate::event::human_bytes;
use crate::job::shared::Shared;
use crate::names::runtimes::Runtimes;
use crate::process::executor::blocking;
use crate::upkeep::diagnose::{Check, Deadline, free_space};

/// With less free space, in bytes, the next trees may not fit: a tree takes some megabytes.
const LOW_SPACE: u64 = 256 << 20;

pub(super) async fn cache(shared: &Arc<Shared>, deadline: Deadline) -> [Check; 2] {
    let settings = &shared.settings;
    let (root, runtimes) = (settings.cache_dir.clone(), settings.runtimes.clone());
    let contents = blocking(&shared.tasks, move || contents(&root, &runtimes));
    let root = settings.cache_dir.clone();
    let space = blocking(&shared.tasks, move || Ok(space(&root)));
    let (contents, space) = tokio::join!(
        deadline.limited("the disk of the cache", contents),
        deadline.limited("the disk of the cache", space)
    );
    let cause = if contents.is_err() { "cache" } else { "" };
    [
        contents.unwrap_or_else(|error| Check::failed("cache", error)),
        space.unwrap_or_else(|error| Check::failed("cache disk", error).because_of(cause)),
    ]
}

fn space(root: &Path) -> Check {
    match disk::free(root) {
        Some(free) => free_space("cache disk", root, free, LOW_SPACE, disk::HINT_FULL),
        None => Check::ok("cache disk", "the free space is unknown"),
    }
}

fn contents(root: &Path, runtimes: &Runtimes) -> Result<Check> {
    ownership::check(root)?;
    let path = root.display();
    if let Err(error) = ownership::may_write(root) {
        return Ok(Check::problem(
            "cache",
            format!("{path} cannot be written: {error}"),
            HINT_PERMISSIONS,
        ));
    }
    if !root.exists() {
        return Ok(Check::ok(
            "cache",
            format!("{path}; the first build creates it"),
        ));
    }
    let (mut complete, mut incomplete, mut bytes) = (0u64, 0u64, 0);
    for runtime in runtimes.iter() {
        let Some(cache) = Cache::existing(root, runtime)? else {
            continue;
        };
        for entry in cache.entries() {
            bytes += entry.bytes;
            match entry.commit {
                Some(_) => complete += 1,
                None if cache.is_locked(&entry.short) => {}
                None => incomplete += 1,
            }
        }
    }
    let bytes = human_bytes(bytes);
    let found = format!("{path}: complete trees: {complete}; {bytes} in total");
    Ok(match incomplete {
        0 => Check::ok("cache", found),
        incomplete => Check::warning(
            "cache",
            format!("{found}; {incomplete} incomplete, left by processes that were stopped"),
            "mol prune removes them",
        ),
    })
}
