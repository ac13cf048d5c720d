//! How a cluster comes into the fleet and leaves it: tokens, joining, certificates, and an operator's decisions.

mod certificate;
mod decision;
mod error;
pub(crate) mod join;
pub(crate) mod token;

use std::sync::Arc;

use attest_certs::Authority;
use tokio::sync::{Mutex, MutexGuard};

pub(crate) use decision::{Decision, fingerprint_of};
pub(crate) use error::JoinError;

use crate::core::Core;
use crate::reconcile::waker::Waker;

/// Most tokens kept; the oldest that can no longer be used go first.
pub(crate) const TOKENS_MAX: usize = 10_000;
/// Most clusters that may be registered.
pub(crate) const CLUSTERS_MAX: usize = 20_000;

/// Registers clusters and issues their certificates.
#[derive(Debug)]
pub(crate) struct Registration {
    core: Arc<Core>,
    authority: Authority,
    waker: Arc<Waker>,
    /// Joins change several records at once: one at a time.
    joining: Mutex<()>,
}

impl Registration {
    /// Issues certificates of `authority`.
    pub(crate) fn new(core: Arc<Core>, authority: Authority, waker: Arc<Waker>) -> Self {
        Self { core, authority, waker, joining: Mutex::default() }
    }

    /// The authority of the fleet.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Waits until no other client changes tokens or clusters.
    pub(crate) async fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.joining.lock().await
    }
}
