//! Step four of the pipeline: fetch exactly one commit, and check its tree out.
//!
//! The commit is asked for by its id, never by the name of a branch, so a branch that moves between
//! the lookup and the fetch changes nothing (promise P2). The checkout is the one that `git clone`
//! would make with an empty configuration: `.gitattributes` count (line endings, encodings), the
//! user's and the machine's configuration do not, and no filter program is started.

mod transport;
mod tree;
mod utf16;

use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gix::progress::Discard;
use gix::progress::MessageLevel;
use gix::progress::tree::Root;
use gix_transport::Protocol;
use gix_transport::client::blocking_io::http::Transport;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::cache::Work;
use crate::error::{Code, Error, Result, chain};
use crate::event::{Progress, human_bytes};
use crate::executor;
use crate::http::Http;
use crate::image::CommitSha;

/// How often a fetch says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The largest file of a template. gix has each in memory whole, and what a server says of its size is
/// believed before it comes.
const MAX_FILE_MIB: usize = 512;

/// So many of them may be in memory at once, on a machine of any size.
const MAX_WORKERS: usize = 4;

/// More objects than a tree of the size that is checked out can have.
const MAX_OBJECTS: u64 = 2 * tree::MAX_ENTRIES;

/// What was fetched.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) progress: Progress,
    /// Where the tree is, as `tree`.
    pub(crate) work: Work,
    /// Files and links in the tree.
    pub(crate) files: u64,
    /// When the commit was made, in seconds since 1970: the time of every file in the image.
    pub(crate) commit_time: i64,
}

/// Fetches `commit` of the repository at `url` and checks it out as `tree` in the work folder. When
/// the future is dropped, it stops within moments, and the folder is gone.
pub(crate) async fn commit(
    http: &Http,
    url: &Url,
    commit: &CommitSha,
    work: Work,
    stall_grace: Duration,
    tasks: &TaskTracker,
    mut report: impl FnMut(Progress),
) -> Result<Fetched> {
    let stop = StopOnDrop::default();
    let received = Arc::new(AtomicU64::new(0));
    let failure = Arc::new(Mutex::new(None));
    let tree = Root::new();
    let job = Job {
        wire: transport::Wire {
            http: http.clone(),
            runtime: Handle::current(),
            interrupt: stop.token.clone(),
            stall_grace,
            received: Arc::clone(&received),
            failure: Arc::clone(&failure),
            base: None,
        },
        interrupted: Arc::clone(&stop.flag),
        url: url.clone(),
        commit: commit.clone(),
        progress: Arc::clone(&tree),
    };
    let mut fetching = pin!(executor::blocking(tasks, move || job.run(work)));

    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    ticks.tick().await;
    let mut before = Progress::default();
    let result = loop {
        tokio::select! {
            result = &mut fetching => break result,
            _ = ticks.tick() => {
                let progress = snapshot(&tree, &received);
                if progress.objects != before.objects {
                    before = progress;
                }
                // Each object costs memory, whatever its size, and the one that comes is kept whole.
                let refused = if progress.objects_total > Some(MAX_OBJECTS) {
                    Some(format!("more than {MAX_OBJECTS} objects"))
                } else if progress.bytes - before.bytes > (MAX_FILE_MIB as u64) << 20 {
                    Some(format!("a file of more than {MAX_FILE_MIB} MiB"))
                } else {
                    None
                };
                if let Some(what) = refused {
                    let text = format!("{url} wants to send {what} for the commit {commit}");
                    break Err(Error::new(Code::Fetch, text).hint(HINT_LARGE));
                }
                report(progress);
            }
        }
    };
    result.map_err(|error| {
        // What the network said first is closer to the cause than what gix made of it.
        let first = failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        first.unwrap_or(error)
    })
}

/// Stops the blocking part when it is dropped: a token for its waits, a flag for gix, which looks at
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
    progress: Arc<Root>,
}

impl Job {
    fn run(self, work: Work) -> Result<Fetched> {
        let (repository, objects) = self.receive(&work)?;
        point!("pack-written");
        let (files, commit_time) = self.check_out(&repository, &work)?;
        point!("checkout-done");
        Ok(Fetched {
            progress: Progress {
                bytes: self.wire.received.load(Ordering::Relaxed),
                objects,
                objects_total: Some(objects),
            },
            work,
            files,
            commit_time,
        })
    }

    /// Brings the commit and its tree, and nothing older, into a repository of its own.
    fn receive(&self, work: &Work) -> Result<(gix::Repository, u64)> {
        let failed = |error: gix::Error| self.failed("cannot be fetched", &error, work, None);
        let hash = match self.commit.as_str().len() {
            64 => gix::hash::Kind::Sha256,
            _ => gix::hash::Kind::Sha1,
        };
        let repository = init(&work.path().join("git"), hash)
            .map_err(|error| self.cannot_write(&error, work))?;
        point!("repository-made");
        let remote = repository
            .remote_at(self.url.as_str())
            .and_then(|remote| {
                remote
                    .with_fetch_tags(gix::remote::fetch::Tags::None)
                    .with_refspecs(
                        [format!("{}:refs/heads/template", self.commit).as_str()],
                        gix::remote::Direction::Fetch,
                    )
            })
            .map_err(failed)?;
        let url = remote
            .url(gix::remote::Direction::Fetch)
            .ok_or_else(|| Error::new(Code::Internal, "the remote has no address"))?
            .clone();
        let transport = Transport::new_http(self.wire.clone(), url, Protocol::V2, false);
        let outcome = remote
            .to_connection_with_transport(transport)
            .prepare_fetch(Discard, gix::remote::ref_map::Options::default())
            .and_then(|fetch| {
                fetch
                    .with_shallow(gix::remote::fetch::Shallow::DepthAtRemote(
                        std::num::NonZeroU32::MIN,
                    ))
                    .receive(self.progress.add_child("fetch"), &self.interrupted)
            })
            .map_err(failed)?;
        let objects = match outcome.status {
            gix::remote::fetch::Status::Change {
                write_pack_bundle, ..
            } => u64::from(write_pack_bundle.index.num_objects),
            gix::remote::fetch::Status::NoPackReceived { .. } => {
                return Err(Error::new(
                    Code::Fetch,
                    format!(
                        "{} sent no objects for the commit {}",
                        self.url, self.commit
                    ),
                )
                .hint("try again; if it stays so, the server's repository is damaged"));
            }
        };
        Ok((repository, objects))
    }

    /// Writes the tree of the commit, and of no other, as `tree`. Returns how many files it has, and
    /// the time of the commit.
    fn check_out(&self, repository: &gix::Repository, work: &Work) -> Result<(u64, i64)> {
        let failed = |error: gix::Error| self.failed("cannot be checked out", &error, work, None);
        let id = gix::ObjectId::from_hex(self.commit.as_str().as_bytes())
            .map_err(|error| failed(gix::Error::from_error(error)))?;
        let commit = repository.find_commit(id).map_err(failed)?;
        let commit_time = commit.time().map_err(failed)?.seconds;
        let tree = commit.tree_id().map_err(failed)?;
        tree::check(repository, tree.detach()).map_err(|refused| match refused {
            tree::Refused::Unreadable(error) => failed(error),
            tree::Refused::Shape(what) => {
                let (url, commit) = (&self.url, &self.commit);
                let text = format!("the commit {commit} of {url} is not checked out: {what}");
                Error::new(Code::Fetch, text).hint(HINT_REFUSED)
            }
        })?;
        let mut index = repository.index_from_tree(&tree).map_err(failed)?;
        let size = size_of(repository, &index).map_err(failed)?;
        work.disk().require(size, "the template's files")?;
        let failed = |error| self.failed("cannot be checked out", &error, work, Some(size));
        let mut options = repository
            .checkout_options(gix::worktree::stack::state::attributes::Source::IdMapping)
            .map_err(failed)?;
        options.destination_is_initially_empty = true;
        let files = self.progress.add_child("files");
        let bytes = self.progress.add_child("bytes");
        let target = work.path().join("tree");
        std::fs::create_dir(&target)
            .map_err(|error| self.cannot_write(&gix::Error::from_error(error), work))?;
        point!("checkout-begun");
        let objects = repository.objects.clone().into_arc();
        let objects = objects.map_err(|error| failed(gix::Error::from_error(error)))?;
        let outcome = gix::worktree::state::checkout(
            &mut index,
            &target,
            Objects(objects),
            &files,
            &bytes,
            &self.interrupted,
            options,
        )
        .map_err(failed)?;
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Error::canceled());
        }
        if let Some(collision) = outcome.collisions.first() {
            return Err(Error::new(
                Code::Fetch,
                format!(
                    "the commit {} has two names that are one on this disk: {}",
                    self.commit, collision.path
                ),
            )
            .hint(
                "rename one of them in the template, or put the cache on a case-sensitive disk",
            ));
        }
        utf16::encode(repository, &index, &target, &failed)?;
        Ok((index.entries().len() as u64, commit_time))
    }

    /// What a failure of gix means. `size` is that of the template's files, once it is known.
    fn failed(&self, what: &str, error: &gix::Error, work: &Work, size: Option<u64>) -> Error {
        if self.interrupted.load(Ordering::Relaxed) {
            return Error::canceled();
        }
        if let Some(full) = self.ran_full(error, work, size) {
            return full;
        }
        let (why, hint) = if error.is_resource_exhausted() {
            (
                format!("it holds a file of more than {MAX_FILE_MIB} MiB"),
                HINT_LARGE,
            )
        } else {
            (
                self.server_said().unwrap_or_else(|| said(error)),
                "try again; if the branch was force-pushed meanwhile, the next call sees its new head",
            )
        };
        let (commit, url) = (&self.commit, &self.url);
        Error::new(
            Code::Fetch,
            format!("the commit {commit} of {url} {what}: {why}"),
        )
        .hint(hint)
    }

    /// Is it that the disk has run full?
    fn ran_full(&self, error: &gix::Error, work: &Work, size: Option<u64>) -> Option<Error> {
        let extent = match size {
            Some(bytes) => format!("with {} of files to write", human_bytes(bytes)),
            None => {
                let received = self.wire.received.load(Ordering::Relaxed);
                format!("with {} received", human_bytes(received))
            }
        };
        // An error of gix is a tree of causes.
        error
            .iter_errors()
            .find_map(|cause| work.disk().ran_full(cause, &extent))
    }

    fn cannot_write(&self, error: &gix::Error, work: &Work) -> Error {
        self.ran_full(error, work, None).unwrap_or_else(|| {
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
        self.progress.copy_messages(&mut messages);
        let mut failures = messages
            .iter()
            .filter(|message| message.level == MessageLevel::Failure);
        let last = failures.next_back()?.message.trim();
        (!last.is_empty()).then(|| format!("the server says: {last}"))
    }
}

const HINT_LARGE: &str =
    "keep large files out of the repository, and have the Dockerfile download them";
const HINT_REFUSED: &str = "run git fsck in the template's repository: no git makes such a commit";

/// How the repository of a fetch is configured. All else is git's default.
fn limits() -> [String; 4] {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = cores.min(MAX_WORKERS);
    [
        format!("gitoxide.objects.allocLimit={MAX_FILE_MIB}m"),
        format!("pack.threads={workers}"),
        format!("checkout.workers={workers}"),
        // Some characters of Unicode are nothing in a name on macOS. What is refused there is refused
        // everywhere: a template is good on all machines or on none.
        "core.protectHFS=true".to_owned(),
    ]
}

/// What gix says, outermost first, without its marks for programs.
fn said(error: &gix::Error) -> String {
    let mut said: Vec<String> = Vec::new();
    for text in error.iter_errors().map(ToString::to_string) {
        if !text.is_empty() && !said.iter().any(|before| before.contains(&text)) {
            said.push(text);
        }
    }
    said.join(": ")
}

/// An empty repository that no configuration of the machine or the user has a say in.
pub(crate) fn init(path: &Path, hash: gix::hash::Kind) -> gix::Result<gix::Repository> {
    let options = gix::create::Options {
        object_hash: Some(hash),
        ..Default::default()
    };
    let isolated = gix::open::Options::isolated().config_overrides(limits());
    gix::ThreadSafeRepository::init_opts(path, gix::create::Kind::Bare, options, isolated)
        .map(|repository| repository.to_thread_local())
}

/// The second half alone, for tests.
pub(crate) fn check_out(
    repository: &gix::Repository,
    commit: CommitSha,
    work: &Work,
) -> Result<u64> {
    let settings = crate::options::Options::default().settings()?;
    let url = Url::parse("https://host/").map_err(|_| Error::canceled())?;
    let job = Job {
        wire: transport::Wire {
            http: Http::new(&settings.repo_prefix, &settings.token, &settings.network)?,
            runtime: executor::runtime()?.handle().clone(),
            interrupt: CancellationToken::new(),
            stall_grace: settings.stall_grace,
            received: Arc::default(),
            failure: Arc::default(),
            base: None,
        },
        interrupted: Arc::default(),
        url,
        commit,
        progress: Root::new(),
    };
    let (files, _) = job.check_out(repository, work)?;
    Ok(files)
}

/// The objects, as the checkout asks for them, one by one.
#[derive(Clone)]
struct Objects<F>(F);

impl<F: gix::objs::Find> gix::objs::Find for Objects<F> {
    fn try_find<'a>(
        &self,
        id: &gix::oid,
        buffer: &'a mut Vec<u8>,
    ) -> gix::Result<Option<gix::objs::Data<'a>>> {
        point!("checkout-object");
        self.0.try_find(id, buffer)
    }
}

/// The bytes of all files, as they are in the repository. On the disk they are more, by what each
/// leaves free in its last block, or less where the disk compresses.
fn size_of(repository: &gix::Repository, index: &gix::index::File) -> gix::Result<u64> {
    let mut size: u64 = 0;
    for entry in index.entries() {
        // A submodule is a commit of another repository, and an empty folder here.
        if !entry.mode.is_submodule() {
            size = size.saturating_add(repository.find_header(entry.id)?.size());
        }
    }
    Ok(size)
}

/// How far gix says it is: the task that indexes the objects of the pack as they come.
fn snapshot(tree: &Arc<Root>, received: &AtomicU64) -> Progress {
    const INDEX_OBJECTS: gix::progress::Id = *b"IWIO";
    let mut tasks = Vec::new();
    tree.sorted_snapshot(&mut tasks);
    let indexing = tasks
        .iter()
        .filter(|(_, task)| task.id == INDEX_OBJECTS)
        .find_map(|(_, task)| task.progress.as_ref());
    Progress {
        bytes: received.load(Ordering::Relaxed),
        objects: indexing.map_or(0, |value| value.step.load(Ordering::Relaxed) as u64),
        objects_total: indexing.and_then(|value| value.done_at).map(|n| n as u64),
    }
}
