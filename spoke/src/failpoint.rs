//! Named places where a test can make the process die as if by kill -9.
//!
//! Nothing happens unless `ATTEST_FAILPOINTS_ENABLED=1` was set when the process started.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static ARMED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();

/// Reads the environment once: `ATTEST_FAILPOINT` names the place to die at; `<name>:<n>` dies the
/// nth time.
pub fn arm() {
    let enabled = std::env::var("ATTEST_FAILPOINTS_ENABLED").is_ok_and(|value| value == "1");
    let named = std::env::var("ATTEST_FAILPOINT").ok().filter(|_| enabled);
    let armed = named.map(|named| {
        let (name, times) = named.split_once(':').unwrap_or((&named, "1"));
        (name.to_owned(), AtomicU64::new(times.parse().unwrap_or(1)))
    });
    let _ = ARMED.set(armed);
}

/// Dies here when this is the named place.
pub fn reach(name: &str) {
    let Some((armed, left)) = ARMED.get().and_then(Option::as_ref) else { return };
    if armed == name && left.fetch_sub(1, Ordering::Relaxed) == 1 {
        std::process::abort();
    }
}
