//! Corrects `.gitattributes` files that gix reads differently from git, and tells which files they convert.
//!
//! gix-attributes parses the files and matches the paths. It has no limit for the length of a line, goes on after a
//! NUL, skips a byte order mark, and can take practically forever for some patterns. So it gets corrected files,
//! and such patterns are refused.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gix_attributes::StateRef;
use gix_hash::{ObjectId, oid};
use gix_index::entry::Mode;
use gix_object::Data;
use gix_object::bstr::{BStr, ByteSlice};

use crate::fetch::checkout::failure::Failure;
use crate::fetch::store::Store;

/// git ignores lines of `.gitattributes` of this length or more (`ATTR_MAX_LINE_LENGTH` in git's attr.h).
const MAX_ATTRIBUTE_LINE: usize = 2048;

/// Upper bound of `**` in one pattern. With more, matching a path can take practically forever, and cannot be
/// interrupted.
const MAX_DOUBLE_STARS: usize = 2;

/// Upper bound of the patterns with two `**`.
const MAX_WITH_TWO: usize = 100;

/// The attributes that convert a file (gitattributes(5)).
pub(super) const CONVERTING: [&str; 5] = ["text", "crlf", "eol", "ident", "working-tree-encoding"];

/// Whether a file is converted when it is written, with the name of the attribute.
pub(super) enum Conversion {
    None,
    /// Only if it is a text file.
    OfText(&'static str),
    Always(&'static str),
}

pub(super) fn conversion(matches: &gix_attributes::search::Outcome) -> Conversion {
    let mut text = None;
    let mut crlf = false;
    for found in matches.iter_selected() {
        let state = found.assignment.state;
        match (found.assignment.name.as_str(), state) {
            ("ident", StateRef::Set) => return Conversion::Always("ident"),
            ("working-tree-encoding", StateRef::Value(_)) => {
                return Conversion::Always("working-tree-encoding");
            }
            ("eol", StateRef::Value(value)) => crlf = value.as_bstr() == "crlf",
            ("text", StateRef::Unspecified) => {}
            ("text", state) => text = Some(state),
            // The old name of `text`.
            ("crlf", state) if text.is_none() => text = Some(state),
            _ => {}
        }
    }
    match text {
        _ if !crlf => Conversion::None,
        Some(StateRef::Unset) => Conversion::None,
        Some(StateRef::Value(value)) if value.as_bstr() == "auto" => Conversion::OfText("eol"),
        _ => Conversion::Always("eol"),
    }
}

pub(super) fn is_file(mode: Mode) -> bool {
    mode == Mode::FILE || mode == Mode::FILE_EXECUTABLE
}

pub(super) fn is_attribute_file(path: &BStr) -> bool {
    path.rsplit(|byte| *byte == b'/').next() == Some(b".gitattributes")
}

/// Returns the attribute files that git reads in another way than gix. Fails if matching them could take too long.
pub(super) fn attribute_files(
    index: &gix_index::State,
    store: &Store,
) -> Result<HashSet<ObjectId>, Failure> {
    let (mut corrected, mut seen) = (HashSet::new(), HashSet::new());
    let mut with_two = 0;
    for entry in index.entries() {
        let is_new =
            is_file(entry.mode) && is_attribute_file(entry.path(index)) && seen.insert(entry.id);
        if !is_new {
            continue;
        }
        let mut content = Vec::new();
        store.stream(&entry.id, &mut |piece| {
            content.extend_from_slice(piece);
            Ok(())
        })?;
        if may_begin_with_mark(&content) || content.contains(&0) || has_too_long_line(&content) {
            corrected.insert(entry.id);
            content = as_git_reads_it(&content);
        }
        with_two += check_patterns(&content)?;
        if with_two > MAX_WITH_TWO {
            return Err(too_many_double_stars());
        }
    }
    Ok(corrected)
}

/// Returns how many patterns have [`MAX_DOUBLE_STARS`] `**`. Fails if one has more. gix parses the file, because it
/// also matches the patterns: `**` may be written as `"\052\052"`, and a comment may contain any number of stars.
fn check_patterns(content: &[u8]) -> Result<usize, Failure> {
    let mut with_two = 0;
    for line in gix_attributes::parse(content) {
        // gix skips invalid lines.
        let Ok((gix_attributes::parse::Kind::Pattern(pattern), ..)) = line else {
            continue;
        };
        match pattern.text.find_iter("**").count() {
            ..MAX_DOUBLE_STARS => {}
            MAX_DOUBLE_STARS => with_two += 1,
            _ => return Err(too_many_double_stars()),
        }
    }
    Ok(with_two)
}

fn too_many_double_stars() -> Failure {
    Failure::TooLarge(format!(
        "a .gitattributes pattern with more than {MAX_DOUBLE_STARS} \"**\", or more than {MAX_WITH_TWO} patterns with \
         {MAX_DOUBLE_STARS}"
    ))
}

/// Whether git ignores the line as too long. Its line feed does not count.
fn is_too_long(line: &[u8]) -> bool {
    line.trim_end_with(|c| c == '\n').len() >= MAX_ATTRIBUTE_LINE
}

fn has_too_long_line(content: &[u8]) -> bool {
    content.lines_with_terminator().any(is_too_long)
}

/// Returns an attribute file as gix must get it, so that it reads what git reads.
fn as_git_reads_it(content: &[u8]) -> Vec<u8> {
    let mut corrected = Vec::new();
    // git reads the file as a C string, up to the first NUL.
    let content = content.split(|byte| *byte == 0).next().unwrap_or_default();
    if may_begin_with_mark(content) {
        // gix skips the mark at the beginning of a file. git skips only the mark of UTF-8, and only in a file of the
        // worktree: in a checkout the mark is part of the first pattern (attr.c). After an empty line gix does not
        // skip it either.
        corrected.push(b'\n');
    }
    let lines = content.lines_with_terminator();
    lines
        .filter(|line| !is_too_long(line))
        .for_each(|line| corrected.extend_from_slice(line));
    corrected
}

/// Whether gix may read the beginning of a file as a byte order mark. gix knows the mark of UTF-8, which some Windows
/// editors write, and ten others. The mark of UTF-7 begins with `+`, and the mark of SCSU with 0x0e. All others begin
/// with a non-ASCII byte, or with a NUL, where git stops reading the file.
fn may_begin_with_mark(content: &[u8]) -> bool {
    matches!(content.first(), Some(b'+' | 0x0e | 0x80..))
}

/// The objects for gix, with attribute files corrected so that gix reads what git reads.
#[derive(Clone)]
pub(super) struct Objects {
    pub(super) store: Store,
    /// The attribute files to correct.
    pub(super) attributes: Arc<HashSet<ObjectId>>,
    /// Checked for each object: gix itself checks the flag only after many files.
    pub(super) stop: Arc<AtomicBool>,
}

impl Objects {
    /// Whether a file contains a NUL: git then treats it as binary.
    pub(super) fn is_binary(&self, id: &oid) -> Result<bool, Failure> {
        let mut found = false;
        self.store.stream(id, &mut |piece| {
            found |= piece.contains(&0);
            Ok(())
        })?;
        Ok(found)
    }
}

impl gix_object::Find for Objects {
    fn try_find<'a>(
        &self,
        id: &oid,
        buffer: &'a mut Vec<u8>,
    ) -> gix_error::Result<Option<Data<'a>>> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(gix_error::Error::from_error(io::Error::from(
                io::ErrorKind::Interrupted,
            )));
        }
        if !self.attributes.contains(id) {
            return self.store.try_find(id, buffer);
        }
        let mut whole = Vec::new();
        let Some(Data {
            kind,
            object_hash,
            data,
        }) = self.store.try_find(id, &mut whole)?
        else {
            return Ok(None);
        };
        *buffer = as_git_reads_it(data);
        Ok(Some(Data::new(buffer, kind, object_hash)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_double_stars_of_patterns_are_counted() {
        for (content, expected) in [
            ("# **** text files ****\n  # ** ** **\n*.c text\n", Some(0)),
            ("**/a text\n**/b/**/c text\n", Some(1)),
            (r#""\052\052/\052*/c" text"#, Some(1)),
            ("**/**/**/c text\n", None),
            (r#""\052\052/\052\052/\052\052/c" text"#, None),
            ("*.c a=**/**/**/**\n", Some(0)),
        ] {
            let found = check_patterns(content.as_bytes()).ok();
            assert_eq!(found, expected, "{content}");
        }
    }
}
