//! The shared resources of the host process: threads, panics, signals, limits, memory, and files of the host.

pub(crate) mod executor;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod outside_file;
pub(crate) mod panics;
pub(crate) mod signals;
