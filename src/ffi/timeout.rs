//! What a `timeout_ms` means, in every function that has one.

use std::time::Duration;

/// No limit. Every negative value means the same.
pub const MOL_TIMEOUT_NONE: i64 = -1;

/// The time limit of the client's options (MOLECULE_BUILD_CEILING_S). A call that exceeds it ends with MOL_ERR_TIMEOUT.
pub const MOL_TIMEOUT_CEILING: i64 = i64::MAX;

/// For a call: `None` stands for the ceiling.
pub(super) fn of_call(timeout_ms: i64) -> Option<Duration> {
    match timeout_ms {
        MOL_TIMEOUT_CEILING => None,
        _ => Some(of_wait(timeout_ms).unwrap_or(Duration::MAX)),
    }
}

/// For a wait: `None` waits as long as it takes.
pub(super) fn of_wait(timeout_ms: i64) -> Option<Duration> {
    u64::try_from(timeout_ms).ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_is_no_limit_and_zero_is_no_time() {
        for none in [MOL_TIMEOUT_NONE, -2, i64::MIN] {
            assert_eq!(of_wait(none), None);
            assert_eq!(of_call(none), Some(Duration::MAX));
        }
        assert_eq!(of_wait(0), Some(Duration::ZERO));
        assert_eq!(of_call(0), Some(Duration::ZERO));
        assert_eq!(of_call(1500), Some(Duration::from_millis(1500)));
        assert_eq!(of_call(MOL_TIMEOUT_CEILING), None);
    }
}
