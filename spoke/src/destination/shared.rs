//! What the workers of all destinations share: nothing of it is about one of them.

use std::sync::Arc;

use attest_common::basics::locked::RwLocked;
use attest_common::objects::kinds::Kinds;

use super::mailbox::ReloadRequests;
use crate::cluster::client::ApiServer;
use crate::cluster::watch::Watches;
use crate::ledger::records::Ledger;
use crate::ledger::refusals::Refusals;
use crate::metrics::Metrics;
use crate::session::outbox::Outbox;

/// What all workers use.
#[derive(Clone, Debug)]
pub struct Shared {
    pub api: ApiServer,
    pub ledger: Ledger,
    pub refusals: Refusals,
    pub watches: Watches,
    pub outbox: Outbox,
    pub metrics: Metrics,
    /// What the API server serves, as far as it was asked.
    pub kinds: Arc<RwLocked<Kinds>>,
    pub reloads: ReloadRequests,
}
