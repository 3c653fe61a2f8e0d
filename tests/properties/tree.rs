//! For any tree of a commit, the checkout stays within its folder, and the build context within the
//! checkout.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use mol::testing::internals::{Repository, archive};

/// One entry of a tree. Names and targets may be any bytes, including ones that git itself never writes.
#[derive(Clone, Debug)]
pub enum Entry {
    File {
        name: Vec<u8>,
        executable: bool,
        content: Vec<u8>,
    },
    Link {
        name: Vec<u8>,
        target: Vec<u8>,
    },
    Folder {
        name: Vec<u8>,
        entries: Vec<Entry>,
    },
    /// A commit of another repository.
    Submodule {
        name: Vec<u8>,
    },
}

impl Entry {
    /// The name without NUL bytes, which end a name in a tree.
    fn name(&self) -> Vec<u8> {
        let name = match self {
            Entry::File { name, .. }
            | Entry::Link { name, .. }
            | Entry::Folder { name, .. }
            | Entry::Submodule { name } => name,
        };
        name.iter().copied().filter(|byte| *byte != 0).collect()
    }

    fn contents<'a>(&'a self, into: &mut BTreeSet<&'a [u8]>) {
        match self {
            Entry::File { content, .. } => {
                into.insert(content);
            }
            Entry::Folder { entries, .. } => entries.iter().for_each(|entry| entry.contents(into)),
            Entry::Link { .. } | Entry::Submodule { .. } => {}
        }
    }

    fn has_attributes(&self) -> bool {
        match self {
            Entry::Folder { entries, .. } => entries.iter().any(Entry::has_attributes),
            entry => entry.name().eq_ignore_ascii_case(b".gitattributes"),
        }
    }
}

/// Writes a tree unchecked. `sorted` sorts it as git does: by name, as if folders ended with a slash.
fn write(repository: &Repository, entries: &[Entry], sorted: bool) -> String {
    let mut entries: Vec<&Entry> = entries.iter().collect();
    if sorted {
        let key = |entry: &&Entry| {
            let mut key = entry.name();
            if matches!(entry, Entry::Folder { .. }) {
                key.push(b'/');
            }
            key
        };
        entries.sort_by_key(key);
        entries.dedup_by(|one, other| one.name() == other.name());
    }
    let mut tree = Vec::new();
    for entry in entries {
        let (mode, id) = match entry {
            Entry::File {
                executable: true,
                content,
                ..
            } => ("100755", repository.write("blob", content)),
            Entry::File { content, .. } => ("100644", repository.write("blob", content)),
            Entry::Link { target, .. } => ("120000", repository.write("blob", target)),
            Entry::Folder { entries, .. } => ("40000", write(repository, entries, sorted)),
            Entry::Submodule { .. } => ("160000", "1".repeat(40)),
        };
        tree.extend_from_slice(mode.as_bytes());
        tree.push(b' ');
        tree.extend(entry.name());
        tree.push(0);
        tree.extend((0..20).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap()));
    }
    repository.write("tree", &tree)
}

pub fn stays_inside(entries: &[Entry], sorted: bool) {
    let sandbox = tempfile::tempdir().unwrap();
    let at = |name: &str| sandbox.path().join(name);
    fs::write(at("witness"), "untouched").unwrap();
    let repository = Repository::default();

    let mut entries = entries.to_vec();
    entries.push(Entry::File {
        name: b"Dockerfile".to_vec(),
        executable: false,
        content: b"FROM scratch\n".to_vec(),
    });
    let tree = write(&repository, &entries, sorted);
    let commit = format!("tree {tree}\nauthor a <a@b> 0 +0000\ncommitter a <a@b> 0 +0000\n\nm\n");
    let commit = repository.write("commit", commit.as_bytes());
    let checkout = repository.check_out(&commit, &at("cache")).unwrap();

    let tree = checkout.tree();
    // The folder of this fetch, which contains the tree and temporary files.
    let work = tree.parent().unwrap();
    let outside = |path: &PathBuf| !sandbox.path().join(path).starts_with(work);
    let mut outside: Vec<PathBuf> = all(sandbox.path()).into_iter().filter(outside).collect();
    outside.retain(|path| !work.starts_with(sandbox.path().join(path)));
    outside.sort();
    let lock = format!("cache/hermes/.{}.lock", &commit[..12]);
    assert_eq!(outside, [PathBuf::from(lock), PathBuf::from("witness")]);
    assert_eq!(fs::read_to_string(at("witness")).unwrap(), "untouched");
    if checkout.result.is_err() {
        return;
    }
    for path in all(&tree) {
        let git = |name: &OsStr| name.as_bytes().eq_ignore_ascii_case(b".git");
        assert!(!path.iter().any(git), "{path:?}");
    }
    if let Ok(archive) = archive(&tree) {
        check(&archive, &entries);
    }
}

/// Every path below a folder, relative to it. Links are not followed.
fn all(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            }
            found.push(entry.path().strip_prefix(folder).unwrap().to_owned());
        }
    }
    found
}

fn check(archive: &[u8], entries: &[Entry]) {
    let mut contents = BTreeSet::new();
    entries
        .iter()
        .for_each(|entry| entry.contents(&mut contents));
    let attributes = entries.iter().any(Entry::has_attributes);
    let mut links = BTreeSet::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let normal = |part: Component<'_>| matches!(part, Component::Normal(_));
        assert!(path.components().all(normal), "{path:?}");
        assert!(
            !path.ancestors().any(|folder| links.contains(folder)),
            "{path:?}"
        );
        let kind = entry.header().entry_type();
        assert!(
            kind.is_dir() || kind.is_symlink() || kind.is_file(),
            "{path:?}: {kind:?}"
        );
        if kind.is_symlink() {
            links.insert(path.clone());
        }
        if kind.is_file() && !attributes {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert!(
                contents.contains(&*content),
                "{path:?} has content that is not in the commit"
            );
        }
    }
}

/// Parses a tree from lines of text, for the fuzzer: `f name content`, `x name content`, `l name target`,
/// `m name`, and `d name` and `u` to enter and leave a folder. Tabs separate the fields.
#[allow(dead_code)] // the property tests generate their trees directly
pub fn parse(text: &[u8]) -> Vec<Entry> {
    let mut open: Vec<(Vec<u8>, Vec<Entry>)> = vec![(Vec::new(), Vec::new())];
    let close = |open: &mut Vec<(Vec<u8>, Vec<Entry>)>| {
        if open.len() > 1 {
            let (name, entries) = open.pop().unwrap();
            open.last_mut()
                .unwrap()
                .1
                .push(Entry::Folder { name, entries });
        }
    };
    for line in text.split(|byte| *byte == b'\n').take(50) {
        let mut parts = line.splitn(3, |byte| *byte == b'\t').map(<[u8]>::to_vec);
        let mut part = || parts.next().unwrap_or_default();
        let (kind, name, rest) = (part(), part(), part());
        let entry = match kind.as_slice() {
            b"f" | b"x" => Entry::File {
                name,
                executable: kind == b"x",
                content: rest,
            },
            b"l" => Entry::Link { name, target: rest },
            b"m" => Entry::Submodule { name },
            b"d" => {
                open.push((name, Vec::new()));
                continue;
            }
            b"u" => {
                close(&mut open);
                continue;
            }
            _ => continue,
        };
        open.last_mut().unwrap().1.push(entry);
    }
    while open.len() > 1 {
        close(&mut open);
    }
    open.pop().unwrap().1
}
