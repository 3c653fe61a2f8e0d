//! A client: one set of options, one engine, any number of calls at once.

pub(crate) mod inbox;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::error::{Code, Error, FailedBuild, Result};
use crate::event::{Event, Kind, Sink, human_duration};
use crate::job;
use crate::job::coalesce::Coalesced;
use crate::job::lease::Leases;
use crate::job::offline;
use crate::job::shared::Shared;
use crate::job::shared_build::SharedBuilds;
use crate::job::target::Request;
use crate::metrics::{Metrics, Snapshot};
use crate::names::image::{EngineHost, Image};
use crate::names::reference::CommitSha;
use crate::names::runtimes::Runtime;
use crate::net::http::Http;
use crate::options::Options;
use crate::process::executor::{self, blocking};
use crate::process::panics;
use crate::redact::{MAX_LINE, Masker, Redact};
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

/// Called with the id and the result when a call ends.
type Done<T> = Box<dyn FnOnce(u64, Result<T>) + Send>;

/// Where a call is, for the error of one that takes too long.
type Latest = Arc<Mutex<Progress>>;

#[derive(Default)]
struct Progress {
    /// The last message.
    message: String,
    /// The build steps that have begun and not ended, in the order in which they began.
    running: Vec<String>,
}

impl Progress {
    fn note(&mut self, event: &Event) {
        self.message.clone_from(&event.message);
        let step = event.step_name.as_ref();
        match event.kind {
            Kind::BuildStarted => self.running.clear(),
            Kind::StepStarted => self.running.extend(step.cloned()),
            Kind::StepDone => self.running.retain(|running| Some(running) != step),
            _ => {}
        }
    }

    /// The step that began last of those that are running, or else the last message. BuildKit can report the end of a
    /// step after the next one has begun.
    fn point(&self) -> &str {
        self.running.last().unwrap_or(&self.message)
    }
}

/// The template that a call is for, as its events and errors name it.
struct Template {
    runtime: Runtime,
    url: Url,
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
        Self::open(options, observer, &masker).map_err(|error| masker.error(error))
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

    /// Starts a call for the head of the runtime's template, or for the commit that is pinned for the runtime, and
    /// returns its id. `done` is called exactly once, when the call ends, on a thread of the library. Without a
    /// `timeout` the ceiling applies; [`Duration::MAX`] is no limit.
    ///
    /// # Errors
    ///
    /// [`Code::UnknownRuntime`], and [`Code::Closed`] after [`Client::close`], at once; then `done` is not called.
    pub fn start(
        &self,
        runtime: &str,
        timeout: Option<Duration>,
        done: impl FnOnce(u64, Result<Image>) + Send + 'static,
    ) -> Result<u64> {
        let runtime = self.runtime(runtime)?;
        let commit = self.shared.settings.pins.get(&runtime).cloned();
        self.start_request(runtime, commit, timeout, done)
    }

    /// Starts a call for exactly one commit of the runtime's template, of 40 or 64 hexadecimal digits. There is no
    /// lookup, and no request to the template server if the engine has the image. Otherwise as [`Client::start`].
    ///
    /// # Errors
    ///
    /// [`Code::InvalidArgument`], and those of [`Client::start`], at once; then `done` is not called.
    pub fn start_commit(
        &self,
        runtime: &str,
        commit: &str,
        timeout: Option<Duration>,
        done: impl FnOnce(u64, Result<Image>) + Send + 'static,
    ) -> Result<u64> {
        let runtime = self.runtime(runtime)?;
        let commit = self.commit(commit)?;
        self.start_request(runtime, Some(commit), timeout, done)
    }

    fn start_request(
        &self,
        runtime: Runtime,
        commit: Option<CommitSha>,
        timeout: Option<Duration>,
        done: impl FnOnce(u64, Result<Image>) + Send + 'static,
    ) -> Result<u64> {
        let (shared, begun) = (Arc::clone(&self.shared), Instant::now());
        self.shared.metrics.started();
        let done = move |id, result: Result<Image>| {
            let hit = result.as_ref().is_ok_and(|image| image.cache_hit);
            shared
                .metrics
                .ended(result.as_ref().err(), hit, begun.elapsed());
            done(id, result);
        };
        let request = Request {
            repository: self.shared.settings.repo_prefix.repository(&runtime),
            commit,
            runtime,
        };
        let template = Template {
            runtime: request.runtime.clone(),
            url: request.repository.url.clone(),
        };
        let work = move |shared: Arc<Shared>, emit| async move {
            if shared.settings.offline {
                offline::find(&shared, &request, &emit).await
            } else {
                job::ensure(&shared, request, &emit).await
            }
        };
        let call = self.begin(Some(template), timeout, work, done);
        if call.is_err() {
            self.shared.metrics.not_started();
        }
        call
    }

    /// Starts to find the engine; otherwise as [`Client::start`].
    ///
    /// # Errors
    ///
    /// As for [`Client::start_list`].
    pub fn start_engine_host(
        &self,
        timeout: Option<Duration>,
        done: impl FnOnce(u64, Result<EngineHost>) + Send + 'static,
    ) -> Result<u64> {
        let work = move |shared: Arc<Shared>, _| async move {
            let docker_host = shared.engine().await?.endpoint().to_owned();
            Ok(EngineHost { docker_host })
        };
        self.begin(None, timeout, work, done)
    }

    /// Starts to list the images and trees of this library; otherwise as [`Client::start`].
    ///
    /// # Errors
    ///
    /// [`Code::Closed`] after [`Client::close`].
    pub fn start_list(
        &self,
        timeout: Option<Duration>,
        done: impl FnOnce(u64, Result<Inventory>) + Send + 'static,
    ) -> Result<u64> {
        let work = move |shared: Arc<Shared>, _| async move { list::inventory(&shared).await };
        self.begin(None, timeout, work, done)
    }

    /// Starts to remove old images and trees; otherwise as [`Client::start`].
    ///
    /// # Errors
    ///
    /// As for [`Client::start_list`].
    pub fn start_prune(
        &self,
        options: PruneOptions,
        timeout: Option<Duration>,
        done: impl FnOnce(u64, Result<PruneReport>) + Send + 'static,
    ) -> Result<u64> {
        let work =
            move |shared: Arc<Shared>, _| async move { prune::prune(&shared, options).await };
        self.begin(None, timeout, work, done)
    }

    /// Starts to check everything that a build depends on; otherwise as [`Client::start`].
    ///
    /// # Errors
    ///
    /// As for [`Client::start_list`].
    pub fn start_diagnose(
        &self,
        timeout: Option<Duration>,
        done: impl FnOnce(u64, Result<Diagnosis>) + Send + 'static,
    ) -> Result<u64> {
        let work =
            move |shared: Arc<Shared>, _| async move { diagnose::diagnose(&shared, timeout).await };
        self.begin(None, timeout, work, done)
    }

    /// Starts to read the log of the last build of `runtime`; otherwise as [`Client::start`].
    ///
    /// # Errors
    ///
    /// As for [`Client::start`].
    pub fn start_build_log(
        &self,
        runtime: &str,
        timeout: Option<Duration>,
        done: impl FnOnce(u64, Result<BuildLog>) + Send + 'static,
    ) -> Result<u64> {
        let runtime = self.runtime(runtime)?;
        let template = Template {
            url: self.shared.settings.repo_prefix.repository(&runtime).url,
            runtime: runtime.clone(),
        };
        let work = move |shared: Arc<Shared>, _| async move {
            let root = shared.settings.cache_dir.clone();
            blocking(&shared.tasks, move || build_log::last(&root, &runtime)).await
        };
        self.begin(Some(template), timeout, work, done)
    }

    /// The counters of this client.
    pub fn metrics(&self) -> Snapshot {
        self.shared.metrics.snapshot()
    }

    fn runtime(&self, name: &str) -> Result<Runtime> {
        let runtimes = &self.shared.settings.runtimes;
        // Masked first, because the error quotes the name. The masked name may be a valid one by chance.
        let unknown = || runtimes.unknown(&self.shared.masker.shown(name, MAX_LINE));
        runtimes.find(name).cloned().ok_or_else(unknown)
    }

    /// Checks a commit of the caller. It becomes part of the names of images and folders, which are never masked.
    fn commit(&self, id: &str) -> Result<CommitSha> {
        let invalid = |what: String| Error::new(Code::InvalidArgument, what);
        if self.shared.masker.finds_token_in(id) {
            return Err(invalid("the commit holds the token".to_owned()).hint("give a commit id"));
        }
        CommitSha::given(id).ok_or_else(|| {
            let what = format!("{:?} is not a commit id", self.shared.masker.shown(id, 80));
            invalid(what).hint("give all 40 or 64 hexadecimal digits, as git rev-parse prints them")
        })
    }

    /// Runs the work of a call as a task, until it ends, reaches its time limit or is cancelled.
    fn begin<T: Redact, W: Future<Output = Result<T>> + Send>(
        &self,
        template: Option<Template>,
        timeout: Option<Duration>,
        work: impl FnOnce(Arc<Shared>, Sink) -> W + Send + 'static,
        done: impl FnOnce(u64, Result<T>) + Send + 'static,
    ) -> Result<u64> {
        // The client has started it, so this does not fail.
        let executor = executor::runtime()?;
        let (id, cancel) = self.register()?;
        let latest = Latest::default();
        let runtime = template.as_ref().map(|template| template.runtime.clone());
        let emit = self.sink(id, runtime.clone(), Arc::clone(&latest));
        let (shared, calls) = (Arc::clone(&self.shared), Arc::clone(&self.calls));
        let limit = timeout.unwrap_or(self.shared.settings.ceiling);
        let call = async move {
            // Boxed, so that the futures around it do not each hold a copy.
            let work = Box::pin(work(Arc::clone(&shared), emit));
            let result = tokio::select! {
                biased;
                () = cancel.cancelled() => Err(Error::canceled()),
                result = panics::catch_future(work) => result,
                () = tokio::time::sleep(limit) => Err(too_late(runtime.as_ref(), timeout, limit, &latest)),
            };
            lock(&calls).running.remove(&id);
            let named = |error: Error| match &template {
                None => error,
                Some(template) => Error {
                    runtime: template.runtime.to_string(),
                    url: match error.code.concerns_template() {
                        true => template.url.as_str().to_owned(),
                        false => String::new(),
                    },
                    ..error
                },
            };
            let masked = panics::catch(|| {
                point!("call-ended");
                Ok(result
                    .map(|result| result.masked(&shared.masker))
                    .map_err(|error| shared.masker.error(named(error))))
            });
            let defective = |defect| Err(Masker::default().error(named(defect)));
            done(id, masked.unwrap_or_else(defective));
        };
        self.shared.tasks.spawn_on(call, executor.handle());
        Ok(id)
    }

    /// A new call, which [`Self::cancel`] and [`Self::close`] can cancel.
    fn register(&self) -> Result<(u64, CancellationToken)> {
        let mut calls = lock(&self.calls);
        if calls.closed {
            return Err(Error::new(Code::Closed, "the client is closed"));
        }
        let (id, cancel) = (next_id(), CancellationToken::new());
        calls.running.insert(id, cancel.clone());
        Ok((id, cancel))
    }

    /// Finds or builds the image for the head of the runtime's template. May be awaited in any executor. Dropping the
    /// future cancels the call.
    ///
    /// # Errors
    ///
    /// Any [`Code`] up to [`Code::DeadlineExceeded`], [`Code::Closed`], [`Code::NoLocalImage`], [`Code::ProcessLimit`]
    /// and [`Code::BuilderUnreachable`].
    pub async fn ensure_local_image(
        &self,
        runtime: &str,
        timeout: Option<Duration>,
    ) -> Result<Image> {
        self.awaited(|done| self.start(runtime, timeout, done))
            .await
    }

    /// Finds or builds the image for exactly one commit, see [`Client::start_commit`]; otherwise as
    /// [`Client::ensure_local_image`].
    ///
    /// # Errors
    ///
    /// Those of [`Client::ensure_local_image`], and [`Code::InvalidArgument`].
    pub async fn ensure_commit(
        &self,
        runtime: &str,
        commit: &str,
        timeout: Option<Duration>,
    ) -> Result<Image> {
        self.awaited(|done| self.start_commit(runtime, commit, timeout, done))
            .await
    }

    /// The address of the engine in use, as `DOCKER_HOST` has it; otherwise as [`Client::ensure_local_image`].
    ///
    /// # Errors
    ///
    /// [`Code::EngineUnreachable`] mostly.
    pub async fn engine_host(&self, timeout: Option<Duration>) -> Result<EngineHost> {
        self.awaited(|done| self.start_engine_host(timeout, done))
            .await
    }

    /// Lists this library's images of every runtime in the engine, and its trees in the cache; otherwise as
    /// [`Client::ensure_local_image`].
    ///
    /// # Errors
    ///
    /// [`Code::EngineUnreachable`] and [`Code::Cache`] mostly.
    pub async fn list(&self, timeout: Option<Duration>) -> Result<Inventory> {
        self.awaited(|done| self.start_list(timeout, done)).await
    }

    /// Removes old images and trees of this library, and nothing else, see [`PruneOptions`]; otherwise as
    /// [`Client::ensure_local_image`]. An error or a cancel does not undo what was removed before it.
    ///
    /// # Errors
    ///
    /// [`Code::EngineUnreachable`] and [`Code::Cache`] mostly.
    pub async fn prune(
        &self,
        options: PruneOptions,
        timeout: Option<Duration>,
    ) -> Result<PruneReport> {
        self.awaited(|done| self.start_prune(options, timeout, done))
            .await
    }

    /// Checks everything that a build depends on. Problems are in the diagnosis, not an error; otherwise as
    /// [`Client::ensure_local_image`].
    ///
    /// # Errors
    ///
    /// [`Code::Canceled`], [`Code::DeadlineExceeded`], [`Code::Timeout`] and [`Code::Internal`] only.
    pub async fn diagnose(&self, timeout: Option<Duration>) -> Result<Diagnosis> {
        self.awaited(|done| self.start_diagnose(timeout, done))
            .await
    }

    /// The log of the last build of `runtime` with this cache, by any process; otherwise as
    /// [`Client::ensure_local_image`].
    ///
    /// # Errors
    ///
    /// [`Code::Cache`] if there is none.
    pub async fn build_log(&self, runtime: &str, timeout: Option<Duration>) -> Result<BuildLog> {
        self.awaited(|done| self.start_build_log(runtime, timeout, done))
            .await
    }

    /// Starts a call and waits for its end.
    async fn awaited<T: Send + 'static>(
        &self,
        start: impl FnOnce(Done<T>) -> Result<u64>,
    ) -> Result<T> {
        struct CancelOnDrop<'a>(&'a Client, u64);
        impl Drop for CancelOnDrop<'_> {
            fn drop(&mut self) {
                self.0.cancel(self.1);
            }
        }
        let (sender, receiver) = oneshot::channel();
        let id = start(Box::new(|_, result| {
            // Nobody waits any more if the future was dropped.
            let _ = sender.send(result);
        }))?;
        let _cancel = CancelOnDrop(self, id);
        receiver.await.unwrap_or_else(|_| Err(Error::canceled()))
    }

    /// Cancels a call. Its `done` is called soon, with [`Code::Canceled`] unless the call has just ended. A call that has
    /// ended is ignored.
    pub fn cancel(&self, call: u64) {
        if let Some(cancel) = lock(&self.calls).running.get(&call) {
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
        let mut calls = lock(&self.calls);
        calls.closed = true;
        for cancel in calls.running.values() {
            cancel.cancel();
        }
    }

    /// The sink for the events of a call: it masks them, and adds the call and its runtime.
    fn sink(&self, call: u64, runtime: Option<Runtime>, latest: Latest) -> Sink {
        let (observer, shared) = (self.observer.clone(), Arc::clone(&self.shared));
        Arc::new(move |mut event: Event| {
            shared.metrics.event(event.kind);
            point!("event-{:?}", event.kind);
            if !event.kind.is_minor() {
                let mut progress = latest.lock().unwrap_or_else(PoisonError::into_inner);
                progress.note(&event);
            }
            let Some(observer) = &observer else {
                return;
            };
            event.call = call;
            event.runtime = runtime
                .as_ref()
                .map(|runtime| runtime.to_string())
                .unwrap_or_default();
            observer(shared.masker.event(event));
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end_calls();
    }
}

fn lock(calls: &Mutex<Calls>) -> MutexGuard<'_, Calls> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ids are unique in the process and never reused.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The error of a call that reached the caller's deadline, or the ceiling.
fn too_late(
    runtime: Option<&Runtime>,
    timeout: Option<Duration>,
    limit: Duration,
    latest: &Latest,
) -> Error {
    let call = match runtime {
        Some(runtime) => format!("the call for the runtime {runtime}"),
        None => "the call".to_owned(),
    };
    let progress = latest.lock().unwrap_or_else(PoisonError::into_inner);
    let at = match progress.point() {
        "" => String::new(),
        point => format!(", at this point: {point}"),
    };
    let error = match timeout {
        Some(_) => Error::new(
            Code::DeadlineExceeded,
            format!("the deadline of {call} has passed{at}"),
        )
        .hint("give it more time: a first build can take minutes, much longer under emulation"),
        None => Error::new(
            Code::Timeout,
            format!("{call} was stopped after {}{at}", human_duration(limit)),
        )
        .hint("raise MOLECULE_BUILD_CEILING_S, or give the call a deadline of its own"),
    };
    match progress.running.last() {
        Some(step) => error.in_build(FailedBuild {
            step: step.clone(),
            ..FailedBuild::default()
        }),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::options::OptionName;
    use crate::process::executor::block_on;

    #[test]
    fn a_call_is_in_the_step_that_runs_when_an_earlier_one_ends_later() {
        let event = |kind, step: &str, message: &str| Event {
            step_name: Some(step.to_owned()),
            ..Event::new(kind, message)
        };
        let mut progress = Progress::default();
        for (event, point) in [
            (event(Kind::StepStarted, "FROM", "FROM"), "FROM"),
            (event(Kind::StepStarted, "RUN", "RUN"), "RUN"),
            (event(Kind::StepDone, "FROM", "FROM: was cached"), "RUN"),
            (event(Kind::StepDone, "RUN", "RUN: done"), "RUN: done"),
            (event(Kind::StepStarted, "COPY", "COPY"), "COPY"),
            // A build whose node was lost starts again on another node.
            (Event::new(Kind::BuildStarted, "build"), "build"),
        ] {
            progress.note(&event);
            assert_eq!(progress.point(), point);
        }
    }

    #[test]
    fn a_call_that_has_ended_is_dropped() {
        let cache = tempfile::tempdir().unwrap();
        let mut options = Options::default();
        options.set(OptionName::CacheDir, cache.path().to_str().unwrap());
        let client = Client::new(&options, None).unwrap();
        block_on(async {
            for _ in 0..3 {
                // Fails at once: nothing was built with this cache.
                let error = client.build_log("hermes", None).await.unwrap_err();
                assert_eq!(error.code, Code::Cache);
            }
            let ended = || lock(&client.calls).running.is_empty();
            assert!(ended());
            let (sender, receiver) = oneshot::channel();
            let done = |_, result: Result<BuildLog>| sender.send(result.is_err()).unwrap();
            let id = client.start_build_log("hermes", None, done).unwrap();
            client.cancel(id);
            assert!(receiver.await.unwrap() && ended());
        });
    }

    #[test]
    fn no_call_starts_after_the_close() {
        let client = Client::new(&Options::default(), None).unwrap();
        block_on(client.close());
        let image = client.start("hermes", None, |_, _| unreachable!());
        let list = client.start_list(None, |_, _| unreachable!());
        for refused in [image, list] {
            assert_eq!(refused.unwrap_err().code, Code::Closed);
        }
        assert!(lock(&client.calls).running.is_empty());
        assert_eq!(client.metrics().in_progress, 0);
    }
}
