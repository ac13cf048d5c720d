//! An admission that is being carried out: its state, and how it begins. Pure.
//!
//! What is due is `advance`, what requests ended with is taken in by `outcomes`.

mod advance;
mod outcomes;

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
    /// The objects that it puts at the destination.
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
    pruning: Option<Deleting>,
    preparation: Preparation,
    progress: Progress,
    begun: Instant,
    since: Timestamp,
    timings: Timings,
    /// What failed is preparing or recording.
    problem: Option<Failure>,
}

/// Whether the record leads back to what ran before this plan. While it does, nothing of the plan is
/// written, and a conflict refuses the plan as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rollback {
    Possible,
    /// Everything is checked: it is to be given up, durably, before the first write.
    GiveUpDue,
    /// The record that is being written gives it up.
    GivingUp,
    GivenUp,
}

/// How the record relates to what is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    Clean,
    /// The record lags behind.
    Dirty,
    /// The record is being written; `leaving` leaves the inventory with it, and `then` is what it will
    /// be once written.
    Writing {
        leaving: BTreeSet<ObjectKey>,
        then: Then,
    },
}

/// What follows a write of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Clean,
    /// More was learnt since the write began.
    Dirty,
}

impl Durability {
    pub(super) fn is_writing(&self) -> bool {
        matches!(self, Self::Writing { .. })
    }

    /// Notes that something was learnt that the record does not hold.
    fn learnt(&mut self) {
        match self {
            Self::Clean => *self = Self::Dirty,
            Self::Dirty => {}
            Self::Writing { then, .. } => *then = Then::Dirty,
        }
    }

    /// Notes that the write succeeded. Returns what left the inventory.
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

    /// Notes that the outcome of the write is not known, if one was on its way.
    fn forget_write(&mut self) {
        if self.is_writing() {
            *self = Self::Dirty;
        }
    }
}

/// Whether namespace, account and bindings exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preparation {
    Due,
    Underway,
    Done { settling_until: Option<Instant> },
}

/// How far the plan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Working,
    /// Everything is applied and healthy: this is the last good release.
    Settled,
}

impl Applying {
    /// What there is to do for an admission, from what is recorded and from what ran before.
    pub(super) fn begin(
        order: RunOrder,
        (key, entry): (&Key, Option<&Entry>),
        before: Option<&Self>,
        now: Instant,
    ) -> Self {
        let RunOrder { admission, objects: rendered, held, origin, timings, asked: _, facts } =
            order;
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
        let former = entry.and_then(|entry| entry.record.rollback_point.as_ref());
        if let (Some(former), Origin::Admitted) = (former, origin) {
            // Only what was listed before this admission can be an apply of ours that was not finished.
            let listed = inventory.iter().take(former.objects);
            let listed: BTreeSet<&ObjectKey> = listed.map(|owned| &owned.key).collect();
            for (key, tracked) in &mut objects {
                tracked.unfinished &= listed.contains(key);
            }
        }
        let leftovers =
            inventory.iter().filter(|owned| !objects.contains_key(&owned.key)).cloned().collect();
        let used = objects.values().map(|tracked| &tracked.scope).collect();
        let watched_before = before.map(|before| before.watch_status.clone()).unwrap_or_default();
        let watch_status = watched_before.keep(&used);
        let was_written = objects.values().any(|tracked| tracked.confirmed.is_some());
        let since = entry.and_then(|entry| entry.record.since);
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
            pruning: None,
            watch_status,
            // Rights that were enough before are there; otherwise the first request shows it.
            preparation: if was_written {
                Preparation::Done { settling_until: None }
            } else {
                Preparation::Due
            },
            progress: Progress::Working,
            begun: now,
            timings,
            problem: None,
        }
    }

    /// Whether plan and policy both allow taking over what is there.
    pub(super) fn adopts(&self) -> bool {
        self.admission.plan.sync.adopt && self.admission.admitted.effective_policy.adopt
    }

    /// Whether the spoke may be able to read in the namespace: it binds itself there first.
    pub(super) fn is_prepared(&self) -> bool {
        self.preparation != Preparation::Due
    }

    /// Scopes to list again: after a restart, and only then, objects are waited for that no apply shows.
    pub(super) fn relisted(&self) -> BTreeSet<Scope> {
        if self.objects.values().any(|tracked| tracked.need() == Need::Wait) {
            let watched = self.objects.values().filter(|tracked| tracked.watched);
            watched.map(|tracked| tracked.scope.clone()).collect()
        } else {
            BTreeSet::new()
        }
    }

    /// Requests that were dropped may or may not have been carried out; the watch will tell.
    pub(super) fn forget_requests(&mut self) {
        self.objects.values_mut().for_each(|tracked| tracked.busy = false);
        // What was being recorded may not be.
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

    /// What a report says of it.
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

    /// What a report says went wrong with the destination as a whole.
    pub(super) fn problem(&self) -> Option<&Failure> {
        self.problem.as_ref().or_else(|| self.watch_status.problem())
    }

    /// Whether a conflict refuses the plan as a whole: nothing of it is written, and no record is being
    /// written that says otherwise.
    pub(super) fn may_revert(&self) -> bool {
        matches!(self.rollback, Rollback::Possible | Rollback::GiveUpDue)
    }

    fn is_guarded(&self) -> bool {
        let to_delete = self.leftovers.iter().filter(|o| !deleting::is_never_deleted(o)).count();
        let inventory = self.objects.len() + self.leftovers.len();
        let percent_max = self.admission.admitted.effective_policy.prune_percent_max;
        deleting::prune_is_too_much(to_delete, inventory, percent_max)
    }

    /// Whether rights were given so lately that their absence is normal.
    fn is_settling(&self, now: Instant) -> bool {
        match self.preparation {
            Preparation::Done { settling_until } => settling_until.is_some_and(|at| now < at),
            Preparation::Underway => true,
            Preparation::Due => self.problem.is_none(),
        }
    }
}
