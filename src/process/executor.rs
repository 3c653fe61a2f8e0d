//! The tokio runtime, one for the life of the process, and threads for blocking work.
//!
//! Each of these threads does one job and ends. tokio's own pool is not used: if the operating system refuses a
//! thread, it panics and keeps the job, which then starts at any later time or never. Here that is an error, and the
//! job is dropped.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use once_cell::sync::OnceCell;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio_util::task::TaskTracker;

use crate::error::{Code, Error, Result};
use crate::process;
use crate::process::{limits, panics, signals};

static RUNTIME: OnceCell<Runtime> = OnceCell::new();

/// The name of all threads of the library.
const NAME: &str = "libmol";

/// The async work only waits for networks and engines, so two threads are enough for thousands of calls.
const WORKERS: usize = 2;

/// Limits the threads for fetches, archives and the disk. A build sometimes uses two at once.
static WORK: Semaphore = Semaphore::const_new(MAX_WORK);
const MAX_WORK: usize = 64;

/// Limits the threads for name lookups and process starts. A fetch waits for a name lookup while it holds a slot of
/// [`WORK`], so these have a limit of their own.
pub(crate) static SHORT_WORK: Semaphore = Semaphore::const_new(64);

/// Limits the threads that read files from outside the library. Such a read has a time limit, so it does not wait for
/// slots of [`WORK`], which fetches hold for minutes. A thread that hangs with its disk cannot be ended; with this
/// limit, hanging disks leave most of the process's threads to other work.
pub(super) static READS: Semaphore = Semaphore::const_new(16);

/// The runtime. The first call starts it.
///
/// # Errors
///
/// [`Code::ProcessLimit`] if the operating system refuses a thread or a file descriptor. The next call
/// tries again.
pub(crate) fn runtime() -> Result<&'static Runtime> {
    RUNTIME.get_or_try_init(start_runtime)
}

/// Runs a future of a test to its end.
#[cfg(test)]
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    runtime().unwrap().block_on(work)
}

fn start_runtime() -> Result<Runtime> {
    signals::remember_host();
    check_threads(WORKERS + 1)?;
    // The kernel counts a thread for a short time after it has been joined.
    thread::sleep(Duration::from_millis(2));
    let gate = Arc::new(Gate::new(GATE_TIMEOUT));
    let worker_gate = Arc::clone(&gate);
    let built = panic::catch_unwind(move || {
        Builder::new_multi_thread()
            // Otherwise tokio reads the number from the environment.
            .worker_threads(WORKERS)
            .thread_name(NAME)
            .on_thread_start(move || {
                signals::block_write_signals();
                worker_gate.pass();
            })
            .enable_io()
            .enable_time()
            .build()
    });
    match built {
        Ok(Ok(runtime)) if gate.open() => Ok(runtime),
        Ok(Ok(runtime)) => {
            // Dropping it would wait for its threads.
            runtime.shutdown_background();
            Err(Error::new(
                Code::ProcessLimit,
                "the threads of the library did not start in time",
            )
            .hint(
                "try again; check whether this process was suspended or the machine is overloaded",
            ))
        }
        Ok(Err(error)) => Err(limits::reached(&error).unwrap_or_else(|| {
            Error::new(
                Code::Internal,
                format!("the runtime cannot be started: {error}"),
            )
        })),
        // tokio panics here only if it cannot start a thread.
        Err(_) => Err(limits::no_thread("a thread of the library was refused")),
    }
}

/// Checks that this many threads can be started now. Call it before a dependency starts threads: the dependency would
/// panic if it could start none. tokio can even hang: if its second worker cannot be started, it waits forever for the
/// first one.
///
/// # Errors
///
/// [`Code::ProcessLimit`]
pub(crate) fn check_threads(threads: usize) -> Result<()> {
    let held = Mutex::new(());
    thread::scope(|scope| {
        // The threads end when this guard is dropped, also after an error.
        let _hold = process::lock(&held);
        for _ in 0..threads {
            let wait = || {
                signals::block_write_signals();
                drop(held.lock());
            };
            named()
                .spawn_scoped(scope, wait)
                .map_err(|error| limits::no_thread(&error.to_string()))?;
        }
        Ok(())
    })
}

fn named() -> thread::Builder {
    thread::Builder::new().name(NAME.to_owned())
}

/// Each worker waits here until the runtime is complete. Despite [`check_threads`] a thread may be refused, if another
/// part of the process has started one meanwhile. Then tokio waits for the workers that it has started before it
/// reports the error; the gate ends them after a timeout. The three file descriptors of such an incomplete runtime
/// stay open.
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum GateState {
    Waiting,
    Open,
    Closed,
}

/// A runtime starts within milliseconds; on a slow machine under valgrind, within seconds.
const GATE_TIMEOUT: Duration = Duration::from_secs(5);

impl Gate {
    fn new(timeout: Duration) -> Self {
        Self {
            state: Mutex::new(GateState::Waiting),
            changed: Condvar::new(),
            timeout,
        }
    }

    /// Waits until the runtime is complete. After the timeout it ends this thread.
    fn pass(&self) {
        let state = process::lock(&self.state);
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, self.timeout, |state| *state == GateState::Waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if *state == GateState::Open {
            return;
        }
        *state = GateState::Closed;
        drop(state);
        self.changed.notify_all();
        // Unlike `panic!`, this does not call the panic hook.
        panic::resume_unwind(Box::new("the runtime is incomplete"));
    }

    /// Lets the workers start, because the runtime is complete. False if a worker has timed out before.
    fn open(&self) -> bool {
        let mut state = process::lock(&self.state);
        if *state == GateState::Waiting {
            *state = GateState::Open;
        }
        self.changed.notify_all();
        *state == GateState::Open
    }
}

/// Runs blocking work on a thread of its own. It starts at once, unless the limit of threads is reached; then it waits
/// for a slot. If the future is dropped, started work continues, so it owns its data. `tasks` counts it until it ends.
///
/// # Errors
///
/// [`Code::ProcessLimit`] if the operating system refuses a thread; the errors of the work.
pub(crate) fn blocking<T, W>(
    tasks: &TaskTracker,
    work: W,
) -> impl Future<Output = Result<T>> + Send + use<T, W>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T> + Send + 'static,
{
    blocking_in(&WORK, tasks, work)
}

/// Like [`blocking`], with slots of another kind: [`SHORT_WORK`] or [`READS`].
pub(crate) fn blocking_in<T, W>(
    slots: &'static Semaphore,
    tasks: &TaskTracker,
    work: W,
) -> impl Future<Output = Result<T>> + Send + use<T, W>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T> + Send + 'static,
{
    let counted = tasks.token();
    let (sender, receiver) = oneshot::channel();
    let started = start(
        slots,
        Box::new(move |slot| {
            // The receiver is gone if the future was dropped.
            let _ = sender.send(panics::catch(work).map_err(or_limit));
            drop(slot);
            drop(counted);
        }),
    );
    async move {
        started.await?;
        receiver.await.unwrap_or_else(|_| Err(Error::canceled()))
    }
}

/// Work for a thread. A trait object, so that the code that starts a thread exists once, and not for each kind of work.
type Work = Box<dyn FnOnce(SemaphorePermit<'static>) + Send>;

/// Starts the work now, if there is a free slot, or else when the future has got one.
fn start(slots: &'static Semaphore, work: Work) -> impl Future<Output = Result<()>> + Send + use<> {
    let started = match slots.try_acquire() {
        Ok(slot) => Ok(detach(Box::new(|| work(slot)))),
        Err(_) => Err(work),
    };
    async move {
        match started {
            Ok(started) => started,
            Err(work) => {
                // Never closed, so this does not fail.
                let slot = slots.acquire().await.map_err(|_| Error::canceled())?;
                detach(Box::new(|| work(slot)))
            }
        }
    }
}

/// A dependency panics if it cannot start a thread. That is a limit of the process, not a defect.
fn or_limit(error: Error) -> Error {
    match error.code {
        Code::Internal => check_threads(1).err().unwrap_or(error),
        _ => error,
    }
}

/// Runs the work on a thread of its own, and does not wait for it.
pub(crate) fn detach(work: Box<dyn FnOnce() + Send>) -> Result<()> {
    let runtime = runtime()?;
    let start = move || {
        signals::block_write_signals();
        let _entered = runtime.enter();
        work();
    };
    match named().spawn(start) {
        Ok(_) => Ok(()),
        Err(error) => Err(limits::no_thread(&error.to_string())),
    }
}

/// Runs `start`, which starts a program, on a thread with the host's signal mask, and waits until it returns.
///
/// # Errors
///
/// Those of `start`, and of a thread that cannot be started.
pub(crate) fn with_host_signals<T: Send>(
    start: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let start = || {
        signals::set_host_mask()?;
        start()
    };
    thread::scope(|scope| {
        let thread = named()
            .spawn_scoped(scope, start)
            .map_err(limits::starting)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a panic while the program was started")))
    })
}

/// Resolves a host name. Each address gets the port.
pub(crate) async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let host = host.to_owned();
    let lookup = move || Ok(look_up(&host, port));
    // Not counted for a client: the lookup may take until the system's resolver times out.
    let found = blocking_in(&SHORT_WORK, &TaskTracker::new(), lookup).await;
    found.map_err(io::Error::other)?
}

fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = (host, port).to_socket_addrs();
    found.map(Iterator::collect).map_err(|error| {
        // The resolver reads files and opens sockets. If it has no file descriptor for them, it reports that the host
        // does not exist.
        match File::open("/") {
            Err(refused) if limits::reached(&refused).is_some() => refused,
            _ => error,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    #[test]
    fn the_workers_of_an_incomplete_runtime_end() {
        let timeout = Duration::from_millis(100);
        let gate = Arc::new(Gate::new(timeout));
        let started = Instant::now();
        let workers = [0; 2].map(|_| {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.pass())
        });
        assert!(workers.into_iter().all(|worker| worker.join().is_err()));
        assert!(started.elapsed() >= timeout);
        assert!(!gate.open());

        let gate = Arc::new(Gate::new(Duration::from_secs(60)));
        let worker_gate = Arc::clone(&gate);
        let worker = thread::spawn(move || worker_gate.pass());
        assert!(gate.open());
        worker.join().unwrap();
        gate.pass();
    }

    #[test]
    fn work_beyond_the_thread_limit_waits_for_a_slot() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        static MOST: AtomicUsize = AtomicUsize::new(0);
        static GATE: Mutex<()> = Mutex::new(());
        let tasks = TaskTracker::new();
        let closed = GATE.lock().unwrap();
        let work = (0..3 * MAX_WORK).map(|number| {
            blocking(&tasks, move || {
                MOST.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                drop(GATE.lock());
                RUNNING.fetch_sub(1, Ordering::SeqCst);
                Ok(number)
            })
        });
        let work: Vec<_> = work.collect();
        drop(closed);
        let done = block_on(futures_util::future::try_join_all(work));
        assert_eq!(done.unwrap(), (0..3 * MAX_WORK).collect::<Vec<_>>());
        assert!(MOST.load(Ordering::SeqCst) <= MAX_WORK);
        tasks.close();
        block_on(tasks.wait());
    }

    #[test]
    fn work_continues_and_is_counted_after_its_future_is_dropped() {
        // Slots of its own: work without a slot has not begun, and other tests use up those of `WORK`.
        static SLOTS: Semaphore = Semaphore::const_new(1);
        let tasks = TaskTracker::new();
        let (sender, done) = std::sync::mpsc::channel();
        drop(blocking_in(&SLOTS, &tasks, move || {
            thread::sleep(Duration::from_millis(20));
            sender.send(()).map_err(|_| Error::canceled())
        }));
        tasks.close();
        block_on(tasks.wait());
        done.try_recv().unwrap();
    }
}
