//! Maintenance functions: list, prune, diagnose, build log, metrics.

pub mod build_log;
pub mod diagnose;
pub mod list;
pub mod metrics;
pub mod prune;
