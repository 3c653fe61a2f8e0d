//! Counts the builds of each node of a builder, from the events of a build.

use std::sync::{Arc, Mutex};

use crate::error::{Code, Error};
use crate::event::{Event, Kind, Sink};
use crate::job::shared::Shared;
use crate::process;

/// What the metrics call the engine's own builder.
const OWN: &str = "engine";

/// Upper bound of a node's name, in bytes.
const MAX_NAME: usize = 200;

/// Counts one build on the node where it runs. If this is dropped without [`NodeBuilds::end`], the build was cancelled
/// and has no result.
pub(crate) struct NodeBuilds {
    shared: Arc<Shared>,
    running: Arc<Mutex<Option<String>>>,
}

impl NodeBuilds {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            running: Arc::default(),
        }
    }

    /// A sink that follows the build, and passes the events on to `emit`.
    pub(crate) fn sink(&self, emit: &Sink) -> Sink {
        let (shared, running) = (Arc::clone(&self.shared), Arc::clone(&self.running));
        let emit = Arc::clone(emit);
        Arc::new(move |event: Event| {
            note(&shared, &mut process::lock(&running), &event);
            emit(event);
        })
    }

    /// Counts the result of the build, if it has started.
    pub(crate) fn end(self, error: Option<&Error>) {
        if let Some(node) = process::lock(&self.running).take() {
            let code = error.map(|error| error.code);
            self.shared.metrics.node_ended(&node, code);
        }
    }
}

impl Drop for NodeBuilds {
    fn drop(&mut self) {
        if let Some(node) = process::lock(&self.running).take() {
            self.shared.metrics.node_left(&node);
        }
    }
}

fn note(shared: &Shared, running: &mut Option<String>, event: &Event) {
    let metrics = &shared.metrics;
    let name = |address: &str| shared.masker.shown(address, MAX_NAME);
    // A node that was passed over, or that was lost while it built.
    if let Some(node) = event.node.as_deref().map(name) {
        match running.take_if(|running| *running == node) {
            Some(_) => metrics.node_ended(&node, Some(Code::BuilderUnreachable)),
            None => metrics.node_failed(&node),
        }
    }
    if event.kind == Kind::BuildStarted {
        let node = match (&shared.settings.engine.builder, &event.endpoint) {
            (Some(_), Some(node)) => name(node),
            _ => OWN.to_owned(),
        };
        metrics.node_started(&node);
        *running = Some(node);
    }
}
