//! What all calls of one client have in common: its settings, connections, and the work under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;

use crate::engine::Engine;
use crate::error::Result;
use crate::event::{Event, Sink};
use crate::job::coalesce::Coalesced;
use crate::job::ledger::Leases;
use crate::job::results::{BuildOutput, LookupResult};
use crate::job::shared_build::SharedBuilds;
use crate::job::target::Request;
use crate::metrics::{Metrics, Step};
use crate::names::platform::Platform;
use crate::names::reference::LocalName;
use crate::net::http::{HINT_PLAIN_TEXT, Http};
use crate::options::{PlatformChoice, Settings};
use crate::process::executor::blocking;
use crate::redact::Masker;

/// What every call of one client uses.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) http: Http,
    pub(crate) engine: OnceCell<Engine>,
    /// Set by the first call, which warns if the engine is at an unusual place.
    pub(crate) warned_of_engine: AtomicBool,
    pub(crate) lookups: Coalesced<Request, Result<Arc<LookupResult>>>,
    pub(crate) builds: SharedBuilds<BuildOutput>,
    pub(crate) leases: Leases,
    pub(crate) tasks: TaskTracker,
    pub(crate) masker: Arc<Masker>,
    pub(crate) metrics: Metrics,
}

impl Shared {
    /// The engine. The first call that needs it connects to it; after a failure the next one does.
    pub(crate) async fn engine(&self) -> Result<&Engine> {
        let connect = || Box::pin(Engine::connect(&self.settings.engine, &self.tasks));
        self.engine.get_or_try_init(connect).await
    }

    /// Warns once for each client if a program that reads only `DOCKER_HOST`, and no docker context, would use another
    /// engine. If that cannot be found out, there is no warning.
    pub(crate) async fn warn_of_unusual_engine(&self, engine: &Engine, emit: &Sink) {
        if self.warned_of_engine.swap(true, Ordering::Relaxed) {
            return;
        }
        let asked = engine.clone();
        let elsewhere = blocking(&self.tasks, move || Ok(asked.is_elsewhere())).await;
        if elsewhere.unwrap_or(false) {
            emit(Event::engine_elsewhere(engine.endpoint(), engine.has_tls()));
        }
    }

    /// Warns if the token goes over the network unencrypted.
    pub(crate) fn warn_of_plain_text(&self, emit: &Sink) {
        if let Some(server) = self.http.take_plain_text_warning() {
            let message = format!("the token goes to {server} in plain text");
            emit(Event::warning(message, HINT_PLAIN_TEXT));
        }
    }

    /// The parts of an image's name, if this client could have given it.
    pub(crate) fn local_name(&self, listed: &str) -> Option<LocalName> {
        let settings = &self.settings;
        LocalName::parse(listed, &settings.runtimes, &settings.tags.isolation)
    }

    /// The platform to build for.
    pub(crate) async fn platform(&self) -> Result<Platform> {
        match &self.settings.platform {
            PlatformChoice::Fixed(platform) => Ok(platform.clone()),
            PlatformChoice::Native => self.engine().await?.native_platform(),
        }
    }

    /// Like [`Self::platform`], with `engine` instead of the client's engine.
    pub(crate) fn platform_on(&self, engine: &Engine) -> Result<Platform> {
        match &self.settings.platform {
            PlatformChoice::Fixed(platform) => Ok(platform.clone()),
            PlatformChoice::Native => engine.native_platform(),
        }
    }
}

/// Runs a step of a call, and notes how long it took.
pub(crate) async fn timed<T>(
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
