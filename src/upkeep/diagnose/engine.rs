//! The engine: its version, builder, platform and disk.

use std::sync::{Arc, Mutex};

use crate::engine::{Builder, Engine, NodeAnswer};
use crate::error::Code;
use crate::event::{Event, Kind, Sink, human_bytes};
use crate::job::shared::Shared;
use crate::names::platform::Platform;
use crate::process;
use crate::upkeep::diagnose::{Check, Deadline, free_space};

/// With less free space, in bytes, the next builds may not fit: a base image and what a template installs take
/// gigabytes.
const LOW_SPACE: u64 = 5 << 30;

/// The checks, and the engine if it answers.
pub(super) async fn engine(shared: &Shared, deadline: Deadline) -> (Vec<Check>, Option<Engine>) {
    // A new connection, because the client's own may date from before the problem.
    let engine = deadline
        .limited(
            "the engine",
            Engine::connect(&shared.settings.engine, &shared.tasks),
        )
        .await;
    let engine = match engine {
        Ok(engine) => engine,
        Err(error) => {
            let unknown = |name| {
                Check::warning(name, "unknown without an engine", "see engine").because_of("engine")
            };
            let checks = vec![
                Check::failed("engine", error),
                unknown("version"),
                unknown("builder"),
                unknown("platform"),
                unknown("engine disk"),
            ];
            return (checks, None);
        }
    };
    let (builder, platform, disk) = tokio::join!(
        builder(shared, &engine, deadline),
        platform(shared, &engine, deadline),
        engine_disk(&engine, deadline)
    );
    let checks = vec![
        Check::ok(
            "engine",
            format!("{} ({})", engine.endpoint(), engine.named_by()),
        ),
        Check::ok("version", engine.description()),
        builder,
        platform,
        disk,
    ];
    (checks, Some(engine))
}

/// Which builder it is, and whether it answers, if it is not the engine's own.
async fn builder(shared: &Shared, engine: &Engine, deadline: Deadline) -> Check {
    const NAME: &str = "builder";
    let asked = deadline.limited("the builder", engine.ask_builder(&shared.tasks));
    match asked.await {
        Ok(None) => {}
        Ok(Some(asked)) => {
            let sizes = async { Ok(Engine::cache_sizes(&asked).await) };
            let sizes = deadline.limited("the builder", sizes).await;
            return nodes(NAME, &asked, &sizes.unwrap_or_default());
        }
        Err(error) => return Check::failed(NAME, error),
    }
    let asked_for = shared.settings.engine.classic_builder;
    match engine.builder() {
        Builder::Classic if asked_for => Check::warning(
            NAME,
            "classic, because DOCKER_BUILDKIT is 0",
            "unset DOCKER_BUILDKIT: BuildKit is faster and supports more Dockerfile syntax",
        ),
        Builder::Classic => Check::warning(
            NAME,
            "classic: the engine is too old for BuildKit",
            "update the engine: templates may use syntax that the classic builder does not support",
        ),
        builder => Check::ok(NAME, builder.name()),
    }
}

/// What each node of a builder answers, with the size of its cache if that is known. It is a problem only if no node
/// can be used. A node in a stopped container can be used: a build starts the container.
fn nodes(name: &str, asked: &[NodeAnswer], sizes: &[Option<u64>]) -> Check {
    let sizes = sizes.iter().copied().chain(std::iter::repeat(None));
    let answer = |((node, answer), size): (&NodeAnswer, Option<u64>)| match answer {
        Ok(worker) => {
            let platforms: Vec<&str> = worker.platforms.iter().map(Platform::as_str).collect();
            format!(
                "buildkit {} at {node} ({}{})",
                worker.version,
                platforms.join(", "),
                cache(size, worker.cache_limit)
            )
        }
        Err(trouble) => format!("{node}: {}", trouble.why),
    };
    let found: Vec<String> = asked.iter().zip(sizes).map(answer).collect();
    let found = found.join("; ");
    let troubles = || asked.iter().filter_map(|(_, answer)| answer.as_ref().err());
    let worst = troubles().find(|trouble| !trouble.is_stopped);
    let Some(first) = worst.or_else(|| troubles().next()) else {
        return Check::ok(name, found);
    };
    match troubles().filter(|trouble| !trouble.is_stopped).count() == asked.len() {
        true => Check::problem(name, found, first.hint),
        false => Check::warning(name, found, first.hint),
    }
}

/// `; cache 1.2 GiB, at most 10.0 GiB`
fn cache(size: Option<u64>, limit: Option<u64>) -> String {
    match (size.map(human_bytes), limit.map(human_bytes)) {
        (Some(size), Some(limit)) => format!("; cache {size}, at most {limit}"),
        (Some(size), None) => format!("; cache {size}"),
        (None, Some(limit)) => format!("; cache at most {limit}"),
        (None, None) => String::new(),
    }
}

/// Whether the builder can build for the platform, and whether it emulates it.
async fn platform(shared: &Shared, engine: &Engine, deadline: Deadline) -> Check {
    const NAME: &str = "platform";
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let emitted = Arc::clone(&warnings);
    let emit: Sink = Arc::new(move |event: Event| {
        // A node that does not answer is in the check of the builder.
        if event.kind == Kind::Warning && event.node.is_none() {
            let mut warnings = process::lock(&emitted);
            warnings.push((event.message, event.hint.unwrap_or_default()));
        }
    });
    let work = async {
        let platform = shared.platform_on(engine)?;
        let chosen = engine.choose_nodes("", &platform, false, &shared.tasks, &emit);
        chosen.await?;
        Ok(platform)
    };
    let platform = match deadline.limited("the engine", work).await {
        Ok(platform) => platform,
        Err(error) if error.code == Code::BuilderUnreachable => {
            return Check::warning(NAME, "unknown without a builder", "see builder")
                .because_of("builder");
        }
        Err(error) => return Check::failed(NAME, error),
    };
    let warnings = std::mem::take(&mut *process::lock(&warnings));
    if !warnings.is_empty() {
        let (messages, hints): (Vec<_>, Vec<_>) = warnings.into_iter().unzip();
        return Check::warning(NAME, messages.join("; "), hints.join("; "));
    }
    if shared.settings.engine.builder.is_some() {
        return Check::ok(NAME, format!("{platform}, without emulation"));
    }
    let native = engine.native_platform().ok();
    Check::ok(
        NAME,
        match native {
            Some(native) if native.os_arch() == platform.os_arch() => {
                format!("{platform}, without emulation")
            }
            _ => format!("{platform}; the engine does not report whether it emulates it"),
        },
    )
}

/// The free space of the engine's disk. Builds work without this information, so its absence is a warning.
async fn engine_disk(engine: &Engine, deadline: Deadline) -> Check {
    const NAME: &str = "engine disk";
    let folder = match deadline.limited("the engine", engine.data_folder()).await {
        Ok(folder) => folder,
        Err(error) => return Check::warning(NAME, error.message(), error.hint),
    };
    let Some(folder) = folder else {
        return Check::ok(NAME, "the engine does not report where its data is");
    };
    let free = async { Ok(engine.free_at(&folder).await) };
    let free = match deadline.limited("the engine's disk", free).await {
        Ok(free) => free,
        Err(error) => return Check::warning(NAME, error.message(), error.hint),
    };
    let Some(free) = free else {
        let found = format!(
            "the free space of {} is unknown; it may be on another machine",
            folder.display()
        );
        return Check::ok(NAME, found);
    };
    free_space(
        NAME,
        &folder,
        free,
        LOW_SPACE,
        "docker system df shows what uses it; mol prune and docker builder prune free space",
    )
}
