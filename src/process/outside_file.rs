//! Reads files whose paths come from outside the library: the environment, docker's configuration, the machine's
//! certificates, a template.
//!
//! Such a path may lead to a FIFO without a writer, an endless device, or a hanging network disk. [`read`] accepts only
//! regular files up to a size limit. A hanging disk blocks `open` and even `stat`, and nothing can interrupt these. So
//! [`within`] does the work on a separate thread, and stops waiting after [`LIMIT`].

use std::collections::HashMap;
use std::fs::{self, FileType, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio_util::task::TaskTracker;

use crate::error::{Code, Error, Result};
use crate::event::human_bytes;
use crate::process;
use crate::process::executor::{self, READS, blocking_in};

/// How long to wait for a disk. A slow network home answers within one or two seconds.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Reads a regular file of at most `max` bytes. Links are followed.
///
/// # Errors
///
/// Those of the operating system; [`ErrorKind::IsADirectory`], [`ErrorKind::InvalidInput`] for any other kind of file,
/// and [`ErrorKind::FileTooLarge`].
pub(crate) fn read(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    // Checked before opening: opening a FIFO wakes up its writer, and opening a device can have any effect.
    regular(fs::metadata(path)?.file_type())?;
    let file = OpenOptions::new()
        .read(true)
        // The path may have been replaced meanwhile.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let found = file.metadata()?;
    regular(found.file_type())?;
    let too_large = || {
        let limit = human_bytes(max as u64);
        io::Error::new(
            ErrorKind::FileTooLarge,
            format!("it is larger than {limit}"),
        )
    };
    let size = usize::try_from(found.len()).map_err(|_| too_large())?;
    if size > max {
        return Err(too_large());
    }
    // With enough capacity: a growing vector leaves copies of its content in memory, which may be a secret.
    let mut content = Vec::with_capacity(size + 1);
    file.take(max as u64 + 1).read_to_end(&mut content)?;
    match content.len() > max {
        true => Err(too_large()),
        false => Ok(content),
    }
}

fn regular(kind: FileType) -> io::Result<()> {
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        let why = "it is a folder, not a regular file";
        return Err(io::Error::new(ErrorKind::IsADirectory, why));
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    let why = format!("it is {what}, not a regular file");
    Err(io::Error::new(ErrorKind::InvalidInput, why))
}

/// Runs `work`, which reads such files, on a separate thread, and waits for it up to [`LIMIT`]. After a timeout the
/// thread continues until the disk answers. `what` names what is read, for the error; calls with the same `what` run
/// one after another, so that a hanging path blocks one thread, not one for each caller.
///
/// # Errors
///
/// Those of `work`; after the timeout, an error with `code` that names `what`.
pub(crate) async fn within<T: Send + 'static>(
    tasks: &TaskTracker,
    code: Code,
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let read = async {
        let turn = read_lock(what).lock_owned().await;
        let work = move || {
            let _turn = turn;
            work()
        };
        blocking_in(&READS, tasks, work).await
    };
    tokio::time::timeout(LIMIT, read).await.unwrap_or_else(|_| {
        let limit = LIMIT.as_secs();
        Err(
            Error::new(code, format!("{what} cannot be read within {limit} seconds"))
                .hint("check whether its disk hangs (a network home, a FUSE mount), or use a path on a local disk"),
        )
    })
}

/// Like [`within`], for a caller outside the runtime. The caller's thread waits.
pub(crate) fn wait<T: Send + 'static>(
    code: Code,
    what: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let what = what.to_owned();
    executor::runtime()?.spawn(async move {
        let done = within(&TaskTracker::new(), code, &what, work).await;
        // The receiver waits below.
        let _ = sender.send(done);
    });
    receiver.recv().unwrap_or_else(|_| Err(Error::canceled()))
}

/// The lock of the callers with the same `what`.
fn read_lock(what: &str) -> Arc<AsyncMutex<()>> {
    static LOCKS: Mutex<Option<HashMap<String, Weak<AsyncMutex<()>>>>> = Mutex::new(None);
    let mut locks = process::lock(&LOCKS);
    let locks = locks.get_or_insert_default();
    if let Some(lock) = locks.get(what).and_then(Weak::upgrade) {
        return lock;
    }
    locks.retain(|_, lock| lock.strong_count() > 0);
    let lock = Arc::new(AsyncMutex::new(()));
    locks.insert(what.to_owned(), Arc::downgrade(&lock));
    lock
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use super::*;
    use crate::process::executor::blocking;

    const MAX: usize = 1024;

    fn refused(path: &Path) -> io::Error {
        let begun = Instant::now();
        let error = read(path, MAX).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(5), "{error}");
        error
    }

    #[test]
    fn only_a_regular_file_within_its_limit_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), [b'x'; MAX]).unwrap();
        symlink("file", at("link")).unwrap();
        for name in ["file", "link"] {
            assert_eq!(read(&at(name), MAX).unwrap().len(), MAX, "{name}");
        }
        // A file in /proc reports the size 0 and is read to its end.
        let status = Path::new("/proc/self/status");
        assert!(read(status, 64 * 1024).unwrap().starts_with(b"Name:"));

        fs::write(at("large"), [b'x'; MAX + 1]).unwrap();
        let sparse = fs::File::create(at("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        fs::create_dir(at("folder")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        symlink("circle", at("circle")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        for (name, why) in [
            ("large", "larger than 1.0 KiB"),
            ("sparse", "larger than 1.0 KiB"),
            ("folder", "a folder, not a regular file"),
            ("fifo", "a FIFO, not a regular file"),
            ("socket", "a socket, not a regular file"),
            ("zero", "a device, not a regular file"),
            ("dangling", "No such file"),
            ("circle", "symbolic links"),
        ] {
            let error = refused(&at(name)).to_string();
            assert!(error.contains(why), "{name}: {error}");
        }
        // Its size is only known after reading.
        let long = refused(Path::new("/proc/self/smaps"));
        assert_eq!(long.kind(), ErrorKind::FileTooLarge, "{long}");
    }

    #[test]
    fn a_hanging_path_blocks_one_thread_and_callers_until_the_limit() {
        let runtime = executor::runtime().unwrap();
        let (release, hung) = std::sync::mpsc::channel::<()>();
        let hung = Mutex::new(Some(hung));
        let started = Arc::new(AtomicUsize::new(0));
        let tasks = TaskTracker::new();
        let begun = Instant::now();
        runtime.block_on(async {
            let calls = (0..100).map(|_| {
                let hung = hung.lock().unwrap().take();
                let started = Arc::clone(&started);
                within(&tasks, Code::InvalidOption, "/hangs", move || {
                    started.fetch_add(1, Ordering::SeqCst);
                    // The first caller hangs like a disk.
                    hung.map(|hung| hung.recv());
                    Ok(())
                })
            });
            let other = within(&tasks, Code::InvalidOption, "/other", move || {
                Ok(begun.elapsed())
            });
            let (calls, other) = tokio::join!(futures_util::future::join_all(calls), other);
            assert!(other.unwrap() < Duration::from_secs(5), "it is not delayed");
            for call in calls {
                let error = call.unwrap_err();
                assert!(error.message().contains("/hangs"), "{error:?}");
                assert!(error.message().contains("10 seconds"), "{error:?}");
            }
        });
        assert_eq!(started.load(Ordering::SeqCst), 1, "one thread");
        assert!(begun.elapsed() < LIMIT + Duration::from_secs(10));
        drop(release);
        let again = within(&tasks, Code::InvalidOption, "/hangs", || Ok(()));
        runtime.block_on(again).unwrap();
    }

    /// Held by the tests that use up all slots of one kind and need one of the other. Together, each would wait for the
    /// other.
    static ALL_SLOTS: Mutex<()> = Mutex::new(());

    #[test]
    fn hanging_disks_leave_threads_for_other_work() {
        let _alone = process::lock(&ALL_SLOTS);
        let runtime = executor::runtime().unwrap();
        let tasks = TaskTracker::new();
        let (release, hung) = std::sync::mpsc::channel::<()>();
        let hung = Arc::new(Mutex::new(hung));
        runtime.block_on(async {
            let calls = (0..100).map(|number| {
                let hung = Arc::clone(&hung);
                let what = format!("/hangs/{number}");
                let tasks = tasks.clone();
                tokio::spawn(async move {
                    let hang = move || {
                        // All others hang on the lock.
                        let _ = process::lock(&hung).recv();
                        Ok(())
                    };
                    within(&tasks, Code::InvalidOption, &what, hang).await
                })
            });
            let calls: Vec<_> = calls.collect();
            while READS.available_permits() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let free = blocking(&tasks, || Ok(()));
            let free = tokio::time::timeout(Duration::from_secs(5), free).await;
            free.expect("a thread is free").unwrap();
            drop(release);
            for call in calls {
                call.await.unwrap().unwrap();
            }
        });
    }

    #[test]
    fn fetches_do_not_delay_reads() {
        let _alone = process::lock(&ALL_SLOTS);
        let runtime = executor::runtime().unwrap();
        let tasks = TaskTracker::new();
        let (release, fetching) = std::sync::mpsc::channel::<()>();
        let fetching = Arc::new(Mutex::new(fetching));
        runtime.block_on(async {
            // More than there are slots.
            let fetches = (0..100).map(|_| {
                let fetching = Arc::clone(&fetching);
                let fetch = blocking(&tasks, move || {
                    let fetching = process::lock(&fetching);
                    let _ = fetching.recv();
                    Ok(())
                });
                tokio::spawn(fetch)
            });
            let fetches: Vec<_> = fetches.collect();
            let read = within(&tasks, Code::InvalidOption, "/meanwhile", || Ok(()));
            let read = tokio::time::timeout(Duration::from_secs(5), read).await;
            drop(release);
            read.expect("it is not delayed").unwrap();
            for fetch in fetches {
                fetch.await.unwrap().unwrap();
            }
        });
    }
}
