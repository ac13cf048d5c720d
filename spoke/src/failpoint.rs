//! Named places where a test can make the process die as if by kill -9.
//!
//! Nothing happens unless `ATTEST_FAILPOINTS_ENABLED=1` was set when the process started.

use std::sync::OnceLock;

static ARMED: OnceLock<Option<String>> = OnceLock::new();

/// Reads the environment once: `ATTEST_FAILPOINT` names the place to die at.
pub fn arm() {
    let enabled = std::env::var("ATTEST_FAILPOINTS_ENABLED").is_ok_and(|value| value == "1");
    let name = std::env::var("ATTEST_FAILPOINT").ok().filter(|_| enabled);
    let _ = ARMED.set(name);
}

/// Dies here when this is the named place.
pub fn reach(name: &str) {
    if ARMED.get().and_then(Option::as_deref) == Some(name) {
        std::process::abort();
    }
}
