//! Maintenance functions: list, prune, diagnose, build log.

use std::time::{SystemTime, UNIX_EPOCH};

pub mod build_log;
pub mod diagnose;
pub mod list;
pub mod prune;

/// Seconds since 1970.
fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
