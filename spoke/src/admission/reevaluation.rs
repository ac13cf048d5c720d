//! Refused pushes that are judged again at the same sequence (S44): when the obstacle goes, and periodically.
//!
//! A push is refused by `gate`, before it is recorded, or by its worker, which reverts the record. Neither writes
//! anything at the hub while the refusal stays the same.

use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::keys::KeyId;
use attest_runtime::clock::random;

use super::agent::{Agent, RETRIES_MAX};
use super::gate::{AdmittedPush, PushOrder};
use super::refused::{Judgement, REEVALUATION, RefusedPush};
use super::rejected::Rejected;
use super::resume::is_empty;
use crate::cluster::apply::ApplyError;
use crate::destination::mailbox::{Reevaluation, RevertedPlan};
use crate::destination::speculative::SpeculativeDryRuns;
use crate::ledger::records::{Entry, Key};

impl Agent {
    /// Keeps a refused push, and schedules its next judgement.
    pub(super) fn keep_refused(&mut self, key: &Key, mut refused: RefusedPush) {
        let before = self.refused.remove(key).filter(|before| before.order >= refused.order);
        if let Some(before) = before {
            if before.order > refused.order {
                self.refused.insert(key.clone(), before);
                return;
            }
            // A directive that was only asked for has not been judged again yet.
            let judged = u32::from(before.directive.is_some());
            refused.attempts = before.attempts.saturating_add(judged);
            refused.obstacle = refused.obstacle.or(before.obstacle);
        } else if self.refused.len() >= RETRIES_MAX {
            return;
        }
        let now = Instant::now();
        refused.judged = now;
        refused.at = now + REEVALUATION.delay(refused.attempts, random());
        self.refused.insert(key.clone(), refused);
    }

    /// Returns whether this destination was refused with the same message before.
    pub(super) fn is_known(&self, key: &Key, error: &Rejected) -> bool {
        self.refused.get(key).is_some_and(|refused| refused.text.as_ref() == Some(&error.text()))
    }

    /// Forgets a refused push that is carried out, or is older than what is. One that waits for blobs stays, and so
    /// does one that is or may still be reverted.
    pub(super) fn forget_refused(&mut self, key: &Key) {
        let Some(entry) = self.shared.ledger.entry(key) else { return };
        if self.refused.get(key).is_some_and(|refused| is_over(refused.order, &entry)) {
            self.refused.remove(key);
        }
    }

    /// Forgets a refused push of another hub key than the one whose directive was admitted after it.
    pub(super) fn forget_refused_of_others(&mut self, key: &Key, hub_key: KeyId) {
        if self.refused.get(key).is_some_and(|refused| refused.order.hub_key != Some(hub_key)) {
            self.refused.remove(key);
        }
    }

    /// Forgets a refused push that only another document can follow, and the objects that it claims.
    pub(super) fn give_up_refused(&mut self, key: &Key, order: PushOrder) {
        if !self.refused.get(key).is_some_and(|refused| refused.order <= order) {
            return;
        }
        self.refused.remove(key);
        let handovers = &self.shared.handovers;
        self.shared.ledger.with_records(|records| handovers.keep_taken(key, records));
    }

    /// Returns whether the recorded directive was reverted, so that an older plan or none is in force.
    pub(super) fn is_reverted(&self, key: &Key) -> bool {
        self.shared.ledger.entry(key).is_some_and(|entry| is_reverted(&entry))
    }

    /// Asks for a directive that was reverted before this process began, to judge it again.
    pub(super) fn ask_for_reverted(&mut self, key: &Key, entry: &Entry) {
        if !is_reverted(entry) || self.refused.contains_key(key) {
            return;
        }
        let order = PushOrder::from(entry.record.position());
        self.keep_refused(key, RefusedPush::new(order, None, None));
    }

    /// Processes the request of a worker.
    pub(super) fn note_request(&mut self, key: &Key, request: Reevaluation, now: Instant) {
        let Reevaluation { reverted, is_due } = request;
        if let (Some(plan), Some(position)) = (reverted, self.position(key)) {
            let RevertedPlan { directive, plan, obstacle } = plan;
            let refused = RefusedPush::new(position.into(), Some(directive), Some(plan));
            self.keep_refused(key, RefusedPush { obstacle: Some(obstacle), ..refused });
        }
        if is_due && let Some(refused) = self.refused.get_mut(key) {
            refused.hasten(now);
        }
    }

    /// Judges every refused push again, as after a change of the policy.
    pub(super) fn hasten_all(&mut self, now: Instant) {
        self.refused.values_mut().for_each(|refused| refused.hasten(now));
    }

    /// Follows changes of records: a claimed object may have been released or taken.
    pub(super) fn follow_handovers(&mut self, now: Instant) {
        for owner in self.shared.handovers.owners() {
            if let Some(worker) = self.workers.get(&owner) {
                worker.wake();
            }
        }
        let released = self.shared.ledger.with_records(|records| {
            let claimants = self.shared.handovers.released(records);
            claimants.into_iter().filter(|key| self.refused.contains_key(key)).collect::<Vec<_>>()
        });
        for key in released {
            if let Some(refused) = self.refused.get_mut(&key) {
                refused.hasten(now);
            }
        }
    }

    /// Judges the refused pushes again that are due.
    pub(super) async fn reevaluate(&mut self, now: Instant) {
        let due = self.refused.iter().filter(|(_, refused)| refused.at <= now);
        let due: Vec<Key> = due.map(|(key, _)| key.clone()).collect();
        for key in due {
            self.reevaluate_one(&key).await;
        }
    }

    async fn reevaluate_one(&mut self, key: &Key) {
        self.forget_refused(key);
        let Some(refused) = self.refused.get_mut(key) else { return };
        // Whatever comes of it: a judgement that waits for the API server or for blobs is made again.
        refused.judged = Instant::now();
        refused.attempts = refused.attempts.saturating_add(1);
        refused.at = refused.judged + REEVALUATION.delay(refused.attempts, random());
        match refused.directive.clone() {
            Some(directive) => {
                let plan = refused.plan;
                self.decide(directive, plan, Judgement::Again).await;
            }
            // The hub sends the newest directive again.
            None => self.shared.outbox.need(key.clone(), Vec::new()),
        }
    }

    /// Returns whether the object for which a plan was reverted is still in the way, without a write.
    pub(super) async fn is_in_the_way(&self, admitting: &AdmittedPush) -> bool {
        let directive = &admitting.admission.ordered.directive;
        let key = (directive.application.clone(), directive.namespace.clone());
        let obstacle = self.refused.get(&key).and_then(|refused| refused.obstacle.as_ref());
        let entry = self.shared.ledger.entry(&key);
        let (Some(obstacle), Some(entry)) = (obstacle, entry) else { return false };
        if is_empty(&entry.record) {
            // The rights of its account were withdrawn with its first plan.
            return false;
        }
        let judged = (&*admitting.admission, &Arc::new(admitting.objects.clone()));
        let known = (&entry, &self.kinds());
        let answer =
            SpeculativeDryRuns::of_one(&self.shared.api, &key, judged, known, obstacle).await;
        matches!(answer, Err(ApplyError::FieldConflict { .. }))
    }

    /// Keeps a refusal that still holds. The hub receives it again if it has sent the push.
    pub(super) fn refuse_again(&mut self, key: &Key, judgement: Judgement) {
        if judgement != Judgement::Again {
            self.report_again(key);
        }
    }
}

/// Returns whether a push of this order is carried out and stays, or is older than the recorded one.
fn is_over(order: PushOrder, entry: &Entry) -> bool {
    let Some(seen) = order.admitted_in(&entry.record) else { return false };
    let is_in_force = seen == entry.record.position().into();
    let may_revert = is_in_force && (entry.record.rollback_point.is_some() || is_reverted(entry));
    seen > order || (seen == order && !may_revert)
}

/// Returns whether the record was reverted: its newest directive is not the one that it stores.
fn is_reverted(entry: &Entry) -> bool {
    entry.directive_digest() != Some(entry.record.directive)
}

#[cfg(test)]
mod tests {
    use attest_common::basics::ids::Name;

    use super::super::refused::REEVALUATION_EVERY;
    use super::*;
    use crate::admission::agent::tests::agent;
    use crate::cluster::fake::FakeApi;
    use crate::ledger::records::tests::{object_key, record};

    fn key() -> Key {
        (Name::new("web").unwrap(), Name::new("shop").unwrap())
    }

    fn order(sequence: u64) -> PushOrder {
        PushOrder { hub_key: Some(record().hub_key), epoch: 1, sequence }
    }

    fn refused(sequence: u64) -> RefusedPush {
        RefusedPush::new(order(sequence), Some(Vec::new()), None)
    }

    #[tokio::test]
    async fn a_refused_push_is_judged_again_within_five_minutes_and_ever_more_rarely() {
        let fake = FakeApi::start().await;
        let mut agent = agent(&fake).await;

        let mut waits = Vec::new();
        for _ in 0..8 {
            agent.keep_refused(&key(), refused(1));
            let kept = &agent.refused[&key()];
            waits.push(kept.at - kept.judged);
        }

        assert!(waits[0] <= REEVALUATION.base && waits[0] >= REEVALUATION.base * 8 / 10);
        assert!(waits.iter().all(|wait| *wait <= REEVALUATION.max), "{waits:?}");
        assert!(waits[7] >= REEVALUATION.max * 8 / 10, "{waits:?}");
    }

    #[tokio::test]
    async fn the_newest_refused_push_stays_and_starts_with_the_shortest_delay() {
        let fake = FakeApi::start().await;
        let mut agent = agent(&fake).await;

        agent.keep_refused(&key(), refused(4));
        agent.keep_refused(&key(), refused(4));
        agent.keep_refused(&key(), refused(3));
        assert_eq!((agent.refused[&key()].order, agent.refused[&key()].attempts), (order(4), 1));
        agent.keep_refused(&key(), refused(5));
        assert_eq!((agent.refused[&key()].order, agent.refused[&key()].attempts), (order(5), 0));
    }

    #[tokio::test]
    async fn a_push_that_has_expired_is_forgotten_and_claims_nothing_any_longer() {
        let fake = FakeApi::start().await;
        let mut agent = agent(&fake).await;
        let (object, owner) = (object_key("ConfigMap", "moves"), (key().1, key().1));
        let claims = [(object, owner.clone())];
        let handovers = agent.shared.handovers.clone();
        agent.shared.ledger.with_records(|records| handovers.claim(&key(), &claims, records));
        agent.keep_refused(&key(), refused(4));

        agent.give_up_refused(&key(), order(3));
        assert_eq!((agent.refused.len(), handovers.owners()), (1, [owner].into()), "an older one");
        agent.give_up_refused(&key(), order(4));
        assert!(agent.refused.is_empty() && handovers.owners().is_empty());
    }

    #[tokio::test]
    async fn an_obstacle_that_goes_hastens_the_judgement() {
        let fake = FakeApi::start().await;
        let mut agent = agent(&fake).await;
        agent.keep_refused(&key(), refused(1));
        let now = agent.refused[&key()].judged + REEVALUATION_EVERY;

        agent.note_request(&key(), Reevaluation { reverted: None, is_due: true }, now);

        assert_eq!(agent.refused[&key()].at, now);
    }
}
