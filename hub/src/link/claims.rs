//! How often a cluster is believed that this hub has forgotten something. Counts, believes nothing itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use attest_common::ids::ClusterId;

/// Most sessions of one cluster in [`CLAIMS_WINDOW`] that are believed to hold what this hub does not know: each
/// costs a durable write and a ledger entry. A hub that came back from a backup hears it once of each spoke.
pub(super) const CLAIMS_MAX: u32 = 8;
/// Span over which [`CLAIMS_MAX`] counts.
pub(super) const CLAIMS_WINDOW: Duration = Duration::from_secs(10 * 60);

/// Claims of each cluster: since when they are counted, and how many.
#[derive(Debug, Default)]
pub(super) struct Claims {
    counted: Mutex<BTreeMap<ClusterId, (Instant, u32)>>,
}

impl Claims {
    /// Counts a claim. False when there were too many lately.
    pub(super) fn may(&self, cluster: &ClusterId, now: Instant) -> bool {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.retain(|_, (since, _)| now.saturating_duration_since(*since) < CLAIMS_WINDOW);
        let (_, count) = counted.entry(cluster.clone()).or_insert((now, 0));
        *count = count.saturating_add(1);
        *count <= CLAIMS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoke_that_claims_more_at_every_reconnect_is_believed_a_few_times_and_holds_up_no_other() {
        let claims = Claims::default();
        let [liar, other] =
            ["c-0123456789abcdef", "c-fedcba9876543210"].map(|id| id.parse().unwrap());
        let begun = Instant::now();

        let believed = (0..100).filter(|_| claims.may(&liar, begun)).count();

        assert_eq!(believed, CLAIMS_MAX as usize);
        assert!(claims.may(&other, begun));
        assert!(claims.may(&liar, begun + CLAIMS_WINDOW));
    }
}
