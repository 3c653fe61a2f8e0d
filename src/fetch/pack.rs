//! Receiving a pack (gitformat-pack(5)): it is checked while it is written to a file.
//!
//! Every entry states the size of its object. The sizes are added up and compared with the limits before any object
//! is built, and each entry must inflate to the size that it states. Only the place and the size of an entry are
//! kept: no object is in memory here.
//!
//! gix-pack (`Bundle::write_to_directory`) receives a pack too. It has no limit for the sum of the sizes, and then
//! resolves deltas in memory, as large as the pack says: see `docs/adr/0005`. Its parsers of the headers are used.

use std::fs::File;
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gix_hash::{Hasher, ObjectId, hasher};
use gix_pack::data::entry::Header;
use gix_pack::data::{self, Version};
use gix_zlib::Decompress;
use gix_zlib::stream::inflate;

use crate::event::human_bytes;
use crate::fetch::delta;
use crate::fetch::inflate::read_buffered;
use crate::fetch::limits::{BASE_IN_MEMORY, MAX_ENTRIES};

/// The largest object, and so the largest file of a template.
pub(super) const MAX_OBJECT: u64 = 512 << 20;

/// All objects together, uncompressed and with their deltas resolved. For a delta, the larger of its own size and the
/// size of its object counts.
const MAX_TOTAL: u64 = 4 << 30;

/// At most one object for each entry of the tree, and the root tree and the commit.
const MAX_OBJECTS: u64 = MAX_ENTRIES + 2;

/// Upper bound of the compressed size. zlib makes incompressible data larger, but by less than this.
const fn longest_deflated(size: u64) -> u64 {
    size + size / 2 + (64 << 10)
}

/// Upper bound of the whole pack. Many small objects, each padded with empty deflate blocks, can take far more space
/// than they announce.
const MAX_PACK: u64 = longest_deflated(MAX_TOTAL);

/// Upper bound of the bytes of the two sizes at the beginning of a delta.
const DELTA_SIZES: usize = 20;

/// A received pack.
#[derive(Debug)]
pub(super) struct Pack {
    pub(super) file: File,
    pub(super) hash: gix_hash::Kind,
    /// In the order of the file.
    pub(super) entries: Vec<Entry>,
    /// The bases that are given by their id.
    pub(super) bases: Vec<ObjectId>,
}

/// Where an object is in the pack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Where its header begins.
    pub(super) start: u64,
    /// Where its compressed data begins.
    pub(super) data: u64,
    /// The size of the object; for a delta, of the resolved object.
    pub(super) size: u64,
    pub(super) base: Base,
}

/// The base of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) enum Base {
    /// None: it is not a delta.
    None(gix_object::Kind),
    /// The entry with this index.
    Entry(u32),
    /// The object with the id of this index in [`Pack::bases`].
    Id(u32),
}

/// Progress of receiving a pack, read while it is received.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Bytes of the pack.
    pub(super) bytes: AtomicU64,
    pub(super) objects: AtomicU64,
    /// 0 until it is known.
    pub(super) objects_total: AtomicU64,
}

/// Why receiving or resolving a pack failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It exceeds a limit: what, and the limit.
    TooLarge(String),
    /// It is not a valid pack.
    Broken(String),
    /// It could not be read from the server.
    Receive(io::Error),
    /// It could not be written to the disk, or read back.
    Disk(io::Error),
    /// The fetch was interrupted.
    Stopped,
}

impl Pack {
    /// The memory that `workers` threads need to resolve its deltas, in bytes.
    pub(super) fn memory(&self, workers: usize) -> u64 {
        const BUFFERS: u64 = 1 << 20;
        let bases = self.entries.iter().map(|entry| entry.size).max();
        workers as u64 * (BUFFERS + bases.unwrap_or(0).min(BASE_IN_MEMORY))
    }

    /// Upper bound of the bytes that resolving its deltas writes: the resolved objects, and whole objects that are too
    /// large to be bases in memory. They all count if any delta has a base that is, or may be, that large.
    pub(super) fn resolved_bytes(&self) -> u64 {
        let is_large = |entry: &Entry| entry.size > BASE_IN_MEMORY;
        let has_large_base = self.entries.iter().any(|entry| match entry.base {
            Base::None(_) => false,
            Base::Entry(base) => is_large(&self.entries[base as usize]),
            Base::Id(_) => true,
        });
        let is_written = |entry: &&Entry| match entry.base {
            Base::None(_) => has_large_base && is_large(entry),
            Base::Entry(_) | Base::Id(_) => true,
        };
        let written = self.entries.iter().filter(is_written);
        written.map(|entry| entry.size).sum()
    }
}

/// Reads a pack from `from` and writes it to `file`.
pub(super) fn receive(
    from: &mut dyn BufRead,
    file: File,
    hash: gix_hash::Kind,
    counters: &Counters,
    stop: &AtomicBool,
) -> Result<Pack, Failure> {
    let written = file.try_clone().map_err(Failure::Disk)?;
    let mut stream = Stream {
        from,
        out: BufWriter::with_capacity(256 << 10, written),
        hasher: Some(hasher(hash)),
        at: 0,
        end: u64::MAX,
        counters,
        stop,
        failure: None,
    };
    let read = read(&mut stream, hash);
    let (entries, bases) = match (stream.failure.take(), read) {
        (Some(failure), _) | (None, Err(failure)) => return Err(failure),
        (None, Ok(read)) => read,
    };
    stream.out.flush().map_err(Failure::Disk)?;
    Ok(Pack {
        file,
        hash,
        entries,
        bases,
    })
}

fn read(
    stream: &mut Stream<'_>,
    hash: gix_hash::Kind,
) -> Result<(Vec<Entry>, Vec<ObjectId>), Failure> {
    let mut header = [0; data::header::SIZE];
    stream.read_exact(&mut header).map_err(broken)?;
    let (version, objects) = data::header::decode(&header).map_err(broken)?;
    if version != Version::V2 {
        return Err(Failure::Broken("it is not a pack of version 2".to_owned()));
    }
    if u64::from(objects) > MAX_OBJECTS {
        return Err(Failure::TooLarge(format!(
            "more than {MAX_OBJECTS} objects"
        )));
    }
    let counters = stream.counters;
    counters
        .objects_total
        .store(objects.into(), Ordering::Relaxed);

    // No capacity for the stated number, which may be false: the list grows with the bytes that come.
    let mut entries: Vec<Entry> = Vec::new();
    let mut bases = Vec::new();
    let mut total = 0;
    let mut inflater = Decompress::new();
    for _ in 0..objects {
        let start = stream.at;
        stream.end = u64::MAX;
        let found = data::Entry::from_read(stream, start, hash.len_in_bytes());
        let found = found.map_err(broken)?;
        check_size(found.decompressed_size)?;
        let base = match found.header {
            Header::OfsDelta { base_distance } => {
                let base = start.checked_sub(base_distance).and_then(|base| {
                    let index = entries.binary_search_by_key(&base, |entry| entry.start);
                    u32::try_from(index.ok()?).ok()
                });
                let missing = || Failure::Broken("the base of a delta is missing".to_owned());
                Base::Entry(base.ok_or_else(missing)?)
            }
            Header::RefDelta { base_id } => {
                bases.push(base_id);
                Base::Id(u32::try_from(bases.len() - 1).unwrap_or(u32::MAX))
            }
            Header::Commit => Base::None(gix_object::Kind::Commit),
            Header::Tree => Base::None(gix_object::Kind::Tree),
            Header::Blob => Base::None(gix_object::Kind::Blob),
            Header::Tag => Base::None(gix_object::Kind::Tag),
        };
        stream.end = found.data_offset + longest_deflated(found.decompressed_size);
        let size = match (base, stream.skip(&mut inflater, found.decompressed_size)?) {
            (Base::None(_), _) => found.decompressed_size,
            (_, beginning) => {
                let mut beginning = &beginning[..];
                let sizes = delta::size(&mut beginning).and_then(|_| delta::size(&mut beginning));
                sizes.map_err(broken)?
            }
        };
        check_size(size)?;
        total += size.max(found.decompressed_size);
        if total > MAX_TOTAL {
            let limit = human_bytes(MAX_TOTAL);
            return Err(Failure::TooLarge(format!("objects of more than {limit}")));
        }
        entries.push(Entry {
            start,
            data: found.data_offset,
            size,
            base,
        });
        counters.objects.fetch_add(1, Ordering::Relaxed);
    }
    stream.end = u64::MAX;
    stream.check_trailer(hash)?;
    Ok((entries, bases))
}

/// The failure for an error that the data caused. [`Stream`] keeps the failures with another cause, which come first.
fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::Broken(error.to_string())
}

fn check_size(size: u64) -> Result<(), Failure> {
    match size <= MAX_OBJECT {
        true => Ok(()),
        false => {
            let limit = human_bytes(MAX_OBJECT);
            Err(Failure::TooLarge(format!("a file of more than {limit}")))
        }
    }
}

/// Copies the pack from the server to the file while it is parsed.
struct Stream<'a> {
    from: &'a mut dyn BufRead,
    out: BufWriter<File>,
    /// Hashes everything that is read; taken before the trailer.
    hasher: Option<Hasher>,
    /// How many bytes were read.
    at: u64,
    /// The latest offset at which the current entry ends.
    end: u64,
    counters: &'a Counters,
    stop: &'a AtomicBool,
    /// The first failure of a read or a write, which `Read` can only return as an I/O error.
    failure: Option<Failure>,
}

impl Stream<'_> {
    /// Skips an entry of `size` inflated bytes, and returns the first [`DELTA_SIZES`] of them.
    fn skip(&mut self, inflater: &mut Decompress, size: u64) -> Result<Vec<u8>, Failure> {
        inflater.reset();
        let mut beginning = Vec::new();
        let mut buffer = [0; 32 << 10];
        let mut inflated = 0;
        loop {
            let length = inflate::read(self, inflater, &mut buffer).map_err(broken)?;
            let missing = DELTA_SIZES.saturating_sub(beginning.len());
            beginning.extend_from_slice(&buffer[..length.min(missing)]);
            inflated += length as u64;
            if inflated > size || (length == 0 && inflated < size) {
                let text = format!("an object does not have the {size} bytes that it states");
                return Err(Failure::Broken(text));
            }
            if length == 0 {
                return Ok(beginning);
            }
        }
    }

    fn check_trailer(&mut self, hash: gix_hash::Kind) -> Result<(), Failure> {
        let hasher = self.hasher.take();
        let mut stated = vec![0; hash.len_in_bytes()];
        self.read_exact(&mut stated).map_err(broken)?;
        let found = hasher.map(Hasher::try_finalize);
        match found {
            Some(Ok(found)) if found.as_bytes() == stated => Ok(()),
            Some(Err(error)) => Err(broken(error)),
            _ => Err(Failure::Broken("its checksum is wrong".to_owned())),
        }
    }

    fn fail(&mut self, failure: Failure) -> io::Error {
        self.failure.get_or_insert(failure);
        stopped()
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, buffer)
    }
}

impl BufRead for Stream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(self.fail(Failure::Stopped));
        }
        if self.failure.is_some() {
            return Err(stopped());
        }
        if self.at > MAX_PACK {
            let limit = human_bytes(MAX_PACK);
            return Err(self.fail(Failure::TooLarge(format!("a pack of more than {limit}"))));
        }
        if self.at > self.end {
            let text = "an object's compressed data is far larger than the object".to_owned();
            return Err(self.fail(Failure::Broken(text)));
        }
        let received = self.from.fill_buf().and_then(|bytes| match bytes {
            [] => Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => Ok(bytes),
        });
        received.map_err(|error| {
            self.failure.get_or_insert(Failure::Receive(error));
            stopped()
        })
    }

    fn consume(&mut self, length: usize) {
        // Returns the filled buffer again, and does not read.
        let written = self.from.fill_buf().and_then(|filled| {
            let taken = &filled[..length.min(filled.len())];
            if let Some(hasher) = &mut self.hasher {
                hasher.update(taken);
            }
            self.out.write_all(taken)
        });
        if let Err(error) = written {
            self.fail(Failure::Disk(error));
        }
        self.from.consume(length);
        self.at += length as u64;
        self.counters
            .bytes
            .fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// The error of a read after a failure.
fn stopped() -> io::Error {
    io::Error::other("reading the pack was stopped")
}

#[cfg(test)]
mod tests {
    use gix_object::Kind::Blob;

    use super::*;

    /// Receives a pack with this entry after the header, from a connection that then is lost.
    fn received(entry: &[u8]) -> Result<Pack, Failure> {
        struct Lost;
        impl Read for Lost {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the connection was lost"))
            }
        }
        let header = data::header::encode(Version::V2, 1);
        let pack = [&header[..], entry].concat();
        receive(
            &mut io::BufReader::new(pack.chain(Lost)),
            tempfile::tempfile().unwrap(),
            gix_hash::Kind::Sha1,
            &Counters::default(),
            &AtomicBool::new(false),
        )
    }

    #[test]
    fn broken_data_is_told_apart_from_a_lost_connection() {
        for (entry, why) in [
            (&b"\x03xxxxxxxx"[..], "Object type 0 is unsupported"),
            (b"\x33xxxxxxxx", "corrupt deflate stream"),
            (&[0xff; 30], "pack entry header overflowed"),
        ] {
            let failure = received(entry);
            let found = matches!(&failure, Err(Failure::Broken(text)) if text.contains(why));
            assert!(found, "{why}: {failure:?}");
        }
        for entry in [&b""[..], b"\x33", b"\x33\x78\x01"] {
            let failure = received(entry);
            assert!(matches!(failure, Err(Failure::Receive(_))), "{failure:?}");
        }
    }

    #[test]
    fn large_bases_count_as_bytes_that_are_written() {
        let entry = |size: u64, base: Base| Entry {
            start: 0,
            data: 0,
            size,
            base,
        };
        for (delta, written) in [
            (Base::Entry(0), 5),
            (Base::Entry(1), BASE_IN_MEMORY + 1 + 5),
            (Base::Id(0), BASE_IN_MEMORY + 1 + 5),
        ] {
            let pack = Pack {
                file: tempfile::tempfile().unwrap(),
                hash: gix_hash::Kind::Sha1,
                entries: vec![
                    entry(BASE_IN_MEMORY, Base::None(Blob)),
                    entry(BASE_IN_MEMORY + 1, Base::None(Blob)),
                    entry(5, delta),
                ],
                bases: Vec::new(),
            };
            assert_eq!(pack.resolved_bytes(), written, "{delta:?}");
        }
    }

    #[test]
    fn a_pack_is_refused_where_it_exceeds_its_limit() {
        for (at, refused) in [(MAX_PACK, false), (MAX_PACK + 1, true)] {
            let counters = Counters::default();
            let mut stream = Stream {
                from: &mut &b"more"[..],
                out: BufWriter::new(tempfile::tempfile().unwrap()),
                hasher: None,
                at,
                end: u64::MAX,
                counters: &counters,
                stop: &AtomicBool::new(false),
                failure: None,
            };
            assert_eq!(stream.fill_buf().is_err(), refused, "{at}");
            let failure = stream.failure.take();
            let text = "a pack of more than 6.0 GiB";
            let found = matches!(failure, Some(Failure::TooLarge(found)) if found == text);
            assert_eq!(found, refused, "{at}");
        }
    }
}
