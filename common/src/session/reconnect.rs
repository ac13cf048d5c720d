//! Delay before the next connection to the hub. Pure.

use std::time::Duration;

use super::{RECONNECT_MAX_MS, RECONNECT_MIN_MS};
use crate::basics::backoff::{Backoff, Jitter};

const RECONNECT: Backoff =
    Backoff::new(Duration::from_millis(RECONNECT_MIN_MS), Duration::from_millis(RECONNECT_MAX_MS));

/// Longest delay after a refusal, in windows that the hub advertised.
const REFUSED_WINDOWS_MAX: u32 = 2;
/// Shortest window that a refusal is judged by: the hub may not have advertised one yet.
const REFUSED_WINDOW_MIN: Duration = Duration::from_secs(2);

/// Ending of the newest connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The hub runs and refused the connection, because it was busy with others.
    Refused,
    /// A session ended, or the connection failed in another way.
    Other,
}

/// Returns the delay before dialling again: full jitter over a range that doubles with every failed attempt.
///
/// The range is at least the window that the hub advertised, `window_ms`, when an established session has ended, which is
/// attempt 0. After a refusal it is at most twice the window, which is the time that the hub needs for its whole fleet.
pub fn reconnect_ms(ending: Ending, attempt: u32, window_ms: u64, random: u64) -> u64 {
    let delay_max = RECONNECT.delay_max(attempt);
    let window = Duration::from_millis(window_ms);
    let range = match (ending, attempt) {
        (_, 0) => delay_max.max(window),
        (Ending::Refused, _) => {
            delay_max.min(window.max(REFUSED_WINDOW_MIN).saturating_mul(REFUSED_WINDOWS_MAX))
        }
        (Ending::Other, _) => delay_max,
    };
    let delay = Jitter::Full.apply(range, random);
    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnects_are_spread_from_nothing_to_a_bounded_maximum() {
        let longest = |attempt, window| {
            let delays =
                (0..1_000_u64).map(|r| reconnect_ms(Ending::Other, attempt, window, r * 37));
            delays.max().unwrap()
        };

        assert!(longest(0, 0) <= RECONNECT_MIN_MS);
        assert!(longest(3, 0) <= 8 * RECONNECT_MIN_MS);
        assert!(longest(u32::MAX, 0) <= RECONNECT_MAX_MS);
        assert!(longest(0, 5_000) > 4_000 && longest(0, 5_000) <= 5_000);
        assert_eq!(reconnect_ms(Ending::Other, 9, 0, 0), 0);
    }

    #[test]
    fn a_refusal_delays_the_next_dial_by_the_window_of_the_fleet_and_not_beyond() {
        let longest = |attempt, window| {
            let delays =
                (0..100_000_u64).map(|r| reconnect_ms(Ending::Refused, attempt, window, r));
            delays.max().unwrap()
        };

        assert_eq!(longest(1, 4_000), 2 * RECONNECT_MIN_MS);
        assert_eq!(longest(u32::MAX, 4_000), 8_000);
        assert_eq!(longest(u32::MAX, 0), 4_000);
        assert_eq!(longest(u32::MAX, u64::MAX), RECONNECT_MAX_MS);
    }
}
