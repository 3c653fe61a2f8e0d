//! What a tree must be before it is checked out.
//!
//! gix looks at each name for itself: `..`, `.git` in every disguise, a slash. What it leaves to its
//! caller is the shape of the whole: a name that stands twice in one folder, so that a file could be
//! written through a link of the same name; an entry without a name, or of a kind that git does not
//! know; folders in folders without end; and a tree of a few kilobytes that spells out to billions of
//! files, because one folder may stand in it any number of times. All of it is added up here before
//! anything is built from it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use gix::ObjectId;
use gix::bstr::{BStr, BString, ByteSlice};
use gix::objs::{FindExt, Kind};

use super::WHOLE_IN_MEMORY;
use super::store::Store;
use crate::event::human_bytes;

/// More files and folders than any template has, and few enough to keep a list of.
pub(super) const MAX_ENTRIES: u64 = 500_000;

/// The paths of all files and folders, one after the other.
const MAX_PATHS: u64 = 64 << 20;

/// Linux takes no longer name (NAME_MAX), no longer path and no longer target of a link (PATH_MAX, whose
/// last byte is a NUL).
const MAX_NAME: usize = 255;
const MAX_PATH: u64 = 4095;

/// Folders in folders, as deep as no template has them. To remove a folder takes a file descriptor for each
/// level of it.
const MAX_DEPTH: u32 = 128;

/// `.gitattributes`: all that count for one file, one in each folder above it; all together; and how many
/// there are. git takes 100 MiB of one (gitattributes(5)), and a hundred times that in memory.
const ATTRIBUTES: &[u8] = b".gitattributes";
const MAX_ATTRIBUTES: u64 = 256 << 10;
const MAX_ATTRIBUTE_FILES: u64 = 10_000;

/// The parts of a mode that say what an entry is (`S_IFMT`), and the values that git knows: a file, a
/// folder, a link, a commit of another repository.
const KIND: u16 = 0o170000;
const FILE: u16 = 0o100000;
const FOLDER: u16 = 0o040000;
const LINK: u16 = 0o120000;
const SUBMODULE: u16 = 0o160000;
const KINDS: [u16; 4] = [FILE, FOLDER, LINK, SUBMODULE];

/// Why a tree is not checked out.
#[derive(Debug)]
pub(super) enum Refused {
    /// It cannot be read.
    Unreadable(gix::Error),
    /// What is wrong with it.
    Shape(String),
    /// What there is too much of, and the limit.
    TooLarge(String),
    /// Nobody wants it any more.
    Stopped,
}

/// What a folder spells out to: with all that is below it, each folder as often as it stands there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent {
    /// Files, folders and links.
    pub(super) entries: u64,
    /// The bytes of all files and links.
    pub(super) bytes: u64,
    /// The bytes of all paths from here.
    pub(super) paths: u64,
    /// The longest path from here.
    longest: u64,
    depth: u32,
    /// The bytes of the `.gitattributes` on the way to the file that has most of them.
    pub(super) attributes: u64,
    pub(super) attribute_files: u64,
}

struct Walk<'s> {
    store: &'s Store,
    stop: &'s AtomicBool,
    /// Each folder is read once, however often it stands in the tree.
    seen: HashMap<ObjectId, Extent>,
    /// The entries of all folders that were read.
    read: u64,
    /// The bytes of the `.gitattributes` in all folders that were read.
    attributes: u64,
}

/// Looks at the whole tree.
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
        if known.map_or(0, |extent| extent.depth) >= levels {
            return Err(Refused::Shape(format!(
                "it has folders in folders, {MAX_DEPTH} deep and deeper"
            )));
        }
        if let Some(extent) = known {
            return Ok(extent);
        }
        // On the way down too: the paths of all folders above are in memory.
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
            // Neither can overflow: there are few entries by then, and no path is long.
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

    /// What stands in one folder; the folders in it are still to be looked at.
    fn entries(
        &mut self,
        id: ObjectId,
        path: &BStr,
    ) -> Result<(Extent, Vec<(ObjectId, BString)>), Refused> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Refused::Stopped);
        }
        let size = self.store.header(&id).map_or(0, |(_, size)| size);
        if size > WHOLE_IN_MEMORY {
            let limit = human_bytes(WHOLE_IN_MEMORY);
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
                return Err(Refused::Shape(format!("an entry{place} has no name")));
            }
            if name.len() > MAX_NAME {
                return Err(too_long(
                    &format!("a name of more than {MAX_NAME} bytes"),
                    path,
                ));
            }
            if !names.insert(name) {
                let place = join(path, name);
                return Err(Refused::Shape(format!("{place:?} stands in it twice")));
            }
            if !KINDS.contains(&kind) {
                let place = join(path, name);
                return Err(Refused::Shape(format!(
                    "{place:?} is of a kind that git does not know (mode {:o})",
                    entry.mode.value()
                )));
            }
            self.read += 1;
            // Each was read at one place at least.
            too_many(self.read)?;
            extent.entries += 1;
            extent.paths += name.len() as u64;
            extent.longest = extent.longest.max(name.len() as u64);
            let id = entry.oid.to_owned();
            match kind {
                FOLDER => folders.push((id, name.to_owned())),
                FILE | LINK => {
                    let size = self.blob(&id, path, name)?;
                    extent.bytes = extent.bytes.saturating_add(size);
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

    /// The size of a file or a link.
    fn blob(&self, id: &ObjectId, path: &BStr, name: &BStr) -> Result<u64, Refused> {
        match self.store.header(id) {
            Some((Kind::Blob, size)) => Ok(size),
            other => {
                let place = join(path, name);
                Err(Refused::Shape(match other {
                    None => format!("the content of {place:?} is missing"),
                    Some((kind, _)) => format!("the content of {place:?} is a {kind}"),
                }))
            }
        }
    }
}

impl Extent {
    fn check(&self, path: &BStr) -> Result<(), Refused> {
        too_many(self.entries)?;
        if self.longest > MAX_PATH {
            return Err(path_too_long(path));
        }
        if self.paths > MAX_PATHS {
            let limit = human_bytes(MAX_PATHS);
            let what = format!("paths of more than {limit} in all");
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

fn too_many(entries: u64) -> Result<(), Refused> {
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

/// The folder, as far as it can be shown.
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
