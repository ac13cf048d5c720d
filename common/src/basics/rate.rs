//! Rate limits: token buckets, alone and by key. Pure; the caller supplies the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::locked::Locked;

/// Most keys that a [`KeyedTokenBucket`] tracks unless its owner sets another limit.
pub const RATE_KEYS_MAX: usize = 10_000;

/// A rate limit: a burst, and a steady rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Most tokens that a bucket holds.
    pub burst: u64,
    /// Tokens that a bucket gains in each `period`.
    pub tokens: u64,
    pub period: Duration,
}

impl RateLimit {
    /// Creates a limit of `burst` tokens, and one more in every `interval`.
    pub const fn one_every(burst: u64, interval: Duration) -> Self {
        Self { burst, tokens: 1, period: interval }
    }

    /// Creates a limit of `burst` tokens, and `tokens` more in every `period`.
    pub const fn per(burst: u64, tokens: u64, period: Duration) -> Self {
        Self { burst, tokens, period }
    }

    fn period_ns(&self) -> u128 {
        self.period.as_nanos().max(1)
    }
}

/// A token bucket. It starts full.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    limit: RateLimit,
    /// Below zero after a cost that exceeded the remaining tokens.
    tokens: i128,
    /// The time to which gained tokens are counted.
    filled_at: Option<Instant>,
}

impl TokenBucket {
    /// Creates a full bucket.
    pub const fn new(limit: RateLimit) -> Self {
        Self { limit, tokens: limit.burst as i128, filled_at: None }
    }

    /// Takes one token. Returns false, and takes none, when there is none.
    pub fn take(&mut self, now: Instant) -> bool {
        let allowed = self.has_tokens(now);
        if allowed {
            self.spend(1);
        }
        allowed
    }

    /// Returns true when at least one token is left.
    pub fn has_tokens(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens > 0
    }

    /// Takes `cost` tokens, which may exceed the remaining ones, because the cost of work is known after it is done. The
    /// bucket then allows nothing until it has gained the missing tokens.
    pub fn spend(&mut self, cost: u64) {
        self.tokens = self.tokens.saturating_sub(i128::from(cost));
    }

    /// Returns the number of tokens as of the last call with a time; below zero when overspent.
    pub fn tokens(&self) -> i128 {
        self.tokens
    }

    fn is_full(&self) -> bool {
        self.tokens >= i128::from(self.limit.burst)
    }

    fn fill(&mut self, now: Instant) {
        let filled_at = *self.filled_at.get_or_insert(now);
        let passed_ns = now.saturating_duration_since(filled_at).as_nanos();
        let rate = u128::from(self.limit.tokens);
        let gained = passed_ns.saturating_mul(rate) / self.limit.period_ns();
        if gained == 0 {
            return;
        }
        let gained_signed = i128::try_from(gained).unwrap_or(i128::MAX);
        self.tokens = self.tokens.saturating_add(gained_signed).min(i128::from(self.limit.burst));
        // The time of a fraction of a token is not counted yet; rounding up never gains a token twice.
        let counted_ns = gained.saturating_mul(self.limit.period_ns()).div_ceil(rate.max(1));
        let counted = Duration::from_nanos(u64::try_from(counted_ns).unwrap_or(u64::MAX));
        self.filled_at = filled_at.checked_add(counted).map(|time| time.min(now)).or(Some(now));
    }
}

/// A token bucket for each key, for a bounded number of keys.
#[derive(Clone, Debug)]
pub struct KeyedTokenBucket<K> {
    limit: RateLimit,
    keys_max: usize,
    buckets: BTreeMap<K, TokenBucket>,
}

impl<K: Ord + Clone> KeyedTokenBucket<K> {
    /// No key has a bucket yet. Tracks at most `keys_max` keys, and at least one.
    pub const fn new(limit: RateLimit, keys_max: usize) -> Self {
        Self { limit, keys_max, buckets: BTreeMap::new() }
    }

    /// Takes one token of a key. Returns false, and takes none, when there is none.
    ///
    /// When a new key exceeds the limit of keys, full buckets are dropped, which changes nothing, or
    /// else the fullest one, whose key then has its burst again.
    pub fn take(&mut self, key: &K, now: Instant) -> bool {
        if let Some(bucket) = self.buckets.get_mut(key) {
            return bucket.take(now);
        }
        if self.buckets.len() >= self.keys_max {
            self.make_room(now);
        }
        self.buckets.entry(key.clone()).or_insert_with(|| TokenBucket::new(self.limit)).take(now)
    }

    /// Returns true when a key has a bucket.
    pub fn contains(&self, key: &K) -> bool {
        self.buckets.contains_key(key)
    }

    /// Returns the number of keys that have a bucket.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Returns true when no key has a bucket.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    fn make_room(&mut self, now: Instant) {
        self.buckets.retain(|_, bucket| {
            bucket.fill(now);
            !bucket.is_full()
        });
        while self.buckets.len() >= self.keys_max.max(1) {
            let fullest = self.buckets.iter().max_by_key(|(_, bucket)| bucket.tokens);
            let Some(key) = fullest.map(|(key, _)| key.clone()) else { return };
            self.buckets.remove(&key);
        }
    }
}

/// A [`TokenBucket`] that its clones share.
#[derive(Clone, Debug)]
pub struct RateLimiter(Arc<Locked<TokenBucket>>);

impl RateLimiter {
    /// Creates a full bucket.
    pub fn new(limit: RateLimit) -> Self {
        Self(Arc::new(Locked::new(TokenBucket::new(limit))))
    }

    /// Takes one token; see [`TokenBucket::take`].
    pub fn allows(&self, now: Instant) -> bool {
        self.bucket(|bucket| bucket.take(now))
    }

    /// Returns true when at least one token is left.
    pub fn has_tokens(&self, now: Instant) -> bool {
        self.bucket(|bucket| bucket.has_tokens(now))
    }

    /// Takes `cost` tokens; see [`TokenBucket::spend`].
    pub fn spend(&self, cost: u64) {
        self.bucket(|bucket| bucket.spend(cost));
    }

    /// Returns the number of tokens; see [`TokenBucket::tokens`].
    pub fn tokens(&self) -> i128 {
        self.bucket(|bucket| bucket.tokens())
    }

    fn bucket<T>(&self, use_bucket: impl FnOnce(&mut TokenBucket) -> T) -> T {
        use_bucket(&mut self.0.lock())
    }
}

/// A [`KeyedTokenBucket`] that its clones share.
#[derive(Clone, Debug)]
pub struct KeyedRateLimiter<K>(Arc<Locked<KeyedTokenBucket<K>>>);

impl<K: Ord + Clone> KeyedRateLimiter<K> {
    /// No key has a bucket yet. Tracks at most `keys_max` keys, and at least one.
    pub fn new(limit: RateLimit, keys_max: usize) -> Self {
        Self(Arc::new(Locked::new(KeyedTokenBucket::new(limit, keys_max))))
    }

    /// Takes one token of a key; see [`KeyedTokenBucket::take`].
    pub fn allows(&self, key: &K, now: Instant) -> bool {
        self.0.lock().take(key, now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[expect(clippy::disallowed_methods, reason = "there is no other way to make an `Instant`")]
    fn any_instant() -> Instant {
        Instant::now()
    }

    fn taken(bucket: &mut TokenBucket, now: Instant, attempts: u32) -> usize {
        (0..attempts).filter(|_| bucket.take(now)).count()
    }

    #[test]
    fn a_burst_is_allowed_and_then_a_steady_rate() {
        let mut bucket = TokenBucket::new(RateLimit::one_every(64, 50 * MS));
        let start = any_instant();
        for (after_ms, attempts, expected) in [
            (0, 1_000, 64),
            (1_000, 1_000, 20),
            (1_049, 1, 0),
            (1_050, 9, 1),
            (1_050, 9, 0),
            (3_600_000, 1_000, 64),
        ] {
            let now = start + after_ms * MS;
            assert_eq!(taken(&mut bucket, now, attempts), expected, "after {after_ms} ms");
        }
    }

    #[test]
    fn an_overspent_bucket_allows_nothing_until_the_missing_tokens_are_gained() {
        let mut bucket = TokenBucket::new(RateLimit::per(100, 60, Duration::from_secs(60)));
        let start = any_instant();
        assert!(bucket.has_tokens(start));
        bucket.spend(130);

        for (after_s, expected) in [(0, false), (30, false), (31, true), (3_600, true)] {
            assert_eq!(bucket.has_tokens(start + Duration::from_secs(after_s)), expected);
        }
        assert_eq!(bucket.tokens(), 100, "never more than the burst");
    }

    #[test]
    fn each_key_has_its_own_bucket() {
        let mut buckets = KeyedTokenBucket::new(RateLimit::one_every(2, 1_000 * MS), 10);
        let now = any_instant();

        let mut taken = |key| (0..5).filter(|_| buckets.take(&key, now)).count();

        assert_eq!(("a", taken("a")), ("a", 2));
        assert_eq!(("b", taken("b")), ("b", 2));
        assert_eq!(("a", taken("a")), ("a", 0));
    }

    #[test]
    fn when_there_are_too_many_keys_idle_ones_go_first_and_then_the_fullest() {
        let mut buckets = KeyedTokenBucket::new(RateLimit::one_every(2, 1_000 * MS), 2);
        let start = any_instant();
        assert!(buckets.take(&"exhausted", start) && buckets.take(&"exhausted", start));
        assert!(buckets.take(&"half", start));

        assert!(buckets.take(&"new", start));
        assert_eq!(buckets.len(), 2);
        assert!(!buckets.take(&"exhausted", start), "the fullest gave way, not the exhausted one");

        let later = start + 10_000 * MS;
        assert!(buckets.take(&"another", later));
        assert_eq!(buckets.len(), 1, "full buckets are dropped");
    }

    #[test]
    fn clones_share_one_bucket() {
        let limiter = RateLimiter::new(RateLimit::one_every(1, 1_000 * MS));
        let now = any_instant();

        let clone = limiter.clone();
        assert!(limiter.allows(now));
        assert!(!clone.allows(now));
    }

    proptest! {
        #[test]
        fn however_time_passes_no_more_is_taken_than_burst_and_rate_allow(
            burst in 0_u64..50,
            tokens in 0_u64..50,
            period_ms in 0_u32..5_000,
            steps in proptest::collection::vec((0_u32..3_000, 0_u64..5), 0..60),
        ) {
            let limit = RateLimit::per(burst, tokens, period_ms * MS);
            let mut bucket = TokenBucket::new(limit);
            let start = any_instant();
            let (mut now, mut spent) = (start, 0_u128);
            for (pause_ms, cost) in steps {
                now += pause_ms * MS;
                if bucket.has_tokens(now) {
                    bucket.spend(cost);
                    spent += u128::from(cost);
                }
            }
            let gained = (now - start).as_nanos() * u128::from(tokens) / limit.period_ns();
            // One cost may exceed what was left.
            prop_assert!(spent <= u128::from(burst) + gained + 4);
        }

        #[test]
        fn the_number_of_keys_is_bounded(
            keys_max in 0_usize..8, keys in proptest::collection::vec(0_u8..40, 0..200),
        ) {
            let mut buckets = KeyedTokenBucket::new(RateLimit::one_every(3, 7 * MS), keys_max);
            let start = any_instant();
            for (step, key) in (0_u32..).zip(keys) {
                buckets.take(&key, start + step * MS);
                prop_assert!(buckets.len() <= keys_max.max(1));
            }
        }
    }
}
