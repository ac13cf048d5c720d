//! Named points at which a test lets the hub die, to see what a crash there leaves behind.
//!
//! Armed only when `ATTEST_FAILPOINTS_ENABLED=1` and `ATTEST_FAILPOINT=<name>` are both set.

use std::sync::LazyLock;

static ARMED: LazyLock<Option<String>> = LazyLock::new(|| {
    let enabled = std::env::var("ATTEST_FAILPOINTS_ENABLED").is_ok_and(|value| value == "1");
    enabled.then(|| std::env::var("ATTEST_FAILPOINT").ok()).flatten()
});

/// Ends the process at once when the point `<when>-<what>-commit` is armed.
pub(crate) fn commit(when: &str, what: &str) {
    let Some(armed) = ARMED.as_deref() else { return };
    let inner = armed.strip_prefix(when).and_then(|rest| rest.strip_prefix('-'));
    if inner.and_then(|rest| rest.strip_suffix("-commit")) == Some(what) {
        std::process::abort();
    }
}
