//! Limits on spokes: sizes of messages, and rates of requests that are expensive for the hub.

use std::time::Duration;

use attest_common::basics::rate::RateLimit;

/// Most destinations that a spoke may report when it connects.
pub(super) const HELLO_DESTINATIONS_MAX: usize = 4_096;
/// Largest reported trust policy in bytes.
pub(super) const POLICY_BYTES_MAX: usize = 512 * 1024;
/// Most blobs that one `Need` may name.
pub(super) const NEEDS_MAX: usize = 128;
/// Limit, for each cluster, of sessions that report directives unknown to this hub: each costs a durable write and a
/// ledger entry. After a restore from a backup, each spoke reports them once.
pub(super) const CLAIMS: RateLimit = RateLimit::per(8, 8, Duration::from_secs(10 * 60));
/// Limit, for each cluster, of sessions of which the hub stores a changed policy or version: each costs a durable
/// write.
pub(super) const INTRODUCTIONS: RateLimit = RateLimit::per(8, 8, Duration::from_secs(10 * 60));
/// Limit of certificate renewals for each cluster: each costs a signature and a durable write, and certificates are
/// valid for days.
pub(super) const RENEWALS: RateLimit = RateLimit::one_every(1, Duration::from_secs(60));

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use attest_common::basics::ids::ClusterId;
    use attest_common::basics::rate::KeyedRateLimiter;

    use super::super::registration::CLUSTERS_MAX;
    use super::*;

    #[test]
    fn a_spoke_that_claims_more_at_every_reconnect_is_believed_a_few_times_and_holds_up_no_other() {
        let claims = KeyedRateLimiter::new(CLAIMS, CLUSTERS_MAX);
        let [liar, other]: [ClusterId; 2] =
            ["c-0123456789abcdef", "c-fedcba9876543210"].map(|id| id.parse().unwrap());
        let begun = Instant::now();

        let believed = (0..100).filter(|_| claims.allows(&liar, begun)).count();

        assert_eq!(believed, 8);
        assert!(claims.allows(&other, begun));
        assert!(claims.allows(&liar, begun + CLAIMS.period));
    }
}
