//! What a call asks for, and which image that is.

use std::collections::HashMap;

use crate::engine::{PLATFORM_LABEL, REVISION_LABEL, RUNTIME_LABEL};
use crate::error::Error;
use crate::names::commit::CommitSha;
use crate::names::platform::Platform;
use crate::names::reference::References;
use crate::names::runtimes::Runtime;
use crate::options::Repository;

/// What a caller asks for: the head of the branch, or exactly one commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Request {
    pub(crate) runtime: Runtime,
    pub(crate) repository: Repository,
    pub(crate) commit: Option<CommitSha>,
}

/// The image that a request resolves to.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) runtime: Runtime,
    pub(crate) repository: Repository,
    /// The branch whose head the commit is; `None` if the caller has named the commit.
    pub(crate) branch: Option<String>,
    pub(crate) commit: CommitSha,
    pub(crate) platform: Platform,
    pub(crate) references: References,
}

impl Target {
    /// Adds the template's URL and commit to an error.
    pub(crate) fn with_template(&self, error: Error) -> Error {
        let (url, commit) = (&self.repository.url, self.commit.short());
        error.context(format_args!("{url} at {commit}"))
    }

    /// The labels of the image (OCI image specification, annotations). Anyone who has the image can read them, and
    /// none is a secret: a repository's URL never has a password.
    pub(crate) fn labels(&self) -> HashMap<String, String> {
        let source = "org.opencontainers.image.source".to_owned();
        HashMap::from([
            (source, self.repository.url.to_string()),
            (REVISION_LABEL.to_owned(), self.commit.to_string()),
            (RUNTIME_LABEL.to_owned(), self.runtime.to_string()),
            (PLATFORM_LABEL.to_owned(), self.platform.to_string()),
        ])
    }
}
