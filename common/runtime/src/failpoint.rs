//! Named points at which a test aborts the process as if by `kill -9`.
//!
//! Armed only when `ATTEST_FAILPOINTS_ENABLED=1` and `ATTEST_FAILPOINT=NAME` are both set when the first point is reached.
//! `NAME:N` aborts at the Nth time.

use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
    let enabled = std::env::var("ATTEST_FAILPOINTS_ENABLED").is_ok_and(|value| value == "1");
    let named = std::env::var("ATTEST_FAILPOINT").ok().filter(|_| enabled)?;
    Some(Armed::parse(&named))
});

struct Armed {
    name: String,
    /// Remaining times until the point aborts.
    left: AtomicU64,
}

impl Armed {
    fn parse(named: &str) -> Self {
        let (name, times) = named.split_once(':').unwrap_or((named, "1"));
        Self { name: name.to_owned(), left: AtomicU64::new(times.parse().unwrap_or(1)) }
    }

    /// Returns whether the process is to be aborted now.
    fn is_due(&self, name: impl fmt::Display) -> bool {
        name.to_string() == self.name && self.left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

/// Aborts the process when the point `name` is armed. Formats `name` only when a point is armed.
pub fn reach(name: impl fmt::Display) {
    let Some(armed) = ARMED.as_ref() else { return };
    if armed.is_due(name) {
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_with_a_number_is_due_once_and_at_that_time() {
        let armed = Armed::parse("before-order-commit:2");

        let due = ["order", "report", "order", "order"]
            .map(|what| armed.is_due(format_args!("before-{what}-commit")));

        assert_eq!(due, [false, false, true, false]);
        assert!(Armed::parse("before-apply").is_due("before-apply"));
    }
}
