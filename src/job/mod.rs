//! The job, from top to bottom: lookup, hit?, lock, fetch, check, build, tag.
//!
//! Each step is a module with a small surface, and none calls back. [`ensure`] runs for every caller;
//! [`find_image`] is shared by callers that wait for one lookup, and [`build_shared`] by callers that want the
//! same image.

mod checkout;
pub(crate) mod coalesce;
mod lease;
pub(crate) mod ledger;
mod node_builds;
pub(crate) mod offline;
pub(crate) mod recorder;
mod results;
pub(crate) mod shared;
pub(crate) mod shared_build;
pub(crate) mod target;
pub(crate) mod version_pin;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cache::{Cache, Lock};
use crate::context::{self, Context};
use crate::engine::{Build, Engine, Found, Nodes};
use crate::error::{Code, Error, Result};
use crate::event::{Event, Sink};
use crate::job::checkout::Checkout;
use crate::job::coalesce::Answer;
use crate::job::node_builds::NodeBuilds;
use crate::job::recorder::Recorder;
use crate::job::results::{BuildOutput, LookupResult, MissReason};
use crate::job::shared::{Shared, timed};
use crate::job::target::{Request, Target};
use crate::metrics::Step;
use crate::names::image::{Image, Timings};
use crate::names::reference::References;
use crate::net::gitea::{self, Head};
use crate::net::retry;
use crate::process::executor::blocking;
use crate::process::outside_file;

/// Finds or builds the image of a request.
pub(crate) async fn ensure(shared: &Arc<Shared>, request: Request, emit: &Sink) -> Result<Image> {
    let begun = Instant::now();
    if request.commit.is_none() {
        emit(Event::lookup_started(&request.repository.url));
    }
    let find = || find_image(shared, &request, emit);
    let result = match shared.lookups.ask(request.clone(), find).await {
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
        Err(_) => join_build(shared, target, &mut timings, emit).await?,
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

/// Looks up the commit, and the image in the engine.
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
    if let Ok(found) = &result.found {
        let took = &mut result.timings.tag;
        tag_hit(shared, engine, &result.target, found, took, emit).await;
    }
    point!("image-inspected");
    Ok(Arc::new(result))
}

/// The commit to build: one request to the template server, unless the caller has named the commit.
async fn lookup(
    shared: &Shared,
    request: &Request,
    timings: &mut Timings,
    emit: &Sink,
) -> Result<Target> {
    let Request {
        runtime,
        repository,
        commit,
    } = request;
    let (branch, commit) = match commit {
        Some(commit) => (None, commit.clone()),
        None => {
            shared.warn_of_plain_text(emit);
            let branch = shared.settings.branch.as_deref();
            let ask = || gitea::head(&shared.http, runtime, repository, branch);
            let head = retry::transient(emit, ask);
            let head: Head = timed(shared, Step::Lookup, &mut timings.lookup, head).await?;
            (Some(head.branch), head.commit)
        }
    };
    let platform = shared.platform().await?;
    let references = References::new(runtime, &commit, &platform, &shared.settings.tags);
    Ok(Target {
        runtime: runtime.clone(),
        repository: repository.clone(),
        branch,
        commit,
        platform,
        references,
    })
}

/// The engine's image, if its labels and its platform do not contradict its tag. An image without labels is used:
/// somebody gave it this tag on purpose.
async fn usable(
    shared: &Shared,
    target: &Target,
    emit: &Sink,
) -> Result<std::result::Result<Found, MissReason>> {
    let found = lease::find(shared, &target.runtime, &target.references, emit).await?;
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

/// Joins the build of the image, or starts it.
async fn join_build(
    shared: &Arc<Shared>,
    target: &Target,
    timings: &mut Timings,
    emit: &Sink,
) -> Result<(String, bool)> {
    let key = &target.references.pinned;
    let waiter = shared.builds.join(key, &shared.tasks, || {
        build_shared(Arc::clone(shared), target.clone(), Arc::clone(emit))
    });
    if !waiter.first {
        emit(Event::waiting("another call in this process"));
    }
    let output = waiter.wait().await?;
    *timings = Timings {
        lookup: timings.lookup,
        inspect: timings.inspect,
        ..output.timings
    };
    Ok((output.image_id, output.cache_hit))
}

/// Builds the image once for all callers of this client. The lock excludes other processes, and other clients of this
/// process.
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
        let (engine, took) = (shared.engine().await?, &mut timings.tag);
        tag_hit(&shared, engine, &target, &found, took, &emit).await;
        return Ok(BuildOutput {
            image_id: found.id,
            cache_hit: true,
            timings,
        });
    }

    let title = format!("{} for {}", target.references.pinned, target.platform);
    let (commit, masker, tasks) = (&target.commit, &shared.masker, &shared.tasks);
    let log = Recorder::new(&cache, commit, &lock, masker, tasks, &title);
    let nodes = NodeBuilds::new(&shared);
    let emit = nodes.sink(&log.sink(&emit));
    let output = build_locked(&shared, &target, &cache, &lock, timings, &emit).await;
    nodes.end(output.as_ref().err());
    log.end(output.as_ref().err()).await;
    shared.metrics.built(output.as_ref().err());
    output
}

/// Fetches, checks, builds and tags, with the lock held.
async fn build_locked(
    shared: &Shared,
    target: &Target,
    cache: &Cache,
    lock: &Lock,
    mut timings: Timings,
    emit: &Sink,
) -> Result<BuildOutput> {
    let engine = shared.engine().await?;
    let (runtime, platform) = (target.runtime.as_str(), &target.platform);
    let nodes = engine
        .choose_nodes(runtime, platform, true, &shared.tasks, emit)
        .await?;
    let checkout = Checkout::new(shared, target, cache, lock, emit);
    let checkout = timed(shared, Step::Fetch, &mut timings.fetch, checkout).await?;
    point!("tree-ready");
    let built = build(shared, engine, nodes.as_ref(), target, &checkout, emit);
    let built = timed(shared, Step::Build, &mut timings.build, built).await;
    checkout.written(emit).await?;
    built?;
    point!("image-built");
    let tagged = tag(shared, target, emit);
    let image_id = timed(shared, Step::Tag, &mut timings.tag, tagged).await?;
    Ok(BuildOutput {
        image_id,
        cache_hit: false,
        timings,
    })
}

/// Builds the image from the tree. On success, the engine has the image.
async fn build(
    shared: &Shared,
    engine: &Engine,
    nodes: Option<&Nodes>,
    target: &Target,
    checkout: &Checkout,
    emit: &Sink,
) -> Result<()> {
    let (path, time) = (checkout.tree.path.clone(), checkout.tree.commit_time);
    let what = context::template_name(&path);
    let (received, warn) = (checkout.received.clone(), Arc::clone(emit));
    let pin = shared.settings.runtime_version_pin;
    let open = move || {
        let context = Context::open(&path, time, received)?;
        let build_args = match pin {
            true => version_pin::build_args(&path, &warn)?,
            false => HashMap::new(),
        };
        Ok((context, build_args))
    };
    let opened = outside_file::within(&shared.tasks, Code::Cache, &what, open).await;
    let shared_cache = shared.settings.engine.shared_cache.as_ref();
    let (context, build_args) = opened.map_err(|error| target.with_template(error))?;
    let build = Build {
        reference: &target.references.pinned,
        commit: target.commit.as_str(),
        platform: &target.platform,
        labels: target.labels(),
        build_args,
        stall_grace: shared.settings.stall_grace,
        shared_cache: shared_cache.map(|cache| cache.of(&target.runtime, &target.platform)),
    };
    let built = engine
        .build(nodes, build, context, &shared.tasks, emit)
        .await;
    built.map_err(|error| target.with_template(error))
}

/// Checks the image that the build has given the pinned tag, and refreshes the moving tag.
async fn tag(shared: &Shared, target: &Target, emit: &Sink) -> Result<String> {
    let (engine, pinned) = (shared.engine().await?, &target.references.pinned);
    let image = lease::find(shared, &target.runtime, &target.references, emit).await?;
    let image = image.ok_or_else(|| {
        Error::new(
            Code::BuildFailed,
            format!("the engine built the image, but {pinned} does not exist"),
        )
        .hint("check whether something removes images while they are built")
    })?;
    // Later calls would refuse it, and build it again each time.
    if let Some(why) = image.contradiction(Some(&target.commit), &target.platform) {
        let platform = &target.platform;
        let message = format!("the engine built the image {pinned}, but {why}");
        let hint = format!(
            "use a base image for {platform} in the Dockerfile, or remove the local one that the builder took \
             (docker image rm), or set MOLECULE_IMAGE_PLATFORM"
        );
        return Err(target.with_template(Error::new(Code::BuildFailed, message).hint(hint)));
    }
    refresh_latest(engine, target, emit).await;
    point!("latest-tagged");
    emit(Event::tagged(&target.references));
    Ok(image.id)
}

/// Points the moving tag at an image that was not built by this call, unless it points there already.
async fn tag_hit(
    shared: &Shared,
    engine: &Engine,
    target: &Target,
    found: &Found,
    took: &mut Duration,
    emit: &Sink,
) {
    if !found.is_known_as(&target.references.latest) {
        timed(
            shared,
            Step::Tag,
            took,
            refresh_latest(engine, target, emit),
        )
        .await;
    }
}

/// Points the moving tag at the image. Containers are started from the pinned one, so a failure is only a
/// warning.
async fn refresh_latest(engine: &Engine, target: &Target, emit: &Sink) {
    let References { pinned, latest } = &target.references;
    if let Err(error) = engine.tag(pinned, latest).await {
        let message = format!("the tag {latest} cannot be updated: {}", error.message());
        emit(Event::warning(message, error.hint));
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
            let message = format!("{reference} exists, but {why}");
            emit(Event::warning(message, "it will be rebuilt"));
            Event::cache_miss(reference, why)
        }
    });
}
