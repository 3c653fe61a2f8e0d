//! The tree of a commit: readable for the build at once, and written through to the disk for later calls.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Lock, Tree};
use crate::error::{Code, Error, Result};
use crate::event::{Event, Sink};
use crate::fetch::{self, Fetched};
use crate::job::shared::Shared;
use crate::job::target::Target;
use crate::net::retry;
use crate::process::executor::blocking;

/// How long the write to the disk waits for the engine to receive the tree: at the same time, both would be slower.
const RECEIVE_LIMIT: Duration = Duration::from_secs(5);

/// A tree that a build can read. Dropping it does not stop the write to the disk.
pub(crate) struct Checkout {
    pub(crate) tree: Tree,
    /// Cancelled when the engine has received the tree, or never will.
    pub(crate) received: CancellationToken,
    /// Writes the tree to the disk; `None` if it was in the cache.
    write: Option<JoinHandle<Result<()>>>,
}

impl Checkout {
    /// Takes exactly this commit from the cache, or fetches it into the cache: all of it or nothing.
    pub(crate) async fn new(
        shared: &Shared,
        target: &Target,
        cache: &Cache,
        lock: &Lock,
        emit: &Sink,
    ) -> Result<Self> {
        let received = CancellationToken::new();
        let (cached, commit) = (cache.clone(), target.commit.clone());
        if let Some(tree) = blocking(&shared.tasks, move || cached.tree(&commit)).await? {
            return Ok(Self {
                tree,
                received,
                write: None,
            });
        }
        let begun = Instant::now();
        if target.branch.is_none() {
            // Otherwise the lookup has warned.
            shared.warn_of_plain_text(emit);
        }
        emit(Event::fetch_started(&target.repository.url, &target.commit));
        let fetched = retry::transient(emit, || fetch(shared, target, cache, lock, emit)).await?;
        point!("tree-fetched");
        let (progress, files, time) = (fetched.progress, fetched.files, fetched.commit_time);
        let (place, commit) = (cache.clone(), target.commit.clone());
        let place = move || Ok((place.place(&commit, time, &fetched.dir)?, fetched));
        let (tree, fetched) = blocking(&shared.tasks, place).await?;
        // A task, so that the tree is kept also if the call is cancelled during the build.
        let write = shared.tasks.spawn(write(
            shared.tasks.clone(),
            cache.clone(),
            target.clone(),
            lock.clone(),
            fetched,
            received.clone(),
        ));
        emit(Event::fetch_done(progress, files, begun.elapsed()));
        Ok(Self {
            tree,
            received,
            write: Some(write),
        })
    }

    /// Waits until the tree is on the disk, after the build. A failure is only a warning, because the next build
    /// fetches the commit again; internal errors propagate.
    pub(crate) async fn written(mut self, emit: &Sink) -> Result<()> {
        self.received.cancel();
        let Some(write) = self.write.take() else {
            return Ok(());
        };
        match write.await.unwrap_or_else(|_| Err(Error::canceled())) {
            Err(error) if error.code != Code::Internal => {
                let message = format!(
                    "the template's files could not be kept in the cache: {}",
                    error.message()
                );
                emit(Event::warning(message, error.hint));
                Ok(())
            }
            result => result,
        }
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        self.received.cancel();
    }
}

async fn fetch(
    shared: &Shared,
    target: &Target,
    cache: &Cache,
    lock: &Lock,
    emit: &Sink,
) -> Result<Fetched> {
    let (cache, commit, lock) = (cache.clone(), target.commit.clone(), lock.clone());
    let dir = blocking(&shared.tasks, move || cache.fetch_dir(&commit, &lock)).await?;
    point!("work-made");
    let request = fetch::Request {
        http: &shared.http,
        repository: &target.repository,
        commit: &target.commit,
        looked_up: target.branch.is_some(),
        stall_grace: shared.settings.stall_grace,
        memory: shared.settings.memory,
    };
    let report = |progress| emit(Event::fetch_progress(progress));
    fetch::commit(request, dir, &shared.tasks, report).await
}

/// Writes a tree to the disk and marks it complete, with the lock held.
async fn write(
    tasks: tokio_util::task::TaskTracker,
    cache: Cache,
    target: Target,
    lock: Lock,
    fetched: Fetched,
    received: CancellationToken,
) -> Result<()> {
    let time = fetched.commit_time;
    // First, so that the pack and the other working files free their space and are not synced to the disk.
    let clean = move || {
        drop(fetched.dir);
        Ok(())
    };
    blocking(&tasks, clean).await?;
    let _ = tokio::time::timeout(RECEIVE_LIMIT, received.cancelled()).await;
    let write = move || {
        let written = cache.mark_complete(&target.commit, time);
        drop(lock);
        written
    };
    blocking(&tasks, write).await
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::process;
    use crate::process::executor::block_on;

    /// A checkout whose write to the disk begins when the engine has received the tree.
    fn checkout(result: Result<()>) -> Checkout {
        let received = CancellationToken::new();
        let begin = received.clone();
        let write = tokio::spawn(async move {
            begin.cancelled().await;
            result
        });
        Checkout {
            tree: Tree {
                path: "tree".into(),
                commit_time: 0,
            },
            received,
            write: Some(write),
        }
    }

    #[test]
    fn only_an_internal_error_of_the_write_fails_the_call() {
        block_on(async {
            for (code, fails) in [(Code::Cache, false), (Code::Internal, true)] {
                let events = Arc::new(Mutex::new(Vec::new()));
                let seen = Arc::clone(&events);
                let emit: Sink = Arc::new(move |event| process::lock(&seen).push(event));
                let error = Error::new(code, "no space left").hint("free some space");
                let end = checkout(Err(error)).written(&emit).await;
                assert_eq!(end.is_err(), fails, "{code:?}");
                let events = process::lock(&events);
                assert_eq!(events.is_empty(), fails, "{events:?}");
                for event in &*events {
                    assert!(event.message.ends_with(": no space left"), "{event:?}");
                    assert_eq!(event.hint.as_deref(), Some("free some space"));
                }
            }
        });
    }

    #[test]
    fn a_checkout_that_is_dropped_waits_for_no_engine() {
        block_on(async {
            let checkout = checkout(Ok(()));
            let received = checkout.received.clone();
            assert!(!received.is_cancelled());
            drop(checkout);
            assert!(received.is_cancelled());
        });
    }
}
