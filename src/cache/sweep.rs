//! Removing what killed processes have left of commits that nobody asks for any more.

use std::time::Duration;

use super::files::remove;
use super::{Cache, TEMP_PREFIX};

/// What a killed process has left of a fetch is removed after this time.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

impl Cache {
    /// Removes old leftovers of all commits. Errors are ignored: the next sweep retries.
    pub(super) fn sweep(&self) {
        for leftover in self.with_prefix(TEMP_PREFIX) {
            let old = leftover
                .metadata()
                .and_then(|found| found.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFTOVER_AGE));
            if old {
                let _ = remove(&leftover.path());
            }
        }
    }
}
