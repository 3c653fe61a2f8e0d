//! The blocking side of a fetch: receive the pack, resolve it, check the tree, write the files.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use gix_hash::ObjectId;
use gix_object::FindExt;
use gix_object::bstr::BStr;
use gix_protocol::fetch::{Context, Options, Shallow, Tags};
use gix_transport::Protocol;
use gix_transport::client::blocking_io::http::Transport;
use prodash::progress::Discard;
use prodash::tree::Root;
use tokio::runtime::Handle;
use url::Url;

use crate::cache::FetchDir;
use crate::error::{Code, Error, Result};
use crate::event::{Progress, human_bytes};
use crate::fetch::negotiate::SingleCommit;
use crate::fetch::pack::{self, Pack};
use crate::fetch::store::Store;
use crate::fetch::transport::Wire;
use crate::fetch::{Fetched, Request, StopOnDrop, checkout, transport, tree};
use crate::process::executor;
use crate::process::memory::{self, Pool, Reserved};

/// The largest commit: its message can be long.
const MAX_COMMIT: u64 = 4 << 20;

/// Upper bound of the threads of one fetch, however many cores there are.
const MAX_WORKERS: usize = 4;

/// Bytes of the tables for each object: its place in the pack, its id, and its extent if it is a folder.
const OBJECT_MEMORY: u64 = 200;

/// One fetch of one commit.
pub(super) struct FetchTask {
    pub(super) wire: Wire,
    pub(super) interrupted: Arc<AtomicBool>,
    pub(super) url: Url,
    /// The id of the commit.
    pub(super) id: ObjectId,
    memory: u64,
    /// The messages that git sends from the server.
    pub(super) server_messages: Arc<Root>,
}

impl FetchTask {
    pub(super) fn new(request: Request<'_>, runtime: Handle, stop: &StopOnDrop) -> Result<Self> {
        let id = ObjectId::from_hex(request.commit.as_str().as_bytes())
            .map_err(|error| Error::new(Code::Internal, error.to_string()))?;
        Ok(Self {
            wire: Wire {
                http: request.http.clone(),
                runtime,
                interrupt: stop.token.clone(),
                stall_grace: request.stall_grace,
                received: Arc::default(),
                counters: Arc::default(),
                failure: Arc::new(Mutex::new(None)),
                refused: Arc::default(),
                subject: format!(
                    "the commit {} of {}",
                    request.commit, request.repository.url
                ),
                retry_hint: transport::retry_hint(request.looked_up),
                base: None,
            },
            interrupted: Arc::clone(&stop.flag),
            url: request.repository.url.clone(),
            id,
            memory: request.memory,
            server_messages: Root::new(),
        })
    }

    pub(super) fn run(self, dir: FetchDir) -> Result<Fetched> {
        // gix panics if it cannot start a thread.
        executor::check_threads(workers())?;
        let pack = self.receive(&dir)?;
        point!("pack-written");
        // Reserved only after the download, so that no fetch waits for memory that is held by one with a slow server.
        let objects = pack.entries.len() as u64;
        let _memory = self.reserve(Pool::Objects, objects * OBJECT_MEMORY)?;
        let (files, commit_time) = self.check_out(pack, &dir)?;
        point!("checkout-done");
        Ok(Fetched {
            progress: progress(&self.wire),
            dir,
            files,
            commit_time,
        })
    }

    /// Receives a pack with the commit and its tree, and nothing older.
    fn receive(&self, dir: &FetchDir) -> Result<Pack> {
        let failed = |error: gix_error::Error| self.failed("cannot be fetched", &error, dir, None);
        let url = gix_url::parse(BStr::new(self.url.as_str())).map_err(failed)?;
        let mut transport = Transport::new_http(self.wire.clone(), url, Protocol::V2, false);
        let mut handshake = gix_protocol::handshake(
            &mut transport,
            gix_transport::Service::UploadPack,
            // No credentials for gix: the transport sends the token.
            |_| Ok(None),
            Vec::new(),
            &mut Discard,
        )
        .map_err(failed)?;
        // Before protocol version 2 a server lists all its branches. The commit is requested by its id.
        handshake.refs = None;
        let mut wants = SingleCommit(self.id);
        let file = File::create_new(dir.path().join("pack"))
            .map_err(|error| self.disk_failed(error, dir))?;
        let mut received = None;
        let outcome = gix_protocol::fetch(
            &mut wants,
            |reader, _, stop| {
                let pack = pack::receive(reader, file, self.id.kind(), &self.wire.counters, stop);
                received = Some(pack);
                // Nothing that follows the pack is needed: the connection ends here.
                Ok(false)
            },
            self.server_messages.add_child("fetch"),
            &self.interrupted,
            Context {
                handshake: &mut handshake,
                transport: &mut transport,
                user_agent: (
                    "agent",
                    Some(concat!("libmol/", env!("CARGO_PKG_VERSION")).into()),
                ),
                trace_packetlines: false,
            },
            Options {
                shallow_file: dir.path().join("shallow"),
                shallow: &Shallow::DepthAtRemote(std::num::NonZeroU32::MIN),
                tags: Tags::None,
                reject_shallow_remote: false,
            },
        );
        match (received, outcome) {
            (Some(Ok(pack)), _) if !pack.entries.is_empty() => Ok(pack),
            (Some(Err(failure)), _) => Err(self.pack_failed(failure, dir)),
            (_, Err(error)) => Err(failed(error)),
            _ => Err(self.no_objects()),
        }
    }

    /// Writes the tree of the commit as `tree`. Returns the number of its files, and the time of the commit.
    fn check_out(&self, pack: Pack, dir: &FetchDir) -> Result<(u64, i64)> {
        let workers = workers();
        let store = self.resolve(pack, workers, dir)?;
        let (tree, commit_time) = self.read_commit(&store, dir)?;
        let extent = tree::check(&store, tree, &self.interrupted)
            .map_err(|refused| self.tree_refused(refused, dir))?;
        dir.disk().require(extent.bytes, "the template's files")?;
        // Fewer threads take less memory and more time.
        let room = memory::size(Pool::Step, self.memory);
        let needed = |workers| checkout::memory(self.id.kind(), &extent, workers);
        let workers = (1..=workers).rev().find(|workers| needed(*workers) <= room);
        let workers = workers.unwrap_or(1);
        let _memory = self.reserve(Pool::Step, needed(workers))?;
        let target = dir.path().join("tree");
        std::fs::create_dir(&target).map_err(|error| self.disk_failed(error, dir))?;
        point!("checkout-begun");
        let files = checkout::check_out(
            self.id.kind(),
            &store,
            &tree,
            &target,
            workers,
            &self.interrupted,
        );
        let files = files.map_err(|failure| self.checkout_failed(failure, dir, extent.bytes))?;
        Ok((files, commit_time))
    }

    /// Finds the objects of the pack, and resolves its deltas.
    fn resolve(&self, pack: Pack, workers: usize, dir: &FetchDir) -> Result<Store> {
        let _memory = self.reserve(Pool::Step, pack.memory(workers))?;
        let resolved = pack.resolved_bytes();
        dir.disk().require(resolved, "the template's objects")?;
        let file = File::create_new(dir.path().join("resolved"));
        let file = file.map_err(|error| self.disk_failed(error, dir))?;
        Store::new(pack, file, workers, &self.interrupted)
            .map_err(|failure| self.pack_failed(failure, dir))
    }

    /// Returns the id of the commit's tree, and the commit's time.
    fn read_commit(&self, store: &Store, dir: &FetchDir) -> Result<(ObjectId, i64)> {
        let failed =
            |error: gix_error::Error| self.failed("cannot be checked out", &error, dir, None);
        match store.header(&self.id) {
            Some((kind, _)) if kind != gix_object::Kind::Commit => Err(self.not_a_commit(kind)),
            Some((_, ..=MAX_COMMIT)) => {
                let mut buffer = Vec::new();
                let commit = store.find_commit(&self.id, &mut buffer).map_err(failed)?;
                let time = commit.time().map_err(failed)?.seconds;
                Ok((commit.tree(), time))
            }
            Some(_) => {
                let limit = human_bytes(MAX_COMMIT);
                Err(self.too_large(&format!("a commit of more than {limit}")))
            }
            None => Err(self.broken("the server did not send it")),
        }
    }

    /// Reserves memory, and waits for it while others have it.
    fn reserve(&self, pool: Pool, bytes: u64) -> Result<Reserved> {
        let reserved = memory::reserve(pool, bytes, self.memory, &self.wire.subject);
        self.wire.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.wire.interrupt.cancelled() => Err(Error::canceled()),
                reserved = reserved => reserved,
            }
        })
    }

    /// Checks the commit out of a whole pack, for tests and benchmarks.
    #[cfg(feature = "internals")]
    pub(super) fn check_out_pack(&self, packed: &[u8], dir: &FetchDir) -> Result<u64> {
        let file = File::create_new(dir.path().join("pack"))
            .map_err(|error| self.disk_failed(error, dir))?;
        let pack = pack::receive(
            &mut &*packed,
            file,
            self.id.kind(),
            &self.wire.counters,
            &self.interrupted,
        )
        .map_err(|failure| self.pack_failed(failure, dir))?;
        let (files, _) = self.check_out(pack, dir)?;
        Ok(files)
    }
}

/// How far a fetch is.
pub(super) fn progress(wire: &Wire) -> Progress {
    let counters = &wire.counters;
    let total = counters.objects_total.load(Ordering::Relaxed);
    Progress {
        bytes: wire.received.load(Ordering::Relaxed),
        objects: counters.objects.load(Ordering::Relaxed),
        objects_total: (total > 0).then_some(total),
    }
}

/// The number of threads of one fetch.
fn workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.min(MAX_WORKERS)
}
