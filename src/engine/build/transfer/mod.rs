//! How the image gets from a builder into the engine: through this process, or through the registry of a shared cache
//! that may be written.

mod load;
mod registry;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bollard_buildkit_proto::moby::buildkit::v1::Exporter;

use crate::engine::Engine;
use crate::error::Error;
pub(super) use load::ImageLoad;
pub(super) use registry::ImagePull;

/// The transfer of one image.
#[derive(Clone, Debug)]
pub(super) enum Transfer {
    ThroughClient(Arc<ImageLoad>),
    ThroughRegistry(Arc<ImagePull>),
}

impl Transfer {
    /// A transfer through the repository, or through this process if there is none.
    pub(super) fn new(engine: &Engine, repository: Option<&str>) -> Self {
        match repository {
            None => Transfer::ThroughClient(Arc::new(ImageLoad::new(engine))),
            Some(repository) => Transfer::ThroughRegistry(Arc::new(ImagePull::new(repository))),
        }
    }

    /// What the builder does with the image.
    pub(super) fn exporter(&self, reference: &str) -> Exporter {
        let (r#type, attrs): (&str, &[(&str, &str)]) = match self {
            Transfer::ThroughClient(_) => ("docker", &[("name", reference)]),
            Transfer::ThroughRegistry(pull) => (
                "image",
                &[
                    ("name", pull.repository()),
                    ("push", "true"),
                    // Without a tag: nothing there is replaced, and nothing has to be deleted.
                    ("push-by-digest", "true"),
                ],
            ),
        };
        Exporter {
            r#type: r#type.to_owned(),
            attrs: (attrs.iter())
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        }
    }

    /// How much of the image is in the engine.
    pub(super) fn moved(&self) -> &Arc<TransferProgress> {
        match self {
            Transfer::ThroughClient(load) => load.moved(),
            Transfer::ThroughRegistry(pull) => pull.moved(),
        }
    }

    /// Why the engine does not have the image, if the builder has sent it.
    pub(super) fn failure(&self) -> Option<&Error> {
        match self {
            Transfer::ThroughClient(load) => load.failure(),
            Transfer::ThroughRegistry(_) => None,
        }
    }

    /// Whether the engine has the image.
    pub(super) fn is_complete(&self) -> bool {
        match self {
            Transfer::ThroughClient(load) => load.is_complete(),
            Transfer::ThroughRegistry(pull) => pull.is_complete(),
        }
    }
}

/// How much of an image is in the engine.
#[derive(Debug, Default)]
pub(super) struct TransferProgress {
    bytes: AtomicU64,
    /// 0 if it is not known.
    total: AtomicU64,
    is_moving: AtomicBool,
}

impl TransferProgress {
    /// The bytes so far, and in total, if that is known.
    pub(super) fn bytes(&self) -> (u64, Option<u64>) {
        let total = self.total.load(Ordering::Relaxed);
        (
            self.bytes.load(Ordering::Relaxed),
            (total > 0).then_some(total),
        )
    }

    /// Whether the image is being transferred, so that a long pause is a stall.
    pub(super) fn is_moving(&self) -> bool {
        self.is_moving.load(Ordering::Relaxed)
    }

    fn begin(self: &Arc<Self>) -> TransferGuard {
        self.is_moving.store(true, Ordering::Relaxed);
        TransferGuard(Arc::clone(self))
    }
}

/// A transfer that is under way, until it is dropped.
#[derive(Debug)]
struct TransferGuard(Arc<TransferProgress>);

impl TransferGuard {
    fn add(&self, bytes: usize) {
        self.0.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn set(&self, bytes: u64, total: u64) {
        self.0.bytes.store(bytes, Ordering::Relaxed);
        self.0.total.store(total, Ordering::Relaxed);
    }
}

impl Drop for TransferGuard {
    fn drop(&mut self) {
        self.0.is_moving.store(false, Ordering::Relaxed);
    }
}
