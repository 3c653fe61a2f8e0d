//! Why a checkout failed.

use std::io;

use gix_object::bstr::BString;

#[derive(Debug)]
pub(in crate::fetch) enum Failure {
    Git(gix_error::Error),
    /// A limit was exceeded: by a file to be converted, or by patterns that would take too long to match.
    TooLarge(String),
    /// Two names are the same on this disk.
    Collision(BString),
    /// The disk has another name for a file.
    Renamed(BString),
    Stopped,
}

impl From<gix_error::Error> for Failure {
    fn from(error: gix_error::Error) -> Self {
        Failure::Git(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Git(gix_error::Error::from_error(error))
    }
}
