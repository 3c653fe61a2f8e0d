//! The errors of a fetch, made from what the pack reader, the checkout, gix and the disk report.

use std::io;
use std::sync::atomic::Ordering;

use prodash::messages::MessageLevel;

use crate::cache::{FetchDir, HINT_PERMISSIONS};
use crate::error::{Code, Error, chain, joined};
use crate::event::human_bytes;
use crate::fetch::task::FetchTask;
use crate::fetch::{checkout, pack, tree};
use crate::printable;
use crate::process::limits;

const HINT_LARGE: &str =
    "reduce this in the template's repository; the Dockerfile can download large files";
const HINT_REFUSED: &str =
    "run git fsck in the template's repository: git does not create such a commit";

impl FetchTask {
    pub(super) fn no_objects(&self) -> Error {
        let text = format!("{} sent no objects for the commit {}", self.url, self.id);
        Error::new(Code::Fetch, text)
            .hint("try again; if it fails again, the server's repository is damaged")
    }

    pub(super) fn pack_failed(&self, failure: pack::Failure, dir: &FetchDir) -> Error {
        match failure {
            pack::Failure::TooLarge(what) => self.too_large(&what),
            pack::Failure::Broken(why) => self.broken(&format!("the pack is broken: {why}")),
            pack::Failure::Receive(error) => {
                let error = gix_error::Error::from_error(error);
                self.failed("cannot be fetched", &error, dir, None)
            }
            pack::Failure::Disk(error) => self.disk_failed(error, dir),
            pack::Failure::Stopped => Error::canceled(),
        }
    }

    pub(super) fn tree_refused(&self, refused: tree::Refused, dir: &FetchDir) -> Error {
        match refused {
            tree::Refused::Unreadable(error) => {
                self.failed("cannot be checked out", &error, dir, None)
            }
            tree::Refused::Invalid(what) => {
                let subject = &self.wire.subject;
                let text = format!("{subject} is not checked out: {what}");
                Error::new(Code::Fetch, text).hint(HINT_REFUSED)
            }
            tree::Refused::TooLarge(what) => self.too_large(&what),
            tree::Refused::Stopped => Error::canceled(),
        }
    }

    /// `size` is that of the template's files.
    pub(super) fn checkout_failed(
        &self,
        failure: checkout::Failure,
        dir: &FetchDir,
        size: u64,
    ) -> Error {
        match failure {
            checkout::Failure::Git(error) => {
                self.failed("cannot be checked out", &error, dir, Some(size))
            }
            checkout::Failure::TooLarge(what) => self.too_large(&what),
            checkout::Failure::Collision(path) => {
                let subject = &self.wire.subject;
                let text =
                    format!("{subject} has two names that are the same on this disk: {path}");
                Error::new(Code::Fetch, text).hint(
                    "rename one of them in the template, or put the cache on a case-sensitive disk",
                )
            }
            checkout::Failure::Renamed(name) => {
                let subject = &self.wire.subject;
                let text = format!("the disk changes a file name of {subject} to {name}");
                Error::new(Code::Fetch, text)
                    .hint("rename the file in the template, or put the cache on another disk")
            }
            checkout::Failure::Stopped => Error::canceled(),
        }
    }

    /// An annotated tag has an id of its own, which is easily mistaken for the commit's.
    pub(super) fn not_a_commit(&self, kind: gix_object::Kind) -> Error {
        let (url, id) = (&self.url, self.id);
        let text = format!("{id} of {url} is a {kind}, not a commit");
        let hint = match kind {
            gix_object::Kind::Tag => {
                format!("give the commit's own id: git rev-parse {id}^{{commit}}")
            }
            _ => "give the id of a commit".to_owned(),
        };
        Error::new(Code::Fetch, text).hint(hint)
    }

    pub(super) fn too_large(&self, what: &str) -> Error {
        let subject = &self.wire.subject;
        let text = format!("{subject} is too large: it has {what}");
        Error::new(Code::Fetch, text).hint(HINT_LARGE)
    }

    pub(super) fn broken(&self, why: &str) -> Error {
        let why = self.server_error().unwrap_or_else(|| why.to_owned());
        let subject = &self.wire.subject;
        let text = format!("{subject} cannot be fetched: {why}");
        Error::new(Code::Fetch, text).hint(self.wire.retry_hint)
    }

    /// The error for a failure of gix. `size` is that of the template's files, once it is known.
    pub(super) fn failed(
        &self,
        what: &str,
        error: &gix_error::Error,
        dir: &FetchDir,
        size: Option<u64>,
    ) -> Error {
        if self.interrupted.load(Ordering::Relaxed) {
            return Error::canceled();
        }
        if let Some(limit) = self.limit_reached(error, dir, size) {
            return limit;
        }
        let why = self
            .server_error()
            .unwrap_or_else(|| joined(error.iter_errors()));
        let subject = &self.wire.subject;
        let text = format!("{subject} {what}: {why}");
        Error::new(Code::Fetch, text).hint(self.wire.retry_hint)
    }

    /// The error for a failure to write to the disk or to read back.
    pub(super) fn disk_failed(&self, error: io::Error, dir: &FetchDir) -> Error {
        let error = gix_error::Error::from_error(error);
        self.limit_reached(&error, dir, None).unwrap_or_else(|| {
            let path = dir.path().display();
            let message = format!("{path} cannot be written or read: {}", chain(&error));
            Error::new(Code::Cache, message).hint(HINT_PERMISSIONS)
        })
    }

    /// Returns the error for a full disk, or for a limit of this process, if that caused the failure.
    fn limit_reached(
        &self,
        error: &gix_error::Error,
        dir: &FetchDir,
        size: Option<u64>,
    ) -> Option<Error> {
        let extent = match size {
            Some(bytes) => format!("with {} of files to write", human_bytes(bytes)),
            None => {
                let received = self.wire.received.load(Ordering::Relaxed);
                format!("with {} received", human_bytes(received))
            }
        };
        // An error of gix is a tree of causes.
        error.iter_errors().find_map(|cause| {
            limits::reached(cause).or_else(|| dir.disk().ran_full(cause, &extent))
        })
    }

    /// The last error that git reported from the server (gitprotocol-pack(5), "side-band", 3). It is closer to the
    /// cause than the error that it leads to here.
    fn server_error(&self) -> Option<String> {
        let mut messages = Vec::new();
        self.server_messages.copy_messages(&mut messages);
        let mut failures = messages
            .iter()
            .filter(|message| message.level == MessageLevel::Failure);
        let last = printable::line(failures.next_back()?.message.trim());
        (!last.is_empty()).then(|| format!("the server says: {last}"))
    }
}
