//! Maintenance functions: list, prune, diagnose, build log.

pub mod build_log;
pub mod diagnose;
pub mod list;
pub mod prune;
