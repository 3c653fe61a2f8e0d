//! Fetches exactly one commit, and checks its tree out.
//!
//! The commit is requested by its id, never by the name of a branch, so a branch that moves between the lookup
//! and the fetch changes nothing (promise P2). The checkout is the one that `git clone` would make with an empty
//! configuration, except for `$Id$` (docs/fidelity.md): `.gitattributes` is applied (line endings, encodings), the
//! configuration of the user and of the machine is not, and no filter program is started.
//!
//! | file | holds |
//! | --- | --- |
//! | `mod.rs` | the asynchronous side: progress, cancellation, refusals |
//! | `task.rs` | the blocking side, step by step |
//! | `failures.rs` | the errors of a fetch |
//! | `negotiate.rs` | what is requested from the server |
//! | `transport/` | git's HTTP protocol over the library's HTTP client |
//! | `pack.rs`, `resolve.rs`, `delta.rs`, `inflate.rs` | receiving a pack, and resolving its deltas |
//! | `store.rs` | the objects of a pack, by id |
//! | `table.rs` | where each object is |
//! | `limits.rs` | limits that several steps share |
//! | `tree.rs` | limits of a tree, checked before it is checked out |
//! | `checkout/` | writing the files |
//!
//! gix has the protocol, the hashes and most of the checkout. `docs/adr/0002` and `docs/adr/0005` say why the
//! transport and the pack reader are not gix's (nor libgit2's, nor the git program).

mod checkout;
mod delta;
mod failures;
mod inflate;
mod limits;
mod negotiate;
mod pack;
mod resolve;
mod store;
mod table;
mod task;
mod transport;
mod tree;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::FetchDir;
use crate::error::Result;
use crate::event::Progress;
use crate::fetch::task::FetchTask;
use crate::names::commit::CommitSha;
use crate::net::gitea;
use crate::net::http::Http;
use crate::options::Repository;
use crate::process::executor;

/// How often progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// A fetched commit.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) progress: Progress,
    /// The folder that holds the tree, as `tree`.
    pub(crate) dir: FetchDir,
    /// Files, links and submodules in the tree.
    pub(crate) files: u64,
    /// When the commit was made, in seconds since 1970: the time of every file in the image.
    pub(crate) commit_time: i64,
}

/// What to fetch, and the limits of the fetch.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) http: &'a Http,
    pub(crate) repository: &'a Repository,
    pub(crate) commit: &'a CommitSha,
    /// Whether a lookup has just found the commit.
    pub(crate) looked_up: bool,
    /// How long the server may send nothing before the fetch fails as stalled.
    pub(crate) stall_grace: Duration,
    /// The library's memory limit, in bytes.
    pub(crate) memory: u64,
}

/// Fetches a commit and checks it out as `tree` in the folder. When the future is dropped, the fetch stops within
/// moments and the folder is removed.
pub(crate) async fn commit(
    request: Request<'_>,
    dir: FetchDir,
    tasks: &TaskTracker,
    mut report: impl FnMut(Progress),
) -> Result<Fetched> {
    let stop = StopOnDrop::default();
    let (http, repository, commit) = (request.http, request.repository, request.commit);
    let looked_up = request.looked_up;
    let task = FetchTask::new(request, Handle::current(), &stop)?;
    let wire = task.wire.clone();
    let mut fetching = pin!(executor::blocking(tasks, move || task.run(dir)));

    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    ticks.tick().await;
    let result = loop {
        tokio::select! {
            result = &mut fetching => break result,
            _ = ticks.tick() => report(task::progress(&wire)),
        }
    };
    let Err(error) = result else {
        return result;
    };
    // The first network error is closer to the cause than what gix made of it.
    let error = wire.first_failure().unwrap_or(error);
    Err(match wire.refused.load(Ordering::Relaxed) {
        true => gitea::explain_refusal(http, repository, commit, looked_up, error).await,
        false => error,
    })
}

/// Stops the blocking side of a fetch when this value is dropped. The token ends the waits; the work checks the flag
/// regularly. Has no effect once the blocking side has ended.
#[derive(Default)]
struct StopOnDrop {
    token: CancellationToken,
    flag: Arc<AtomicBool>,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.token.cancel();
        self.flag.store(true, Ordering::Relaxed);
    }
}

/// Checks out a commit of a pack, for tests and benchmarks.
#[cfg(feature = "internals")]
pub(crate) fn check_out(packed: &[u8], commit: &CommitSha, dir: &FetchDir) -> Result<u64> {
    let settings = crate::options::Options::default().settings()?;
    let request = Request {
        http: &Http::new(&settings.repo_prefix, &settings.token, &settings.network)?,
        repository: &settings
            .repo_prefix
            .repository(&crate::names::runtimes::known("hermes")),
        commit,
        looked_up: false,
        stall_grace: settings.stall_grace,
        memory: settings.memory,
    };
    let stop = StopOnDrop::default();
    let task = FetchTask::new(request, executor::runtime()?.handle().clone(), &stop)?;
    task.check_out_pack(packed, dir)
}
