//! Named points at which a test lets the hub die, to see what a crash there leaves behind.
//!
//! Armed only when `ATTEST_FAILPOINTS_ENABLED=1` and `ATTEST_FAILPOINT=<name>` are both set;
//! `<name>:<n>` dies the nth time.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

static ARMED: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
    let enabled = std::env::var("ATTEST_FAILPOINTS_ENABLED").is_ok_and(|value| value == "1");
    let named = enabled.then(|| std::env::var("ATTEST_FAILPOINT").ok()).flatten()?;
    let (name, times) = named.split_once(':').unwrap_or((&named, "1"));
    Some((name.to_owned(), AtomicU64::new(times.parse().unwrap_or(1))))
});

/// Ends the process at once when the point `<when>-<what>-commit` is armed.
pub(crate) fn commit(when: &str, what: &str) {
    let Some((armed, left)) = ARMED.as_ref() else { return };
    let inner = armed.strip_prefix(when).and_then(|rest| rest.strip_prefix('-'));
    let here = inner.and_then(|rest| rest.strip_suffix("-commit")) == Some(what);
    if here && left.fetch_sub(1, Ordering::Relaxed) == 1 {
        std::process::abort();
    }
}
