//! The state of the agent: what waits to be judged, what is to be loaded, and the worker of each destination.
//!
//! Order is fixed: judged, then durable, then acted on. The hub being away changes nothing here; the
//! trust policy being away stops every change.

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
use crate::cluster::discovery;
use crate::destination::mailbox::Mailbox;
use crate::destination::shared::Shared;
use crate::destination::worker;
use crate::http::Readiness;
use crate::ledger::records::{DESTINATIONS_MAX, Key};
use crate::rate_limits::{ADMISSIONS, DISCOVERIES, LOOK_UPS, NEW_DESTINATIONS, REFUSALS};
use crate::session::link::SeenSource;
use crate::trust::policy::Trust;

/// Delay before something that failed at the API server is tried again.
pub(crate) const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// Delay before held destinations that could not be loaded are tried again.
pub(super) const RESUME_RETRY: Backoff =
    Backoff::new(Duration::from_secs(2), Duration::from_secs(30));
/// Most destinations of which a push waits to be judged again; the hub sends anew what is refused.
pub(super) const RETRIES_MAX: usize = DESTINATIONS_MAX;

/// The part that judges and hands out work.
pub(crate) struct Agent {
    pub(crate) shared: Shared,
    pub(super) cluster: ClusterId,
    pub(super) trust: watch::Receiver<Trust>,
    pub(super) seen: SeenSource,
    pub(super) blobs: Blobs,
    pub(super) workers: BTreeMap<Key, Arc<Mailbox>>,
    pub(super) working: JoinSet<()>,
    /// Pushes that met an API server that was away, or came too fast; the newest of each destination.
    pub(super) retries: BTreeMap<Key, Retry>,
    /// Held destinations that could not be loaded yet.
    pub(super) unresumed: BTreeMap<Key, Instant>,
    /// Times in a row that the API server was away when they were loaded.
    pub(super) resume_failures: u32,
    /// How often each destination admits something.
    pub(super) admissions: KeyedTokenBucket<Key>,
    /// How often the cluster admits a destination that it has no record of.
    pub(super) new_destinations: RateLimiter,
    /// How often pushes make it ask which kinds there are.
    pub(super) discoveries: RateLimiter,
    /// How much stored content they make it read.
    pub(super) look_ups: RateLimiter,
    /// How often refusals are written down: those that show a forgery, those of what else a pinned hub
    /// key signed, and the rest. Much of one keeps out nothing of another.
    pub(super) evidence_limiter: RateLimiter,
    pub(super) signed_limiter: RateLimiter,
    pub(super) unsigned_limiter: RateLimiter,
    pub(super) readiness: Readiness,
}

pub(super) struct Retry {
    /// Epoch and sequence.
    pub(super) order: (u64, u64),
    pub(super) directive: Vec<u8>,
    pub(super) plan: Option<Digest>,
    pub(super) at: Instant,
    /// How often it failed before.
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

    /// Whom to resume and what to judge again now.
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

    /// Asks the API server for the kinds that are needed to delete what an inventory holds beyond
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
                reason = error.reason(), error = %error_chain(&error),
                "Cannot ask the API server for its kinds"
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
    use crate::destination::mailbox::ReloadRequests;
    use crate::ledger::records::Ledger;
    use crate::ledger::refusals::Refusals;
    use crate::metrics::Metrics;
    use crate::session::outbox::{Deliveries, Outbox};
    use crate::trust::policy::tests::object;

    /// An agent of the cluster that the test policy is for, with what is stored there.
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
        };
        let (told, trust) = watch::channel(Trust::of(&object(), "uid-1"));
        // The policy goes on being watched.
        tokio::spawn(async move { told.closed().await });
        let cluster = "c-0123456789abcdef".parse().unwrap();
        Agent::new(shared, cluster, trust, SeenSource::default(), Readiness::default())
    }

    /// What the hub would be told now.
    pub(crate) fn reports(agent: &Agent) -> Vec<Report> {
        let due = Deliveries::default().due(&agent.shared.outbox, Instant::now());
        due.iter().map(|(_, bytes)| serde_json::from_slice(bytes).unwrap()).collect()
    }
}
