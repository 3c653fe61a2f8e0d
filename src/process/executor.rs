//! The one runtime, for the life of the process, and the threads for what blocks.
//!
//! Each of these threads does one piece of work and ends. tokio has a pool for that, but where the
//! operating system gives no thread, the pool panics and keeps the work, which then begins at any time
//! later or never; here that is an error, and the work is dropped.

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
use crate::process::{limits, panics, signals};

static RUNTIME: OnceCell<Runtime> = OnceCell::new();

/// The name of every thread of the library.
const NAME: &str = "libmol";

/// The work here waits for networks and engines; two threads carry thousands of calls.
const WORKERS: usize = 2;

/// Fetches, archives and the disk. Each build uses two of them for a part of its time.
static WORK: Semaphore = Semaphore::const_new(64);

/// Host names and the starts of programs. A fetch waits for the first, so they are counted apart.
static STEPS: Semaphore = Semaphore::const_new(64);

/// The runtime; it is started by the first call.
///
/// # Errors
///
/// [`Code::ProcessLimit`] if the operating system gives no thread or no file descriptor. The next call
/// tries again.
pub(crate) fn runtime() -> Result<&'static Runtime> {
    RUNTIME.get_or_try_init(start)
}

fn start() -> Result<Runtime> {
    signals::remember_host();
    reserve(WORKERS + 1)?;
    // The kernel counts a thread for a moment longer than it is seen.
    thread::sleep(Duration::from_millis(2));
    let gate = Arc::new(Gate::new(GATE_PATIENCE));
    let passed = Arc::clone(&gate);
    let built = panic::catch_unwind(move || {
        Builder::new_multi_thread()
            // Set, so that tokio does not look for its number in the environment.
            .worker_threads(WORKERS)
            .thread_name(NAME)
            .on_thread_start(move || {
                signals::block_writes();
                passed.pass();
            })
            .enable_io()
            .enable_time()
            .build()
    });
    match built {
        Ok(Ok(runtime)) if gate.open() => Ok(runtime),
        Ok(Ok(runtime)) => {
            // Not by dropping it, which waits.
            runtime.shutdown_background();
            Err(Error::new(
                Code::ProcessLimit,
                "the threads of the library did not start in time",
            )
            .hint("try again; see whether this process was stopped or the machine is overloaded"))
        }
        Ok(Err(error)) => Err(limits::reached(&error).unwrap_or_else(|| {
            Error::new(
                Code::Internal,
                format!("the runtime cannot be started: {error}"),
            )
        })),
        // tokio panics for one reason here: it cannot start a thread.
        Err(_) => Err(limits::no_thread("one of the library's own was refused")),
    }
}

/// Looks whether so many threads can be had, before a dependency takes them that panics where it cannot
/// have one. tokio does not even get to its panic: where it has the first worker and not the second, it
/// waits for the first without an end.
///
/// # Errors
///
/// [`Code::ProcessLimit`]
pub(crate) fn reserve(threads: usize) -> Result<()> {
    let held = Mutex::new(());
    thread::scope(|scope| {
        // They end when this does, whether all of them are there or not.
        let _hold = held.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..threads {
            let wait = || {
                signals::block_writes();
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

/// What each worker passes before it works. Somebody else may have taken the thread that
/// [`reserve`] has seen; then the runtime waits, before it says so, for the end of the workers that it
/// has got. They end here. What such a half of a runtime has opened (three file descriptors) stays open.
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    patience: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum GateState {
    Waiting,
    Open,
    Shut,
}

/// A runtime is built within milliseconds, on a slow machine under valgrind too within seconds.
const GATE_PATIENCE: Duration = Duration::from_secs(5);

impl Gate {
    fn new(patience: Duration) -> Self {
        Self {
            state: Mutex::new(GateState::Waiting),
            changed: Condvar::new(),
            patience,
        }
    }

    /// Waits until the runtime is whole; ends this thread if that does not come.
    fn pass(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, self.patience, |state| *state == GateState::Waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if *state == GateState::Open {
            return;
        }
        *state = GateState::Shut;
        drop(state);
        self.changed.notify_all();
        // Not a panic that anybody is told of.
        panic::resume_unwind(Box::new("the runtime is not whole"));
    }

    /// The runtime is whole. False if a worker has given up before.
    fn open(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == GateState::Waiting {
            *state = GateState::Open;
        }
        self.changed.notify_all();
        *state == GateState::Open
    }
}

/// Does what waits for the disk on a thread that may wait. It begins at once unless too many do
/// already, and goes on to its end when the future is dropped, so it owns what it needs, and `tasks`
/// counts it until then.
///
/// # Errors
///
/// [`Code::ProcessLimit`] if the operating system gives no thread; those of the work.
pub(crate) fn blocking<T, W>(
    tasks: &TaskTracker,
    work: W,
) -> impl Future<Output = Result<T>> + Send + use<T, W>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T> + Send + 'static,
{
    on_a_thread(&WORK, tasks, work)
}

/// The same, for a short step that other such work may wait for.
pub(crate) fn blocking_step<T, W>(
    tasks: &TaskTracker,
    work: W,
) -> impl Future<Output = Result<T>> + Send + use<T, W>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T> + Send + 'static,
{
    on_a_thread(&STEPS, tasks, work)
}

fn on_a_thread<T, W>(
    turns: &'static Semaphore,
    tasks: &TaskTracker,
    work: W,
) -> impl Future<Output = Result<T>> + Send + use<T, W>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T> + Send + 'static,
{
    let counted = tasks.token();
    let (sender, receiver) = oneshot::channel();
    let work = move |turn: SemaphorePermit<'static>| {
        // Nobody waits any more if the future was dropped.
        let _ = sender.send(panics::catch(work).map_err(or_limit));
        drop(turn);
        drop(counted);
    };
    let begun = match turns.try_acquire() {
        Ok(turn) => Ok(detach(|| work(turn))),
        Err(_) => Err(work),
    };
    async move {
        match begun {
            Ok(begun) => begun?,
            Err(work) => {
                // Never closed, so this does not fail.
                let turn = turns.acquire().await.map_err(|_| Error::canceled())?;
                detach(|| work(turn))?;
            }
        }
        receiver.await.unwrap_or_else(|_| Err(Error::canceled()))
    }
}

/// A dependency that can start no thread for its own use panics. That is no defect.
fn or_limit(error: Error) -> Error {
    match error.code {
        Code::Internal => reserve(1).err().unwrap_or(error),
        _ => error,
    }
}

/// Does the work on a thread of its own, which nobody waits for.
pub(crate) fn detach(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime = runtime()?;
    let begin = move || {
        signals::block_writes();
        let _entered = runtime.enter();
        work();
    };
    match named().spawn(begin) {
        Ok(_) => Ok(()),
        Err(error) => Err(limits::no_thread(&error.to_string())),
    }
}

/// Starts something on a thread with the host's signals, and waits until it has started.
///
/// # Errors
///
/// Those of `start`, and of a thread that cannot be started.
pub(crate) fn as_host<T: Send>(start: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let start = || {
        signals::unblock_as_host()?;
        start()
    };
    thread::scope(|scope| {
        let thread = named()
            .spawn_scoped(scope, start)
            .map_err(limits::starting)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("its start has panicked")))
    })
}

/// The addresses of a host. The port is that of each address.
pub(crate) async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let host = host.to_owned();
    let look = move || Ok(look_up(&host, port));
    // Nobody waits for the end of it: it may take as long as the resolver's own limits.
    let found = blocking_step(&TaskTracker::new(), look).await;
    found.map_err(io::Error::other)?
}

fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = (host, port).to_socket_addrs();
    found.map(Iterator::collect).map_err(|error| {
        // The resolver reads files and opens sockets, and says of a failure there that there is no
        // such host.
        match File::open("/") {
            Err(refused) if limits::reached(&refused).is_some() => refused,
            _ => error,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_runtime_that_does_not_become_whole_lets_its_workers_go() {
        let patience = Duration::from_millis(100);
        let gate = Arc::new(Gate::new(patience));
        let begun = Instant::now();
        let workers = [0; 2].map(|_| {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.pass())
        });
        assert!(workers.into_iter().all(|worker| worker.join().is_err()));
        assert!(begun.elapsed() >= patience);
        assert!(!gate.open());

        let gate = Arc::new(Gate::new(Duration::from_secs(60)));
        let passed = Arc::clone(&gate);
        let worker = thread::spawn(move || passed.pass());
        assert!(gate.open());
        worker.join().unwrap();
        gate.pass();
    }

    #[test]
    fn more_work_than_threads_is_done_in_turns() {
        let tasks = TaskTracker::new();
        let work = (0..200).map(|number| {
            blocking(&tasks, move || {
                thread::sleep(Duration::from_millis(1));
                Ok(number)
            })
        });
        let done = runtime()
            .unwrap()
            .block_on(futures_util::future::try_join_all(work));
        assert_eq!(done.unwrap(), (0..200).collect::<Vec<_>>());
        tasks.close();
        runtime().unwrap().block_on(tasks.wait());
    }

    #[test]
    fn work_that_nobody_waits_for_goes_on_and_is_counted() {
        let tasks = TaskTracker::new();
        let (sender, done) = std::sync::mpsc::channel();
        drop(blocking(&tasks, move || {
            thread::sleep(Duration::from_millis(20));
            sender.send(()).map_err(|_| Error::canceled())
        }));
        tasks.close();
        runtime().unwrap().block_on(tasks.wait());
        done.try_recv().unwrap();
    }
}
