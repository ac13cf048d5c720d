//! An admission that is being carried out: its state, and its initial state. Pure.
//!
//! `advance` begins due requests, `outcomes` processes their results, `rollout` observes the rollout.

mod advance;
mod outcomes;
mod rollout;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::ids::Timestamp;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::kinds::Kinds;
use attest_common::objects::placement;
use attest_common::record::{Held, Owned};
use attest_common::session::report::Timings;
use attest_common::verify::{Admission, ObjectSet, Verified};

pub(super) use self::rollout::FollowedRollout;
use super::deleting::{self, Deleting};
use super::event::RunOrder;
use super::mailbox::Origin;
use super::objects::{Failure, Tracked};
use super::report::ApplyingStatus;
use super::track::{track, with_known};
use super::watch_status::WatchStatus;
use crate::cluster::account::Account;
use crate::cluster::drift::Need;
use crate::cluster::watch::Scope;
use crate::ledger::records::{ConfirmedPairs, Entry, Key};

/// An admission that is being carried out.
#[derive(Debug)]
pub(super) struct Applying {
    pub(super) admission: Arc<Verified<Admission>>,
    /// Objects to write at the destination.
    rendered: Arc<Verified<ObjectSet>>,
    pub(super) held: Held,
    pub(super) account: Account,
    pub(super) origin: Origin,
    pub(super) objects: BTreeMap<ObjectKey, Tracked>,
    pub(super) watch_status: WatchStatus,
    pub(super) rollback: Rollback,
    pub(super) durability: Durability,
    kinds: Kinds,
    /// Objects of the inventory that the rendering no longer holds.
    leftovers: Vec<Owned>,
    handover: Handover,
    /// The objects that autoscalers of the namespaces scale, as far as they are listed.
    autoscaled: BTreeMap<String, BTreeSet<ObjectKey>>,
    pruning: Option<Deleting>,
    preparation: Preparation,
    progress: Progress,
    begun: Instant,
    since: Timestamp,
    timings: Timings,
    /// Failure of preparing or recording.
    problem: Option<Failure>,
    pub(super) rollout: FollowedRollout,
}

/// State of the rollback point: the record of what ran before this plan. While it exists, nothing of the plan
/// is written, and a conflict refuses the plan as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rollback {
    Possible,
    /// Every dry run has passed: it must be given up, durably, before the first write.
    GiveUpDue,
    /// The record that is being written gives it up.
    GivingUp,
    GivenUp,
}

/// Relation of the record to the state of the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    Clean,
    /// The record is out of date.
    Dirty,
    /// The record is being written. `leaving` leaves the inventory with it, and `then` is the state after the
    /// write.
    Writing {
        leaving: BTreeSet<ObjectKey>,
        then: Then,
    },
}

/// State after a write of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Clean,
    /// More changed since the write began.
    Dirty,
}

impl Durability {
    pub(super) fn is_writing(&self) -> bool {
        matches!(self, Self::Writing { .. })
    }

    /// Notes a change that the record does not hold.
    fn learnt(&mut self) {
        match self {
            Self::Clean => *self = Self::Dirty,
            Self::Dirty => {}
            Self::Writing { then, .. } => *then = Then::Dirty,
        }
    }

    /// Notes that the write succeeded. Returns the objects that left the inventory.
    fn written(&mut self) -> BTreeSet<ObjectKey> {
        match std::mem::replace(self, Self::Clean) {
            Self::Writing { leaving, then: Then::Clean } => leaving,
            Self::Writing { leaving, then: Then::Dirty } => {
                *self = Self::Dirty;
                leaving
            }
            before @ (Self::Clean | Self::Dirty) => {
                *self = before;
                BTreeSet::new()
            }
        }
    }

    /// Notes that the outcome of a write in flight is unknown.
    fn forget_write(&mut self) {
        if self.is_writing() {
            *self = Self::Dirty;
        }
    }
}

/// Objects that are no longer rendered and that another destination claims.
#[derive(Debug, Default)]
struct Handover {
    /// Not deleted, because the claimant waits for them or has taken them.
    claimed: BTreeSet<ObjectKey>,
    /// Offered to the claimant.
    offered: BTreeSet<ObjectKey>,
    /// Recorded by the claimant: they leave the inventory.
    taken: BTreeSet<ObjectKey>,
}

/// State of namespace, account and bindings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preparation {
    Due,
    Underway,
    Done { settling_until: Option<Instant> },
}

/// Progress of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Working,
    /// Everything is applied and healthy, and the plan is no candidate: one that becomes good by itself is good.
    Settled,
}

impl Applying {
    /// Returns the initial state of an admission, from the record and from the previous admission.
    pub(super) fn begin(
        order: RunOrder,
        (key, entry): (&Key, Option<&Entry>),
        before: Option<&Self>,
        now: Instant,
    ) -> Self {
        let RunOrder {
            admission,
            objects: rendered,
            held,
            origin,
            repair,
            timings,
            soak,
            facts,
            ..
        } = order;
        let (application, namespace) = key;
        let accounts_namespace = &admission.admitted.effective_policy.accounts_namespace;
        let account = Account::new(application, namespace, accounts_namespace);
        let kinds = placement::with_definitions(rendered.objects(), &facts.kinds).into_owned();
        let inventory = entry.map(|entry| entry.record.inventory.clone()).unwrap_or_default();
        let tracked_before = before.map(|before| &before.objects);
        let inventory = with_known(inventory, tracked_before);
        let no_pairs = ConfirmedPairs::new();
        let pairs = entry.map_or(&no_pairs, |entry| &entry.confirmed);
        let mut objects = track(&rendered, &kinds, &account, (&inventory, pairs), tracked_before);
        let autoscaled = before.map(|before| before.autoscaled.clone()).unwrap_or_default();
        for (key, tracked) in &mut objects {
            let known = key.namespace.as_ref().and_then(|namespace| autoscaled.get(namespace));
            if let (Some(targets), Some(object)) = (known, rendered.get(key)) {
                tracked.scale_by(targets.contains(key), object);
            }
        }
        for tracked in objects.values_mut() {
            tracked.repair |= repair && tracked.need() != Need::Nothing;
        }
        let former = entry.and_then(|entry| entry.record.rollback_point.as_ref());
        if let Some(former) = former.filter(|_| origin.is_fresh()) {
            // Only objects that were listed before this admission can result from an unfinished apply.
            let listed = inventory.iter().take(former.objects);
            let listed: BTreeSet<&ObjectKey> = listed.map(|owned| &owned.key).collect();
            for (key, tracked) in &mut objects {
                tracked.unfinished &= listed.contains(key);
            }
        }
        if admission.plan.sync.adopt && admission.admitted.effective_policy.adopt {
            // What kubectl keeps of them is taken over by a write, also if the release did not change.
            let kept =
                objects.values_mut().filter(|t| t.preexisting && !t.kept_by_kubectl.is_empty());
            kept.for_each(|tracked| tracked.confirmed = None);
        }
        let leftovers =
            inventory.iter().filter(|owned| !objects.contains_key(&owned.key)).cloned().collect();
        let used = objects.values().map(|tracked| &tracked.scope).collect();
        let watched_before = before.map(|before| before.watch_status.clone()).unwrap_or_default();
        let watch_status = watched_before.keep(&used);
        let was_written = objects.values().any(|tracked| tracked.confirmed.is_some());
        let since = entry.and_then(|entry| entry.record.since);
        let rollout = FollowedRollout::begin((&admission, &held), entry, before, soak);
        let was_behind = before.is_some_and(|before| before.durability == Durability::Dirty);
        Self {
            since: since.unwrap_or(admission.ordered.directive.issued_at),
            rollback: if former.is_some() { Rollback::Possible } else { Rollback::GivenUp },
            durability: if was_behind { Durability::Dirty } else { Durability::Clean },
            origin,
            admission,
            rendered,
            held,
            account,
            kinds,
            objects,
            leftovers,
            handover: Handover::default(),
            autoscaled,
            pruning: None,
            watch_status,
            // Rights that sufficed before still exist; otherwise the first request shows it.
            preparation: if was_written {
                Preparation::Done { settling_until: None }
            } else {
                Preparation::Due
            },
            progress: Progress::Working,
            begun: now,
            timings,
            problem: None,
            rollout,
        }
    }

    /// Returns whether plan and policy both allow taking over existing objects.
    pub(super) fn adopts(&self) -> bool {
        self.admission.plan.sync.adopt && self.admission.admitted.effective_policy.adopt
    }

    /// Returns whether the spoke has bound itself in the namespace, so that it can read there.
    pub(super) fn is_prepared(&self) -> bool {
        self.preparation != Preparation::Due
    }

    /// Returns the scopes to list again: after a restart, unchanged objects are not applied and must be listed.
    pub(super) fn relisted(&self) -> BTreeSet<Scope> {
        if self.objects.values().any(|tracked| tracked.need() == Need::Wait) {
            let watched = self.objects.values().filter(|tracked| tracked.watched);
            watched.map(|tracked| tracked.scope.clone()).collect()
        } else {
            BTreeSet::new()
        }
    }

    /// Forgets requests that were dropped. They may have been carried out; the watch shows it.
    pub(super) fn forget_requests(&mut self) {
        self.objects.values_mut().for_each(|tracked| tracked.busy = false);
        // The record may not have been written.
        self.durability.forget_write();
        if self.rollback != Rollback::GivenUp {
            self.rollback = Rollback::Possible;
        }
        if self.preparation == Preparation::Underway {
            self.preparation = Preparation::Due;
        }
        if let Some(pruning) = &mut self.pruning {
            pruning.forget_requests();
        }
    }

    /// Returns the facts for a report.
    pub(super) fn shown(&self) -> ApplyingStatus<'_> {
        ApplyingStatus {
            admission: &self.admission,
            plan: self.held.plan_digest,
            since: self.since,
            objects: &self.objects,
            leftovers: self.leftovers.len(),
            obstacle: self.pruning.as_ref().and_then(Deleting::obstacle),
            guarded: self.admission.plan.sync.prune && self.is_guarded(),
            timings: self.timings,
        }
    }

    /// Returns the failure that concerns the destination as a whole.
    pub(super) fn problem(&self) -> Option<&Failure> {
        self.problem.as_ref().or_else(|| self.watch_status.problem())
    }

    /// Returns whether a conflict refuses the plan as a whole: the rollback point exists, and no record is
    /// being written that gives it up.
    pub(super) fn may_revert(&self) -> bool {
        matches!(self.rollback, Rollback::Possible | Rollback::GiveUpDue)
    }

    /// Returns whether a plan that was refused before is tried again, and nothing is known of it yet.
    pub(super) fn is_retrying(&self) -> bool {
        self.origin == Origin::Retried
            && self.may_revert()
            && self.problem.is_none()
            && !self.objects.values().any(Tracked::has_failed)
    }

    fn is_guarded(&self) -> bool {
        let claimed = &self.handover.claimed;
        let to_delete = self
            .leftovers
            .iter()
            .filter(|o| !deleting::is_never_deleted(o) && !claimed.contains(&o.key))
            .count();
        let inventory = self.objects.len() + self.leftovers.len();
        let percent_max = self.admission.admitted.effective_policy.prune_percent_max;
        deleting::prune_is_too_much(to_delete, inventory, percent_max)
    }

    /// Returns whether rights were given so recently that their absence is normal.
    fn is_settling(&self, now: Instant) -> bool {
        match self.preparation {
            Preparation::Done { settling_until } => settling_until.is_some_and(|at| now < at),
            Preparation::Underway => true,
            Preparation::Due => self.problem.is_none(),
        }
    }
}
