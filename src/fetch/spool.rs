//! The temporary files of a fetch, and reading from a buffer.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;

/// Creates a file for writing and reading. It must not exist.
pub(super) fn create(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
}

/// Implements [`Read::read`] for a [`BufRead`].
pub(super) fn read_buffered(from: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    let length = from.fill_buf()?.read(buffer)?;
    from.consume(length);
    Ok(length)
}
