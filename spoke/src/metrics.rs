//! What the spoke counts. Labels are words from fixed lists, never names that a remote side chose.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

/// Upper bounds in seconds of everything that is timed.
const SECONDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.075, 0.1, 0.25, 1.0, 5.0, 30.0];
/// Reasons that mean a signature or key was not good.
const SIGNATURE_REASONS: [&str; 2] = ["SignatureInvalid", "UntrustedKey"];

/// All metrics of a spoke.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
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
    pub certificate_expiry_seconds: IntGauge,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// When a name is registered twice, which is a mistake in this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let with = Register(&registry);
        let metrics = Self {
            refusals: with.counters("refusals_total", "Documents refused, by reason", "reason")?,
            signature_failures: with.counter(
                "signature_verifications_failed_total",
                "Documents refused because of a signature or key",
            )?,
            verifications: with.counters(
                "verifications_total",
                "Directives judged, by result",
                "result",
            )?,
            verification_seconds: with
                .histogram("verification_duration_seconds", "Time to judge one directive")?,
            applies: with.counters("applies_total", "Objects applied, by result", "result")?,
            apply_seconds: with
                .histogram("apply_duration_seconds", "Time to apply one plan's objects")?,
            drifts: with.counter("drifts_total", "Objects seen to differ from what is signed")?,
            heals: with.counter("heals_total", "Objects put back")?,
            heal_seconds: with.histogram(
                "heal_duration_seconds",
                "From the watch event to the object put back",
            )?,
            prunes: with.counter("prunes_total", "Objects deleted because no plan names them")?,
            requests: with.counters("api_requests_total", "Requests to the API server", "verb")?,
            connected: with.gauge("connected", "1 while the hub has welcomed this spoke")?,
            connections: with.counter("connections_total", "Sessions that the hub welcomed")?,
            hub_stale: with
                .gauge("hub_stale", "1 when no verified sync came for more than 10 minutes")?,
            sync_age_seconds: with
                .gauge("sync_age_seconds", "Seconds since the last verified sync, -1 before any")?,
            destinations: with.gauge("destinations", "Destinations with a record")?,
            objects: with.gauge("objects", "Objects in all inventories")?,
            watches: with.gauge("watches", "Watches open, one a kind and namespace")?,
            state_lost: with
                .gauge("state_lost", "1 when records are missing that this identity once wrote")?,
            certificate_expiry_seconds: with.gauge(
                "certificate_expiry_seconds",
                "Seconds until the certificate expires; below zero since",
            )?,
            registry: registry.clone(),
        };
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// Counts one refusal.
    pub fn refused(&self, reason: &str) {
        self.refusals.with_label_values(&[reason]).inc();
        self.verifications.with_label_values(&["refused"]).inc();
        if SIGNATURE_REASONS.contains(&reason) {
            self.signature_failures.inc();
        }
    }

    /// Everything in the Prometheus text format.
    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

struct Register<'a>(&'a Registry);

impl Register<'_> {
    fn options(name: &str, help: &str) -> Opts {
        Opts::new(format!("attest_spoke_{name}"), help)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        let counter = IntCounter::with_opts(Self::options(name, help))?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        label: &str,
    ) -> Result<IntCounterVec, prometheus::Error> {
        let counters = IntCounterVec::new(Self::options(name, help), &[label])?;
        self.0.register(Box::new(counters.clone()))?;
        Ok(counters)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        let gauge = IntGauge::with_opts(Self::options(name, help))?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    fn histogram(&self, name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
        let options = HistogramOpts::new(format!("attest_spoke_{name}"), help);
        let histogram = Histogram::with_opts(options.buckets(SECONDS.to_vec()))?;
        self.0.register(Box::new(histogram.clone()))?;
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_counted_by_its_reason_and_a_bad_signature_twice() {
        let metrics = Metrics::new().unwrap();

        metrics.refused("ContentDigest");
        metrics.refused("SignatureInvalid");

        let text = metrics.text();
        assert!(
            text.contains(r#"attest_spoke_refusals_total{reason="ContentDigest"} 1"#),
            "{text}"
        );
        assert!(text.contains("attest_spoke_signature_verifications_failed_total 1"));
        assert!(text.contains("process_resident_memory_bytes"));
    }
}
