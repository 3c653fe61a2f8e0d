//! Step four of the pipeline: fetch exactly one commit, and check its tree out.
//!
//! The commit is asked for by its id, never by the name of a branch, so a branch that moves between
//! the lookup and the fetch changes nothing (promise P2). The checkout is the one that `git clone`
//! would make with an empty configuration: `.gitattributes` count (line endings, encodings), the
//! user's and the machine's configuration do not, and no filter program is started.

mod checkout;
mod delta;
mod pack;
mod store;
mod transport;
mod tree;
mod utf16;

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gix::ObjectId;
use gix::bstr::BStr;
use gix::objs::FindExt;
use gix::progress::tree::Root;
use gix::progress::{Discard, MessageLevel};
use gix::protocol::fetch::{
    Arguments, Context, Negotiate, Options, Response, Shallow, Tags, negotiate,
};
use gix_transport::Protocol;
use gix_transport::client::blocking_io::http::Transport;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::cache::FetchDir;
use crate::error::{Code, Error, Result, chain};
use crate::event::{Progress, human_bytes};
use crate::job::gitea;
use crate::names::image::CommitSha;
use crate::net::http::Http;
use crate::options::Repository;
use crate::process::executor;
use crate::process::memory::{self, Pool, Reserved};
use crate::redact::printable;
use pack::{Counters, Pack};
use store::Store;

/// How often a fetch says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The largest object that is in memory as a whole: a list of the files in a folder.
const WHOLE_IN_MEMORY: u64 = 32 << 20;

/// The largest commit: its message can be long.
const MAX_COMMIT: u64 = 4 << 20;

/// So many threads work at one fetch, on a machine of any size.
const MAX_WORKERS: usize = 4;

/// What the tables take for each object: where it is, its id, and what is known of it if it is a folder.
const OBJECT_MEMORY: u64 = 200;

/// What was fetched.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) progress: Progress,
    /// Where the tree is, as `tree`.
    pub(crate) work: FetchDir,
    /// Files and links in the tree.
    pub(crate) files: u64,
    /// When the commit was made, in seconds since 1970: the time of every file in the image.
    pub(crate) commit_time: i64,
}

/// What a fetch is about, and what it may take.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) http: &'a Http,
    pub(crate) repository: &'a Repository,
    pub(crate) commit: &'a CommitSha,
    /// Has a lookup just found the commit?
    pub(crate) looked_up: bool,
    /// The longest silence that is not a stall.
    pub(crate) stall_grace: Duration,
    /// The memory of the library, in bytes.
    pub(crate) memory: u64,
}

/// Fetches a commit and checks it out as `tree` in the work folder. When the future is dropped, it stops
/// within moments, and the folder is gone.
pub(crate) async fn commit(
    request: Request<'_>,
    work: FetchDir,
    tasks: &TaskTracker,
    mut report: impl FnMut(Progress),
) -> Result<Fetched> {
    let stop = StopOnDrop::default();
    let (http, repository, commit) = (request.http, request.repository, request.commit);
    let looked_up = request.looked_up;
    let job = Job::new(request, Handle::current(), &stop);
    let (wire, counters) = (job.wire.clone(), Arc::clone(&job.counters));
    let mut fetching = pin!(executor::blocking(tasks, move || job.run(work)));

    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    ticks.tick().await;
    let result = loop {
        tokio::select! {
            result = &mut fetching => break result,
            _ = ticks.tick() => report(progress(&wire, &counters)),
        }
    };
    let Err(error) = result else {
        return result;
    };
    // What the network said first is closer to the cause than what gix made of it.
    let error = wire.first_failure().unwrap_or(error);
    Err(match wire.refused.load(Ordering::Relaxed) {
        true => gitea::explain_refusal(http, repository, commit, looked_up, error).await,
        false => error,
    })
}

/// How far a fetch is.
fn progress(wire: &transport::Wire, counters: &Counters) -> Progress {
    let total = counters.objects_total.load(Ordering::Relaxed);
    Progress {
        bytes: wire.received.load(Ordering::Relaxed),
        objects: counters.objects.load(Ordering::Relaxed),
        objects_total: (total > 0).then_some(total),
    }
}

/// Stops the blocking part when it is dropped: a token for its waits, a flag for its work, which looks at
/// it from time to time. After the end it stops nothing.
#[derive(Default)]
struct StopOnDrop {
    token: CancellationToken,
    flag: Arc<AtomicBool>,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.token.cancel();
        self.flag.store(true, Ordering::Relaxed);
    }
}

/// The blocking part.
struct Job {
    wire: transport::Wire,
    interrupted: Arc<AtomicBool>,
    url: Url,
    commit: CommitSha,
    memory: u64,
    counters: Arc<Counters>,
    /// What git on the server says besides.
    remarks: Arc<Root>,
}

impl Job {
    fn new(request: Request<'_>, runtime: Handle, stop: &StopOnDrop) -> Self {
        let counters = Arc::<Counters>::default();
        Self {
            wire: transport::Wire {
                http: request.http.clone(),
                runtime,
                interrupt: stop.token.clone(),
                stall_grace: request.stall_grace,
                received: Arc::default(),
                counters: Arc::clone(&counters),
                failure: Arc::new(Mutex::new(None)),
                refused: Arc::default(),
                what: format!(
                    "the commit {} of {}",
                    request.commit, request.repository.url
                ),
                hint_again: match request.looked_up {
                    true => HINT_AGAIN,
                    false => "try again, and see whether the repository still has the commit",
                },
                base: None,
            },
            interrupted: Arc::clone(&stop.flag),
            url: request.repository.url.clone(),
            commit: request.commit.clone(),
            memory: request.memory,
            counters,
            remarks: Root::new(),
        }
    }

    fn run(self, work: FetchDir) -> Result<Fetched> {
        // gix panics where it cannot start one.
        executor::reserve(workers())?;
        let pack = self.receive(&work)?;
        point!("pack-written");
        // Not while it comes: who waits must not have to wait for a server.
        let objects = pack.entries.len() as u64;
        let _memory = self.reserve(Pool::Objects, objects * OBJECT_MEMORY)?;
        let (files, commit_time) = self.check_out(pack, &work)?;
        point!("checkout-done");
        Ok(Fetched {
            progress: progress(&self.wire, &self.counters),
            work,
            files,
            commit_time,
        })
    }

    fn hash(&self) -> gix::hash::Kind {
        match self.commit.as_str().len() {
            64 => gix::hash::Kind::Sha256,
            _ => gix::hash::Kind::Sha1,
        }
    }

    fn id(&self) -> Result<ObjectId> {
        ObjectId::from_hex(self.commit.as_str().as_bytes())
            .map_err(|error| Error::new(Code::Internal, error.to_string()))
    }

    /// Brings the commit and its tree, and nothing older, as a pack.
    fn receive(&self, work: &FetchDir) -> Result<Pack> {
        let failed = |error: gix::Error| self.failed("cannot be fetched", &error, work, None);
        let url = gix::url::parse(BStr::new(self.url.as_str())).map_err(failed)?;
        let mut transport = Transport::new_http(self.wire.clone(), url, Protocol::V2, false);
        let mut handshake = gix::protocol::handshake(
            &mut transport,
            gix_transport::Service::UploadPack,
            // Who may read is decided by the token, which the transport sends.
            |_| Ok(None),
            Vec::new(),
            &mut Discard,
        )
        .map_err(failed)?;
        // Before version 2 a server tells of all its branches. The commit is asked for by its id.
        handshake.refs = None;
        let mut wants = Wants(self.id()?);
        let file = new_file(&work.path().join("pack")).map_err(|error| self.disk(error, work))?;
        let mut received = None;
        let outcome = gix::protocol::fetch(
            &mut wants,
            |reader, _, stop| {
                let pack = pack::receive(reader, file, self.hash(), &self.counters, stop);
                received = Some(pack);
                // What comes after the pack is of no interest: the connection ends here.
                Ok(false)
            },
            self.remarks.add_child("fetch"),
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
                shallow_file: work.path().join("shallow"),
                shallow: &Shallow::DepthAtRemote(std::num::NonZeroU32::MIN),
                tags: Tags::None,
                reject_shallow_remote: false,
            },
        );
        match (received, outcome) {
            (Some(Ok(pack)), _) if !pack.entries.is_empty() => Ok(pack),
            (Some(Err(failure)), _) => Err(self.pack_failed(failure, work)),
            (_, Err(error)) => Err(failed(error)),
            _ => Err(Error::new(
                Code::Fetch,
                format!(
                    "{} sent no objects for the commit {}",
                    self.url, self.commit
                ),
            )
            .hint("try again; if it stays so, the server's repository is damaged")),
        }
    }

    /// Writes the tree of the commit, and of no other, as `tree`. Returns how many files it has, and
    /// the time of the commit.
    fn check_out(&self, pack: Pack, work: &FetchDir) -> Result<(u64, i64)> {
        let workers = workers();
        let store = {
            let _memory = self.reserve(Pool::Step, pack.memory(workers))?;
            let resolved = pack.resolved_bytes();
            work.disk().require(resolved, "the template's objects")?;
            let file = new_file(&work.path().join("resolved"));
            let file = file.map_err(|error| self.disk(error, work))?;
            Store::new(pack, file, workers, &self.interrupted)
                .map_err(|failure| self.pack_failed(failure, work))?
        };

        let failed = |error: gix::Error| self.failed("cannot be checked out", &error, work, None);
        let id = self.id()?;
        let mut buffer = Vec::new();
        let (tree, commit_time) = match store.header(&id) {
            Some((kind, _)) if kind != gix::objs::Kind::Commit => {
                return Err(self.not_a_commit(kind));
            }
            Some((_, ..=MAX_COMMIT)) => {
                let commit = store.find_commit(&id, &mut buffer).map_err(failed)?;
                let time = commit.time().map_err(failed)?.seconds;
                (commit.tree(), time)
            }
            Some(_) => {
                let limit = human_bytes(MAX_COMMIT);
                return Err(self.too_large(&format!("a commit of more than {limit}")));
            }
            None => return Err(self.broken("it is not in what the server sent")),
        };
        let extent = tree::check(&store, tree, &self.interrupted);
        let extent = extent.map_err(|refused| match refused {
            tree::Refused::Unreadable(error) => failed(error),
            tree::Refused::Shape(what) => {
                let (url, commit) = (&self.url, &self.commit);
                let text = format!("the commit {commit} of {url} is not checked out: {what}");
                Error::new(Code::Fetch, text).hint(HINT_REFUSED)
            }
            tree::Refused::TooLarge(what) => self.too_large(&what),
            tree::Refused::Stopped => Error::canceled(),
        })?;
        let size = extent.bytes;
        work.disk().require(size, "the template's files")?;
        // With fewer threads it takes less, and longer.
        let room = memory::size(Pool::Step, self.memory);
        let fits = |workers: &usize| checkout::memory(&extent, *workers) <= room;
        let workers = (1..=workers).rev().find(fits).unwrap_or(1);
        let _memory = self.reserve(Pool::Step, checkout::memory(&extent, workers))?;
        let target = work.path().join("tree");
        std::fs::create_dir(&target).map_err(|error| self.disk(error, work))?;
        point!("checkout-begun");
        let files = checkout::check_out(
            self.hash(),
            &store,
            &tree,
            &target,
            workers,
            &self.interrupted,
        );
        let files = files.map_err(|failure| match failure {
            checkout::Failure::Git(error) => {
                self.failed("cannot be checked out", &error, work, Some(size))
            }
            checkout::Failure::TooLarge(what) => self.too_large(&what),
            checkout::Failure::Collision(path) => Error::new(
                Code::Fetch,
                format!(
                    "the commit {} has two names that are one on this disk: {path}",
                    self.commit
                ),
            )
            .hint("rename one of them in the template, or put the cache on a case-sensitive disk"),
            checkout::Failure::Stopped => Error::canceled(),
        })?;
        Ok((files, commit_time))
    }

    /// Sets memory aside, and waits for it if others have it.
    fn reserve(&self, pool: Pool, bytes: u64) -> Result<Reserved> {
        let what = format!("the commit {} of {}", self.commit, self.url);
        let reserved = memory::reserve(pool, bytes, self.memory, &what);
        self.wire.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.wire.interrupt.cancelled() => Err(Error::canceled()),
                reserved = reserved => reserved,
            }
        })
    }

    /// What a failure of the pack means.
    fn pack_failed(&self, failure: pack::Failure, work: &FetchDir) -> Error {
        match failure {
            pack::Failure::TooLarge(what) => self.too_large(&what),
            pack::Failure::Broken(why) => self.broken(&format!("the pack is broken: {why}")),
            pack::Failure::Receive(error) => {
                let error = gix::Error::from_error(error);
                self.failed("cannot be fetched", &error, work, None)
            }
            pack::Failure::Disk(error) => self.disk(error, work),
            pack::Failure::Stopped => Error::canceled(),
        }
    }

    /// An annotated tag has an id of its own, which is easily taken for the commit's.
    fn not_a_commit(&self, kind: gix::objs::Kind) -> Error {
        let (url, id) = (&self.url, &self.commit);
        let text = format!("{id} of {url} is a {kind}, not a commit");
        let hint = match kind {
            gix::objs::Kind::Tag => {
                format!("give the commit's own id: git rev-parse {id}^{{commit}}")
            }
            _ => "give the id of a commit".to_owned(),
        };
        Error::new(Code::Fetch, text).hint(hint)
    }

    fn too_large(&self, what: &str) -> Error {
        let (url, commit) = (&self.url, &self.commit);
        let text = format!("the commit {commit} of {url} is too large: it has {what}");
        Error::new(Code::Fetch, text).hint(HINT_LARGE)
    }

    fn broken(&self, why: &str) -> Error {
        let why = self.server_said().unwrap_or_else(|| why.to_owned());
        let (commit, url) = (&self.commit, &self.url);
        let text = format!("the commit {commit} of {url} cannot be fetched: {why}");
        Error::new(Code::Fetch, text).hint(self.wire.hint_again)
    }

    /// What a failure of gix means. `size` is that of the template's files, once it is known.
    fn failed(&self, what: &str, error: &gix::Error, work: &FetchDir, size: Option<u64>) -> Error {
        if self.interrupted.load(Ordering::Relaxed) {
            return Error::canceled();
        }
        if let Some(why) = self.ran_out(error, work, size) {
            return why;
        }
        let why = self.server_said().unwrap_or_else(|| said(error));
        let (commit, url) = (&self.commit, &self.url);
        let text = format!("the commit {commit} of {url} {what}: {why}");
        Error::new(Code::Fetch, text).hint(self.wire.hint_again)
    }

    /// Returns the error for a full disk, or for a limit of this process, if that caused the failure.
    fn ran_out(&self, error: &gix::Error, work: &FetchDir, size: Option<u64>) -> Option<Error> {
        let extent = match size {
            Some(bytes) => format!("with {} of files to write", human_bytes(bytes)),
            None => {
                let received = self.wire.received.load(Ordering::Relaxed);
                format!("with {} received", human_bytes(received))
            }
        };
        // An error of gix is a tree of causes.
        error.iter_errors().find_map(|cause| {
            crate::process::limits::reached(cause).or_else(|| work.disk().ran_full(cause, &extent))
        })
    }

    fn disk(&self, error: io::Error, work: &FetchDir) -> Error {
        self.cannot_write(&gix::Error::from_error(error), work)
    }

    fn cannot_write(&self, error: &gix::Error, work: &FetchDir) -> Error {
        self.ran_out(error, work, None).unwrap_or_else(|| {
            let path = work.path().display();
            let message = format!("{path} cannot be written: {}", chain(error));
            Error::new(Code::Cache, message)
                .hint("check its permissions, or set MOLECULE_LOCAL_BUILD_CACHE to another folder")
        })
    }

    /// What git on the server says has failed there (gitprotocol-pack(5), "side-band", 3): it is
    /// closer to the cause than what is missing here.
    fn server_said(&self) -> Option<String> {
        let mut messages = Vec::new();
        self.remarks.copy_messages(&mut messages);
        let mut failures = messages
            .iter()
            .filter(|message| message.level == MessageLevel::Failure);
        let last = printable::line(failures.next_back()?.message.trim());
        (!last.is_empty()).then(|| format!("the server says: {last}"))
    }
}

const HINT_LARGE: &str =
    "keep large files out of the repository, and have the Dockerfile download them";
const HINT_REFUSED: &str = "run git fsck in the template's repository: no git makes such a commit";

const HINT_AGAIN: &str =
    "try again; if the branch was force-pushed meanwhile, the next call sees its new head";

/// Asks for one commit, by its id, and has nothing to offer.
struct Wants(ObjectId);

impl Negotiate for Wants {
    fn mark_complete_and_common_ref(&mut self) -> gix::Result<negotiate::Action> {
        Ok(negotiate::Action::MustNegotiate {
            remote_ref_target_known: Vec::new(),
        })
    }

    fn add_wants(&mut self, arguments: &mut Arguments, _known: &[bool]) -> bool {
        arguments.want(self.0);
        true
    }

    fn one_round(
        &mut self,
        _state: &mut negotiate::one_round::State,
        _arguments: &mut Arguments,
        _previous: Option<&Response>,
    ) -> gix::Result<(negotiate::Round, bool)> {
        let round = negotiate::Round {
            haves_sent: 0,
            in_vain: 0,
            haves_to_send: 0,
            previous_response_had_at_least_one_in_common: false,
        };
        Ok((round, true))
    }
}

/// How many threads work at one fetch.
fn workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.min(MAX_WORKERS)
}

/// The gix error chain as one line, outermost first, duplicates removed.
fn said(error: &gix::Error) -> String {
    let mut said: Vec<String> = Vec::new();
    for error in error.iter_errors() {
        let text = printable::line(&error.to_string()).into_owned();
        if !text.is_empty() && !said.iter().any(|before| before.contains(&text)) {
            said.push(text);
        }
    }
    said.join(": ")
}

/// `Read::read`, for what is a `BufRead` anyway.
fn read_filled(from: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    let length = from.fill_buf()?.read(buffer)?;
    from.consume(length);
    Ok(length)
}

/// A file to write and to read, which is not there yet.
fn new_file(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
}

/// Checks out a commit of a pack, for tests.
#[cfg(feature = "internals")]
pub(crate) fn check_out(packed: &[u8], commit: &CommitSha, work: &FetchDir) -> Result<u64> {
    let settings = crate::options::Options::default().settings()?;
    let request = Request {
        http: &Http::new(&settings.repo_prefix, &settings.token, &settings.network)?,
        repository: &settings.repo_prefix.any_repository()?,
        commit,
        looked_up: false,
        stall_grace: settings.stall_grace,
        memory: settings.memory,
    };
    let stop = StopOnDrop::default();
    let job = Job::new(request, executor::runtime()?.handle().clone(), &stop);
    let file = new_file(&work.path().join("pack")).map_err(|error| job.disk(error, work))?;
    let counters = Counters::default();
    let pack = pack::receive(&mut &*packed, file, job.hash(), &counters, &stop.flag)
        .map_err(|failure| job.pack_failed(failure, work))?;
    let (files, _) = job.check_out(pack, work)?;
    Ok(files)
}
