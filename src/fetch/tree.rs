//! Checks of a tree before it is checked out.
//!
//! gix validates each name (gix-validate): `..`, `.git` in all its variants, a slash. It does not check the tree as
//! a whole: the same name twice in one folder, so that a file could be written through a link of that name; an
//! entry without a name, or of an unknown kind; folders nested without limit; and a tree of a few kilobytes that
//! expands to billions of files, because it contains one folder many times. All of that is checked here, and sizes
//! are added up, before anything is written.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use gix_hash::ObjectId;
use gix_object::bstr::{BStr, BString, ByteSlice};
use gix_object::{FindExt, Kind};

use crate::event::human_bytes;
use crate::fetch::limits::{MAX_ENTRIES, MAX_IN_MEMORY};
use crate::fetch::store::Store;

/// Upper bound of the paths of all files and folders together, in bytes.
const MAX_PATHS: u64 = 64 << 20;

/// Linux's limits for a name (NAME_MAX), and for a path and the target of a link (PATH_MAX, without its NUL).
const MAX_NAME: usize = 255;
const MAX_PATH: u64 = 4095;

/// Upper bound of nested folders. Removing a folder takes a file descriptor for each level.
const MAX_DEPTH: u32 = 128;

const ATTRIBUTES: &[u8] = b".gitattributes";

/// Upper bound of the `.gitattributes` that apply to one file (one in each folder above it), and of all together, in
/// bytes. git reads up to 100 MiB of each (gitattributes(5)); gix needs over a hundred bytes of memory for each byte.
const MAX_ATTRIBUTES: u64 = 256 << 10;
const MAX_ATTRIBUTE_FILES: u64 = 10_000;

/// The bits of a mode for the kind of an entry (`S_IFMT`), and the kinds that git has. A submodule is a commit of
/// another repository.
const KIND: u16 = 0o170000;
const FILE: u16 = 0o100000;
const FOLDER: u16 = 0o040000;
const LINK: u16 = 0o120000;
const SUBMODULE: u16 = 0o160000;
const KINDS: [u16; 4] = [FILE, FOLDER, LINK, SUBMODULE];

/// Why a tree is not checked out.
#[derive(Debug)]
pub(super) enum Refused {
    /// It could not be read.
    Unreadable(gix_error::Error),
    /// It is not a valid tree: why.
    Invalid(String),
    /// It exceeds a limit: what, and the limit.
    TooLarge(String),
    /// The fetch was interrupted.
    Stopped,
}

/// The extent of a folder with everything below it. A folder that it contains several times counts each time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent {
    /// Files, folders, links and submodules.
    pub(super) entries: u64,
    /// The bytes of all files and links.
    pub(super) bytes: u64,
    /// The bytes of the largest file or link.
    pub(super) largest: u64,
    /// The bytes of all paths, relative to this folder.
    pub(super) paths: u64,
    /// The longest path, relative to this folder.
    longest: u64,
    depth: u32,
    /// The most bytes of `.gitattributes` that apply to one file.
    pub(super) attributes: u64,
    pub(super) attribute_files: u64,
}

struct Walk<'s> {
    store: &'s Store,
    stop: &'s AtomicBool,
    /// Each folder is read once, however often the tree contains it.
    seen: HashMap<ObjectId, Extent>,
    /// The entries of all folders that were read.
    read: u64,
    /// The bytes of the `.gitattributes` in all folders that were read.
    attributes: u64,
}

/// Checks the whole tree, and returns its extent.
pub(super) fn check(store: &Store, root: ObjectId, stop: &AtomicBool) -> Result<Extent, Refused> {
    let mut walk = Walk {
        store,
        stop,
        seen: HashMap::new(),
        read: 0,
        attributes: 0,
    };
    walk.folder(root, BStr::new(""), MAX_DEPTH)
}

impl Walk<'_> {
    fn folder(&mut self, id: ObjectId, path: &BStr, levels: u32) -> Result<Extent, Refused> {
        let known = self.seen.get(&id).copied();
        if known.map_or(1, |extent| extent.depth) > levels {
            return Err(Refused::TooLarge(format!(
                "folders nested more than {MAX_DEPTH} levels deep"
            )));
        }
        if let Some(extent) = known {
            return Ok(extent);
        }
        // Also before the folder is read: the paths of all folders above it are in memory.
        if path.len() as u64 > MAX_PATH {
            return Err(path_too_long(path));
        }
        let (mut extent, folders) = self.entries(id, path)?;
        let mut attributes_below = 0;
        for (folder, name) in folders {
            let below = self.folder(folder, join(path, name.as_ref()).as_ref(), levels - 1)?;
            let length = name.len() as u64 + 1;
            extent.entries += below.entries;
            extent.bytes = extent.bytes.saturating_add(below.bytes);
            extent.largest = extent.largest.max(below.largest);
            // Neither overflows: the entries and the lengths of paths have been limited before.
            extent.paths += below.paths + below.entries * length;
            extent.longest = extent.longest.max(length + below.longest);
            extent.depth = extent.depth.max(below.depth + 1);
            extent.attribute_files += below.attribute_files;
            attributes_below = below.attributes.max(attributes_below);
            extent.check(join(path, name.as_ref()).as_ref())?;
        }
        extent.attributes += attributes_below;
        extent.check(path)?;
        self.seen.insert(id, extent);
        Ok(extent)
    }

    /// Checks the entries of one folder. Returns its extent without the content of its subfolders, and the subfolders.
    fn entries(
        &mut self,
        id: ObjectId,
        path: &BStr,
    ) -> Result<(Extent, Vec<(ObjectId, BString)>), Refused> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Refused::Stopped);
        }
        if self.store.size(&id) > MAX_IN_MEMORY {
            let limit = human_bytes(MAX_IN_MEMORY);
            let what = format!("a list of files of more than {limit}{}", in_folder(path));
            return Err(Refused::TooLarge(what));
        }
        let mut buffer = Vec::new();
        let tree = self.store.find_tree_iter(&id, &mut buffer);
        let tree = tree.map_err(Refused::Unreadable)?;
        let (mut names, mut folders) = (HashSet::new(), Vec::new());
        let mut extent = Extent {
            depth: 1,
            ..Extent::default()
        };
        for entry in tree {
            let entry = entry.map_err(Refused::Unreadable)?;
            let (name, kind) = (entry.filename, entry.mode.value() & KIND);
            if name.is_empty() {
                let place = in_folder(path);
                return Err(Refused::Invalid(format!("an entry{place} has no name")));
            }
            if name.len() > MAX_NAME {
                return Err(too_long(
                    &format!("a name of more than {MAX_NAME} bytes"),
                    path,
                ));
            }
            if !names.insert(name) {
                let place = join(path, name);
                return Err(Refused::Invalid(format!("it contains {place:?} twice")));
            }
            if !KINDS.contains(&kind) {
                let place = join(path, name);
                return Err(Refused::Invalid(format!(
                    "{place:?} is of an unknown kind (mode {:o})",
                    entry.mode.value()
                )));
            }
            self.read += 1;
            // A lower bound of the entries of the tree: each is in it at least once.
            check_entries(self.read)?;
            extent.entries += 1;
            extent.paths += name.len() as u64;
            extent.longest = extent.longest.max(name.len() as u64);
            let id = entry.oid.to_owned();
            match kind {
                FOLDER => folders.push((id, name.to_owned())),
                FILE | LINK => {
                    let size = self.blob(&id, path, name)?;
                    extent.bytes = extent.bytes.saturating_add(size);
                    extent.largest = extent.largest.max(size);
                    if kind == LINK && size > MAX_PATH {
                        let what = format!("a link to a path of more than {MAX_PATH} bytes");
                        return Err(too_long(&what, path));
                    }
                    if kind == FILE && name == ATTRIBUTES {
                        (extent.attributes, extent.attribute_files) = (size, 1);
                        self.attributes = self.attributes.saturating_add(size);
                        check_attributes(self.attributes)?;
                    }
                }
                _ => {}
            }
        }
        Ok((extent, folders))
    }

    /// Returns the size of a file or a link.
    fn blob(&self, id: &ObjectId, path: &BStr, name: &BStr) -> Result<u64, Refused> {
        match self.store.header(id) {
            Some((Kind::Blob, size)) => Ok(size),
            other => {
                let place = join(path, name);
                Err(Refused::Invalid(match other {
                    None => format!("the content of {place:?} is missing"),
                    Some((kind, _)) => format!("the content of {place:?} is a {kind}"),
                }))
            }
        }
    }
}

impl Extent {
    fn check(&self, path: &BStr) -> Result<(), Refused> {
        check_entries(self.entries)?;
        if self.longest > MAX_PATH {
            return Err(path_too_long(path));
        }
        if self.paths > MAX_PATHS {
            let limit = human_bytes(MAX_PATHS);
            let what = format!("paths of more than {limit} in total");
            return Err(Refused::TooLarge(what));
        }
        check_attributes(self.attributes)?;
        if self.attribute_files > MAX_ATTRIBUTE_FILES {
            return Err(Refused::TooLarge(format!(
                "more than {MAX_ATTRIBUTE_FILES} files named .gitattributes"
            )));
        }
        Ok(())
    }
}

fn check_entries(entries: u64) -> Result<(), Refused> {
    if entries <= MAX_ENTRIES {
        return Ok(());
    }
    Err(Refused::TooLarge(format!(
        "more than {MAX_ENTRIES} files and folders"
    )))
}

fn check_attributes(bytes: u64) -> Result<(), Refused> {
    if bytes <= MAX_ATTRIBUTES {
        return Ok(());
    }
    let limit = human_bytes(MAX_ATTRIBUTES);
    Err(Refused::TooLarge(format!(
        "more than {limit} of .gitattributes"
    )))
}

fn too_long(what: &str, path: &BStr) -> Refused {
    Refused::TooLarge(format!("{what}{}", in_folder(path)))
}

fn path_too_long(path: &BStr) -> Refused {
    too_long(&format!("a path of more than {MAX_PATH} bytes"), path)
}

/// " in FOLDER" for a message, cut to a length that can be shown; empty for the root.
fn in_folder(path: &BStr) -> String {
    const SHOWN: usize = 200;
    match path.len() {
        0 => String::new(),
        1..=SHOWN => format!(" in {path:?}"),
        _ => format!(" in {:?}…", path[..SHOWN].as_bstr()),
    }
}

fn join(path: &BStr, name: &BStr) -> BString {
    match path.is_empty() {
        true => name.to_owned(),
        false => [path.as_bytes(), name.as_bytes()].join(&b'/').into(),
    }
}
