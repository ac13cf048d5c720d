//! How often something may happen, and how much: token buckets, shared by their clones. They decide and do nothing.

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

/// Questions about the kinds that the API server serves which pushes may cause at once, after a quiet time.
pub const DISCOVERIES_AT_ONCE_MAX: u32 = 20;
/// Time in which they may cause one more from then on: each is answered with two large documents.
pub const DISCOVERY_EVERY: Duration = Duration::from_secs(1);

/// Sessions with a hub that may end and be dialled anew without a growing wait, after a quiet time.
pub const SESSIONS_AT_ONCE_MAX: u32 = 20;
/// Time in which there may be one more from then on: each costs a handshake and a log line.
pub const SESSION_EVERY: Duration = Duration::from_secs(10);

/// Writes of the list of refusals at once, after a quiet time.
pub const REFUSAL_WRITES_AT_ONCE_MAX: u32 = 30;
/// Time in which there is one more from then on; it holds what came meanwhile.
pub const REFUSAL_WRITE_EVERY: Duration = Duration::from_secs(10);

/// Bytes that admissions write to etcd at once, after a quiet time: as much as the content of a cluster
/// may have, so that a cluster is filled for the first time without a wait.
pub const WRITTEN_AT_ONCE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes that they write in a minute from then on. etcd keeps what was replaced for some ten minutes;
/// with these two it holds far less than the 2 GiB that it has at least.
pub const WRITTEN_PER_MINUTE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// How long to wait before an admission is tried again for which there was no room.
pub const WRITTEN_RETRY: Duration = Duration::from_secs(10);

/// Bytes of stored content that pushes may have looked up at once, after a quiet time: all of it once,
/// as after a start of the hub.
pub const LOOKED_UP_AT_ONCE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes of it that they may have looked up in a minute from then on. Beyond it the hub is asked.
pub const LOOKED_UP_PER_MINUTE_BYTES_MAX: u64 = 32 * 1024 * 1024;

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

    /// The pace of questions about kinds.
    pub fn of_discoveries() -> Self {
        Self::new(DISCOVERIES_AT_ONCE_MAX, DISCOVERY_EVERY)
    }

    /// The pace of sessions.
    pub fn of_sessions() -> Self {
        Self::new(SESSIONS_AT_ONCE_MAX, SESSION_EVERY)
    }

    /// The pace of writing refusals.
    pub fn of_refusal_writes() -> Self {
        Self::new(REFUSAL_WRITES_AT_ONCE_MAX, REFUSAL_WRITE_EVERY)
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

/// An amount to keep to, in bytes. What is spent may exceed it once: it is known only afterwards.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Mutex<Account>>);

#[derive(Debug)]
struct Account {
    at_once_max: i128,
    per_minute: i128,
    left: i128,
    /// When `left` was last right.
    filled_at: Option<Instant>,
}

impl Budget {
    /// At most `at_once_max` bytes at once, and `per_minute` from then on.
    pub fn new(at_once_max: u64, per_minute: u64) -> Self {
        let (at_once_max, per_minute) = (i128::from(at_once_max), i128::from(per_minute));
        let account = Account { at_once_max, per_minute, left: at_once_max, filled_at: None };
        Self(Arc::new(Mutex::new(account)))
    }

    /// What admissions may write.
    pub fn of_writes() -> Self {
        Self::new(WRITTEN_AT_ONCE_BYTES_MAX, WRITTEN_PER_MINUTE_BYTES_MAX)
    }

    /// What pushes may have looked up.
    pub fn of_look_ups() -> Self {
        Self::new(LOOKED_UP_AT_ONCE_BYTES_MAX, LOOKED_UP_PER_MINUTE_BYTES_MAX)
    }

    /// Whether something is left now.
    pub fn has_left(&self, now: Instant) -> bool {
        let mut account = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        account.fill(now);
        account.left > 0
    }

    #[cfg(test)]
    pub(crate) fn left(&self) -> i128 {
        self.0.lock().unwrap().left
    }

    /// That so many bytes were used.
    pub fn spend(&self, bytes: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).left -= i128::from(bytes);
    }
}

impl Account {
    fn fill(&mut self, now: Instant) {
        let filled_at = *self.filled_at.get_or_insert(now);
        let passed_ms = now.saturating_duration_since(filled_at).as_millis();
        let passed_ms = i128::try_from(passed_ms).unwrap_or(i128::MAX);
        let more = self.per_minute.saturating_mul(passed_ms) / 60_000;
        // What is less than a byte stays on the clock.
        if more > 0 {
            self.left = self.left.saturating_add(more).min(self.at_once_max);
            self.filled_at = Some(now);
        }
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
    fn what_is_written_beyond_the_budget_is_made_good_by_time_before_more_is() {
        let budget = Budget::new(100, 60);
        let start = Instant::now();
        assert!(budget.has_left(start));
        budget.spend(130);

        assert!(!budget.has_left(start));
        assert!(!budget.has_left(start + Duration::from_secs(30)));
        assert!(budget.has_left(start + Duration::from_secs(31)));
        assert!(budget.has_left(start + Duration::from_secs(3_600)));
        budget.spend(100);
        assert!(!budget.has_left(start + Duration::from_secs(3_600)), "no more than at once");
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
