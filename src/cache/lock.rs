//! The lock of a commit: one call at a time fetches and builds it, of all processes on this machine.
//!
//! It is the kernel's lock on an open file (`flock`, by [`File::try_lock`]), so it ends with the process that holds
//! it, however that ends. gix-lock, which is in the dependency tree, locks by the existence of a file instead: one
//! that a killed process has left would block the commit. fd-lock and fs4 wrap the call that the standard library
//! has by now.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_util::task::TaskTracker;

use crate::cache::Cache;
use crate::cache::files::FLAGS;
use crate::cache::lock_file::{self, Locked};
use crate::error::Result;
use crate::names::commit::CommitSha;
use crate::process::executor::blocking;

/// The longest pause between two attempts, and the first one. Each pause is twice as long as the one before.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// How long the lock file must name the same holder before it is reported. A process takes the lock first and writes
/// its id into the file after that.
const HOLDER_STABLE: Duration = Duration::from_millis(100);

/// The lock of one commit, held until the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Lock {
    _file: Arc<Locked>,
}

/// Who holds a lock, as the lock file says.
#[derive(Serialize, Deserialize)]
struct Holder {
    pid: u32,
}

/// Decides when a holder is reported.
struct HolderReport {
    holder: String,
    since: Instant,
    reported: bool,
}

impl HolderReport {
    fn new(now: Instant) -> Self {
        Self {
            holder: String::new(),
            since: now,
            reported: false,
        }
    }

    /// The holder, if it is to be reported now.
    fn observe(&mut self, holder: String, now: Instant) -> Option<String> {
        if self.holder != holder {
            *self = Self {
                holder,
                ..Self::new(now)
            };
        }
        let report = !self.reported && now.duration_since(self.since) >= HOLDER_STABLE;
        self.reported |= report;
        report.then(|| self.holder.clone())
    }
}

impl Cache {
    /// Takes the lock for `commit`. Calls `waiting` with the holder it waits for, once for each holder, unless the wait
    /// is very short.
    pub(crate) async fn lock(
        &self,
        commit: &CommitSha,
        mut waiting: impl FnMut(String),
    ) -> Result<Lock> {
        let path = self.lock_path(commit.short());
        // Not the client's tracker: closing the client must not wait for a cache on a network disk that hangs. A
        // lock that is taken after the call has ended is released.
        let tasks = TaskTracker::new();
        let opened = path.clone();
        let mut file = blocking(&tasks, move || lock_file::open(&opened)).await?;
        let mut report = HolderReport::new(Instant::now());
        let mut pause = FIRST_PAUSE;
        loop {
            let path = path.clone();
            let attempt = move || {
                Ok(match take(file, &path)? {
                    Ok(lock) => Ok(lock),
                    Err(mut file) => Err((read_holder(&mut file), file)),
                })
            };
            let holder = match blocking(&tasks, attempt).await? {
                Ok(lock) => return Ok(lock),
                Err((holder, unlocked)) => {
                    file = unlocked;
                    holder
                }
            };
            if let Some(holder) = report.observe(holder, Instant::now()) {
                waiting(holder);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Takes the lock for a commit, by its first twelve digits. `None` if it is held.
    pub(crate) fn try_lock(&self, short: &str) -> Result<Option<Lock>> {
        let path = self.lock_path(short);
        Ok(take(lock_file::open(&path)?, &path)?.ok())
    }

    /// Whether the commit is locked, checked without creating the lock file (for dry runs and `mol doctor`).
    pub(crate) fn is_locked(&self, short: &str) -> bool {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(FLAGS)
            .open(self.lock_path(short));
        file.is_ok_and(lock_file::is_locked)
    }

    pub(super) fn lock_path(&self, short: &str) -> PathBuf {
        self.folder.join(format!(".{short}.lock"))
    }
}

/// Takes the lock and writes its holder, or returns the file if the lock is held.
fn take(file: File, path: &Path) -> Result<std::result::Result<Lock, File>> {
    let locked = match lock_file::try_lock(file, path)? {
        Ok(locked) => locked,
        Err(file) => return Ok(Err(file)),
    };
    // Only for the messages of those who wait: the lock is the kernel's.
    let _ = write_holder(&locked);
    point!("holder-written");
    let _file = Arc::new(locked);
    Ok(Ok(Lock { _file }))
}

fn write_holder(mut file: &File) -> io::Result<()> {
    let holder = serde_json::to_vec(&Holder {
        pid: std::process::id(),
    })?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&holder)
}

fn read_holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(1024).read_to_string(&mut text));
    let holder = read
        .ok()
        .and_then(|_| serde_json::from_str::<Holder>(&text).ok());
    match holder {
        Some(holder) if holder.pid == std::process::id() => {
            "another client in this process".to_owned()
        }
        Some(holder) => format!("process {}", holder.pid),
        None => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reports, if the lock file has these holders at these times, in milliseconds.
    fn reported(seen: &[(u64, &str)]) -> Vec<String> {
        let start = Instant::now();
        let mut report = HolderReport::new(start);
        seen.iter()
            .filter_map(|(at, holder)| {
                report.observe((*holder).to_owned(), start + Duration::from_millis(*at))
            })
            .collect()
    }

    #[test]
    fn a_lock_file_names_its_holder() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[b'x'; 1000]).unwrap();
        write_holder(&file).unwrap();
        assert_eq!(read_holder(&mut file), "another client in this process");

        file.set_len(0).unwrap();
        file.rewind().unwrap();
        file.write_all(br#"{"pid":1,"since_unix":2}"#).unwrap();
        assert_eq!(read_holder(&mut file), "process 1");

        file.set_len(0).unwrap();
        assert_eq!(read_holder(&mut file), "another process");
    }

    #[test]
    fn a_holder_is_reported_once() {
        let seen = [(0, "process 1"), (50, "process 1"), (100, "process 1")];
        assert_eq!(reported(&seen), ["process 1"]);
        assert_eq!(
            reported(&[&seen[..], &[(200, "process 1"), (900, "process 1")]].concat()),
            ["process 1"]
        );
    }

    #[test]
    fn a_holder_is_reported_after_it_is_unchanged_for_100_ms() {
        for before in ["another process", "process 1, which has ended"] {
            let seen = [
                (0, before),
                (99, before),
                (120, "process 2"),
                (200, "process 2"),
                (220, "process 2"),
            ];
            assert_eq!(reported(&seen), ["process 2"]);
        }
    }

    #[test]
    fn a_holder_without_a_name_and_each_new_holder_are_reported() {
        let seen = [
            (0, "another process"),
            (100, "another process"),
            (200, "process 2"),
            (300, "process 2"),
        ];
        assert_eq!(reported(&seen), ["another process", "process 2"]);
    }
}
