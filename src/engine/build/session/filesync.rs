//! `moby.filesync.v1.FileSync/DiffCopy`: sends BuildKit those files of the template that it does not have.
//!
//! This is the sender of fsutil's protocol. It lists every entry in order; the receiver requests files by their
//! numbers, also while the list is being sent, and confirms when it has all of them. Written by hand, because fsutil
//! (github.com/tonistiigi/fsutil) is a Go package, and no Rust crate implements its sender.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use percent_encoding::percent_decode_str;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::context::{Context, Filter, Includes, Kind, Patterns, walk};
use crate::engine::build::session::wire::{MODE_DIR, MODE_SYMLINK, Packet, Stat};
use crate::process;
use bollard_buildkit_proto::fsutil::types::packet::PacketType;

/// BuildKit's names for the folder with the Dockerfile, and for the one with the other files. Both are the
/// template.
const DOCKERFILE_DIR: &str = "dockerfile";
const CONTEXT_DIR: &str = "context";

/// The bytes of a file in one message. The receiver refuses messages over 16 MiB.
const CHUNK: usize = 128 * 1024;

/// How many messages are queued for the engine.
const QUEUE: usize = 64;

type Out = mpsc::Sender<Result<Packet, Status>>;

/// Serves one `DiffCopy` request.
pub(super) async fn diff_copy(
    context: Arc<Context>,
    tasks: TaskTracker,
    permit: OwnedSemaphorePermit,
    request: Request<Streaming<Packet>>,
) -> Result<Response<impl Stream<Item = Result<Packet, Status>>>, Status> {
    let sync = SyncRequest::read(request.metadata())?;
    let requests = request.into_inner();
    let (out, receiver) = mpsc::channel(QUEUE);
    let spawner = tasks.clone();
    tasks.spawn(async move {
        let _permit = permit;
        if let Err(status) = copy(context, sync, requests, &out, &spawner).await {
            // Fails if the build has ended.
            let _ = out.send(Err(status)).await;
        }
    });
    let packets = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|packet| (packet, receiver))
    });
    Ok(Response::new(packets))
}

/// The metadata of a request.
struct SyncRequest {
    dir: String,
    includes: Vec<String>,
    excludes: Patterns,
    follow: Vec<String>,
}

impl SyncRequest {
    /// Whether it is for the template's files. Before them, BuildKit requests the ignore file alone, with the
    /// same folder name.
    fn is_context(&self) -> bool {
        let mut names = self.includes.iter().chain(&self.follow).peekable();
        let has_names = names.peek().is_some();
        let only_ignore_file = has_names && names.all(|name| name.ends_with(".dockerignore"));
        self.dir == CONTEXT_DIR && !only_ignore_file
    }

    fn read(metadata: &MetadataMap) -> Result<Self, Status> {
        let sync = Self {
            dir: values(metadata, "dir-name").pop().unwrap_or_default(),
            includes: values(metadata, "include-patterns"),
            excludes: Patterns::new(values(metadata, "exclude-patterns"))
                .map_err(Status::invalid_argument)?,
            follow: values(metadata, "followpaths"),
        };
        if sync.dir != DOCKERFILE_DIR && sync.dir != CONTEXT_DIR {
            let name: String = sync.dir.chars().take(100).collect();
            let message = format!("the session has no folder {name:?}");
            return Err(Status::not_found(message));
        }
        Ok(sync)
    }

    fn filter(self, context: &Context) -> io::Result<Filter> {
        Ok(Filter {
            includes: Includes::new(&context.tree, &self.includes, &self.follow, &context.stop)?,
            excludes: self.excludes,
            always: &[],
            stop: context.stop.clone(),
        })
    }
}

/// The values of a key. If the key `{key}-encoded` is 1, they are encoded like a query string.
fn values(metadata: &MetadataMap, key: &str) -> Vec<String> {
    let encoded = metadata
        .get(format!("{key}-encoded"))
        .is_some_and(|flag| flag == "1");
    let value = |value: &tonic::metadata::AsciiMetadataValue| {
        let bytes = value.as_encoded_bytes();
        let text = String::from_utf8_lossy(bytes).into_owned();
        match encoded {
            true => percent_decode_str(&text.replace('+', " "))
                .decode_utf8_lossy()
                .into_owned(),
            false => text,
        }
    };
    metadata.get_all(key).iter().map(value).collect()
}

async fn copy(
    context: Arc<Context>,
    sync: SyncRequest,
    mut requests: Streaming<Packet>,
    out: &Out,
    tasks: &TaskTracker,
) -> Result<(), Status> {
    let files = Arc::new(Files::default());
    // Bounded by the number of files: each can be requested once.
    let (requested, queue) = mpsc::unbounded_channel();

    let is_context = sync.is_context();
    let list = context.send(tasks, {
        let (files, out) = (Arc::clone(&files), out.clone());
        move |context| send_list(context, sync, &files, &out)
    });
    let contents = context.send(tasks, {
        let (files, out) = (Arc::clone(&files), out.clone());
        move |context| send_contents(context, queue, &files, &out)
    });

    let serve = async {
        while let Some(packet) = requests.next().await {
            let packet = packet?;
            match packet.kind() {
                PacketType::PacketReq => {
                    files.request(packet.id)?;
                    // Fails if `contents` has failed, which is reported below.
                    let _ = requested.send(packet.id);
                }
                PacketType::PacketFin => {
                    if is_context {
                        context.sent.set_complete();
                    }
                    let _ = out.send(Ok(message(PacketType::PacketFin))).await;
                    break;
                }
                PacketType::PacketErr => {
                    let why = &packet.data[..packet.data.len().min(1000)];
                    let why = String::from_utf8_lossy(why).into_owned();
                    return Err(Status::aborted(why));
                }
                PacketType::PacketStat | PacketType::PacketData => {
                    return Err(Status::invalid_argument(
                        "unexpected packet from the receiver",
                    ));
                }
            }
        }
        drop(requested);
        Ok(())
    };
    let done = async {
        status(list.await)?;
        status(contents.await)
    };
    futures_util::future::try_join(serve, done).await.map(drop)
}

fn status(result: io::Result<()>) -> Result<(), Status> {
    match result {
        // The engine closed the stream.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Status::internal(error.to_string())),
        Ok(()) => Ok(()),
    }
}

/// The listed entries by their numbers, and which of them may still be requested.
///
/// A tree may have 500,000 files, with paths of kilobytes. So each entry has only its name and its folder.
#[derive(Default)]
struct Files(Mutex<List>);

#[derive(Default)]
struct List {
    entries: Vec<Entry>,
    /// The names, concatenated.
    names: Vec<u8>,
    /// The folder of the last entry and its ancestors, outermost first, by their numbers.
    folders: Vec<u32>,
    /// The path of the last entry's folder.
    path: PathBuf,
}

struct Entry {
    /// The number of its folder; `None` at the root.
    folder: Option<u32>,
    /// The end of its name in [`List::names`]. The name starts at the end of the previous one.
    end: usize,
    /// It is a file, and was not requested yet.
    can_request: bool,
}

impl List {
    fn add(&mut self, path: &Path, is_file: bool) {
        let parent = path.parent().unwrap_or(Path::new(""));
        if parent != self.path {
            // Go up to the common folder. If the entry is in a new folder, that is the previous entry.
            let depth = parent.components().count();
            self.folders.truncate(depth);
            if self.folders.len() < depth {
                let last = u32::try_from(self.entries.len()).unwrap_or(0);
                self.folders.push(last.saturating_sub(1));
            }
            self.path = parent.to_owned();
        }
        let name = path.file_name().unwrap_or_default();
        self.names.extend_from_slice(name.as_bytes());
        self.entries.push(Entry {
            folder: self.folders.last().copied(),
            end: self.names.len(),
            can_request: is_file,
        });
    }

    fn path(&self, id: u32) -> PathBuf {
        let mut names = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            let index = id as usize;
            let Some(entry) = self.entries.get(index) else {
                break;
            };
            let before = index
                .checked_sub(1)
                .and_then(|before| self.entries.get(before));
            let name = &self.names[before.map_or(0, |before| before.end)..entry.end];
            names.push(OsStr::from_bytes(name));
            next = entry.folder;
        }
        names.iter().rev().collect()
    }
}

impl Files {
    fn add(&self, path: &Path, is_file: bool) {
        self.list().add(path, is_file);
    }

    /// Marks a file as requested.
    ///
    /// # Errors
    ///
    /// If the number is not that of a file, or was requested before.
    fn request(&self, id: u32) -> Result<(), Status> {
        let mut list = self.list();
        match list.entries.get_mut(id as usize) {
            Some(entry) if entry.can_request => {
                entry.can_request = false;
                Ok(())
            }
            _ => Err(Status::invalid_argument(format!(
                "{id} is not a file that can be requested"
            ))),
        }
    }

    fn path(&self, id: u32) -> PathBuf {
        self.list().path(id)
    }

    fn list(&self) -> MutexGuard<'_, List> {
        process::lock(&self.0)
    }
}

/// Lists every entry.
fn send_list(context: &Context, sync: SyncRequest, files: &Files, out: &Out) -> io::Result<()> {
    let is_context = sync.is_context();
    let filter = sync.filter(context)?;
    let mod_time = i64::try_from(context.time.saturating_mul(1_000_000_000)).unwrap_or_default();
    walk(&context.tree, &filter, &mut |entry| {
        let mut stat = Stat {
            path: entry.path.as_os_str().as_bytes().to_vec(),
            mode: entry.kind.mode(),
            mod_time,
            ..Stat::default()
        };
        files.add(entry.path, matches!(entry.kind, Kind::File { .. }));
        match &entry.kind {
            Kind::Folder => stat.mode |= MODE_DIR,
            Kind::Link { target } => {
                stat.mode |= MODE_SYMLINK;
                stat.linkname = target.as_os_str().as_bytes().to_vec();
                stat.size = i64::try_from(stat.linkname.len()).unwrap_or_default();
            }
            Kind::File { size, .. } => {
                stat.size = i64::try_from(*size).unwrap_or_default();
            }
        }
        if is_context && !matches!(entry.kind, Kind::Folder) {
            context.sent.files.fetch_add(1, Ordering::Relaxed);
        }
        push(
            out,
            Packet {
                stat: Some(stat),
                ..message(PacketType::PacketStat)
            },
        )
    })?;
    push(out, message(PacketType::PacketStat))
}

/// Sends the requested files, in the order of the requests.
fn send_contents(
    context: &Context,
    mut queue: mpsc::UnboundedReceiver<u32>,
    files: &Files,
    out: &Out,
) -> io::Result<()> {
    // One buffer for all files: most are much smaller, and copying them costs less than a new buffer each.
    let mut buffer = vec![0; CHUNK];
    while let Some(id) = queue.blocking_recv() {
        point!("context-file");
        let mut file = fs::File::open(context.tree.join(files.path(id)))?;
        loop {
            let length = file.read(&mut buffer)?;
            let data = Bytes::copy_from_slice(&buffer[..length]);
            context
                .sent
                .bytes
                .fetch_add(length as u64, Ordering::Relaxed);
            let packet = Packet {
                id,
                data,
                ..message(PacketType::PacketData)
            };
            push(out, packet)?;
            if length == 0 {
                break;
            }
        }
    }
    Ok(())
}

fn message(kind: PacketType) -> Packet {
    Packet {
        kind: kind.into(),
        data: Bytes::new(),
        ..Packet::default()
    }
}

fn push(out: &Out, packet: Packet) -> io::Result<()> {
    out.blocking_send(Ok(packet))
        .map_err(|_| io::ErrorKind::BrokenPipe.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_number_and_requested_once() {
        let entries = [
            ("a", false),
            ("a/b", false),
            ("a/b/c", false),
            ("a/b/c/1", true),
            ("a/b/d", false),
            ("a/b/d/2", true),
            ("a/b/e", true),
            ("a/link", false),
            ("f", false),
            ("f/b", false),
            ("f/b/3", true),
            ("z", true),
        ];
        let files = Files::default();
        for (path, is_file) in entries {
            files.add(Path::new(path), is_file);
        }
        for (id, (path, is_file)) in (0..).zip(entries) {
            assert_eq!(files.path(id), Path::new(path));
            assert_eq!(files.request(id).is_ok(), is_file, "{path}");
            assert!(files.request(id).is_err(), "{path} is requested once");
        }
        assert!(files.request(12).is_err());
    }

    #[test]
    fn a_million_files_with_long_paths_take_little_memory() {
        let folder = "x".repeat(200) + "/" + &"y".repeat(200);
        let files = Files::default();
        files.add(Path::new(&"x".repeat(200)), false);
        files.add(Path::new(&folder), false);
        for number in 0..1_000_000 {
            files.add(Path::new(&format!("{folder}/{number}")), true);
        }
        let list = files.list();
        let bytes = list.names.capacity() + list.entries.capacity() * size_of::<Entry>();
        assert!(bytes < 64 << 20, "{bytes}");
        assert_eq!(list.path(1_000_001), Path::new(&format!("{folder}/999999")));
    }
}
