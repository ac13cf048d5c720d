//! Orders from the agent to a worker. The newest order replaces an older one; nothing is decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use attest_common::basics::ids::Digest;
use attest_common::basics::locked::Locked;
use attest_common::basics::reason::Reason;
use attest_common::documents::manifest::ObjectKey;
use attest_common::record::Held;
use attest_common::record::custody::StoredSoak;
use attest_common::session::report::{Refusal, Timings};
use attest_common::verify::{Admission, ObjectSet, Removal, Verified};
use tokio::sync::Notify;

use super::speculative::SpeculativeDryRuns;
use crate::ledger::records::Key;

/// An order to a worker.
#[derive(Debug)]
pub enum Order {
    /// Carry out this admission and keep it applied. Its record is durable.
    Run(Box<Run>),
    /// Remove the application. The record of the removal is durable.
    Remove(Box<Verified<Removal>>),
    /// Change nothing, for this reason.
    Freeze { reason: Reason, message: String },
}

impl Order {
    /// Returns whether the order was admitted just now, as opposed to loaded.
    fn is_news(&self) -> bool {
        match self {
            Self::Run(run) => run.origin == Origin::Admitted,
            Self::Remove(_) => true,
            Self::Freeze { .. } => false,
        }
    }
}

/// Origin of an admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was admitted just now, by this process.
    Admitted,
    /// It was loaded: the actions of an earlier process for it are not known.
    Loaded,
    /// This process has reverted it before, and tries it again: its refusal stands until its dry runs have passed.
    Retried,
}

impl Origin {
    /// Returns whether this process has admitted it just now, so that nothing of it can be written yet.
    pub(super) fn is_fresh(self) -> bool {
        match self {
            Self::Admitted | Self::Retried => true,
            Self::Loaded => false,
        }
    }
}

/// An admission to carry out.
#[derive(Debug)]
pub struct Run {
    pub admission: Arc<Verified<Admission>>,
    /// Objects to write at the destination.
    pub objects: Arc<Verified<ObjectSet>>,
    pub held: Held,
    pub origin: Origin,
    /// Every object that differs is written once, also without self-heal.
    pub repair: bool,
    pub timings: Timings,
    /// Soak before a restart, if it was loaded.
    pub soak: Option<StoredSoak>,
    /// Dry runs of it that are in flight already.
    pub checks: SpeculativeDryRuns,
}

/// Queue of one order: the newest replaces an older one that was not taken yet.
#[derive(Debug, Default)]
pub struct Mailbox {
    slot: Locked<Slot>,
    arrived: Notify,
}

/// Content of a mailbox.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) order: Option<Order>,
    pub(super) refusal: Option<Refusal>,
    /// Report to the hub again.
    pub(super) repeat: bool,
}

impl Mailbox {
    /// Puts in an order. A waiting refusal is older than an admission after it, and is dropped.
    pub fn order(&self, order: Order) {
        self.change(|slot| {
            if order.is_news() {
                slot.refusal = None;
            }
            slot.order = Some(order);
        });
    }

    /// Notes that a document for this destination was refused.
    pub fn refused(&self, refusal: Refusal) {
        self.change(|slot| slot.refusal = Some(refusal));
    }

    /// Wakes the worker: what it reads of others has changed.
    pub fn wake(&self) {
        self.change(|_| ());
    }

    /// Requests a report.
    pub fn repeat(&self) {
        self.change(|slot| slot.repeat = true);
    }

    fn change(&self, change: impl FnOnce(&mut Slot)) {
        change(&mut self.slot.lock());
        self.arrived.notify_one();
    }

    /// Waits until something was put in.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    pub(super) fn take(&self) -> Slot {
        std::mem::take(&mut *self.slot.lock())
    }
}

/// Requests of workers to the agent to load the record of their destination again. Each destination is
/// queued once.
#[derive(Clone, Debug, Default)]
pub struct ReloadRequests(Arc<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    keys: Locked<BTreeSet<Key>>,
    arrived: Notify,
}

impl ReloadRequests {
    /// Requests a reload of `key`.
    pub(super) fn request(&self, key: &Key) {
        self.0.keys.lock().insert(key.clone());
        self.0.arrived.notify_one();
    }

    /// Waits for requests and returns their destinations.
    pub async fn requested(&self) -> BTreeSet<Key> {
        self.0.arrived.notified().await;
        std::mem::take(&mut *self.0.keys.lock())
    }
}

/// A plan that was refused after it was recorded, with what is needed to judge it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevertedPlan {
    /// Directive envelope.
    pub directive: Vec<u8>,
    /// Digest of the plan envelope.
    pub plan: Digest,
    /// The object that belongs to another writer.
    pub obstacle: ObjectKey,
}

/// A request to judge a refused plan again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reevaluation {
    /// The plan, if it was reverted since the last request.
    pub reverted: Option<RevertedPlan>,
    /// The cause of its refusal has changed.
    pub is_due: bool,
}

/// Requests of workers to the agent to judge refused plans again.
#[derive(Clone, Debug, Default)]
pub struct ReevaluationRequests(Arc<WaitingPlans>);

#[derive(Debug, Default)]
struct WaitingPlans {
    plans: Locked<BTreeMap<Key, Reevaluation>>,
    arrived: Notify,
}

impl ReevaluationRequests {
    /// Notes that a plan was reverted.
    pub(super) fn reverted(&self, key: &Key, plan: RevertedPlan) {
        self.0.plans.lock().entry(key.clone()).or_default().reverted = Some(plan);
        self.0.arrived.notify_one();
    }

    /// Requests that the refused plan of `key` is judged again now.
    pub(super) fn request(&self, key: &Key) {
        self.0.plans.lock().entry(key.clone()).or_default().is_due = true;
        self.0.arrived.notify_one();
    }

    /// Waits for requests and returns them.
    pub async fn requested(&self) -> BTreeMap<Key, Reevaluation> {
        self.0.arrived.notified().await;
        std::mem::take(&mut *self.0.plans.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::gate::tests::removal;

    #[test]
    fn a_refusal_that_waits_is_forgotten_for_what_was_admitted_after_it_and_for_nothing_else() {
        let refusal = || Refusal {
            reason: Reason::Expired.into(),
            message: String::new(),
            sequence: Some(7),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        let freeze = || Order::Freeze { reason: Reason::NoTrustPolicy, message: String::new() };
        let remove = || Order::Remove(Box::new(removal().1));
        let told = |order: Order, before: bool| {
            let mailbox = Mailbox::default();
            if before {
                mailbox.refused(refusal());
            }
            mailbox.order(order);
            if !before {
                mailbox.refused(refusal());
            }
            mailbox.take().refusal.is_some()
        };

        assert!(!told(remove(), true));
        assert!(told(remove(), false) && told(freeze(), true));
    }
}
