//! Loads recorded plans after a start or a change of the policy, and judges them again. Independent of the hub.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::ids::Digest;
use attest_common::basics::reason::Reason;
use attest_common::basics::text::{error_chain, message};
use attest_common::record::custody::StoredSoak;
use attest_common::record::{Held, Record};
use attest_common::session::report::{Refusal, Timings};
use attest_common::verify::Ages;
use bytes::Bytes;

use super::agent::{Agent, RESUME_RETRY};
use super::gate::{AdmittedPush, GateError, PushDecision, RepeatedDirective};
use super::rejected::Rejected;
use crate::destination::mailbox::{Order, Origin, Run};
use crate::destination::report::{self, RemovalStatus, ReportContext};
use crate::destination::speculative::SpeculativeDryRuns;
use crate::ledger::error::LedgerError;
use crate::ledger::index::PIECE_BYTES_MAX;
use crate::ledger::progress;
use crate::ledger::records::{Entry, Key};

/// Interval of requests to the hub for recorded content that is no longer stored. A request can be lost with
/// its session, and the application is not healed until it is answered.
const CONTENT_ASKED_EVERY: Duration = Duration::from_secs(5 * 60);

impl Agent {
    /// Loads every recorded destination, or freezes all if there is no usable policy.
    pub(super) async fn resume_all(&mut self) {
        let trust = self.trust.borrow().clone();
        let keys: Vec<Key> = self.shared.ledger.with_records(|r| r.keys().cloned().collect());
        self.readiness.resumed(trust.loaded().is_ok());
        let Some(error) = trust.bound(&self.cluster).err() else {
            return self.resume_each(keys).await;
        };
        for key in keys {
            self.freeze(&key, error.reason(), &error_chain(&error));
        }
    }

    /// Loads these destinations. If one fails because of the API server, the others are deferred; they are
    /// retried before it, so that a failure of one destination alone delays no other.
    pub(super) async fn resume_each(&mut self, keys: Vec<Key>) {
        let mut away = false;
        for key in keys {
            if away {
                self.unresumed.insert(key, Instant::now() + self.resume_delay() / 2);
                continue;
            }
            self.unresumed.remove(&key);
            away = !self.resume(&key).await;
            if !away {
                self.resume_failures = 0;
            }
        }
        if away {
            self.resume_failures = self.resume_failures.saturating_add(1);
        }
    }

    /// Returns the delay before destinations are loaded again while the API server is away.
    fn resume_delay(&self) -> Duration {
        RESUME_RETRY.delay_max(self.resume_failures)
    }

    /// Loads a recorded destination. Returns false if the API server is unavailable; it is then retried.
    pub(super) async fn resume(&mut self, key: &Key) -> bool {
        let Some(entry) = self.shared.ledger.entry(key) else { return true };
        self.ask_for_reverted(key, &entry);
        if is_gone(&entry.record) {
            self.report_removed(key, &entry);
            return true;
        }
        match self.load(key, &entry).await {
            Ok(Some(order)) => {
                let standing = self.standing_refusal(key, &entry);
                let worker = self.worker(key);
                worker.order(order);
                if let Some(refusal) = standing {
                    worker.refused(refusal);
                }
            }
            // Nothing was ever carried out there.
            Ok(None) => {
                if let Some(refusal) = self.standing_refusal(key, &entry) {
                    self.report_without_worker(key, None, Some(&refusal));
                }
            }
            Err(Rejected::Ledger(error)) if error.is_transient() => {
                tracing::warn!(
                    application = %key.0, namespace = %key.1,
                    reason = error.reason().as_str(), error = %error_chain(&error),
                    "Failed to load a recorded plan; retrying"
                );
                self.unresumed.insert(key.clone(), Instant::now() + self.resume_delay());
                return false;
            }
            Err(error) => {
                if matches!(&error, Rejected::Ledger(LedgerError::Content { .. }))
                    && let Some(held) = &entry.record.held
                {
                    self.shared.outbox.need(key.clone(), held.blobs().copied().collect());
                    self.unresumed.insert(key.clone(), Instant::now() + CONTENT_ASKED_EVERY);
                }
                self.freeze(key, error.reason(), &error.text());
            }
        }
        true
    }

    /// Judges a recorded plan again by the current policy, without its ages.
    async fn load(&mut self, key: &Key, entry: &Entry) -> Result<Option<Order>, Rejected> {
        let record = &entry.record;
        if is_empty(record) {
            return Ok(None);
        }
        if let Some(held) = &record.held {
            let here = held.blobs().all(|digest| self.blobs.get(digest).is_some());
            if here {
                let bytes = self.blobs.of(held);
                let stored = self.shared.ledger.store_content(held, &bytes).await;
                stored.map_err(Rejected::Ledger)?;
            } else {
                self.load_blobs(held).await.map_err(Rejected::Ledger)?;
            }
        }
        let mut decision = self.judge_held(entry);
        if decision.as_ref().is_err_and(GateError::is_about_kinds) {
            self.discover().await;
            decision = self.judge_held(entry);
        }
        let order = match decision.map_err(Rejected::Gate)? {
            PushDecision::Admit(admitting) => {
                let AdmittedPush { admission, objects, held, .. } = *admitting;
                self.blobs.remove(held.blobs());
                self.know_inventory(key, &admission.admitted.objects).await;
                let is_open =
                    record.rollout.as_ref().is_some_and(|rollout| rollout.state.is_open());
                let soak = if is_open { self.stored_soak(key).await } else { None };
                Order::Run(Box::new(Run {
                    admission: Arc::new(admission),
                    objects: Arc::new(objects),
                    held,
                    origin: Origin::Loaded,
                    // An earlier process has repaired it, and later differences are not its concern.
                    repair: false,
                    timings: Timings::default(),
                    soak,
                    checks: SpeculativeDryRuns::default(),
                }))
            }
            PushDecision::Remove(removal) => {
                self.know_inventory(key, &[]).await;
                Order::Remove(removal)
            }
            PushDecision::NeedBlobs(..) | PushDecision::Repeated(_) => {
                let plan = record.held.as_ref().map_or_else(|| Digest::of(b""), |held| held.plan);
                return Err(Rejected::Ledger(LedgerError::Content { plan }));
            }
        };
        Ok(Some(order))
    }

    /// Returns the stored soak of a destination. Without it the soak begins again.
    async fn stored_soak(&self, key: &Key) -> Option<StoredSoak> {
        match progress::stored_soak(&self.shared.api, key).await {
            Ok(stored) => stored,
            Err(error) => {
                tracing::warn!(
                    application = %key.0, namespace = %key.1,
                    reason = error.reason().as_str(), error = %error_chain(&error),
                    "Failed to read the soak of a plan; it begins again"
                );
                None
            }
        }
    }

    fn judge_held(&self, entry: &Entry) -> Result<PushDecision, GateError> {
        let plan = entry.record.held.as_ref().map(|held| held.plan);
        self.judge_as(&entry.directive, plan, RepeatedDirective::Report, (Ages::Skip, None))
    }

    pub(super) fn standing_refusal(&self, key: &Key, entry: &Entry) -> Option<Refusal> {
        let refused = self.shared.refusals.newest(key.0.as_str(), key.1.as_str());
        refused.filter(|refusal| stands(refusal, entry))
    }

    /// Reports that an application was removed: the hub may not have received the report.
    pub(super) fn report_removed(&self, key: &Key, entry: &Entry) {
        let standing = self.standing_refusal(key, entry);
        self.report_without_worker(key, Some(&entry.record), standing.as_ref());
    }

    /// Reports a removal or a refusal at a destination without a worker.
    pub(super) fn report_without_worker(
        &self,
        key: &Key,
        gone: Option<&Record>,
        refusal: Option<&Refusal>,
    ) {
        let seen = self.position(key);
        self.shared.outbox.report(&report::report(&ReportContext {
            key,
            epoch: seen.map(|seen| seen.epoch),
            sequence: seen.map(|seen| seen.sequence),
            running: None,
            removal: gone.map(|_| RemovalStatus { left: 0, done: true, obstacle: None }),
            frozen: None,
            refusal,
            rollout: None,
            problem: None,
            heals_total: 0,
            now: jiff::Timestamp::now(),
        }));
    }

    fn freeze(&mut self, key: &Key, reason: Reason, text: &str) {
        let gone = self.shared.ledger.with_records(|records| records.get(key).is_some_and(is_gone));
        if gone {
            return;
        }
        let order = Order::Freeze { reason, message: message(text) };
        self.worker(key).order(order);
    }

    /// Looks for blobs in the stored content of this application, so that the hub need not send them again.
    /// Reads no other content, and nothing beyond the budget. Returns whether some were found.
    pub(super) async fn look_up(&mut self, key: &Key, wanted: &BTreeSet<Digest>) -> bool {
        let held: Vec<Held> = self.shared.ledger.with_records(|records| {
            let mine = records.values().filter(|record| record.application == key.0);
            mine.flat_map(Record::plans).cloned().collect()
        });
        let mut missing = wanted.clone();
        for held in held {
            if !held.blobs().any(|digest| missing.contains(digest)) {
                continue;
            }
            if !self.look_ups.has_tokens(Instant::now()) {
                break;
            }
            let loaded =
                self.shared.ledger.load_content(&held, |blob| missing.contains(blob)).await;
            match loaded {
                Ok(loaded) => {
                    self.look_ups.spend(loaded.iter().map(|bytes| bytes.len() as u64).sum());
                    for digest in self.take_in(loaded) {
                        missing.remove(&digest);
                    }
                }
                Err(error) => {
                    self.look_ups.spend(PIECE_BYTES_MAX as u64);
                    tracing::debug!(
                        reason = error.reason().as_str(),
                        "Stored content is not available"
                    );
                }
            }
        }
        missing.len() < wanted.len()
    }

    async fn load_blobs(&mut self, held: &Held) -> Result<(), LedgerError> {
        let loaded = self.shared.ledger.load_content(held, |_| true).await?;
        self.take_in(loaded);
        Ok(())
    }

    fn take_in(&mut self, loaded: Vec<Bytes>) -> Vec<Digest> {
        let taken = loaded.into_iter().map(|bytes| {
            let digest = Digest::of(&bytes);
            self.blobs.insert(digest, bytes);
            digest
        });
        taken.collect()
    }
}

/// Returns whether nothing was ever carried out: the first plan was refused after it was recorded.
pub(super) fn is_empty(record: &Record) -> bool {
    record.held.is_none() && !record.removed
}

/// Returns whether a removal is complete: only binding and floor are left.
pub(super) fn is_gone(record: &Record) -> bool {
    record.removed && record.is_idle()
}

/// Returns whether a refusal is newer than the recorded plan. A refusal with the record's sequence is newer if
/// the record was reverted: its `directive` is then not the one that it stores.
fn stands(refusal: &Refusal, entry: &Entry) -> bool {
    let recorded = Some(entry.record.sequence);
    let held = entry.directive_digest();
    refusal.sequence > recorded
        || (refusal.sequence == recorded && held != Some(entry.record.directive))
}

#[cfg(test)]
mod tests;
