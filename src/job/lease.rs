//! Leases: pruning does not remove an image that a call has used recently.
//!
//! A call takes a lease on an image before it asks the engine for it. Pruning checks the leases right before it
//! removes the image. Neither can miss the other, because each writes its own record before it reads the other's:
//!
//! ```text
//! a call    1. records the lease         2. waits while the image is being removed   3. asks the engine
//! pruning   1. records that it removes   2. checks the leases                        3. inspects again, removes
//! ```
//!
//! The records are in two places. Processes that share a cache use the file `.<sha12>.used` in it
//! ([`Cache::mark_used`]). Clients of one process use a table in memory ([`ledger`]), also if their caches differ. Two
//! processes that share an engine but no cache have only the engine's time of the last tag, which [`find`] renews if
//! the engine has one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cache::Cache;
use crate::engine::{Engine, Found};
use crate::error::Result;
use crate::event::{Event, Sink};
use crate::job::ledger::{self, LEASE};
use crate::job::shared::Shared;
use crate::names::reference::References;
use crate::names::runtimes::Runtime;
use crate::process::executor::blocking;

/// How long a call waits for the removal of its image. A removal is short, but the process that removes the image
/// can be suspended.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a call waits for the cache's disk. A call continues without a record rather than hang.
const MARK_TIMEOUT: Duration = Duration::from_secs(1);

/// Upper bound of lookups, if the lease ends or the image is removed while the engine answers.
const ATTEMPTS: u32 = 3;

/// Looks up an image in the engine, under a lease: from now on pruning keeps it. `None` if the engine has no image of
/// that name.
pub(crate) async fn find(
    shared: &Shared,
    runtime: &Runtime,
    references: &References,
    emit: &Sink,
) -> Result<Option<Found>> {
    let engine = shared.engine().await?;
    let mut attempt = 1;
    loop {
        let new = acquire(shared, runtime, references, emit).await;
        let found = engine.find(&references.pinned).await?;
        let Some(image) = &found else {
            return Ok(None);
        };
        let exists = !new || renew(shared, engine, image, references).await;
        if (exists && shared.leases.is_valid(&references.pinned)) || attempt == ATTEMPTS {
            return Ok(found);
        }
        attempt += 1;
    }
}

/// Takes a lease; false if the client has a valid one. It never fails: if the cache is not writable, the lease is only
/// invisible to other processes.
async fn acquire(shared: &Shared, runtime: &Runtime, references: &References, emit: &Sink) -> bool {
    let pinned = &references.pinned;
    if shared.leases.is_valid(pinned) {
        return false;
    }
    let started = Instant::now();
    let (mut reported, mut pause) = (false, Duration::from_millis(5));
    loop {
        let marked = Instant::now();
        let in_process = ledger::mark(pinned);
        let in_cache = mark_in_cache(shared, runtime, references.short()).await;
        if (in_process && in_cache) || started.elapsed() > REMOVAL_TIMEOUT {
            shared.leases.add(pinned, marked + LEASE);
            return true;
        }
        if !reported {
            emit(Event::waiting_for_prune(pinned));
            reported = true;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Tags the image again, so that the engine's time of its last tag is the time of its last use. Docker keeps that
/// time, except with the containerd image store; Podman does not. False if the image no longer exists.
///
/// An image that does not have `:latest` is skipped: the caller tags it, with the same effect.
async fn renew(shared: &Shared, engine: &Engine, image: &Found, references: &References) -> bool {
    let References { pinned, latest } = references;
    let tagged_by_caller = !shared.settings.offline && !image.is_known_as(latest);
    tagged_by_caller || image.tagged.is_none() || engine.tag(pinned, pinned).await.is_ok()
}

/// Records the use in the cache. False while another process, or another client, removes the image.
async fn mark_in_cache(shared: &Shared, runtime: &Runtime, short: &str) -> bool {
    let (root, runtime, short) = (
        shared.settings.cache_dir.clone(),
        runtime.clone(),
        short.to_owned(),
    );
    let turn = Arc::clone(&shared.leases.marking).acquire_owned();
    let marked = async {
        let turn = turn.await;
        blocking(&shared.tasks, move || {
            let _turn = turn;
            Cache::mark_used(&root, &runtime, &short)
        })
        .await
    };
    let marked = tokio::time::timeout(MARK_TIMEOUT, marked).await;
    !matches!(marked, Ok(Ok(false)))
}
