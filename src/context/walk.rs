//! The files of a template that belong to a build, in the order in which both builders want them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::dockerignore::{Inherited, Patterns};
use super::include::{Includes, Reach};

/// What is sent of a tree.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    /// Only these; all if there is none.
    pub(crate) includes: Option<Includes>,
    /// But not these.
    pub(crate) excludes: Patterns,
    /// Files at the root that are sent whatever `excludes` says.
    pub(crate) always: &'static [&'static str],
}

/// A file, a folder or a link.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// Relative to the root of the tree.
    pub(crate) path: &'a Path,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Folder,
    File { size: u64, executable: bool },
    Link { target: PathBuf },
}

impl Kind {
    /// The permission bits. Git knows two modes; what the umask of this process made of them must not
    /// show.
    pub(crate) fn mode(&self) -> u32 {
        match self {
            Kind::Folder
            | Kind::File {
                executable: true, ..
            } => 0o755,
            Kind::File { .. } => 0o644,
            Kind::Link { .. } => 0o777,
        }
    }
}

/// Visits what `filter` lets through: every folder before what is in it, and the entries of a folder
/// in the order of their names' bytes, so that the same tree is always sent in the same way. Links
/// are never followed. A folder that is filtered out is visited all the same if something in it is
/// not.
pub(crate) fn walk(
    tree: &Path,
    filter: &Filter,
    visit: &mut dyn FnMut(Entry<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut walk = Walk {
        tree,
        filter,
        visit,
        pending: Vec::new(),
    };
    walk.folder(Path::new(""), &Inherited::default())
}

struct Walk<'a> {
    tree: &'a Path,
    filter: &'a Filter,
    visit: &'a mut dyn FnMut(Entry<'_>) -> io::Result<()>,
    /// Folders on the way down that are visited only if something in them is.
    pending: Vec<PathBuf>,
}

impl Walk<'_> {
    fn folder(&mut self, relative: &Path, inherited: &Inherited) -> io::Result<()> {
        let mut entries =
            fs::read_dir(self.tree.join(relative))?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_cached_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = relative.join(entry.file_name());
            let reach = match &self.filter.includes {
                Some(includes) => includes.reach(&path),
                None => Reach::Within,
            };
            if reach == Reach::Outside {
                continue;
            }
            let excludes = &self.filter.excludes;
            let (excluded, matched) = excludes.ignores(&path.to_string_lossy(), inherited);
            if entry.file_type()?.is_dir() {
                if matched.is_closed() {
                    continue;
                }
                self.pending.push(path.clone());
                if !excluded && reach == Reach::Within {
                    self.visit_pending()?;
                }
                self.folder(&path, &matched)?;
                if self.pending.last() == Some(&path) {
                    self.pending.pop();
                }
            } else if reach == Reach::Within && (!excluded || self.is_sent_always(&path)) {
                self.visit_pending()?;
                self.entry(&path)?;
            }
        }
        Ok(())
    }

    fn is_sent_always(&self, path: &Path) -> bool {
        self.filter
            .always
            .iter()
            .any(|name| path == Path::new(name))
    }

    fn visit_pending(&mut self) -> io::Result<()> {
        for folder in std::mem::take(&mut self.pending) {
            (self.visit)(Entry {
                path: &folder,
                kind: Kind::Folder,
            })?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> io::Result<()> {
        let full = self.tree.join(path);
        let found = fs::symlink_metadata(&full)?;
        let kind = if found.is_symlink() {
            Kind::Link {
                target: fs::read_link(&full)?,
            }
        } else if found.is_file() {
            Kind::File {
                size: found.len(),
                executable: found.permissions().mode() & 0o111 != 0,
            }
        } else {
            return Err(io::Error::other(format!(
                "{} is neither a file nor a link",
                path.display()
            )));
        };
        (self.visit)(Entry { path, kind })
    }
}
