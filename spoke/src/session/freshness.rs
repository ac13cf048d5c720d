//! Age of the last verified sync of the hub. Reports it; changes nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::locked::Locked;
use attest_common::basics::reason::Reason;

use crate::ledger::refusals::Refusals;
use crate::metrics::Metrics;

/// Time without a verified sync after which the hub counts as stale.
pub const HUB_STALE_AFTER: Duration = Duration::from_secs(10 * 60);

/// Interval of the check for staleness.
const TICK: Duration = Duration::from_secs(5);

/// Time of the last verified sync.
#[derive(Clone, Debug)]
pub struct Freshness(Arc<Locked<Option<Instant>>>, Instant);

impl Default for Freshness {
    fn default() -> Self {
        Self(Arc::default(), Instant::now())
    }
}

impl Freshness {
    pub(super) fn mark(&self, now: Instant) {
        *self.0.lock() = Some(now);
    }

    fn age(&self, now: Instant) -> Option<Duration> {
        let heard = *self.0.lock();
        heard.map(|at| now.saturating_duration_since(at))
    }

    /// Returns whether no sync was verified for [`HUB_STALE_AFTER`].
    pub fn is_stale(&self, now: Instant) -> bool {
        let since_start = now.saturating_duration_since(self.1);
        self.age(now).unwrap_or(since_start) > HUB_STALE_AFTER
    }

    /// Returns whether the hub is stale, once that is known: it is not before the first sync.
    fn known(&self, now: Instant) -> Option<bool> {
        let stale = self.is_stale(now);
        (stale || self.age(now).is_some()).then_some(stale)
    }

    /// Updates the gauges, and logs and records each change between stale and fresh.
    pub async fn watch(self, metrics: Metrics, refusals: Refusals) {
        let mut was_stale = false;
        loop {
            tokio::time::sleep(TICK).await;
            let now = Instant::now();
            let stale = self.is_stale(now);
            let age_s = self.age(now).and_then(|age| i64::try_from(age.as_secs()).ok());
            metrics.sync_age_seconds.set(age_s.unwrap_or(-1));
            metrics.hub_stale.set(i64::from(stale));
            if let Some(stale) = self.known(now) {
                refusals.note_hub(stale, jiff::Timestamp::now());
            }
            if stale && !was_stale {
                tracing::warn!(
                    reason = Reason::HubStale.as_str(),
                    "No verified sync for 10 minutes; running applications are kept"
                );
            } else if was_stale && !stale {
                tracing::info!("The hub is fresh again");
            }
            was_stale = stale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_is_stale_ten_minutes_after_its_last_sync_and_not_before() {
        let freshness = Freshness::default();
        let start = freshness.1;
        let at = |minutes: u64, seconds: u64| start + Duration::from_secs(minutes * 60 + seconds);

        assert!(!freshness.is_stale(at(10, 0)) && freshness.is_stale(at(10, 1)));
        assert_eq!([at(0, 1), at(10, 1)].map(|now| freshness.known(now)), [None, Some(true)]);

        freshness.mark(at(15, 0));
        assert_eq!(
            [at(15, 1), at(25, 0), at(25, 1)].map(|now| freshness.known(now)),
            [Some(false), Some(false), Some(true)]
        );
    }
}
