//! One build for all who want the same image (promise P3), until the last of them has left (P4).
//!
//! A flight is a task of its own, apart from every caller: who joins late gets the same result, who
//! leaves disturbs nobody, and when the last seat is empty the flight is cancelled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, Result};
use crate::process::panics;

/// The flights that are under way, by the image reference they make.
#[derive(Debug)]
pub(crate) struct Flights<T> {
    flights: Arc<Mutex<HashMap<String, Flight<T>>>>,
}

#[derive(Debug)]
struct Flight<T> {
    /// Tells one flight from a later one for the same key.
    id: u64,
    seats: usize,
    cancel: CancellationToken,
    result: watch::Receiver<Option<Result<T>>>,
}

/// One caller's interest in a flight; dropping it gives it up.
pub(crate) struct Seat<T: Clone + Send + Sync + 'static> {
    flights: Flights<T>,
    key: String,
    id: u64,
    result: watch::Receiver<Option<Result<T>>>,
    /// True for the caller whose interest began the flight.
    pub(crate) first: bool,
}

impl<T> Clone for Flights<T> {
    fn clone(&self) -> Self {
        Self {
            flights: Arc::clone(&self.flights),
        }
    }
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self {
            flights: Arc::default(),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Takes a seat in the flight for `key`; `work` begins one if there is none.
    pub(crate) fn join<W>(
        &self,
        key: &str,
        tasks: &TaskTracker,
        work: impl FnOnce() -> W,
    ) -> Seat<T>
    where
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let mut flights = self.lock();
        if let Some(flight) = flights.get_mut(key) {
            flight.seats += 1;
            return self.seat(key, flight.id, flight.result.clone(), false);
        }
        let cancel = CancellationToken::new();
        let (sender, result) = watch::channel(None);
        let id = next_id();
        flights.insert(
            key.to_owned(),
            Flight {
                id,
                seats: 1,
                cancel: cancel.clone(),
                result: result.clone(),
            },
        );
        drop(flights);

        let work = panics::catch_future(work());
        let (all, flown) = (self.clone(), key.to_owned());
        tasks.spawn(async move {
            let result = tokio::select! {
                biased;
                () = cancel.cancelled() => Err(Error::canceled()),
                result = work => result,
            };
            // Out of the map first: who comes now looks at the engine again, and does not get a
            // result that was true before it asked.
            all.remove(&flown, id);
            sender.send_replace(Some(result));
        });
        self.seat(key, id, result, true)
    }

    fn seat(
        &self,
        key: &str,
        id: u64,
        result: watch::Receiver<Option<Result<T>>>,
        first: bool,
    ) -> Seat<T> {
        Seat {
            flights: self.clone(),
            key: key.to_owned(),
            id,
            result,
            first,
        }
    }

    fn remove(&self, key: &str, id: u64) {
        let mut flights = self.lock();
        if flights.get(key).is_some_and(|flight| flight.id == id) {
            flights.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Flight<T>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone + Send + Sync + 'static> Seat<T> {
    /// Waits for the flight's result.
    pub(crate) async fn wait(mut self) -> Result<T> {
        match self.result.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or_else(|| Err(Error::canceled())),
            Err(_) => Err(Error::canceled()),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Drop for Seat<T> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        let Some(flight) = flights.get_mut(&self.key).filter(|f| f.id == self.id) else {
            return;
        };
        flight.seats -= 1;
        if flight.seats == 0 {
            flight.cancel.cancel();
            flights.remove(&self.key);
        }
    }
}

fn next_id() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use crate::error::Code;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        crate::process::executor::runtime().unwrap().block_on(work)
    }

    #[test]
    fn a_thousand_callers_share_one_flight() {
        block_on(async {
            let (flights, tasks) = (Flights::default(), TaskTracker::new());
            let runs = Arc::new(AtomicUsize::new(0));
            let seats: Vec<_> = (0..1000)
                .map(|_| {
                    let runs = Arc::clone(&runs);
                    flights.join("key", &tasks, || async move {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        Ok(runs.fetch_add(1, Ordering::SeqCst))
                    })
                })
                .collect();
            assert_eq!(seats.iter().filter(|seat| seat.first).count(), 1);
            for seat in seats {
                assert_eq!(seat.wait().await.unwrap(), 0);
            }
            assert!(flights.lock().is_empty());
        });
    }

    #[test]
    fn the_flight_goes_on_until_the_last_seat_is_empty() {
        block_on(async {
            let (flights, tasks) = (Flights::default(), TaskTracker::new());
            let landed = Arc::new(AtomicUsize::new(0));
            let join = || {
                let landed = Arc::clone(&landed);
                flights.join("key", &tasks, || async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    landed.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                })
            };
            let (first, second) = (join(), join());
            drop(first);
            second.wait().await.unwrap();
            assert_eq!(landed.load(Ordering::SeqCst), 1);

            drop(join());
            tasks.close();
            tasks.wait().await;
            assert_eq!(landed.load(Ordering::SeqCst), 1, "the last seat was empty");
            assert!(flights.lock().is_empty());
        });
    }

    #[test]
    fn a_panic_is_everybodys_error() {
        block_on(async {
            let (flights, tasks) = (Flights::<()>::default(), TaskTracker::new());
            let join = || flights.join("key", &tasks, || async { panic!("boom") });
            let (one, two) = (join(), join());
            for seat in [one, two] {
                let error = seat.wait().await.unwrap_err();
                assert_eq!(error.code, Code::Internal);
                assert!(error.message.contains("boom"));
            }
        });
    }

    /// A flight that ends when it is told to.
    fn waiting(flights: &Flights<()>, tasks: &TaskTracker) -> (Seat<()>, CancellationToken) {
        let end = CancellationToken::new();
        let ended = end.clone();
        let seat = flights.join("key", tasks, || async move {
            ended.cancelled().await;
            Ok(())
        });
        (seat, end)
    }

    #[test]
    fn a_seat_of_an_earlier_flight_leaves_a_later_one_alone() {
        block_on(async {
            let (flights, tasks) = (Flights::default(), TaskTracker::new());
            let (early, end) = waiting(&flights, &tasks);
            end.cancel();
            tasks.close();
            tasks.wait().await;

            let (later, end) = waiting(&flights, &tasks);
            assert!(later.first);
            drop(early);
            assert_eq!(flights.lock()["key"].seats, 1);
            end.cancel();
            later.wait().await.unwrap();
        });
    }

    #[test]
    fn the_end_of_an_earlier_flight_leaves_a_later_one_in_its_place() {
        block_on(async {
            let (flights, tasks) = (Flights::default(), TaskTracker::new());
            let (early, _) = waiting(&flights, &tasks);
            let ended = early.id;
            drop(early);
            let (later, end) = waiting(&flights, &tasks);
            assert!(later.first, "what is cancelled is not joined");
            // What the task of the earlier one does at its end.
            flights.remove("key", ended);
            let (joined, _) = waiting(&flights, &tasks);
            assert!(!joined.first);
            end.cancel();
            later.wait().await.unwrap();
            joined.wait().await.unwrap();
        });
    }
}
