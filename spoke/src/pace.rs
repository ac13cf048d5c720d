//! How often something may happen: a token bucket, shared by its clones. Decides; does nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Refusals that are written down at once, after a quiet time.
pub const REFUSALS_AT_ONCE_MAX: u32 = 64;
/// Refusals that are written down a second from then on; each is counted all the same.
pub const REFUSALS_PER_SECOND_MAX: u32 = 20;

/// Directives that one destination admits at once, after a quiet time.
pub const ADMISSIONS_AT_ONCE_MAX: u32 = 10;
/// Time in which it admits one more from then on: each costs writes, and content that stays in etcd
/// until it is compacted. Of those that wait the newest stays.
pub const ADMISSION_EVERY: Duration = Duration::from_secs(3);

/// Destinations that a cluster hears of for the first time and admits at once, after a quiet time.
pub const NEW_DESTINATIONS_AT_ONCE_MAX: u32 = 200;
/// Time in which it admits one more from then on: the record of a destination stays for good, and
/// there is room for so many only.
pub const NEW_DESTINATION_EVERY: Duration = Duration::from_secs(10);

/// A pace to keep.
#[derive(Clone, Debug)]
pub struct Pace(Arc<Mutex<Bucket>>);

#[derive(Debug)]
struct Bucket {
    at_once_max: u32,
    every: Duration,
    left: u32,
    /// When `left` was last right.
    filled_at: Option<Instant>,
}

impl Pace {
    /// At most `at_once_max` at once, and one in `every` from then on.
    pub fn new(at_once_max: u32, every: Duration) -> Self {
        let bucket = Bucket { at_once_max, every, left: at_once_max, filled_at: None };
        Self(Arc::new(Mutex::new(bucket)))
    }

    /// The pace of refusals.
    pub fn of_refusals() -> Self {
        Self::new(REFUSALS_AT_ONCE_MAX, Duration::from_secs(1) / REFUSALS_PER_SECOND_MAX)
    }

    /// The pace of admissions at one destination.
    pub fn of_admissions() -> Self {
        Self::new(ADMISSIONS_AT_ONCE_MAX, ADMISSION_EVERY)
    }

    /// The pace of new destinations in the whole cluster.
    pub fn of_new_destinations() -> Self {
        Self::new(NEW_DESTINATIONS_AT_ONCE_MAX, NEW_DESTINATION_EVERY)
    }

    /// Whether it may happen now; a yes is used up.
    pub fn allows(&self, now: Instant) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(now)
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let filled_at = *self.filled_at.get_or_insert(now);
        let passed = now.saturating_duration_since(filled_at);
        let whole = passed.as_nanos() / self.every.as_nanos().max(1);
        let whole = u32::try_from(whole).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(whole).min(self.at_once_max);
        // What is less than one stays on the clock.
        self.filled_at = filled_at.checked_add(self.every.saturating_mul(whole));
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_a_steady_few() {
        let pace = Pace::of_refusals();
        let start = Instant::now();
        let passed = |at: Instant, asked: u32| (0..asked).filter(|_| pace.allows(at)).count();

        assert_eq!(passed(start, 1_000), REFUSALS_AT_ONCE_MAX as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(passed(later, 1_000), REFUSALS_PER_SECOND_MAX as usize);
        assert_eq!(passed(later + Duration::from_millis(49), 1), 0);
        assert_eq!(passed(later + Duration::from_millis(50), 9), 1);
        let much_later = later + Duration::from_secs(3_600);
        assert_eq!(passed(much_later, 1_000), REFUSALS_AT_ONCE_MAX as usize);
    }
    #[test]
    fn a_destination_is_given_a_few_orders_at_once_and_then_one_in_a_while() {
        let pace = Pace::of_admissions();
        let start = Instant::now();
        let passed = |at: Instant, asked: u32| (0..asked).filter(|_| pace.allows(at)).count();

        assert_eq!(passed(start, 1_000), ADMISSIONS_AT_ONCE_MAX as usize);
        assert_eq!(passed(start + ADMISSION_EVERY, 1_000), 1);
        assert_eq!(passed(start + ADMISSION_EVERY * 5, 1_000), 4);
    }

    #[test]
    fn a_cluster_is_given_many_new_destinations_at_once_and_then_one_in_a_while() {
        let pace = Pace::of_new_destinations();
        let start = Instant::now();
        let passed = |at: Instant, asked: u32| (0..asked).filter(|_| pace.allows(at)).count();

        assert_eq!(passed(start, 1_000), NEW_DESTINATIONS_AT_ONCE_MAX as usize);
        assert_eq!(passed(start + NEW_DESTINATION_EVERY, 1_000), 1);
    }
}
