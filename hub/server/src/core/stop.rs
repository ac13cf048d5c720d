//! Shutdown of the hub: requested by a signal, or caused by a part that ended too early.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use attest_common::basics::reason::Reason;
use tokio_util::sync::CancellationToken;

/// Stops all parts of the hub.
#[derive(Debug, Default)]
pub struct Stop {
    token: CancellationToken,
    /// The same for blocking code.
    interrupt: Arc<AtomicBool>,
    failed: OnceLock<&'static str>,
}

impl Stop {
    /// Stops all parts of the hub.
    pub fn end(&self) {
        self.interrupt.store(true, Ordering::SeqCst);
        self.token.cancel();
    }

    /// Returns whether the hub is stopping.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until the hub is stopping.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Returns a token that is cancelled when the hub stops.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Returns a flag for blocking code that becomes true when the hub stops.
    pub fn interrupt(&self) -> &Arc<AtomicBool> {
        &self.interrupt
    }

    /// Returns the part whose failure stopped the hub.
    pub fn failed_part(&self) -> Option<&'static str> {
        self.failed.get().copied()
    }

    /// Runs a part of the hub until the hub stops. If the part ends earlier or panics, the hub stops as failed, because
    /// a partially running hub would go unnoticed.
    pub async fn part(self: Arc<Self>, name: &'static str, part: impl Future<Output = ()>) {
        let guard = PartGuard { stop: self, name };
        part.await;
        drop(guard);
    }
}

/// Stops the hub when dropped before the hub stops.
struct PartGuard {
    stop: Arc<Stop>,
    name: &'static str,
}

impl Drop for PartGuard {
    fn drop(&mut self) {
        if self.stop.is_cancelled() {
            return;
        }
        let reason =
            if std::thread::panicking() { Reason::TaskPanicked } else { Reason::TaskEnded };
        tracing::error!(
            reason = reason.as_str(),
            part = self.name,
            "Part of the hub ended unexpectedly; stopping the hub"
        );
        let _ = self.stop.failed.set(self.name);
        self.stop.end();
    }
}
