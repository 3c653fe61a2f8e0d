//! What waits to be taken by a reader on the other side of the ABI.
//!
//! The end of a call is never dropped. Log lines and progress are, when the reader is slow, and the
//! reader is told how many: a build that prints faster than anyone reads must neither wait for its
//! reader nor fill the memory.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::event::{Event, Kind};
use crate::names::image::Image;

/// With so many waiting, log lines and progress are thinned.
const CROWDED: usize = 1024;

/// One thing to tell.
#[derive(Debug)]
pub(crate) enum Item {
    /// Something happened.
    Event(Box<Event>),
    /// The call with this id has ended.
    Done(u64, Box<Result<Outcome>>),
}

/// What a call has come to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// An image.
    Image(Box<Image>),
    /// A report, in JSON.
    Report(String),
}

/// What [`Queue::next`] found.
#[derive(Debug)]
pub(crate) enum Next {
    /// The oldest.
    Item(Item),
    /// Nothing within the time-out.
    Nothing,
    /// The queue is closed.
    Closed,
}

/// First in, first out; any number of writers and readers.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    dropped: u64,
    closed: bool,
}

impl Queue {
    /// Adds an item; never blocks.
    pub(crate) fn push(&self, item: Item) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        if let Item::Event(event) = &item {
            if event.kind.is_minor() && state.items.len() >= CROWDED {
                state.dropped += u64::from(event.kind == Kind::Log);
                return;
            }
            if state.dropped > 0 && state.items.len() < CROWDED {
                let thinned = thinned(event, state.dropped);
                state.items.push_back(Item::Event(Box::new(thinned)));
                state.dropped = 0;
            }
        }
        state.items.push_back(item);
        drop(state);
        self.arrived.notify_one();
    }

    /// Takes the oldest item; waits for one, at most for `timeout`, or for ever without.
    pub(crate) fn next(&self, timeout: Option<Duration>) -> Next {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.lock();
        loop {
            if state.closed {
                return Next::Closed;
            }
            if let Some(item) = state.items.pop_front() {
                return Next::Item(item);
            }
            state = match deadline {
                None => self
                    .arrived
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Next::Nothing;
                    }
                    self.arrived
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// Wakes every reader; nothing comes after this.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.items.clear();
        drop(state);
        self.arrived.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn thinned(before: &Event, dropped: u64) -> Event {
    Event {
        call: before.call,
        runtime: before.runtime.clone(),
        dropped: Some(dropped),
        ..Event::new(
            Kind::Thinned,
            format!("{dropped} lines were left out: the reader is slower than the build"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn log(line: usize) -> Item {
        Item::Event(Box::new(Event::new(Kind::Log, line.to_string())))
    }

    #[test]
    fn a_slow_reader_loses_lines_and_is_told_how_many() {
        let queue = Queue::default();
        for line in 0..CROWDED + 10 {
            queue.push(log(line));
        }
        queue.push(Item::Done(1, Box::new(Err(Error::canceled()))));
        for line in 0..CROWDED {
            match queue.next(None) {
                Next::Item(Item::Event(event)) => assert_eq!(event.message, line.to_string()),
                other => panic!("{other:?}"),
            }
        }
        queue.push(log(0));
        assert!(matches!(queue.next(None), Next::Item(Item::Done(1, _))));
        match queue.next(None) {
            Next::Item(Item::Event(event)) => assert_eq!(event.dropped, Some(10)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_reader_waits_for_its_time_and_wakes_when_the_queue_closes() {
        let queue = Queue::default();
        assert!(matches!(
            queue.next(Some(Duration::from_millis(1))),
            Next::Nothing
        ));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| queue.next(None));
            queue.close();
            assert!(matches!(reader.join().unwrap(), Next::Closed));
        });
    }
}
