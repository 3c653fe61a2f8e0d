//! Which part of a template a builder asks for.
//!
//! BuildKit reads the Dockerfile first and then asks for the paths that its `COPY` and `ADD` name. A
//! link on such a path leads to more of the tree, and that is asked for too. The rules are those of
//! fsutil, through which the docker CLI answers (`FollowLinks`, and the include patterns of its walk).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::dockerignore::{Budget, Glob};
use super::walk::Stop;

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Includes {
    patterns: Vec<Vec<Part>>,
}

/// How a path stands to what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It is asked for, by itself or with the folder that it is in.
    Within,
    /// Something in it may be.
    Towards,
    Outside,
}

/// One name of a pattern.
#[derive(Debug)]
enum Part {
    Glob(Glob),
    /// `**`, or what cannot be understood. It lets through more rather than less: the builder picks
    /// what it needs out of what it gets.
    Anything,
}

impl Includes {
    /// Everything that `patterns` match, and what the paths `follow` lead to within `tree`. `None`
    /// stands for the whole tree.
    pub(crate) fn new(
        tree: &Path,
        patterns: &[String],
        follow: &[String],
        stop: &Stop,
    ) -> io::Result<Option<Self>> {
        if patterns.len() > MAX_ASKED {
            return Ok(None);
        }
        let mut links = Links::new(tree, stop);
        for path in follow {
            links.follow(Path::new(path))?;
        }
        if links.are_too_many() {
            return Ok(None);
        }
        let mut paths: Vec<PathBuf> = patterns.iter().map(PathBuf::from).collect();
        paths.extend(links.found);
        let mut budget = Budget::default();
        let patterns = paths.iter().map(|path| parts(path, &mut budget));
        // What is too much to be compared with is asked for as a whole.
        let Some(patterns) = patterns.collect::<Option<Vec<Vec<Part>>>>() else {
            return Ok(None);
        };
        let whole = patterns.is_empty() || patterns.iter().any(Vec::is_empty);
        Ok((!whole).then_some(Self { patterns }))
    }

    pub(crate) fn reach(&self, path: &Path) -> Reach {
        let reaches = self.patterns.iter().map(|pattern| reach(pattern, path));
        // In the order of `Reach`, the first is the farthest.
        reaches
            .min_by_key(|reach| *reach as u8)
            .unwrap_or(Reach::Outside)
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

/// `None` if there is too much of it.
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

/// The path below the root of the tree: `..` never leads out of it, as in a container.
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

/// Links can be laid so that following them has no end, and a pattern can match very many of them.
const MAX_ASKED: usize = 10_000;
const MAX_TARGETS: usize = 4 << 20;

/// Paths, and what the links on them lead to.
struct Links<'a> {
    tree: &'a Path,
    stop: &'a Stop,
    found: BTreeSet<PathBuf>,
    asked: BTreeSet<PathBuf>,
    /// The bytes of all paths that links have led to.
    targets: usize,
}

impl<'a> Links<'a> {
    fn new(tree: &'a Path, stop: &'a Stop) -> Self {
        Self {
            tree,
            stop,
            found: BTreeSet::new(),
            asked: BTreeSet::new(),
            targets: 0,
        }
    }

    fn follow(&mut self, path: &Path) -> io::Result<()> {
        let mut open = vec![path.to_owned()];
        while let Some(path) = open.pop() {
            self.stop.check()?;
            if self.are_too_many() {
                break;
            }
            let path = cleaned(&path);
            if self.asked.insert(path.clone()) {
                open.extend(self.step(path)?);
            }
        }
        Ok(())
    }

    fn are_too_many(&self) -> bool {
        self.asked.len() > MAX_ASKED || self.targets > MAX_TARGETS
    }

    /// Goes along a path to its end, or to the first links on it.
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
            return Ok(targets.iter().map(|target| target.join(rest)).collect());
        }
        self.found.insert(path);
        Ok(Vec::new())
    }

    /// Where the links lead that have this path, whose last name may be a pattern. `rest` comes after each.
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
                if glob.matches(&name.to_string_lossy())
                    && let Some(target) = self.target(folder, Path::new(&name))?
                {
                    self.targets += target.as_os_str().len() + rest.as_os_str().len();
                    targets.push(target);
                    if self.are_too_many() {
                        break;
                    }
                }
            }
        } else {
            targets.extend(self.target(folder, Path::new(name))?);
        }
        Ok(targets)
    }

    fn target(&self, folder: &Path, name: &Path) -> io::Result<Option<PathBuf>> {
        let full = self.tree.join(folder).join(name);
        let is_link = found(fs::symlink_metadata(&full))?.is_some_and(|found| found.is_symlink());
        if !is_link {
            return Ok(None);
        }
        // An absolute target is one from the root of the tree, as in a container.
        Ok(Some(folder.join(fs::read_link(&full)?)))
    }
}

/// What is not there is not an error.
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
    fn only_what_is_asked_for_is_within_reach() {
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
    fn the_root_of_the_tree_is_all_of_it() {
        let tree = tempfile::tempdir().unwrap();
        for all in [&[][..], &["."], &["/"], &["a", "."]] {
            assert!(includes(tree.path(), all).is_none(), "{all:?}");
        }
    }

    #[test]
    fn links_without_an_end_are_not_followed_for_ever() {
        let tree = tempfile::tempdir().unwrap();
        symlink("endless/more", tree.path().join("endless")).unwrap();
        assert!(includes(tree.path(), &["endless"]).is_none());
    }

    #[test]
    fn more_links_than_can_be_kept_stand_for_the_whole_tree() {
        let tree = tempfile::tempdir().unwrap();
        for number in 0..1200 {
            let target = format!("{}{number}", "d/".repeat(1990));
            symlink(target, tree.path().join(format!("l{number}"))).unwrap();
        }
        assert!(includes(tree.path(), &["l*"]).is_none());
        assert!(includes(tree.path(), &["l1*"]).is_some());
    }

    #[test]
    fn what_links_lead_to_is_asked_for_too() {
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

        for (asked, found) in [
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
            links.follow(Path::new(asked)).unwrap();
            let found: BTreeSet<PathBuf> = found.iter().map(PathBuf::from).collect();
            assert_eq!(links.found, found, "{asked}");
        }
    }
}
