//! Claims a name of an image before pruning removes it.

use std::path::Path;

use crate::cache::{Cache, Lock, UnusedLock};
use crate::error::Result;
use crate::job::ledger::{self, Removing};
use crate::job::shared::Shared;
use crate::names::reference::without_default_host;
use crate::names::runtimes::Runtime;
use crate::process::executor::blocking;
use crate::upkeep::prune::PruneOptions;
use crate::upkeep::prune::reason::Reason;

/// The right to remove one name of an image. While it is held, no call builds the commit or uses its image.
#[derive(Default)]
pub(super) struct Claim {
    _lock: Option<Lock>,
    _unused: Option<UnusedLock>,
    _removing: Option<Removing>,
}

impl Claim {
    /// Claims a name, or returns why it must be kept. A dry run only checks, and holds nothing.
    pub(super) async fn take(
        shared: &Shared,
        runtime: &Runtime,
        reference: &str,
        short: &str,
        options: PruneOptions,
    ) -> Result<std::result::Result<Self, Reason>> {
        let (root, runtime, short) = (
            shared.settings.cache_dir.clone(),
            runtime.clone(),
            short.to_owned(),
        );
        let window = ledger::window(options.recent);
        let claim = move || {
            let claim = Self::in_cache(&root, &runtime, &short, options);
            Ok(claim.unwrap_or_else(|error| Err(Reason::Failed(error.message()))))
        };
        let claim = match blocking(&shared.tasks, claim).await? {
            Ok(claim) => claim,
            Err(reason) => return Ok(Err(reason)),
        };
        let pinned = without_default_host(reference);
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
            None => Err(Reason::Recent(options.recent)),
        })
    }

    /// The part of a claim that other processes see.
    fn in_cache(
        root: &Path,
        runtime: &Runtime,
        short: &str,
        options: PruneOptions,
    ) -> Result<std::result::Result<Self, Reason>> {
        let cache = match Cache::existing(root, runtime)? {
            Some(cache) => cache,
            None if options.dry_run => return Ok(Ok(Self::default())),
            // Create the folder: a call that starts now would create it too, and must find the claim in it.
            None => match Cache::open(root, runtime) {
                Ok(cache) => cache,
                // Such a call cannot create it either.
                Err(_) => return Ok(Ok(Self::default())),
            },
        };
        let window = ledger::window(options.recent);
        let recent = || window.map_or(Reason::InUse, |_| Reason::Recent(options.recent));
        if options.dry_run {
            return Ok(if cache.is_locked(short) {
                Err(Reason::InUse)
            } else if cache.is_used(short, window) {
                Err(recent())
            } else {
                Ok(Self::default())
            });
        }
        let Some(lock) = cache.try_lock(short)? else {
            return Ok(Err(Reason::InUse));
        };
        let Some(unused) = cache.try_lock_unused(short, window)? else {
            return Ok(Err(recent()));
        };
        Ok(Ok(Self {
            _lock: Some(lock),
            _unused: Some(unused),
            _removing: None,
        }))
    }
}
