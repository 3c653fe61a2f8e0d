//! The inside of the library, for its property tests and its fuzz targets: each function here is one
//! step of the job by itself. It is no part of the API and changes without notice.

use std::path::Path;
use std::sync::Arc;

use futures_util::TryStreamExt;
use tokio_util::task::TaskTracker;

use crate::context::{Context, Filter, Patterns};
use crate::error::{Code, Error, Result};
use crate::executor;

/// The build context of a checked-out tree, as the classic builder gets it: an archive.
pub fn archive(tree: &Path) -> Result<Vec<u8>> {
    let context = Context::open(tree, 0)?;
    let filter = context.archive_filter(false)?;
    read(context, filter)
}

/// The same without what `patterns` match instead of what the ignore file says, as BuildKit asks for it.
pub fn archive_without(tree: &Path, patterns: &[String]) -> Result<Vec<u8>> {
    let excludes = Patterns::new(patterns).map_err(|why| Error::new(Code::BuildFailed, why))?;
    let filter = Filter {
        excludes,
        ..Filter::default()
    };
    read(Context::open(tree, 0)?, filter)
}

fn read(context: Context, filter: Filter) -> Result<Vec<u8>> {
    executor::runtime()?
        .block_on(async {
            let chunks = Arc::new(context).archive(filter, &TaskTracker::new());
            chunks
                .try_fold(Vec::new(), |mut archive, chunk| async move {
                    archive.extend_from_slice(&chunk);
                    Ok(archive)
                })
                .await
        })
        .map_err(|error| Error::new(Code::BuildFailed, error.to_string()))
}
