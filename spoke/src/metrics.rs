//! Metrics of the spoke. Labels are words from fixed lists, never names from a remote peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use attest_common::basics::ids::Timestamp;
use attest_common::basics::reason::{Reason, ReportedReason};
use attest_runtime::metrics::{Error, Exposition, MetricBuilder};
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

/// Upper bounds in seconds of everything that is timed.
const SECONDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.075, 0.1, 0.25, 1.0, 5.0, 30.0];

/// All metrics of a spoke.
#[derive(Clone, Debug)]
pub struct Metrics {
    exposition: Exposition,
    pub refusals: IntCounterVec,
    pub signature_failures: IntCounter,
    pub verifications: IntCounterVec,
    pub verification_seconds: Histogram,
    pub applies: IntCounterVec,
    pub apply_seconds: Histogram,
    pub drifts: IntCounter,
    pub heals: IntCounter,
    pub heal_seconds: Histogram,
    pub prunes: IntCounter,
    pub requests: IntCounterVec,
    pub connected: IntGauge,
    pub connections: IntCounter,
    pub hub_stale: IntGauge,
    pub sync_age_seconds: IntGauge,
    pub destinations: IntGauge,
    pub objects: IntGauge,
    pub watches: IntGauge,
    pub state_lost: IntGauge,
    certificate_expiry_seconds: IntGauge,
    /// Seconds since 1970; 0 without a certificate.
    certificate_expires_at: Arc<AtomicI64>,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// When a name is registered twice, which is a mistake in this file.
    pub fn new() -> Result<Self, Error> {
        let with = MetricBuilder::new(&SECONDS);
        Ok(Self {
            refusals: with.counters(
                "attest_spoke_refusals_total",
                "Documents refused, by reason",
                "reason",
                &[],
            )?,
            signature_failures: with.counter(
                "attest_spoke_signature_verifications_failed_total",
                "Documents refused because no trusted key signed them",
            )?,
            verifications: with.counters(
                "attest_spoke_verifications_total",
                "Directives judged, by result",
                "result",
                &[],
            )?,
            verification_seconds: with.histogram(
                "attest_spoke_verification_duration_seconds",
                "Time to judge one directive",
            )?,
            applies: with.counters(
                "attest_spoke_applies_total",
                "Objects applied, by result",
                "result",
                &[],
            )?,
            apply_seconds: with.histogram(
                "attest_spoke_apply_duration_seconds",
                "Time to apply one plan's objects",
            )?,
            drifts: with
                .counter("attest_spoke_drifts_total", "Objects whose drift was detected")?,
            heals: with.counter("attest_spoke_heals_total", "Objects put back")?,
            heal_seconds: with.histogram(
                "attest_spoke_heal_duration_seconds",
                "Time from the watch event to the reverted drift",
            )?,
            prunes: with.counter(
                "attest_spoke_prunes_total",
                "Objects deleted because no plan names them",
            )?,
            requests: with.counters(
                "attest_spoke_api_requests_total",
                "Requests to the API server",
                "verb",
                &[],
            )?,
            connected: with
                .gauge("attest_spoke_connected", "1 while the hub has welcomed this spoke")?,
            connections: with
                .counter("attest_spoke_connections_total", "Sessions that the hub welcomed")?,
            hub_stale: with.gauge(
                "attest_spoke_hub_stale",
                "1 if no sync was verified for more than 10 minutes",
            )?,
            sync_age_seconds: with.gauge(
                "attest_spoke_sync_age_seconds",
                "Seconds since the last verified sync, -1 before any",
            )?,
            destinations: with.gauge("attest_spoke_destinations", "Destinations with a record")?,
            objects: with.gauge("attest_spoke_objects", "Objects in all inventories")?,
            watches: with
                .gauge("attest_spoke_watches", "Watches open, one a kind and namespace")?,
            state_lost: with.gauge(
                "attest_spoke_state_lost",
                "1 if records are missing that this identity has written",
            )?,
            certificate_expiry_seconds: with.gauge(
                "attest_spoke_certificate_expiry_seconds",
                "Seconds until the certificate expires; below zero since",
            )?,
            certificate_expires_at: Arc::default(),
            exposition: with.finish()?,
        })
    }

    /// Counts one refusal.
    pub fn refused(&self, reason: &ReportedReason) {
        self.refusals.with_label_values(&[reason.as_str()]).inc();
        self.verifications.with_label_values(&["refused"]).inc();
        if reason.known().is_some_and(Reason::is_signature_failure) {
            self.signature_failures.inc();
        }
    }

    /// When the certificate expires. What is left of it is reckoned whenever it is asked for.
    pub fn certificate_expires(&self, at: Option<Timestamp>) {
        self.certificate_expires_at.store(at.map_or(0, Timestamp::as_second), Ordering::Relaxed);
    }

    /// Everything in the Prometheus text format, as of now.
    pub fn text(&self) -> String {
        self.text_at(Timestamp::now())
    }

    fn text_at(&self, now: Timestamp) -> String {
        let left_s = match self.certificate_expires_at.load(Ordering::Relaxed) {
            0 => 0,
            at => at.saturating_sub(now.as_second()),
        };
        self.certificate_expiry_seconds.set(left_s);
        self.exposition.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_certificate_is_as_of_when_it_is_asked_for() {
        let metrics = Metrics::new().unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        let left = |second| {
            let text = metrics.text_at(at(second));
            let line = text
                .lines()
                .find(|line| line.starts_with("attest_spoke_certificate_expiry_seconds "));
            line.unwrap().rsplit_once(' ').unwrap().1.to_owned()
        };
        assert_eq!(left(1_000), "0");

        metrics.certificate_expires(Some(at(2_000)));

        assert_eq!([left(1_000), left(1_999), left(2_500)], ["1000", "1", "-500"]);
    }

    #[test]
    fn a_refusal_is_counted_by_its_reason_and_a_bad_signature_twice() {
        let metrics = Metrics::new().unwrap();

        metrics.refused(&Reason::ContentDigest.into());
        metrics.refused(&Reason::SignatureInvalid.into());

        let text = metrics.text();
        assert!(
            text.contains(r#"attest_spoke_refusals_total{reason="ContentDigest"} 1"#),
            "{text}"
        );
        assert!(text.contains("attest_spoke_signature_verifications_failed_total 1"));
        assert!(text.contains("process_resident_memory_bytes"));
    }
}
