//! What this cluster holds: brought back to work after a start or a change of the policy, judged anew. Asks no hub.

use std::collections::BTreeSet;
use std::time::Instant;

use attest_common::ids::Digest;
use attest_common::record::Held;
use attest_common::report::{Timings, error_chain, message};
use attest_common::verify::Ages;

use super::{Agent, IDLE, RETRY_MIN, Rejected};
use crate::destination::{Order, Run};
use crate::gate::{self, Admitting, GateError, Verdict, View};
use crate::ledger::{Entry, LedgerError};
use crate::outbox::Key;

impl Agent {
    /// Brings every held destination back to work, or stops all when the policy does not allow any.
    pub(super) async fn resume_all(&mut self) {
        let trust = self.trust.borrow().clone();
        let keys: Vec<Key> = self.shared.ledger.with_records(|r| r.keys().cloned().collect());
        self.readiness.set(trust.loaded().is_ok());
        if let Err(error) = trust.bound(&self.cluster) {
            for key in keys {
                self.freeze(&key, error.reason(), &error_chain(&error));
            }
            return;
        }
        for key in keys {
            self.resume(&key).await;
        }
    }

    pub(super) async fn resume(&mut self, key: &Key) {
        let Some(entry) = self.shared.ledger.entry(key) else { return };
        match self.load(key, &entry).await {
            Ok(Some(order)) => {
                let worker = self.worker(key);
                worker.order(order);
                let refused = self.shared.refusals.newest(key.0.as_str(), key.1.as_str());
                // What was refused before it was admitted does not stand any more.
                let standing = refused.filter(|r| r.sequence > Some(entry.record.sequence));
                if let Some(refusal) = standing {
                    worker.refused(refusal);
                }
            }
            Ok(None) => {}
            Err(Rejected::Ledger(error)) if error.is_transient() => {
                tracing::warn!(
                    application = %key.0, namespace = %key.1,
                    reason = error.reason(), error = %error_chain(&error),
                    "Cannot load what is held; trying again"
                );
                self.unresumed.insert(key.clone(), Instant::now() + RETRY_MIN * 4);
            }
            Err(error) => {
                if matches!(&error, Rejected::Ledger(LedgerError::Content { .. }))
                    && let Some(held) = &entry.record.held
                {
                    self.shared.outbox.need(key.clone(), held.blobs().copied().collect());
                    self.unresumed.insert(key.clone(), Instant::now() + IDLE);
                }
                self.freeze(key, error.reason(), &error.text());
            }
        }
    }

    /// Judges again what this cluster holds, by the policy as it is now; only times do not count.
    async fn load(&mut self, key: &Key, entry: &Entry) -> Result<Option<Order>, Rejected> {
        let record = &entry.record;
        let to_remove = record.removed && !record.inventory.is_empty();
        if record.held.is_none() && !to_remove {
            return Ok(None);
        }
        if let Some(held) = &record.held {
            let here = held.blobs().all(|digest| self.blobs.get(digest).is_some());
            if here {
                let bytes = self.blobs.of(held);
                let stored = self.shared.ledger.store_content(held.plan, &bytes).await;
                stored.map_err(Rejected::Ledger)?;
            } else {
                self.load_blobs(held).await.map_err(Rejected::Ledger)?;
            }
        }
        let mut verdict = self.judge_held(key, entry);
        if verdict.as_ref().is_err_and(GateError::is_about_kinds) {
            self.discover().await;
            verdict = self.judge_held(key, entry);
        }
        let order = match verdict.map_err(Rejected::Gate)? {
            Verdict::Admit(admitting) => {
                let Admitting { admission, held } = *admitting;
                self.blobs.remove(held.blobs());
                self.know_inventory(key, &admission.admitted.objects).await;
                Order::Run(Box::new(Run {
                    admission,
                    held,
                    resumed: true,
                    former: None,
                    kept: None,
                    timings: Timings::default(),
                }))
            }
            Verdict::Remove(removal) => {
                self.know_inventory(key, &[]).await;
                Order::Remove(removal)
            }
            Verdict::Need(..) | Verdict::Again(_) => {
                let plan = record.held.as_ref().map_or_else(|| Digest::of(b""), |held| held.plan);
                return Err(Rejected::Ledger(LedgerError::Content { plan }));
            }
        };
        Ok(Some(order))
    }

    fn judge_held(&self, key: &Key, entry: &Entry) -> Result<Verdict, GateError> {
        let trust = self.trust.borrow().clone();
        let policy = trust.bound(&self.cluster).map_err(GateError::Trust)?;
        let kinds = self.kinds();
        let records = self.shared.ledger.with_records(|records| {
            gate::records_at(records, key, &entry.directive).unwrap_or_else(|| records.clone())
        });
        let view = View {
            policy,
            cluster: &self.cluster,
            records: &records,
            kinds: &kinds,
            now: jiff::Timestamp::now(),
            ages: Ages::Skip,
        };
        let plan = entry.record.held.as_ref().map(|held| held.plan);
        gate::judge(&entry.directive, plan, |digest| self.blobs.get(digest).cloned(), &view)
    }

    fn freeze(&mut self, key: &Key, reason: &str, text: &str) {
        let order = Order::Freeze { reason: reason.to_owned(), message: message(text) };
        self.worker(key).order(order);
    }

    /// Blobs of what runs here already: the hub need not send them again.
    pub(super) async fn look_up(&mut self, key: &Key) {
        let held: Vec<Held> = self.shared.ledger.with_records(|records| {
            let mine = records.values().filter(|record| record.application == key.0);
            mine.flat_map(|r| r.held.iter().chain(&r.last_good)).cloned().collect()
        });
        let mut seen = BTreeSet::new();
        for held in held.iter().filter(|held| seen.insert(held.plan)) {
            if let Err(error) = self.load_blobs(held).await {
                tracing::debug!(reason = error.reason(), "Stored content is not at hand");
            }
        }
    }

    async fn load_blobs(&mut self, held: &Held) -> Result<(), LedgerError> {
        for bytes in self.shared.ledger.load_content(held.plan).await? {
            self.blobs.insert(Digest::of(&bytes), bytes);
        }
        Ok(())
    }
}
