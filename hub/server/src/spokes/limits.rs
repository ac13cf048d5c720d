//! How often each cluster may make the hub do something that costs it. Counts, refuses nothing itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use attest_common::basics::ids::ClusterId;

/// So many times a cluster in a span of time. What it keeps is one entry for each cluster that came in that span.
#[derive(Debug)]
pub(super) struct Pace {
    times_max: u32,
    span: Duration,
    /// Since when they are counted, and how many.
    counted: Mutex<BTreeMap<ClusterId, (Instant, u32)>>,
}

impl Pace {
    pub(super) fn new(times_max: u32, span: Duration) -> Self {
        Self { times_max, span, counted: Mutex::default() }
    }

    /// Counts one. False when there were too many lately.
    pub(super) fn may(&self, cluster: &ClusterId, now: Instant) -> bool {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.retain(|_, (since, _)| now.saturating_duration_since(*since) < self.span);
        let (_, count) = counted.entry(cluster.clone()).or_insert((now, 0));
        *count = count.saturating_add(1);
        *count <= self.times_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoke_that_claims_more_at_every_reconnect_is_believed_a_few_times_and_holds_up_no_other() {
        let span = Duration::from_secs(600);
        let claims = Pace::new(8, span);
        let [liar, other] =
            ["c-0123456789abcdef", "c-fedcba9876543210"].map(|id| id.parse().unwrap());
        let begun = Instant::now();

        let believed = (0..100).filter(|_| claims.may(&liar, begun)).count();

        assert_eq!(believed, 8);
        assert!(claims.may(&other, begun));
        assert!(claims.may(&liar, begun + span));
    }
}
