//! The end of the hub: requested by its operator, or caused by a part that ended too early.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Ends everything that runs.
#[derive(Debug, Default)]
pub struct Stop {
    token: CancellationToken,
    /// The same for code that blocks.
    interrupt: Arc<AtomicBool>,
    failed: OnceLock<&'static str>,
}

impl Stop {
    /// Ends everything that runs.
    pub fn end(&self) {
        self.interrupt.store(true, Ordering::SeqCst);
        self.token.cancel();
    }

    /// Returns whether the hub is ending.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until the hub is ending.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// A token that is cancelled when the hub ends.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Becomes true when the hub ends, for code that blocks.
    pub fn interrupt(&self) -> &Arc<AtomicBool> {
        &self.interrupt
    }

    /// The part whose end caused that of the hub.
    pub fn failed_part(&self) -> Option<&'static str> {
        self.failed.get().copied()
    }

    /// Runs a part of the hub that ends with the hub and not before. When it ends, or panics, while the hub
    /// should run, the hub ends as failed: a partially running hub would go unnoticed.
    pub async fn part(self: Arc<Self>, name: &'static str, part: impl Future<Output = ()>) {
        let guard = PartGuard { stop: self, name };
        part.await;
        drop(guard);
    }
}

/// Ends the hub when a part of it ends too early.
struct PartGuard {
    stop: Arc<Stop>,
    name: &'static str,
}

impl Drop for PartGuard {
    fn drop(&mut self) {
        if self.stop.is_cancelled() {
            return;
        }
        let reason = if std::thread::panicking() { "PartPanicked" } else { "PartEnded" };
        tracing::error!(reason, part = self.name, "A part of the hub is over; the hub ends");
        let _ = self.stop.failed.set(self.name);
        self.stop.end();
    }
}
