//! How old the hub's news is: only a verified sync makes it new. Says so; changes nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::TICK;
use crate::metrics::Metrics;

/// Time without a verified sync after which the hub counts as stale.
pub const HUB_STALE_AFTER: Duration = Duration::from_secs(10 * 60);

/// When the hub was last known to be what it says, by a verified sync.
#[derive(Clone, Debug)]
pub struct Freshness(Arc<Mutex<Option<Instant>>>, Instant);

impl Default for Freshness {
    fn default() -> Self {
        Self(Arc::default(), Instant::now())
    }
}

impl Freshness {
    pub(super) fn mark(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn age(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }

    /// True when no sync was verified for [`HUB_STALE_AFTER`].
    pub fn is_stale(&self) -> bool {
        self.age().unwrap_or_else(|| self.1.elapsed()) > HUB_STALE_AFTER
    }

    /// Keeps the gauges and says once when the hub becomes stale or fresh.
    pub async fn watch(self, metrics: Metrics) {
        let mut was_stale = false;
        loop {
            tokio::time::sleep(TICK).await;
            let stale = self.is_stale();
            let age_s = self.age().and_then(|age| i64::try_from(age.as_secs()).ok());
            metrics.sync_age_seconds.set(age_s.unwrap_or(-1));
            metrics.hub_stale.set(i64::from(stale));
            if stale && !was_stale {
                tracing::warn!(
                    reason = "HubStale",
                    "No verified sync for 10 minutes; what runs is kept, nothing new is known"
                );
            } else if was_stale && !stale {
                tracing::info!("The hub is fresh again");
            }
            was_stale = stale;
        }
    }
}
