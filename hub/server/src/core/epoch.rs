//! The epoch of this hub process: above that of every previous process, and durable before it is used.

use std::sync::atomic::{AtomicU64, Ordering};

use attest_common::basics::locked::Locked;
use attest_common::basics::reason::Reason;

use super::store::StoreError;
use super::store::records::Records;

/// The epoch of this process.
#[derive(Debug)]
pub struct Epoch {
    current: AtomicU64,
    /// Held while the epoch is raised, which waits for the disk. Readers do not take it.
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

    /// Begins an epoch above `seen`, which a spoke holds and is unknown to this hub: it was restored from a backup. The
    /// epoch is durable before it is used. Blocks.
    ///
    /// # Errors
    /// When the write fails; the epoch is then unchanged.
    pub(crate) fn raise_above(&self, records: &Records, seen: u64) -> Result<(), StoreError> {
        let _one_at_a_time = self.raising.lock();
        if seen >= self.current() {
            let epoch = records.begin_epoch_above(seen)?;
            self.current.store(epoch, Ordering::SeqCst);
            tracing::warn!(
                reason = Reason::EpochRaised.as_str(),
                seen,
                epoch,
                "Spoke holds directives unknown to this hub, as after a restore from a backup; beginning a new epoch"
            );
        }
        Ok(())
    }
}
