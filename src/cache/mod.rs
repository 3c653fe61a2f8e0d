//! The cache on disk: one checked-out tree per commit, shared by every process of one user.
//!
//! ```text
//! <cache>/<runtime>/<sha12>/                the tree, complete, or not there at all
//! <cache>/<runtime>/.<sha12>.json           which commit it is: written last, so it vouches for the tree
//! <cache>/<runtime>/.<sha12>.lock           held by whoever fetches or builds the commit
//! <cache>/<runtime>/.<sha12>.used           when a call last used the commit's image; locked while that is removed
//! <cache>/<runtime>/.work-<sha12>-XXXXXX    the fetch of whoever holds the lock, until it is whole
//! <cache>/<runtime>/.build.log              the log of the last build; .<sha12>.log while it is written
//! ```
//!
//! A tree is made in a folder of its own, moved into its place in one step, written through to the
//! disk, and only then vouched for; a build reads it meanwhile. Whatever moment a crash picks, there is
//! a whole tree with its voucher, or something without one, which is thrown away (promise P5). The lock
//! is the operating system's, so it ends with the process that holds it, however that ends.
//!
//! Other users of the machine can plant nothing here: no folder on the way is theirs or can be written
//! by them, and what is in the cache counts only if it is this user's own.

pub(crate) mod disk;
pub(crate) mod ownership;

use std::fs::{self, DirBuilder, DirEntry, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use crate::error::{Code, Error, Result};
use crate::names::image::{CommitSha, is_short};
use crate::names::runtimes::Runtime;
use crate::process::executor::blocking;
use crate::process::limits;
use disk::Disk;

/// How often a waiting process looks whether the lock is free. The first looks are quicker.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// What is left of a killed process's fetch is removed after this time.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

const WORK_PREFIX: &str = ".work-";

/// The log of the runtime's last build.
const LOG: &str = ".build.log";

/// The cache's folder for one runtime.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
}

/// A whole tree.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) path: PathBuf,
    pub(crate) commit_time: i64,
}

/// A tree as it lies here, whole or not.
#[derive(Debug)]
pub(crate) struct CacheEntry {
    pub(crate) path: PathBuf,
    /// The first twelve digits of its commit.
    pub(crate) short: String,
    /// Its commit, if it is vouched for.
    pub(crate) commit: Option<CommitSha>,
    /// What it takes on the disk.
    pub(crate) bytes: u64,
    pub(crate) made: SystemTime,
}

/// What vouches for a tree.
#[derive(Serialize, Deserialize)]
struct Voucher {
    commit: String,
    commit_time: i64,
}

/// Who holds a lock, as told to those who wait.
#[derive(Serialize, Deserialize)]
struct Holder {
    pid: u32,
    since_unix: u64,
}

/// The right to fetch and build one commit, on this machine, until the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Lock {
    _file: Arc<File>,
}

/// The right to remove what was made of one commit: no call begins to use it meanwhile.
#[derive(Debug)]
pub(crate) struct Unused {
    _file: File,
}

/// An empty folder for a fetch. It removes itself unless it is published, and only then gives up the
/// lock: whoever gets that next finds nothing half-written.
#[derive(Debug)]
pub(crate) struct FetchDir {
    folder: TempDir,
    disk: Disk,
    _lock: Lock,
}

impl FetchDir {
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The disk that it is on.
    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }
}

impl Cache {
    /// Opens the folder, and makes it, readable for its owner only, if it is not there.
    pub(crate) fn open(root: &Path, runtime: &Runtime) -> Result<Self> {
        let cache = Self::make(root, runtime)?;
        cache.sweep();
        Ok(cache)
    }

    fn make(root: &Path, runtime: &Runtime) -> Result<Self> {
        let folder = root.join(runtime.as_str());
        // Before anything is made too: not through a link that somebody else has put there.
        ownership::check(root)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| failed(&folder, "cannot be made", &error))?;
        ownership::check(root)?;
        ownership::check(&folder)?;
        Ok(Self { folder })
    }

    /// Takes the lock for `commit`; tells `waiting` whom it waits for, once for each holder.
    pub(crate) async fn lock(
        &self,
        commit: &CommitSha,
        mut waiting: impl FnMut(String),
    ) -> Result<Lock> {
        let path = self.lock_path(commit.short());
        // The cache may be on a network disk, which may hang. Nobody has to wait for the thread: a lock
        // that comes too late is given back.
        let tasks = TaskTracker::new();
        let opened = path.clone();
        let mut file = blocking(&tasks, move || open_lock(&opened)).await?;
        let mut told = String::new();
        let mut pause = Duration::from_millis(5);
        loop {
            let path = path.clone();
            let attempt = move || {
                Ok(match take(file, &path)? {
                    Ok(lock) => Ok(lock),
                    Err(mut taken) => Err((holder(&mut taken), taken)),
                })
            };
            let holder = match blocking(&tasks, attempt).await? {
                Ok(lock) => return Ok(lock),
                Err((holder, taken)) => {
                    file = taken;
                    holder
                }
            };
            if told != holder {
                waiting(holder.clone());
                told = holder;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOCK_POLL);
        }
    }

    /// The folder as it is, to tidy up in; `None` if there is none, or a link in its place. Nothing is
    /// made.
    pub(crate) fn existing(root: &Path, runtime: &Runtime) -> Result<Option<Self>> {
        let folder = root.join(runtime.as_str());
        ownership::check(root)?;
        if !ownership::is_own_folder(&folder) {
            return Ok(None);
        }
        ownership::check(&folder)?;
        Ok(Some(Self { folder }))
    }

    /// The lock for a commit, by its first twelve digits, if nobody has it.
    pub(crate) fn try_lock(&self, short: &str) -> Result<Option<Lock>> {
        let path = self.lock_path(short);
        Ok(take(open_lock(&path)?, &path)?.ok())
    }

    /// Has somebody the lock for a commit? For someone who changes nothing, not even the lock file.
    pub(crate) fn is_locked(&self, short: &str) -> bool {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.lock_path(short));
        // Shared, so that two who look do not see each other.
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    fn lock_path(&self, short: &str) -> PathBuf {
        self.folder.join(format!(".{short}.lock"))
    }

    /// Notes that a call uses the image of a commit now. False while somebody removes it: call again after that.
    pub(crate) fn mark_used(root: &Path, runtime: &Runtime, short: &str) -> Result<bool> {
        let path = Self::make(root, runtime)?.used_path(short);
        let file = open_lock(&path)?;
        // One byte of nothing: a file without it was made by somebody who removes. The time is that of this
        // machine's clock, which a file server's may differ from.
        let noted = file
            .set_len(1)
            .and_then(|()| file.set_modified(SystemTime::now()));
        noted.map_err(|error| failed(&path, "cannot be written", &error))?;
        // The note first, as in `try_unused` the lock is: one of the two sees the other.
        match file.try_lock_shared() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(failed(&path, "cannot be locked", &error)),
        }
    }

    /// The right to remove what was made of a commit, unless a call has used it within the window. Call it with the
    /// commit's lock held.
    pub(crate) fn try_unused(
        &self,
        short: &str,
        window: Option<Duration>,
    ) -> Result<Option<Unused>> {
        let path = self.used_path(short);
        let file = open_lock(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => {
                return Err(failed(&path, "cannot be locked", &error));
            }
        }
        let lately = used_lately(&file, window);
        if lately.is_some_and(|age| age.is_none()) {
            // The clock has been set back since: from now on the note ages as others do.
            let _ = file.set_modified(SystemTime::now());
        }
        Ok(lately.is_none().then_some(Unused { _file: file }))
    }

    /// Has a call used the commit within the window? For someone who changes nothing.
    pub(crate) fn is_used(&self, short: &str, window: Option<Duration>) -> bool {
        open_own(&self.used_path(short)).is_some_and(|file| used_lately(&file, window).is_some())
    }

    fn used_path(&self, short: &str) -> PathBuf {
        self.folder.join(format!(".{short}.used"))
    }

    /// When a tree became whole, or its folder was made: as of now.
    pub(crate) fn made(&self, kept: &CacheEntry) -> Option<SystemTime> {
        let whole = kept.commit.as_ref().map(|_| self.voucher(&kept.short));
        fs::symlink_metadata(whole.as_ref().unwrap_or(&kept.path))
            .and_then(|found| found.modified())
            .ok()
    }

    /// The trees that are here, whole or half-written, with names that this library gives. Links and
    /// what belongs to others are not among them.
    pub(crate) fn kept(&self) -> Vec<CacheEntry> {
        let entries = self.leftovers("").filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let work = name.strip_prefix(WORK_PREFIX).and_then(|rest| {
                let (short, end) = rest.split_once('-')?;
                (!end.is_empty()).then_some(short)
            });
            let short = work.unwrap_or(&name);
            if !is_short(short) {
                return None;
            }
            let (short, path) = (short.to_owned(), entry.path());
            let found = fs::symlink_metadata(&path).ok()?;
            // What vouches for a tree begins as a file among the works.
            let ours = ownership::is_own_folder(&path) || (work.is_some() && found.is_file());
            if !ours {
                return None;
            }
            let commit = self
                .vouched(&short)
                .filter(|_| work.is_none())
                .and_then(|voucher| CommitSha::parse(&voucher.commit))
                .filter(|commit| commit.short() == short);
            let voucher = commit.as_ref().map(|_| self.voucher(&short));
            let made = voucher.and_then(|voucher| fs::metadata(voucher).ok());
            let made = made.unwrap_or(found).modified().ok();
            Some(CacheEntry {
                short,
                commit,
                bytes: used_bytes(&path),
                made: made.unwrap_or(SystemTime::UNIX_EPOCH),
                path,
            })
        });
        entries.collect()
    }

    /// Removes a tree, and says whether it has: one that has become whole since it was seen stays. Call
    /// it with the lock held.
    pub(crate) fn discard(&self, kept: &CacheEntry) -> Result<bool> {
        let tree = self.folder.join(&kept.short);
        let voucher = self.voucher(&kept.short);
        if kept.path == tree {
            if kept.commit.is_none() && read_own(&voucher).is_some_and(|text| !text.is_empty()) {
                return Ok(false);
            }
            // The voucher first, as everywhere.
            remove(&voucher)?;
        }
        remove(&kept.path)?;
        Ok(true)
    }

    /// The tree of `commit`, if it is here and whole. What is here without being vouched for is
    /// removed, and what a killed process has left of its fetch. Call it with the lock held: nobody
    /// else is at this commit then.
    pub(crate) fn tree(&self, commit: &CommitSha) -> Result<Option<Tree>> {
        for leftover in self.leftovers(&work_prefix(commit)) {
            remove(&leftover.path())?;
        }
        let path = self.folder.join(commit.short());
        let vouched = self.vouched(commit.short());
        if let Some(voucher) = vouched.filter(|voucher| voucher.commit == commit.as_str())
            && ownership::is_own_folder(&path)
        {
            return Ok(Some(Tree {
                path,
                commit_time: voucher.commit_time,
            }));
        }
        // The voucher first.
        remove(&self.voucher(commit.short()))?;
        remove(&path)?;
        Ok(None)
    }

    /// An empty folder for a fetch.
    ///
    /// # Errors
    ///
    /// [`Code::Cache`], also if the disk is as good as full.
    pub(crate) fn fetch_dir(&self, commit: &CommitSha, lock: &Lock) -> Result<FetchDir> {
        let disk = Disk::of(&self.folder);
        disk.require(disk::LEAST, "any template")?;
        let folder = tempfile::Builder::new()
            .prefix(&work_prefix(commit))
            .tempdir_in(&self.folder)
            .map_err(|error| failed(&self.folder, "cannot be written", &error))?;
        Ok(FetchDir {
            folder,
            disk,
            _lock: lock.clone(),
        })
    }

    /// Moves `tree` of the work folder to where the tree of `commit` belongs. It can be used at once;
    /// for the next call it is there when it is vouched for.
    pub(crate) fn place(
        &self,
        commit: &CommitSha,
        commit_time: i64,
        work: &FetchDir,
    ) -> Result<Tree> {
        let path = self.folder.join(commit.short());
        fs::rename(work.path().join("tree"), &path)
            .map_err(|error| failed(&path, "cannot be written", &error))?;
        point!("tree-renamed");
        Ok(Tree { path, commit_time })
    }

    /// Vouches for the tree of `commit`, once all of it is on the disk.
    pub(crate) fn mark_complete(&self, commit: &CommitSha, commit_time: i64) -> Result<()> {
        let write = || -> io::Result<()> {
            write_through(&self.folder.join(commit.short()))?;
            point!("tree-synced");
            let voucher = serde_json::to_vec(&Voucher {
                commit: commit.to_string(),
                commit_time,
            })?;
            let mut file = tempfile::Builder::new()
                .prefix(&work_prefix(commit))
                .tempfile_in(&self.folder)?;
            file.write_all(&voucher)?;
            point!("voucher-written");
            file.as_file().sync_all()?;
            file.persist(self.voucher(commit.short()))?;
            point!("voucher-renamed");
            File::open(&self.folder)?.sync_all()?;
            point!("cache-synced");
            Ok(())
        };
        let voucher = self.voucher(commit.short());
        write().map_err(|error| failed(&voucher, "cannot be written", &error))
    }

    /// The log of the last build, its time and its place. What is longer than `max` is none of ours.
    pub(crate) fn log(&self, max: usize) -> Option<(PathBuf, SystemTime, Vec<u8>)> {
        let path = self.folder.join(LOG);
        let file = open_own(&path)?;
        let found = file.metadata().ok()?;
        let mut text = Vec::new();
        file.take(max as u64).read_to_end(&mut text).ok()?;
        Some((path, found.modified().ok()?, text))
    }

    /// Makes this the log of the last build, in one step. The lock is that of the commit, so that
    /// nobody else writes to the same file.
    pub(crate) fn write_log(&self, commit: &CommitSha, _lock: &Lock, text: &str) -> io::Result<()> {
        let new = self.folder.join(format!(".{}.log", commit.short()));
        // What a killed process has left of it.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(new, self.folder.join(LOG))
    }

    fn voucher(&self, short: &str) -> PathBuf {
        self.folder.join(format!(".{short}.json"))
    }

    fn vouched(&self, short: &str) -> Option<Voucher> {
        serde_json::from_slice(&read_own(&self.voucher(short))?).ok()
    }

    /// Removes what killed processes have left of other commits. A failure is nobody's problem today.
    fn sweep(&self) {
        for leftover in self.leftovers(WORK_PREFIX) {
            let old = leftover
                .metadata()
                .and_then(|found| found.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFTOVER_AGE));
            if old {
                let _ = remove(&leftover.path());
            }
        }
    }

    /// What is here under names that begin like this.
    fn leftovers(&self, prefix: &str) -> impl Iterator<Item = DirEntry> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter(move |entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(prefix.as_bytes())
        })
    }
}

/// Takes the lock and signs it, or gives the file back where somebody else has it.
fn take(mut file: File, path: &Path) -> Result<std::result::Result<Lock, File>> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Err(file)),
        Err(TryLockError::Error(error)) => return Err(failed(path, "cannot be locked", &error)),
    }
    sign(&mut file);
    point!("lock-signed");
    let _file = Arc::new(file);
    Ok(Ok(Lock { _file }))
}

/// How the names of what a fetch makes begin.
fn work_prefix(commit: &CommitSha) -> String {
    format!("{WORK_PREFIX}{}-", commit.short())
}

/// A file to read, if it is there and this user's own.
fn open_own(path: &Path) -> Option<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()
        .filter(ownership::is_own_file)
}

/// The text of a small one.
fn read_own(path: &Path) -> Option<Vec<u8>> {
    let file = open_own(path)?;
    let mut text = Vec::new();
    file.take(4096).read_to_end(&mut text).ok()?;
    Some(text)
}

/// Removes whatever is there, and does not follow it if it is a link. What is not there is fine.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(path, "cannot be removed", &error))
        }
        _ => Ok(()),
    }
}

fn failed(path: &Path, what: &str, error: &io::Error) -> Error {
    let known = limits::reached(error).or_else(|| disk::full(path, error));
    known.unwrap_or_else(|| {
        Error::new(
            Code::Cache,
            format!("the cache: {} {what}: {error}", path.display()),
        )
        .hint("check its permissions, or set MOLECULE_LOCAL_BUILD_CACHE to another folder")
    })
}

/// Opens a lock file, and makes it if it is not there.
fn open_lock(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // Not to hang where somebody has put a FIFO.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| failed(path, "cannot be opened", &error))?;
    if ownership::is_own_file(&file) {
        return Ok(file);
    }
    Err(Error::new(
        Code::Cache,
        format!("the cache: {} is not this user's lock file", path.display()),
    )
    .hint("see who made it, and remove it"))
}

/// How long ago a call has noted that it uses a commit, if that was within the window. The age is `None` for a note
/// of the future: the clock has been set back, and it may be of a moment ago.
fn used_lately(file: &File, window: Option<Duration>) -> Option<Option<Duration>> {
    let (window, found) = (window?, file.metadata().ok()?);
    let age = found.modified().ok()?.elapsed().ok();
    (found.len() > 0 && age.is_none_or(|age| age < window)).then_some(age)
}

/// Says who has a lock: only a courtesy to those who wait, for the lock itself is the kernel's.
fn sign(file: &mut File) {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let me = Holder {
        pid: std::process::id(),
        since_unix: since.as_secs(),
    };
    let _ = serde_json::to_vec(&me).map(|text| write_over(file, &text));
}

/// What is below a path, in bytes of the disk. No link is followed.
fn used_bytes(path: &Path) -> u64 {
    let (mut bytes, mut paths) = (0, vec![path.to_owned()]);
    while let Some(path) = paths.pop() {
        let Ok(found) = fs::symlink_metadata(&path) else {
            continue;
        };
        // The unit of st_blocks, whatever the file system's own is (POSIX, sys/stat.h).
        bytes += found.blocks() * 512;
        if found.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            paths.extend(entries.map(|entry| entry.path()));
        }
    }
    bytes
}

fn write_over(file: &mut File, text: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text)
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(1024).read_to_string(&mut text));
    let told = read
        .ok()
        .and_then(|_| serde_json::from_str::<Holder>(&text).ok());
    match told {
        Some(holder) if holder.pid == std::process::id() => {
            "another client in this process".to_owned()
        }
        Some(holder) => format!("process {}", holder.pid),
        None => "another process".to_owned(),
    }
}

/// Has everything below `folder` on the disk before it is moved into its place.
#[cfg(target_os = "linux")]
fn write_through(folder: &Path) -> io::Result<()> {
    // One call for the whole file system costs less than one for each of many thousand files.
    Ok(rustix::fs::syncfs(File::open(folder)?)?)
}

#[cfg(not(target_os = "linux"))]
fn write_through(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            write_through(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::names::runtimes::known;

    const SHORT: &str = "0123456789ab";
    const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

    fn mark(root: &Path) -> bool {
        Cache::mark_used(root, &known("hermes"), SHORT).unwrap()
    }

    fn set_back(cache: &Cache, to: SystemTime) {
        let file = open_own(&cache.used_path(SHORT)).unwrap();
        file.set_modified(to).unwrap();
    }

    fn cache(root: &Path) -> Cache {
        Cache::open(root, &known("hermes")).unwrap()
    }

    #[test]
    fn a_commit_that_was_never_used_is_not_used_by_looking() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        assert!(!cache.is_used(SHORT, MINUTE));
        for _ in 0..2 {
            assert!(cache.try_unused(SHORT, MINUTE).unwrap().is_some());
        }
    }

    #[test]
    fn a_commit_stays_used_for_the_window() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        assert!(mark(root.path()) && cache.is_used(SHORT, MINUTE));
        assert!(cache.try_unused(SHORT, MINUTE).unwrap().is_none());
        assert!(cache.try_unused(SHORT, None).unwrap().is_some());
        set_back(&cache, SystemTime::now() - Duration::from_secs(61));
        assert!(!cache.is_used(SHORT, MINUTE));
        assert!(cache.try_unused(SHORT, MINUTE).unwrap().is_some());
    }

    #[test]
    fn a_commit_is_not_taken_up_while_it_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let unused = cache.try_unused(SHORT, MINUTE).unwrap().unwrap();
        assert!(!mark(root.path()));
        assert!(cache.try_unused(SHORT, None).unwrap().is_none());
        drop(unused);
        assert!(mark(root.path()));
    }

    #[test]
    fn a_note_of_the_future_counts_and_ages_from_the_next_look() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        mark(root.path());
        set_back(
            &cache,
            SystemTime::now() + Duration::from_secs(3600 * 24 * 365),
        );
        assert!(cache.is_used(SHORT, MINUTE));
        assert!(cache.try_unused(SHORT, MINUTE).unwrap().is_none());
        let noted = fs::metadata(cache.used_path(SHORT)).unwrap().modified();
        assert!(noted.unwrap() <= SystemTime::now());
    }

    fn commit() -> CommitSha {
        CommitSha::parse(&format!("{SHORT}{}", "0".repeat(28))).unwrap()
    }

    fn locked(cache: &Cache) -> Lock {
        cache.try_lock(SHORT).unwrap().unwrap()
    }

    /// What pruning sees of a tree that nothing vouches for yet.
    fn unvouched(cache: &Cache) -> CacheEntry {
        fs::create_dir(cache.folder.join(SHORT)).unwrap();
        let kept = cache.kept().pop().unwrap();
        assert_eq!((&*kept.short, &kept.commit), (SHORT, &None));
        kept
    }

    #[test]
    fn a_tree_that_became_whole_since_it_was_seen_stays() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let kept = unvouched(&cache);
        cache.mark_complete(&commit(), 1).unwrap();
        assert!(!cache.discard(&kept).unwrap());
        assert!(cache.tree(&commit()).unwrap().is_some());
    }

    #[test]
    fn a_tree_with_an_empty_marker_goes_and_the_marker_too() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let kept = unvouched(&cache);
        fs::write(cache.voucher(SHORT), "").unwrap();
        assert!(cache.discard(&kept).unwrap());
        assert!(!kept.path.exists() && !cache.voucher(SHORT).exists());
    }

    #[test]
    fn no_more_is_read_of_a_log_than_may_be_in_one() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let lock = locked(&cache);
        cache.write_log(&commit(), &lock, "0123456789").unwrap();
        assert_eq!(cache.log(4).unwrap().2, b"0123");
        assert_eq!(cache.log(100).unwrap().2, b"0123456789");
    }

    #[test]
    fn a_log_is_written_although_a_killed_process_has_left_half_of_one() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let lock = locked(&cache);
        let half = cache.folder.join(format!(".{SHORT}.log"));
        fs::write(&half, "ha").unwrap();
        cache.write_log(&commit(), &lock, "whole").unwrap();
        assert_eq!(cache.log(100).unwrap().2, b"whole");
        assert!(!half.exists());
    }

    #[test]
    fn what_is_left_of_a_killed_fetch_goes_when_its_commit_is_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let left = |short: &str| {
            let path = cache.folder.join(format!("{WORK_PREFIX}{short}-Xy12Zw"));
            fs::create_dir(&path).unwrap();
            path
        };
        let (its, another) = (left(SHORT), left("ba9876543210"));
        assert!(cache.tree(&commit()).unwrap().is_none());
        assert!(!its.exists() && another.exists());
    }

    #[test]
    fn a_marker_of_another_commit_does_not_make_a_tree_whole() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let kept = unvouched(&cache);
        for commit in ["b".repeat(40), format!("{SHORT}{}", "1".repeat(28))] {
            let marker = format!(r#"{{"commit":"{commit}","commit_time":1}}"#);
            fs::write(cache.voucher(SHORT), marker).unwrap();
            let whole = commit.starts_with(SHORT);
            assert_eq!(cache.kept()[0].commit.is_some(), whole, "{commit}");
            // Which of those that begin alike it is, a call looks at.
            assert!(cache.tree(&self::commit()).unwrap().is_none());
            assert!(!kept.path.exists());
            fs::create_dir(&kept.path).unwrap();
        }
    }
}
