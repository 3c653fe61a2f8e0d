//! Step six, first half: the build context, as the builder reads it.
//!
//! It is what the docker CLI would send of a clean checkout: owner 0:0, git's two modes, links as
//! links, no empty folder that git would not keep. It is read while it is sent: what is in memory at
//! any time is a few chunks, whatever the size of the template's files (promise P9).
//!
//! The classic builder gets one [`archive`]. BuildKit asks for what it needs over a session, and says
//! itself what is to be left out; that is in [`engine`](crate::engine).

mod archive;
mod dockerfile;
mod dockerignore;
mod include;
mod walk;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use dockerfile::{DOCKER_HUB, Dockerfile};
pub(crate) use dockerignore::Patterns;
pub(crate) use include::Includes;
pub(crate) use walk::{Filter, Kind, Stop, walk};

use crate::error::{Code, Error, Result};
use crate::process::executor::blocking;
use crate::process::limits;
use crate::process::outside_file;

/// The file with the build's instructions, at the root of the tree.
pub(crate) const DOCKERFILE: &str = "Dockerfile";

/// The file that says what is not sent, and the one that is looked for first where a Dockerfile can
/// have one of its own.
const IGNORE_FILE: &str = ".dockerignore";
const OWN_IGNORE_FILE: &str = "Dockerfile.dockerignore";

/// All that Buildah takes for an ignore file. Podman 4.3 looks for the Dockerfile's own first, 5.4 and 5.8 look
/// for it last.
const BUILDAH_IGNORE_FILES: [&str; 4] = [
    OWN_IGNORE_FILE,
    "Dockerfile.containerignore",
    ".containerignore",
    IGNORE_FILE,
];

/// The largest Dockerfile. The longest ones by hand have some ten KiB, generated ones some hundred. It is
/// read as a whole, and so it is by BuildKit, which refuses a line of 64 KiB.
const MAX_DOCKERFILE: usize = 1 << 20;

/// The largest ignore file, and the most patterns in it. Long ones have some hundred patterns and some
/// ten KiB. Each path of the template is compared with each pattern, and BuildKit sends all of them back
/// in the header of a request, of which it and gRPC allow only so much.
const MAX_IGNORE_FILE: usize = 256 << 10;
pub(crate) const MAX_PATTERNS: usize = 10_000;

/// A checked-out tree, ready to be sent.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) tree: PathBuf,
    /// The time of every entry, in seconds since 1970.
    pub(crate) time: u64,
    pub(crate) sent: Arc<Sent>,
    /// Why it could not be sent. What the engine makes of that is not worth telling.
    pub(crate) failure: OnceLock<Error>,
    /// Set when the build has ended, however it has: what is still being sent stops.
    pub(crate) stop: Stop,
}

/// How much was sent so far, to be looked at meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) files: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// Set off when the engine says that it has all it wants.
    pub(crate) done: CancellationToken,
}

impl Context {
    /// Checks that the tree can be built: there is a Dockerfile, and neither that nor an ignore file is too
    /// large. `sent` is set off when the engine has all it wants of it. It reads files, so it is not for
    /// the runtime's own threads.
    pub(crate) fn open(tree: &Path, commit_time: i64, sent: CancellationToken) -> Result<Self> {
        match look(tree, DOCKERFILE) {
            Found::File(file) => {
                read(&file, MAX_DOCKERFILE).map_err(|error| unreadable(DOCKERFILE, &error))?;
            }
            Found::Outside => {
                return Err(no_dockerfile(
                    "its Dockerfile is a link that leads out of it",
                ));
            }
            Found::Other => return Err(no_dockerfile("its Dockerfile is a folder, not a file")),
            Found::Nothing => return Err(no_dockerfile("it has no Dockerfile at its root")),
        }
        for name in [IGNORE_FILE, OWN_IGNORE_FILE] {
            if let Found::File(file) = look(tree, name) {
                read_patterns(&file).map_err(|error| unreadable(name, &error))?;
            }
        }
        Ok(Self {
            tree: tree.to_owned(),
            time: u64::try_from(commit_time).unwrap_or(0),
            sent: Arc::new(Sent {
                done: sent,
                ..Sent::default()
            }),
            failure: OnceLock::new(),
            stop: Stop::default(),
        })
    }

    /// Does a part of the sending, on a thread for what blocks, from now on. What goes wrong, a panic
    /// too, is kept as the failure, and told to whoever waits for that part.
    pub(crate) fn send<P>(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        part: P,
    ) -> impl Future<Output = io::Result<()>> + Send + use<P>
    where
        P: FnOnce(&Self) -> io::Result<()> + Send + 'static,
    {
        let (sending, context) = (Arc::clone(self), Arc::clone(self));
        let sent = blocking(tasks, move || Ok(part(&sending)));
        async move {
            let error = match sent.await {
                Ok(Ok(())) => return Ok(()),
                // The engine has hung up, which has a reason of its own.
                Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(error);
                }
                Ok(Err(error)) => context.cannot_be_read(&error),
                Err(error) => error,
            };
            let told = io::Error::other(error.clone());
            // Only the first is the cause.
            let _ = context.failure.set(error);
            Err(told)
        }
    }

    fn cannot_be_read(&self, error: &io::Error) -> Error {
        limits::reached(error).unwrap_or_else(|| {
            let tree = self.tree.display();
            Error::new(
                Code::Cache,
                format!("the template cannot be read from {tree}: {error}"),
            )
            .hint("see whether something removes files from the cache, and try again")
        })
    }

    /// What the Dockerfile says. A limit of this process is kept as the failure: nobody would know otherwise
    /// why there is no login.
    pub(crate) fn dockerfile(&self, build_args: &HashMap<String, String>) -> Dockerfile {
        let text = match look(&self.tree, DOCKERFILE) {
            Found::File(file) => read(&file, MAX_DOCKERFILE).unwrap_or_else(|error| {
                if let Some(limit) = limits::reached(&error) {
                    let _ = self.failure.set(limit);
                }
                String::new()
            }),
            _ => String::new(),
        };
        Dockerfile::parse(&text, build_args)
    }

    /// What the docker CLI sends to the classic builder, which does not know an ignore file that is the
    /// Dockerfile's own. The Dockerfile and the ignore file are in it even if they are ignored: the builder
    /// reads them, and leaves them out then.
    pub(crate) fn classic_filter(&self) -> Result<Filter> {
        self.filter(&[DOCKERFILE, IGNORE_FILE], &[IGNORE_FILE])
    }

    /// What is sent to Buildah, and what it is told to leave out of that: its parameter `excludes`, in JSON,
    /// with which it reads no ignore file. `None` where it would find none.
    pub(crate) fn buildah_filter(&self) -> Result<(Filter, Option<String>)> {
        let filter = self.filter(&[DOCKERFILE], &[OWN_IGNORE_FILE, IGNORE_FILE])?;
        // A folder of that name is an error, and Buildah tells it.
        let there = |name: &str| matches!(look(&self.tree, name), Found::File(_) | Found::Outside);
        if !BUILDAH_IGNORE_FILES.iter().any(|name| there(name)) {
            return Ok((filter, None));
        }
        // An empty list counts as none. Nothing is below a file, so this matches nothing.
        let mut excludes = vec![format!("{DOCKERFILE}/{DOCKERFILE}")];
        let top = dockerignore::Inherited::default();
        if filter.excludes.ignores(DOCKERFILE, &top).0 {
            excludes.push(DOCKERFILE.to_owned());
        }
        let excludes = serde_json::Value::from(excludes).to_string();
        Ok((filter, Some(excludes)))
    }

    /// Leaves out what the first of the ignore files says that is there, but never what is `always` sent.
    fn filter(&self, always: &'static [&str], ignore_files: &[&str]) -> Result<Filter> {
        let mut filter = Filter {
            always,
            stop: self.stop.clone(),
            ..Filter::default()
        };
        let there = ignore_files
            .iter()
            .find_map(|name| match look(&self.tree, name) {
                Found::File(file) => Some((name, file)),
                _ => None,
            });
        if let Some((name, file)) = there {
            let text = read_patterns(&file).map_err(|error| unreadable(name, &error))?;
            filter.excludes = Patterns::parse(&text).map_err(|why| unusable(name, &why))?;
        }
        Ok(filter)
    }
}

/// What stands under a name at the root of a tree.
enum Found {
    /// A file within the tree, with its own path if a link led to it.
    File(PathBuf),
    /// A link that leads out of the tree: what it leads to is not the commit's.
    Outside,
    Other,
    Nothing,
}

/// Links within the tree are followed, as the docker CLI follows them.
fn look(tree: &Path, name: &str) -> Found {
    let found = fs::canonicalize(tree.join(name)).and_then(|path| {
        let inside = path.starts_with(fs::canonicalize(tree)?);
        let found = fs::metadata(&path)?;
        Ok((inside, found, path))
    });
    match found {
        Ok((false, ..)) => Found::Outside,
        Ok((true, found, path)) if found.is_file() => Found::File(path),
        Ok(_) => Found::Other,
        Err(_) => Found::Nothing,
    }
}

/// The text of a file of at most so many bytes.
fn read(file: &Path, max: usize) -> io::Result<String> {
    let text = outside_file::read(file, max)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The text of an ignore file that is within its limits.
fn read_patterns(file: &Path) -> io::Result<String> {
    let text = read(file, MAX_IGNORE_FILE)?;
    let patterns = text.lines().filter(|line| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#')
    });
    match patterns.count() {
        ..=MAX_PATTERNS => Ok(text),
        count => Err(io::Error::other(format!(
            "it has {count} patterns, and {MAX_PATTERNS} are allowed"
        ))),
    }
}

fn unreadable(name: &str, error: &io::Error) -> Error {
    limits::reached(error).unwrap_or_else(|| unusable(name, &error.to_string()))
}

fn unusable(name: &str, why: &str) -> Error {
    Error::new(
        Code::BuildFailed,
        format!("the template's {name} cannot be used: {why}"),
    )
    .hint("mend it in the template repository")
}

fn no_dockerfile(what: &str) -> Error {
    Error::new(
        Code::NoDockerfile,
        format!("the template cannot be built: {what}"),
    )
    .hint("add a file named Dockerfile to the root of the template repository")
}

#[cfg(test)]
mod tests {
    use super::dockerignore::Inherited;
    use super::*;

    #[test]
    fn an_ignore_file_is_read_through_a_link_but_not_out_of_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join(DOCKERFILE), "FROM scratch\n").unwrap();
        fs::write(tree.join("inside"), "secret\n").unwrap();
        fs::write(dir.path().join("outside"), "secret\n").unwrap();
        let link = tree.join(IGNORE_FILE);
        let ignores = |path: &str| {
            let context = Context::open(&tree, 0, CancellationToken::new()).unwrap();
            let filter = context.classic_filter().unwrap();
            filter.excludes.ignores(path, &Inherited::default()).0
        };

        std::os::unix::fs::symlink("inside", &link).unwrap();
        assert!(ignores("secret"));
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("../outside", &link).unwrap();
        assert!(!ignores("secret"));
    }

    #[test]
    fn the_ignore_file_of_the_dockerfile_comes_first_where_it_is_known() {
        let tree = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(tree.path().join(name), text).unwrap();
        write(DOCKERFILE, "FROM scratch\n");
        write(IGNORE_FILE, "general\n");
        write(OWN_IGNORE_FILE, "own\n");
        let context = Context::open(tree.path(), 0, CancellationToken::new()).unwrap();
        let (buildah, _) = context.buildah_filter().unwrap();
        let classic = context.classic_filter().unwrap();
        for (filter, ignored, kept) in [(buildah, "own", "general"), (classic, "general", "own")] {
            let ignores = |path| filter.excludes.ignores(path, &Inherited::default()).0;
            assert!(ignores(ignored) && !ignores(kept));
        }
    }

    #[test]
    fn buildah_is_told_what_to_leave_out_where_it_would_read_an_ignore_file() {
        let excludes = |name: &str, text: &str| {
            let tree = tempfile::tempdir().unwrap();
            for (name, text) in [(DOCKERFILE, "FROM scratch\n"), (name, text)] {
                fs::write(tree.path().join(name), text).unwrap();
            }
            let context = Context::open(tree.path(), 0, CancellationToken::new()).unwrap();
            context.buildah_filter().unwrap().1
        };
        assert_eq!(excludes("file", ""), None);
        for name in BUILDAH_IGNORE_FILES {
            let told = Some(r#"["Dockerfile/Dockerfile"]"#.to_owned());
            assert_eq!(excludes(name, "file\n"), told, "{name}");
        }
        let told = Some(r#"["Dockerfile/Dockerfile","Dockerfile"]"#.to_owned());
        assert_eq!(excludes(IGNORE_FILE, "Docker*\n"), told);
        assert_eq!(excludes(OWN_IGNORE_FILE, "Dockerfile\n"), told);
    }
}
