//! libmol turns a workspace runtime name (`claude-code`, `hermes`, …) into a container image that is
//! ready to start.
//!
//! In production a workspace server pulls these images from a registry. Where no registry is set, it
//! builds them: it looks up the head commit of the runtime's template repository, uses the image
//! whose tag is that commit if the engine has it, and otherwise fetches exactly that commit, builds
//! it and tags it. It never falls back to a registry, lets only known runtimes through, and never
//! shows a token.
//!
//! # Modules
//!
//! | module | content |
//! | --- | --- |
//! | `job` | the job, from top to bottom: which commit, is there an image, fetch, build, tag |
//! | [`client`] | calls: start, time limit, cancel, end |
//! | [`names`], [`options`] | runtimes, registries, images and their tags; what can be set |
//! | `net` | HTTP to the template server, and Gitea's API |
//! | `fetch`, `cache` | the tree of a commit, and where it is kept |
//! | `engine`, `context` | the container engine, and what its builder gets |
//! | [`upkeep`] | list, prune, diagnose, build log |
//! | [`error`], [`event`], [`metrics`], [`redact`] | what leaves the library, and the masking in front of it |
//! | `printable` | any text as one printable line |
//! | `process` | threads, panics, signals and limits of the host process |
//! | [`ffi`] | the C ABI: translation, and nothing else |
//! | `testing` | what only tests use; not in the library that ships |

#[macro_use]
#[doc(hidden)]
pub mod testing;

mod cache;
pub mod client;
mod context;
mod engine;
pub mod error;
pub mod event;
mod fetch;
pub mod ffi;
mod job;
pub mod metrics;
pub mod names;
mod net;
pub mod options;
mod printable;
mod process;
pub mod redact;
pub mod upkeep;

pub use client::Client;
pub use error::{Code, Error, Result};
pub use event::Event;
pub use names::image::Image;
pub use options::{OptionName, Options};
