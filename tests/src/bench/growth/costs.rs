//! Costs at several sizes, and the table of their growth.

/// A cost that is measured at each size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    name: &'static str,
    unit: &'static str,
    growth: Growth,
}

/// Target of the exponent with which a cost grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growth {
    /// At most linear.
    Linear,
    /// Independent of the size.
    Constant,
    /// A rate that does not fall.
    Rate,
    /// No target.
    Free,
}

impl Cost {
    /// A cost of everything together: at most linear.
    pub const fn total(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, growth: Growth::Linear }
    }

    /// A cost of one event or one part: independent of the size.
    pub const fn each(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, growth: Growth::Constant }
    }

    /// Events per unit of a resource, which must not fall.
    pub const fn rate(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, growth: Growth::Rate }
    }

    /// A value without a target of growth.
    pub const fn value(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, growth: Growth::Free }
    }
}

impl Growth {
    fn target(self) -> &'static str {
        match self {
            Self::Linear => "<= 1.1",
            Self::Constant => "<= 0.1",
            Self::Rate => ">= -0.1",
            Self::Free => "",
        }
    }
}

/// The costs of one series of sizes.
#[derive(Debug, Default)]
pub struct Costs {
    rows: Vec<(Cost, Vec<(usize, f64)>)>,
}

impl Costs {
    /// Adds a measurement.
    pub fn add(&mut self, cost: Cost, size: usize, value: f64) {
        match self.rows.iter_mut().find(|(known, _)| *known == cost) {
            Some((_, points)) => points.push((size, value)),
            None => self.rows.push((cost, vec![(size, value)])),
        }
    }

    /// The table, with the exponent of each cost.
    pub fn lines(&self, of: &str) -> Vec<String> {
        let heading = format!(
            "{:<58} {:>9} {:>9}   VALUES BY NUMBER OF {}",
            "COST",
            "EXPONENT",
            "TARGET",
            of.to_uppercase()
        );
        std::iter::once(heading)
            .chain(self.rows.iter().map(|(cost, points)| line(cost, points)))
            .collect()
    }
}

fn line(cost: &Cost, points: &[(usize, f64)]) -> String {
    let exponent =
        exponent(points).map_or_else(|| "-".to_owned(), |exponent| format!("{exponent:.2}"));
    let values: Vec<String> = points
        .iter()
        .map(|(size, value)| format!("{size}: {value:.*}", decimals(*value)))
        .collect();
    let name = format!("{} ({})", cost.name, cost.unit);
    format!("{name:<58} {exponent:>9} {:>9}   {}", cost.growth.target(), values.join(", "))
}

fn decimals(value: f64) -> usize {
    if value < 10.0 { 2 } else { usize::from(value < 100.0) }
}

/// The exponent of growth: slope of the least-squares line through the logarithms. `None` unless there are
/// positive values at two sizes.
#[allow(clippy::cast_precision_loss, reason = "sizes of a fleet")]
fn exponent(points: &[(usize, f64)]) -> Option<f64> {
    let logarithms: Vec<(f64, f64)> = points
        .iter()
        .filter(|(size, value)| *size > 0 && *value > 0.0)
        .map(|(size, value)| ((*size as f64).ln(), value.ln()))
        .collect();
    let count = logarithms.len() as f64;
    let mean_x = logarithms.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = logarithms.iter().map(|(_, y)| y).sum::<f64>() / count;
    let covariance: f64 = logarithms.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = logarithms.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    (variance > 0.0).then(|| covariance / variance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_is_that_of_a_power_law() {
        for (power, factor) in [(0.0, 7.0), (1.0, 3.0), (2.0, 0.5), (-1.0, 1.0)] {
            let points: Vec<_> =
                [250_usize, 1_000, 2_500].map(|n| (n, factor * (n as f64).powf(power))).into();
            let found = exponent(&points).unwrap();
            assert!((found - power).abs() < 1e-9, "{power}: {found}");
        }
        assert_eq!(exponent(&[(250, 1.0)]), None);
        assert_eq!(exponent(&[(250, 1.0), (250, 2.0)]), None);
        assert_eq!(exponent(&[(250, 0.0), (500, 2.0)]), None);
    }

    #[test]
    fn a_line_has_the_target_and_every_value() {
        let mut costs = Costs::default();
        let join = Cost::each("join", "us of CPU");
        costs.add(join, 100, 812.4);
        costs.add(join, 200, 7.125);

        let lines = costs.lines("spokes");

        assert!(lines[0].ends_with("VALUES BY NUMBER OF SPOKES"), "{lines:?}");
        assert!(lines[1].starts_with("join (us of CPU) "), "{lines:?}");
        assert!(lines[1].ends_with("<= 0.1   100: 812, 200: 7.12"), "{lines:?}");
    }
}
