//! Step six, first half: the build context, as the archive that the engine reads.
//!
//! The archive is made while it is sent: what is in memory at any time is a few chunks, whatever the
//! size of the template (promise P9). It holds what the docker CLI would send of a clean checkout:
//! owner 0:0, git's two modes, links as links, no empty folder that git would not keep.

mod dockerignore;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use tokio::sync::mpsc;

use crate::error::{Code, Error, Result};
use dockerignore::{Inherited, Patterns};

/// The file with the build's instructions, at the root of the tree.
pub(crate) const DOCKERFILE: &str = "Dockerfile";

/// How much goes to the engine at once.
const CHUNK: usize = 256 * 1024;

/// How many chunks may wait for the engine to read them.
const CHUNKS_AHEAD: usize = 4;

/// A checked-out tree, ready to be sent.
#[derive(Debug)]
pub(crate) struct Context {
    tree: PathBuf,
    ignore: Patterns,
    /// The time of every entry, in seconds since 1970.
    time: u64,
    sent: Arc<Sent>,
}

/// How much was sent so far.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) files: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

impl Context {
    /// Checks that the tree can be built: there is a Dockerfile, and what is to be ignored is clear.
    pub(crate) fn open(tree: &Path, commit_time: i64) -> Result<Self> {
        match look(tree, DOCKERFILE) {
            Found::File => {}
            Found::Outside => {
                return Err(no_dockerfile(
                    "its Dockerfile is a link that leads out of it",
                ));
            }
            Found::Other => return Err(no_dockerfile("its Dockerfile is a folder, not a file")),
            Found::Nothing => return Err(no_dockerfile("it has no Dockerfile at its root")),
        }
        Ok(Self {
            tree: tree.to_owned(),
            ignore: read_ignore_file(tree)?,
            time: u64::try_from(commit_time).unwrap_or(0),
            sent: Arc::default(),
        })
    }

    /// How much was sent so far, to be looked at while the archive is read.
    pub(crate) fn sent(&self) -> Arc<Sent> {
        Arc::clone(&self.sent)
    }

    /// The archive. It is made on a blocking thread, which ends when the stream is dropped.
    pub(crate) fn archive(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        tokio::task::spawn_blocking(move || {
            let out = ChunkWriter {
                sender: sender.clone(),
                buffer: BytesMut::with_capacity(CHUNK),
                sent: Arc::clone(&self.sent),
            };
            if let Err(error) = self.write(out) {
                // Nobody listens any more if the build has ended; then nothing is lost.
                let _ = sender.blocking_send(Err(error));
            }
        });
        futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        })
    }

    fn write(&self, out: ChunkWriter) -> io::Result<()> {
        let mut archive = tar::Builder::new(out);
        archive.mode(tar::HeaderMode::Deterministic);
        let mut walk = Walk {
            context: self,
            archive: &mut archive,
            pending: Vec::new(),
        };
        walk.folder(Path::new(""), &Inherited::default())?;
        archive.into_inner()?.finish()
    }
}

/// What stands under a name at the root of a tree.
enum Found {
    File,
    /// A link that leads out of the tree: what it leads to is not the commit's.
    Outside,
    Other,
    Nothing,
}

/// Links within the tree are followed, as the docker CLI follows them.
fn look(tree: &Path, name: &str) -> Found {
    let found = fs::canonicalize(tree.join(name)).and_then(|path| {
        let inside = path.starts_with(fs::canonicalize(tree)?);
        Ok((inside, fs::metadata(path)?))
    });
    match found {
        Ok((false, _)) => Found::Outside,
        Ok((true, found)) if found.is_file() => Found::File,
        Ok(_) => Found::Other,
        Err(_) => Found::Nothing,
    }
}

fn no_dockerfile(what: &str) -> Error {
    Error::new(
        Code::NoDockerfile,
        format!("the template cannot be built: {what}"),
    )
    .hint("add a file named Dockerfile to the root of the template repository")
}

/// The ignore file that belongs to the Dockerfile, else the one of the context, as BuildKit has it.
fn read_ignore_file(tree: &Path) -> Result<Patterns> {
    for name in ["Dockerfile.dockerignore", ".dockerignore"] {
        if !matches!(look(tree, name), Found::File) {
            continue;
        }
        let wrong = |why: String| {
            Error::new(
                Code::BuildFailed,
                format!("the template's {name} cannot be used: {why}"),
            )
            .hint("mend it in the template repository")
        };
        let text = fs::read(tree.join(name)).map_err(|error| wrong(error.to_string()))?;
        return Patterns::parse(&String::from_utf8_lossy(&text)).map_err(wrong);
    }
    Ok(Patterns::default())
}

/// One pass over the tree, in the order of names, so that the same tree gives the same archive.
struct Walk<'a> {
    context: &'a Context,
    archive: &'a mut tar::Builder<ChunkWriter>,
    /// Ignored folders on the way down: they are sent only if something in them is kept.
    pending: Vec<PathBuf>,
}

impl Walk<'_> {
    fn folder(&mut self, relative: &Path, inherited: &Inherited) -> io::Result<()> {
        let mut entries =
            fs::read_dir(self.context.tree.join(relative))?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = relative.join(entry.file_name());
            let (ignored, matched) = self
                .context
                .ignore
                .ignores(&path.to_string_lossy(), inherited);
            let is_folder = entry.file_type()?.is_dir();
            // The Dockerfile is always sent: without it there is no build.
            if ignored && !is_folder && path != Path::new(DOCKERFILE) {
                continue;
            }
            if is_folder {
                if ignored && !self.context.ignore.has_exceptions() {
                    continue;
                }
                self.pending.push(path.clone());
                if !ignored {
                    self.send_pending()?;
                }
                self.folder(&path, &matched)?;
                if self.pending.last() == Some(&path) {
                    self.pending.pop();
                }
            } else {
                self.send_pending()?;
                self.entry(&path)?;
            }
        }
        Ok(())
    }

    fn send_pending(&mut self) -> io::Result<()> {
        for folder in std::mem::take(&mut self.pending) {
            let mut header = self.header(tar::EntryType::Directory, 0o755, 0);
            self.archive
                .append_data(&mut header, &folder, io::empty())?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path) -> io::Result<()> {
        let full = self.context.tree.join(path);
        let found = fs::symlink_metadata(&full)?;
        if found.is_symlink() {
            let target = fs::read_link(&full)?;
            let mut header = self.header(tar::EntryType::Symlink, 0o777, 0);
            self.archive.append_link(&mut header, path, target)?;
        } else if found.is_file() {
            // Git knows two modes; what the umask of this process made of them must not show.
            let executable = found.permissions().mode() & 0o111 != 0;
            let mode = if executable { 0o755 } else { 0o644 };
            let mut header = self.header(tar::EntryType::Regular, mode, found.len());
            let file = fs::File::open(&full)?.take(found.len());
            self.archive.append_data(&mut header, path, file)?;
        } else {
            return Err(io::Error::other(format!(
                "{} is neither a file nor a link",
                String::from_utf8_lossy(path.as_os_str().as_bytes())
            )));
        }
        self.context.sent.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn header(&self, kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.context.time);
        header
    }
}

/// Cuts what the archive writes into chunks for the engine, and waits when the engine is slow.
struct ChunkWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
    sent: Arc<Sent>,
}

impl ChunkWriter {
    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = self.buffer.split().freeze();
        self.sent
            .bytes
            .fetch_add(chunk.len() as u64, Ordering::Relaxed);
        self.sender
            .blocking_send(Ok(chunk))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }

    fn finish(mut self) -> io::Result<()> {
        self.send()
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= CHUNK {
            self.send()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignores(tree: &Path, path: &str) -> bool {
        let context = Context::open(tree, 0).unwrap();
        context.ignore.ignores(path, &Inherited::default()).0
    }

    #[test]
    fn an_ignore_file_is_read_through_a_link_but_not_out_of_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join(DOCKERFILE), "FROM scratch\n").unwrap();
        fs::write(tree.join("inside"), "secret\n").unwrap();
        fs::write(dir.path().join("outside"), "secret\n").unwrap();
        let link = tree.join(".dockerignore");

        std::os::unix::fs::symlink("inside", &link).unwrap();
        assert!(ignores(&tree, "secret"));
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("../outside", &link).unwrap();
        assert!(!ignores(&tree, "secret"));
    }

    #[test]
    fn the_ignore_file_of_the_dockerfile_comes_first() {
        let tree = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(tree.path().join(name), text).unwrap();
        write(DOCKERFILE, "FROM scratch\n");
        write(".dockerignore", "general\n");
        write("Dockerfile.dockerignore", "own\n");
        assert!(ignores(tree.path(), "own"));
        assert!(!ignores(tree.path(), "general"));
    }
}
