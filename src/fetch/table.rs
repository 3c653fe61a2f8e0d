//! The table of the objects of a pack: where each is.

use std::fs::File;

use gix_hash::{ObjectId, oid};
use gix_object::Kind;

pub(super) struct Table {
    pub(super) pack: File,
    /// The resolved deltas.
    pub(super) resolved: File,
    pub(super) hash: gix_hash::Kind,
    /// In the order of the pack.
    pub(super) objects: Vec<Object>,
    pub(super) ids: Vec<ObjectId>,
    /// The indices of the objects, in the order of their ids.
    pub(super) order: Vec<u32>,
}

/// Where an object is.
#[derive(Clone, Copy)]
pub(super) struct Object {
    pub(super) kind: Kind,
    /// Whether it is in the file of resolved deltas, uncompressed; else it is in the pack, compressed.
    pub(super) resolved: bool,
    /// The offset of its data.
    pub(super) at: u64,
    /// The latest offset at which its compressed data ends.
    pub(super) end: u64,
    pub(super) size: u64,
}

impl Table {
    pub(super) fn get(&self, id: &oid) -> Option<Object> {
        let place = self
            .order
            .binary_search_by(|&index| self.ids[index as usize].as_ref().cmp(id))
            .ok()?;
        Some(self.objects[self.order[place] as usize])
    }
}
