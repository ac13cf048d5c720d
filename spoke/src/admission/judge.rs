//! Pushes of the hub: each is judged, recorded and passed to the worker of its destination, or refused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::envelope::{self, DIRECTIVE_TYPE};
use attest_common::basics::ids::Digest;
use attest_common::basics::reason::ReportedReason;
use attest_common::basics::text::message;
use attest_common::documents::plan::Directive;
use attest_common::record::custody::StoredRefusal;
use attest_common::record::{Position, Record};
use attest_common::session::report::{Refusal, Timings};
use attest_common::verify::{Ages, Removal, Verified};
use attest_runtime::clock::micros;
use attest_runtime::failpoint;

use super::agent::{Agent, RETRIES_MAX, Retry};
use super::gate::{
    self, AdmittedPush, GateContext, GateError, PushDecision, PushOrder, RepeatedDirective,
};
use super::refused::{Judgement, RefusedPush, is_judged_again};
use super::rejected::Rejected;
use super::resume::{is_empty, is_gone};
use crate::destination::mailbox::{Order, Origin, Run};
use crate::destination::speculative::SpeculativeDryRuns;
use crate::ledger::error::LedgerError;
use crate::ledger::records::{self, Entry, Key, Lost};
use crate::ledger::refusals::Weight;
use crate::session::push::Pushed;

/// Most judgements of a push whose record is changed concurrently.
const JUDGEMENTS_MAX: u32 = 4;

impl Agent {
    pub(super) async fn take(&mut self, push: Pushed) {
        let Pushed { directive, plan, blobs, room } = push;
        for (digest, bytes) in blobs {
            self.blobs.insert(digest, bytes);
        }
        drop(room);
        self.decide(directive, plan, Judgement::Pushed { attempt: 0 }).await;
    }

    /// Judges one directive and carries out the decision.
    pub(super) async fn decide(
        &mut self,
        directive: Vec<u8>,
        plan: Option<Digest>,
        judgement: Judgement,
    ) {
        let outcome = self.judge_and_record(&directive, plan, judgement).await;
        let claimed = gate::claimed(&directive);
        let error = match outcome {
            Ok(()) => return self.forget_older(claimed),
            Err(error) => error,
        };
        let attempt = judgement.attempt();
        match (error.retry_after(attempt), claimed) {
            (Some(after), Some((key, order))) if self.may_wait(&key) => {
                if self.signed_limiter.allows(Instant::now()) {
                    tracing::warn!(
                        application = %key.0, namespace = %key.1,
                        reason = error.reason().as_str(), error = error.text(),
                        "Failed to admit a directive; retrying"
                    );
                }
                let at = Instant::now() + after;
                self.wait(key, Retry { order, directive, plan, at, attempt });
            }
            (_, claimed) => {
                let is_known = judgement == Judgement::Again
                    && claimed.as_ref().is_some_and(|(key, _)| self.is_known(key, &error));
                if !is_known {
                    self.refuse(&error, &directive, claimed.clone());
                }
                let Some((key, order)) = claimed else { return };
                if let Rejected::Gate(GateError::OwnedByOther { claims, .. }) = &error {
                    let handovers = &self.shared.handovers;
                    self.shared.ledger.with_records(|all| handovers.claim(&key, claims, all));
                }
                self.judge_again_later(&key, order, (directive, plan), &error);
            }
        }
    }

    /// Keeps a refused push to judge it again, if a pinned hub key has signed it and its refusal may end.
    fn judge_again_later(
        &mut self,
        key: &Key,
        order: PushOrder,
        (directive, plan): (Vec<u8>, Option<Digest>),
        error: &Rejected,
    ) {
        let seen = self.shared.ledger.with_records(|records| order.admitted_in(records.get(key)?));
        let is_newest = self.is_reverted(key) || seen.is_none_or(|seen| order > seen);
        if !is_newest || !self.is_signed(&directive) {
            return;
        }
        if !is_judged_again(error.reason()) {
            return self.give_up_refused(key, order);
        }
        let refused = RefusedPush::new(order, Some(directive), plan);
        self.keep_refused(key, RefusedPush { text: Some(error.text()), ..refused });
    }

    fn may_wait(&self, key: &Key) -> bool {
        self.retries.len() < RETRIES_MAX || self.retries.contains_key(key)
    }

    /// Keeps the newest push of a destination for a retry. Only documents signed by a pinned hub key get here.
    fn wait(&mut self, key: Key, retry: Retry) {
        let newer = self.retries.get(&key).is_some_and(|waiting| waiting.order > retry.order);
        if !newer {
            self.retries.insert(key, retry);
        }
    }

    /// Drops a waiting push that is not newer than one that was carried out, or is of another hub key.
    fn forget_older(&mut self, taken: Option<(Key, PushOrder)>) {
        let Some((key, order)) = taken else { return };
        self.forget_refused(&key);
        let newer = self.retries.get(&key).is_some_and(|waiting| waiting.order > order);
        if !newer {
            self.retries.remove(&key);
        }
    }

    async fn judge_and_record(
        &mut self,
        directive: &[u8],
        plan: Option<Digest>,
        judgement: Judgement,
    ) -> Result<(), Rejected> {
        let mut repeated = RepeatedDirective::Report;
        let (mut asked_kinds, mut looked_up) = (false, BTreeSet::<Digest>::new());
        let (mut judgements, mut in_time) = (0, false);
        loop {
            let started = Instant::now();
            let decision = self.judge(directive, plan, repeated);
            let took = started.elapsed();
            self.shared.metrics.verification_seconds.observe(took.as_secs_f64());
            match decision {
                Err(error) if error.is_about_kinds() && !asked_kinds => {
                    asked_kinds = true;
                    if !self.discoveries.allows(Instant::now()) {
                        return Err(Rejected::TooManyDiscoveries);
                    }
                    self.discover().await;
                }
                Err(error) => return Err(Rejected::Gate(error)),
                Ok(PushDecision::NeedBlobs(key, blobs)) => {
                    let unknown = || blobs.iter().copied().filter(|blob| !looked_up.contains(blob));
                    let unknown: BTreeSet<Digest> = unknown().collect();
                    looked_up.extend(&unknown);
                    if self.look_up(&key, &unknown).await {
                        continue;
                    }
                    tracing::debug!(application = %key.0, namespace = %key.1, blobs = blobs.len(), "Blobs are missing");
                    self.shared.outbox.need(key, blobs);
                    return Ok(());
                }
                Ok(PushDecision::Repeated(key)) => {
                    if self.unresumed.remove(&key).is_some() {
                        self.resume(&key).await;
                    }
                    if repeated == RepeatedDirective::Report && self.is_reverted(&key) {
                        repeated = RepeatedDirective::Judge;
                        continue;
                    }
                    if judgement != Judgement::Again {
                        self.report_again(&key);
                    }
                    return Ok(());
                }
                Ok(PushDecision::Remove(removal)) => {
                    self.check_rates(&removal.ordered.directive)?;
                    return self.remove(directive, *removal).await;
                }
                Ok(PushDecision::Admit(admitting)) => {
                    if !std::mem::replace(&mut in_time, true) {
                        self.check_rates(&admitting.admission.ordered.directive)?;
                    }
                    let is_retried = repeated == RepeatedDirective::Judge;
                    if is_retried && self.is_in_the_way(&admitting).await {
                        let directive = &admitting.admission.ordered.directive;
                        let key = (directive.application.clone(), directive.namespace.clone());
                        self.refuse_again(&key, judgement);
                        return Ok(());
                    }
                    let timings = Timings { verify_us: micros(took), ..Timings::default() };
                    judgements += 1;
                    let origin = if is_retried { Origin::Retried } else { Origin::Admitted };
                    let admitted = self.admit(directive, *admitting, (origin, timings)).await;
                    // Superseded content, or content that was stored and not recorded.
                    self.shared.ledger.tidy_content();
                    match admitted {
                        Err(Rejected::Ledger(LedgerError::Overtaken))
                            if judgements < JUDGEMENTS_MAX => {}
                        other => return other,
                    }
                }
            }
        }
    }

    /// Reports again: a hub that repeats a directive may not have received the report.
    pub(super) fn report_again(&mut self, key: &Key) {
        match self.shared.ledger.entry(key) {
            Some(entry) if is_gone(&entry.record) => self.report_removed(key, &entry),
            // The first plan was refused, and there is no worker that reports it.
            Some(entry) if is_empty(&entry.record) && !self.workers.contains_key(key) => {
                let standing = self.standing_refusal(key, &entry);
                self.report_without_worker(key, None, standing.as_ref());
            }
            _ => self.worker(key).repeat(),
        }
    }

    /// Applies the rate limits of admissions: a hub may order the same repeatedly with valid signatures.
    fn check_rates(&mut self, directive: &Directive) -> Result<(), Rejected> {
        let key = (directive.application.clone(), directive.namespace.clone());
        if !self.shared.ledger.writes().has_tokens(Instant::now()) {
            return Err(Rejected::TooMuch);
        }
        // A record is permanent, and so is the space that it takes. A destination that was permitted and is
        // not recorded yet takes no second permit.
        let is_new = !self.admissions.contains(&key)
            && !self.shared.ledger.with_records(|records| records.contains_key(&key));
        if is_new && !self.new_destinations.allows(Instant::now()) {
            return Err(Rejected::TooManyNew);
        }
        if self.admissions.take(&key, Instant::now()) { Ok(()) } else { Err(Rejected::TooFast) }
    }

    fn judge(
        &self,
        directive: &[u8],
        plan: Option<Digest>,
        repeated: RepeatedDirective,
    ) -> Result<PushDecision, GateError> {
        self.judge_as(directive, plan, repeated, (Ages::Enforce, self.shared.ledger.lost()))
    }

    /// Judges a directive by the current policy and records.
    pub(super) fn judge_as(
        &self,
        directive: &[u8],
        plan: Option<Digest>,
        repeated: RepeatedDirective,
        (ages, lost): (Ages, Option<Lost>),
    ) -> Result<PushDecision, GateError> {
        let trust = self.trust.borrow().clone();
        let policy = trust.bound(&self.cluster).map_err(GateError::Trust)?;
        let (kinds, offers) = (self.kinds(), self.shared.handovers.offers());
        self.shared.ledger.with_records(|records| {
            let view = GateContext {
                policy,
                cluster: &self.cluster,
                records,
                kinds: &kinds,
                now: jiff::Timestamp::now(),
                ages,
                lost,
                repeated,
                offers: &offers,
            };
            gate::judge(directive, plan, |digest| self.blobs.get(digest).cloned(), &view)
        })
    }

    /// Records an admission, then passes it to its worker.
    async fn admit(
        &mut self,
        directive: &[u8],
        admitting: AdmittedPush,
        (origin, mut timings): (Origin, Timings),
    ) -> Result<(), Rejected> {
        let AdmittedPush { admission, objects, held, taken } = admitting;
        let (admission, objects) = (Arc::new(admission), Arc::new(objects));
        let ordered = &admission.ordered.directive;
        let key = (ordered.application.clone(), ordered.namespace.clone());
        let (epoch, sequence) = (ordered.epoch, ordered.sequence);
        let started = Instant::now();
        let judged = self.position(&key);
        let recorded = self.shared.ledger.entry(&key);
        let held_before = recorded.as_ref().and_then(|entry| entry.record.held.as_ref());
        let is_new_release = held_before.is_none_or(|before| before.release != held.release);
        let running = recorded.filter(|_| self.workers.contains_key(&key));
        let mut checks = running
            .map(|entry| {
                let judged = (&**admission, &objects);
                SpeculativeDryRuns::begin(&self.shared.api, &key, judged, &entry, &self.kinds())
            })
            .unwrap_or_default();
        let kept = self.shared.ledger.keep_content(&held);
        let bytes = self.blobs.of(&held);
        self.shared.ledger.store_content(&held, &bytes).await.map_err(Rejected::Ledger)?;
        let begins = checks.all_passed().await;
        let change = |entry: Option<Entry>| {
            if entry.as_ref().map(|entry| entry.record.position()) != judged {
                return Err(LedgerError::Overtaken);
            }
            let before = entry.as_ref().map(|entry| (&entry.record, &entry.directive[..]));
            let now = jiff::Timestamp::now();
            let record = gate::admitted_record(before, (&admission, &held), &taken, now)
                .map_err(|_| LedgerError::TooLarge { objects: objects.objects().len() })?;
            // Every dry run has passed: this record gives up the rollback point already.
            let rollback_point = record.rollback_point.filter(|_| !begins);
            let record = Record { rollback_point, ..record };
            records::check_room(&record)?;
            let confirmed = entry.map(|entry| entry.confirmed).unwrap_or_default();
            Ok(Some(Entry { record, directive: directive.to_vec(), confirmed }))
        };
        // What it renders again is no longer handed over.
        self.shared.handovers.withdraw_offers(&key);
        self.shared.ledger.update(&key, change).await.map_err(Rejected::Ledger)?;
        let handovers = &self.shared.handovers;
        self.shared.ledger.with_records(|records| handovers.keep_taken(&key, records));
        drop(kept);
        timings.record_us = micros(started.elapsed());
        self.forget_refused_of_others(&key, admission.ordered.hub_key);
        self.seen.set(self.shared.ledger.seen());
        self.blobs.remove(held.blobs());
        self.shared.metrics.verifications.with_label_values(&["admitted"]).inc();
        tracing::info!(
            application = %key.0, namespace = %key.1, epoch, sequence,
            version = admission.admitted.release.version,
            signers = admission.admitted.signers.values().cloned().collect::<Vec<_>>().join(", "),
            verify_us = timings.verify_us, record_us = timings.record_us,
            "Admitted a release"
        );
        failpoint::reach("after-admission");
        self.know_inventory(&key, &admission.admitted.objects).await;
        self.unresumed.remove(&key);
        let repair = is_new_release || admission.ordered.directive.repair;
        let soak = None;
        let run = Run { admission, objects, held, origin, repair, timings, soak, checks };
        self.worker(&key).order(Order::Run(Box::new(run)));
        if origin == Origin::Retried {
            // The hub may have sent it again and waits for the outcome.
            self.worker(&key).repeat();
        }
        Ok(())
    }

    async fn remove(
        &mut self,
        directive: &[u8],
        removal: Verified<Removal>,
    ) -> Result<(), Rejected> {
        let ordered = &removal.ordered.directive;
        let key = (ordered.application.clone(), ordered.namespace.clone());
        let judged = self.position(&key);
        let change = |entry: Option<Entry>| {
            let Some(entry) = entry.filter(|entry| Some(entry.record.position()) == judged) else {
                return Err(LedgerError::Overtaken);
            };
            let record = gate::removed_record(&entry.record, &removal, jiff::Timestamp::now());
            Ok(Some(Entry { record, directive: directive.to_vec(), confirmed: entry.confirmed }))
        };
        self.shared.ledger.update(&key, change).await.map_err(Rejected::Ledger)?;
        self.seen.set(self.shared.ledger.seen());
        self.shared.metrics.verifications.with_label_values(&["admitted"]).inc();
        tracing::info!(
            application = %key.0, namespace = %key.1, sequence = ordered.sequence,
            "Admitted a removal"
        );
        let handovers = &self.shared.handovers;
        self.shared.ledger.with_records(|records| handovers.keep_taken(&key, records));
        self.know_inventory(&key, &[]).await;
        self.unresumed.remove(&key);
        self.worker(&key).order(Order::Remove(Box::new(removal)));
        Ok(())
    }

    /// Returns the newest admitted directive of a destination.
    pub(super) fn position(&self, key: &Key) -> Option<Position> {
        self.shared.ledger.with_records(|records| records.get(key).map(Record::position))
    }

    /// Takes a permit to record a refusal. The first evidence of each reason is always recorded: there are few.
    fn may_write_down(&self, weight: Weight, reason: &ReportedReason) -> bool {
        let now = Instant::now();
        match weight {
            Weight::Evidence => {
                self.evidence_limiter.allows(now) || !self.shared.refusals.has_evidence(reason)
            }
            Weight::Signed => self.signed_limiter.allows(now),
            Weight::Noise => self.unsigned_limiter.allows(now),
        }
    }

    /// Records a refusal: in the metric, the log, the list in the cluster, and the report to the hub. Every
    /// refusal is counted; the rest is rate limited.
    fn refuse(&self, error: &Rejected, directive: &[u8], claimed: Option<(Key, PushOrder)>) {
        let reason = ReportedReason::from(error.reason());
        self.shared.metrics.refused(&reason);
        let signed = self.is_signed(directive);
        if !self.may_write_down(Weight::of(signed, &reason), &reason) {
            return;
        }
        let text = error.text();
        let (key, sequence) =
            claimed.map(|(key, order)| (Some(key), Some(order.sequence))).unwrap_or_default();
        let refusal = Refusal {
            reason: reason.clone(),
            message: message(&text),
            sequence,
            at: jiff::Timestamp::now(),
        };
        let name = |pick: fn(&Key) -> String| key.as_ref().map(pick).unwrap_or_default();
        let (application, namespace) = (name(|k| k.0.to_string()), name(|k| k.1.to_string()));
        tracing::warn!(
            application,
            namespace,
            reason = reason.as_str(),
            sequence,
            error = text,
            "Refused a directive"
        );
        let noted = StoredRefusal::first(application, namespace, signed, refusal.clone());
        self.shared.refusals.note(noted);
        let Some(key) = key else { return };
        match self.workers.get(&key) {
            Some(worker) => worker.refused(refusal),
            // There is no worker; a report suffices, and the number of reports is limited.
            None => self.report_without_worker(&key, None, Some(&refusal)),
        }
    }

    /// Returns whether a hub key of the local policy has signed this directive.
    fn is_signed(&self, directive: &[u8]) -> bool {
        let trust = self.trust.borrow();
        let sized = gate::check_size(directive).is_ok();
        trust.loaded().is_ok_and(|loaded| {
            sized && envelope::open(directive, DIRECTIVE_TYPE, &loaded.policy.hub_keys).is_ok()
        })
    }
}

#[cfg(test)]
mod tests;
