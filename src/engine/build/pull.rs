//! The progress of a download, of a base image or of a step's result in a shared cache: which layers, how much of each,
//! and how fast.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::engine::build::step::Step;
use crate::event::{Event, Kind, human_bytes, millis};

/// The most layers of one pull whose progress is counted. An image cannot have so many.
pub(super) const MAX_LAYERS: usize = 1024;

/// The longest name of a layer: `sha256:` and 64 hex digits.
const MAX_NAME: usize = 71;

/// The largest byte count in an event: Go and Java read it as a signed 64-bit integer.
const MAX_BYTES: u64 = i64::MAX as u64;

/// What the engine does with a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Download,
    Extract,
}

impl Action {
    /// The name in events.
    fn name(self) -> &'static str {
        match self {
            Action::Download => "download",
            Action::Extract => "extract",
        }
    }
}

/// The state of a layer, as the engine reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LayerStatus {
    /// The digest of the layer, or the start of it.
    pub(super) layer: String,
    pub(super) action: Action,
    /// 0 if the builder does not report bytes.
    pub(super) bytes: u64,
    /// 0 if it is not known.
    pub(super) total: u64,
    /// The builder says that this is the last report of what it does with the layer.
    pub(super) complete: bool,
}

struct Layer {
    started: Instant,
    action: Action,
    bytes: u64,
    total: u64,
    /// The bytes that are downloaded, also while it is extracted.
    downloaded: u64,
    /// The current action is complete.
    complete: bool,
    /// Whether it has changed since its last event.
    changed: bool,
}

/// The pull of one step's base image, or of its result.
pub(super) struct Pull {
    pub(super) step: Step,
    started: Instant,
    layers: HashMap<String, Layer>,
}

impl Pull {
    pub(super) fn new(step: Step) -> Self {
        Self {
            step,
            started: Instant::now(),
            layers: HashMap::new(),
        }
    }

    pub(super) fn started(&self) -> Event {
        let what = format!("pulling {}", self.what());
        event(Kind::PullStarted, &self.step, &what)
    }

    /// What is pulled. Only the step of a base image begins with `FROM`; others take their result from a shared cache.
    fn what(&self) -> &'static str {
        match self.step.is_base_image() {
            true => "the base image",
            false => "its result from the shared cache",
        }
    }

    /// Whether the download of a layer is not complete.
    pub(super) fn is_downloading(&self) -> bool {
        let mut layers = self.layers.values();
        layers.any(|layer| layer.action == Action::Download && !layer.complete)
    }

    /// Updates the state of a layer, and returns whether the report counts as activity. A download that hangs is
    /// reported again and again, so it counts only if something changed. BuildKit reports an extraction without byte
    /// counts, so every report of one counts.
    pub(super) fn update(&mut self, status: LayerStatus) -> bool {
        let LayerStatus {
            layer,
            action,
            bytes,
            total,
            complete,
        } = status;
        let known = self.layers.contains_key(&layer);
        if layer.len() > MAX_NAME || !known && self.layers.len() == MAX_LAYERS {
            return true;
        }
        let state = self.layers.entry(layer).or_insert_with(|| Layer {
            started: Instant::now(),
            action,
            bytes: 0,
            total: 0,
            downloaded: 0,
            complete: false,
            changed: true,
        });
        match (state.action, action) {
            // BuildKit goes on reporting the download, which is complete.
            (Action::Extract, Action::Download) => return true,
            (Action::Download, Action::Extract) => state.started = Instant::now(),
            _ => {}
        }
        let changed = (state.action, state.bytes, state.total) != (action, bytes, total);
        state.changed |= changed;
        state.complete = complete || total > 0 && bytes >= total;
        (state.action, state.bytes, state.total) = (action, bytes, total);
        state.downloaded = state.downloaded.max(match action {
            Action::Download => bytes,
            Action::Extract => total,
        });
        changed || action == Action::Extract
    }

    /// An event for each layer that has changed.
    pub(super) fn progress(&mut self) -> Vec<Event> {
        let mut changed: Vec<_> = (self.layers.iter_mut())
            .filter_map(|(name, layer)| {
                std::mem::take(&mut layer.changed).then(|| layer.event(name, &self.step))
            })
            .collect();
        changed.sort_by(|a, b| a.layer.cmp(&b.layer));
        changed
    }

    pub(super) fn done(&self) -> Event {
        let downloaded = self.layers.values().map(|layer| layer.downloaded);
        let bytes = downloaded.fold(0, u64::saturating_add).min(MAX_BYTES);
        let what = match bytes {
            0 => format!("pulled {}", self.what()),
            _ => format!("pulled {}, {}", self.what(), human_bytes(bytes)),
        };
        Event {
            bytes: (bytes > 0).then_some(bytes),
            duration_ms: Some(millis(self.started.elapsed())),
            ..event(Kind::PullDone, &self.step, &what)
        }
    }
}

fn event(kind: Kind, step: &Step, what: &str) -> Event {
    Event {
        step: Some(step.number),
        step_name: Some(step.name.clone()),
        ..Event::new(kind, format!("{}: {what}", step.name))
    }
}

impl Layer {
    fn event(&self, name: &str, step: &Step) -> Event {
        let what = match self.action {
            Action::Download => "downloading",
            Action::Extract => "extracting",
        };
        let amount = match (self.bytes, self.total) {
            (0, 0) => String::new(),
            (bytes, 0) => format!(", {}", human_bytes(bytes)),
            (bytes, total) => format!(", {} of {}", human_bytes(bytes), human_bytes(total)),
        };
        Event {
            layer: Some(name.to_owned()),
            action: Some(self.action.name()),
            bytes: (self.bytes > 0).then_some(self.bytes),
            bytes_total: (self.total > 0).then_some(self.total),
            bytes_per_second: rate(self.bytes, self.started.elapsed()),
            ..event(Kind::PullProgress, step, &format!("{what} a layer{amount}"))
        }
    }
}

/// The average rate; `None` without bytes, and in the first 100 ms.
fn rate(bytes: u64, time: Duration) -> Option<u64> {
    const SHORTEST: Duration = Duration::from_millis(100);
    (bytes > 0 && time >= SHORTEST)
        .then(|| (bytes.saturating_mul(1000) / millis(time)).min(MAX_BYTES))
}
