//! State of the agent: pushes to retry, destinations to load, and the worker of each destination.
//!
//! The order is fixed: judge, record, act. The loss of the hub has no effect here; the loss of the trust
//! policy stops every change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::backoff::Backoff;
use attest_common::basics::ids::{ClusterId, Digest};
use attest_common::basics::rate::{KeyedTokenBucket, RateLimiter};
use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::{Object, ObjectKey};
use attest_common::objects::kinds::Kinds;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::blobs::Blobs;
use super::gate::PushOrder;
use super::refused::RefusedPush;
use crate::cluster::discovery;
use crate::destination::mailbox::Mailbox;
use crate::destination::shared::Shared;
use crate::destination::worker;
use crate::http::Readiness;
use crate::ledger::records::{DESTINATIONS_MAX, Key};
use crate::rate_limits::{ADMISSIONS, DISCOVERIES, LOOK_UPS, NEW_DESTINATIONS, REFUSALS};
use crate::session::link::SeenSource;
use crate::trust::policy::Trust;

/// Delay before a failed request to the API server is retried.
pub(crate) const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// Delay before destinations that could not be loaded are retried.
pub(super) const RESUME_RETRY: Backoff =
    Backoff::new(Duration::from_secs(2), Duration::from_secs(30));
/// Most destinations with a push that waits to be judged again; the hub sends refused pushes again.
pub(super) const RETRIES_MAX: usize = DESTINATIONS_MAX;

/// Judges pushes and passes orders to workers.
pub(crate) struct Agent {
    pub(crate) shared: Shared,
    pub(super) cluster: ClusterId,
    pub(super) trust: watch::Receiver<Trust>,
    pub(super) seen: SeenSource,
    pub(super) blobs: Blobs,
    pub(super) workers: BTreeMap<Key, Arc<Mailbox>>,
    pub(super) working: JoinSet<()>,
    /// Pushes that were rate limited, or failed because of the API server; the newest of each destination.
    pub(super) retries: BTreeMap<Key, Retry>,
    /// Refused pushes that are judged again; the newest of each destination.
    pub(super) refused: BTreeMap<Key, RefusedPush>,
    /// Recorded destinations that could not be loaded yet.
    pub(super) unresumed: BTreeMap<Key, Instant>,
    /// Consecutive failures of the API server when they were loaded.
    pub(super) resume_failures: u32,
    /// Limits admissions of each destination.
    pub(super) admissions: KeyedTokenBucket<Key>,
    /// Limits admissions of destinations without a record.
    pub(super) new_destinations: RateLimiter,
    /// Limits discovery requests that pushes cause.
    pub(super) discoveries: RateLimiter,
    /// Limits the stored content that pushes cause to be read.
    pub(super) look_ups: RateLimiter,
    /// Limit records of refusals: evidence of a forgery, other documents signed by a pinned hub key, and the
    /// rest. Many of one class displace none of another.
    pub(super) evidence_limiter: RateLimiter,
    pub(super) signed_limiter: RateLimiter,
    pub(super) unsigned_limiter: RateLimiter,
    pub(super) readiness: Readiness,
}

pub(super) struct Retry {
    pub(super) order: PushOrder,
    pub(super) directive: Vec<u8>,
    pub(super) plan: Option<Digest>,
    pub(super) at: Instant,
    /// Number of earlier failures.
    pub(super) attempt: u32,
}

impl Agent {
    pub(crate) fn new(
        shared: Shared,
        cluster: ClusterId,
        trust: watch::Receiver<Trust>,
        seen: SeenSource,
        readiness: Readiness,
    ) -> Self {
        Self {
            shared,
            cluster,
            trust,
            seen,
            blobs: Blobs::default(),
            workers: BTreeMap::new(),
            working: JoinSet::new(),
            retries: BTreeMap::new(),
            refused: BTreeMap::new(),
            unresumed: BTreeMap::new(),
            resume_failures: 0,
            admissions: KeyedTokenBucket::new(ADMISSIONS, DESTINATIONS_MAX),
            new_destinations: RateLimiter::new(NEW_DESTINATIONS),
            discoveries: RateLimiter::new(DISCOVERIES),
            look_ups: RateLimiter::new(LOOK_UPS),
            evidence_limiter: RateLimiter::new(REFUSALS),
            signed_limiter: RateLimiter::new(REFUSALS),
            unsigned_limiter: RateLimiter::new(REFUSALS),
            readiness,
        }
    }

    /// Returns the destinations to load and the pushes to judge again now.
    pub(super) fn due(&self, now: Instant) -> (Vec<Key>, Vec<Key>) {
        let resumes = self.unresumed.iter().filter(|(_, at)| **at <= now);
        let pushes = self.retries.iter().filter(|(_, retry)| retry.at <= now);
        (
            resumes.map(|(key, _)| key.clone()).collect(),
            pushes.map(|(key, _)| key.clone()).collect(),
        )
    }

    pub(super) fn worker(&mut self, key: &Key) -> Arc<Mailbox> {
        if let Some(mailbox) = self.workers.get(key) {
            return Arc::clone(mailbox);
        }
        let (mailbox, worker) = worker::worker(self.shared.clone(), key.clone());
        self.working.spawn(worker);
        self.workers.insert(key.clone(), Arc::clone(&mailbox));
        mailbox
    }

    /// Discovers kinds if one is unknown that is needed to delete objects of an inventory that are not in
    /// `rendered`.
    pub(super) async fn know_inventory(&self, key: &Key, rendered: &[Object]) {
        let kinds = self.kinds();
        let stays: BTreeSet<&ObjectKey> = rendered.iter().map(Object::key).collect();
        let unknown = self.shared.ledger.with_records(|records| {
            let owned = records.get(key).into_iter().flat_map(|record| &record.inventory);
            let goes = owned.into_iter().filter(|owned| !stays.contains(&owned.key));
            goes.into_iter().any(|o| kinds.get(&o.key.group, &o.key.kind).is_none())
        });
        if unknown {
            self.discover().await;
        }
    }

    pub(super) async fn discover(&self) {
        if let Err(error) = discovery::discover(&self.shared.api, &self.shared.kinds).await {
            tracing::warn!(
                reason = error.reason().as_str(), error = %error_chain(&error),
                "Failed to discover the kinds of the API server"
            );
        }
    }

    pub(super) fn kinds(&self) -> Kinds {
        self.shared.kinds.read().clone()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use attest_common::basics::locked::RwLocked;

    use attest_common::session::report::Report;

    use super::*;
    use crate::cluster::fake::FakeApi;
    use crate::cluster::watch::Watches;
    use crate::destination::handover::Handovers;
    use crate::destination::mailbox::{ReevaluationRequests, ReloadRequests};
    use crate::ledger::records::Ledger;
    use crate::ledger::refusals::Refusals;
    use crate::metrics::Metrics;
    use crate::session::outbox::{Deliveries, Outbox};
    use crate::trust::policy::tests::object;

    /// Returns an agent of the cluster of the test policy, with the state that is stored there.
    pub(crate) async fn agent(fake: &FakeApi) -> Agent {
        let (api, metrics) = (fake.open().await, Metrics::new().unwrap());
        let shared = Shared {
            watches: Watches::new(api.clone(), metrics.clone()),
            ledger: Ledger::load(api.clone(), metrics.clone(), 0).await.unwrap(),
            refusals: Refusals::load(api.clone()).await.unwrap(),
            api,
            outbox: Outbox::default(),
            metrics,
            kinds: Arc::new(RwLocked::new(Kinds::built_in())),
            reloads: ReloadRequests::default(),
            reevaluations: ReevaluationRequests::default(),
            handovers: Handovers::default(),
        };
        let (told, trust) = watch::channel(Trust::of(&object(), "uid-1"));
        // Keeps the policy watched.
        tokio::spawn(async move { told.closed().await });
        let cluster = "c-0123456789abcdef".parse().unwrap();
        Agent::new(shared, cluster, trust, SeenSource::default(), Readiness::default())
    }

    /// Returns the reports that are due to the hub.
    pub(crate) fn reports(agent: &Agent) -> Vec<Report> {
        let due = Deliveries::default().due(&agent.shared.outbox, Instant::now());
        due.iter().map(|(_, bytes)| serde_json::from_slice(bytes).unwrap()).collect()
    }
}
