//! One request for all callers that wait for the same answer (request coalescing).
//!
//! A caller may only use the result of a request that was sent after the caller arrived: an older one could name a
//! commit that has been replaced. So nobody joins a request that is under way; all who come meanwhile share the next.
//!
//! The caller at the head of the queue makes the request itself, under its own deadline. When that call is cancelled,
//! its request ends with it, and the next caller makes its own.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::process;

/// How long a caller waits for the request of another. One that hangs must not delay the others.
const WAIT_LIMIT: Duration = Duration::from_secs(3);

/// The requests under way, by what they ask for. A slot lives as long as a caller uses it.
#[derive(Debug)]
pub(crate) struct Coalesced<K, T> {
    slots: Mutex<HashMap<K, Weak<Slot<T>>>>,
    wait_limit: Duration,
}

#[derive(Debug)]
struct Slot<T> {
    /// The number of requests that were started.
    started: AtomicU64,
    /// The last answer, with the number of its request; locked during the next request.
    answer: tokio::sync::Mutex<Option<(u64, T)>>,
}

/// An answer, and whose request it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer<T> {
    /// This caller's own.
    Own(T),
    /// Another caller's, sent after this caller arrived.
    Shared(T),
}

impl<K, T> Default for Coalesced<K, T> {
    fn default() -> Self {
        Self {
            slots: Mutex::default(),
            wait_limit: WAIT_LIMIT,
        }
    }
}

impl<K: Eq + Hash, T: Clone> Coalesced<K, T> {
    /// The answer of a request for `key` that starts after this call: another caller's, or else `request`.
    pub(crate) async fn ask<W>(&self, key: K, request: impl FnOnce() -> W) -> Answer<T>
    where
        W: Future<Output = T>,
    {
        let slot = self.slot(key);
        let started_before = slot.started.load(Ordering::SeqCst);
        let Ok(mut latest) = tokio::time::timeout(self.wait_limit, slot.answer.lock()).await else {
            return Answer::Own(Box::pin(request()).await);
        };
        if let Some((number, answer)) = &*latest
            && *number > started_before
        {
            return Answer::Shared(answer.clone());
        }
        let number = slot.started.fetch_add(1, Ordering::SeqCst) + 1;
        // Boxed after acquiring, so that waiting futures stay small.
        let answer = Box::pin(request()).await;
        *latest = Some((number, answer.clone()));
        Answer::Own(answer)
    }

    fn slot(&self, key: K) -> Arc<Slot<T>> {
        let mut slots = process::lock(&self.slots);
        if let Some(slot) = slots.get(&key).and_then(Weak::upgrade) {
            return slot;
        }
        // Otherwise a process would keep every key that it has ever used.
        slots.retain(|_, slot| slot.strong_count() > 0);
        let slot = Arc::new(Slot {
            started: AtomicU64::new(0),
            answer: tokio::sync::Mutex::new(None),
        });
        slots.insert(key, Arc::downgrade(&slot));
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use crate::process::executor::block_on;

    #[test]
    fn a_slot_is_kept_as_long_as_it_is_in_use() {
        let slots = Coalesced::<&str, ()>::default();
        let used = slots.slot("used");
        let _ = slots.slot("unused");
        assert!(Arc::ptr_eq(&used, &slots.slot("used")));
        let _ = slots.slot("new");
        assert!(!process::lock(&slots.slots).contains_key("unused"));
    }

    #[test]
    fn callers_during_a_request_share_the_next_one() {
        block_on(async {
            let (slots, answered) = (Coalesced::default(), Notify::new());
            let mut first = Box::pin(slots.ask("key", || async {
                answered.notified().await;
                "old"
            }));
            assert_eq!((&mut first).now_or_never(), None, "it is under way");
            let mut others: Vec<_> = (0..1000)
                .map(|_| Box::pin(slots.ask("key", || async { "new" })))
                .collect();
            for other in &mut others {
                assert_eq!(other.now_or_never(), None);
            }
            answered.notify_one();
            assert_eq!(first.await, Answer::Own("old"));
            let answers = join_all(others).await;
            let own = answers
                .iter()
                .filter(|answer| **answer == Answer::Own("new"));
            assert_eq!(own.count(), 1);
            let shared = answers
                .iter()
                .filter(|answer| **answer == Answer::Shared("new"));
            assert_eq!(shared.count(), 999);
        });
    }

    #[test]
    fn unused_keys_are_dropped() {
        block_on(async {
            let slots = Coalesced::default();
            for key in 0..100 {
                assert_eq!(slots.ask(key, || async { key }).await, Answer::Own(key));
            }
            assert_eq!(slots.slots.lock().unwrap().len(), 1);
        });
    }

    #[test]
    fn a_caller_after_an_answer_makes_its_own_request() {
        block_on(async {
            let slots = Coalesced::default();
            assert_eq!(slots.ask("key", || async { 1 }).await, Answer::Own(1));
            assert_eq!(slots.ask("key", || async { 2 }).await, Answer::Own(2));
        });
    }

    #[test]
    fn when_the_requesting_caller_leaves_the_next_one_requests() {
        block_on(async {
            let slots = Coalesced::default();
            let mut first = Box::pin(slots.ask("key", std::future::pending));
            assert_eq!((&mut first).now_or_never(), None);
            let mut second = Box::pin(slots.ask("key", || async { 2 }));
            assert_eq!((&mut second).now_or_never(), None);
            drop(first);
            assert_eq!(second.now_or_never(), Some(Answer::Own(2)), "at once");
        });
    }

    #[test]
    fn a_hanging_request_delays_others_for_a_limited_time_only() {
        block_on(async {
            let slots = Coalesced {
                wait_limit: Duration::from_millis(20),
                ..Coalesced::default()
            };
            let mut hangs = Box::pin(slots.ask("key", std::future::pending));
            assert_eq!((&mut hangs).now_or_never(), None);
            let other = slots.ask("other", || async { 1 }).now_or_never();
            assert_eq!(other, Some(Answer::Own(1)));
            assert_eq!(slots.ask("key", || async { 2 }).await, Answer::Own(2));
        });
    }
}
