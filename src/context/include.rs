//! The part of a template that a builder requests.
//!
//! BuildKit reads the Dockerfile first, and then requests the paths that its `COPY` and `ADD` instructions name. The
//! targets of links on these paths are included. The rules are those of fsutil, which the docker CLI uses
//! (`FollowLinks`, and the include patterns of its walk).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::context::dockerignore::{Budget, Glob};
use crate::context::stop::Stop;

/// The requested paths, as patterns.
#[derive(Debug)]
pub(crate) struct Includes {
    patterns: Vec<Vec<Part>>,
}

/// How a path relates to the requested ones. Ordered from the most inclusive to the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// The path, or a folder that contains it, is requested.
    Within,
    /// An entry below the path may be requested.
    Towards,
    Outside,
}

/// One path element of a pattern.
#[derive(Debug)]
enum Part {
    Glob(Glob),
    /// `**`, or an invalid pattern. It matches everything: the builder selects the files that it needs from those
    /// that it gets.
    Anything,
}

impl Includes {
    /// The paths that match `patterns`, and the paths `follow` with the targets of their links within `tree`. `None`
    /// means the whole tree.
    pub(crate) fn new(
        tree: &Path,
        patterns: &[String],
        follow: &[String],
        stop: &Stop,
    ) -> io::Result<Option<Self>> {
        if patterns.len() > MAX_PATHS {
            return Ok(None);
        }
        let mut links = Links::new(tree, stop);
        for path in follow {
            links.follow(Path::new(path))?;
        }
        if links.is_over_limit() {
            return Ok(None);
        }
        let mut paths: Vec<PathBuf> = patterns.iter().map(PathBuf::from).collect();
        paths.extend(links.found);
        let mut budget = Budget::default();
        let patterns = paths.iter().map(|path| parts(path, &mut budget));
        // If matching would be too expensive, the whole tree is requested.
        let Some(patterns) = patterns.collect::<Option<Vec<Vec<Part>>>>() else {
            return Ok(None);
        };
        let whole = patterns.is_empty() || patterns.iter().any(Vec::is_empty);
        Ok((!whole).then_some(Self { patterns }))
    }

    pub(crate) fn reach(&self, path: &Path) -> Reach {
        let reaches = self.patterns.iter().map(|pattern| reach(pattern, path));
        reaches.min().unwrap_or(Reach::Outside)
    }
}

fn reach(pattern: &[Part], path: &Path) -> Reach {
    let mut names = path.iter();
    for part in pattern {
        let Some(name) = names.next() else {
            return Reach::Towards;
        };
        match part {
            Part::Anything => return Reach::Within,
            Part::Glob(glob) if glob.matches(&name.to_string_lossy()) => {}
            Part::Glob(_) => return Reach::Outside,
        }
    }
    Reach::Within
}

/// The elements of a pattern; `None` if they exceed the budget.
fn parts(path: &Path, budget: &mut Budget) -> Option<Vec<Part>> {
    let mut part = |name: &std::ffi::OsStr| match name.to_str() {
        Some(name) if name != "**" => match Glob::within(name, budget) {
            Ok(glob) => Some(Part::Glob(glob)),
            Err(_) if budget.is_used_up() => None,
            Err(_) => Some(Part::Anything),
        },
        _ => Some(Part::Anything),
    };
    cleaned(path).iter().map(&mut part).collect()
}

/// The path relative to the root of the tree. As in a container, `..` does not leave the root.
fn cleaned(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Upper bound of requested patterns, and of paths on which links are followed: links can form endless chains, and a
/// pattern can match very many of them.
const MAX_PATHS: usize = 10_000;

/// The longest total of the paths that links lead to, in bytes.
const MAX_TARGET_BYTES: usize = 4 << 20;

/// Follows the links on paths.
struct Links<'a> {
    tree: &'a Path,
    stop: &'a Stop,
    found: BTreeSet<PathBuf>,
    visited: BTreeSet<PathBuf>,
    /// The total length of all paths that links lead to.
    target_bytes: usize,
}

impl<'a> Links<'a> {
    fn new(tree: &'a Path, stop: &'a Stop) -> Self {
        Self {
            tree,
            stop,
            found: BTreeSet::new(),
            visited: BTreeSet::new(),
            target_bytes: 0,
        }
    }

    fn follow(&mut self, path: &Path) -> io::Result<()> {
        let mut open = vec![path.to_owned()];
        while let Some(path) = open.pop() {
            self.stop.check()?;
            if self.is_over_limit() {
                break;
            }
            let path = cleaned(&path);
            if self.visited.insert(path.clone()) {
                open.extend(self.step(path)?);
            }
        }
        Ok(())
    }

    fn is_over_limit(&self) -> bool {
        self.visited.len() > MAX_PATHS || self.target_bytes > MAX_TARGET_BYTES
    }

    /// Follows a path to its end, or to the first links on it. Returns the paths that the links lead to.
    fn step(&mut self, path: PathBuf) -> io::Result<Vec<PathBuf>> {
        let mut current = PathBuf::new();
        let mut rest = path.iter();
        while let Some(name) = rest.next() {
            current.push(name);
            let rest = rest.as_path();
            let targets = self.targets(&current, rest)?;
            if targets.is_empty() {
                continue;
            }
            self.found.insert(current);
            return Ok(targets);
        }
        self.found.insert(path);
        Ok(Vec::new())
    }

    /// Where the links at this path lead to, each with `rest`, the path after the link. The last element of the path may
    /// be a pattern.
    fn targets(&mut self, path: &Path, rest: &Path) -> io::Result<Vec<PathBuf>> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let Some(name) = path.file_name() else {
            return Ok(Vec::new());
        };
        let mut targets = Vec::new();
        if name.as_bytes().iter().any(|byte| b"*?[\\".contains(byte)) {
            let Some(Ok(glob)) = name.to_str().map(Glob::new) else {
                return Ok(Vec::new());
            };
            for entry in found(fs::read_dir(self.tree.join(folder)))?
                .into_iter()
                .flatten()
            {
                self.stop.check()?;
                let name = entry?.file_name();
                if glob.matches(&name.to_string_lossy()) {
                    targets.extend(self.target(folder, Path::new(&name), rest)?);
                    if self.is_over_limit() {
                        break;
                    }
                }
            }
        } else {
            targets.extend(self.target(folder, Path::new(name), rest)?);
        }
        Ok(targets)
    }

    fn target(&mut self, folder: &Path, name: &Path, rest: &Path) -> io::Result<Option<PathBuf>> {
        let full = self.tree.join(folder).join(name);
        let is_link = found(fs::symlink_metadata(&full))?.is_some_and(|found| found.is_symlink());
        if !is_link {
            return Ok(None);
        }
        // As in a container, an absolute target starts at the root of the tree.
        let target = folder.join(fs::read_link(&full)?).join(rest);
        self.target_bytes += target.as_os_str().len();
        Ok(Some(target))
    }
}

/// `None` if the file does not exist.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn includes(tree: &Path, follow: &[&str]) -> Option<Includes> {
        let follow: Vec<String> = follow.iter().map(|&path| path.to_owned()).collect();
        Includes::new(tree, &[], &follow, &Stop::default()).unwrap()
    }

    #[test]
    fn only_requested_paths_are_within_reach() {
        let tree = tempfile::tempdir().unwrap();
        let includes = includes(tree.path(), &["a/b", "*.py", "/rooted", "x/../y"]).unwrap();
        for (path, expected) in [
            ("a", Reach::Towards),
            ("a/b", Reach::Within),
            ("a/b/c/d", Reach::Within),
            ("a/c", Reach::Outside),
            ("ab", Reach::Outside),
            ("main.py", Reach::Within),
            ("main.pyc", Reach::Outside),
            ("folder/main.py", Reach::Outside),
            ("rooted", Reach::Within),
            ("y", Reach::Within),
            ("x", Reach::Outside),
        ] {
            assert_eq!(includes.reach(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_pattern_that_cannot_be_matched_matches_everything() {
        let tree = tempfile::tempdir().unwrap();
        for pattern in ["**/x", "["] {
            let includes = includes(tree.path(), &[pattern]).unwrap();
            let reach = includes.reach(Path::new("folder/inner/x"));
            assert_eq!(reach, Reach::Within, "{pattern}");
        }
    }

    #[test]
    fn patterns_made_to_be_expensive_mean_the_whole_tree() {
        let tree = tempfile::tempdir().unwrap();
        let requested = |patterns: usize| {
            let patterns = vec!["[a-z][a-z]".to_owned(); patterns];
            Includes::new(tree.path(), &patterns, &[], &Stop::default()).unwrap()
        };
        assert!(requested(100).is_some());
        assert!(requested(MAX_PATHS).is_none());
    }

    #[test]
    fn only_a_missing_file_is_no_error() {
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory] {
            assert!(matches!(found::<()>(Err(kind.into())), Ok(None)));
        }
        assert!(found::<()>(Err(io::ErrorKind::PermissionDenied.into())).is_err());
    }

    #[test]
    fn a_request_for_the_root_means_the_whole_tree() {
        let tree = tempfile::tempdir().unwrap();
        for all in [&[][..], &["."], &["/"], &["a", "."]] {
            assert!(includes(tree.path(), all).is_none(), "{all:?}");
        }
    }

    #[test]
    fn endless_links_mean_the_whole_tree() {
        let tree = tempfile::tempdir().unwrap();
        symlink("endless/more", tree.path().join("endless")).unwrap();
        assert!(includes(tree.path(), &["endless"]).is_none());

        // Each path is longer than the one before.
        let stop = Stop::default();
        let mut links = Links::new(tree.path(), &stop);
        links.follow(Path::new("endless")).unwrap();
        let bytes = links.visited.iter().map(|path| path.as_os_str().len());
        assert!(bytes.sum::<usize>() < 2 * MAX_TARGET_BYTES);
    }

    #[test]
    fn too_many_links_mean_the_whole_tree() {
        let tree = tempfile::tempdir().unwrap();
        for number in 0..1200 {
            let target = format!("{}{number}", "d/".repeat(1990));
            symlink(target, tree.path().join(format!("l{number}"))).unwrap();
        }
        assert!(includes(tree.path(), &["l*"]).is_none());
        assert!(includes(tree.path(), &["l1*"]).is_some());
    }

    #[test]
    fn link_targets_are_requested_too() {
        let tree = tempfile::tempdir().unwrap();
        let link = |target: &str, name: &str| symlink(target, tree.path().join(name)).unwrap();
        fs::create_dir_all(tree.path().join("real/inner")).unwrap();
        link("real", "folder");
        link("inner/file", "real/deep");
        link("/absolute", "rooted");
        link("../../../out", "real/up");
        link("round", "loop");
        link("loop", "round");
        link("real", "star.d");

        for (requested, found) in [
            ("folder/inner", &["folder", "real/inner"][..]),
            ("folder/deep", &["folder", "real/deep", "real/inner/file"]),
            ("rooted", &["absolute", "rooted"]),
            ("real/up", &["out", "real/up"]),
            ("loop/x", &["loop", "round"]),
            ("*.d/inner", &["*.d", "real/inner"]),
            ("nowhere/at/all", &["nowhere/at/all"]),
        ] {
            let stop = Stop::default();
            let mut links = Links::new(tree.path(), &stop);
            links.follow(Path::new(requested)).unwrap();
            let found: BTreeSet<PathBuf> = found.iter().map(PathBuf::from).collect();
            assert_eq!(links.found, found, "{requested}");
        }
    }
}
