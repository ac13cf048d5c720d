//! What the agent tells a worker, and where that waits. The newest order replaces an older one; nothing is decided here.

use std::collections::BTreeSet;
use std::sync::Arc;

use attest_common::basics::locked::Locked;
use attest_common::record::Held;
use attest_common::session::report::{Refusal, Timings};
use attest_common::verify::{Admission, ObjectSet, Removal, Verified};
use tokio::sync::Notify;

use super::speculative::SpeculativeDryRuns;
use crate::ledger::records::Key;

/// What a worker is to do now.
#[derive(Debug)]
pub enum Order {
    /// Bring the cluster to this admission and keep it there. Its record is durable.
    Run(Box<Run>),
    /// Take the application away. Its record is durable.
    Remove(Box<Verified<Removal>>),
    /// Change nothing, for this reason.
    Freeze { reason: String, message: String },
}

impl Order {
    /// True for what was admitted just now, or ends all that was.
    fn is_news(&self) -> bool {
        match self {
            Self::Run(run) => run.origin == Origin::Admitted,
            Self::Remove(_) => true,
            Self::Freeze { .. } => false,
        }
    }
}

/// Where an admission came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was admitted just now, by this process.
    Admitted,
    /// It was loaded: what another process did for it is not known.
    Loaded,
}

/// An admission and where it came from.
#[derive(Debug)]
pub struct Run {
    pub admission: Arc<Verified<Admission>>,
    /// The objects that it puts at the destination.
    pub objects: Arc<Verified<ObjectSet>>,
    pub held: Held,
    pub origin: Origin,
    pub timings: Timings,
    /// Checks of it that are under way already.
    pub checks: SpeculativeDryRuns,
}

/// Where orders wait. The newest replaces an older one that was not yet taken.
#[derive(Debug, Default)]
pub struct Mailbox {
    slot: Locked<Slot>,
    arrived: Notify,
}

/// What a mailbox holds at one time.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) order: Option<Order>,
    pub(super) refusal: Option<Refusal>,
    /// Tell the hub again how things are.
    pub(super) repeat: bool,
}

impl Mailbox {
    /// Gives an order. A refusal that waits is older than what was admitted after it.
    pub fn order(&self, order: Order) {
        self.change(|slot| {
            if order.is_news() {
                slot.refusal = None;
            }
            slot.order = Some(order);
        });
    }

    /// Says that a document for this destination was refused.
    pub fn refused(&self, refusal: Refusal) {
        self.change(|slot| slot.refusal = Some(refusal));
    }

    /// Asks for a report.
    pub fn repeat(&self) {
        self.change(|slot| slot.repeat = true);
    }

    fn change(&self, change: impl FnOnce(&mut Slot)) {
        change(&mut self.slot.lock());
        self.arrived.notify_one();
    }

    /// Until something was put in.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    pub(super) fn take(&self) -> Slot {
        std::mem::take(&mut *self.slot.lock())
    }
}

/// What workers ask the agent: to load anew what is recorded for their destination. Each destination
/// waits here once.
#[derive(Clone, Debug, Default)]
pub struct ReloadRequests(Arc<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    keys: Locked<BTreeSet<Key>>,
    arrived: Notify,
}

impl ReloadRequests {
    /// Asks.
    pub(super) fn request(&self, key: &Key) {
        self.0.keys.lock().insert(key.clone());
        self.0.arrived.notify_one();
    }

    /// Who has asked, once somebody has.
    pub async fn requested(&self) -> BTreeSet<Key> {
        self.0.arrived.notified().await;
        std::mem::take(&mut *self.0.keys.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::gate::tests::removal;

    #[test]
    fn a_refusal_that_waits_is_forgotten_for_what_was_admitted_after_it_and_for_nothing_else() {
        let refusal = || Refusal {
            reason: "Expired".to_owned(),
            message: String::new(),
            sequence: Some(7),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        let freeze = || Order::Freeze { reason: String::new(), message: String::new() };
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
