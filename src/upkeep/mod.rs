//! What an operator asks for beside images: what exists, what may go, what is wrong, and what was built.

pub mod build_log;
pub mod diagnose;
pub mod metrics;
pub mod prune;
