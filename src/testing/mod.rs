//! Code that only tests use. The released library contains none of it.

#[macro_use]
pub(crate) mod point;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
