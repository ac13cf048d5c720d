//! Registration of clusters: join tokens, joining, certificates, and decisions of operators.

mod certificate;
mod decision;
mod error;
pub(crate) mod join;
pub(crate) mod token;

use std::sync::Arc;

use attest_certs::Authority;
use tokio::sync::{Mutex, MutexGuard};

pub(crate) use certificate::{check_accepted, cluster_id};
pub(crate) use decision::{Decision, fingerprint_of};
pub(crate) use error::JoinError;

use crate::core::Core;
use crate::reconcile::waker::Waker;

/// Most stored tokens; the oldest unusable ones are deleted first.
pub(crate) const TOKENS_MAX: usize = 10_000;
/// Stored tokens after a deletion of unusable ones, so that few new tokens read the others.
pub(crate) const TOKENS_KEPT_MAX: usize = TOKENS_MAX / 10 * 9;
/// Most registered clusters.
pub(crate) const CLUSTERS_MAX: usize = 20_000;

/// Registers clusters and issues their certificates.
#[derive(Debug)]
pub(crate) struct Registration {
    core: Arc<Core>,
    authority: Authority,
    waker: Arc<Waker>,
    /// Serialises joins, because each changes several records.
    joining: Mutex<()>,
}

impl Registration {
    /// Registers clusters whose certificates `authority` issues.
    pub(crate) fn new(core: Arc<Core>, authority: Authority, waker: Arc<Waker>) -> Self {
        Self { core, authority, waker, joining: Mutex::default() }
    }

    /// The certificate authority of the fleet.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Waits for exclusive access to tokens and clusters.
    pub(crate) async fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.joining.lock().await
    }
}
