//! What a library must take care of inside a host process: threads, panics, signals, limits and memory.

pub(crate) mod executor;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod outside_file;
pub(crate) mod panics;
pub(crate) mod signals;
