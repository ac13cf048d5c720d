//! The clocks of a process and its source of jitter.

use std::time::{Duration, Instant};

use attest_common::basics::ids::Timestamp;

/// Returns the time of day in whole milliseconds.
pub fn now() -> Timestamp {
    // Documents contain whole milliseconds: a time must be equal after serialisation.
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

/// Returns the time `milliseconds` after `time`, or `time` when the sum is out of range.
pub fn after(time: Timestamp, milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond().saturating_add(milliseconds)).unwrap_or(time)
}

/// Returns `duration` in microseconds.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Returns the microseconds since `begun`.
pub fn micros_since(begun: Instant) -> u64 {
    micros(begun.elapsed())
}

/// Returns randomness for jitter. Not for secrets: returns 0 when the system has none, and delays then coincide.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_is_a_whole_number_of_milliseconds() {
        let now = now();

        assert_eq!(now.as_nanosecond() % 1_000_000, 0);
    }

    #[test]
    fn a_time_out_of_range_is_not_reached() {
        let time = Timestamp::from_millisecond(1_000).unwrap();

        assert_eq!(after(time, 500), Timestamp::from_millisecond(1_500).unwrap());
        assert_eq!(after(time, i64::MAX), time);
    }

    #[test]
    fn a_duration_beyond_the_range_of_microseconds_saturates() {
        assert_eq!(micros(Duration::from_millis(3)), 3_000);
        assert_eq!(micros(Duration::MAX), u64::MAX);
    }
}
