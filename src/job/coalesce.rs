//! One question for all who wait for its answer (request coalescing).
//!
//! An answer counts only for those who came before its question was put: another one may tell of a commit that
//! has been replaced since. So nobody joins a question that is under way; all who come meanwhile share the next.
//!
//! Whoever's turn it is puts the question within its own call, under its own deadline. When that call is
//! cancelled, the question goes with it, and the next in line puts its own.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// How long to wait for the answer of others. A question that hangs must not hold up those that would not.
const PATIENCE: Duration = Duration::from_secs(3);

/// The lines of those who wait, by what they ask about. A line ends when nobody stands in it.
#[derive(Debug)]
pub(crate) struct Coalesced<K, T> {
    lines: Mutex<HashMap<K, Weak<Line<T>>>>,
    patience: Duration,
}

#[derive(Debug)]
struct Line<T> {
    /// How many questions have been put.
    put: AtomicU64,
    /// The latest answer, with the number of its question; locked while the next question is under way.
    answer: tokio::sync::Mutex<Option<(u64, T)>>,
}

/// An answer, and who has asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer<T> {
    /// This caller itself.
    Own(T),
    /// Another one, after this caller had come.
    Shared(T),
}

impl<K, T> Default for Coalesced<K, T> {
    fn default() -> Self {
        Self {
            lines: Mutex::default(),
            patience: PATIENCE,
        }
    }
}

impl<K: Eq + Hash, T: Clone> Coalesced<K, T> {
    /// An answer to a question about `key` that is put from now on: by another caller, or else by `question`.
    pub(crate) async fn ask<W>(&self, key: K, question: impl FnOnce() -> W) -> Answer<T>
    where
        W: Future<Output = T>,
    {
        let line = self.line(key);
        let put_before = line.put.load(Ordering::SeqCst);
        let Ok(mut latest) = tokio::time::timeout(self.patience, line.answer.lock()).await else {
            return Answer::Own(Box::pin(question()).await);
        };
        if let Some((number, answer)) = &*latest
            && *number > put_before
        {
            return Answer::Shared(answer.clone());
        }
        let number = line.put.fetch_add(1, Ordering::SeqCst) + 1;
        // On the heap, and from here on only: those who wait are many.
        let answer = Box::pin(question()).await;
        *latest = Some((number, answer.clone()));
        Answer::Own(answer)
    }

    fn line(&self, key: K) -> Arc<Line<T>> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(&key).and_then(Weak::upgrade) {
            return line;
        }
        // Without this, a process would keep every key that it has ever asked about.
        lines.retain(|_, line| line.strong_count() > 0);
        let line = Arc::new(Line {
            put: AtomicU64::new(0),
            answer: tokio::sync::Mutex::new(None),
        });
        lines.insert(key, Arc::downgrade(&line));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use tokio::sync::Notify;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        crate::process::executor::runtime().unwrap().block_on(work)
    }

    #[test]
    fn who_comes_while_a_question_is_under_way_shares_the_next_and_not_that_one() {
        block_on(async {
            let (lines, answered) = (Coalesced::default(), Notify::new());
            let mut first = Box::pin(lines.ask("key", || async {
                answered.notified().await;
                "old"
            }));
            assert_eq!((&mut first).now_or_never(), None, "it is under way");
            let mut others: Vec<_> = (0..1000)
                .map(|_| Box::pin(lines.ask("key", || async { "new" })))
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
    fn what_nobody_asks_about_any_more_is_forgotten() {
        block_on(async {
            let lines = Coalesced::default();
            for key in 0..100 {
                assert_eq!(lines.ask(key, || async { key }).await, Answer::Own(key));
            }
            assert_eq!(lines.lines.lock().unwrap().len(), 1);
        });
    }

    #[test]
    fn who_comes_after_an_answer_asks_again() {
        block_on(async {
            let lines = Coalesced::default();
            assert_eq!(lines.ask("key", || async { 1 }).await, Answer::Own(1));
            assert_eq!(lines.ask("key", || async { 2 }).await, Answer::Own(2));
        });
    }

    #[test]
    fn when_the_one_who_asks_leaves_the_next_in_line_asks() {
        block_on(async {
            let lines = Coalesced::default();
            let mut first = Box::pin(lines.ask("key", std::future::pending));
            assert_eq!((&mut first).now_or_never(), None);
            let mut second = Box::pin(lines.ask("key", || async { 2 }));
            assert_eq!((&mut second).now_or_never(), None);
            drop(first);
            assert_eq!(second.await, Answer::Own(2));
        });
    }

    #[test]
    fn a_question_that_hangs_holds_nobody_up_for_long_and_nobody_who_asks_of_something_else() {
        block_on(async {
            let lines = Coalesced {
                patience: Duration::from_millis(20),
                ..Coalesced::default()
            };
            let mut hangs = Box::pin(lines.ask("key", std::future::pending));
            assert_eq!((&mut hangs).now_or_never(), None);
            let other = lines.ask("other", || async { 1 }).now_or_never();
            assert_eq!(other, Some(Answer::Own(1)));
            assert_eq!(lines.ask("key", || async { 2 }).await, Answer::Own(2));
        });
    }
}
