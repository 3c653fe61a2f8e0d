//! Finding the id of every object of a pack, and resolving its deltas: first the whole objects, then their deltas,
//! then the deltas of those, and so on.
//!
//! gix-pack (`Bundle::write_to_directory`) does this with a delta's base and result whole in memory, on each
//! thread. Here they are in files: see `docs/adr/0005`.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use gix_hash::{Hasher, ObjectId, hasher};
use gix_object::Kind;
use gix_object::encode::loose_header;

use crate::fetch::delta;
use crate::fetch::inflate::{Inflater, PIECE, read_at};
use crate::fetch::limits::BASE_IN_MEMORY;
use crate::fetch::pack::{Base, Entry, Failure, Pack};
use crate::fetch::table::{Object, Table};
use crate::process;

/// How many objects one worker takes at a time.
const CHUNK: usize = 256;

/// A pack that is being resolved.
pub(super) struct Resolver<'a> {
    pack: File,
    resolved: File,
    hash: gix_hash::Kind,
    workers: usize,
    stop: &'a AtomicBool,
    entries: Vec<Entry>,
    objects: Vec<Object>,
    /// Null while unknown.
    ids: Vec<ObjectId>,
    /// Pairs of a base's index and a delta's index, sorted.
    by_entry: Vec<(u32, u32)>,
    /// Pairs of a base's id and a delta's index, sorted.
    by_id: Vec<(ObjectId, u32)>,
    /// The indices in `by_id` where the deltas of a base begin, for bases whose deltas are resolved. A pack may contain
    /// the same base several times.
    resolved_ids: HashSet<usize>,
    /// The end of the file of resolved deltas, where large bases are written.
    end: AtomicU64,
}

/// The indices of a base and of a delta of it.
type Pair = (u32, u32);

impl<'a> Resolver<'a> {
    pub(super) fn new(
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
        let mut end_of_resolved = 0;
        let mut objects = Vec::with_capacity(entries.len());
        let (mut by_entry, mut by_id) = (Vec::new(), Vec::new());
        for (index, entry) in entries.iter().enumerate() {
            let end = entries.get(index + 1).map_or(length, |next| next.start);
            let index = index_u32(index);
            let (kind, resolved, at) = match entry.base {
                Base::None(kind) => (kind, false, entry.data),
                // The kind is set to that of the base when it is resolved.
                Base::Entry(_) | Base::Id(_) => (Kind::Blob, true, end_of_resolved),
            };
            match entry.base {
                Base::None(_) => {}
                Base::Entry(base) => by_entry.push((base, index)),
                Base::Id(base) => by_id.push((bases[base as usize], index)),
            }
            if resolved {
                end_of_resolved += entry.size;
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
            end: AtomicU64::new(end_of_resolved),
        })
    }

    /// Finds the ids of the objects that are not deltas, and returns their indices.
    pub(super) fn whole_objects(&mut self) -> Result<Vec<u32>, Failure> {
        let mut ids = std::mem::take(&mut self.ids);
        let this = &*self;
        let chunks = ids.chunks_mut(CHUNK).enumerate();
        this.in_parallel(this.entries.len(), chunks, |inflater, (chunk, ids)| {
            for (offset, id) in ids.iter_mut().enumerate() {
                let object = this.objects[chunk * CHUNK + offset];
                if object.resolved {
                    continue;
                }
                let mut hash = this.hasher(object.kind, object.size);
                inflater
                    .inflate(&this.pack, &object, &mut |piece| {
                        this.check_stopped()?;
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
    pub(super) fn deltas_of(&mut self, done: &[u32]) -> Result<Vec<u32>, Failure> {
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
        this.in_parallel(pairs.len(), groups, |inflater, group| {
            let base = this.objects[group[0].0 as usize];
            let mut source = this.load(inflater, &base)?;
            for &(_, delta) in group {
                let id = this.resolve(inflater, &base, &mut source, delta)?;
                let mut found = process::lock(&found);
                found.push((delta, base.kind, id));
            }
            Ok(())
        })?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut done = Vec::with_capacity(found.len());
        for (delta, kind, id) in found {
            self.objects[delta as usize].kind = kind;
            self.ids[delta as usize] = id;
            done.push(delta);
        }
        Ok(done)
    }

    pub(super) fn finish(self) -> Result<Table, Failure> {
        if self.ids.iter().any(|id| id.is_null()) {
            return Err(Failure::Broken("the base of a delta is missing".to_owned()));
        }
        let mut order: Vec<u32> = (0..index_u32(self.ids.len())).collect();
        order.sort_unstable_by_key(|&index| self.ids[index as usize]);
        Ok(Table {
            pack: self.pack,
            resolved: self.resolved,
            hash: self.hash,
            objects: self.objects,
            ids: self.ids,
            order,
        })
    }

    /// Makes a base readable for its deltas: in memory, or uncompressed in the file.
    fn load(&self, inflater: &mut Inflater, base: &Object) -> Result<Source<'_>, Failure> {
        if base.size <= BASE_IN_MEMORY {
            // With all the capacity: a growing vector would take up to three times as much memory.
            let mut content = Vec::with_capacity(usize::try_from(base.size).unwrap_or(0));
            let mut keep = |piece: &[u8]| {
                content.extend_from_slice(piece);
                Ok(())
            };
            match base.resolved {
                true => read_at(&self.resolved, base.at, base.size, &mut keep),
                false => inflater.inflate(&self.pack, base, &mut keep),
            }
            .map_err(failure)?;
            return Ok(Source::Memory(content));
        }
        let mut at = base.at;
        if !base.resolved {
            at = self.end.fetch_add(base.size, Ordering::Relaxed);
            let mut end = at;
            inflater
                .inflate(&self.pack, base, &mut |piece| {
                    self.check_stopped()?;
                    self.resolved.write_all_at(piece, end)?;
                    end += piece.len() as u64;
                    Ok(())
                })
                .map_err(failure)?;
        }
        Ok(Source::File(&self.resolved, at))
    }

    /// Resolves a delta, and returns the id of the object.
    fn resolve(
        &self,
        inflater: &mut Inflater,
        base: &Object,
        source: &mut Source<'_>,
        index: u32,
    ) -> Result<ObjectId, Failure> {
        let object = self.objects[index as usize];
        let data = self.entries[index as usize].data;
        let mut delta = inflater.reader(&self.pack, data, object.end);
        let mut hash = self.hasher(base.kind, object.size);
        let (mut buffer, mut at) = (Vec::with_capacity(PIECE), object.at);
        let resolved = delta::size(&mut delta)
            .and_then(|base_size| Ok((base_size, delta::size(&mut delta)?)))
            .and_then(|sizes| {
                if sizes != (base.size, object.size) {
                    let text = "a delta does not match its base";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                let mut out = |piece: &[u8]| {
                    self.check_stopped()?;
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
        resolved.map_err(failure)?;
        finalize(hash)
    }

    fn hasher(&self, kind: Kind, size: u64) -> Hasher {
        let mut hash = hasher(self.hash);
        hash.update(&loose_header(kind, size));
        hash
    }

    fn check_stopped(&self) -> io::Result<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        }
    }

    /// Runs the work for each item on this thread, and for more than [`CHUNK`] objects on others too.
    fn in_parallel<T: Send>(
        &self,
        size: usize,
        items: impl Iterator<Item = T> + Send,
        work: impl Fn(&mut Inflater, T) -> Result<(), Failure> + Sync,
    ) -> Result<(), Failure> {
        let items = Mutex::new(items);
        let failed = Mutex::new(None);
        let worker = || {
            let mut inflater = Inflater::default();
            loop {
                let item = process::lock(&items).next();
                let Some(item) = item else { return };
                let result = match self.stop.load(Ordering::Relaxed) {
                    true => Err(Failure::Stopped),
                    false => work(&mut inflater, item),
                };
                let mut failed = process::lock(&failed);
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
                // If no thread can be started, this one does all the work.
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

/// Whether an I/O error is about the data or about the disk.
fn failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::Interrupted => Failure::Stopped,
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            Failure::Broken(error.to_string())
        }
        _ => Failure::Disk(error),
    }
}

fn finalize(hash: Hasher) -> Result<ObjectId, Failure> {
    // Fails for a known collision attack on SHA-1.
    hash.try_finalize()
        .map_err(|error| Failure::Broken(error.to_string()))
}

/// A pack has at most `MAX_OBJECTS` objects, far fewer than fit.
fn index_u32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// The content of a base.
enum Source<'a> {
    Memory(Vec<u8>),
    /// In a file, from this offset on.
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
