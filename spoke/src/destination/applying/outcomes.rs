//! Results of requests and observations of watches, as changes of an admission. Pure.

use std::collections::BTreeSet;
use std::time::Instant;

use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::health::Verdict;

use super::{Applying, Preparation, Progress, Rollback};
use crate::cluster::apply::{ApplyError, Deleted, DryRunPermit, Ownership, Written};
use crate::cluster::drift::{Live, Need};
use crate::cluster::error::ApiError;
use crate::cluster::watch::{News, Observation, Scope, WatchRefusal};
use crate::destination::command::{Command, Commands, Notice, Request};
use crate::destination::objects::{self, DEFINITION_WAIT, Failure, NOT_READY_FOR};
use crate::destination::track::{autoscaler_scopes, followed};
use crate::ledger::error::LedgerError;

impl Applying {
    /// Processes observations of watches.
    pub(in crate::destination) fn observed(
        &mut self,
        news: News,
        now: Instant,
        commands: &mut Commands,
    ) {
        for (scope, refused) in news.scopes {
            self.see_scope(scope, refused, now);
        }
        for (namespace, targets) in news.autoscaled {
            self.scale(namespace, targets);
        }
        self.rollout.see_pods(news.pods);
        for (key, seen) in news.objects {
            let Some(tracked) = self.objects.get_mut(&key) else { continue };
            let before = tracked.confirmed.clone();
            if tracked.see(seen) {
                commands.notice(Notice::Drifted(key));
            }
            if tracked.confirmed != before {
                self.durability.learnt();
            }
        }
    }

    /// Processes what the autoscalers of a namespace scale.
    fn scale(&mut self, namespace: String, targets: BTreeSet<ObjectKey>) {
        for (key, tracked) in &mut self.objects {
            if key.namespace.as_deref() == Some(namespace.as_str())
                && let Some(object) = self.rendered.get(key)
            {
                tracked.scale_by(targets.contains(key), object);
            }
        }
        self.autoscaled.insert(namespace, targets);
    }

    /// Processes the status of a watch.
    fn see_scope(&mut self, scope: Scope, refused: Option<WatchRefusal>, now: Instant) {
        let quiet = match refused {
            Some(WatchRefusal::Forbidden) => self.is_settling(now),
            // The definition of the kind may be part of this plan.
            Some(WatchRefusal::NotServed) => now < self.begun + DEFINITION_WAIT,
            Some(WatchRefusal::Unreadable) | None => false,
        };
        if self.watch_status.see(scope, refused, quiet, now)
            && matches!(self.preparation, Preparation::Done { .. })
        {
            // Namespace or bindings may have been deleted.
            self.preparation = Preparation::Due;
        }
    }

    /// Uses speculative dry runs in flight, as far as they match the ones that are due.
    pub(in crate::destination) fn await_dry_runs(
        &mut self,
        asked: Vec<(ObjectKey, Ownership)>,
        commands: &mut Commands,
    ) {
        let adopt = self.adopts();
        for key in objects::take_speculative(&mut self.objects, asked, adopt) {
            commands.request(Request::AwaitDryRun(key));
        }
    }

    pub(in crate::destination) fn prepared(
        &mut self,
        result: Result<bool, ApiError>,
        now: Instant,
        commands: &mut Commands,
    ) {
        match result {
            Ok(made) => {
                let settling_until = made.then(|| now + NOT_READY_FOR);
                self.preparation = Preparation::Done { settling_until };
                self.problem = None;
                let relist = if made { self.watch_status.unobservable() } else { BTreeSet::new() };
                commands.push(Command::Follow {
                    objects: followed(&self.objects),
                    relist,
                    autoscalers: autoscaler_scopes(&self.objects),
                });
            }
            Err(error) => {
                self.preparation = Preparation::Due;
                let text = error_chain(&error);
                self.problem =
                    Some(Failure::after(self.problem.as_ref(), error.reason(), text, now));
            }
        }
    }

    pub(in crate::destination) fn checked(
        &mut self,
        key: &ObjectKey,
        result: Result<DryRunPermit, ApplyError>,
        now: Instant,
    ) {
        self.timings.requests += 1;
        match result {
            Ok(permit) => {
                let Some(tracked) = self.objects.get_mut(key) else { return };
                tracked.busy = false;
                tracked.permit = Some(permit);
                tracked.failure = None;
            }
            Err(error) => self.fail(key, &error, now),
        }
    }

    /// Processes the result of a write. Returns whether it healed an object.
    pub(in crate::destination) fn wrote(
        &mut self,
        (key, heal): (&ObjectKey, bool),
        result: Result<Written, ApplyError>,
        now: Instant,
        commands: &mut Commands,
    ) -> bool {
        self.timings.requests += 1;
        commands.notice(if result.is_ok() { Notice::Applied } else { Notice::ApplyFailed });
        let Written { confirmed, observation, created } = match result {
            Ok(written) => written,
            Err(error) => {
                self.fail(key, &error, now);
                return false;
            }
        };
        let Some(tracked) = self.objects.get_mut(key) else { return false };
        tracked.busy = false;
        tracked.failure = None;
        tracked.repair = false;
        let drifted_at = tracked.drifted_at.take();
        if tracked.confirmed.as_ref() != Some(&confirmed)
            || tracked.owned_uid.as_ref() != Some(&confirmed.uid)
        {
            self.durability.learnt();
        }
        tracked.owned_uid = Some(confirmed.uid.clone());
        tracked.preexisting = objects::is_preexisting(tracked.preexisting, tracked.permit, created);
        tracked.confirmed = Some(confirmed);
        tracked.see(observation);
        if heal {
            tracked.budget.spend(now);
            let took = drifted_at.map(|at| now.duration_since(at)).unwrap_or_default();
            commands.notice(Notice::Healed { key: key.clone(), took });
        } else if self.objects.values().all(|t| t.need() != Need::Apply) {
            let took = now.duration_since(self.begun);
            self.timings.apply_us = attest_runtime::clock::micros(took);
            commands.notice(Notice::PlanApplied { took });
        }
        heal
    }

    pub(in crate::destination) fn looked(
        &mut self,
        key: &ObjectKey,
        result: Result<Option<Observation>, ApiError>,
        now: Instant,
    ) {
        let found = match result {
            Ok(found) => found,
            Err(error) => return self.fail(key, &ApplyError::Api(error), now),
        };
        let Some(tracked) = self.objects.get_mut(key) else { return };
        tracked.busy = false;
        tracked.failure = None;
        let seen = found.unwrap_or_else(|| Observation {
            live: Live::Gone { uid: tracked.owned_uid.clone().unwrap_or_default() },
            kept_by_kubectl: Vec::new(),
            verdict: Verdict::absent(&tracked.scope.group, &tracked.scope.kind),
            added: 0,
            at: now,
        });
        tracked.see(seen);
    }

    pub(in crate::destination) fn deleted(
        &mut self,
        key: &ObjectKey,
        result: Result<Deleted, ApplyError>,
        now: Instant,
        commands: &mut Commands,
    ) {
        let Some(pruning) = &mut self.pruning else { return };
        if pruning.finish(key, result, now) {
            commands.notice(Notice::Deleted);
        }
    }

    /// Processes the result of a write of the record.
    pub(in crate::destination) fn recorded(
        &mut self,
        result: Result<(), LedgerError>,
        now: Instant,
    ) {
        match result {
            Ok(()) => {
                self.problem = None;
                if self.rollback == Rollback::GivingUp {
                    self.rollback = Rollback::GivenUp;
                }
                let left = self.durability.written();
                self.leftovers.retain(|owned| !left.contains(&owned.key));
                self.handover.taken.retain(|key| !left.contains(key));
                if let Some(pruning) = &mut self.pruning {
                    pruning.done.retain(|key| !left.contains(key));
                }
                self.pruning.take_if(|p| p.items.is_empty() && p.done.is_empty());
            }
            Err(error) => {
                self.durability.forget_write();
                self.durability.learnt();
                if self.rollback == Rollback::GivingUp {
                    let is_settled = self.progress == Progress::Settled;
                    self.rollback =
                        if is_settled { Rollback::Possible } else { Rollback::GiveUpDue };
                }
                let text = error_chain(&error);
                self.problem =
                    Some(Failure::after(self.problem.as_ref(), error.reason(), text, now));
            }
        }
    }

    fn fail(&mut self, key: &ObjectKey, error: &ApplyError, now: Instant) {
        let settling = self.is_settling(now);
        if error.is_not_ready() && !settling {
            // Namespace, account or bindings may have been deleted.
            self.preparation = Preparation::Due;
        }
        let Some(tracked) = self.objects.get_mut(key) else { return };
        tracked.busy = false;
        let text = error_chain(error);
        if matches!(error, ApplyError::FieldConflict { .. }) {
            // It belongs to another writer: it is never deleted, and checked again before the next attempt.
            tracked.permit = None;
            if !std::mem::replace(&mut tracked.preexisting, true) {
                self.durability.learnt();
            }
        }
        // Another object, or another writer: the dry run is repeated.
        if error.is_conflict() {
            tracked.permit = None;
        }
        tracked.failure = Some(if error.is_not_ready() && settling {
            Failure::not_ready(error.reason(), text, now)
        } else {
            let failure = Failure::after(tracked.failure.as_ref(), error.reason(), text, now);
            Failure { transient: error.is_transient(), ..failure }
        });
    }
}
