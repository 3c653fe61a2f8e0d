//! The build context: the files of a template that a builder gets.
//!
//! It is the same as what the docker CLI sends for a clean checkout: owner 0:0, git's two modes, symbolic links as
//! links, and only folders that git keeps. Files are read while they are sent: only a few chunks are in memory,
//! whatever the size of the template (promise P9).
//!
//! The classic builder and Buildah get one [`archive`]. BuildKit asks for files over a session, and says which ones to
//! leave out; the engine's build session answers it.

mod archive;
mod dockerfile;
mod dockerignore;
mod include;
mod stop;
mod walk;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use dockerfile::{DOCKER_HUB, Dockerfile, fraction, registry};
pub(crate) use dockerignore::Patterns;
pub(crate) use include::Includes;
pub(crate) use stop::Stop;
pub(crate) use walk::{Filter, Kind, walk};

use crate::error::{Code, Error, Result};
use crate::process::executor::blocking;
use crate::process::limits;
use crate::process::outside_file;

/// The Dockerfile, at the root of the tree.
pub(crate) const DOCKERFILE: &str = "Dockerfile";

/// The ignore file, and the one for this Dockerfile, which takes precedence where a builder supports it.
const IGNORE_FILE: &str = ".dockerignore";
const OWN_IGNORE_FILE: &str = "Dockerfile.dockerignore";

/// All names that Buildah accepts for an ignore file. Podman 4.3 looks for the Dockerfile's own one first, 5.4 and
/// 5.8 look for it last.
const BUILDAH_IGNORE_FILES: [&str; 4] = [
    OWN_IGNORE_FILE,
    "Dockerfile.containerignore",
    ".containerignore",
    IGNORE_FILE,
];

/// The largest Dockerfile. Long ones written by hand have a few tens of KiB, generated ones a few hundred. It is read
/// as a whole, as in BuildKit, which rejects a line of 64 KiB.
const MAX_DOCKERFILE: usize = 1 << 20;

/// The largest ignore file, and the most patterns in it. Long ones have a few hundred patterns and a few tens of KiB.
/// Each path of the template is matched against each pattern, and BuildKit sends all patterns back in the headers of
/// a request, whose size it and gRPC limit.
pub(crate) const MAX_IGNORE_FILE: usize = 256 << 10;
pub(crate) const MAX_PATTERNS: usize = 10_000;

/// A checked-out tree that is ready to be sent.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) tree: PathBuf,
    /// The modification time of every entry, in seconds since 1970.
    pub(crate) time: u64,
    pub(crate) sent: Arc<Sent>,
    /// Why the context could not be sent. It is reported instead of the error that the engine derives from it.
    pub(crate) failure: OnceLock<Error>,
    /// Set when the build has ended in any way, to stop the threads that still send.
    pub(crate) stop: Stop,
}

/// The name of the template in errors.
pub(crate) fn template_name(tree: &Path) -> String {
    format!("the template in {}", tree.display())
}

/// What one attempt to build has sent so far.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) files: AtomicU64,
    pub(crate) bytes: AtomicU64,
    complete: AtomicBool,
    /// Cancelled when an attempt has sent everything that the engine needs.
    received: CancellationToken,
}

impl Sent {
    /// Resets the counters for a new attempt. A thread of the attempt before may still add one chunk.
    pub(crate) fn begin(&self) {
        self.files.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.complete.store(false, Ordering::Relaxed);
    }

    /// Records that the engine has received everything that it needs.
    pub(crate) fn set_complete(&self) {
        self.complete.store(true, Ordering::Relaxed);
        self.received.cancel();
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }
}

impl Context {
    /// Checks that the tree can be built: it has a Dockerfile, and neither that nor an ignore file is too large.
    /// `received` is cancelled when the engine has received everything that it needs. Call it on a blocking thread:
    /// it reads files.
    ///
    /// # Errors
    ///
    /// [`Code::NoDockerfile`]; [`Code::BuildFailed`] if one of the files cannot be used; [`Code::Cache`] if the tree
    /// cannot be read; [`Code::ProcessLimit`].
    pub(crate) fn open(tree: &Path, commit_time: i64, received: CancellationToken) -> Result<Self> {
        let found = |name| look(tree, name).map_err(|error| cannot_be_read(tree, &error));
        match found(DOCKERFILE)? {
            Found::File(file) => {
                read(&file, MAX_DOCKERFILE).map_err(|error| unreadable(DOCKERFILE, &error))?;
            }
            Found::Outside => {
                return Err(no_dockerfile(
                    "its Dockerfile is a link to a path outside of it",
                ));
            }
            Found::Other => return Err(no_dockerfile("its Dockerfile is a folder, not a file")),
            Found::Nothing => return Err(no_dockerfile("it has no Dockerfile at its root")),
        }
        for name in [IGNORE_FILE, OWN_IGNORE_FILE] {
            if let Found::File(file) = found(name)? {
                read_patterns(&file).map_err(|error| unreadable(name, &error))?;
            }
        }
        Ok(Self {
            tree: tree.to_owned(),
            time: u64::try_from(commit_time).unwrap_or(0),
            sent: Arc::new(Sent {
                received,
                ..Sent::default()
            }),
            failure: OnceLock::new(),
            stop: Stop::default(),
        })
    }

    /// Starts to send a part of the context on a blocking thread. An error or a panic is returned by the future, and
    /// stored as the failure, unless the engine has closed the connection.
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
                // The engine has closed the connection, and reports the reason itself.
                Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(error);
                }
                Ok(Err(error)) => cannot_be_read(&context.tree, &error),
                Err(error) => error,
            };
            let returned = io::Error::other(error.clone());
            // Only the first error is the cause.
            let _ = context.failure.set(error);
            Err(returned)
        }
    }

    /// The parsed Dockerfile; empty if it cannot be read. A process limit is stored as the failure, because it would
    /// otherwise show only as a missing login.
    pub(crate) fn dockerfile(&self, build_args: &HashMap<String, String>) -> Dockerfile {
        let text = look(&self.tree, DOCKERFILE).and_then(|found| match found {
            Found::File(file) => read(&file, MAX_DOCKERFILE),
            _ => Ok(String::new()),
        });
        let text = text.unwrap_or_else(|error| {
            if let Some(limit) = limits::reached(&error) {
                let _ = self.failure.set(limit);
            }
            String::new()
        });
        Dockerfile::parse(&text, build_args)
    }

    /// The files that the docker CLI sends to the classic builder, which does not support `Dockerfile.dockerignore`.
    /// The Dockerfile and the ignore file are sent even if they are ignored: the builder reads them, and then leaves
    /// them out of the context itself.
    pub(crate) fn classic_filter(&self) -> Result<Filter> {
        self.filter(&[DOCKERFILE, IGNORE_FILE], &[IGNORE_FILE])
    }

    /// The files that are sent to Buildah, and its parameter `excludes` in JSON: the patterns to leave out of them.
    /// With that parameter, Buildah reads no ignore file. It is `None` if the tree has no ignore file.
    pub(crate) fn buildah_filter(&self) -> Result<(Filter, Option<String>)> {
        let filter = self.filter(&[DOCKERFILE], &[OWN_IGNORE_FILE, IGNORE_FILE])?;
        // A folder with such a name is an error, which Buildah reports.
        let mut exists = false;
        for name in BUILDAH_IGNORE_FILES {
            exists |= matches!(self.look(name)?, Found::File(_) | Found::Outside);
        }
        if !exists {
            return Ok((filter, None));
        }
        // Buildah ignores an empty list. This pattern matches nothing, because a file has no entries.
        let mut excludes = vec![format!("{DOCKERFILE}/{DOCKERFILE}")];
        let top = dockerignore::Inherited::default();
        if filter.excludes.ignores(DOCKERFILE, &top).0 {
            excludes.push(DOCKERFILE.to_owned());
        }
        let excludes = serde_json::Value::from(excludes).to_string();
        Ok((filter, Some(excludes)))
    }

    /// A filter with the patterns of the first ignore file that exists. The files in `always` are sent in any case.
    fn filter(&self, always: &'static [&str], ignore_files: &[&str]) -> Result<Filter> {
        let mut filter = Filter {
            always,
            stop: self.stop.clone(),
            ..Filter::default()
        };
        for name in ignore_files {
            if let Found::File(file) = self.look(name)? {
                let text = read_patterns(&file).map_err(|error| unreadable(name, &error))?;
                filter.excludes = Patterns::parse(&text).map_err(|why| unusable(name, &why))?;
                break;
            }
        }
        Ok(filter)
    }

    fn look(&self, name: &str) -> Result<Found> {
        look(&self.tree, name).map_err(|error| cannot_be_read(&self.tree, &error))
    }
}

/// What a name at the root of a tree refers to.
enum Found {
    /// A file in the tree. If the name is a link, the path is that of its target.
    File(PathBuf),
    /// A link to a path outside of the tree, which is not part of the commit.
    Outside,
    Other,
    Nothing,
}

/// Looks up a name at the root of a tree. Links within the tree are followed, as in the docker CLI.
///
/// # Errors
///
/// I/O errors that the template did not cause, such as a tree that was removed.
fn look(tree: &Path, name: &str) -> io::Result<Found> {
    let place = tree.join(name);
    let found = fs::canonicalize(&place).and_then(|path| {
        let inside = path.starts_with(fs::canonicalize(tree)?);
        let found = fs::metadata(&path)?;
        Ok((inside, found, path))
    });
    let error = match found {
        Ok((false, ..)) => return Ok(Found::Outside),
        Ok((true, found, path)) if found.is_file() => return Ok(Found::File(path)),
        Ok(_) => return Ok(Found::Other),
        Err(error) => error,
    };
    fs::metadata(tree)?;
    match Errno::from_io_error(&error) {
        // Also a link to what does not or cannot exist.
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(Found::Nothing),
        // This user may look into every folder of the tree, so the link leads out of it.
        Some(Errno::ACCESS) if fs::symlink_metadata(&place)?.is_symlink() => Ok(Found::Outside),
        _ => Err(error),
    }
}

/// The text of a file of at most `max` bytes.
fn read(file: &Path, max: usize) -> io::Result<String> {
    let text = outside_file::read(file, max)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The text of an ignore file, within the limits.
fn read_patterns(file: &Path) -> io::Result<String> {
    let text = read(file, MAX_IGNORE_FILE)?;
    match dockerignore::pattern_lines(&text).count() {
        ..=MAX_PATTERNS => Ok(text),
        count => Err(io::Error::other(format!(
            "it has {count} patterns, and {MAX_PATTERNS} are allowed"
        ))),
    }
}

fn cannot_be_read(tree: &Path, error: &io::Error) -> Error {
    limits::reached(error).unwrap_or_else(|| {
        let tree = tree.display();
        Error::new(
            Code::Cache,
            format!("the template cannot be read from {tree}: {error}"),
        )
        .hint("check whether something removes files from the cache, and try again")
    })
}

fn unreadable(name: &str, error: &io::Error) -> Error {
    limits::reached(error).unwrap_or_else(|| unusable(name, &error.to_string()))
}

fn unusable(name: &str, why: &str) -> Error {
    Error::new(
        Code::BuildFailed,
        format!("the template's {name} cannot be used: {why}"),
    )
    .hint("fix it in the template repository")
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
    use super::*;
    use crate::context::dockerignore::Inherited;

    fn context() -> (tempfile::TempDir, Context) {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join(DOCKERFILE), "FROM a.example/x\n").unwrap();
        let context = Context::open(tree.path(), 0, CancellationToken::new()).unwrap();
        (tree, context)
    }

    #[test]
    fn a_template_is_named_by_its_folder() {
        assert_eq!(template_name(Path::new("/a")), "the template in /a");
    }

    #[test]
    fn what_an_attempt_has_sent_is_counted_anew() {
        let (tree, _) = context();
        let received = CancellationToken::new();
        let context = Context::open(tree.path(), 0, received.clone()).unwrap();
        let sent = &context.sent;
        sent.files.store(1, Ordering::Relaxed);
        sent.bytes.store(2, Ordering::Relaxed);
        assert!(!sent.is_complete() && !received.is_cancelled());
        sent.set_complete();
        assert!(sent.is_complete() && received.is_cancelled());
        sent.begin();
        let counts = [&sent.files, &sent.bytes].map(|count| count.load(Ordering::Relaxed));
        assert_eq!((counts, sent.is_complete()), ([0, 0], false));
    }

    #[test]
    fn a_filter_keeps_what_the_builder_reads_and_stops_with_the_context() {
        let (_tree, context) = context();
        let filters = [
            context.classic_filter().unwrap(),
            context.buildah_filter().unwrap().0,
        ];
        drop(context.stop.on_drop());
        for filter in filters {
            assert!(filter.always.contains(&DOCKERFILE));
            assert!(filter.stop.is_set());
        }
    }

    #[test]
    fn the_dockerfile_is_empty_if_the_tree_is_gone() {
        let (tree, context) = context();
        let registries = || context.dockerfile(&HashMap::new()).registries().len();
        assert_eq!(registries(), 1);
        drop(tree);
        assert_eq!(registries(), 0);
    }

    #[test]
    fn only_an_error_of_the_tree_is_stored_as_the_failure() {
        for (kind, stored) in [
            (io::ErrorKind::BrokenPipe, false),
            (io::ErrorKind::PermissionDenied, true),
        ] {
            let (_tree, context) = context();
            let context = Arc::new(context);
            let end = crate::process::executor::block_on(async {
                let sending = context.send(&TaskTracker::new(), move |_| Err(kind.into()));
                sending.await
            });
            assert!(end.is_err());
            assert_eq!(context.failure.get().is_some(), stored, "{kind:?}");
        }
    }

    #[test]
    fn an_ignore_file_link_is_followed_only_within_the_tree() {
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
    fn a_removed_tree_is_a_cache_error_not_a_missing_dockerfile() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let refused = || Context::open(&tree, 0, CancellationToken::new()).unwrap_err();
        let error = refused();
        assert_eq!(error.code, Code::Cache, "{error:?}");
        assert!(error.hint.contains("removes files"), "{error:?}");

        fs::create_dir(&tree).unwrap();
        assert_eq!(refused().code, Code::NoDockerfile);
        fs::write(tree.join("file"), "").unwrap();
        let long = "x".repeat(300);
        for target in ["nowhere", DOCKERFILE, "file/below", &long] {
            let link = tree.join(DOCKERFILE);
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert_eq!(refused().code, Code::NoDockerfile, "{target}");
            fs::remove_file(link).unwrap();
        }

        fs::write(tree.join(DOCKERFILE), "FROM scratch\n").unwrap();
        let context = Context::open(&tree, 0, CancellationToken::new()).unwrap();
        fs::remove_dir_all(&tree).unwrap();
        assert_eq!(context.classic_filter().unwrap_err().code, Code::Cache);
        assert_eq!(context.buildah_filter().unwrap_err().code, Code::Cache);
    }

    #[test]
    fn every_line_that_is_a_pattern_counts_towards_the_limit() {
        let tree = tempfile::tempdir().unwrap();
        let file = tree.path().join(IGNORE_FILE);
        for (line, count, accepted) in [
            (" #a\n", MAX_PATTERNS, true),
            (" #a\n", MAX_PATTERNS + 1, false),
            ("#a\n", MAX_PATTERNS + 1, true),
            (" \n", MAX_PATTERNS + 1, true),
        ] {
            fs::write(&file, line.repeat(count)).unwrap();
            assert_eq!(
                read_patterns(&file).is_ok(),
                accepted,
                "{count} of {line:?}"
            );
        }
    }

    #[test]
    fn dockerfile_dockerignore_takes_precedence_where_supported() {
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
    fn buildah_gets_excludes_when_the_tree_has_an_ignore_file() {
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
            let expected = Some(r#"["Dockerfile/Dockerfile"]"#.to_owned());
            assert_eq!(excludes(name, "file\n"), expected, "{name}");
        }
        let expected = Some(r#"["Dockerfile/Dockerfile","Dockerfile"]"#.to_owned());
        assert_eq!(excludes(IGNORE_FILE, "Docker*\n"), expected);
        assert_eq!(excludes(OWN_IGNORE_FILE, "Dockerfile\n"), expected);
    }
}
