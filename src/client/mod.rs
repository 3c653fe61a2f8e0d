//! A client: one set of options, one engine, any number of calls at once.

mod call;
pub(crate) mod inbox;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::call::Call;
use self::call::{Task, Template};
use crate::error::{Code, Error, Result};
use crate::event::Event;
use crate::job;
use crate::job::coalesce::Coalesced;
use crate::job::ledger::Leases;
use crate::job::offline;
use crate::job::shared::Shared;
use crate::job::shared_build::SharedBuilds;
use crate::job::target::Request;
use crate::metrics::{Metrics, Snapshot};
use crate::names::commit::CommitSha;
use crate::names::image::{EngineHost, Image};
use crate::names::runtimes::Runtime;
use crate::net::http::Http;
use crate::options::Options;
use crate::process;
use crate::process::executor::{self, blocking};
use crate::process::panics;
use crate::redact::{MAX_LINE, Masker};
use crate::upkeep::build_log::{self, BuildLog};
use crate::upkeep::diagnose::{self, Diagnosis};
use crate::upkeep::list::{self, Inventory};
use crate::upkeep::prune::{self, PruneOptions, PruneReport};

/// How long closing a client waits for its calls.
const CLOSING: Duration = Duration::from_secs(2);

/// Receives events, already masked. It is called on the library's threads and must not block.
pub type Observer = Box<dyn Fn(Event) + Send + Sync>;

/// Finds and builds images. Dropping it cancels its calls.
pub struct Client {
    shared: Arc<Shared>,
    observer: Option<Arc<Observer>>,
    calls: Arc<Mutex<Calls>>,
}

/// The calls of a client.
#[derive(Default)]
struct Calls {
    /// Those under way, by id.
    running: HashMap<u64, CancellationToken>,
    /// No call can start any more.
    closed: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// Checks the options. Nothing is connected to before the first call.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidOption`], naming the environment variable; [`Code::ProcessLimit`] if no thread can be
    /// started.
    pub fn new(options: &Options, observer: Option<Observer>) -> Result<Self> {
        let masker = Arc::new(options.masker());
        // A panic too is masked here, where the token is known.
        panics::catch(|| Self::open(options, observer, &masker))
            .map_err(|error| masker.error(error))
    }

    fn open(options: &Options, observer: Option<Observer>, masker: &Arc<Masker>) -> Result<Self> {
        executor::runtime()?;
        let settings = options.settings()?;
        let http = Http::new(&settings.repo_prefix, &settings.token, &settings.network)?;
        Ok(Self {
            shared: Arc::new(Shared {
                settings,
                http,
                engine: tokio::sync::OnceCell::new(),
                warned_of_engine: AtomicBool::new(false),
                lookups: Coalesced::default(),
                builds: SharedBuilds::default(),
                leases: Leases::default(),
                tasks: TaskTracker::new(),
                masker: Arc::clone(masker),
                metrics: Metrics::default(),
            }),
            observer: observer.map(Arc::new),
            calls: Arc::default(),
        })
    }

    /// Finds or builds the image for the head of the runtime's template, or for the commit that is pinned for the
    /// runtime.
    ///
    /// # Errors
    ///
    /// The call fails with any [`Code`] up to [`Code::DeadlineExceeded`], [`Code::Closed`], [`Code::NoLocalImage`],
    /// [`Code::ProcessLimit`] and [`Code::BuilderUnreachable`].
    pub fn ensure_local_image(&self, runtime: &str) -> Call<'_, Image> {
        let task = self.runtime(runtime).map(|runtime| {
            let commit = self.shared.settings.pins.get(&runtime).cloned();
            self.image(runtime, commit)
        });
        Call::new(self, task)
    }

    /// Finds or builds the image for exactly one commit of the runtime's template, of 40 or 64 hexadecimal digits. There
    /// is no lookup, and no request to the template server if the engine has the image.
    ///
    /// # Errors
    ///
    /// The call fails with the codes of [`Client::ensure_local_image`], and [`Code::InvalidArgument`].
    pub fn ensure_commit(&self, runtime: &str, commit: &str) -> Call<'_, Image> {
        let task = self.runtime(runtime).and_then(|runtime| {
            let commit = self.commit(commit)?;
            Ok(self.image(runtime, Some(commit)))
        });
        Call::new(self, task)
    }

    fn image(&self, runtime: Runtime, commit: Option<CommitSha>) -> Task<Image> {
        let request = Request {
            repository: self.shared.settings.repo_prefix.repository(&runtime),
            commit,
            runtime,
        };
        let template = Template {
            runtime: request.runtime.clone(),
            url: request.repository.url.clone(),
        };
        let work = |shared: Arc<Shared>, emit, _| async move {
            if shared.settings.offline {
                offline::find(&shared, &request, &emit).await
            } else {
                job::ensure(&shared, request, &emit).await
            }
        };
        Task::new(Some(template), work).counted(|image| image.cache_hit)
    }

    /// Finds the engine; the result has its address, as `DOCKER_HOST` has it.
    ///
    /// # Errors
    ///
    /// If the call fails, then usually with [`Code::EngineUnreachable`].
    pub fn engine_host(&self) -> Call<'_, EngineHost> {
        let work = |shared: Arc<Shared>, _, _| async move {
            let docker_host = shared.engine().await?.endpoint().to_owned();
            Ok(EngineHost { docker_host })
        };
        Call::new(self, Ok(Task::new(None, work)))
    }

    /// Lists this library's images of every runtime in the engine, and its trees in the cache.
    ///
    /// # Errors
    ///
    /// If the call fails, then usually with [`Code::EngineUnreachable`] or [`Code::Cache`].
    pub fn list(&self) -> Call<'_, Inventory> {
        let work = |shared: Arc<Shared>, _, _| async move { list::inventory(&shared).await };
        Call::new(self, Ok(Task::new(None, work)))
    }

    /// Removes old images and trees of this library, and nothing else, see [`PruneOptions`]. An error or a cancel does
    /// not undo what was removed before it.
    ///
    /// # Errors
    ///
    /// If the call fails, then usually with [`Code::EngineUnreachable`] or [`Code::Cache`].
    pub fn prune(&self, options: PruneOptions) -> Call<'_, PruneReport> {
        let work =
            move |shared: Arc<Shared>, _, _| async move { prune::prune(&shared, options).await };
        Call::new(self, Ok(Task::new(None, work)))
    }

    /// Checks everything that a build depends on. Problems are in the diagnosis, not an error.
    ///
    /// # Errors
    ///
    /// The call fails only with [`Code::Closed`], [`Code::Canceled`], [`Code::DeadlineExceeded`], [`Code::Timeout`] and
    /// [`Code::Internal`].
    pub fn diagnose(&self) -> Call<'_, Diagnosis> {
        let work = |shared: Arc<Shared>, _, timeout| async move {
            diagnose::diagnose(&shared, timeout).await
        };
        Call::new(self, Ok(Task::new(None, work)))
    }

    /// Reads the log of the last build of `runtime` with this cache, by any process.
    ///
    /// # Errors
    ///
    /// The call fails with [`Code::UnknownRuntime`]; [`Code::Cache`] if there is no log.
    pub fn build_log(&self, runtime: &str) -> Call<'_, BuildLog> {
        let task = self.runtime(runtime).map(|runtime| {
            let template = Template {
                url: self.shared.settings.repo_prefix.repository(&runtime).url,
                runtime: runtime.clone(),
            };
            let work = |shared: Arc<Shared>, _, _| async move {
                let root = shared.settings.cache_dir.clone();
                blocking(&shared.tasks, move || build_log::last(&root, &runtime)).await
            };
            Task::new(Some(template), work)
        });
        Call::new(self, task)
    }

    /// The counters of this client.
    pub fn metrics(&self) -> Snapshot {
        self.shared.metrics.snapshot()
    }

    fn runtime(&self, name: &str) -> Result<Runtime> {
        let runtimes = &self.shared.settings.runtimes;
        // The error quotes the masked name. The lookup uses the unmasked one, because a masked name could be a known
        // runtime by chance.
        let unknown = || runtimes.unknown(&self.shared.masker.shown(name, MAX_LINE));
        runtimes.find(name).cloned().ok_or_else(unknown)
    }

    /// Checks a commit of the caller. It becomes part of the names of images and folders, which are never masked.
    fn commit(&self, id: &str) -> Result<CommitSha> {
        let invalid = |what: String| Error::new(Code::InvalidArgument, what);
        if self.shared.masker.finds_token_in(id) {
            return Err(
                invalid("the commit contains the token".to_owned()).hint("give a commit id")
            );
        }
        CommitSha::given(id).ok_or_else(|| {
            let what = format!("{:?} is not a commit id", self.shared.masker.shown(id, 80));
            invalid(what).hint("give all 40 or 64 hexadecimal digits, as git rev-parse prints them")
        })
    }

    /// A new call, which [`Self::cancel`] and [`Self::close`] can cancel.
    fn register(&self) -> Result<(u64, CancellationToken)> {
        let mut calls = process::lock(&self.calls);
        if calls.closed {
            return Err(Error::new(Code::Closed, "the client is closed"));
        }
        let (id, cancel) = (next_id(), CancellationToken::new());
        calls.running.insert(id, cancel.clone());
        Ok((id, cancel))
    }

    /// Cancels a call. Its `done` is called soon, with [`Code::Canceled`] unless the call has just ended. A call that has
    /// ended is ignored.
    pub fn cancel(&self, call: u64) {
        if let Some(cancel) = process::lock(&self.calls).running.get(&call) {
            cancel.cancel();
        }
    }

    /// Cancels every call, and waits up to two seconds until their tasks have ended. Tasks that take longer, such as the
    /// removal of many files or a read of a disk that does not answer, go on without the client. A call that starts
    /// later fails with [`Code::Closed`].
    pub async fn close(&self) {
        self.end_calls();
        self.shared.tasks.close();
        let _ = tokio::time::timeout(CLOSING, self.shared.tasks.wait()).await;
    }

    /// Cancels every call, and refuses later ones.
    fn end_calls(&self) {
        let mut calls = process::lock(&self.calls);
        calls.closed = true;
        for cancel in calls.running.values() {
            cancel.cancel();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end_calls();
    }
}

/// Ids are unique in the process and never reused.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::options::OptionName;
    use crate::process::executor::block_on;

    #[test]
    fn a_call_that_has_ended_is_dropped() {
        let cache = tempfile::tempdir().unwrap();
        let mut options = Options::default();
        options.set(OptionName::CacheDir, cache.path().to_str().unwrap());
        let client = Client::new(&options, None).unwrap();
        block_on(async {
            for _ in 0..3 {
                // Fails at once: nothing was built with this cache.
                let error = client.build_log("hermes").wait(None).await.unwrap_err();
                assert_eq!(error.code, Code::Cache);
            }
            let ended = || process::lock(&client.calls).running.is_empty();
            assert!(ended());
            let (sender, receiver) = oneshot::channel();
            let done = |_, result: Result<BuildLog>| sender.send(result.is_err()).unwrap();
            let id = client.build_log("hermes").start(None, done).unwrap();
            client.cancel(id);
            assert!(receiver.await.unwrap() && ended());
        });
    }

    #[test]
    fn no_call_starts_after_the_close() {
        let client = Client::new(&Options::default(), None).unwrap();
        block_on(client.close());
        let image = client.ensure_local_image("hermes");
        let image = image.start(None, |_, _| unreachable!());
        let list = client.list().start(None, |_, _| unreachable!());
        for refused in [image, list] {
            assert_eq!(refused.unwrap_err().code, Code::Closed);
        }
        assert!(process::lock(&client.calls).running.is_empty());
        assert_eq!(client.metrics().in_progress, 0);
    }
}
