//! Writes the tree of a commit as a folder, as `git clone` does with an empty configuration.
//!
//! gix writes the small files, each whole in memory, on several threads. A large file is written piece by
//! piece, so that its size costs no memory; unless `.gitattributes` has it converted, which needs it whole.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gix::attrs::Search;
use gix::attrs::search::MetadataCollection;
use gix::bstr::{BStr, BString, ByteSlice};
use gix::filter::plumbing::Pipeline;
use gix::filter::plumbing::driver::apply::Delay;
use gix::filter::plumbing::pipeline::convert::{ToWorktreeOutcome, to_worktree};
use gix::fs::Capabilities;
use gix::hash::Kind;
use gix::index::entry::{Flags, Mode};
use gix::objs::Data;
use gix::progress::Discard;
use gix::validate::path::component;
use gix::worktree::stack::State;
use gix::worktree::stack::state::Attributes;
use gix::worktree::stack::state::attributes::Source;
use gix::worktree::{Stack, state::checkout};
use gix::{ObjectId, oid};

use super::store::Store;
use super::tree::Extent;
use super::utf16::Utf16;
use crate::event::human_bytes;

/// A larger file is written piece by piece.
const SMALL: u64 = 1 << 20;

/// The largest file that is converted: it is in memory before and after.
const MAX_CONVERTED: u64 = 4 << 20;

/// git ignores a line of `.gitattributes` of this length or more (`ATTR_MAX_LINE_LENGTH` in git's attr.h).
const MAX_ATTRIBUTE_LINE: usize = 2048;

/// Two `**` in one pattern are as many as anybody needs; with more, matching a path takes time without end,
/// and nothing can stop it. So many patterns may have two.
const MAX_DOUBLE_STARS: usize = 2;
const MAX_WITH_TWO: usize = 100;

/// What some editors on Windows put in front of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The attributes that change what is in a file (gitattributes(5)).
const CONVERTING: [&str; 5] = ["text", "crlf", "eol", "ident", "working-tree-encoding"];

/// Why the tree is not there.
#[derive(Debug)]
pub(super) enum Failure {
    Git(gix::Error),
    /// What there is too much of: a file to be converted, patterns that take too long.
    TooLarge(String),
    /// Two names are one on this disk.
    Collision(BString),
    Stopped,
}

impl From<gix::Error> for Failure {
    fn from(error: gix::Error) -> Self {
        Failure::Git(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Git(gix::Error::from_error(error))
    }
}

/// What a checkout takes of memory, at most: the list of files, and for each of `workers` a small file, what
/// it is converted to, and the attributes. One that is converted alone comes when those have ended.
pub(super) fn memory(extent: &Extent, workers: usize) -> u64 {
    const ENTRY: u64 = 128;
    /// gix takes about 130 bytes for each byte of an attribute file.
    const ATTRIBUTE: u64 = 160;
    const ATTRIBUTE_FILE: u64 = 128;
    /// `$Id$` becomes ten times as long, and twice that as UTF-16.
    const CONVERTED: u64 = 32;
    let small = SMALL.min(extent.bytes);
    let files = match extent.attributes {
        0 => 2 * small,
        _ => CONVERTED * small,
    };
    let attributes = ATTRIBUTE * extent.attributes + ATTRIBUTE_FILE * extent.attribute_files;
    let converted = match extent.attributes {
        0 => 0,
        _ => CONVERTED * MAX_CONVERTED.min(extent.bytes),
    };
    let parallel = workers as u64 * (files + attributes);
    ENTRY * extent.entries + 2 * extent.paths + parallel.max(converted + attributes)
}

/// Writes the tree `root` into `target`, an empty folder, on `workers` threads. Returns how many files and links it has.
pub(super) fn check_out(
    hash: Kind,
    store: &Store,
    root: &oid,
    target: &Path,
    workers: usize,
    stop: &Arc<AtomicBool>,
) -> Result<u64, Failure> {
    let options = options(hash, target.parent().unwrap_or(target), workers)?;
    let (attributes, ignore_case) = (options.attributes.clone(), options.fs.ignore_case);
    let mut objects = Objects {
        store: store.clone(),
        attributes: Arc::default(),
        stop: Arc::clone(stop),
    };
    let mut index = gix::index::State::from_tree(root, &objects, options.validate)?;
    objects.attributes = Arc::new(attribute_files(&index, store)?);
    large_files(&mut index, &objects, target, &options, stop)?;
    let (files, bytes) = (Discard, Discard);
    let outcome = checkout(
        &mut index,
        target,
        objects.clone(),
        &files,
        &bytes,
        stop,
        options,
    )?;
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::Stopped);
    }
    if let Some(collision) = outcome.collisions.into_iter().next() {
        return Err(Failure::Collision(collision.path));
    }
    let state = State::AttributesStack(attributes);
    let paths = index.path_backing();
    let stack = Stack::from_state_and_ignore_case(target, ignore_case, state, &index, paths);
    utf16_files(stack, &index, &objects, target, stop)?;
    Ok(index.entries().len() as u64)
}

/// How git checks out into a folder beside `beside` with an empty configuration.
///
/// gix takes these from a repository. One would have to be made for it, and gix asks for the working
/// directory then: that of a server may be gone.
fn options(hash: Kind, beside: &Path, workers: usize) -> Result<checkout::Options, Failure> {
    let filters = Pipeline::new(Default::default(), hash, Default::default());
    let mut known = MetadataCollection::default();
    let no_files = std::iter::empty::<&Path>();
    let globals = Search::new_globals(no_files, &mut Vec::new(), &mut known)?;
    Ok(checkout::Options {
        fs: Capabilities::probe_dir(beside),
        validate: component::Options {
            protect_windows: cfg!(windows),
            // Some characters of Unicode are nothing in a name on macOS. What is refused there is refused
            // everywhere: a template is good on all machines or on none.
            protect_hfs: true,
            protect_ntfs: true,
        },
        thread_limit: Some(workers),
        destination_is_initially_empty: true,
        attributes: Attributes::new(globals, None, Source::IdMapping, known),
        ..checkout::Options::new(filters)
    })
}

/// Writes the large files, and takes them out of what is still to be written.
fn large_files(
    index: &mut gix::index::State,
    objects: &Objects,
    target: &Path,
    options: &checkout::Options,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let is_large = |entry: &gix::index::Entry| {
        let size = objects.store.header(&entry.id).map_or(0, |(_, size)| size);
        // gix must see the attributes as they count, not as they are.
        is_file(entry.mode) && (size > SMALL || objects.attributes.contains(&entry.id))
    };
    if !index.entries().iter().any(is_large) {
        return Ok(());
    }
    let state = State::for_checkout(false, options.validate, options.attributes.clone());
    let mut stack = Stack::from_state_and_ignore_case(
        target,
        options.fs.ignore_case,
        state,
        index,
        index.path_backing(),
    );
    let (entries, paths) = index.entries_mut_and_pathbacking();
    let mut filters = options.filters.clone();
    let mut content = Vec::new();
    for entry in entries.iter_mut().filter(|entry| is_large(entry)) {
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::Stopped);
        }
        let path = entry.path_in(paths);
        let mut matches = stack.selected_attribute_matches(CONVERTING);
        let platform = stack.at_entry(path, Some(entry.mode), objects)?;
        platform.matching_attributes(&mut matches);
        let conversion = conversion(&matches);
        let executable = entry.mode == Mode::FILE_EXECUTABLE;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(if executable { 0o777 } else { 0o666 })
            .open(platform.path())?;
        let size = objects.store.header(&entry.id).map_or(0, |(_, size)| size);
        let how = match conversion {
            Conversion::None => None,
            Conversion::OfText(_) if objects.is_binary(&entry.id)? => None,
            Conversion::OfText(how) | Conversion::Always(how) => Some(how),
        };
        match how {
            None => objects.store.stream(
                &entry.id,
                &mut |piece| match stop.load(Ordering::Relaxed) {
                    true => Err(io::ErrorKind::Interrupted.into()),
                    false => file.write_all(piece),
                },
            )?,
            Some(how) if size > MAX_CONVERTED => {
                let limit = human_bytes(MAX_CONVERTED);
                return Err(Failure::TooLarge(format!(
                    "{path:?}, of more than {limit}, is to be converted ({how} in .gitattributes)"
                )));
            }
            Some(_) => {
                content.clear();
                objects.store.stream(&entry.id, &mut |piece| {
                    content.extend_from_slice(piece);
                    Ok(())
                })?;
                let converted = filters.convert_to_worktree(
                    &content,
                    path,
                    &mut |_, attributes| {
                        platform.matching_attributes(attributes);
                    },
                    to_worktree::Options {
                        can_delay: Delay::Forbid,
                        unknown_encoding: to_worktree::UnknownEncoding::Ignore,
                    },
                )?;
                match converted {
                    ToWorktreeOutcome::Unchanged(bytes) | ToWorktreeOutcome::Buffer(bytes) => {
                        file.write_all(bytes)?;
                    }
                    // No program is configured.
                    ToWorktreeOutcome::Process(_) => {}
                }
            }
        }
        entry.flags.insert(Flags::SKIP_WORKTREE);
    }
    Ok(())
}

/// Whether `.gitattributes` has a file converted when it is written.
enum Conversion {
    None,
    /// If it is a text.
    OfText(&'static str),
    Always(&'static str),
}

fn conversion(matches: &gix::attrs::search::Outcome) -> Conversion {
    use gix::attrs::StateRef;
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
            // What `text` was called before.
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

/// Encodes the files that are to be UTF-16, which gix has written as UTF-8.
fn utf16_files(
    mut stack: Stack,
    index: &gix::index::State,
    objects: &Objects,
    target: &Path,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    const ATTRIBUTE: &str = "working-tree-encoding";
    let has_attributes = |entry: &gix::index::Entry| is_attribute_file(entry.path(index));
    if !index.entries().iter().any(has_attributes) {
        return Ok(());
    }
    let mut matches = stack.selected_attribute_matches([ATTRIBUTE]);
    for entry in index.entries().iter().filter(|entry| is_file(entry.mode)) {
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::Stopped);
        }
        let path = entry.path(index);
        let platform = stack.at_entry(path, Some(entry.mode), objects)?;
        platform.matching_attributes(&mut matches);
        let encoding = matches.iter_selected().find_map(|found| {
            let name = found.assignment.state.as_bstr()?;
            Utf16::named(&name.to_string())
        });
        if let Some(encoding) = encoding {
            encoding.encode_file(&target.join(gix::path::from_bstr(path)?))?;
        }
    }
    Ok(())
}

fn is_file(mode: Mode) -> bool {
    mode == Mode::FILE || mode == Mode::FILE_EXECUTABLE
}

fn is_attribute_file(path: &BStr) -> bool {
    path.rsplit(|byte| *byte == b'/').next() == Some(b".gitattributes")
}

/// The attribute files that git reads otherwise than gix does. Checks that all of them can be matched in time.
fn attribute_files(index: &gix::index::State, store: &Store) -> Result<HashSet<ObjectId>, Failure> {
    let (mut odd, mut seen) = (HashSet::new(), HashSet::new());
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
        if content.starts_with(BYTE_ORDER_MARK) || content.contains(&0) {
            odd.insert(entry.id);
        }
        for line in content.lines() {
            if line.len() >= MAX_ATTRIBUTE_LINE {
                odd.insert(entry.id);
                continue;
            }
            let stars = line.find_iter("**").count();
            with_two += usize::from(stars == MAX_DOUBLE_STARS);
            if stars > MAX_DOUBLE_STARS || with_two > MAX_WITH_TWO {
                return Err(Failure::TooLarge(format!(
                    "a .gitattributes with more than {MAX_DOUBLE_STARS} times ** in a pattern, or with \
                     more than {MAX_WITH_TWO} patterns of {MAX_DOUBLE_STARS}"
                )));
            }
        }
    }
    Ok(odd)
}

/// The objects, as gix asks for them one by one: an attribute file so that it reads what git reads, without
/// the lines that git ignores.
#[derive(Clone)]
struct Objects {
    store: Store,
    /// The attribute files that have to be changed for that.
    attributes: Arc<HashSet<ObjectId>>,
    /// gix looks at the flag only after many files.
    stop: Arc<AtomicBool>,
}

impl Objects {
    /// Whether a file holds a NUL, which git takes for the sign of one that is no text.
    fn is_binary(&self, id: &oid) -> Result<bool, Failure> {
        let mut found = false;
        self.store.stream(id, &mut |piece| {
            found |= piece.contains(&0);
            Ok(())
        })?;
        Ok(found)
    }
}

impl gix::objs::Find for Objects {
    fn try_find<'a>(&self, id: &oid, buffer: &'a mut Vec<u8>) -> gix::Result<Option<Data<'a>>> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(gix::Error::from_error(io::Error::from(
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
        buffer.clear();
        // To git the file is a C string.
        let data = data.split(|byte| *byte == 0).next().unwrap_or_default();
        if data.starts_with(BYTE_ORDER_MARK) {
            // gix skips it at the beginning of a file only. git does so for a file in the worktree, and not
            // in a checkout (attr.c): the first line is then a pattern that begins with it.
            buffer.push(b'\n');
        }
        let lines = data.lines_with_terminator();
        lines
            .filter(|line| line.trim_end_with(|c| c == '\n').len() < MAX_ATTRIBUTE_LINE)
            .for_each(|line| buffer.extend_from_slice(line));
        Ok(Some(Data::new(buffer, kind, object_hash)))
    }
}
