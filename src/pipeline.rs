//! The job, from top to bottom: lookup, hit?, lock, fetch, check, build, tag.
//!
//! Each step is a module with a small surface, and none reaches back. [`ensure`] is what every
//! caller does for itself; [`seek`] is what all share who wait for their lookup, and [`make`] what all
//! do who want the same image.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{Either, ready, try_join};
use tokio::sync::{OnceCell, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::build_log::Recorder;
use crate::cache::{Cache, Lock, Tree};
use crate::coalesce::{Answer, Coalesced};
use crate::context::Context;
use crate::engine::{Build, Engine, Found, PLATFORM_LABEL, REVISION_LABEL, RUNTIME_LABEL};
use crate::error::{Code, Error, Result};
use crate::event::{Event, Sink};
use crate::executor::blocking;
use crate::fetch::{self, Fetched};
use crate::flight::Flights;
use crate::gitea::{self, Head};
use crate::http::Http;
use crate::image::{CommitSha, Image, LocalName, Platform, References, Timings};
use crate::mask::Masker;
use crate::metrics::{Metrics, Step};
use crate::options::{PlatformChoice, Repository, Settings};
use crate::outside_file;
use crate::recent::{self, Leases};
use crate::retry;
use crate::runtimes::Runtime;
use crate::version_pin;

/// How long the engine is left alone with the disk while it gets the build context.
const SENDING: Duration = Duration::from_secs(5);

/// What every call of one client uses.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) http: Http,
    pub(crate) engine: OnceCell<Engine>,
    /// Set when the first call has said where the engine is, if that is an unusual place.
    pub(crate) engine_told: AtomicBool,
    pub(crate) lookups: Coalesced<Request, Result<Arc<Sought>>>,
    pub(crate) flights: Flights<Made>,
    pub(crate) leases: Leases,
    pub(crate) tasks: TaskTracker,
    pub(crate) masker: Masker,
    pub(crate) metrics: Metrics,
}

/// What a caller asks for: the head of the branch, or exactly one commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Request {
    pub(crate) runtime: Runtime,
    pub(crate) commit: Option<CommitSha>,
}

/// Which image is wanted.
#[derive(Clone)]
struct Wanted {
    runtime: Runtime,
    repository: Repository,
    /// The branch whose head the commit is; `None` if the caller has named the commit.
    branch: Option<String>,
    commit: CommitSha,
    platform: Platform,
    references: References,
}

impl Wanted {
    /// An error of the template, with the template's name.
    fn named_in(&self, mut error: Error) -> Error {
        let (url, commit) = (&self.repository.url, self.commit.short());
        error.message = format!("{url} at {commit}: {}", error.message);
        error
    }
}

/// Why there is no image to be used.
enum Miss {
    Absent,
    Contradiction(String),
}

/// What a lookup has come to, and how long that took.
pub(crate) struct Sought {
    wanted: Wanted,
    found: std::result::Result<Found, Miss>,
    timings: Timings,
}

/// What a shared build has made, and how long that took.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    image_id: String,
    /// Another process was quicker.
    cache_hit: bool,
    timings: Timings,
}

/// Finds the image that is asked for, or makes it.
pub(crate) async fn ensure(shared: &Arc<Shared>, request: Request, emit: &Sink) -> Result<Image> {
    let begun = Instant::now();
    if request.commit.is_none() {
        let repository = shared.settings.repo_prefix.repository(&request.runtime)?;
        emit(Event::lookup_started(&repository.url));
    }
    let question = || seek(shared, &request, emit);
    let sought = match shared.lookups.ask(request.clone(), question).await {
        Answer::Own(sought) => sought?,
        Answer::Shared(sought) => {
            let sought = sought?;
            tell_head(&sought.wanted, &sought.timings, emit);
            tell_found(&sought, emit);
            sought
        }
    };
    let (wanted, mut timings) = (&sought.wanted, sought.timings);
    let (image_id, cache_hit) = match &sought.found {
        Ok(found) => (found.id.clone(), true),
        Err(_) => join(shared, wanted, &mut timings, emit).await?,
    };

    timings.total = begun.elapsed();
    Ok(Image {
        reference: wanted.references.pinned.clone(),
        latest_reference: wanted.references.latest.clone(),
        runtime: wanted.runtime.to_string(),
        commit_sha: wanted.commit.to_string(),
        image_id,
        platform: wanted.platform.to_string(),
        endpoint: shared.engine().await?.endpoint().to_owned(),
        cache_hit,
        timings,
    })
}

/// Looks for the image, on behalf of all callers that wait for this.
async fn seek(shared: &Shared, request: &Request, emit: &Sink) -> Result<Arc<Sought>> {
    let mut timings = Timings::default();
    let wanted = lookup(shared, request, &mut timings, emit).await?;
    tell_head(&wanted, &timings, emit);
    point!("lookup-done");
    let engine = shared.engine().await?;
    shared.warn_of_unusual_engine(engine, emit).await;
    let found = usable(shared, &wanted, emit);
    let found = timed(shared, Step::Inspect, &mut timings.inspect, found).await?;
    let mut sought = Sought {
        wanted,
        found,
        timings,
    };
    tell_found(&sought, emit);
    let latest = &sought.wanted.references.latest;
    if matches!(&sought.found, Ok(found) if !found.is_known_as(latest)) {
        let refresh = refresh_latest(engine, &sought.wanted, emit);
        timed(shared, Step::Tag, &mut sought.timings.tag, refresh).await;
    }
    point!("image-inspected");
    Ok(Arc::new(sought))
}

/// Makes the image: once for all callers of this process, and under a lock for those of others.
async fn make(shared: Arc<Shared>, wanted: Wanted, emit: Sink) -> Result<Made> {
    let mut timings = Timings::default();
    let (root, runtime) = (shared.settings.cache_dir.clone(), wanted.runtime.clone());
    let cache = blocking(&shared.tasks, move || Cache::open(&root, &runtime)).await?;
    point!("cache-opened");

    let lock = cache.lock(&wanted.commit, |holder| emit(Event::waiting(&holder)));
    let lock = timed(&shared, Step::Wait, &mut timings.wait, lock).await?;
    point!("lock-taken");
    if let Ok(found) = usable(&shared, &wanted, &emit).await? {
        emit(Event::cache_hit(&wanted.references.pinned));
        return Ok(Made {
            image_id: found.id,
            cache_hit: true,
            timings,
        });
    }

    let title = format!("{} for {}", wanted.references.pinned, wanted.platform);
    let (commit, masker, tasks) = (&wanted.commit, &shared.masker, &shared.tasks);
    let log = Recorder::new(&cache, commit, &lock, masker, tasks, &title);
    let emit = log.sink(&emit);
    let made = make_alone(&shared, &wanted, &cache, &lock, timings, &emit).await;
    log.end(made.as_ref().err()).await;
    shared.metrics.built(made.as_ref().err());
    made
}

/// The same, with the lock: fetch, check, build, tag.
async fn make_alone(
    shared: &Shared,
    wanted: &Wanted,
    cache: &Cache,
    lock: &Lock,
    mut timings: Timings,
    emit: &Sink,
) -> Result<Made> {
    let engine = shared.engine().await?;
    engine.check_platform(&wanted.platform, emit).await?;
    // When the engine has the tree, or will not get it any more.
    let sent = CancellationToken::new();
    let sent_at_last = sent.clone().drop_guard();
    let tree = fetch(shared, wanted, cache, lock, sent.clone(), emit);
    let (tree, kept) = timed(shared, Step::Fetch, &mut timings.fetch, tree).await?;
    point!("tree-ready");
    let built = async {
        let built = build(shared, engine, wanted, &tree, sent, emit);
        let built = timed(shared, Step::Build, &mut timings.build, built).await;
        drop(sent_at_last);
        Ok(built)
    };
    // To have the tree on the disk for the next call is nothing that this one's build has to wait for,
    // or to fail for.
    let kept = async { kept.await.or_else(|error| not_kept(error, emit)) };
    let (built, ()) = try_join(built, kept).await?;
    built?;
    point!("image-built");
    let image_id = timed(
        shared,
        Step::Tag,
        &mut timings.tag,
        tag(shared, wanted, emit),
    )
    .await?;
    Ok(Made {
        image_id,
        cache_hit: false,
        timings,
    })
}

/// The next build fetches again what could not be kept. A defect stays an error.
fn not_kept(error: Error, emit: &Sink) -> Result<()> {
    if error.code == Code::Internal {
        return Err(error);
    }
    let message = format!("the template's files are not kept: {}", error.message);
    emit(Event::warning(message, error.hint));
    Ok(())
}

/// Has the engine build the tree.
async fn build(
    shared: &Shared,
    engine: &Engine,
    wanted: &Wanted,
    tree: &Tree,
    sent: CancellationToken,
    emit: &Sink,
) -> Result<()> {
    let what = format!("the template in {}", tree.path.display());
    let (path, time, pin) = (
        tree.path.clone(),
        tree.commit_time,
        shared.settings.runtime_version_pin,
    );
    let told = Arc::clone(emit);
    let open = move || {
        let context = Context::open(&path, time, sent)?;
        let build_args = match pin {
            true => version_pin::build_args(&path, &told)?,
            false => HashMap::new(),
        };
        Ok((context, build_args))
    };
    let opened = outside_file::within(&shared.tasks, Code::Cache, &what, open).await;
    let (context, build_args) = opened.map_err(|error| wanted.named_in(error))?;
    let build = Build {
        reference: &wanted.references.pinned,
        commit: wanted.commit.as_str(),
        platform: &wanted.platform,
        labels: labels(wanted),
        build_args,
        stall_grace: shared.settings.stall_grace,
    };
    let built = engine.build(build, context, &shared.tasks, emit).await;
    built.map_err(|error| wanted.named_in(error))
}

/// Which commit, and so which image? One question to the template server, unless the caller has named the commit.
async fn lookup(
    shared: &Shared,
    request: &Request,
    timings: &mut Timings,
    emit: &Sink,
) -> Result<Wanted> {
    let runtime = &request.runtime;
    let repository = shared.settings.repo_prefix.repository(runtime)?;
    let (branch, commit) = match &request.commit {
        Some(commit) => (None, commit.clone()),
        None => {
            warn_of_plain_text(shared, emit);
            let branch = shared.settings.branch.as_deref();
            let ask = || gitea::head(&shared.http, runtime, &repository, branch);
            let head = retry::transient(emit, ask);
            let head: Head = timed(shared, Step::Lookup, &mut timings.lookup, head).await?;
            (Some(head.branch), head.commit)
        }
    };
    let platform = shared.platform().await?;
    let references = References::new(runtime, &commit, &platform, &shared.settings.tags);
    Ok(Wanted {
        runtime: runtime.clone(),
        repository,
        branch,
        commit,
        platform,
        references,
    })
}

fn warn_of_plain_text(shared: &Shared, emit: &Sink) {
    if let Some(server) = shared.http.plain_text() {
        let message = format!("the token goes to {server} in plain text");
        let hint = "use an https:// address in MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX";
        emit(Event::warning(message, hint));
    }
}

fn tell_head(wanted: &Wanted, timings: &Timings, emit: &Sink) {
    if let Some(branch) = &wanted.branch {
        let (url, took) = (&wanted.repository.url, timings.lookup);
        emit(Event::lookup_done(url, branch, &wanted.commit, took));
    }
}

fn tell_found(sought: &Sought, emit: &Sink) {
    let reference = &sought.wanted.references.pinned;
    emit(match &sought.found {
        Ok(_) => Event::cache_hit(reference),
        Err(Miss::Absent) => Event::cache_miss(reference, "the engine does not have it"),
        Err(Miss::Contradiction(why)) => {
            let message = format!("{reference} is there, but {why}");
            emit(Event::warning(message, "it is built again"));
            Event::cache_miss(reference, why)
        }
    });
}

/// The image, if its label and its platform do not contradict its tag; else why it cannot be used.
/// An image without labels counts: whoever made it gave it this tag.
async fn usable(
    shared: &Shared,
    wanted: &Wanted,
    emit: &Sink,
) -> Result<std::result::Result<Found, Miss>> {
    let found = recent::find(shared, &wanted.runtime, &wanted.references, emit).await?;
    let Some(found) = found else {
        return Ok(Err(Miss::Absent));
    };
    Ok(
        match found.contradiction(Some(&wanted.commit), &wanted.platform) {
            None => Ok(found),
            Some(why) => Err(Miss::Contradiction(why)),
        },
    )
}

/// Takes part in the build of the image, and begins it if nobody has.
async fn join(
    shared: &Arc<Shared>,
    wanted: &Wanted,
    timings: &mut Timings,
    emit: &Sink,
) -> Result<(String, bool)> {
    let key = &wanted.references.pinned;
    let seat = shared.flights.join(key, &shared.tasks, || {
        make(Arc::clone(shared), wanted.clone(), Arc::clone(emit))
    });
    if !seat.first {
        emit(Event::waiting("another call in this process"));
    }
    let made = seat.wait().await?;
    *timings = Timings {
        lookup: timings.lookup,
        inspect: timings.inspect,
        ..made.timings
    };
    Ok((made.image_id, made.cache_hit))
}

/// The tree of exactly the commit: from the cache, or into the cache, all of it or nothing. The tree is
/// readable on return. The returned future ends when it is synced to the disk and marked complete, which
/// begins once `sent` fires or after [`SENDING`]: to write thousands of files through to the disk while the
/// engine writes them too makes both slower.
async fn fetch(
    shared: &Shared,
    wanted: &Wanted,
    cache: &Cache,
    lock: &Lock,
    sent: CancellationToken,
    emit: &Sink,
) -> Result<(Tree, impl Future<Output = Result<()>> + use<>)> {
    let (kept, commit) = (cache.clone(), wanted.commit.clone());
    if let Some(tree) = blocking(&shared.tasks, move || kept.tree(&commit)).await? {
        return Ok((tree, Either::Left(ready(Ok(())))));
    }
    let begun = Instant::now();
    let (url, commit) = (&wanted.repository.url, &wanted.commit);
    if wanted.branch.is_none() {
        // The lookup would have said so.
        warn_of_plain_text(shared, emit);
    }
    emit(Event::fetch_started(url, commit));
    let fetch = || async {
        let (cache, commit, lock) = (cache.clone(), commit.clone(), lock.clone());
        let work = move || cache.work(&commit, &lock);
        let work = blocking(&shared.tasks, work).await?;
        point!("work-made");
        let request = fetch::Request {
            http: &shared.http,
            repository: &wanted.repository,
            commit: &wanted.commit,
            looked_up: wanted.branch.is_some(),
            stall_grace: shared.settings.stall_grace,
            memory: shared.settings.memory,
        };
        let report = |progress| emit(Event::fetch_progress(progress));
        fetch::commit(request, work, &shared.tasks, report).await
    };
    let fetched = retry::transient(emit, fetch).await?;
    point!("tree-fetched");
    let (progress, files) = (fetched.progress, fetched.files);
    let (placed, tree) = oneshot::channel();
    let kept = keep(shared, cache, wanted, lock, fetched, placed, sent);
    // A task, so that the tree is kept too when the call is cancelled while the engine builds.
    let kept = shared.tasks.spawn(kept);
    let kept = async { kept.await.unwrap_or_else(|_| Err(Error::canceled())) };
    let Ok(tree) = tree.await else {
        // It was not placed, and this says why.
        return Err(kept.await.err().unwrap_or_else(Error::canceled));
    };
    emit(Event::fetch_done(progress, files, begun.elapsed()));
    Ok((tree, Either::Right(kept)))
}

/// Moves a fetched tree to its place and sends it to `placed`; then has it kept for later calls.
fn keep(
    shared: &Shared,
    cache: &Cache,
    wanted: &Wanted,
    lock: &Lock,
    fetched: Fetched,
    placed: oneshot::Sender<Tree>,
    sent: CancellationToken,
) -> impl Future<Output = Result<()>> + use<> {
    let (cache, commit, lock) = (cache.clone(), wanted.commit.clone(), lock.clone());
    let (tasks, time) = (shared.tasks.clone(), fetched.commit_time);
    let place = {
        let (cache, commit) = (cache.clone(), commit.clone());
        move || Ok((cache.place(&commit, time, &fetched.work)?, fetched))
    };
    async move {
        let (tree, fetched) = blocking(&tasks, place).await?;
        // Nobody waits for it if the call was cancelled.
        let _ = placed.send(tree);
        // What it was fetched into goes first: that need not get to the disk, nor take room on it.
        let clean = move || {
            drop(fetched.work);
            Ok(())
        };
        blocking(&tasks, clean).await?;
        // Whether it is sent or not, after that time it is kept.
        let _ = tokio::time::timeout(SENDING, sent.cancelled()).await;
        let vouch = move || {
            let kept = cache.vouch(&commit, time);
            drop(lock);
            kept
        };
        blocking(&tasks, vouch).await
    }
}

/// What the image says of itself (OCI image specification, annotations). All of it can be read by
/// anyone who has the image, and there is no secret in it: a repository's URL never holds one.
fn labels(wanted: &Wanted) -> HashMap<String, String> {
    let source = "org.opencontainers.image.source".to_owned();
    HashMap::from([
        (source, wanted.repository.url.to_string()),
        (REVISION_LABEL.to_owned(), wanted.commit.to_string()),
        (RUNTIME_LABEL.to_owned(), wanted.runtime.to_string()),
        (PLATFORM_LABEL.to_owned(), wanted.platform.to_string()),
    ])
}

/// The build has set the pinned tag; the moving one follows.
async fn tag(shared: &Shared, wanted: &Wanted, emit: &Sink) -> Result<String> {
    let (engine, pinned) = (shared.engine().await?, &wanted.references.pinned);
    let image = recent::find(shared, &wanted.runtime, &wanted.references, emit).await?;
    let image = image.ok_or_else(|| {
        Error::new(
            Code::BuildFailed,
            format!("the engine built the image, but {pinned} is not there"),
        )
        .hint("see whether something removes images while they are built")
    })?;
    // A later call would not take it for a hit, and build it again, for ever.
    if let Some(why) = image.contradiction(Some(&wanted.commit), &wanted.platform) {
        let platform = &wanted.platform;
        let message = format!("the engine built the image {pinned}, but {why}");
        let hint = format!(
            "use a base image for {platform} in the Dockerfile, or remove the local one that the builder took \
             (docker image rm), or set MOLECULE_IMAGE_PLATFORM"
        );
        return Err(wanted.named_in(Error::new(Code::BuildFailed, message).hint(hint)));
    }
    refresh_latest(engine, wanted, emit).await;
    point!("latest-tagged");
    emit(Event::tagged(&wanted.references));
    Ok(image.id)
}

/// Points the moving reference at the image. What a container is started from is the pinned one, so
/// a failure here is only told.
async fn refresh_latest(engine: &Engine, wanted: &Wanted, emit: &Sink) {
    let References { pinned, latest } = &wanted.references;
    if let Err(error) = engine.tag(pinned, latest).await {
        let message = format!("{latest} is not moved to the image: {}", error.message);
        emit(Event::warning(message, error.hint));
    }
}

impl Shared {
    /// The engine; looked for by the first call that needs it, and again after a failure.
    pub(crate) async fn engine(&self) -> Result<&Engine> {
        let connect = || Box::pin(Engine::connect(&self.settings.engine, &self.tasks));
        self.engine.get_or_try_init(connect).await
    }

    /// Warns, once for each client, where a program that reads only `DOCKER_HOST` looks for the engine in another place:
    /// it knows nothing of docker's contexts. A place that cannot be looked at is no reason to fail.
    pub(crate) async fn warn_of_unusual_engine(&self, engine: &Engine, emit: &Sink) {
        if self.engine_told.swap(true, Ordering::Relaxed) {
            return;
        }
        let asked = engine.clone();
        let elsewhere = blocking(&self.tasks, move || Ok(asked.is_elsewhere())).await;
        if elsewhere.unwrap_or(false) {
            emit(Event::engine_elsewhere(engine.endpoint(), engine.has_tls()));
        }
    }

    /// An image's name, taken apart, if this client could have given it.
    pub(crate) fn local_name(&self, listed: &str) -> Option<LocalName> {
        let settings = &self.settings;
        LocalName::parse(listed, &settings.runtimes, &settings.tags.isolation)
    }

    /// What the image is to be built for.
    pub(crate) async fn platform(&self) -> Result<Platform> {
        match &self.settings.platform {
            PlatformChoice::Fixed(platform) => Ok(platform.clone()),
            PlatformChoice::Native => self.engine().await?.native_platform(),
        }
    }

    /// The same, with this engine.
    pub(crate) fn platform_on(&self, engine: &Engine) -> Result<Platform> {
        match &self.settings.platform {
            PlatformChoice::Fixed(platform) => Ok(platform.clone()),
            PlatformChoice::Native => engine.native_platform(),
        }
    }
}

async fn timed<T>(
    shared: &Shared,
    step: Step,
    took: &mut Duration,
    work: impl Future<Output = T>,
) -> T {
    let begun = Instant::now();
    let result = work.await;
    *took = begun.elapsed();
    shared.metrics.step(step, *took);
    result
}
