//! The job, from top to bottom: lookup, hit?, lock, fetch, check, build, tag.
//!
//! Each step is a module with a small surface, and none reaches back. [`ensure`] is what every
//! caller does for itself; [`make`] is what all who want the same image share.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cache::{Cache, Tree};
use crate::context::Context;
use crate::engine::{Build, Engine, Found, REVISION_LABEL};
use crate::error::{Code, Error, Result};
use crate::event::{Event, Kind, Sink};
use crate::fetch;
use crate::flight::Flights;
use crate::gitea;
use crate::http::Http;
use crate::image::{self, CommitSha, Image, Platform, References, Timings};
use crate::options::{PlatformChoice, Repository, Settings};
use crate::retry;
use crate::runtimes::Runtime;
use crate::version_pin::{self, Pin};

/// The prefix of the labels that are this library's own (reverse DNS, as docker's guidelines ask).
const LABEL_PREFIX: &str = "ai.moleculesai.libmol";

/// What every call of one client uses.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) http: Http,
    pub(crate) engine: tokio::sync::OnceCell<Engine>,
    pub(crate) flights: Flights<Made>,
    pub(crate) tasks: tokio_util::task::TaskTracker,
}

/// What a shared build has made, and how long that took.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    image_id: String,
    timings: Timings,
}

/// Everything that says which image is wanted.
#[derive(Clone)]
struct Wanted {
    runtime: Runtime,
    repository: Repository,
    commit: CommitSha,
    platform: Platform,
    references: References,
}

/// Finds the image for the head of the runtime's template, or makes it.
pub(crate) async fn ensure(shared: &Arc<Shared>, runtime: Runtime, emit: &Sink) -> Result<Image> {
    if shared.settings.offline {
        return offline(shared, runtime, emit).await;
    }
    let begun = Instant::now();
    let mut timings = Timings::default();

    let repository = shared.settings.repo_prefix.repository(runtime)?;
    let commit = timed(
        &mut timings.lookup,
        lookup(shared, runtime, &repository, emit),
    )
    .await?;

    let engine = shared.engine().await?;
    let platform = shared.platform(engine)?;
    let references = References::new(runtime, &commit, &platform, &shared.settings.isolation);
    let wanted = Wanted {
        runtime,
        repository,
        commit,
        platform,
        references,
    };

    let found = timed(&mut timings.inspect, hit(engine, &wanted, emit)).await?;
    let cache_hit = found.is_some();
    let image_id = match found {
        Some(found) => {
            timed(&mut timings.tag, refresh_latest(engine, &wanted, emit)).await;
            found.id
        }
        None => {
            let key = &wanted.references.pinned;
            let seat = shared.flights.join(key, &shared.tasks, || {
                make(Arc::clone(shared), wanted.clone(), Arc::clone(emit))
            });
            if !seat.first {
                emit(Event {
                    holder: Some("another call in this process".to_owned()),
                    ..Event::new(
                        Kind::Waiting,
                        "waiting for a build that another call has begun",
                    )
                });
            }
            let made = seat.wait().await?;
            timings = Timings {
                lookup: timings.lookup,
                inspect: timings.inspect,
                ..made.timings
            };
            made.image_id
        }
    };

    timings.total = begun.elapsed();
    Ok(Image {
        reference: wanted.references.pinned,
        latest_reference: wanted.references.latest,
        runtime: runtime.to_string(),
        commit_sha: wanted.commit.to_string(),
        image_id,
        platform: wanted.platform.to_string(),
        cache_hit,
        timings,
    })
}

/// Without a network there is no commit to look up: the newest image of the runtime will do.
async fn offline(shared: &Shared, runtime: Runtime, emit: &Sink) -> Result<Image> {
    let begun = Instant::now();
    let mut timings = Timings::default();
    let engine = shared.engine().await?;
    let platform = shared.platform(engine)?;
    let isolation = &shared.settings.isolation;

    let newest = async {
        for pinned in engine.references(&image::repository(runtime)).await? {
            let references = References::of_pinned(&pinned, runtime, &platform, isolation);
            if let Some(references) = references
                && let Some(found) = engine.find(&pinned).await?
            {
                return Ok(Some((references, found)));
            }
        }
        Ok(None)
    };
    let newest = timed(&mut timings.inspect, newest).await?;
    let (references, found) = newest.ok_or_else(|| {
        Error::new(
            Code::NoLocalImage,
            format!("MOLECULE_LOCAL_OFFLINE is set, and the engine has no image of {runtime} for {platform}"),
        )
        .hint("unset MOLECULE_LOCAL_OFFLINE once, so that the image can be built")
    })?;
    emit(Event {
        r#ref: Some(references.pinned.clone()),
        ..Event::new(
            Kind::CacheHit,
            format!("offline: {} is the newest there is", references.pinned),
        )
    });
    timings.total = begun.elapsed();
    Ok(Image {
        reference: references.pinned,
        latest_reference: references.latest,
        runtime: runtime.to_string(),
        commit_sha: found.revision.unwrap_or_default(),
        image_id: found.id,
        platform: platform.to_string(),
        cache_hit: true,
        timings,
    })
}

/// Makes the image, once for all callers of this process, and under a lock for those of others.
async fn make(shared: Arc<Shared>, wanted: Wanted, emit: Sink) -> Result<Made> {
    let mut timings = Timings::default();
    let engine = shared.engine().await?;
    let cache = Cache::open(&shared.settings.cache_dir, wanted.runtime)?;

    let lock = cache.lock(&wanted.commit, |holder| {
        emit(Event {
            holder: Some(holder.clone()),
            ..Event::new(
                Kind::Waiting,
                format!("waiting for {holder}, which is at the same image"),
            )
        });
    });
    let _lock = timed(&mut timings.wait, lock).await?;
    if let Some(found) = usable(engine, &wanted).await?.0 {
        let image_id = found.id;
        return Ok(Made { image_id, timings });
    }

    let tree = match cache.tree(&wanted.commit)? {
        Some(tree) => tree,
        None => timed(&mut timings.fetch, fetch(&shared, &wanted, &cache, &emit)).await?,
    };
    let context = Context::open(&tree.path, tree.commit_time)?;
    let build = Build {
        reference: &wanted.references.pinned,
        platform: &wanted.platform,
        labels: labels(&wanted),
        build_args: build_args(&shared, &tree, &emit),
        stall_grace: shared.settings.stall_grace,
    };
    timed(&mut timings.build, engine.build(build, context, &*emit)).await?;
    let image_id = timed(&mut timings.tag, tag(engine, &wanted, &emit)).await?;
    Ok(Made { image_id, timings })
}

/// Step two: one question to the template server.
async fn lookup(
    shared: &Shared,
    runtime: Runtime,
    repository: &Repository,
    emit: &Sink,
) -> Result<CommitSha> {
    let begun = Instant::now();
    emit(Event {
        url: Some(repository.url.to_string()),
        ..Event::new(
            Kind::LookupStarted,
            format!("looking up {}", repository.url),
        )
    });
    let branch = shared.settings.branch.as_deref();
    let ask = || gitea::head(&shared.http, runtime, repository, branch);
    let head = retry::transient(emit, ask).await?;
    let message = format!("{} is at {}", head.branch, head.commit.short());
    emit(Event {
        url: Some(repository.url.to_string()),
        commit_sha: Some(head.commit.to_string()),
        branch: Some(head.branch),
        duration_ms: Some(millis(begun.elapsed())),
        ..Event::new(Kind::LookupDone, message)
    });
    Ok(head.commit)
}

/// Step three: does the engine have it?
async fn hit(engine: &Engine, wanted: &Wanted, emit: &Sink) -> Result<Option<Found>> {
    let reference = wanted.references.pinned.clone();
    let (found, reason) = usable(engine, wanted).await?;
    emit(match &found {
        Some(_) => Event {
            r#ref: Some(reference.clone()),
            ..Event::new(Kind::CacheHit, format!("{reference} is there"))
        },
        None => Event {
            r#ref: Some(reference.clone()),
            reason: Some(reason.clone()),
            ..Event::new(
                Kind::CacheMiss,
                format!("{reference} is to be built: {reason}"),
            )
        },
    });
    Ok(found)
}

/// The image, if its label and its platform do not contradict its tag; else why it cannot be used.
/// An image without labels counts: whoever made it gave it this tag.
async fn usable(engine: &Engine, wanted: &Wanted) -> Result<(Option<Found>, String)> {
    let Some(found) = engine.find(&wanted.references.pinned).await? else {
        return Ok((None, "the engine does not have it".to_owned()));
    };
    if let Some(revision) = found
        .revision
        .as_deref()
        .filter(|r| *r != wanted.commit.as_str())
    {
        return Ok((
            None,
            format!("its label says it is of the commit {revision}"),
        ));
    }
    let is_for = (found.os.as_str(), found.arch.as_str());
    if is_for != wanted.platform.os_arch() {
        let (os, arch) = is_for;
        return Ok((None, format!("it is for {os}/{arch}")));
    }
    Ok((Some(found), String::new()))
}

/// Steps four and five: exactly the commit, into the cache, all of it or nothing.
async fn fetch(shared: &Shared, wanted: &Wanted, cache: &Cache, emit: &Sink) -> Result<Tree> {
    let begun = Instant::now();
    let url = &wanted.repository.url;
    emit(Event {
        url: Some(url.to_string()),
        ..Event::new(
            Kind::FetchStarted,
            format!("fetching {}", wanted.commit.short()),
        )
    });
    let progress = |progress: fetch::Progress| {
        emit(Event {
            objects: Some(progress.objects),
            objects_total: progress.objects_total,
            bytes: Some(progress.bytes),
            ..Event::new(
                Kind::FetchProgress,
                format!("{} bytes received", progress.bytes),
            )
        });
    };
    let fetch = || async {
        let work = cache.work()?;
        let commit = &wanted.commit;
        let grace = shared.settings.stall_grace;
        let fetched =
            fetch::commit(&shared.http, url, commit, work.path(), grace, progress).await?;
        let tree = cache.publish(commit, fetched.commit_time, &work)?;
        Ok((fetched, tree))
    };
    let (fetched, tree) = retry::transient(emit, fetch).await?;
    emit(Event {
        objects: Some(fetched.progress.objects),
        objects_total: fetched.progress.objects_total,
        bytes: Some(fetched.progress.bytes),
        files: Some(fetched.files),
        duration_ms: Some(millis(begun.elapsed())),
        ..Event::new(Kind::FetchDone, format!("{} files fetched", fetched.files))
    });
    Ok(tree)
}

/// None, unless the caller wants the template's own pin to go in.
fn build_args(shared: &Shared, tree: &Tree, emit: &Sink) -> HashMap<String, String> {
    if !shared.settings.runtime_version_pin {
        return HashMap::new();
    }
    match version_pin::read(&tree.path) {
        Pin::None => HashMap::new(),
        Pin::Version(version) => HashMap::from([(version_pin::BUILD_ARG.to_owned(), version)]),
        Pin::Refused(text) => {
            emit(Event {
                hint: Some("put a version such as 1.2.3 on its first line".to_owned()),
                ..Event::new(
                    Kind::Warning,
                    format!(
                        "the template's .runtime-version is no version and is ignored: {text:?}"
                    ),
                )
            });
            HashMap::new()
        }
    }
}

/// What the image says of itself (OCI image specification, annotations). All of it can be read by
/// anyone who has the image, and there is no secret in it: a repository's URL never holds one.
fn labels(wanted: &Wanted) -> HashMap<String, String> {
    HashMap::from([
        (
            "org.opencontainers.image.source".to_owned(),
            wanted.repository.url.to_string(),
        ),
        (REVISION_LABEL.to_owned(), wanted.commit.to_string()),
        (
            format!("{LABEL_PREFIX}.runtime"),
            wanted.runtime.to_string(),
        ),
        (
            format!("{LABEL_PREFIX}.platform"),
            wanted.platform.to_string(),
        ),
    ])
}

/// Step seven: the build has set the pinned tag; the moving one follows.
async fn tag(engine: &Engine, wanted: &Wanted, emit: &Sink) -> Result<String> {
    let References { pinned, latest } = &wanted.references;
    let image = engine.find(pinned).await?.ok_or_else(|| {
        Error::new(
            Code::BuildFailed,
            format!("the engine built the image, but {pinned} is not there"),
        )
        .hint("see whether something removes images while they are built")
    })?;
    refresh_latest(engine, wanted, emit).await;
    emit(Event {
        r#ref: Some(pinned.clone()),
        latest_ref: Some(latest.clone()),
        ..Event::new(Kind::Tagged, format!("{pinned} is ready"))
    });
    Ok(image.id)
}

/// Points the moving reference at the image. What a container is started from is the pinned one, so
/// a failure here is only told.
async fn refresh_latest(engine: &Engine, wanted: &Wanted, emit: &Sink) {
    let References { pinned, latest } = &wanted.references;
    if let Err(error) = engine.tag(pinned, latest).await {
        emit(Event {
            hint: Some(error.hint),
            ..Event::new(
                Kind::Warning,
                format!(
                    "{latest} could not be moved to the image: {}",
                    error.message
                ),
            )
        });
    }
}

impl Shared {
    /// What the image is to be built for.
    fn platform(&self, engine: &Engine) -> Result<Platform> {
        match &self.settings.platform {
            PlatformChoice::Fixed(platform) => Ok(platform.clone()),
            PlatformChoice::Native => engine.native_platform(),
        }
    }

    /// The engine; looked for by the first call that needs it, and again after a failure.
    async fn engine(&self) -> Result<&Engine> {
        self.engine
            .get_or_try_init(|| Engine::connect(&self.settings.engine))
            .await
    }
}

async fn timed<T>(took: &mut Duration, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let result = work.await;
    *took = begun.elapsed();
    result
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
