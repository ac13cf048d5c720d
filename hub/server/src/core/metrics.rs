//! Metrics of the hub. Names are stable; `docs/operating.md` describes them.

use std::collections::BTreeSet;

use attest_common::basics::locked::Locked;
use attest_common::basics::reason::{Reason, ReportedReason};
use attest_runtime::metrics::{Error, Exposition, MetricBuilder};
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::core::store::records::ClusterState;

/// Most distinct reasons in one metric; further ones are counted as `Other`.
pub(crate) const REASONS_MAX: usize = 64;

/// States of rollouts that have not ended.
pub(crate) const ROLLOUT_STATES: [&str; 4] = ["Running", "AwaitingApproval", "Paused", "Held"];
/// Label of all other reasons.
const OTHER: &str = "Other";

const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

/// The hub's metrics and their registry.
#[derive(Debug)]
pub struct Metrics {
    exposition: Exposition,
    reasons: Locked<BTreeSet<Reason>>,
    pub applications: IntGauge,
    pub applications_synced: IntGauge,
    pub sync_duration: Histogram,
    pub deployments: IntCounter,
    pub deployment_duration: Histogram,
    pub deployments_success: IntCounter,
    /// By `result`: `verified` or `refused`.
    pub verifications: IntCounterVec,
    pub signature_failures: IntCounter,
    /// By `result`: `allowed` or `refused`.
    pub policy_validations: IntCounterVec,
    /// By `state`: `Pending`, `Accepted`, `IdentityCopied`, `Revoked`.
    pub clusters: IntGaugeVec,
    pub identity_copies: IntCounter,
    pub connected: IntGauge,
    /// By `result`, a reason.
    pub joins: IntCounterVec,
    pub handshakes_refused: IntCounter,
    pub handshakes_failed: IntCounter,
    pub pushes: IntCounter,
    pub push_bytes: IntCounter,
    pub reports: IntCounter,
    pub reports_unreadable: IntCounter,
    pub reports_unordered: IntCounter,
    /// By `reason`: refusals of spokes.
    pub refusals: IntCounterVec,
    /// By `reason`: holds of the hub.
    pub holds: IntCounterVec,
    /// By `part`: git, render, verify, plan, report.
    pub change: HistogramVec,
    pub commit: Histogram,
    /// By `reason`.
    pub source_failures: IntCounterVec,
    /// By `result`, a phase in which rollouts end.
    pub rollouts_ended: IntCounterVec,
    /// By `phase`: `Running`, `AwaitingApproval`, `Paused` or `Held`.
    pub rollouts_open: IntGaugeVec,
    pub rollout_duration: Histogram,
    pub rollout_stage_duration: Histogram,
    pub reconciles: IntCounter,
    pub judgements: IntCounter,
    pub status_destinations: IntCounter,
}

impl Metrics {
    /// Creates a registry with all metrics at zero.
    ///
    /// # Errors
    /// When two metrics have the same name.
    pub fn new() -> Result<Self, Error> {
        let make = MetricBuilder::new(&SECONDS);
        Ok(Self {
            applications: make
                .gauge("attest_gitops_applications_total", "Applications managed by the hub.")?,
            applications_synced: make.gauge(
                "attest_gitops_applications_by_phase_synced",
                "Applications whose destinations are all Synced.",
            )?,
            sync_duration: make.histogram(
                "attest_gitops_application_sync_duration_seconds",
                "Time from the start of a reconcile pass to its committed directives.",
            )?,
            deployments: make.counter(
                "attest_gitops_deployments_total",
                "Directives committed to a ledger: deployments, reissues, repairs and removals.",
            )?,
            deployment_duration: make.histogram(
                "attest_gitops_deployment_duration_seconds",
                "Time from the push of a directive to the report of its completion.",
            )?,
            deployments_success: make.counter(
                "attest_gitops_deployments_success_total",
                "Directives whose destination reported Synced.",
            )?,
            verifications: make.counters(
                "attest_gitops_verifications_total",
                "Releases verified by the hub before a directive, once for each commit and destination.",
                "result",
                &["verified", "refused"],
            )?,
            signature_failures: make.counter(
                "attest_gitops_signature_verifications_failed_total",
                "Releases and directives without a trusted signature, found by the hub in Git or refused by spokes.",
            )?,
            policy_validations: make.counters(
                "attest_gitops_policy_validations_total",
                "Releases allowed or refused by the trust policy of a cluster, once for each commit and destination.",
                "result",
                &["allowed", "refused"],
            )?,
            clusters: make.gauges(
                "attest_fleet_clusters",
                "Registered clusters.",
                "state",
                &ClusterState::ALL.map(ClusterState::as_str),
            )?,
            identity_copies: make.counter(
                "attest_fleet_identity_copies_total",
                "Certificates presented after a newer one of the same cluster was used.",
            )?,
            connected: make.gauge("attest_fleet_clusters_connected", "Connected spokes.")?,
            joins: make.counters(
                "attest_fleet_joins_total",
                "Join requests answered.",
                "result",
                &["Joined", "Pending"],
            )?,
            handshakes_refused: make.counter(
                "attest_fleet_handshakes_refused_total",
                "Connections refused because of the limit of concurrent handshakes.",
            )?,
            handshakes_failed: make.counter(
                "attest_fleet_handshakes_failed_total",
                "Connections that failed before their session began.",
            )?,
            pushes: make.counter("attest_fleet_pushes_total", "Directives sent to spokes.")?,
            push_bytes: make
                .counter("attest_fleet_push_bytes_total", "Bytes of directives and blobs sent.")?,
            reports: make.counter("attest_fleet_reports_total", "Reports received and stored.")?,
            reports_unreadable: make.counter(
                "attest_fleet_reports_unreadable_total",
                "Reports discarded because they were unreadable.",
            )?,
            reports_unordered: make.counter(
                "attest_fleet_reports_unordered_total",
                "Reports discarded because this hub never deployed to their destination.",
            )?,
            refusals: make.counters(
                "attest_fleet_refusals_total",
                "Documents refused by spokes.",
                "reason",
                &[],
            )?,
            holds: make.counters(
                "attest_fleet_holds_total",
                "Changes held back by the hub, once for each commit, destination and reason.",
                "reason",
                &[],
            )?,
            change: make.histograms(
                "attest_fleet_change_seconds",
                "Duration of a change by part.",
                "part",
            )?,
            commit: make.histogram(
                "attest_fleet_store_commit_seconds",
                "Duration of transactions of the hub's store.",
            )?,
            source_failures: make.counters(
                "attest_fleet_source_failures_total",
                "Failures to read a repository.",
                "reason",
                &[],
            )?,
            rollouts_ended: make.counters(
                "attest_fleet_rollout_ended_total",
                "Rollouts by stages that have ended.",
                "result",
                &["Succeeded", "Failed", "Aborted", "Superseded"],
            )?,
            rollouts_open: make.gauges(
                "attest_fleet_rollout_open",
                "Rollouts by stages that have not ended.",
                "phase",
                &ROLLOUT_STATES,
            )?,
            rollout_duration: make.histogram(
                "attest_fleet_rollout_duration_seconds",
                "Time from the start of a rollout by stages to its end.",
            )?,
            rollout_stage_duration: make.histogram(
                "attest_fleet_rollout_stage_duration_seconds",
                "Time from the start of a stage to the start of the next.",
            )?,
            reconciles: make.counter("attest_fleet_reconciles_total", "Reconciles started.")?,
            judgements: make.counter(
                "attest_fleet_judgements_total",
                "Commits judged for a destination: the release and its receipts were verified.",
            )?,
            status_destinations: make.counter(
                "attest_fleet_status_destinations_total",
                "Destinations whose status was computed after a pass or a report.",
            )?,
            reasons: Locked::new(BTreeSet::new()),
            exposition: make.finish()?,
        })
    }

    /// Returns the label value of a reason: its word, or `Other` outside the registry and beyond `REASONS_MAX`
    /// distinct reasons.
    pub fn label(&self, reason: &ReportedReason) -> &'static str {
        let Some(reason) = reason.known() else { return OTHER };
        let mut reasons = self.reasons.lock();
        if reasons.len() >= REASONS_MAX && !reasons.contains(&reason) {
            return OTHER;
        }
        reasons.insert(reason);
        reason.as_str()
    }

    /// Returns all metrics in the text format of Prometheus.
    pub fn text(&self) -> String {
        self.exposition.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_others_choose_cannot_grow_without_end() {
        let metrics = Metrics::new().unwrap();

        for reason in Reason::ALL {
            metrics.label(&ReportedReason::from(*reason));
        }

        let [first, .., last] = Reason::ALL else { panic!("no reasons") };
        assert_eq!(metrics.label(&ReportedReason::from(*first)), first.as_str());
        assert_eq!(metrics.label(&ReportedReason::from(*last)), "Other");
        assert_eq!(metrics.label(&ReportedReason::parse("OfALaterRelease")), "Other");
        assert_eq!(metrics.label(&ReportedReason::parse("with \"quotes\"")), "Other");
    }
}
