//! The job, from top to bottom: lookup, hit?, lock, fetch, check, build, tag.
//!
//! Each step is a module with a small surface, and none reaches back. [`ensure`] is what every
//! caller does for itself; [`find_image`] is what all share who wait for their lookup, and [`build_shared`] what all
//! do who want the same image.

pub(crate) mod coalesce;
pub(crate) mod flight;
pub(crate) mod gitea;
pub(crate) mod offline;
pub(crate) mod recent;
pub(crate) mod shared;
pub(crate) mod version_pin;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, ready, try_join};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Lock, Tree};
use crate::context::Context;
use crate::engine::{Build, Engine, Found, PLATFORM_LABEL, REVISION_LABEL, RUNTIME_LABEL};
use crate::error::{Code, Error, Result};
use crate::event::{Event, Sink};
use crate::fetch::{self, Fetched};
use crate::names::image::{CommitSha, Image, Platform, References, Timings};
use crate::names::runtimes::Runtime;
use crate::net::retry;
use crate::options::Repository;
use crate::process::executor::blocking;
use crate::process::outside_file;
use crate::upkeep::build_log::Recorder;
use crate::upkeep::metrics::Step;
use coalesce::Answer;
use gitea::Head;

use shared::{Shared, timed};

/// How long the engine is left alone with the disk while it gets the build context.
const SENDING: Duration = Duration::from_secs(5);

/// What a caller asks for: the head of the branch, or exactly one commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Request {
    pub(crate) runtime: Runtime,
    pub(crate) commit: Option<CommitSha>,
}

/// Which image is target.
#[derive(Clone)]
struct Target {
    runtime: Runtime,
    repository: Repository,
    /// The branch whose head the commit is; `None` if the caller has named the commit.
    branch: Option<String>,
    commit: CommitSha,
    platform: Platform,
    references: References,
}

impl Target {
    /// An error of the template, with the template's name.
    fn named_in(&self, mut error: Error) -> Error {
        let (url, commit) = (&self.repository.url, self.commit.short());
        error.message = format!("{url} at {commit}: {}", error.message);
        error
    }
}

/// Why there is no image to be used.
enum MissReason {
    Absent,
    Contradiction(String),
}

/// What a lookup has come to, and how long that took.
pub(crate) struct LookupResult {
    target: Target,
    found: std::result::Result<Found, MissReason>,
    timings: Timings,
}

/// What a shared build has made, and how long that took.
#[derive(Clone, Debug)]
pub(crate) struct BuildOutput {
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
    let question = || find_image(shared, &request, emit);
    let result = match shared.lookups.ask(request.clone(), question).await {
        Answer::Own(result) => result?,
        Answer::Shared(result) => {
            let result = result?;
            emit_head(&result.target, &result.timings, emit);
            emit_found(&result, emit);
            result
        }
    };
    let (target, mut timings) = (&result.target, result.timings);
    let (image_id, cache_hit) = match &result.found {
        Ok(found) => (found.id.clone(), true),
        Err(_) => join(shared, target, &mut timings, emit).await?,
    };

    timings.total = begun.elapsed();
    Ok(Image {
        reference: target.references.pinned.clone(),
        latest_reference: target.references.latest.clone(),
        runtime: target.runtime.to_string(),
        commit_sha: target.commit.to_string(),
        image_id,
        platform: target.platform.to_string(),
        endpoint: shared.engine().await?.endpoint().to_owned(),
        cache_hit,
        timings,
    })
}

/// Looks for the image, on behalf of all callers that wait for this.
async fn find_image(shared: &Shared, request: &Request, emit: &Sink) -> Result<Arc<LookupResult>> {
    let mut timings = Timings::default();
    let target = lookup(shared, request, &mut timings, emit).await?;
    emit_head(&target, &timings, emit);
    point!("lookup-done");
    let engine = shared.engine().await?;
    shared.warn_of_unusual_engine(engine, emit).await;
    let found = usable(shared, &target, emit);
    let found = timed(shared, Step::Inspect, &mut timings.inspect, found).await?;
    let mut result = LookupResult {
        target,
        found,
        timings,
    };
    emit_found(&result, emit);
    let latest = &result.target.references.latest;
    if matches!(&result.found, Ok(found) if !found.is_known_as(latest)) {
        let refresh = refresh_latest(engine, &result.target, emit);
        timed(shared, Step::Tag, &mut result.timings.tag, refresh).await;
    }
    point!("image-inspected");
    Ok(Arc::new(result))
}

/// Makes the image: once for all callers of this process, and under a lock for those of others.
async fn build_shared(shared: Arc<Shared>, target: Target, emit: Sink) -> Result<BuildOutput> {
    let mut timings = Timings::default();
    let (root, runtime) = (shared.settings.cache_dir.clone(), target.runtime.clone());
    let cache = blocking(&shared.tasks, move || Cache::open(&root, &runtime)).await?;
    point!("cache-opened");

    let lock = cache.lock(&target.commit, |holder| emit(Event::waiting(&holder)));
    let lock = timed(&shared, Step::Wait, &mut timings.wait, lock).await?;
    point!("lock-taken");
    if let Ok(found) = usable(&shared, &target, &emit).await? {
        emit(Event::cache_hit(&target.references.pinned));
        return Ok(BuildOutput {
            image_id: found.id,
            cache_hit: true,
            timings,
        });
    }

    let title = format!("{} for {}", target.references.pinned, target.platform);
    let (commit, masker, tasks) = (&target.commit, &shared.masker, &shared.tasks);
    let log = Recorder::new(&cache, commit, &lock, masker, tasks, &title);
    let emit = log.sink(&emit);
    let made = build_locked(&shared, &target, &cache, &lock, timings, &emit).await;
    log.end(made.as_ref().err()).await;
    shared.metrics.built(made.as_ref().err());
    made
}

/// The same, with the lock: fetch, check, build, tag.
async fn build_locked(
    shared: &Shared,
    target: &Target,
    cache: &Cache,
    lock: &Lock,
    mut timings: Timings,
    emit: &Sink,
) -> Result<BuildOutput> {
    let engine = shared.engine().await?;
    engine.check_platform(&target.platform, emit).await?;
    // When the engine has the tree, or will not get it any more.
    let sent = CancellationToken::new();
    let sent_at_last = sent.clone().drop_guard();
    let tree = fetch(shared, target, cache, lock, sent.clone(), emit);
    let (tree, kept) = timed(shared, Step::Fetch, &mut timings.fetch, tree).await?;
    point!("tree-ready");
    let built = async {
        let built = build(shared, engine, target, &tree, sent, emit);
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
        tag(shared, target, emit),
    )
    .await?;
    Ok(BuildOutput {
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
    target: &Target,
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
    let (context, build_args) = opened.map_err(|error| target.named_in(error))?;
    let build = Build {
        reference: &target.references.pinned,
        commit: target.commit.as_str(),
        platform: &target.platform,
        labels: labels(target),
        build_args,
        stall_grace: shared.settings.stall_grace,
    };
    let built = engine.build(build, context, &shared.tasks, emit).await;
    built.map_err(|error| target.named_in(error))
}

/// Which commit, and so which image? One question to the template server, unless the caller has named the commit.
async fn lookup(
    shared: &Shared,
    request: &Request,
    timings: &mut Timings,
    emit: &Sink,
) -> Result<Target> {
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
    Ok(Target {
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

fn emit_head(target: &Target, timings: &Timings, emit: &Sink) {
    if let Some(branch) = &target.branch {
        let (url, took) = (&target.repository.url, timings.lookup);
        emit(Event::lookup_done(url, branch, &target.commit, took));
    }
}

fn emit_found(result: &LookupResult, emit: &Sink) {
    let reference = &result.target.references.pinned;
    emit(match &result.found {
        Ok(_) => Event::cache_hit(reference),
        Err(MissReason::Absent) => Event::cache_miss(reference, "the engine does not have it"),
        Err(MissReason::Contradiction(why)) => {
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
    target: &Target,
    emit: &Sink,
) -> Result<std::result::Result<Found, MissReason>> {
    let found = recent::find(shared, &target.runtime, &target.references, emit).await?;
    let Some(found) = found else {
        return Ok(Err(MissReason::Absent));
    };
    Ok(
        match found.contradiction(Some(&target.commit), &target.platform) {
            None => Ok(found),
            Some(why) => Err(MissReason::Contradiction(why)),
        },
    )
}

/// Takes part in the build of the image, and begins it if nobody has.
async fn join(
    shared: &Arc<Shared>,
    target: &Target,
    timings: &mut Timings,
    emit: &Sink,
) -> Result<(String, bool)> {
    let key = &target.references.pinned;
    let seat = shared.flights.join(key, &shared.tasks, || {
        build_shared(Arc::clone(shared), target.clone(), Arc::clone(emit))
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
    target: &Target,
    cache: &Cache,
    lock: &Lock,
    sent: CancellationToken,
    emit: &Sink,
) -> Result<(Tree, impl Future<Output = Result<()>> + use<>)> {
    let (kept, commit) = (cache.clone(), target.commit.clone());
    if let Some(tree) = blocking(&shared.tasks, move || kept.tree(&commit)).await? {
        return Ok((tree, Either::Left(ready(Ok(())))));
    }
    let begun = Instant::now();
    let (url, commit) = (&target.repository.url, &target.commit);
    if target.branch.is_none() {
        // The lookup would have said so.
        warn_of_plain_text(shared, emit);
    }
    emit(Event::fetch_started(url, commit));
    let fetch = || async {
        let (cache, commit, lock) = (cache.clone(), commit.clone(), lock.clone());
        let work = move || cache.fetch_dir(&commit, &lock);
        let work = blocking(&shared.tasks, work).await?;
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
        fetch::commit(request, work, &shared.tasks, report).await
    };
    let fetched = retry::transient(emit, fetch).await?;
    point!("tree-fetched");
    let (progress, files) = (fetched.progress, fetched.files);
    let (placed, tree) = oneshot::channel();
    let kept = keep(shared, cache, target, lock, fetched, placed, sent);
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
    target: &Target,
    lock: &Lock,
    fetched: Fetched,
    placed: oneshot::Sender<Tree>,
    sent: CancellationToken,
) -> impl Future<Output = Result<()>> + use<> {
    let (cache, commit, lock) = (cache.clone(), target.commit.clone(), lock.clone());
    let (tasks, time) = (shared.tasks.clone(), fetched.commit_time);
    let place = {
        let (cache, commit) = (cache.clone(), commit.clone());
        move || Ok((cache.place(&commit, time, &fetched.dir)?, fetched))
    };
    async move {
        let (tree, fetched) = blocking(&tasks, place).await?;
        // Nobody waits for it if the call was cancelled.
        let _ = placed.send(tree);
        // What it was fetched into goes first: that need not get to the disk, nor take room on it.
        let clean = move || {
            drop(fetched.dir);
            Ok(())
        };
        blocking(&tasks, clean).await?;
        // Whether it is sent or not, after that time it is kept.
        let _ = tokio::time::timeout(SENDING, sent.cancelled()).await;
        let vouch = move || {
            let kept = cache.mark_complete(&commit, time);
            drop(lock);
            kept
        };
        blocking(&tasks, vouch).await
    }
}

/// What the image says of itself (OCI image specification, annotations). All of it can be read by
/// anyone who has the image, and there is no secret in it: a repository's URL never holds one.
fn labels(target: &Target) -> HashMap<String, String> {
    let source = "org.opencontainers.image.source".to_owned();
    HashMap::from([
        (source, target.repository.url.to_string()),
        (REVISION_LABEL.to_owned(), target.commit.to_string()),
        (RUNTIME_LABEL.to_owned(), target.runtime.to_string()),
        (PLATFORM_LABEL.to_owned(), target.platform.to_string()),
    ])
}

/// The build has set the pinned tag; the moving one follows.
async fn tag(shared: &Shared, target: &Target, emit: &Sink) -> Result<String> {
    let (engine, pinned) = (shared.engine().await?, &target.references.pinned);
    let image = recent::find(shared, &target.runtime, &target.references, emit).await?;
    let image = image.ok_or_else(|| {
        Error::new(
            Code::BuildFailed,
            format!("the engine built the image, but {pinned} is not there"),
        )
        .hint("see whether something removes images while they are built")
    })?;
    // A later call would not take it for a hit, and build it again, for ever.
    if let Some(why) = image.contradiction(Some(&target.commit), &target.platform) {
        let platform = &target.platform;
        let message = format!("the engine built the image {pinned}, but {why}");
        let hint = format!(
            "use a base image for {platform} in the Dockerfile, or remove the local one that the builder took \
             (docker image rm), or set MOLECULE_IMAGE_PLATFORM"
        );
        return Err(target.named_in(Error::new(Code::BuildFailed, message).hint(hint)));
    }
    refresh_latest(engine, target, emit).await;
    point!("latest-tagged");
    emit(Event::tagged(&target.references));
    Ok(image.id)
}

/// Points the moving reference at the image. What a container is started from is the pinned one, so
/// a failure here is only told.
async fn refresh_latest(engine: &Engine, target: &Target, emit: &Sink) {
    let References { pinned, latest } = &target.references;
    if let Err(error) = engine.tag(pinned, latest).await {
        let message = format!("{latest} is not moved to the image: {}", error.message);
        emit(Event::warning(message, error.hint));
    }
}
