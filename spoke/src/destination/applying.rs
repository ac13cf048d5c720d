//! An admission being carried out: its state and the requests it makes. What comes next is `state`; what came
//! back is taken in by the worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::ids::Timestamp;
use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::kinds::Kinds;
use attest_common::objects::placement;
use attest_common::record::{Held, Owned};
use attest_common::session::report::Timings;
use attest_common::verify::{Admission, Verified};

use super::deleting::{self, Deleting};
use super::mailbox::Run;
use super::objects::{DEFINITION_WAIT, Failure, Step, Tracked};
use super::report::RunningNow;
use super::requests::{Done, Job};
use super::track::{track, with_met};
use super::watch_status::Sight;
use crate::cluster::account::Account;
use crate::cluster::apply::{self, ApplyError, Force, Target};
use crate::cluster::client::ApiServer;
use crate::cluster::watch::{Refused, Scope};
use crate::ledger::records::{ConfirmedPairs, Entry, Key};

/// An admission being carried out.
pub(super) struct Running {
    pub(super) admission: Arc<Verified<Admission>>,
    pub(super) held: Held,
    pub(super) account: Account,
    pub(super) kinds: Kinds,
    pub(super) objects: BTreeMap<ObjectKey, Tracked>,
    pub(super) sight: Sight,
    pub(super) leftovers: Vec<Owned>,
    pub(super) pruning: Option<Deleting>,
    pub(super) preparation: Preparation,
    /// The record leads back to what ran before: nothing of this plan is written, and a conflict
    /// refuses it as a whole.
    pub(super) way_back: bool,
    /// Everything is checked: the way back is to be given up, durably, before the first write.
    pub(super) begins: bool,
    /// The record being written gives it up.
    pub(super) forgoing: bool,
    /// It was loaded: what another process did for it is not known.
    pub(super) resumed: bool,
    /// The record lags behind what was applied.
    pub(super) dirty: bool,
    /// What leaves the inventory with the record being written.
    pub(super) leaving: BTreeSet<ObjectKey>,
    pub(super) recording: bool,
    pub(super) settled: bool,
    pub(super) begun: Instant,
    pub(super) since: Timestamp,
    pub(super) timings: Timings,
    pub(super) problem: Option<Failure>,
}

/// Whether namespace, account and bindings are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preparation {
    Due,
    Underway,
    Done { settling_until: Option<Instant> },
}

impl Running {
    /// What there is to do for an admission, from what is recorded and from what ran before.
    pub(super) fn begin(
        run: Run,
        (key, entry): (&Key, Option<&Entry>),
        known: &Kinds,
        before: Option<&Self>,
        now: Instant,
    ) -> Self {
        let Run { admission, held, resumed, timings, checks: _ } = run;
        let (application, namespace) = key;
        let account = Account::new(
            application,
            namespace,
            &admission.admitted.effective_policy.accounts_namespace,
        );
        let kinds = placement::with_definitions(&admission.admitted.objects, known).into_owned();
        let inventory = entry.map(|entry| entry.record.inventory.clone()).unwrap_or_default();
        let tracked_before = before.map(|before| &before.objects);
        let inventory = with_met(inventory, tracked_before);
        let no_pairs = ConfirmedPairs::new();
        let pairs = entry.map_or(&no_pairs, |entry| &entry.confirmed);
        let mut objects = track(&admission, &kinds, &account, (&inventory, pairs), tracked_before);
        // Only what was listed before this admission can be an apply of ours that was not finished.
        let former = entry.and_then(|entry| entry.record.former.as_ref());
        if let Some(former) = former.filter(|_| !resumed) {
            let listed = inventory.iter().take(former.objects);
            let listed: BTreeSet<&ObjectKey> = listed.map(|owned| &owned.key).collect();
            for (key, tracked) in &mut objects {
                tracked.unfinished &= listed.contains(key);
            }
        }
        let leftovers =
            inventory.iter().filter(|owned| !objects.contains_key(&owned.key)).cloned().collect();
        let used = objects.values().map(|tracked| &tracked.scope).collect();
        let sight = before.map(|before| before.sight.clone()).unwrap_or_default().keep(&used);
        let was_written = objects.values().any(|tracked| tracked.confirmed.is_some());
        let since = entry.and_then(|entry| entry.record.since);
        Self {
            since: since.unwrap_or(admission.ordered.directive.issued_at),
            way_back: former.is_some(),
            begins: false,
            forgoing: false,
            resumed,
            admission,
            held,
            account,
            kinds,
            objects,
            leftovers,
            pruning: None,
            // Rights that were enough before are there; otherwise the first request says so.
            sight,
            preparation: if was_written {
                Preparation::Done { settling_until: None }
            } else {
                Preparation::Due
            },
            dirty: before.is_some_and(|before| before.dirty),
            leaving: BTreeSet::new(),
            recording: false,
            settled: false,
            begun: now,
            timings,
            problem: None,
        }
    }

    /// Whether plan and policy both allow taking over what is there.
    pub(super) fn adopts(&self) -> bool {
        self.admission.plan.sync.adopt && self.admission.admitted.effective_policy.adopt
    }

    /// Requests that were dropped may or may not have been carried out; the watch will tell.
    pub(super) fn forget_flights(&mut self) {
        self.objects.values_mut().for_each(|tracked| tracked.busy = false);
        // What was being recorded may not be.
        self.dirty |= std::mem::take(&mut self.recording);
        (self.begins, self.forgoing) = (false, false);
        if self.preparation == Preparation::Underway {
            self.preparation = Preparation::Due;
        }
        if let Some(pruning) = &mut self.pruning {
            pruning.forget_flights();
        }
    }

    pub(super) fn now(&self) -> RunningNow<'_> {
        RunningNow {
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

    pub(super) fn is_guarded(&self) -> bool {
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

    /// Takes in whether a scope can be seen.
    pub(super) fn see_scope(&mut self, scope: Scope, refused: Option<Refused>, now: Instant) {
        let quiet = match refused {
            Some(Refused::Forbidden) => self.is_settling(now),
            // The definition of the kind may come with this very plan.
            Some(Refused::NotServed) => now < self.begun + DEFINITION_WAIT,
            Some(Refused::Unreadable) | None => false,
        };
        if self.sight.see(scope, refused, quiet, now)
            && matches!(self.preparation, Preparation::Done { .. })
        {
            // Namespace or bindings may have been taken away.
            self.preparation = Preparation::Due;
        }
    }

    pub(super) fn fail(&mut self, key: &ObjectKey, error: &ApplyError, now: Instant) {
        let settling = self.is_settling(now);
        if error.is_not_ready() && !settling {
            // Namespace, account or bindings may have been taken away.
            self.preparation = Preparation::Due;
        }
        let Some(tracked) = self.objects.get_mut(key) else { return };
        tracked.busy = false;
        let text = error_chain(error);
        if matches!(error, ApplyError::FieldConflict { .. }) {
            // Somebody else's: never deleted, and asked about anew before the next attempt.
            tracked.passed = None;
            self.dirty |= !std::mem::replace(&mut tracked.met, true);
        }
        // Another object, or another writer: what was found is asked about anew.
        if error.is_conflict() {
            tracked.passed = None;
        }
        tracked.failure = Some(if error.is_not_ready() && settling {
            Failure::not_ready(error.reason(), text, now)
        } else {
            let failure = Failure::after(tracked.failure.as_ref(), error.reason(), text, now);
            Failure { transient: error.is_transient(), ..failure }
        });
    }

    pub(super) fn job(&mut self, api: &ApiServer, step: Step) -> Option<Job> {
        let key = match &step {
            Step::Begin => {
                self.begins = true;
                return None;
            }
            Step::Check(key, _) | Step::Look(key) | Step::Write { key, .. } => key.clone(),
        };
        let tracked = self.objects.get_mut(&key)?;
        tracked.busy = true;
        let api = api.clone();
        let in_place = tracked.uid_in_place().cloned();
        let target = Target {
            admission: Arc::clone(&self.admission),
            index: tracked.index,
            path: tracked.path.clone(),
            user: tracked.watched.then(|| self.account.user()),
        };
        Some(match step {
            Step::Begin => return None,
            Step::Check(key, standing) => Box::pin(async move {
                let result = apply::check(&api, &target, standing).await;
                Done::Checked(key, result)
            }),
            Step::Write { key, force, heal } => Box::pin(async move {
                let force = match (force, in_place) {
                    (false, _) => Force::No,
                    (true, Some(uid)) => Force::Of(uid),
                    (true, None) => Force::Any,
                };
                let result = apply::write(&api, &target, force).await;
                Done::Wrote { key, heal, result }
            }),
            Step::Look(key) => Box::pin(async move {
                let found = match api.get(&target.path).await {
                    Ok(live) => Ok(Some(live)),
                    Err(error) if error.is_not_found() => Ok(None),
                    Err(error) => Err(error),
                };
                Done::Looked(key, found)
            }),
        })
    }
}
