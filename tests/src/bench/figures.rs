//! A list of measurements and its line in a table: n, minimum, p50, p99, maximum, target.

/// Measurements of one quantity, in one unit.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    values: Vec<f64>,
}

impl Figures {
    /// Adds a measurement.
    pub fn add(&mut self, value: f64) {
        self.values.push(value);
    }

    /// Number of measurements.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Returns whether there are no measurements.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The smallest value that at least `percent` of all values do not exceed (nearest rank); 0 without
    /// values.
    pub fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index into a list of measurements"
        )]
        let rank =
            ((percent / 100.0 * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len().max(1));
        sorted.get(rank - 1).copied().unwrap_or(0.0)
    }

    /// The line of the table.
    pub fn line(&self, name: &str, unit: &str, target: &str) -> String {
        let [minimum, p50, p99, maximum] =
            [0.0, 50.0, 99.0, 100.0].map(|percent| format!("{:.1}", self.percentile(percent)));
        format!(
            "{name:<44} {unit:>6} {:>5} {minimum:>10} {p50:>10} {p99:>10} {maximum:>10}   {target}",
            self.len()
        )
    }
}

/// The heading of the table.
pub fn heading() -> String {
    let build = if cfg!(debug_assertions) {
        "debug build: figures are not meaningful"
    } else {
        "release build"
    };
    format!(
        "{build}\n{:<44} {:>6} {:>5} {:>10} {:>10} {:>10} {:>10}   TARGET",
        "FIGURE", "UNIT", "N", "MIN", "P50", "P99", "MAX"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let mut figures = Figures::default();
        assert!(figures.is_empty());
        for value in [5.0, 1.0, 3.0, 2.0, 4.0] {
            figures.add(value);
        }

        assert_eq!([0.0, 50.0, 99.0, 100.0].map(|p| figures.percentile(p)), [1.0, 3.0, 5.0, 5.0]);
    }
}
