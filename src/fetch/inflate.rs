//! Reading objects from a pack and from the file of resolved deltas, in pieces.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

use gix_zlib::Decompress;
use gix_zlib::stream::inflate;

use crate::fetch::table::Object;

/// How much is read from a pack at once, and how much of a resolved object is written at once.
pub(super) const PIECE: usize = 64 << 10;

/// How much of an object is passed on at once, from a buffer on the stack.
const BUFFER: usize = 16 << 10;

/// Inflates objects, with a zlib state that is used again for each.
#[derive(Default)]
pub(super) struct Inflater {
    state: Decompress,
}

/// Implements [`Read::read`] for a [`BufRead`].
pub(super) fn read_buffered(from: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    let length = from.fill_buf()?.read(buffer)?;
    from.consume(length);
    Ok(length)
}

/// Passes a part of a file to `out`, in pieces.
pub(super) fn read_at(
    file: &File,
    at: u64,
    length: u64,
    out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    let mut done = 0;
    while done < length {
        let wanted = usize::try_from(length - done).unwrap_or(usize::MAX);
        let piece = &mut buffer[..wanted.min(BUFFER)];
        file.read_exact_at(piece, at + done)?;
        out(piece)?;
        done += piece.len() as u64;
    }
    Ok(())
}

impl Inflater {
    /// Passes a whole object to `out`, in pieces.
    pub(super) fn inflate(
        &mut self,
        pack: &File,
        object: &Object,
        out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.state.reset();
        let mut packed = Deflated::new(pack, object.at, object.end);
        let mut buffer = [0; BUFFER];
        let mut inflated = 0;
        // The size was checked when the pack was received; the file may have been changed since.
        while inflated < object.size {
            let length = inflate::read(&mut packed, &mut self.state, &mut buffer)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            inflated += length as u64;
            out(&buffer[..length])?;
        }
        Ok(())
    }

    /// Returns a reader of the inflated data that begins at `at` in the pack, and ends at `end` at the latest.
    pub(super) fn reader<'a>(
        &'a mut self,
        pack: &'a File,
        at: u64,
        end: u64,
    ) -> BufReader<impl Read + use<'a>> {
        self.state.reset();
        BufReader::new(Inflating {
            packed: Deflated::new(pack, at, end),
            state: &mut self.state,
        })
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
        read_buffered(self, buffer)
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

/// The inflated data of an entry.
struct Inflating<'a> {
    packed: Deflated<'a>,
    state: &'a mut Decompress,
}

impl Read for Inflating<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        inflate::read(&mut self.packed, self.state, buffer)
    }
}
