//! What things are called: runtimes, images and their tags, registries.

pub mod image;
pub mod registry;
pub mod runtimes;
