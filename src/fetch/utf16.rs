//! `working-tree-encoding=UTF-16` (gitattributes(5)), which gix writes as UTF-8: the encoder that it uses
//! has none for UTF-16, because the web must not have one.

use std::path::Path;

use gix::worktree::stack::state::attributes::Source;

use crate::error::{Code, Error, Result};

const ATTRIBUTE: &str = "working-tree-encoding";

/// Which UTF-16.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Utf16 {
    mark: bool,
    big_endian: bool,
}

impl Utf16 {
    /// The names that git knows. Plain `UTF-16` comes out as glibc's iconv writes it, with a mark and in
    /// the order of this machine's bytes.
    fn named(name: &str) -> Option<Self> {
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

    fn encode(self, text: &str) -> Vec<u8> {
        let mark = self.mark.then_some('\u{feff}');
        let units = mark.into_iter().chain(text.chars()).flat_map(|c| {
            let mut buffer = [0; 2];
            c.encode_utf16(&mut buffer).to_vec()
        });
        units
            .flat_map(|unit| match self.big_endian {
                true => unit.to_be_bytes(),
                false => unit.to_le_bytes(),
            })
            .collect()
    }
}

/// Encodes the files below `target` that are to be UTF-16.
pub(super) fn encode(
    repository: &gix::Repository,
    index: &gix::index::State,
    target: &Path,
    failed: &dyn Fn(gix::Error) -> Error,
) -> Result<()> {
    let has_attributes = index
        .entries()
        .iter()
        .any(|entry| entry.path(index).ends_with(b".gitattributes"));
    if !has_attributes {
        return Ok(());
    }
    let mut stack = repository
        .attributes_only(index, Source::IdMapping)
        .map_err(failed)?;
    let mut matches = stack.selected_attribute_matches([ATTRIBUTE]);
    for entry in index.entries() {
        let is_file = entry.mode == gix::index::entry::Mode::FILE
            || entry.mode == gix::index::entry::Mode::FILE_EXECUTABLE;
        if !is_file {
            continue;
        }
        let path = entry.path(index);
        let wrong = |error: std::io::Error| {
            Error::new(
                Code::Cache,
                format!("{path} cannot be encoded in the cache: {error}"),
            )
        };
        let platform = stack.at_entry(path, Some(entry.mode)).map_err(failed)?;
        platform.matching_attributes(&mut matches);
        let encoding = matches.iter_selected().find_map(|found| {
            let name = found.assignment.state.as_bstr()?;
            Utf16::named(&name.to_string())
        });
        let Some(encoding) = encoding else {
            continue;
        };
        let file = target.join(gix::path::from_bstr(path).map_err(failed)?);
        // What is no UTF-8 is left alone, as git leaves it.
        if let Ok(text) = String::from_utf8(std::fs::read(&file).map_err(wrong)?) {
            std::fs::write(&file, encoding.encode(&text)).map_err(wrong)?;
        }
    }
    Ok(())
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
