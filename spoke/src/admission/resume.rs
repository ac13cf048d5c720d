//! What this cluster holds: brought back to work after a start or a change of the policy, judged anew. Asks no hub.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::ids::Digest;
use attest_common::basics::text::{error_chain, message};
use attest_common::record::{Held, Record};
use attest_common::session::report::{Refusal, Timings};
use attest_common::verify::Ages;
use bytes::Bytes;

use super::{Agent, RESUME_RETRY_MIN, RETRY_MAX, Rejected};
use crate::destination::status::{self, RemovalNow, Situation};
use crate::destination::{Checks, Order, Run};
use crate::gate::{self, Admitting, GateError, Verdict};
use crate::ledger::content::PIECE_BYTES_MAX;
use crate::ledger::{Entry, LedgerError};
use crate::outbox::Key;

/// How often the hub is asked for held content that is not stored any more. A question can be lost with
/// its session, and until it is answered nothing of the application is put back.
const CONTENT_ASKED_EVERY: Duration = Duration::from_secs(5 * 60);

impl Agent {
    /// Brings every held destination back to work, or stops all when the policy does not allow any.
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

    /// Brings these back to work. One that finds the API server away speaks for all; but the others have
    /// their turn before it has its next, so that whatever ails it alone holds up nobody.
    pub(super) async fn resume_each(&mut self, keys: Vec<Key>) {
        let mut away = false;
        for key in keys {
            if away {
                self.unresumed.insert(key, Instant::now() + self.resume_wait / 2);
                continue;
            }
            self.unresumed.remove(&key);
            away = !self.resume(&key).await;
            if !away {
                self.resume_wait = RESUME_RETRY_MIN;
            }
        }
        if away {
            self.resume_wait = (self.resume_wait * 2).min(RETRY_MAX);
        }
    }

    /// Brings a held destination back to work. False when the API server is away; then it is tried again.
    pub(super) async fn resume(&mut self, key: &Key) -> bool {
        let Some(entry) = self.shared.ledger.entry(key) else { return true };
        if is_gone(&entry.record) {
            self.say_gone(key, &entry);
            return true;
        }
        match self.load(key, &entry).await {
            Ok(Some(order)) => {
                let standing = self.standing(key, &entry);
                let worker = self.worker(key);
                worker.order(order);
                if let Some(refusal) = standing {
                    worker.refused(refusal);
                }
            }
            // Nothing was ever admitted there.
            Ok(None) => {
                if let Some(refusal) = self.standing(key, &entry) {
                    self.say_without_worker(key, None, Some(&refusal));
                }
            }
            Err(Rejected::Ledger(error)) if error.is_transient() => {
                tracing::warn!(
                    application = %key.0, namespace = %key.1,
                    reason = error.reason(), error = %error_chain(&error),
                    "Cannot load what is held; trying again"
                );
                self.unresumed.insert(key.clone(), Instant::now() + self.resume_wait);
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

    /// Judges again what this cluster holds, by the policy as it is now; only times do not count.
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
        let mut verdict = self.judge_held(entry);
        if verdict.as_ref().is_err_and(GateError::is_about_kinds) {
            self.discover().await;
            verdict = self.judge_held(entry);
        }
        let order = match verdict.map_err(Rejected::Gate)? {
            Verdict::Admit(admitting) => {
                let Admitting { admission, held } = *admitting;
                self.blobs.remove(held.blobs());
                self.know_inventory(key, &admission.admitted.objects).await;
                Order::Run(Box::new(Run {
                    admission: Arc::new(admission),
                    held,
                    resumed: true,
                    timings: Timings::default(),
                    checks: Checks::default(),
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

    fn judge_held(&self, entry: &Entry) -> Result<Verdict, GateError> {
        let plan = entry.record.held.as_ref().map(|held| held.plan);
        self.judge_as(&entry.directive, plan, Ages::Skip, None)
    }

    pub(super) fn standing(&self, key: &Key, entry: &Entry) -> Option<Refusal> {
        let refused = self.shared.refusals.newest(key.0.as_str(), key.1.as_str());
        refused.filter(|refusal| stands(refusal, entry))
    }

    /// That an application was taken away, again: who asked may not have heard it.
    pub(super) fn say_gone(&self, key: &Key, entry: &Entry) {
        let standing = self.standing(key, entry);
        self.say_without_worker(key, Some(&entry.record), standing.as_ref());
    }

    /// Reports on a destination where nothing runs: what was removed there, or refused.
    pub(super) fn say_without_worker(
        &self,
        key: &Key,
        gone: Option<&Record>,
        refusal: Option<&Refusal>,
    ) {
        let seen = self.sequence(key);
        self.shared.outbox.report(&status::report(&Situation {
            key,
            epoch: seen.map(|(epoch, _)| epoch),
            sequence: seen.map(|(_, sequence)| sequence),
            running: None,
            removal: gone.map(|_| RemovalNow { left: 0, done: true, obstacle: None }),
            frozen: None,
            refusal,
            problem: None,
            heals_total: 0,
            now: jiff::Timestamp::now(),
        }));
    }

    fn freeze(&mut self, key: &Key, reason: &str, text: &str) {
        let gone = self.shared.ledger.with_records(|records| records.get(key).is_some_and(is_gone));
        if gone {
            return;
        }
        let order = Order::Freeze { reason: reason.to_owned(), message: message(text) };
        self.worker(key).order(order);
    }

    /// Looks for blobs in what is stored for this application: the hub need not send them again. Reads
    /// nothing else, and nothing beyond the budget. True when some were found.
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
            if !self.look_ups.has_left(Instant::now()) {
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
                    tracing::debug!(reason = error.reason(), "Stored content is not at hand");
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

/// True when nothing was ever carried out: the first plan was refused after it was recorded.
pub(super) fn is_empty(record: &Record) -> bool {
    record.held.is_none() && !record.removed
}

/// True when a removal was carried out to its end: only binding and floor are left.
pub(super) fn is_gone(record: &Record) -> bool {
    record.removed && record.is_idle()
}

/// Whether a refusal is newer than what is held. One with the record's own sequence is when the
/// record had to go back: it then names a directive that is not the one it holds.
fn stands(refusal: &Refusal, entry: &Entry) -> bool {
    let recorded = Some(entry.record.sequence);
    let held = gate::payload_digest(&entry.directive);
    refusal.sequence > recorded
        || (refusal.sequence == recorded && held != Some(entry.record.directive))
}

#[cfg(test)]
mod tests {
    use attest_common::basics::envelope::{DIRECTIVE_TYPE, seal};
    use attest_common::basics::keys::PrivateKey;

    use super::*;
    use crate::agent::tests::{agent, reports};
    use crate::cluster::fake::FakeApi;
    use crate::ledger::ConfirmedPairs;
    use crate::ledger::tests::{held, record};
    use crate::pace::LOOKED_UP_AT_ONCE_BYTES_MAX;
    use attest_common::session::report::Phase;

    fn entry(record: Record, payload: &[u8]) -> Entry {
        let key = PrivateKey::from_seed(&[1; 32]).unwrap();
        let directive = seal(DIRECTIVE_TYPE, payload, &[&key]);
        Entry { record, directive, confirmed: ConfirmedPairs::new() }
    }

    #[test]
    fn a_release_refused_after_it_was_recorded_is_still_refused_after_a_restart() {
        let refused = |sequence| Refusal {
            reason: "FieldConflict".to_owned(),
            message: String::new(),
            sequence: Some(sequence),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        let newest = Record { directive: Digest::of(b"seventh"), ..record() };
        let (admitted, gone_back) = (entry(newest.clone(), b"seventh"), entry(newest, b"sixth"));

        assert!(!stands(&refused(7), &admitted) && !stands(&refused(6), &gone_back));
        assert!(stands(&refused(8), &admitted) && stands(&refused(7), &gone_back));
    }

    #[tokio::test]
    async fn stored_content_is_read_only_for_what_it_holds_and_within_the_budget() {
        let fake = FakeApi::start().await;
        let mut agent = agent(&fake).await;
        let bytes = |text: &'static [u8]| (Digest::of(text), Bytes::from_static(text));
        let held = held(b"plan");
        let blobs = [bytes(b"plan"), bytes(b"release"), bytes(b"content")].into();
        agent.shared.ledger.store_content(&held, &blobs).await.unwrap();
        let record = Record { held: Some(held.clone()), ..record() };
        let key = (record.application.clone(), record.namespace.clone());
        let write = |_| Ok(Some(entry(record.clone(), b"order")));
        agent.shared.ledger.update(&key, write).await.unwrap();
        let asked = || fake.asked().len();

        let before = asked();
        assert!(!agent.look_up(&key, &[Digest::of(b"never heard of")].into()).await);
        assert_eq!(asked(), before, "nothing is read for a digest that no record names");
        assert!(agent.look_up(&key, &[held.plan].into()).await);
        assert_eq!(asked(), before + 1, "the rendering is not asked for");
        assert!(
            agent.blobs.get(&held.release).is_some() && agent.blobs.get(&held.content).is_none()
        );

        agent.look_ups.spend(2 * LOOKED_UP_AT_ONCE_BYTES_MAX);
        assert!(!agent.look_up(&key, &[held.content].into()).await);
        assert_eq!(asked(), before + 1);
    }

    #[tokio::test]
    async fn of_many_destinations_that_cannot_be_loaded_one_asks_ever_more_rarely() {
        let fake = FakeApi::start().await;
        let mut agent = agent(&fake).await;
        let name = |name: &str| attest_common::basics::ids::Name::new(name).unwrap();
        for namespace in ["one", "two", "three"] {
            let held = Some(held(b"plan"));
            let record = Record { held, namespace: name(namespace), ..record() };
            let key = (record.application.clone(), record.namespace.clone());
            let write = |_| Ok(Some(entry(record.clone(), b"order")));
            agent.shared.ledger.update(&key, write).await.unwrap();
        }
        fake.forbid("/api/v1/namespaces/attest-system/secrets");
        let keys: Vec<Key> =
            agent.shared.ledger.with_records(|records| records.keys().cloned().collect());

        for wait in [RESUME_RETRY_MIN, RESUME_RETRY_MIN * 2, RESUME_RETRY_MIN * 4] {
            let (before, begun) = (fake.asked().len(), Instant::now());
            agent.resume_each(keys.clone()).await;
            // The one that asked: two packs of content, asked for at a time.
            assert!(fake.asked().len() <= before + 2);
            assert_eq!(agent.unresumed.len(), 3);
            assert!(agent.unresumed.values().all(|at| *at >= begun + wait / 2));
        }
        for _ in 0..10 {
            agent.resume_each(keys.clone()).await;
        }
        assert_eq!(agent.resume_wait, RETRY_MAX);
    }

    #[tokio::test]
    async fn a_destination_that_alone_cannot_be_loaded_holds_up_no_other() {
        let fake = FakeApi::start().await;
        let mut agent = agent(&fake).await;
        let mut keys = Vec::new();
        for (namespace, plan) in [("bad", &b"bad"[..]), ("good", b"good"), ("other", b"other")] {
            let namespace = attest_common::basics::ids::Name::new(namespace).unwrap();
            let record = Record { held: Some(held(plan)), namespace, ..record() };
            let key = (record.application.clone(), record.namespace.clone());
            let write = |_| Ok(Some(entry(record.clone(), b"order")));
            agent.shared.ledger.update(&key, write).await.unwrap();
            keys.push(key);
        }
        let hex = Digest::of(b"bad").hex();
        agent.resume(&keys[0]).await;
        let asked = fake.asked();
        let its_own = asked.iter().find(|path| path.contains(&hex[..16])).unwrap();
        fake.forbid(its_own);

        agent.resume_each(keys.clone()).await;
        let (next, _) = agent.due(Instant::now() + RESUME_RETRY_MIN / 2);
        assert_eq!(next, keys[1..]);
        agent.shared.outbox.take_needs();
        agent.resume_each(next).await;

        // Nothing is stored for them here, and so they ask the hub.
        let asked: Vec<Key> = agent.shared.outbox.take_needs().into_keys().collect();
        assert_eq!(asked, keys[1..]);
    }

    #[tokio::test]
    async fn content_that_is_lost_is_asked_for_again_when_the_question_was_lost_too() {
        let fake = FakeApi::start().await;
        let mut agent = agent(&fake).await;
        let held = held(b"plan");
        let record = Record { held: Some(held.clone()), ..record() };
        let key = (record.application.clone(), record.namespace.clone());
        let write = |_| Ok(Some(entry(record.clone(), b"order")));
        agent.shared.ledger.update(&key, write).await.unwrap();
        let wanted: Vec<Digest> = held.blobs().copied().collect();

        for _ in 0..2 {
            agent.resume(&key).await;
            let asked = agent.shared.outbox.take_needs();
            assert_eq!(asked, [(key.clone(), wanted.clone())].into());
            let (due, _) = agent.due(Instant::now() + CONTENT_ASKED_EVERY);
            assert_eq!(due, std::slice::from_ref(&key));
        }
    }

    #[tokio::test]
    async fn what_was_removed_is_reported_as_removed_after_a_restart_whatever_the_policy_says() {
        let fake = FakeApi::start().await;
        let gone = Record { removed: true, inventory: Vec::new(), ..record() };
        let key = (gone.application.clone(), gone.namespace.clone());
        let before = agent(&fake).await;
        let write = |_| Ok(Some(entry(gone.clone(), b"remove")));
        before.shared.ledger.update(&key, write).await.unwrap();

        let mut after = agent(&fake).await;
        after.resume(&key).await;

        let told = reports(&after);
        assert_eq!((told.len(), told[0].phase, told[0].sequence), (1, Phase::Removed, Some(7)));
        after.freeze(&key, "NoTrustPolicy", "gone");
        assert!(after.workers.is_empty());
    }
}
