//! Single steps of the job, for property tests, fuzz targets and benchmarks. They are not part of the API and change
//! without notice.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use reqwest::StatusCode;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::{Cache, FetchDir};
use crate::context::{Context, Filter, Patterns};
use crate::engine::{Lines, order_by_address};
use crate::error::{Code, Error, Result, Retry};
use crate::fetch;
use crate::names::commit::CommitSha;
use crate::names::runtimes::known;
use crate::net::gitea;
use crate::net::http::Answer;
use crate::options::{OptionName, Options};
use crate::process::executor;
use crate::redact::{MAX_LINE, Masker, Secret};

/// The shown lines of a build's output, which arrives in these pieces.
pub fn log_lines(pieces: &[&[u8]], token: &str) -> Vec<String> {
    let mut options = Options::default();
    options.set(OptionName::Token, token);
    let masker = options.masker();
    let mut lines = Lines::default();
    let mut shown = Vec::new();
    for piece in pieces {
        shown.extend(lines.push(piece));
    }
    shown.extend(lines.rest());
    shown
        .iter()
        .map(|line| masker.shown(line, MAX_LINE))
        .collect()
}

/// A text in the form in which messages show it.
pub fn shown_line(text: &str, token: &str) -> String {
    Masker::new(&Secret::new(token)).shown(text, MAX_LINE)
}

/// The URL of a branch in Gitea's API.
pub fn branch_url(prefix: &str, runtime: &str, branch: &str) -> Result<String> {
    let mut options = Options::default();
    options.set(OptionName::RepoPrefix, prefix);
    options.set(OptionName::Branch, branch);
    let settings = options.settings()?;
    let runtimes = &settings.runtimes;
    let unknown = || runtimes.unknown(runtime);
    let runtime = runtimes.find(runtime).ok_or_else(unknown)?;
    let repository = settings.repo_prefix.repository(runtime);
    Ok(gitea::branch_url(&repository, branch).into())
}

/// The commit in Gitea's answer about a branch.
pub fn head_sha(body: &[u8]) -> Result<String> {
    let url = "https://host/".parse().map_err(|_| Error::canceled())?;
    let answer = Answer {
        status: StatusCode::OK,
        retry: Retry::Never,
        date: None,
        body: Some(Bytes::copy_from_slice(body)),
        reason: String::new(),
    };
    let head = gitea::head_from("main", &url, answer, false)?;
    Ok(head.commit.to_string())
}

/// The patterns of an ignore file.
pub struct Ignores(Patterns);

impl Ignores {
    /// Parses an ignore file.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        Patterns::parse(text).map(Self)
    }

    /// Whether the path is ignored. All its parent folders count too.
    pub fn ignores(&self, path: &str) -> bool {
        let (mut verdict, mut folder) = Default::default();
        let ends = path.match_indices('/').map(|(end, _)| end);
        for end in ends.chain([path.len()]) {
            (verdict, folder) = self.0.ignores(&path[..end], &folder);
        }
        verdict
    }
}

/// The order in which a client tries the nodes of a builder. Each node is its host name and the number of builds that
/// the client runs there; the result is their indexes, best first.
pub fn order_of_nodes(nodes: &[(String, usize)], runtime: &str) -> Vec<usize> {
    order_by_address(nodes, runtime)
}

/// Git objects, in the form in which a server sends them.
#[derive(Default)]
pub struct Repository(std::sync::Mutex<Vec<(gix_object::Kind, Vec<u8>)>>);

impl Repository {
    /// Adds a blob, a tree or a commit with any content, and returns its id.
    pub fn write(&self, kind: &str, data: &[u8]) -> String {
        let kind = gix_object::Kind::from_bytes(kind.as_bytes()).expect("a kind of git object");
        let id = gix_object::compute_hash(gix_hash::Kind::Sha1, kind, data);
        let mut objects = self.0.lock().expect("no writer panics");
        objects.push((kind, data.to_owned()));
        id.expect("no collision").to_string()
    }

    /// Writes the tree of a commit into a cache, like a fetch.
    pub fn check_out(&self, commit: &str, cache: &Path) -> Result<Checkout> {
        let commit = CommitSha::parse(commit).ok_or_else(Error::canceled)?;
        let cache = Cache::open(cache, &known("hermes"))?;
        let lock = executor::runtime()?.block_on(cache.lock(&commit, |_| {}))?;
        let work = cache.fetch_dir(&commit, &lock)?;
        let result = fetch::check_out(&self.pack(), &commit, &work);
        Ok(Checkout { work, result })
    }

    fn pack(&self) -> Vec<u8> {
        use gix_pack::data;
        let objects = self.0.lock().expect("no writer panics");
        let count = u32::try_from(objects.len()).expect("they are few");
        let mut pack = data::header::encode(data::Version::V2, count).to_vec();
        for (kind, content) in &*objects {
            let header = match kind {
                gix_object::Kind::Commit => data::entry::Header::Commit,
                gix_object::Kind::Tree => data::entry::Header::Tree,
                gix_object::Kind::Blob => data::entry::Header::Blob,
                gix_object::Kind::Tag => data::entry::Header::Tag,
            };
            let size = content.len() as u64;
            header
                .write_to(size, &mut pack)
                .expect("writing to memory does not fail");
            let fast = gix_zlib::Compression::BEST_SPEED;
            let mut deflate = gix_zlib::stream::deflate::Write::new(pack, fast);
            deflate
                .write_all(content)
                .expect("writing to memory does not fail");
            deflate.flush().expect("writing to memory does not fail");
            pack = deflate.into_inner();
        }
        let mut hash = gix_hash::hasher(gix_hash::Kind::Sha1);
        hash.update(&pack);
        let sum = hash.try_finalize().expect("no collision");
        pack.extend_from_slice(sum.as_slice());
        pack
    }
}

/// A checked-out tree. Dropping it removes the tree.
pub struct Checkout {
    work: FetchDir,
    /// The number of its files, or why the checkout failed.
    pub result: Result<u64>,
}

impl Checkout {
    /// The tree's folder.
    pub fn tree(&self) -> PathBuf {
        self.work.path().join("tree")
    }
}

/// The build context of a checked-out tree as an archive, as sent to the classic builder.
pub fn archive(tree: &Path) -> Result<Vec<u8>> {
    let context = Context::open(tree, 0, CancellationToken::new())?;
    let filter = context.classic_filter()?;
    read(context, filter)
}

/// Like [`archive`], with `patterns` instead of the ignore file, as BuildKit requests it.
pub fn archive_without(tree: &Path, patterns: &[String]) -> Result<Vec<u8>> {
    let excludes = Patterns::new(patterns).map_err(|why| Error::new(Code::BuildFailed, why))?;
    let filter = Filter {
        excludes,
        ..Filter::default()
    };
    read(Context::open(tree, 0, CancellationToken::new())?, filter)
}

fn read(context: Context, filter: Filter) -> Result<Vec<u8>> {
    executor::runtime()?
        .block_on(async {
            let chunks = Arc::new(context).archive(filter, &TaskTracker::new());
            chunks
                .try_fold(Vec::new(), |mut archive, chunk| async move {
                    archive.extend_from_slice(&chunk);
                    Ok(archive)
                })
                .await
        })
        .map_err(|error| Error::new(Code::BuildFailed, error.to_string()))
}
