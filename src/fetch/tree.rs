//! What a tree must be before it is checked out.
//!
//! gix looks at each name for itself: `..`, `.git` in every disguise, a slash. What it leaves to its
//! caller is the shape of the whole: a name that stands twice in one folder, so that a file could be
//! written through a link of the same name; an entry without a name, or of a kind that git does not
//! know; folders in folders without end; and a tree of a few kilobytes that spells out to billions of
//! files, because one folder may stand in it any number of times.

use std::collections::{HashMap, HashSet};

use gix::ObjectId;
use gix::bstr::{BStr, BString, ByteSlice};

/// More files and folders than any template has, and few enough to keep a list of.
pub(super) const MAX_ENTRIES: u64 = 1_000_000;

/// Deeper than any path that Linux takes (PATH_MAX), if the names have more than three letters.
const MAX_DEPTH: u32 = 1000;

/// The parts of a mode that say what an entry is (`S_IFMT`), and the values that git knows: a file, a
/// folder, a link, a commit of another repository.
const KIND: u16 = 0o170000;
const FOLDER: u16 = 0o040000;
const KINDS: [u16; 4] = [0o100000, FOLDER, 0o120000, 0o160000];

/// Why a tree is not checked out.
#[derive(Debug)]
pub(super) enum Refused {
    /// It cannot be read.
    Unreadable(gix::Error),
    /// What is wrong with it.
    Shape(String),
}

/// How much a folder spells out to.
#[derive(Clone, Copy)]
struct Extent {
    entries: u64,
    depth: u32,
}

struct Walk<'r> {
    repository: &'r gix::Repository,
    /// Each folder is read once, however often it stands in the tree.
    seen: HashMap<ObjectId, Extent>,
}

/// Looks at the whole tree.
pub(super) fn check(repository: &gix::Repository, root: ObjectId) -> Result<(), Refused> {
    let seen = HashMap::new();
    let mut walk = Walk { repository, seen };
    walk.folder(root, BStr::new(""), MAX_DEPTH).map(drop)
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
        let (mut extent, folders) = self.entries(id, path)?;
        for (folder, name) in folders {
            let below = self.folder(folder, join(path, name.as_ref()).as_ref(), levels - 1)?;
            extent.entries += below.entries;
            extent.depth = extent.depth.max(below.depth + 1);
            too_many(extent.entries)?;
        }
        self.seen.insert(id, extent);
        Ok(extent)
    }

    /// What stands in one folder; the folders in it are still to be looked at.
    fn entries(
        &self,
        id: ObjectId,
        path: &BStr,
    ) -> Result<(Extent, Vec<(ObjectId, BString)>), Refused> {
        let tree = self.repository.find_tree(id);
        let tree = tree.map_err(Refused::Unreadable)?;
        let (mut names, mut folders) = (HashSet::new(), Vec::new());
        for entry in tree.iter() {
            let entry = entry.map_err(Refused::Unreadable)?.inner;
            let (name, kind) = (entry.filename, entry.mode.value() & KIND);
            if name.is_empty() {
                let place = in_folder(path);
                return Err(Refused::Shape(format!("an entry{place} has no name")));
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
            too_many(names.len() as u64)?;
            if kind == FOLDER {
                folders.push((entry.oid.to_owned(), name.to_owned()));
            }
        }
        let entries = names.len() as u64;
        Ok((Extent { entries, depth: 1 }, folders))
    }
}

fn too_many(entries: u64) -> Result<(), Refused> {
    if entries <= MAX_ENTRIES {
        return Ok(());
    }
    Err(Refused::Shape(format!(
        "it has more than {MAX_ENTRIES} files and folders"
    )))
}

fn in_folder(path: &BStr) -> String {
    match path.is_empty() {
        true => String::new(),
        false => format!(" of {path:?}"),
    }
}

fn join(path: &BStr, name: &BStr) -> BString {
    match path.is_empty() {
        true => name.to_owned(),
        false => [path.as_bytes(), name.as_bytes()].join(&b'/').into(),
    }
}
