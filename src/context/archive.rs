//! The context as one tar archive, for the classic builder and Buildah.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::context::walk::{Entry, Filter, Kind, walk};
use crate::context::{Context, Sent};

/// The size of the chunks that are sent to the engine.
const CHUNK: usize = 256 * 1024;

/// The most chunks that are buffered until the engine reads them.
const CHUNKS_AHEAD: usize = 4;

impl Context {
    /// The archive of the files that pass `filter`. It is written on a blocking thread, which ends when the stream is
    /// dropped; `tasks` counts the thread until then.
    pub(crate) fn archive(
        self: Arc<Self>,
        filter: Filter,
        tasks: &TaskTracker,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let out = ChunkWriter {
            sender: sender.clone(),
            buffer: BytesMut::with_capacity(CHUNK),
            sent: Arc::clone(&self.sent),
        };
        let written = self.send(tasks, move |context| context.write(&filter, out));
        tasks.spawn(async move {
            if let Err(error) = written.await {
                // If the build has ended, the error has no receiver, and does not matter.
                let _ = sender.send(Err(error)).await;
            }
        });
        futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        })
    }

    fn write(&self, filter: &Filter, out: ChunkWriter) -> io::Result<()> {
        let mut archive = tar::Builder::new(out);
        walk(&self.tree, filter, &mut |entry| {
            self.append(&mut archive, &entry)
        })?;
        archive.into_inner()?.send()
    }

    fn append(&self, archive: &mut tar::Builder<ChunkWriter>, entry: &Entry<'_>) -> io::Result<()> {
        point!("context-file");
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.kind.mode());
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.time);
        header.set_size(0);
        match &entry.kind {
            Kind::Folder => {
                header.set_entry_type(tar::EntryType::Directory);
                return archive.append_data(&mut header, entry.path, io::empty());
            }
            Kind::Link { target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                // The literal target. `append_link` writes `/` as `//`, but supports long targets.
                match header.set_link_name_literal(target.as_os_str().as_bytes()) {
                    Ok(()) => archive.append_data(&mut header, entry.path, io::empty())?,
                    Err(_) => archive.append_link(&mut header, entry.path, target)?,
                }
            }
            Kind::File { size, .. } => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(*size);
                let mut file = fs::File::open(self.tree.join(entry.path))?.take(*size);
                archive.append_data(&mut header, entry.path, &mut file)?;
                // The tar crate does not notice a file that is shorter than its header says, and the entries after it
                // would be misread.
                if file.limit() > 0 {
                    let path = entry.path.display();
                    return Err(io::Error::other(format!(
                        "{path} changed while it was sent"
                    )));
                }
            }
        }
        self.sent.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Splits the archive into chunks for the engine, and blocks while the engine is slow.
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
    use std::path::Path;

    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn an_archive_is_sent_in_large_chunks() {
        let (sender, mut receiver) = mpsc::channel(CHUNKS_AHEAD);
        let sent = Arc::new(Sent::default());
        let mut out = ChunkWriter {
            sender,
            buffer: BytesMut::new(),
            sent: Arc::clone(&sent),
        };
        for _ in 0..CHUNK / 1024 + 1 {
            out.write_all(&[0; 1024]).unwrap();
        }
        out.send().unwrap();
        drop(out);
        let mut lengths = Vec::new();
        while let Some(chunk) = receiver.blocking_recv() {
            lengths.push(chunk.unwrap().len());
        }
        assert_eq!(lengths, [CHUNK, 1024]);
        let bytes = sent.bytes.load(Ordering::Relaxed);
        assert_eq!(bytes, CHUNK as u64 + 1024);
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("Dockerfile"), "FROM scratch\n").unwrap();
        fs::write(tree.path().join("file"), "12345").unwrap();
        let context = Context::open(tree.path(), 0, CancellationToken::new()).unwrap();
        for (size, complete) in [(3, true), (5, true), (6, false), (600, false)] {
            let (sender, _receiver) = mpsc::channel(CHUNKS_AHEAD);
            let mut archive = tar::Builder::new(ChunkWriter {
                sender,
                buffer: BytesMut::new(),
                sent: Arc::default(),
            });
            let entry = Entry {
                path: Path::new("file"),
                kind: Kind::File {
                    size,
                    executable: false,
                },
            };
            let end = context.append(&mut archive, &entry);
            assert_eq!(end.is_ok(), complete, "{size}: {end:?}");
        }
    }
}
