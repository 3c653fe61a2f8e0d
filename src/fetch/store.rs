//! The objects of a pack, by their id.
//!
//! Whole objects stay compressed in the pack. Deltas are resolved once, into a second file. So the memory use is a
//! table with a row for each object and a few buffers, whatever the sizes of the objects and the length of a chain
//! of deltas.
//!
//! gix-odb and gix-pack read the objects too, but only from packs that gix-pack has indexed: see `pack.rs`.

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use gix_hash::oid;
use gix_object::{Data, Kind};

use crate::fetch::inflate::{Inflater, read_at};
use crate::fetch::limits::MAX_IN_MEMORY;
use crate::fetch::pack::{Failure, Pack};
use crate::fetch::resolve::Resolver;
use crate::fetch::table::Table;
use crate::process;

/// The objects of a pack. A clone shares the table and has an inflater of its own.
pub(super) struct Store {
    table: Arc<Table>,
    inflater: Mutex<Inflater>,
}

impl Clone for Store {
    fn clone(&self) -> Self {
        Self {
            table: Arc::clone(&self.table),
            inflater: Mutex::default(),
        }
    }
}

impl Store {
    /// Finds the id of every object of `pack`, on `workers` threads, and writes its resolved deltas to `resolved`.
    pub(super) fn new(
        pack: Pack,
        resolved: File,
        workers: usize,
        stop: &AtomicBool,
    ) -> Result<Self, Failure> {
        let mut resolver = Resolver::new(pack, resolved, workers, stop)?;
        let mut done = resolver.whole_objects()?;
        while !done.is_empty() {
            done = resolver.deltas_of(&done)?;
        }
        Ok(Self {
            table: Arc::new(resolver.finish()?),
            inflater: Mutex::default(),
        })
    }

    /// Returns the kind and the size of an object.
    pub(super) fn header(&self, id: &oid) -> Option<(Kind, u64)> {
        self.table.get(id).map(|object| (object.kind, object.size))
    }

    /// Returns the size of an object; 0 if it is missing.
    pub(super) fn size(&self, id: &oid) -> u64 {
        self.header(id).map_or(0, |(_, size)| size)
    }

    /// Passes an object to `out`, in pieces.
    pub(super) fn stream(
        &self,
        id: &oid,
        out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let object = self.table.get(id).ok_or(io::ErrorKind::NotFound)?;
        let mut inflater = process::lock(&self.inflater);
        match object.resolved {
            true => read_at(&self.table.resolved, object.at, object.size, out),
            false => inflater.inflate(&self.table.pack, &object, out),
        }
    }
}

impl gix_object::Find for Store {
    fn try_find<'a>(
        &self,
        id: &oid,
        buffer: &'a mut Vec<u8>,
    ) -> gix_error::Result<Option<Data<'a>>> {
        point!("checkout-object");
        let Some((kind, size)) = self.header(id) else {
            return Ok(None);
        };
        buffer.clear();
        // gix asks for tree objects, small files and one commit: all smaller than this.
        buffer.reserve(usize::try_from(size.min(MAX_IN_MEMORY)).unwrap_or(0));
        self.stream(id, &mut |piece| {
            if buffer.len() as u64 + piece.len() as u64 > MAX_IN_MEMORY {
                return Err(io::Error::other("an object is too large for memory"));
            }
            buffer.extend_from_slice(piece);
            Ok(())
        })
        .map_err(gix_error::Error::from_error)?;
        Ok(Some(Data::new(buffer, kind, self.table.hash)))
    }
}
