//! The objects of a pack, by their id.
//!
//! A whole object stays in the pack, compressed. What is a delta there is resolved once, into a second
//! file. So the memory that this takes is a table with a row for each object, and a few buffers: the
//! sizes of the objects, and how long a chain of deltas is, do not matter.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gix::hash::hasher;
use gix::objs::encode::loose_header;
use gix::objs::{Data, Kind};
use gix::zlib::Decompress;
use gix::zlib::stream::inflate;
use gix::{ObjectId, oid};

use super::delta;
use super::pack::{Base, Entry, Failure, Pack};

/// A base of this size or less is read into memory for its deltas; a larger one is read in place.
pub(super) const BASE_IN_MEMORY: u64 = 8 << 20;

/// How much is read or written at once.
const PIECE: usize = 64 << 10;

/// How many objects one worker takes at a time.
const CHUNK: usize = 256;

/// The objects. A clone shares the table and has buffers of its own.
pub(super) struct Store {
    table: Arc<Table>,
    tools: Mutex<Tools>,
}

struct Table {
    pack: File,
    resolved: File,
    hash: gix::hash::Kind,
    /// In the order of the pack.
    objects: Vec<Object>,
    ids: Vec<ObjectId>,
    /// The indices of the objects, in the order of their ids.
    order: Vec<u32>,
}

/// Where an object is.
#[derive(Clone, Copy)]
struct Object {
    kind: Kind,
    /// In the file of the resolved ones, as it is; else compressed in the pack.
    resolved: bool,
    at: u64,
    /// Where its compressed data ends at the latest.
    end: u64,
    size: u64,
}

/// What one worker needs.
#[derive(Default)]
struct Tools {
    inflater: Decompress,
}

impl Clone for Store {
    fn clone(&self) -> Self {
        Self {
            table: Arc::clone(&self.table),
            tools: Mutex::default(),
        }
    }
}

impl Store {
    /// Finds the id of every object of `pack`, on `workers` threads, and writes what is a delta there to
    /// `resolved`.
    pub(super) fn new(
        pack: Pack,
        resolved: File,
        workers: usize,
        stop: &AtomicBool,
    ) -> Result<Self, Failure> {
        let mut resolving = Resolving::new(pack, resolved, workers, stop)?;
        let mut done = resolving.whole()?;
        while !done.is_empty() {
            done = resolving.deltas_of(&done)?;
        }
        resolving.finish()
    }

    /// The kind and the size of an object.
    pub(super) fn header(&self, id: &oid) -> Option<(Kind, u64)> {
        self.table.get(id).map(|object| (object.kind, object.size))
    }

    /// Hands an object to `out`, piece by piece.
    pub(super) fn stream(
        &self,
        id: &oid,
        out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let object = self.table.get(id).ok_or(io::ErrorKind::NotFound)?;
        let mut tools = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        match object.resolved {
            true => read_at(&self.table.resolved, object.at, object.size, out),
            false => tools.inflate(&self.table.pack, &object, out),
        }
    }
}

impl gix::objs::Find for Store {
    fn try_find<'a>(&self, id: &oid, buffer: &'a mut Vec<u8>) -> gix::Result<Option<Data<'a>>> {
        point!("checkout-object");
        let Some((kind, size)) = self.header(id) else {
            return Ok(None);
        };
        buffer.clear();
        // What is larger than this is never asked for in one piece.
        buffer.reserve(usize::try_from(size.min(super::WHOLE_IN_MEMORY)).unwrap_or(0));
        self.stream(id, &mut |piece| {
            if buffer.len() as u64 + piece.len() as u64 > super::WHOLE_IN_MEMORY {
                return Err(io::Error::other("an object is too large for memory"));
            }
            buffer.extend_from_slice(piece);
            Ok(())
        })
        .map_err(gix::Error::from_error)?;
        Ok(Some(Data::new(buffer, kind, self.table.hash)))
    }
}

impl Table {
    fn get(&self, id: &oid) -> Option<Object> {
        let place = self
            .order
            .binary_search_by(|&index| self.ids[index as usize].as_ref().cmp(id))
            .ok()?;
        Some(self.objects[self.order[place] as usize])
    }
}

/// A pack whose objects get their ids: the whole ones first, then the deltas of those, and so on.
struct Resolving<'a> {
    pack: File,
    resolved: File,
    hash: gix::hash::Kind,
    workers: usize,
    stop: &'a AtomicBool,
    entries: Vec<Entry>,
    objects: Vec<Object>,
    /// Null where it is not known yet.
    ids: Vec<ObjectId>,
    /// Deltas by the index of their base, and by the id of their base.
    by_entry: Vec<(u32, u32)>,
    by_id: Vec<(ObjectId, u32)>,
    /// The places in `by_id` where the deltas of one id begin that were resolved: a pack may hold the same
    /// object any number of times.
    resolved_ids: HashSet<usize>,
    /// Where the file of the resolved ones has room for large bases.
    room: AtomicU64,
}

/// A base, and a delta of it.
type Pair = (u32, u32);

impl<'a> Resolving<'a> {
    fn new(
        pack: Pack,
        resolved: File,
        workers: usize,
        stop: &'a AtomicBool,
    ) -> Result<Self, Failure> {
        let Pack {
            file,
            hash,
            entries,
            bases,
        } = pack;
        let length = file.metadata().map_err(Failure::Disk)?.len();
        let mut room = 0;
        let mut objects = Vec::with_capacity(entries.len());
        let (mut by_entry, mut by_id) = (Vec::new(), Vec::new());
        for (index, entry) in entries.iter().enumerate() {
            let end = entries.get(index + 1).map_or(length, |next| next.start);
            let index = index_u32(index);
            let (kind, resolved, at) = match entry.base {
                Base::None(kind) => (kind, false, entry.data),
                // The kind is that of the base, once it is known.
                Base::Entry(_) | Base::Id(_) => (Kind::Blob, true, room),
            };
            match entry.base {
                Base::None(_) => {}
                Base::Entry(base) => by_entry.push((base, index)),
                Base::Id(base) => by_id.push((bases[base as usize], index)),
            }
            if resolved {
                room += entry.size;
            }
            objects.push(Object {
                kind,
                resolved,
                at,
                end,
                size: entry.size,
            });
        }
        by_entry.sort_unstable();
        by_id.sort_unstable();
        Ok(Self {
            pack: file,
            resolved,
            hash,
            workers,
            stop,
            ids: vec![ObjectId::null(hash); entries.len()],
            entries,
            objects,
            by_entry,
            by_id,
            resolved_ids: HashSet::new(),
            room: AtomicU64::new(room),
        })
    }

    /// Finds the ids of the objects that are whole, and returns their indices.
    fn whole(&mut self) -> Result<Vec<u32>, Failure> {
        let mut ids = std::mem::take(&mut self.ids);
        let this = &*self;
        let chunks = ids.chunks_mut(CHUNK).enumerate();
        this.side_by_side(this.entries.len(), chunks, |tools, (chunk, ids)| {
            for (offset, id) in ids.iter_mut().enumerate() {
                let object = this.objects[chunk * CHUNK + offset];
                if object.resolved {
                    continue;
                }
                let mut hash = this.hasher(object.kind, object.size);
                tools
                    .inflate(&this.pack, &object, &mut |piece| {
                        this.go_on()?;
                        hash.update(piece);
                        Ok(())
                    })
                    .map_err(failure)?;
                *id = finalize(hash)?;
            }
            Ok(())
        })?;
        self.ids = ids;
        let whole = |index: &u32| !self.objects[*index as usize].resolved;
        Ok((0..index_u32(self.objects.len())).filter(whole).collect())
    }

    /// Resolves the deltas of these objects, and returns their indices.
    fn deltas_of(&mut self, done: &[u32]) -> Result<Vec<u32>, Failure> {
        let mut pairs: Vec<Pair> = Vec::new();
        for &base in done {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Failure::Stopped);
            }
            let first = self.by_entry.partition_point(|(other, _)| *other < base);
            let of = self.by_entry[first..].iter();
            pairs.extend(of.take_while(|(other, _)| *other == base));
            let id = self.ids[base as usize];
            let first = self.by_id.partition_point(|(other, _)| *other < id);
            let has_deltas = self.by_id.get(first).is_some_and(|(of, _)| *of == id);
            if has_deltas && self.resolved_ids.insert(first) {
                let of = self.by_id[first..].iter();
                let of = of.take_while(|(other, _)| *other == id);
                pairs.extend(of.map(|(_, delta)| (base, *delta)));
            }
        }
        let found = Mutex::new(Vec::with_capacity(pairs.len()));
        let this = &*self;
        let groups = pairs.chunk_by(|(one, _), (next, _)| one == next);
        this.side_by_side(pairs.len(), groups, |tools, group| {
            let base = this.objects[group[0].0 as usize];
            let mut source = this.load(tools, &base)?;
            for &(_, delta) in group {
                let id = this.resolve(tools, &base, &mut source, delta)?;
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                found.push((delta, base.kind, id));
            }
            Ok(())
        })?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut done = Vec::with_capacity(found.len());
        for (delta, kind, id) in found {
            self.objects[delta as usize].kind = kind;
            if self.ids[delta as usize].is_null() {
                done.push(delta);
            }
            self.ids[delta as usize] = id;
        }
        Ok(done)
    }

    fn finish(self) -> Result<Store, Failure> {
        if self.ids.iter().any(|id| id.is_null()) {
            return Err(Failure::Broken("the base of a delta is missing".to_owned()));
        }
        let mut order: Vec<u32> = (0..index_u32(self.ids.len())).collect();
        order.sort_unstable_by_key(|&index| self.ids[index as usize]);
        Ok(Store {
            table: Arc::new(Table {
                pack: self.pack,
                resolved: self.resolved,
                hash: self.hash,
                objects: self.objects,
                ids: self.ids,
                order,
            }),
            tools: Mutex::default(),
        })
    }

    /// The content of a base.
    fn load(&self, tools: &mut Tools, base: &Object) -> Result<Source<'_>, Failure> {
        let mut content = Vec::new();
        if base.size <= BASE_IN_MEMORY {
            let mut keep = |piece: &[u8]| {
                content.extend_from_slice(piece);
                Ok(())
            };
            match base.resolved {
                true => read_at(&self.resolved, base.at, base.size, &mut keep),
                false => tools.inflate(&self.pack, base, &mut keep),
            }
            .map_err(failure)?;
            return Ok(Source::Memory(content));
        }
        let mut at = base.at;
        if !base.resolved {
            at = self.room.fetch_add(base.size, Ordering::Relaxed);
            let mut end = at;
            tools
                .inflate(&self.pack, base, &mut |piece| {
                    self.go_on()?;
                    self.resolved.write_all_at(piece, end)?;
                    end += piece.len() as u64;
                    Ok(())
                })
                .map_err(failure)?;
        }
        Ok(Source::File(&self.resolved, at))
    }

    /// Makes the object of a delta, and returns its id.
    fn resolve(
        &self,
        tools: &mut Tools,
        base: &Object,
        source: &mut Source<'_>,
        index: u32,
    ) -> Result<ObjectId, Failure> {
        let object = self.objects[index as usize];
        let packed = Deflated::new(&self.pack, self.entries[index as usize].data, object.end);
        tools.inflater.reset();
        let inflating = Inflating {
            packed,
            inflater: &mut tools.inflater,
        };
        let mut delta = BufReader::new(inflating);
        let mut hash = self.hasher(base.kind, object.size);
        let (mut buffer, mut at) = (Vec::with_capacity(PIECE), object.at);
        let made = delta::size(&mut delta)
            .and_then(|of| Ok((of, delta::size(&mut delta)?)))
            .and_then(|sizes| {
                if sizes != (base.size, object.size) {
                    let text = "a delta is not of its base";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                let mut out = |piece: &[u8]| {
                    self.go_on()?;
                    hash.update(piece);
                    if buffer.len() + piece.len() > PIECE {
                        self.resolved.write_all_at(&buffer, at)?;
                        at += buffer.len() as u64;
                        buffer.clear();
                    }
                    buffer.extend_from_slice(piece);
                    Ok(())
                };
                delta::apply(&mut delta, source, base.size, object.size, &mut out)?;
                self.resolved.write_all_at(&buffer, at)
            });
        made.map_err(failure)?;
        finalize(hash)
    }

    fn hasher(&self, kind: Kind, size: u64) -> gix::hash::Hasher {
        let mut hash = hasher(self.hash);
        hash.update(&loose_header(kind, size));
        hash
    }

    fn go_on(&self) -> io::Result<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        }
    }

    /// Does the work for each item, on this thread and on more if there is enough of it.
    fn side_by_side<T: Send>(
        &self,
        size: usize,
        items: impl Iterator<Item = T> + Send,
        work: impl Fn(&mut Tools, T) -> Result<(), Failure> + Sync,
    ) -> Result<(), Failure> {
        let items = Mutex::new(items);
        let failed = Mutex::new(None);
        let worker = || {
            let mut tools = Tools::default();
            loop {
                let item = items.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(item) = item else { return };
                let result = match self.stop.load(Ordering::Relaxed) {
                    true => Err(Failure::Stopped),
                    false => work(&mut tools, item),
                };
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(failure) = result {
                    failed.get_or_insert(failure);
                }
                if failed.is_some() {
                    return;
                }
            }
        };
        let more = match size > CHUNK {
            true => self.workers.saturating_sub(1),
            false => 0,
        };
        std::thread::scope(|scope| {
            for _ in 0..more {
                let thread = std::thread::Builder::new().name("libmol-pack".to_owned());
                // Without another thread it only takes longer.
                let _ = thread.spawn_scoped(scope, worker);
            }
            worker();
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

/// What a failure while objects are made means: of the data, or of the disk.
fn failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::Interrupted => Failure::Stopped,
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            Failure::Broken(error.to_string())
        }
        _ => Failure::Disk(error),
    }
}

fn finalize(hash: gix::hash::Hasher) -> Result<ObjectId, Failure> {
    // It refuses what was made to have the hash of something else.
    hash.try_finalize()
        .map_err(|error| Failure::Broken(error.to_string()))
}

/// There are fewer objects than that: see `MAX_OBJECTS`.
fn index_u32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// The content of a base, for its deltas.
enum Source<'a> {
    Memory(Vec<u8>),
    /// In a file, from this place on.
    File(&'a File, u64),
}

impl delta::Base for Source<'_> {
    fn copy(
        &mut self,
        range: std::ops::Range<u64>,
        out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        match self {
            Source::Memory(content) => (&content[..]).copy(range, out),
            Source::File(file, at) => {
                read_at(file, *at + range.start, range.end - range.start, out)
            }
        }
    }
}

/// Hands a part of a file to `out`, piece by piece.
fn read_at(
    file: &File,
    at: u64,
    length: u64,
    out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    let mut done = 0;
    while done < length {
        let wanted = usize::try_from(length - done).unwrap_or(usize::MAX);
        let piece = &mut buffer[..wanted.min(16 << 10)];
        file.read_exact_at(piece, at + done)?;
        out(piece)?;
        done += piece.len() as u64;
    }
    Ok(())
}

impl Tools {
    /// Hands a whole object to `out`, piece by piece.
    fn inflate(
        &mut self,
        pack: &File,
        object: &Object,
        out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.inflater.reset();
        let mut packed = Deflated::new(pack, object.at, object.end);
        let mut buffer = [0; 16 << 10];
        let mut inflated = 0;
        // Its size was checked when it was received; the file may have changed since.
        while inflated < object.size {
            let length = inflate::read(&mut packed, &mut self.inflater, &mut buffer)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            inflated += length as u64;
            out(&buffer[..length])?;
        }
        Ok(())
    }
}

/// The compressed data of an entry.
struct Deflated<'a> {
    pack: &'a File,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    read: usize,
}

impl<'a> Deflated<'a> {
    fn new(pack: &'a File, at: u64, end: u64) -> Self {
        Self {
            pack,
            at,
            end,
            buffer: Vec::new(),
            read: 0,
        }
    }
}

impl Read for Deflated<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        super::read_filled(self, buffer)
    }
}

impl BufRead for Deflated<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.read == self.buffer.len() && self.at < self.end {
            let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
            self.buffer.resize(left.min(PIECE), 0);
            self.pack.read_exact_at(&mut self.buffer, self.at)?;
            self.at += self.buffer.len() as u64;
            self.read = 0;
        }
        Ok(&self.buffer[self.read..])
    }

    fn consume(&mut self, length: usize) {
        self.read += length;
    }
}

/// What an entry inflates to.
struct Inflating<'a> {
    packed: Deflated<'a>,
    inflater: &'a mut Decompress,
}

impl Read for Inflating<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        inflate::read(&mut self.packed, self.inflater, buffer)
    }
}
