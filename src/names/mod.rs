//! The names of runtimes, of images and of their registry.

pub mod image;
pub mod reference;
pub mod registry;
pub mod runtimes;
