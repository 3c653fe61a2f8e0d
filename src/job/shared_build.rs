//! One build for all callers that want the same image (promise P3), until the last of them leaves (P4).
//!
//! The build is a task of its own: a caller that joins late gets the same result, a caller that leaves does not
//! disturb the others, and when the last one leaves the build is cancelled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, Result};
use crate::process;
use crate::process::panics;

/// The builds under way, by the image reference that they make.
#[derive(Debug)]
pub(crate) struct SharedBuilds<T> {
    builds: Arc<Mutex<HashMap<String, SharedBuild<T>>>>,
}

#[derive(Debug)]
struct SharedBuild<T> {
    waiters: usize,
    cancel: CancellationToken,
    /// Its channel also tells the build from a later one of the same image.
    result: watch::Receiver<Option<Result<T>>>,
}

/// A caller that waits for a build. Dropping it leaves the build.
pub(crate) struct Waiter<T: Clone + Send + Sync + 'static> {
    builds: SharedBuilds<T>,
    key: String,
    result: watch::Receiver<Option<Result<T>>>,
    /// True for the caller that started the build.
    pub(crate) first: bool,
}

impl<T> Clone for SharedBuilds<T> {
    fn clone(&self) -> Self {
        Self {
            builds: Arc::clone(&self.builds),
        }
    }
}

impl<T> Default for SharedBuilds<T> {
    fn default() -> Self {
        Self {
            builds: Arc::default(),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> SharedBuilds<T> {
    /// Joins the build for `key`; `work` starts one if there is none.
    pub(crate) fn join<W>(
        &self,
        key: &str,
        tasks: &TaskTracker,
        work: impl FnOnce() -> W,
    ) -> Waiter<T>
    where
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let mut builds = self.lock();
        if let Some(build) = builds.get_mut(key) {
            build.waiters += 1;
            return self.waiter(key, build.result.clone(), false);
        }
        let cancel = CancellationToken::new();
        let (sender, result) = watch::channel(None);
        builds.insert(
            key.to_owned(),
            SharedBuild {
                waiters: 1,
                cancel: cancel.clone(),
                result: result.clone(),
            },
        );
        drop(builds);

        let work = panics::catch_future(work());
        let (builds, task_key, own) = (self.clone(), key.to_owned(), result.clone());
        tasks.spawn(async move {
            let result = tokio::select! {
                biased;
                () = cancel.cancelled() => Err(Error::canceled()),
                result = work => result,
            };
            // Removed first: a caller that comes now asks the engine again, and does not get a result that is older
            // than its call.
            builds.remove(&task_key, &own);
            sender.send_replace(Some(result));
        });
        self.waiter(key, result, true)
    }

    fn waiter(
        &self,
        key: &str,
        result: watch::Receiver<Option<Result<T>>>,
        first: bool,
    ) -> Waiter<T> {
        Waiter {
            builds: self.clone(),
            key: key.to_owned(),
            result,
            first,
        }
    }

    fn remove(&self, key: &str, result: &watch::Receiver<Option<Result<T>>>) {
        let mut builds = self.lock();
        let found = builds.get(key);
        if found.is_some_and(|build| build.result.same_channel(result)) {
            builds.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, SharedBuild<T>>> {
        process::lock(&self.builds)
    }
}

impl<T: Clone + Send + Sync + 'static> Waiter<T> {
    /// Waits for the result.
    pub(crate) async fn wait(mut self) -> Result<T> {
        match self.result.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or_else(|| Err(Error::canceled())),
            Err(_) => Err(Error::canceled()),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Drop for Waiter<T> {
    fn drop(&mut self) {
        let mut builds = self.builds.lock();
        let found = builds.get_mut(&self.key);
        let Some(build) = found.filter(|build| build.result.same_channel(&self.result)) else {
            return;
        };
        build.waiters -= 1;
        if build.waiters == 0 {
            build.cancel.cancel();
            builds.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use crate::error::Code;
    use crate::process::executor::block_on;

    #[test]
    fn a_thousand_callers_share_one_build() {
        block_on(async {
            let (builds, tasks) = (SharedBuilds::default(), TaskTracker::new());
            let (runs, end) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
            let waiters: Vec<_> = (0..1000)
                .map(|_| {
                    let (runs, end) = (Arc::clone(&runs), end.clone());
                    builds.join("key", &tasks, || async move {
                        end.cancelled().await;
                        Ok(runs.fetch_add(1, Ordering::SeqCst))
                    })
                })
                .collect();
            assert_eq!(waiters.iter().filter(|waiter| waiter.first).count(), 1);
            end.cancel();
            for waiter in waiters {
                assert_eq!(waiter.wait().await.unwrap(), 0);
            }
            assert!(builds.lock().is_empty());
        });
    }

    #[test]
    fn the_build_runs_until_the_last_waiter_leaves() {
        block_on(async {
            let (builds, tasks) = (SharedBuilds::default(), TaskTracker::new());
            let finished = Arc::new(AtomicUsize::new(0));
            let join = |end: &CancellationToken| {
                let (finished, end) = (Arc::clone(&finished), end.clone());
                builds.join("key", &tasks, || async move {
                    end.cancelled().await;
                    finished.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                })
            };
            let end = CancellationToken::new();
            let (first, second) = (join(&end), join(&end));
            drop(first);
            end.cancel();
            second.wait().await.unwrap();
            assert_eq!(finished.load(Ordering::SeqCst), 1);

            let end = CancellationToken::new();
            drop(join(&end));
            tasks.close();
            let ended = tokio::time::timeout(Duration::from_secs(10), tasks.wait()).await;
            assert!(ended.is_ok(), "the last waiter has left, so the build ends");
            assert_eq!(finished.load(Ordering::SeqCst), 1);
            assert!(builds.lock().is_empty());
        });
    }

    #[test]
    fn a_panic_is_an_error_for_every_waiter() {
        block_on(async {
            let (builds, tasks) = (SharedBuilds::<()>::default(), TaskTracker::new());
            let end = CancellationToken::new();
            let join = || {
                let end = end.clone();
                builds.join("key", &tasks, || async move {
                    end.cancelled().await;
                    panic!("boom")
                })
            };
            let (one, two) = (join(), join());
            assert!(!two.first);
            end.cancel();
            for waiter in [one, two] {
                let error = waiter.wait().await.unwrap_err();
                assert_eq!(error.code, Code::Internal);
                assert!(error.message().contains("boom"));
            }
        });
    }

    /// A build that ends when the token is cancelled.
    fn waiting(builds: &SharedBuilds<()>, tasks: &TaskTracker) -> (Waiter<()>, CancellationToken) {
        let end = CancellationToken::new();
        let ended = end.clone();
        let waiter = builds.join("key", tasks, || async move {
            ended.cancelled().await;
            Ok(())
        });
        (waiter, end)
    }

    #[test]
    fn a_waiter_of_an_old_build_does_not_cancel_a_new_one() {
        block_on(async {
            let (builds, tasks) = (SharedBuilds::default(), TaskTracker::new());
            let (early, end) = waiting(&builds, &tasks);
            end.cancel();
            tasks.close();
            tasks.wait().await;

            let (later, end) = waiting(&builds, &tasks);
            assert!(later.first);
            drop(early);
            assert_eq!(builds.lock()["key"].waiters, 1);
            end.cancel();
            later.wait().await.unwrap();
        });
    }

    #[test]
    fn the_end_of_an_old_build_does_not_remove_a_new_one() {
        block_on(async {
            let (builds, tasks) = (SharedBuilds::default(), TaskTracker::new());
            let (early, _) = waiting(&builds, &tasks);
            let ended = early.result.clone();
            drop(early);
            let (later, end) = waiting(&builds, &tasks);
            assert!(later.first, "what is cancelled is not joined");
            // What the task of the earlier one does at its end.
            builds.remove("key", &ended);
            let (joined, _) = waiting(&builds, &tasks);
            assert!(!joined.first);
            end.cancel();
            later.wait().await.unwrap();
            joined.wait().await.unwrap();
        });
    }
}
