//! Where an attempt to build runs, and how errors and events refer to it.

use std::fmt;

use crate::engine::Engine;
use crate::engine::build::Builder;
use crate::engine::builders::Worker;
use crate::error::Code;
use crate::names::platform::Platform;

/// The engine's own builder, or a node of another one.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) engine: &'a Engine,
    pub(super) worker: Option<&'a Worker>,
}

/// `the engine at unix:///run/docker.sock`
impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} at {}", self.noun(), self.endpoint())
    }
}

impl Place<'_> {
    /// What it is called: `engine` or `builder`.
    pub(super) fn noun(&self) -> &'static str {
        match self.worker {
            None => "engine",
            Some(_) => "builder",
        }
    }

    pub(super) fn endpoint(&self) -> String {
        match self.worker {
            None => self.engine.endpoint.clone(),
            Some(worker) => worker.node.to_string(),
        }
    }

    pub(super) fn builder(&self) -> Builder {
        match self.worker {
            None => self.engine.builder,
            Some(_) => Builder::BuildKit,
        }
    }

    /// The platform of its machine, if it says so.
    pub(super) fn native_platform(&self) -> Option<Platform> {
        match self.worker {
            None => self.engine.native_platform().ok(),
            Some(worker) => worker.native().cloned(),
        }
    }

    /// The code for a lost connection to it.
    pub(super) fn unreachable(&self) -> Code {
        match self.worker {
            None => Code::EngineUnreachable,
            Some(_) => Code::BuilderUnreachable,
        }
    }
}
