//! `moby.filesync.v1.FileSync/DiffCopy`: BuildKit asks for the files of the template, and gets those
//! that it does not have.
//!
//! The sender's side of fsutil's protocol. We tell of every entry, in order; the other side asks for
//! the files it wants by their numbers, while we are still telling; and says when it has them all.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use percent_encoding::percent_decode_str;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::context::{Context, Filter, Includes, Kind, Patterns, walk};
use crate::engine::build::session::wire::{MODE_DIR, MODE_SYMLINK, Packet, PacketType, Stat};

/// What BuildKit calls the folder with the Dockerfile, and the one with everything else. Both are the
/// template.
const DOCKERFILE_DIR: &str = "dockerfile";
const CONTEXT_DIR: &str = "context";

/// How much of a file goes into one message. The other side refuses more than 16 MiB.
const PIECE: usize = 128 * 1024;

/// How many messages may wait for the engine to read them.
const AHEAD: usize = 64;

type Out = mpsc::Sender<Result<Packet, Status>>;

/// Answers one request for files.
pub(super) async fn diff_copy(
    context: Arc<Context>,
    tasks: TaskTracker,
    turn: OwnedSemaphorePermit,
    request: Request<Streaming<Packet>>,
) -> Result<Response<impl Stream<Item = Result<Packet, Status>>>, Status> {
    let asked = Asked::read(request.metadata())?;
    let requests = request.into_inner();
    let (out, receiver) = mpsc::channel(AHEAD);
    let spawner = tasks.clone();
    tasks.spawn(async move {
        let _turn = turn;
        if let Err(status) = copy(context, asked, requests, &out, &spawner).await {
            // Nobody listens any more if the build has ended.
            let _ = out.send(Err(status)).await;
        }
    });
    let packets = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|packet| (packet, receiver))
    });
    Ok(Response::new(packets))
}

/// What a request asks for.
struct Asked {
    dir: String,
    includes: Vec<String>,
    excludes: Patterns,
    follow: Vec<String>,
}

impl Asked {
    /// Is it for the template's files? The ignore file, which is read before them, is asked for under the
    /// same name of a folder, and is all that is asked for then.
    fn is_context(&self) -> bool {
        let mut names = self.includes.iter().chain(&self.follow).peekable();
        let has_names = names.peek().is_some();
        let only_that = has_names && names.all(|name| name.ends_with(".dockerignore"));
        self.dir == CONTEXT_DIR && !only_that
    }

    fn read(metadata: &MetadataMap) -> Result<Self, Status> {
        let asked = Self {
            dir: values(metadata, "dir-name").pop().unwrap_or_default(),
            includes: values(metadata, "include-patterns"),
            excludes: Patterns::new(values(metadata, "exclude-patterns"))
                .map_err(Status::invalid_argument)?,
            follow: values(metadata, "followpaths"),
        };
        if asked.dir != DOCKERFILE_DIR && asked.dir != CONTEXT_DIR {
            let name: String = asked.dir.chars().take(100).collect();
            let message = format!("there is no folder {name:?} to be read");
            return Err(Status::not_found(message));
        }
        Ok(asked)
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

/// The values of a key. What is not ASCII is encoded as in a query, and marked so.
fn values(metadata: &MetadataMap, key: &str) -> Vec<String> {
    let encoded = metadata
        .get(format!("{key}-encoded"))
        .is_some_and(|mark| mark == "1");
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
    asked: Asked,
    mut requests: Streaming<Packet>,
    out: &Out,
    tasks: &TaskTracker,
) -> Result<(), Status> {
    let files = Arc::new(Files::default());
    // As many as there are files at most: a request for one is taken once.
    let (wanted, queue) = mpsc::unbounded_channel();

    let is_context = asked.is_context();
    let told = context.send(tasks, {
        let (files, out) = (Arc::clone(&files), out.clone());
        move |context| tell(context, asked, &files, &out)
    });
    let sent = context.send(tasks, {
        let (files, out) = (Arc::clone(&files), out.clone());
        move |context| send(context, queue, &files, &out)
    });

    let serve = async {
        while let Some(packet) = requests.next().await {
            let packet = packet?;
            match packet.kind() {
                PacketType::Req => {
                    files.take(packet.id)?;
                    // Whoever reads the queue has failed, and says so below.
                    let _ = wanted.send(packet.id);
                }
                PacketType::Fin => {
                    if is_context {
                        context.sent.done.cancel();
                    }
                    let _ = out.send(Ok(message(PacketType::Fin))).await;
                    break;
                }
                PacketType::Err => {
                    let why = &packet.data[..packet.data.len().min(1000)];
                    let why = String::from_utf8_lossy(why).into_owned();
                    return Err(Status::aborted(why));
                }
                PacketType::Stat | PacketType::Data => {
                    return Err(Status::invalid_argument("a file was sent to its sender"));
                }
            }
        }
        drop(wanted);
        Ok(())
    };
    let done = async {
        ended(told.await)?;
        ended(sent.await)
    };
    futures_util::future::try_join(serve, done).await.map(drop)
}

fn ended(result: io::Result<()>) -> Result<(), Status> {
    match result {
        // The engine hung up.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Status::internal(error.to_string())),
        Ok(()) => Ok(()),
    }
}

/// What was told of, by its number, and whether it may still be asked for.
///
/// A tree may have 500,000 files, with paths of kilobytes. So the path of a folder is here once, and
/// of a file only its name.
#[derive(Default)]
struct Files(Mutex<Told>);

#[derive(Default)]
struct Told {
    entries: Vec<Entry>,
    /// The names, one behind the other.
    names: Vec<u8>,
    /// The folder in which the last one was, with those above it: how long its path is up to each, and
    /// its number.
    folders: Vec<(usize, u32)>,
    /// The path of that folder.
    path: PathBuf,
}

struct Entry {
    /// The folder it is in, by its number; none at the root.
    folder: Option<u32>,
    /// Where its name ends. It begins where that of the one before ends.
    end: usize,
    is_wanted: bool,
}

impl Told {
    fn add(&mut self, path: &Path, is_file: bool) {
        let parent = path.parent().unwrap_or(Path::new(""));
        if parent != self.path {
            // Up to the folder that both are in, and then it is the entry right before this one.
            let depth = parent.components().count();
            self.folders.truncate(depth);
            if self.folders.len() < depth {
                let last = u32::try_from(self.entries.len()).unwrap_or(0);
                self.folders.push((depth, last.saturating_sub(1)));
            }
            self.path = parent.to_owned();
        }
        let name = path.file_name().unwrap_or_default();
        self.names.extend_from_slice(name.as_bytes());
        self.entries.push(Entry {
            folder: self.folders.last().map(|(_, number)| *number),
            end: self.names.len(),
            is_wanted: is_file,
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
        self.told().add(path, is_file);
    }

    /// Each file can be asked for once.
    fn take(&self, id: u32) -> Result<(), Status> {
        let mut told = self.told();
        match told.entries.get_mut(id as usize) {
            Some(entry) if entry.is_wanted => {
                entry.is_wanted = false;
                Ok(())
            }
            _ => Err(Status::invalid_argument(format!(
                "there is no file {id} to be read"
            ))),
        }
    }

    fn path(&self, id: u32) -> PathBuf {
        self.told().path(id)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells of every entry.
fn tell(context: &Context, asked: Asked, files: &Files, out: &Out) -> io::Result<()> {
    let counts = asked.is_context();
    let filter = asked.filter(context)?;
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
        if counts && !matches!(entry.kind, Kind::Folder) {
            context.sent.files.fetch_add(1, Ordering::Relaxed);
        }
        push(
            out,
            Packet {
                stat: Some(stat),
                ..message(PacketType::Stat)
            },
        )
    })?;
    push(out, message(PacketType::Stat))
}

/// Sends what is asked for, in the order in which it is asked for.
fn send(
    context: &Context,
    mut queue: mpsc::UnboundedReceiver<u32>,
    files: &Files,
    out: &Out,
) -> io::Result<()> {
    // One for all files: most are much smaller than it, and to make it costs more than to copy them out of it.
    let mut buffer = vec![0; PIECE];
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
                ..message(PacketType::Data)
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
    fn a_file_is_found_by_its_number_wherever_it_lies_and_once() {
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
            assert_eq!(files.take(id).is_ok(), is_file, "{path}");
            assert!(files.take(id).is_err(), "{path} is asked for once");
        }
        assert!(files.take(12).is_err());
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
        let told = files.told();
        let bytes = told.names.capacity() + told.entries.capacity() * size_of::<Entry>();
        assert!(bytes < 64 << 20, "{bytes}");
        assert_eq!(told.path(1_000_001), Path::new(&format!("{folder}/999999")));
    }
}
