//! Applies a delta, which describes an object as copies of parts of its base and as new bytes (gitformat-pack(5),
//! "Deltified representation").
//!
//! The base is read in place, and the result is written in pieces, so the memory use does not depend on their sizes.
//! gix-pack's function for this is private, and has base, delta and result in memory.

use std::io::{self, BufRead};
use std::ops::Range;

use crate::fetch::inflate::PIECE;

/// The base object, from which a delta copies.
pub(super) trait Base {
    /// Passes the bytes in `range` to `out`, in pieces of at most [`PIECE`] bytes. The range lies within the base.
    fn copy(
        &mut self,
        range: Range<u64>,
        out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()>;
}

impl Base for &[u8] {
    fn copy(
        &mut self,
        range: Range<u64>,
        out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let index =
            |at: u64| usize::try_from(at).map_err(|_| broken("copies from outside its base"));
        self[index(range.start)?..index(range.end)?]
            .chunks(PIECE)
            .try_for_each(out)
    }
}

/// Reads one of the two sizes at the beginning of a delta: of the base, then of the result.
pub(super) fn size(delta: &mut impl BufRead) -> io::Result<u64> {
    let (mut size, mut shift) = (0u64, 0);
    loop {
        let byte = self::byte(delta)?;
        let bits = u64::from(byte & 0x7f);
        // Does not fit into 64 bits.
        if shift >= u64::BITS || (bits << shift) >> shift != bits {
            return Err(broken("states a size that is too large"));
        }
        size |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(size);
        }
        shift += 7;
    }
}

/// Applies the instructions of a delta to `base`, whose size is `base_size`, and passes the result to `out`, in pieces.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] and [`io::ErrorKind::UnexpectedEof`] for an invalid delta, and the errors of `base`
/// and `out`.
pub(super) fn apply(
    delta: &mut impl BufRead,
    base: &mut impl Base,
    base_size: u64,
    result_size: u64,
    out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut left = result_size;
    let mut take = |length: u64| {
        left = left
            .checked_sub(length)
            .ok_or_else(|| broken("makes more than it states"))?;
        Ok::<_, io::Error>(())
    };
    let mut inserted = [0; 0x7f];
    while let Some(&instruction) = delta.fill_buf()?.first() {
        delta.consume(1);
        match instruction {
            0 => return Err(broken("has an unknown instruction")),
            copy if copy & 0x80 != 0 => {
                let start = number(delta, copy, 0..4)?;
                let length = match number(delta, copy, 4..7)? {
                    0 => 0x10000,
                    length => length,
                };
                // Both fit into 32 bits.
                let range = start..start + length;
                if range.end > base_size {
                    return Err(broken("copies from outside its base"));
                }
                take(length)?;
                base.copy(range, out)?;
            }
            length => {
                take(length.into())?;
                let inserted = &mut inserted[..usize::from(length)];
                delta.read_exact(inserted)?;
                out(inserted)?;
            }
        }
    }
    match left {
        0 => Ok(()),
        _ => Err(broken("makes less than it states")),
    }
}

/// Reads a little-endian number. Only the bytes are present whose bits are set in `instruction`.
fn number(delta: &mut impl BufRead, instruction: u8, bits: Range<u32>) -> io::Result<u64> {
    let mut number = 0;
    for bit in bits.clone() {
        if instruction & (1 << bit) != 0 {
            number |= u64::from(byte(delta)?) << (8 * (bit - bits.start));
        }
    }
    Ok(number)
}

fn byte(delta: &mut impl BufRead) -> io::Result<u8> {
    let mut byte = [0];
    delta.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a delta {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies the instructions to `base`.
    fn applied(instructions: &[u8], base: &[u8], size: u64) -> Result<String, String> {
        let mut result = Vec::new();
        let mut out = |piece: &[u8]| {
            result.extend_from_slice(piece);
            Ok(())
        };
        let base_size = base.len() as u64;
        apply(
            &mut &instructions[..],
            &mut &base[..],
            base_size,
            size,
            &mut out,
        )
        .map_err(|error| error.to_string())?;
        Ok(String::from_utf8(result).unwrap())
    }

    #[test]
    fn a_delta_copies_and_inserts() {
        // Copy 3 bytes from 1; insert "xy"; copy 2 bytes from 0.
        let instructions = b"\x91\x01\x03\x02xy\x90\x02";
        assert_eq!(applied(instructions, b"abcdef", 7).unwrap(), "bcdxyab");
        let base = "z".repeat(0x10000);
        assert_eq!(applied(b"\x80", base.as_bytes(), 0x10000).unwrap(), base);
        assert_eq!(applied(b"", b"", 0).unwrap(), "");
    }

    #[test]
    fn a_large_copy_is_passed_in_pieces() {
        let base = vec![b'z'; 3 * PIECE + 1];
        let mut pieces = Vec::new();
        let mut out = |piece: &[u8]| {
            pieces.push(piece.len());
            Ok(())
        };
        (&base[..]).copy(1..base.len() as u64, &mut out).unwrap();
        assert_eq!(pieces, [PIECE; 3]);
    }

    #[test]
    fn an_invalid_delta_is_an_error() {
        for (instructions, size, why) in [
            (&b"\x90\x07"[..], 7, "copies from outside its base"),
            (
                b"\x9f\xff\xff\xff\xff\x01",
                1,
                "copies from outside its base",
            ),
            (b"\x80", 0x10000, "copies from outside its base"),
            (b"\x90\x02", 1, "makes more"),
            (b"\x02xy", 1, "makes more"),
            (b"\x90\x02", 3, "makes less"),
            (b"\x00", 0, "unknown instruction"),
            (b"\x03xy", 3, "fill whole buffer"),
            (b"\x91\x01", 3, "fill whole buffer"),
        ] {
            let error = applied(instructions, b"abcdef", size).unwrap_err();
            assert!(error.contains(why), "{instructions:x?}: {error}");
        }
    }

    #[test]
    fn a_size_has_at_most_64_bits() {
        for (bytes, expected) in [
            (&b"\x05"[..], Some(5)),
            (b"\x80\x01", Some(128)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Some(u64::MAX)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", None),
            (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", None),
            (b"\x80", None),
            (b"", None),
        ] {
            assert_eq!(size(&mut &bytes[..]).ok(), expected, "{bytes:x?}");
        }
    }
}
