//! The hub's clock: whole milliseconds, as documents carry them.

use std::time::Instant;

use attest_common::basics::ids::Timestamp;

/// The hub's clock.
pub fn now() -> Timestamp {
    // Documents carry whole milliseconds: what is compared must not depend on how it was written.
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

/// `milliseconds` after `time`.
pub fn after(time: Timestamp, milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond().saturating_add(milliseconds)).unwrap_or(time)
}

/// Microseconds since `begun`.
pub fn micros(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
}
