//! Clients and state that the workers of all destinations share.

use std::sync::Arc;

use attest_common::basics::locked::RwLocked;
use attest_common::objects::kinds::Kinds;

use super::handover::Handovers;
use super::mailbox::{ReevaluationRequests, ReloadRequests};
use crate::cluster::client::ApiServer;
use crate::cluster::watch::Watches;
use crate::ledger::records::Ledger;
use crate::ledger::refusals::Refusals;
use crate::metrics::Metrics;
use crate::session::outbox::Outbox;

/// Clients and state that all workers use.
#[derive(Clone, Debug)]
pub struct Shared {
    pub api: ApiServer,
    pub ledger: Ledger,
    pub refusals: Refusals,
    pub watches: Watches,
    pub outbox: Outbox,
    pub metrics: Metrics,
    /// Kinds that the API server serves, as far as known.
    pub kinds: Arc<RwLocked<Kinds>>,
    pub reloads: ReloadRequests,
    pub reevaluations: ReevaluationRequests,
    pub handovers: Handovers,
}
