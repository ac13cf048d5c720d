//! How long to wait before dialling the hub again. Pure.

use attest_common::session::{RECONNECT_MAX_MS, RECONNECT_MIN_MS};

/// How long to wait before dialling again: full jitter over a range that doubles with every failed
/// attempt, or over the window the hub advertised when a session that worked has ended.
pub fn reconnect_ms(attempt: u32, window_ms: u64, random: u64) -> u64 {
    let doubled = RECONNECT_MIN_MS.saturating_mul(1_u64.checked_shl(attempt).unwrap_or(u64::MAX));
    let backoff_ms = doubled.clamp(RECONNECT_MIN_MS, RECONNECT_MAX_MS);
    let range_ms = if attempt == 0 { backoff_ms.max(window_ms) } else { backoff_ms };
    random % (range_ms + 1)
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
