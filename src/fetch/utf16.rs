//! `working-tree-encoding=UTF-16` (gitattributes(5)), which gix writes as UTF-8: the encoder that it uses
//! has none for UTF-16, because the web must not have one.

use std::fs;
use std::io;
use std::path::Path;

/// Which UTF-16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Utf16 {
    mark: bool,
    big_endian: bool,
}

impl Utf16 {
    /// The names that git knows. Plain `UTF-16` comes out as glibc's iconv writes it, with a mark and in
    /// the order of this machine's bytes.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (mark, big_endian) = match name.to_ascii_uppercase().as_str() {
            "UTF-16" | "UTF16" => (true, cfg!(target_endian = "big")),
            "UTF-16LE" | "UTF16LE" => (false, false),
            "UTF-16BE" | "UTF16BE" => (false, true),
            "UTF-16LE-BOM" | "UTF16LE-BOM" => (true, false),
            "UTF-16BE-BOM" | "UTF16BE-BOM" => (true, true),
            _ => return None,
        };
        Some(Self { mark, big_endian })
    }

    /// Encodes a file that is UTF-8. What is not is left alone, as git leaves it.
    pub(super) fn encode_file(self, path: &Path) -> io::Result<()> {
        match String::from_utf8(fs::read(path)?) {
            Ok(text) => fs::write(path, self.encode(&text)),
            Err(_) => Ok(()),
        }
    }

    fn encode(self, text: &str) -> Vec<u8> {
        let mark = self.mark.then_some(0xfeff);
        // With room for all of it: a vector that grows takes up to three times as much.
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
    fn every_form_has_its_mark_and_its_order() {
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
