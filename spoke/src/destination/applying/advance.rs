//! Due requests of an admission: about objects, and for preparing, pruning and recording. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use attest_common::documents::manifest::ObjectKey;
use attest_common::record::Owned;

use super::{Applying, Durability, Preparation, Progress, Rollback, Then};
use crate::cluster::apply::{Authority, Force, Target};
use crate::cluster::drift::Need;
use crate::destination::command::{By, Command, Commands, Request};
use crate::destination::deleting::Deleting;
use crate::destination::handover::{Claimed, Claims};
use crate::destination::objects::{self, Rules, Step, Tracked};
use crate::destination::recording::{Learnt, RollbackUpdate, Update, Written};
use crate::destination::report;
use crate::rollout::Transition;

impl Applying {
    /// Begins due requests. Returns when the next one is due if no event arrives.
    pub(in crate::destination) fn advance(
        &mut self,
        now: Instant,
        commands: &mut Commands,
    ) -> Option<Instant> {
        let turns_at = self.objects.values_mut().filter_map(|tracked| tracked.turn(now)).min();
        // A failure of preparing or recording must not delay healing.
        let held_back = self.problem.as_ref().map(|p| p.retry_at).filter(|at| *at > now);
        let prepared = matches!(self.preparation, Preparation::Done { .. });
        let rules = Rules {
            self_heal: self.admission.plan.sync.self_heal,
            restores_workloads: self.is_candidate(),
            adopt: self.adopts(),
            only_heals: !prepared && held_back.is_some(),
            rollback_possible: self.rollback != Rollback::GivenUp,
            begun: self.begun,
        };
        let (steps, wake) = objects::steps(&self.objects, rules, now, commands.room());
        if !steps.is_empty() {
            self.progress = Progress::Working;
        }
        if prepared || rules.only_heals {
            for step in steps {
                self.take(step, commands);
            }
        } else if self.preparation == Preparation::Due
            && (!steps.is_empty() || self.watch_status.is_unobservable())
        {
            self.preparation = Preparation::Underway;
            commands.request(Request::Prepare(self.account.clone()));
        }
        let quiet = self.objects.values().all(|tracked| !tracked.busy);
        let pruned_at = self.settle(now, commands);
        if held_back.is_none() && self.is_record_due(quiet) {
            self.record(commands);
        }
        wake.into_iter().chain(held_back).chain(turns_at).chain(pruned_at).min()
    }

    /// Returns whether the record must be written: before the first write, and once no object has a request in flight.
    fn is_record_due(&self, quiet: bool) -> bool {
        match self.durability {
            Durability::Writing { .. } => false,
            Durability::Dirty => quiet || self.rollback == Rollback::GiveUpDue,
            Durability::Clean => self.rollback == Rollback::GiveUpDue,
        }
    }

    fn take(&mut self, step: Step, commands: &mut Commands) {
        match step {
            Step::GiveUpRollback => {
                if self.rollback == Rollback::Possible {
                    self.rollback = Rollback::GiveUpDue;
                }
            }
            Step::Check(key, ownership) => {
                let Some((target, _)) = self.begin_request(&key) else { return };
                commands.request(Request::DryRun { key, target, ownership });
            }
            Step::Write { key, force, takeover, heal } => {
                let permit = self.objects.get(&key).and_then(|tracked| tracked.permit);
                let replaces = !heal && permit.is_some_and(|permit| permit.replaces);
                let Some((target, in_place)) = self.begin_request(&key) else { return };
                let force = match (force, in_place) {
                    (_, Some(uid)) if replaces => Force::Replace(uid),
                    (false, _) => Force::No,
                    (true, Some(uid)) => Force::Of(uid),
                    (true, None) => Force::Any,
                };
                commands.request(Request::Write { key, target, force, takeover, heal });
            }
            Step::Look(key) => {
                let Some((target, _)) = self.begin_request(&key) else { return };
                let empty = self.objects.get(&key).map(|tracked| Arc::clone(&tracked.empty));
                let empty = empty.unwrap_or_default();
                commands.request(Request::Look { key, path: target.path, empty });
            }
        }
    }

    /// Marks an object as busy. Returns its target, and the UID of the existing object.
    fn begin_request(&mut self, key: &ObjectKey) -> Option<(Target, Option<String>)> {
        let tracked = self.objects.get_mut(key)?;
        tracked.busy = true;
        let target = Target {
            objects: Arc::clone(&self.rendered),
            key: key.clone(),
            path: tracked.path.clone(),
            user: tracked.watched.then(|| self.account.user()),
            autoscaled: tracked.autoscaled,
        };
        Some((target, tracked.uid_in_place().cloned()))
    }

    /// Once everything is applied and healthy, makes the plan a good one if it becomes so by itself, and prunes objects
    /// that are no longer rendered. Returns when a deletion is due again.
    fn settle(&mut self, now: Instant, commands: &mut Commands) -> Option<Instant> {
        if !self.objects.values().all(Tracked::is_written)
            || !objects::is_settled(report::health_as_applied(&self.objects))
        {
            return None;
        }
        let is_as_signed = self.objects.values().all(|t| t.need() == Need::Nothing);
        if is_as_signed && !self.is_candidate() && self.progress == Progress::Working {
            self.progress = Progress::Settled;
            self.durability.learnt();
        }
        if self.rollback != Rollback::GivenUp
            || !self.may_prune()
            || self.leftovers.is_empty()
            || !self.admission.plan.sync.prune
            || self.is_guarded()
        {
            return None;
        }
        let Self { pruning, leftovers, kinds, handover, .. } = self;
        // What was left out may be no longer claimed.
        pruning.take_if(|pruning| pruning.items.is_empty() && pruning.done.is_empty());
        let pruning = pruning.get_or_insert_with(|| {
            // What another destination claims is handed over, also if its author released it.
            let left =
                leftovers.iter().filter(|o| !(o.orphan && handover.claimed.contains(&o.key)));
            Deleting::of(left, kinds)
        });
        pruning.leave(&handover.claimed);
        let by = By {
            authority: Authority::Prune(Arc::clone(&self.rendered)),
            account: self.account.clone(),
        };
        let wake = pruning.advance(&by, now, commands);
        if pruning.items.is_empty() && !pruning.done.is_empty() {
            self.durability.learnt();
        }
        wake
    }

    /// Offers objects that are no longer rendered to the destinations that claim them, and releases those that they
    /// have taken.
    pub(in crate::destination) fn hand_over(&mut self, claims: &Claims, commands: &mut Commands) {
        let may_release = self.may_prune();
        let Self { leftovers, handover, durability, rollback, .. } = self;
        handover.claimed.clear();
        // A plan that may be given up releases nothing.
        if *rollback != Rollback::GivenUp || !may_release {
            return;
        }
        for Owned { key, uid, preexisting, .. } in leftovers {
            let (Some(claim), Some(uid), false) = (claims.get(key), uid, *preexisting) else {
                continue;
            };
            handover.claimed.insert(key.clone());
            match claim {
                Claimed::Waiting if handover.offered.insert(key.clone()) => {
                    commands.push(Command::Offer { key: key.clone(), uid: uid.clone() });
                }
                Claimed::Waiting => {}
                Claimed::Taken => {
                    if handover.taken.insert(key.clone()) {
                        durability.learnt();
                    }
                }
            }
        }
    }

    /// Begins a write of the record: UIDs, confirmed pairs, objects that left the inventory, the rollout.
    fn record(&mut self, commands: &mut Commands) {
        let settled = self.progress == Progress::Settled;
        let transition = match self.rollout.due() {
            Some(due) => Some(due.clone()),
            None => (settled && self.becomes_good()).then_some(Transition::Finalize),
        };
        let rollback = match self.rollback {
            Rollback::Possible if !settled && transition.is_none() => RollbackUpdate::Keep,
            Rollback::GivenUp => RollbackUpdate::GiveUp,
            Rollback::Possible | Rollback::GiveUpDue | Rollback::GivingUp => {
                self.rollback = Rollback::GivingUp;
                RollbackUpdate::GiveUp
            }
        };
        let deleted = self.pruning.iter().flat_map(|pruning| &pruning.done);
        let gone: BTreeSet<ObjectKey> = deleted.chain(&self.handover.taken).cloned().collect();
        let update = Update {
            held: self.held.clone(),
            known: self.objects.iter().map(|(key, t)| (key.clone(), self.learnt(key, t))).collect(),
            pairs: self
                .objects
                .iter()
                .filter_map(|(key, t)| Some((key.clone(), t.confirmed.clone()?)))
                .collect(),
            gone: gone.clone(),
            rollback,
            transition,
            good_plans_before_max: self.admission.admitted.effective_policy.last_good,
        };
        self.durability = Durability::Writing { leaving: gone, then: Then::Clean };
        commands.request(Request::Record(Box::new(update)));
    }

    fn learnt(&self, key: &ObjectKey, tracked: &Tracked) -> Learnt {
        let is_as_desired =
            tracked.confirmed.as_ref().is_some_and(|pair| pair.desired == tracked.desired);
        let rendered = self.rendered.get(key);
        let written = rendered.filter(|_| is_as_desired).map(|object| Written {
            version: object.version().to_owned(),
            orphan: object.is_orphaned(),
        });
        Learnt { uid: tracked.owned_uid.clone(), preexisting: tracked.preexisting, written }
    }
}
