//! What waits for a reader on the other side of the ABI: the results of calls, and events.
//!
//! A result is kept until it is taken, by a wait for its call or by a wait for any call. Events are dropped when
//! the reader is slow, and counted: a build that prints faster than anyone reads must neither wait for its reader
//! nor fill the memory. Events have numbers, so that a reader of both knows which events came before a result.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Code, Error, Result};
use crate::event::{Event, Kind};
use crate::names::image::Image;
use crate::process;
use crate::process::limits;

/// When this many events are queued, log lines and progress are dropped.
const CROWDED: usize = 1 << 10;

/// When this many are queued, every event is dropped.
const FULL: usize = 8 << 10;

/// The result of a call that succeeded.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// An image.
    Image(Box<Image>),
    /// A report, in JSON.
    Report(String),
}

/// The end of a call.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) call: u64,
    pub(crate) result: Result<Outcome>,
    /// The number of the last event before it; 0 if there was none.
    pub(crate) last_event: u64,
}

/// An event with its number, from 1.
#[derive(Debug)]
pub(crate) struct Numbered {
    pub(crate) number: u64,
    pub(crate) event: Event,
}

/// What a reader gets.
#[derive(Debug)]
pub(crate) enum Taken<T> {
    Item(T),
    /// Nothing came within the time-out.
    Nothing,
    /// The client is freed.
    Closed,
}

/// The results and events of one client. Any number of threads may write and read.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    call_ended: Condvar,
    event_came: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Calls that run.
    open: HashSet<u64>,
    ended: BTreeMap<u64, Ended>,
    events: VecDeque<Numbered>,
    /// The number of the last event.
    last_event: u64,
    closed: bool,
    readiness: Option<Readiness>,
}

impl Inbox {
    /// Starts a call, and returns its id. Its end may come at any time after this, and not before.
    pub(crate) fn start(&self, start: impl FnOnce() -> Result<u64>) -> Result<u64> {
        // Locked, so that a call that ends at once is known when `end` is called.
        let mut state = self.lock();
        let call = start()?;
        state.open.insert(call);
        Ok(call)
    }

    /// Keeps the result of a call until it is taken.
    pub(crate) fn end(&self, call: u64, result: Result<Outcome>) {
        self.change(&self.call_ended, |state| {
            state.open.remove(&call);
            let last_event = state.last_event;
            let ended = Ended {
                call,
                result,
                last_event,
            };
            state.ended.insert(call, ended);
        });
    }

    /// Adds an event, or drops it if too many wait. Never blocks.
    pub(crate) fn push(&self, event: Event) {
        self.change(&self.event_came, |state| state.push(event));
    }

    /// Waits for the end of one call, or of any call; without a `timeout` as long as it takes.
    ///
    /// # Errors
    ///
    /// [`Code::NoSuchHandle`] for a call that was never started, or whose result was taken.
    pub(crate) fn wait(
        &self,
        call: Option<u64>,
        timeout: Option<Duration>,
    ) -> Result<Taken<Ended>> {
        let taken = self.take(&self.call_ended, timeout, |state| match call {
            None => state.ended.pop_first().map(|(_, ended)| Ok(ended)),
            Some(call) => match state.ended.remove(&call) {
                Some(ended) => Some(Ok(ended)),
                None => (!state.open.contains(&call)).then(|| Err(no_such_call(call))),
            },
        });
        Ok(match taken {
            Taken::Item(ended) => Taken::Item(ended?),
            Taken::Nothing => Taken::Nothing,
            Taken::Closed => Taken::Closed,
        })
    }

    /// Takes the oldest event; without a `timeout` it waits as long as it takes.
    pub(crate) fn next_event(&self, timeout: Option<Duration>) -> Taken<Numbered> {
        self.take(&self.event_came, timeout, |state| state.events.pop_front())
    }

    /// A file descriptor that is readable while a result or an event waits. It is closed with the inbox.
    ///
    /// # Errors
    ///
    /// [`Code::ProcessLimit`] if the process has no file descriptor left, [`Code::Closed`] after the close.
    pub(crate) fn descriptor(&self) -> Result<RawFd> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::freed());
        }
        if let Some(readiness) = &state.readiness {
            return Ok(readiness.descriptor());
        }
        let readiness = Readiness::new().map_err(no_descriptor)?;
        let descriptor = readiness.descriptor();
        state.readiness = Some(readiness);
        state.update_readiness();
        Ok(descriptor)
    }

    /// Wakes every reader, drops what waits, and closes the descriptor.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        // Wakes a thread that polls the descriptor. It is closed here and not when the inbox is dropped, because
        // readers that have not returned yet still hold the inbox.
        state.update_readiness();
        *state = State {
            closed: true,
            ..State::default()
        };
        drop(state);
        self.call_ended.notify_all();
        self.event_came.notify_all();
    }

    fn change(&self, condition: &Condvar, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        change(&mut state);
        state.update_readiness();
        drop(state);
        condition.notify_all();
    }

    fn take<T>(
        &self,
        condition: &Condvar,
        timeout: Option<Duration>,
        mut pick: impl FnMut(&mut State) -> Option<T>,
    ) -> Taken<T> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.lock();
        loop {
            if state.closed {
                return Taken::Closed;
            }
            if let Some(item) = pick(&mut state) {
                state.update_readiness();
                return Taken::Item(item);
            }
            state = match deadline {
                None => condition
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Taken::Nothing;
                    }
                    condition
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        process::lock(&self.state)
    }
}

impl State {
    fn push(&mut self, event: Event) {
        self.last_event += 1;
        let (number, waiting) = (self.last_event, self.events.len());
        if waiting < CROWDED || (waiting < FULL && !event.kind.is_minor()) {
            self.events.push_back(Numbered { number, event });
            return;
        }
        match self.events.back_mut() {
            Some(last) if last.event.kind == Kind::Thinned => {
                last.number = number;
                let dropped = last.event.dropped.unwrap_or_default() + 1;
                last.event = Event::thinned(&last.event, event.call, dropped);
            }
            _ => {
                let event = Event::thinned(&event, event.call, 1);
                self.events.push_back(Numbered { number, event });
            }
        }
    }

    /// Makes the descriptor, if there is one, readable or not.
    fn update_readiness(&mut self) {
        let waiting = !self.ended.is_empty() || !self.events.is_empty();
        if let Some(readiness) = &mut self.readiness {
            readiness.set(waiting || self.closed);
        }
    }
}

/// A pair of sockets, with one byte in it while something waits.
#[derive(Debug)]
struct Readiness {
    reader: UnixStream,
    writer: UnixStream,
    raised: bool,
}

impl Readiness {
    fn new() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        Ok(Self {
            reader,
            writer,
            raised: false,
        })
    }

    fn descriptor(&self) -> RawFd {
        self.reader.as_raw_fd()
    }

    fn set(&mut self, raised: bool) {
        if raised == self.raised {
            return;
        }
        let done = match raised {
            true => self.writer.write(&[1]),
            // A caller that reads the byte itself has the same effect.
            false => self.reader.read(&mut [0]).or(Ok(1)),
        };
        self.raised = if done.is_ok() { raised } else { self.raised };
    }
}

fn no_such_call(call: u64) -> Error {
    Error::new(
        Code::NoSuchHandle,
        format!("there is no call with the id {call}"),
    )
    .hint("it was never started with this client, or its result was taken already")
}

fn no_descriptor(error: io::Error) -> Error {
    limits::reached(&error).unwrap_or_else(|| {
        Error::new(
            Code::Internal,
            format!("no file descriptor can be made: {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(inbox: &Inbox, call: u64) {
        let event = Event::new(Kind::Log, "line");
        inbox.push(Event { call, ..event });
    }

    fn canceled(inbox: &Inbox) -> u64 {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let id = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let call = inbox.start(|| Ok(id)).unwrap();
        inbox.end(call, Err(Error::canceled()));
        call
    }

    fn ended(taken: Result<Taken<Ended>>) -> Ended {
        match taken {
            Ok(Taken::Item(ended)) => ended,
            other => panic!("{other:?}"),
        }
    }

    fn next(inbox: &Inbox) -> Numbered {
        match inbox.next_event(Some(Duration::ZERO)) {
            Taken::Item(event) => event,
            other => panic!("{other:?}"),
        }
    }

    const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn dropped_events_are_counted_where_they_are_missing() {
        let inbox = Inbox::default();
        for _ in 0..CROWDED + 10 {
            log(&inbox, 1);
        }
        inbox.push(Event::new(Kind::Tagged, "tagged"));
        log(&inbox, 2);
        log(&inbox, 3);
        for number in 1..=CROWDED as u64 {
            assert_eq!(next(&inbox).number, number);
        }
        let thinned = next(&inbox);
        assert_eq!(thinned.event.dropped, Some(10));
        assert_eq!(thinned.event.call, 1);
        assert_eq!(thinned.number, CROWDED as u64 + 10);
        assert_eq!(next(&inbox).event.kind, Kind::Tagged);
        let thinned = next(&inbox);
        assert_eq!(thinned.event.dropped, Some(2));
        assert_eq!(thinned.event.call, 0, "of several calls");
        assert!(matches!(inbox.next_event(AT_ONCE), Taken::Nothing));
    }

    #[test]
    fn a_reader_that_has_stopped_does_not_fill_the_memory() {
        let inbox = Inbox::default();
        for _ in 0..2 * FULL {
            inbox.push(Event::new(Kind::Tagged, ""));
        }
        assert_eq!(inbox.lock().events.len(), FULL + 1);
        assert_eq!(inbox.lock().events[FULL].event.dropped, Some(FULL as u64));
    }

    #[test]
    fn each_result_is_taken_once() {
        let inbox = Inbox::default();
        let (one, two, three) = (canceled(&inbox), canceled(&inbox), canceled(&inbox));
        assert_eq!(ended(inbox.wait(Some(two), AT_ONCE)).call, two);
        assert_eq!(
            inbox.wait(Some(two), AT_ONCE).unwrap_err().code,
            Code::NoSuchHandle
        );
        assert_eq!(ended(inbox.wait(None, AT_ONCE)).call, one);
        assert_eq!(ended(inbox.wait(None, AT_ONCE)).call, three);
        assert!(matches!(inbox.wait(None, AT_ONCE), Ok(Taken::Nothing)));
    }

    #[test]
    fn a_result_names_the_last_event_before_it() {
        let inbox = Inbox::default();
        canceled(&inbox);
        assert_eq!(ended(inbox.wait(None, AT_ONCE)).last_event, 0);
        log(&inbox, 1);
        log(&inbox, 1);
        canceled(&inbox);
        log(&inbox, 1);
        assert_eq!(ended(inbox.wait(None, AT_ONCE)).last_event, 2);
    }

    #[test]
    fn readers_wait_for_their_time_and_wake_at_the_close() {
        let inbox = Inbox::default();
        inbox.start(|| Ok(7)).unwrap();
        let short = Some(Duration::from_millis(1));
        assert!(matches!(inbox.wait(Some(7), short), Ok(Taken::Nothing)));
        assert!(matches!(inbox.next_event(short), Taken::Nothing));
        std::thread::scope(|scope| {
            let inbox = &inbox;
            let (sender, looked) = std::sync::mpsc::channel();
            let readers = [&inbox.call_ended, &inbox.event_came].map(|condition| {
                let sender = sender.clone();
                let find_nothing = move |_: &mut State| sender.send(()).err();
                scope.spawn(move || inbox.take(condition, None, find_nothing))
            });
            // A reader looks with the lock held, and releases it by waiting. So both wait when `close` has the lock.
            for _ in &readers {
                looked.recv().unwrap();
            }
            inbox.close();
            for reader in readers {
                assert!(matches!(reader.join().unwrap(), Taken::Closed));
            }
        });
        canceled(&inbox);
        assert!(matches!(inbox.wait(None, AT_ONCE), Ok(Taken::Closed)));
    }

    #[test]
    fn the_close_closes_the_descriptor() {
        let inbox = Inbox::default();
        inbox.descriptor().unwrap();
        inbox.close();
        assert!(inbox.lock().readiness.is_none());
        assert_eq!(inbox.descriptor().unwrap_err().code, Code::Closed);
    }

    #[test]
    fn the_descriptor_is_readable_while_a_result_or_event_is_queued() {
        let inbox = Inbox::default();
        log(&inbox, 1);
        let descriptor = inbox.descriptor().unwrap();
        assert_eq!(inbox.descriptor().unwrap(), descriptor);
        let readable = || inbox.lock().readiness.as_ref().unwrap().raised;
        assert!(readable());
        next(&inbox);
        assert!(!readable());
        let call = canceled(&inbox);
        log(&inbox, 1);
        next(&inbox);
        assert!(readable());
        ended(inbox.wait(Some(call), AT_ONCE));
        assert!(!readable());
    }
}
