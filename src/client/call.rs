//! A call of a client: its work, its time limit and its end.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::oneshot;
use url::Url;

use super::Client;
use crate::error::{Code, Error, FailedBuild, Result};
use crate::event::{Event, Kind, Sink, human_duration};
use crate::job::shared::Shared;
use crate::names::runtimes::Runtime;
use crate::process;
use crate::process::executor;
use crate::process::panics;
use crate::redact::{Masker, Redact};

/// A call of a client. It does nothing until [`Call::wait`] or [`Call::start`].
///
/// Both take the call's time limit. `None` stands for the ceiling of the options, [`Duration::MAX`] for no limit.
#[must_use = "a call does nothing until it is started or awaited"]
pub struct Call<'a, T> {
    client: &'a Client,
    /// `Err` if the call cannot start, with the reason.
    task: Result<Task<T>>,
}

/// What a call does.
pub(super) struct Task<T> {
    template: Option<Template>,
    work: Work<T>,
    mask: fn(T, &Masker) -> T,
    /// In a call that the metrics count: whether the image was already in the engine.
    cache_hit: Option<fn(&T) -> bool>,
}

/// What the call runs. The last argument is the time limit that the caller gave; `None` is the ceiling.
type Work<T> =
    Box<dyn FnOnce(Arc<Shared>, Sink, Option<Duration>) -> BoxFuture<'static, Result<T>> + Send>;

/// The template that a call is for, as its events and errors name it.
pub(super) struct Template {
    pub(super) runtime: Runtime,
    pub(super) url: Url,
}

impl<T: Redact> Task<T> {
    pub(super) fn new<W: Future<Output = Result<T>> + Send + 'static>(
        template: Option<Template>,
        work: impl FnOnce(Arc<Shared>, Sink, Option<Duration>) -> W + Send + 'static,
    ) -> Self {
        Self {
            template,
            work: Box::new(move |shared, emit, timeout| work(shared, emit, timeout).boxed()),
            mask: T::masked,
            cache_hit: None,
        }
    }

    /// The metrics count the call.
    pub(super) fn counted(self, cache_hit: fn(&T) -> bool) -> Self {
        Self {
            cache_hit: Some(cache_hit),
            ..self
        }
    }
}

impl<T> std::fmt::Debug for Call<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").finish_non_exhaustive()
    }
}

impl<'a, T: Send + 'static> Call<'a, T> {
    pub(super) fn new(client: &'a Client, task: Result<Task<T>>) -> Self {
        Self { client, task }
    }

    /// Starts the call and waits for its end. May be awaited in any executor. Dropping the future cancels the call.
    ///
    /// # Errors
    ///
    /// Those of [`Call::start`]; [`Code::Canceled`]; [`Code::DeadlineExceeded`] if `timeout` passes, and
    /// [`Code::Timeout`] if the ceiling does; [`Code::ProcessLimit`]; [`Code::Internal`]; and those that the method
    /// of [`Client`] lists.
    pub async fn wait(self, timeout: Option<Duration>) -> Result<T> {
        struct CancelOnDrop<'a>(&'a Client, u64);
        impl Drop for CancelOnDrop<'_> {
            fn drop(&mut self) {
                self.0.cancel(self.1);
            }
        }
        let (sender, receiver) = oneshot::channel();
        let client = self.client;
        let id = self.start(timeout, |_, result| {
            // Nobody waits any more if the future was dropped.
            let _ = sender.send(result);
        })?;
        let _cancel = CancelOnDrop(client, id);
        receiver.await.unwrap_or_else(|_| Err(Error::canceled()))
    }

    /// Starts the call and returns its id, for [`Client::cancel`]. `done` is called exactly once, with the id and the
    /// result, when the call ends, on a thread of the library.
    ///
    /// # Errors
    ///
    /// At once, and then `done` is not called: [`Code::Closed`] after [`Client::close`]; [`Code::UnknownRuntime`] and
    /// [`Code::InvalidArgument`] for what the method of [`Client`] was given.
    pub fn start(
        self,
        timeout: Option<Duration>,
        done: impl FnOnce(u64, Result<T>) + Send + 'static,
    ) -> Result<u64> {
        let Self { client, task } = self;
        let task = task?;
        // The client has started it, so this does not fail.
        let executor = executor::runtime()?;
        let (id, cancel) = client.register()?;
        let begun = Instant::now();
        if task.cache_hit.is_some() {
            client.shared.metrics.started();
        }
        let latest = Latest::default();
        let template = task.template;
        let runtime = template.as_ref().map(|template| template.runtime.clone());
        let emit = sink(client, id, runtime.clone(), Arc::clone(&latest));
        let (shared, calls) = (Arc::clone(&client.shared), Arc::clone(&client.calls));
        let limit = timeout.unwrap_or(shared.settings.ceiling);
        let call = async move {
            let work = (task.work)(Arc::clone(&shared), emit, timeout);
            let result = tokio::select! {
                biased;
                () = cancel.cancelled() => Err(Error::canceled()),
                result = panics::catch_future(work) => result,
                () = tokio::time::sleep(limit) => Err(too_late(runtime.as_ref(), timeout, limit, &latest)),
            };
            process::lock(&calls).running.remove(&id);
            let named = |error: Error| match &template {
                None => error,
                Some(template) => Error {
                    runtime: template.runtime.to_string(),
                    url: match error.concerns_template() {
                        true => template.url.as_str().to_owned(),
                        false => String::new(),
                    },
                    ..error
                },
            };
            let masked = panics::catch(|| {
                point!("call-ended");
                Ok(result
                    .map(|result| (task.mask)(result, &shared.masker))
                    .map_err(|error| shared.masker.error(named(error))))
            });
            let defective = |defect| Err(Masker::default().error(named(defect)));
            let result = masked.unwrap_or_else(defective);
            if let Some(cache_hit) = task.cache_hit {
                let hit = result.as_ref().is_ok_and(cache_hit);
                shared
                    .metrics
                    .ended(result.as_ref().err(), hit, begun.elapsed());
            }
            done(id, result);
        };
        client.shared.tasks.spawn_on(call, executor.handle());
        Ok(id)
    }
}

/// The sink for the events of a call: it masks them, and adds the call and its runtime.
fn sink(client: &Client, call: u64, runtime: Option<Runtime>, latest: Latest) -> Sink {
    let (observer, shared) = (client.observer.clone(), Arc::clone(&client.shared));
    Arc::new(move |mut event: Event| {
        shared.metrics.event(event.kind);
        point!("event-{:?}", event.kind);
        if !event.kind.is_minor() {
            let mut progress = process::lock(&latest);
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
    let progress = process::lock(latest);
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
}
