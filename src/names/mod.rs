//! The names of runtimes, of images and of their registry.

pub mod commit;
pub mod image;
pub mod platform;
pub mod reference;
pub mod registry;
pub mod runtimes;
