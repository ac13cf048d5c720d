//! The epoch of this hub process: higher than that of any before it, and durable before it is used.

use std::sync::atomic::{AtomicU64, Ordering};

use attest_common::basics::locked::Locked;

use super::store::StoreError;
use super::store::records::Records;

/// The epoch of this process.
#[derive(Debug)]
pub struct Epoch {
    current: AtomicU64,
    /// Held while the epoch is raised, which waits for the disk: readers do not.
    raising: Locked<()>,
}

impl Epoch {
    /// Begins a new epoch. Blocks.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn begin(records: &Records) -> Result<Self, StoreError> {
        Ok(Self { current: AtomicU64::new(records.begin_epoch()?), raising: Locked::default() })
    }

    /// The current epoch.
    pub fn current(&self) -> u64 {
        self.current.load(Ordering::SeqCst)
    }

    /// Begins an epoch above `seen`, which a spoke holds and this hub does not know: the hub came back from a
    /// backup. Durable before anything more is signed. Blocks.
    ///
    /// # Errors
    /// When the store does not take it; the epoch is then what it was.
    pub(crate) fn raise_above(&self, records: &Records, seen: u64) -> Result<(), StoreError> {
        let _one_at_a_time = self.raising.lock();
        if seen >= self.current() {
            let epoch = records.begin_epoch_above(seen)?;
            self.current.store(epoch, Ordering::SeqCst);
            tracing::warn!(
                reason = "EpochForgotten",
                seen,
                epoch,
                "A spoke holds what this hub has forgotten (a restored backup?): a new epoch begins"
            );
        }
        Ok(())
    }
}
