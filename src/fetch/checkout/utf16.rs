//! `working-tree-encoding=UTF-16` (gitattributes(5)).
//!
//! gix writes such a file as UTF-8: encoding_rs, which it uses, only decodes UTF-16, as the Encoding Standard of the
//! web wants it. The encoder of the standard library is used here.

use std::fs;
use std::io;
use std::path::Path;

/// A form of UTF-16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Utf16 {
    byte_order_mark: bool,
    big_endian: bool,
}

impl Utf16 {
    /// Returns the form for a name that git accepts. Plain `UTF-16` is written as by glibc's iconv: with a mark, in
    /// this machine's byte order.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (byte_order_mark, big_endian) = match name.to_ascii_uppercase().as_str() {
            "UTF-16" | "UTF16" => (true, cfg!(target_endian = "big")),
            "UTF-16LE" | "UTF16LE" => (false, false),
            "UTF-16BE" | "UTF16BE" => (false, true),
            "UTF-16LE-BOM" | "UTF16LE-BOM" => (true, false),
            "UTF-16BE-BOM" | "UTF16BE-BOM" => (true, true),
            _ => return None,
        };
        Some(Self {
            byte_order_mark,
            big_endian,
        })
    }

    /// Encodes a UTF-8 file. Leaves a file that is not UTF-8 as it is, like git.
    pub(super) fn encode_file(self, path: &Path) -> io::Result<()> {
        match String::from_utf8(fs::read(path)?) {
            Ok(text) => fs::write(path, self.encode(&text)),
            Err(_) => Ok(()),
        }
    }

    fn encode(self, text: &str) -> Vec<u8> {
        let mark = self.byte_order_mark.then_some(0xfeff);
        // With all the capacity: a growing vector would take up to three times as much memory.
        let mut encoded = Vec::with_capacity(2 * (text.len() + 1));
        for unit in mark.into_iter().chain(text.encode_utf16()) {
            encoded.extend(match self.big_endian {
                true => unit.to_be_bytes(),
                false => unit.to_le_bytes(),
            });
        }
        encoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_has_its_mark_and_byte_order() {
        for (name, bytes) in [
            ("UTF-16LE", &b"a\0=\xd8\0\xde"[..]),
            ("utf-16be", b"\0a\xd8=\xde\0"),
            ("UTF-16LE-BOM", b"\xff\xfea\0=\xd8\0\xde"),
            ("UTF-16BE-BOM", b"\xfe\xff\0a\xd8=\xde\0"),
        ] {
            assert_eq!(
                Utf16::named(name).unwrap().encode("a\u{1f600}"),
                bytes,
                "{name}"
            );
        }
        assert_eq!(Utf16::named("UTF-8"), None);
    }
}
