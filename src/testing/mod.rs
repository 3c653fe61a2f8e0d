//! Code that only tests use. Nothing here is in the library that ships.

#[macro_use]
pub(crate) mod point;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
