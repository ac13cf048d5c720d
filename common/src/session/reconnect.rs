//! Delay before the next connection to the hub. Pure.

use std::time::Duration;

use super::{RECONNECT_MAX_MS, RECONNECT_MIN_MS};
use crate::basics::backoff::{Backoff, Jitter};

const RECONNECT: Backoff =
    Backoff::new(Duration::from_millis(RECONNECT_MIN_MS), Duration::from_millis(RECONNECT_MAX_MS));

/// Returns the delay before dialling again: full jitter over a range that doubles with every failed
/// attempt, or over the window that the hub advertised when an established session has ended.
pub fn reconnect_ms(attempt: u32, window_ms: u64, random: u64) -> u64 {
    let delay_max = RECONNECT.delay_max(attempt);
    let window = Duration::from_millis(if attempt == 0 { window_ms } else { 0 });
    let delay = Jitter::Full.apply(delay_max.max(window), random);
    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnects_are_spread_from_nothing_to_a_bounded_maximum() {
        let longest = |attempt, window| {
            (0..1_000_u64).map(|r| reconnect_ms(attempt, window, r * 37)).max().unwrap()
        };

        assert!(longest(0, 0) <= RECONNECT_MIN_MS);
        assert!(longest(3, 0) <= 8 * RECONNECT_MIN_MS);
        assert!(longest(u32::MAX, 0) <= RECONNECT_MAX_MS);
        assert!(longest(0, 5_000) > 4_000 && longest(0, 5_000) <= 5_000);
        assert_eq!(reconnect_ms(9, 0, 0), 0);
    }
}
