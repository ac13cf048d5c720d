//! Exponential backoff: the delay before an attempt is repeated. Pure; the caller supplies the randomness.

use std::time::Duration;

/// Most times that the base is doubled, so that the shift cannot overflow.
const DOUBLINGS_MAX: u32 = 63;

/// Exponential backoff from `base` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Delay before the first retry, without jitter.
    pub base: Duration,
    /// Longest delay.
    pub max: Duration,
    pub jitter: Jitter,
}

/// The random part of a delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jitter {
    /// Always the whole delay.
    None,
    /// Full jitter: from zero to the whole delay, both included, in whole milliseconds.
    Full,
    /// The whole delay shortened by up to this share of it, in percent.
    Early { percent_max: u32 },
}

impl Backoff {
    /// Creates a backoff without jitter.
    pub const fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, jitter: Jitter::None }
    }

    /// Returns the backoff with jitter.
    pub const fn with_jitter(self, jitter: Jitter) -> Self {
        Self { jitter, ..self }
    }

    /// Returns the delay after `attempt` failures that followed the first one: `base` doubled `attempt`
    /// times, at most `max`, with jitter applied. Every value of `random` is accepted.
    pub fn delay(&self, attempt: u32, random: u64) -> Duration {
        self.jitter.apply(self.delay_max(attempt), random)
    }

    /// Returns the delay after `attempt` failures without jitter, which is the longest that
    /// [`Backoff::delay`] returns.
    pub fn delay_max(&self, attempt: u32) -> Duration {
        let factor = 1_u64 << attempt.min(DOUBLINGS_MAX);
        let delay_ns = self.base.as_nanos().saturating_mul(u128::from(factor));
        let delay = u64::try_from(delay_ns).map_or(Duration::MAX, Duration::from_nanos);
        delay.min(self.max)
    }
}

impl Jitter {
    /// Returns a delay with jitter applied: never longer than `delay`.
    pub fn apply(self, delay: Duration, random: u64) -> Duration {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        match self {
            Self::None => delay,
            Self::Full => Duration::from_millis(below(random, delay_ms.saturating_add(1))),
            Self::Early { percent_max } => {
                let early_ms_max = u128::from(delay_ms) * u128::from(percent_max.min(100)) / 100;
                let early_ms_max = u64::try_from(early_ms_max).unwrap_or(u64::MAX);
                delay.saturating_sub(Duration::from_millis(below(random, early_ms_max)))
            }
        }
    }
}

/// Maps `random` to a value below `end`, and to zero when `end` is zero.
fn below(random: u64, end: u64) -> u64 {
    random.checked_rem(end).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(60));
        for (attempt, seconds) in
            [(0, 2), (1, 4), (2, 8), (3, 16), (4, 32), (5, 60), (6, 60), (63, 60), (u32::MAX, 60)]
        {
            assert_eq!(backoff.delay(attempt, 7), Duration::from_secs(seconds), "{attempt}");
        }
    }

    #[test]
    fn jitter_spreads_a_delay_over_its_documented_range() {
        let delay = Duration::from_millis(1_000);
        let early = Jitter::Early { percent_max: 20 };
        for (jitter, random, expected_ms) in [
            (Jitter::None, 123, 1_000),
            (Jitter::Full, 0, 0),
            (Jitter::Full, 1_000, 1_000),
            (Jitter::Full, 1_001, 0),
            (early, 0, 1_000),
            (early, 199, 801),
            (early, 200, 1_000),
            (Jitter::Early { percent_max: 0 }, 5, 1_000),
        ] {
            let jittered = jitter.apply(delay, random);
            assert_eq!(jittered, Duration::from_millis(expected_ms), "{jitter:?} {random}");
        }
    }

    proptest! {
        #[test]
        fn no_delay_exceeds_the_longest_and_more_failures_never_shorten_the_range(
            base_ms: u32, max_ms: u32, attempt: u32, random: u64, percent_max in 0_u32..200, kind in 0..3,
        ) {
            let jitter = match kind {
                0 => Jitter::None,
                1 => Jitter::Full,
                _ => Jitter::Early { percent_max },
            };
            let (base, max) = (Duration::from_millis(base_ms.into()), Duration::from_millis(max_ms.into()));
            let backoff = Backoff::new(base, max).with_jitter(jitter);

            prop_assert!(backoff.delay(attempt, random) <= backoff.delay_max(attempt));
            prop_assert!(backoff.delay_max(attempt) <= max);
            prop_assert!(backoff.delay_max(attempt) <= backoff.delay_max(attempt.saturating_add(1)));
        }
    }
}
