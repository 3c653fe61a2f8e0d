//! Limits that several steps of a fetch share.

/// Upper bound of files and folders: more than a template has, and few enough to keep a list of.
pub(super) const MAX_ENTRIES: u64 = 500_000;

/// The largest object that is read into memory whole: a tree object, the list of the files in a folder.
pub(super) const MAX_IN_MEMORY: u64 = 32 << 20;

/// A base of this size or less is read into memory for its deltas; a larger one is read from a file, into which a
/// compressed one is inflated first.
pub(super) const BASE_IN_MEMORY: u64 = 8 << 20;
