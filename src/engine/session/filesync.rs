//! `moby.filesync.v1.FileSync/DiffCopy`: BuildKit asks for the files of the template, and gets those
//! that it does not have.
//!
//! The sender's side of fsutil's protocol. We tell of every entry, in order; the other side asks for
//! the files it wants by their numbers, while we are still telling; and says when it has them all.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use percent_encoding::percent_decode_str;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::wire::{MODE_DIR, MODE_SYMLINK, Packet, PacketType, Stat};
use crate::context::{Context, Filter, Includes, Kind, Patterns, walk};

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
    request: Request<Streaming<Packet>>,
) -> Result<Response<impl Stream<Item = Result<Packet, Status>>>, Status> {
    let asked = Asked::read(request.metadata())?;
    let requests = request.into_inner();
    let (out, receiver) = mpsc::channel(AHEAD);
    let spawner = tasks.clone();
    tasks.spawn(async move {
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
            let message = format!("there is no folder {:?} to be read", asked.dir);
            return Err(Status::not_found(message));
        }
        Ok(asked)
    }

    fn filter(self, context: &Context) -> io::Result<Filter> {
        Ok(Filter {
            includes: Includes::new(&context.tree, &self.includes, &self.follow)?,
            excludes: self.excludes,
            always: &[],
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
        let out = out.clone();
        move |context| send(context, queue, &out)
    });

    let serve = async {
        while let Some(packet) = requests.next().await {
            let packet = packet?;
            match packet.kind() {
                PacketType::Req => {
                    let path = files.take(packet.id)?;
                    // Whoever reads the queue has failed, and says so below.
                    let _ = wanted.send((packet.id, path));
                }
                PacketType::Fin => {
                    if is_context {
                        context.sent.done.cancel();
                    }
                    let _ = out.send(Ok(message(PacketType::Fin))).await;
                    break;
                }
                PacketType::Err => {
                    let why = String::from_utf8_lossy(&packet.data).into_owned();
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

/// The files that were told of and not yet asked for.
#[derive(Default)]
struct Files(Mutex<HashMap<u32, PathBuf>>);

impl Files {
    fn put(&self, id: u32, path: PathBuf) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(id, path);
    }

    fn take(&self, id: u32) -> Result<PathBuf, Status> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files
            .remove(&id)
            .ok_or_else(|| Status::invalid_argument(format!("there is no file {id} to be read")))
    }
}

/// Tells of every entry.
fn tell(context: &Context, asked: Asked, files: &Files, out: &Out) -> io::Result<()> {
    let counts = asked.is_context();
    let filter = asked.filter(context)?;
    let mod_time = i64::try_from(context.time * 1_000_000_000).unwrap_or_default();
    let mut id = 0;
    walk(&context.tree, &filter, &mut |entry| {
        let mut stat = Stat {
            path: entry.path.as_os_str().as_bytes().to_vec(),
            mode: entry.kind.mode(),
            mod_time,
            ..Stat::default()
        };
        match &entry.kind {
            Kind::Folder => stat.mode |= MODE_DIR,
            Kind::Link { target } => {
                stat.mode |= MODE_SYMLINK;
                stat.linkname = target.as_os_str().as_bytes().to_vec();
                stat.size = i64::try_from(stat.linkname.len()).unwrap_or_default();
            }
            Kind::File { size, .. } => {
                stat.size = i64::try_from(*size).unwrap_or_default();
                files.put(id, entry.path.to_owned());
            }
        }
        if counts && !matches!(entry.kind, Kind::Folder) {
            context.sent.files.fetch_add(1, Ordering::Relaxed);
        }
        id += 1;
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
    mut queue: mpsc::UnboundedReceiver<(u32, PathBuf)>,
    out: &Out,
) -> io::Result<()> {
    // One for all files: most are much smaller than it, and to make it costs more than to copy them out of it.
    let mut buffer = vec![0; PIECE];
    while let Some((id, path)) = queue.blocking_recv() {
        point!("context-file");
        let mut file = fs::File::open(context.tree.join(path))?;
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
