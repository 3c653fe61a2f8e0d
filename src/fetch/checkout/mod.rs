//! Writes the tree of a commit as a folder, as `git clone` does with an empty configuration.
//!
//! gix-worktree-state writes the small files, each whole in memory, on several threads. It writes large files that
//! way too, so those are written here, in pieces: their size costs no memory. Only a large file that
//! `.gitattributes` converts is read whole, up to a limit.

mod attributes;
mod failure;
mod utf16;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gix_attributes::Search;
use gix_attributes::search::MetadataCollection;
use gix_filter::Pipeline;
use gix_filter::driver::apply::Delay;
use gix_filter::pipeline::convert::{ToWorktreeOutcome, to_worktree};
use gix_fs::Capabilities;
use gix_hash::Kind;
use gix_hash::oid;
use gix_index::entry::{Flags, Mode};
use gix_object::bstr::{BStr, ByteSlice};
use gix_validate::path::component;
use gix_worktree::Stack;
use gix_worktree::stack::state::Attributes;
use gix_worktree::stack::state::attributes::Source;
use gix_worktree::stack::{Platform, State};
use gix_worktree_state::checkout;
use prodash::progress::Discard;

use crate::event::human_bytes;
use crate::fetch::checkout::attributes::{
    CONVERTING, Conversion, Objects, attribute_files, conversion, is_attribute_file, is_file,
};
pub(in crate::fetch) use crate::fetch::checkout::failure::Failure;
use crate::fetch::checkout::utf16::Utf16;
use crate::fetch::store::Store;
use crate::fetch::tree::Extent;

/// Files up to this size are written by gix, larger ones in pieces.
const SMALL: u64 = 1 << 20;

/// The largest file that is converted, before and after each `$Id$` is replaced. The original and the converted content
/// are in memory together.
const MAX_CONVERTED: u64 = 4 << 20;

/// The bytes by which `$Id$` grows, to `$Id: …$` with an object id.
fn id_growth(hash: Kind) -> u64 {
    ": ".len() as u64 + hash.len_in_hex() as u64
}

/// Upper bound of a checkout's memory, in bytes: the list of files, and for each of `workers` a small file, its
/// converted content, and the attributes. Large files are converted one at a time, not while the workers run.
pub(super) fn memory(hash: Kind, extent: &Extent, workers: usize) -> u64 {
    const ENTRY: u64 = 128;
    /// gix takes about 130 bytes for each byte of an attribute file.
    const ATTRIBUTE: u64 = 160;
    const ATTRIBUTE_FILE: u64 = 128;
    /// gix's two buffers for conversions, as a multiple of the converted text. gix keeps them for all files of a
    /// worker, and makes them three times as large as a text to encode, which is enough for ISO-2022-JP.
    /// `utf16_files`, which runs afterwards, needs half of that.
    const BUFFERS: u64 = 2 * 3;
    let small = SMALL.min(extent.largest);
    let (files, converted) = match extent.attributes {
        0 => (2 * small, 0),
        _ => {
            // The text grows most if it consists of `$Id$`. Other line endings only double it.
            let text = small * (4 + id_growth(hash)).div_ceil(4);
            // A large text is limited with each `$Id$` replaced.
            let large = match extent.largest {
                ..=SMALL => 0,
                _ => MAX_CONVERTED + BUFFERS * 2 * MAX_CONVERTED,
            };
            (small + BUFFERS * text, large)
        }
    };
    let attributes = ATTRIBUTE * extent.attributes + ATTRIBUTE_FILE * extent.attribute_files;
    let parallel = workers as u64 * (files + attributes);
    ENTRY * extent.entries + 2 * extent.paths + parallel.max(converted + attributes)
}

/// Writes the tree `root` into `target`, an empty folder, on `workers` threads. Returns the number of its files,
/// links and submodules.
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
    let may_change_names = ignore_case || options.fs.precompose_unicode;
    let mut objects = Objects {
        store: store.clone(),
        attributes: Arc::default(),
        stop: Arc::clone(stop),
    };
    let mut index = gix_index::State::from_tree(root, &objects, options.validate)?;
    objects.attributes = Arc::new(attribute_files(&index, store)?);
    write_directly(hash, &mut index, &objects, target, &options, stop)?;
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
    if may_change_names {
        check_names(&index, target, stop)?;
    }
    let state = State::AttributesStack(attributes);
    let paths = index.path_backing();
    let stack = Stack::from_state_and_ignore_case(target, ignore_case, state, &index, paths);
    utf16_files(stack, &index, &objects, target, stop)?;
    Ok(index.entries().len() as u64)
}

/// The options of a checkout with an empty configuration. gix probes in the folder `beside` what the disk supports.
///
/// gix would take the options from a repository. To open one it needs the working directory, which may have been
/// removed while a server runs.
fn options(hash: Kind, beside: &Path, workers: usize) -> Result<checkout::Options, Failure> {
    let filters = Pipeline::new(Default::default(), hash, Default::default());
    let mut known = MetadataCollection::default();
    let no_files = std::iter::empty::<&Path>();
    let globals = Search::new_globals(no_files, &mut Vec::new(), &mut known)?;
    Ok(checkout::Options {
        fs: Capabilities::probe_dir(beside),
        validate: component::Options {
            protect_windows: cfg!(windows),
            // HFS+ ignores some Unicode characters in names. What is refused on macOS is refused everywhere: a
            // template works on all machines or on none.
            protect_hfs: true,
            protect_ntfs: true,
        },
        thread_limit: Some(workers),
        destination_is_initially_empty: true,
        attributes: Attributes::new(globals, None, Source::IdMapping, known),
        ..checkout::Options::new(filters)
    })
}

/// Writes the files that gix must not write, and marks them so that it skips them.
fn write_directly(
    hash: Kind,
    index: &mut gix_index::State,
    objects: &Objects,
    target: &Path,
    options: &checkout::Options,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let is_written_here = |entry: &gix_index::Entry| {
        let size = objects.store.size(&entry.id);
        // gix would hold all of a large file in memory, and would write the corrected content of an attribute file
        // instead of the committed one.
        is_file(entry.mode) && (size > SMALL || objects.attributes.contains(&entry.id))
    };
    if !index.entries().iter().any(is_written_here) {
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
    let mut matches = stack.selected_attribute_matches(CONVERTING);
    for entry in entries.iter_mut().filter(|entry| is_written_here(entry)) {
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::Stopped);
        }
        let path = entry.path_in(paths);
        let collides = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => Failure::Collision(path.to_owned()),
            _ => error.into(),
        };
        // `at_entry` creates the parent folders.
        let platform = stack
            .at_entry(path, Some(entry.mode), objects)
            .map_err(collides)?;
        platform.matching_attributes(&mut matches);
        let conversion = conversion(&matches);
        let executable = entry.mode == Mode::FILE_EXECUTABLE;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(if executable { 0o777 } else { 0o666 })
            .open(platform.path())
            .map_err(collides)?;
        let size = objects.store.size(&entry.id);
        let attribute = match conversion {
            Conversion::None => None,
            Conversion::OfText(_) if objects.is_binary(&entry.id)? => None,
            Conversion::OfText(name) | Conversion::Always(name) => Some(name),
        };
        match attribute {
            None => objects.store.stream(
                &entry.id,
                &mut |piece| match stop.load(Ordering::Relaxed) {
                    true => Err(io::ErrorKind::Interrupted.into()),
                    false => file.write_all(piece),
                },
            )?,
            Some(name) if size > MAX_CONVERTED => {
                let limit = human_bytes(MAX_CONVERTED);
                return Err(Failure::TooLarge(format!(
                    "a file of more than {limit} that .gitattributes converts ({name}): {path:?}"
                )));
            }
            Some(name) => {
                content.clear();
                objects.store.stream(&entry.id, &mut |piece| {
                    content.extend_from_slice(piece);
                    Ok(())
                })?;
                let ids = match name {
                    "ident" => content.find_iter("$Id$").count() as u64,
                    _ => 0,
                };
                if size + ids * id_growth(hash) > MAX_CONVERTED {
                    let limit = human_bytes(MAX_CONVERTED);
                    return Err(Failure::TooLarge(format!(
                        "a file of more than {limit} with each $Id$ replaced: {path:?}"
                    )));
                }
                write_converted(&mut file, &content, path, &platform, &mut filters)?;
            }
        }
        entry.flags.insert(Flags::SKIP_WORKTREE);
    }
    Ok(())
}

/// Writes the content of a file, converted as `.gitattributes` says.
fn write_converted(
    file: &mut File,
    content: &[u8],
    path: &BStr,
    platform: &Platform<'_>,
    filters: &mut Pipeline,
) -> Result<(), Failure> {
    let options = to_worktree::Options {
        can_delay: Delay::Forbid,
        unknown_encoding: to_worktree::UnknownEncoding::Ignore,
    };
    let converted = filters.convert_to_worktree(
        content,
        path,
        &mut |_, attributes| {
            platform.matching_attributes(attributes);
        },
        options,
    )?;
    match converted {
        ToWorktreeOutcome::Unchanged(bytes) | ToWorktreeOutcome::Buffer(bytes) => {
            file.write_all(bytes)?;
        }
        // Filter programs are not configured.
        ToWorktreeOutcome::Process(_) => {}
    }
    Ok(())
}

/// Encodes as UTF-16 the files for which `.gitattributes` says so: gix has written them as UTF-8.
fn utf16_files(
    mut stack: Stack,
    index: &gix_index::State,
    objects: &Objects,
    target: &Path,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    const ATTRIBUTE: &str = "working-tree-encoding";
    let has_attributes = |entry: &gix_index::Entry| is_attribute_file(entry.path(index));
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
            encoding.encode_file(&target.join(gix_path::from_bstr(path)?))?;
        }
    }
    Ok(())
}

/// Checks that each file on the disk is in the tree, under the same name. The folders `A` and `a` are one folder on a
/// disk that ignores case, and some disks change how a name is composed (`é` as one character or as two).
fn check_names(index: &gix_index::State, target: &Path, stop: &AtomicBool) -> Result<(), Failure> {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::Stopped);
        }
        for entry in std::fs::read_dir(target.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
                continue;
            }
            let found = path.as_os_str().as_bytes().as_bstr();
            if index.entry_by_path(found).is_none() {
                let lower = found.to_str_lossy().to_lowercase();
                let mut paths = index.entries().iter().map(|entry| entry.path(index));
                let meant = paths.find(|path| path.to_str_lossy().to_lowercase() == lower);
                return Err(match meant {
                    Some(path) => Failure::Collision(path.to_owned()),
                    None => Failure::Renamed(found.to_owned()),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::process::memory::{self, LEAST_MIB, Pool};

    /// A tree with a small attribute file, and with a file of this size.
    fn extent(largest: u64) -> Extent {
        let mut extent = Extent::default();
        extent.largest = largest;
        extent.attributes = 1 << 10;
        extent
    }

    /// Converts files with one pipeline, as a worker does, and returns the memory of its buffers.
    fn buffers(hash: Kind, files: &[(&str, &str)]) -> u64 {
        let mut filters = Pipeline::new(Default::default(), hash, Default::default());
        for (attributes, content) in files {
            let (mut search, mut known) = (Search::default(), MetadataCollection::default());
            let line = format!("* {attributes}\n");
            search
                .add_patterns_buffer(line.as_bytes(), "test".into(), None, &mut known, true)
                .unwrap();
            let options = to_worktree::Options {
                can_delay: Delay::Forbid,
                unknown_encoding: to_worktree::UnknownEncoding::Fail,
            };
            let mut find = |path: &BStr, found: &mut gix_attributes::search::Outcome| {
                let names = [
                    "crlf",
                    "ident",
                    "filter",
                    "eol",
                    "text",
                    "working-tree-encoding",
                ];
                found.initialize_with_selection(&known, names);
                search.pattern_matching_relative_path(path, Default::default(), None, found);
            };
            let outcome = filters
                .convert_to_worktree(content.as_bytes(), "file".into(), &mut find, options)
                .unwrap();
            assert!(outcome.is_changed(), "{attributes}");
        }
        let buffers = filters.buffers_mut();
        (buffers.src.capacity() + buffers.dest.capacity()) as u64
    }

    #[test]
    fn conversions_take_at_most_the_reserved_memory() {
        let ids = "$Id$".repeat(SMALL as usize / 4 - 1) + "\n";
        // The second file has one conversion more, so its text ends in the other buffer.
        let files = [
            ("ident working-tree-encoding=iso-2022-jp", &ids[..]),
            ("ident eol=crlf working-tree-encoding=iso-2022-jp", &ids),
        ];
        let reserved = memory(Kind::Sha1, &extent(SMALL), 1);
        let used = SMALL + buffers(Kind::Sha1, &files);
        assert!(used <= reserved, "{used} of {reserved}");
        assert!(used > reserved / 4 * 3, "{used} of {reserved}");
    }

    #[test]
    fn the_least_memory_limit_is_enough_for_conversions() {
        let room = memory::size(Pool::Step, LEAST_MIB << 20);
        for hash in [Kind::Sha1, Kind::Sha256] {
            assert!(memory(hash, &extent(2 * SMALL), 1) <= room, "{hash}");
        }
    }

    /// Compares a tree that has one file with a folder that has another one.
    fn check(in_tree: &str, on_disk: &str) -> Result<(), Failure> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(on_disk);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "").unwrap();
        let mut index = gix_index::State::new(gix_hash::Kind::Sha1);
        index.dangerously_push_entry(
            gix_index::entry::Stat::default(),
            gix_hash::Kind::Sha1.null(),
            Flags::empty(),
            Mode::FILE,
            in_tree.into(),
        );
        check_names(&index, folder.path(), &AtomicBool::new(false))
    }

    /// HFS+ of macOS stores `\u{e9}` as `e` and an accent.
    #[test]
    fn a_name_that_the_disk_normalizes_differently_is_an_error() {
        let failure = check("d/x\u{e9}", "d/xe\u{301}");
        assert!(matches!(failure, Err(Failure::Renamed(name)) if name == "d/xe\u{301}"));
    }

    #[test]
    fn a_name_in_another_case_is_a_collision() {
        let failure = check("d/README", "d/readme");
        assert!(matches!(failure, Err(Failure::Collision(name)) if name == "d/README"));
    }

    #[test]
    fn equal_names_are_accepted() {
        assert!(check("d/x\u{e9}", "d/x\u{e9}").is_ok());
    }
}
