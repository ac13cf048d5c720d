//! Every number the hub exports. Names are for ever; `docs/operating.md` says what each means.

use std::collections::BTreeSet;

use attest_common::basics::locked::Locked;

use attest_runtime::metrics::{Error, Exposition, MetricBuilder};
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// Most different reasons that one metric shows; further ones are counted as `Other`.
pub(crate) const REASONS_MAX: usize = 64;

const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

/// The hub's metrics and where they are gathered.
#[derive(Debug)]
pub struct Metrics {
    exposition: Exposition,
    reasons: Locked<BTreeSet<String>>,
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
    /// By `state`: `Pending`, `Accepted`, `Revoked`.
    pub clusters: IntGaugeVec,
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
    /// By `reason`: what spokes refused.
    pub refusals: IntCounterVec,
    /// By `reason`: what the hub itself did not plan.
    pub holds: IntCounterVec,
    /// By `part`: git, render, verify, plan, report.
    pub change: HistogramVec,
    pub commit: Histogram,
    /// By `reason`.
    pub source_failures: IntCounterVec,
    pub reconciles: IntCounter,
}

impl Metrics {
    /// Metrics of their own, all zero.
    ///
    /// # Errors
    /// When two of them were given one name.
    pub fn new() -> Result<Self, Error> {
        let make = MetricBuilder::new(&SECONDS);
        Ok(Self {
            applications: make
                .gauge("attest_gitops_applications_total", "Applications the hub manages.")?,
            applications_synced: make.gauge(
                "attest_gitops_applications_by_phase_synced",
                "Applications of which every destination is Synced.",
            )?,
            sync_duration: make.histogram(
                "attest_gitops_application_sync_duration_seconds",
                "From looking at an application to having ordered what it needs.",
            )?,
            deployments: make
                .counter("attest_gitops_deployments_total", "Directives that order a new plan.")?,
            deployment_duration: make.histogram(
                "attest_gitops_deployment_duration_seconds",
                "From pushing a directive to the report that it is Synced.",
            )?,
            deployments_success: make.counter(
                "attest_gitops_deployments_success_total",
                "Directives whose destination reported Synced.",
            )?,
            verifications: make.counters(
                "attest_gitops_verifications_total",
                "Releases judged by the hub.",
                "result",
                &["verified", "refused"],
            )?,
            signature_failures: make.counter(
                "attest_gitops_signature_verifications_failed_total",
                "Judgements that ended at a signature or a key.",
            )?,
            policy_validations: make.counters(
                "attest_gitops_policy_validations_total",
                "Judgements by a cluster's trust policy.",
                "result",
                &["allowed", "refused"],
            )?,
            clusters: make.gauges(
                "attest_fleet_clusters",
                "Registered clusters.",
                "state",
                &["Pending", "Accepted", "Revoked"],
            )?,
            connected: make.gauge("attest_fleet_clusters_connected", "Spokes connected now.")?,
            joins: make.counters(
                "attest_fleet_joins_total",
                "Answers to spokes that asked to join.",
                "result",
                &["Joined", "Pending"],
            )?,
            handshakes_refused: make.counter(
                "attest_fleet_handshakes_refused_total",
                "Connections turned away because too many were being set up.",
            )?,
            handshakes_failed: make.counter(
                "attest_fleet_handshakes_failed_total",
                "Connections that ended before a session began.",
            )?,
            pushes: make.counter("attest_fleet_pushes_total", "Directives sent to spokes.")?,
            push_bytes: make
                .counter("attest_fleet_push_bytes_total", "Bytes of directives and blobs sent.")?,
            reports: make.counter("attest_fleet_reports_total", "Reports received and kept.")?,
            reports_unreadable: make.counter(
                "attest_fleet_reports_unreadable_total",
                "Reports set aside because this hub cannot read them.",
            )?,
            reports_unordered: make.counter(
                "attest_fleet_reports_unordered_total",
                "Reports of destinations that this hub never ordered; they are not kept.",
            )?,
            refusals: make.counters(
                "attest_fleet_refusals_total",
                "Documents that spokes refused.",
                "reason",
                &[],
            )?,
            holds: make.counters(
                "attest_fleet_holds_total",
                "Changes the hub did not plan, once for each commit and destination.",
                "reason",
                &[],
            )?,
            change: make.histograms(
                "attest_fleet_change_seconds",
                "Where the time of a change goes.",
                "part",
            )?,
            commit: make
                .histogram("attest_fleet_store_commit_seconds", "Durable writes of the hub.")?,
            source_failures: make.counters(
                "attest_fleet_source_failures_total",
                "Repositories that could not be read.",
                "reason",
                &[],
            )?,
            reconciles: make
                .counter("attest_fleet_reconciles_total", "Times an application was looked at.")?,
            reasons: Locked::new(BTreeSet::new()),
            exposition: make.finish()?,
        })
    }

    /// `reason` as a label: itself, or `Other` when too many different ones were seen.
    pub fn label(&self, reason: &str) -> String {
        let is_word = !reason.is_empty()
            && reason.len() <= 64
            && reason.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let mut reasons = self.reasons.lock();
        if !is_word || (reasons.len() >= REASONS_MAX && !reasons.contains(reason)) {
            return "Other".to_owned();
        }
        reasons.insert(reason.to_owned());
        reason.to_owned()
    }

    /// All of them in the text form of Prometheus.
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

        for number in 0..1_000 {
            metrics.label(&format!("Reason{number}"));
        }

        assert_eq!(metrics.label("Reason1"), "Reason1");
        assert_eq!(metrics.label("Reason999"), "Other");
        assert_eq!(metrics.label("with \"quotes\""), "Other");
    }
}
