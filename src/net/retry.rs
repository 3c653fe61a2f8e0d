//! Retries transient failures, with exponential backoff and jitter.
//!
//! The code that detects a failure marks it as transient (`Error::retryable`): a reset connection, and the statuses 429,
//! 502, 503 and 504. All other errors are returned at once. The caller's deadline also limits the pauses.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};

use crate::error::{Error, Result, Retry};
use crate::event::{Event, Sink};

/// Upper bound of retries, after the first attempt.
const RETRIES: usize = 4;

/// The first pause. Each further pause is twice as long; jitter adds up to the same length again.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// If a server asks for a longer pause, the call does not wait and returns the error.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The pause that a server asks for, as text to append to an error; empty if it asks for none.
pub(crate) fn requested_pause(retry: Retry) -> String {
    match retry {
        Retry::After(seconds @ ..120) => format!("; it asks for a pause of {seconds} seconds"),
        Retry::After(seconds @ ..7200) => {
            format!("; it asks for a pause of {} minutes", seconds.div_ceil(60))
        }
        Retry::After(seconds) => {
            format!("; it asks for a pause of {} hours", seconds.div_ceil(3600))
        }
        Retry::Soon | Retry::Never => String::new(),
    }
}

/// Does the work, and repeats it after a transient failure.
pub(crate) async fn transient<T, W>(emit: &Sink, work: impl FnMut() -> W) -> Result<T>
where
    W: Future<Output = Result<T>>,
{
    work.retry(
        ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(FIRST_PAUSE)
            .with_max_times(RETRIES),
    )
    .sleep(tokio::time::sleep)
    .when(|error: &Error| error.retry != Retry::Never)
    .adjust(|error, pause| match error.retry {
        Retry::After(asked) => pause
            .map(|pause| pause.max(Duration::from_secs(asked.into())))
            .filter(|pause| *pause <= LONGEST_PAUSE),
        _ => pause,
    })
    .notify(|error, pause| {
        let pause = pause.as_secs_f32();
        let message = format!("{}; trying again in {pause:.1} seconds", error.message());
        emit(Event::warning(message, error.hint.clone()));
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::executor::block_on;
    use std::cell::Cell;
    use std::sync::Arc;

    use crate::error::Code;

    fn tries(failures: usize, retry: Retry) -> (Result<()>, usize) {
        let made = Cell::new(0);
        let result = block_on(async {
            let emit: Sink = Arc::new(|_| {});
            transient(&emit, || async {
                made.set(made.get() + 1);
                if made.get() <= failures {
                    Err(Error::new(Code::GiteaUnreachable, "not now").retryable(retry))
                } else {
                    Ok(())
                }
            })
            .await
        });
        (result, made.get())
    }

    #[test]
    fn a_transient_failure_is_retried_until_it_succeeds() {
        assert_eq!(tries(2, Retry::Soon), (Ok(()), 3));
    }

    #[test]
    fn a_permanent_failure_is_returned_at_once() {
        let (result, made) = tries(1, Retry::Never);
        assert_eq!((result.is_err(), made), (true, 1));
    }

    #[test]
    fn a_requested_pause_is_shown_in_a_suitable_unit() {
        for (seconds, says) in [
            (0, "; it asks for a pause of 0 seconds"),
            (119, "; it asks for a pause of 119 seconds"),
            (121, "; it asks for a pause of 3 minutes"),
            (3600, "; it asks for a pause of 60 minutes"),
            (7201, "; it asks for a pause of 3 hours"),
        ] {
            assert_eq!(requested_pause(Retry::After(seconds)), says);
        }
        assert_eq!(requested_pause(Retry::Soon), "");
    }

    #[test]
    fn a_requested_pause_of_an_hour_is_not_waited_for() {
        let (result, made) = tries(1, Retry::After(3600));
        assert_eq!((result.is_err(), made), (true, 1));
    }
}
