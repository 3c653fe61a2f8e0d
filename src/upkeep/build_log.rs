//! The log of a runtime's last build, kept in the cache: `mol logs --build`. `job/recorder.rs` writes it.

use serde::Serialize;

use crate::cache::Cache;
use crate::error::{Code, Error, Result};
use crate::names::runtimes::Runtime;
use crate::redact::{Masker, Redact};
use crate::upkeep::unix_seconds;

/// The log of a runtime's last build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BuildLog {
    /// The runtime.
    pub runtime: String,
    /// The path of the log file.
    pub path: String,
    /// When the build ended, in seconds since 1970.
    pub ended_unix: i64,
    /// Its lines, at most about 1 MiB. A line with their number replaces lines that were left out.
    pub text: String,
}

impl Redact for BuildLog {
    fn masked(mut self, masker: &Masker) -> Self {
        // It was masked when it was written, but maybe for another token.
        let end = if self.text.ends_with('\n') { "\n" } else { "" };
        self.text = masker.log(&self.text) + end;
        masker.in_place(&mut self.path);
        self
    }
}

/// The log of the last build of `runtime` with this cache.
///
/// # Errors
///
/// [`Code::Cache`] if there is none.
pub(crate) fn last(root: &std::path::Path, runtime: &Runtime) -> Result<BuildLog> {
    let cache = Cache::existing(root, runtime)?;
    let log = cache.as_ref().and_then(|cache| cache.log());
    let (path, ended, text) = log.ok_or_else(|| {
        Error::new(
            Code::Cache,
            format!(
                "there is no log of a build of {runtime} in the cache at {}",
                root.display()
            ),
        )
        .hint(format!(
            "run mol ensure {runtime}: a build writes a log; nothing is built if the engine already has the image"
        ))
    })?;
    Ok(BuildLog {
        runtime: runtime.to_string(),
        path: path.display().to_string(),
        ended_unix: unix_seconds(ended),
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}
