//! Registration and exposition of Prometheus metrics. Each program defines its own.

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

pub use prometheus::Error;

/// Registers metrics, each under its full name.
///
/// Every method fails when the name is invalid or already registered.
#[derive(Debug)]
pub struct MetricBuilder {
    registry: Registry,
    /// Upper bounds of every histogram, in seconds.
    buckets: &'static [f64],
}

impl MetricBuilder {
    /// Creates an empty registry whose histograms have `buckets`, upper bounds in seconds.
    pub fn new(buckets: &'static [f64]) -> Self {
        Self { registry: Registry::new(), buckets }
    }

    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.register(IntCounter::new(name, help)?)
    }

    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.register(IntGauge::new(name, help)?)
    }

    pub fn histogram(&self, name: &str, help: &str) -> Result<Histogram, Error> {
        self.register(Histogram::with_opts(self.histogram_options(name, help))?)
    }

    pub fn histograms(&self, name: &str, help: &str, label: &str) -> Result<HistogramVec, Error> {
        self.register(HistogramVec::new(self.histogram_options(name, help), &[label])?)
    }

    /// Registers counters by `label`. Those of `values` are exported as zero from the beginning.
    pub fn counters(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: &[&str],
    ) -> Result<IntCounterVec, Error> {
        let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
        for value in values {
            counters.with_label_values(&[value]);
        }
        self.register(counters)
    }

    /// Registers gauges by `label`. Those of `values` are exported as zero from the beginning.
    pub fn gauges(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: &[&str],
    ) -> Result<IntGaugeVec, Error> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), &[label])?;
        for value in values {
            gauges.with_label_values(&[value]);
        }
        self.register(gauges)
    }

    /// Adds the `process_*` metrics of this process and ends the registration.
    pub fn finish(self) -> Result<Exposition, Error> {
        self.registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Exposition(self.registry))
    }

    fn histogram_options(&self, name: &str, help: &str) -> HistogramOpts {
        HistogramOpts::new(name, help).buckets(self.buckets.to_vec())
    }

    fn register<M: Collector + Clone + 'static>(&self, metric: M) -> Result<M, Error> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
}

/// The registered metrics, for `/metrics`.
#[derive(Clone, Debug)]
pub struct Exposition(Registry);

impl Exposition {
    /// Returns all metrics in the Prometheus text format.
    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.0.gather()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_label_values_are_exported_as_zero_and_a_name_is_registered_once() {
        let build = MetricBuilder::new(&[0.1, 1.0]);
        build.counters("answers_total", "Answers.", "result", &["good", "bad"]).unwrap();
        build.histogram("answer_seconds", "Time to answer.").unwrap().observe(0.5);

        assert!(build.gauge("answers_total", "Answers.").is_err());
        let text = build.finish().unwrap().text();

        for line in [
            r#"answers_total{result="bad"} 0"#,
            r#"answer_seconds_bucket{le="1"} 1"#,
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
