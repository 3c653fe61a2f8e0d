//! Walks the files of a template that belong to a build, in the order that the builders expect.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::vec;

use crate::context::dockerignore::{Inherited, Patterns};
use crate::context::include::{Includes, Reach};
use crate::context::stop::Stop;

/// Selects the files of a tree that are sent.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    /// The files to send; all if it is `None`.
    pub(crate) includes: Option<Includes>,
    /// The files to leave out.
    pub(crate) excludes: Patterns,
    /// Files at the root that are sent even if `excludes` matches them.
    pub(crate) always: &'static [&'static str],
    /// Ends the walk when it is set, even if no file passes the filter.
    pub(crate) stop: Stop,
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
    /// The permission bits: git's two modes, independent of the umask of this process.
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

/// Visits the entries that pass `filter`: a folder before its entries, and the entries sorted by the bytes of their
/// names, so that the order is always the same. Links are never followed. An excluded folder is visited if one of its
/// entries is not excluded.
pub(crate) fn walk(
    tree: &Path,
    filter: &Filter,
    visit: &mut dyn FnMut(Entry<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let walk = Walk {
        tree,
        filter,
        visit,
        pending: Vec::new(),
    };
    walk.all()
}

struct Walk<'a> {
    tree: &'a Path,
    filter: &'a Filter,
    visit: &'a mut dyn FnMut(Entry<'_>) -> io::Result<()>,
    /// Parent folders that are visited only if one of their entries is.
    pending: Vec<PathBuf>,
}

/// A folder whose entries are being visited.
struct Folder {
    path: PathBuf,
    inherited: Inherited,
    /// The entries that are not visited yet: the name, and whether it is a folder. `fs::DirEntry` would keep the folder
    /// open.
    entries: vec::IntoIter<(OsString, bool)>,
}

impl Walk<'_> {
    /// Uses an explicit stack of folders, so that a deep tree cannot overflow a thread's stack.
    fn all(mut self) -> io::Result<()> {
        let mut folders = vec![self.folder(PathBuf::new(), Inherited::default())?];
        while let Some(folder) = folders.last_mut() {
            let Some((name, is_folder)) = folder.entries.next() else {
                if self.pending.last() == Some(&folder.path) {
                    self.pending.pop();
                }
                folders.pop();
                continue;
            };
            self.filter.stop.check()?;
            let path = folder.path.join(name);
            let reach = match &self.filter.includes {
                Some(includes) => includes.reach(&path),
                None => Reach::Within,
            };
            if reach == Reach::Outside {
                continue;
            }
            let Filter { excludes, stop, .. } = self.filter;
            let verdict = excludes.ignores_unless(stop, &path.to_string_lossy(), &folder.inherited);
            let (excluded, matched) = verdict?;
            if is_folder {
                if matched.is_closed() {
                    continue;
                }
                self.pending.push(path.clone());
                if !excluded && reach == Reach::Within {
                    self.visit_pending()?;
                }
                folders.push(self.folder(path, matched)?);
            } else if reach == Reach::Within && (!excluded || self.is_sent_always(&path)) {
                self.visit_pending()?;
                self.entry(&path)?;
            }
        }
        Ok(())
    }

    fn folder(&self, path: PathBuf, inherited: Inherited) -> io::Result<Folder> {
        let stop = &self.filter.stop;
        let entries = fs::read_dir(self.tree.join(&path))?.map(|entry| {
            stop.check()?;
            let entry = entry?;
            Ok((entry.file_name(), entry.file_type()?.is_dir()))
        });
        let mut entries = entries.collect::<io::Result<Vec<_>>>()?;
        entries.sort_unstable();
        stop.check()?;
        Ok(Folder {
            path,
            inherited,
            entries: entries.into_iter(),
        })
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Patterns that take milliseconds for each path.
    fn slow() -> Patterns {
        let lines: String = (0..5000).map(|n| format!("!**/a?b{n}*c\n")).collect();
        Patterns::parse(&format!("*\n{lines}")).unwrap()
    }

    #[test]
    fn entries_have_the_modes_of_git() {
        let tree = tempfile::tempdir().unwrap();
        let place = |name: &str| tree.path().join(name);
        fs::create_dir(place("folder")).unwrap();
        std::os::unix::fs::symlink("nowhere", place("link")).unwrap();
        for (name, mode) in [("no", 0o600), ("owner", 0o700), ("others", 0o001)] {
            fs::write(place(name), "").unwrap();
            fs::set_permissions(place(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut modes = Vec::new();
        walk(tree.path(), &Filter::default(), &mut |entry| {
            modes.push((entry.path.to_str().unwrap().to_owned(), entry.kind.mode()));
            Ok(())
        })
        .unwrap();
        let expected = [
            ("folder", 0o755),
            ("link", 0o777),
            ("no", 0o644),
            ("others", 0o755),
            ("owner", 0o755),
        ];
        assert_eq!(modes, expected.map(|(name, mode)| (name.to_owned(), mode)));
    }

    #[test]
    fn ignored_entries_are_sent_for_what_they_contain() {
        let tree = tempfile::tempdir().unwrap();
        for name in ["a", "b", "b/inner"] {
            fs::create_dir(tree.path().join(name)).unwrap();
        }
        for name in ["Dockerfile", "a/drop", "b/inner/keep", "other"] {
            fs::write(tree.path().join(name), "").unwrap();
        }
        for (excludes, requested, expected) in [
            ("*", None, &["Dockerfile"][..]),
            (
                "*\n!a/missing\n!b/inner/keep",
                None,
                &["Dockerfile", "b", "b/inner", "b/inner/keep"],
            ),
            ("", Some("a/missing"), &[]),
            ("", Some("b/inner"), &["b", "b/inner", "b/inner/keep"]),
        ] {
            let includes = requested.and_then(|path: &str| {
                let stop = Stop::default();
                Includes::new(tree.path(), &[path.to_owned()], &[], &stop).unwrap()
            });
            let filter = Filter {
                includes,
                excludes: Patterns::parse(excludes).unwrap(),
                always: &["Dockerfile"],
                ..Filter::default()
            };
            let mut sent = Vec::new();
            walk(tree.path(), &filter, &mut |entry| {
                sent.push(entry.path.to_str().unwrap().to_owned());
                Ok(())
            })
            .unwrap();
            assert_eq!(sent, expected, "{excludes:?} {requested:?}");
        }
    }

    #[test]
    fn a_walk_that_sends_nothing_stops_on_request() {
        let tree = tempfile::tempdir().unwrap();
        for number in 0..5000 {
            fs::write(tree.path().join(format!("{number}{}", "x".repeat(200))), "").unwrap();
        }
        let filter = Filter {
            excludes: slow(),
            ..Filter::default()
        };
        let stop = filter.stop.clone();
        let stopped = std::thread::spawn(move || {
            let guard = stop.on_drop();
            std::thread::sleep(Duration::from_millis(200));
            drop(guard);
            Instant::now()
        });
        let end = walk(tree.path(), &filter, &mut |_| panic!("nothing is sent"));
        let late = stopped.join().unwrap().elapsed();
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        // Promise P4: within a second.
        assert!(late < Duration::from_secs(1), "{late:?}");
    }

    #[test]
    fn folders_nested_up_to_the_path_limit_are_walked() {
        let tree = tempfile::tempdir().unwrap();
        let depth = (4000 - tree.path().as_os_str().len()) / 2;
        let deepest = tree.path().join("a/".repeat(depth));
        fs::create_dir_all(&deepest).unwrap();
        fs::write(deepest.join("f"), "").unwrap();
        let mut entries = 0;
        walk(tree.path(), &Filter::default(), &mut |_| {
            entries += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(entries, depth + 1);
    }
}
