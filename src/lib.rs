//! libmol turns a workspace runtime name (`claude-code`, `hermes`, …) into a container image that is
//! ready to start.
//!
//! In production a workspace server pulls these images from a registry. Where no registry is set, it
//! builds them: it looks up the head commit of the runtime's template repository, uses the image
//! whose tag is that commit if the engine has it, and otherwise fetches exactly that commit, builds
//! it and tags it. It never falls back to a registry, lets only known runtimes through, and never
//! shows a token.
//!
//! # The way through the code
//!
//! | module | what it holds |
//! | --- | --- |
//! | `pipeline` | the job, from top to bottom; `offline` is the way without a network |
//! | [`runtimes`], [`registry`], [`image`], [`options`] | names, and what may be set |
//! | `outside_file`, `certificates` | files whose paths come from outside |
//! | `gitea`, `http`, `retry` | step 2: which commit? |
//! | `fetch`, `cache`, `ownership`, `disk`, `version_pin` | steps 4 and 5: its tree on disk |
//! | `engine`, `context` | steps 3, 6 and 7: the image |
//! | [`prune`], [`diagnose`], [`build_log`], [`metrics`] | what is here, and what may go; what is well, and what is not; what was built, and how often |
//! | [`client`], `coalesce`, `flight`, `executor`, `signals`, `queue` | many callers, one lookup, one build |
//! | [`error`], [`event`], [`mask`], `printable`, `limits`, `panics` | what is told, and what is not |
//! | [`ffi`] | the C ABI: translation, and nothing else |
//! | `point` | places where a test stops the process; not in what ships |

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
pub mod names;
mod net;
pub mod options;
mod process;
pub mod redact;
pub mod upkeep;

pub use client::Client;
pub use error::{Code, Error, Result};
pub use event::Event;
pub use names::image::Image;
pub use options::{OptionName, Options};
