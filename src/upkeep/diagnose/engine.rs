//! The engine: its version, builder, platform and disk.

use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::{Builder, Engine};
use crate::event::{Event, Kind, Sink};
use crate::job::shared::Shared;
use crate::upkeep::diagnose::{Check, Deadline, free_space};

/// With less free space, in bytes, the next builds may not fit: a base image and what a template installs take
/// gigabytes.
const LOW_SPACE: u64 = 5 << 30;

pub(super) async fn engine(shared: &Shared, deadline: Deadline) -> Vec<Check> {
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
            return vec![
                Check::failed("engine", error),
                unknown("version"),
                unknown("builder"),
                unknown("platform"),
                unknown("engine disk"),
            ];
        }
    };
    let (platform, disk) = tokio::join!(
        platform(shared, &engine, deadline),
        engine_disk(&engine, deadline)
    );
    vec![
        Check::ok(
            "engine",
            format!("{} ({})", engine.endpoint(), engine.named_by()),
        ),
        Check::ok("version", engine.description()),
        builder(shared, &engine),
        platform,
        disk,
    ]
}

fn builder(shared: &Shared, engine: &Engine) -> Check {
    let asked_for = shared.settings.engine.classic_builder;
    match engine.builder() {
        Builder::Classic if asked_for => Check::warning(
            "builder",
            "classic, because DOCKER_BUILDKIT is 0",
            "unset DOCKER_BUILDKIT: BuildKit is faster and supports more Dockerfile syntax",
        ),
        Builder::Classic => Check::warning(
            "builder",
            "classic: the engine is too old for BuildKit",
            "update the engine: templates may use syntax that the classic builder does not support",
        ),
        builder => Check::ok("builder", builder.name()),
    }
}

/// Whether the engine can build for the platform, and whether it emulates it.
async fn platform(shared: &Shared, engine: &Engine, deadline: Deadline) -> Check {
    const NAME: &str = "platform";
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let emitted = Arc::clone(&warnings);
    let emit: Sink = Arc::new(move |event: Event| {
        if event.kind == Kind::Warning {
            let mut warnings = emitted.lock().unwrap_or_else(PoisonError::into_inner);
            warnings.push((event.message, event.hint.unwrap_or_default()));
        }
    });
    let work = async {
        let platform = shared.platform_on(engine)?;
        engine.check_platform(&platform, &emit).await?;
        Ok(platform)
    };
    let platform = match deadline.limited("the engine", work).await {
        Ok(platform) => platform,
        Err(error) => return Check::failed(NAME, error),
    };
    let warning = warnings
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pop();
    if let Some((message, hint)) = warning {
        return Check::warning(NAME, message, hint);
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

async fn engine_disk(engine: &Engine, deadline: Deadline) -> Check {
    const NAME: &str = "engine disk";
    let folder = match deadline.limited("the engine", engine.data_folder()).await {
        Ok(folder) => folder,
        Err(error) => return Check::failed(NAME, error),
    };
    let Some(folder) = folder else {
        return Check::ok(NAME, "the engine does not report where its data is");
    };
    let free = async { Ok(engine.free_at(&folder).await) };
    let free = match deadline.limited("the engine's disk", free).await {
        Ok(free) => free,
        Err(error) => return Check::failed(NAME, error),
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
