//! A worker and its record, where they differ, at a fake API server.

use attest_common::basics::envelope::{DIRECTIVE_TYPE, seal};
use attest_common::basics::ids::Digest;
use attest_common::basics::keys::PrivateKey;
use attest_common::record::rollback::RollbackPoint;
use attest_common::record::{Held, Owned, Record};

use super::*;
use crate::admission::agent::tests::agent;
use crate::admission::gate::tests::removal;
use crate::cluster::account::Account;
use crate::cluster::client::object_path;
use crate::cluster::fake::FakeApi;
use crate::destination::command::{AddedInventory, Revert};
use crate::destination::event::Outcome;
use crate::destination::perform::withdraw::RIGHTS_BYTES;
use crate::destination::recording;
use crate::destination::work::{OVERTAKEN_WAIT, Suspended, Work};
use crate::ledger::records::tests::{object_key, record};
use crate::ledger::records::{ConfirmedPairs, Entry};

fn held(plan: &[u8]) -> Held {
    let digest = Digest::of(plan);
    let (release, content) = (digest, digest);
    Held { plan: digest, plan_digest: digest, release, receipts: Vec::new(), content }
}

fn order_of(payload: &[u8]) -> Vec<u8> {
    seal(DIRECTIVE_TYPE, payload, &[&PrivateKey::from_seed(&[1; 32]).unwrap()])
}

async fn worker(fake: &FakeApi, record: Record, directive: &[u8]) -> Worker {
    let shared = agent(fake).await.shared;
    let key = (record.application.clone(), record.namespace.clone());
    let entry = Entry { record, directive: directive.to_vec(), confirmed: ConfirmedPairs::new() };
    shared.ledger.update(&key, |_| Ok(Some(entry.clone()))).await.unwrap();
    Worker::new(shared, key)
}

impl Worker {
    fn finish(&mut self, outcome: Outcome) {
        self.feed(Event::Finished(Box::new(outcome)));
    }
}

async fn reverted(
    worker: &Worker,
    held: Held,
    directive: &[u8],
    inventory: AddedInventory,
) -> Outcome {
    let obstacle = object_key("ConfigMap", "a");
    let revert = Revert { held, obstacle, directive: Digest::of(directive), inventory };
    worker.performer.begin(Request::Revert(revert), None).await
}

fn account(worker: &Worker) -> Account {
    Account::new(&worker.key.0, &worker.key.1, "attest-applications")
}

/// Returns which objects the API server has after the first plan of a destination was refused.
async fn rights_after_a_first_plan(inventory: Vec<Owned>, other: Option<Record>) -> [bool; 3] {
    let fake = FakeApi::start().await;
    let first = Record {
        held: Some(held(b"plan")),
        rollback_point: RollbackPoint::before(None, &held(b"plan")),
        inventory,
        ..record()
    };
    let mut worker = worker(&fake, first, &order_of(b"first")).await;
    let (api, account) = (worker.shared.api.clone(), account(&worker));
    account.prepare(&api).await.unwrap();
    if let Some(record) = other {
        let key = (record.application.clone(), record.namespace.clone());
        let entry = Entry { record, directive: Vec::new(), confirmed: ConfirmedPairs::new() };
        worker.shared.ledger.update(&key, |_| Ok(Some(entry.clone()))).await.unwrap();
    }
    worker.state.work = Work::Reverting(account.clone());
    let turned_back = reverted(&worker, held(b"plan"), b"first", AddedInventory::Keep).await;
    let before = worker.shared.ledger.writes().tokens();
    worker.finish(turned_back);
    assert_eq!(worker.shared.ledger.writes().tokens(), before - i128::from(RIGHTS_BYTES));
    while let Some(done) = worker.flights.next().await {
        worker.finish(done);
    }

    let path = |name: &str| {
        let namespace = Some(account.destination.as_str());
        object_path("rbac.authorization.k8s.io/v1", "rolebindings", namespace, name)
    };
    let own = path(&account.name);
    let read = path(crate::SPOKE_NAME);
    let namespace = object_path("v1", "namespaces", None, account.destination.as_str());
    let mut there = [true; 3];
    for (there, path) in there.iter_mut().zip([own, read, namespace]) {
        *there = api.get_optional(&path).await.unwrap().is_some();
    }
    there
}

#[tokio::test]
async fn rights_that_were_given_for_a_first_plan_go_when_it_is_refused_unwritten() {
    let ran =
        Record { application: "other".parse().unwrap(), held: Some(held(b"ran")), ..record() };
    let idle = Record { held: None, inventory: Vec::new(), ..ran.clone() };
    let perhaps = record().inventory;
    assert!(!perhaps.is_empty());

    assert_eq!(rights_after_a_first_plan(vec![], None).await, [false, false, true]);
    assert_eq!(rights_after_a_first_plan(vec![], Some(idle)).await, [false, false, true]);
    assert_eq!(rights_after_a_first_plan(vec![], Some(ran)).await, [false, true, true]);
    // A process that ended may have written it: the rights to delete it stay.
    assert_eq!(rights_after_a_first_plan(perhaps, None).await, [true, true, true]);
}

#[tokio::test]
async fn a_plan_that_is_refused_unwritten_leaves_the_record_of_what_ran_and_asks_for_it() {
    let fake = FakeApi::start().await;
    let ran = Record { held: Some(held(b"ran")), ..record() };
    let mut inventory = ran.inventory.clone();
    let key = object_key("ConfigMap", "new");
    inventory.push(Owned {
        key,
        version: "v1".to_owned(),
        uid: None,
        preexisting: false,
        orphan: false,
        wave: 0,
    });
    let refused = Record {
        held: Some(held(b"refused")),
        rollback_point: RollbackPoint::before(Some((&ran, b"order")), &held(b"refused")),
        inventory,
        ..ran.clone()
    };
    let mut worker = worker(&fake, refused, &order_of(b"newer")).await;
    worker.state.work = Work::Reverting(account(&worker));

    let outcome = reverted(&worker, held(b"refused"), b"newer", AddedInventory::Drop).await;
    worker.finish(outcome);

    let entry = worker.shared.ledger.entry(&worker.key).unwrap();
    assert_eq!((entry.record, &entry.directive[..]), (ran, &b"order"[..]));
    assert_eq!(worker.shared.reloads.requested().await, [worker.key.clone()].into());
    assert!(
        matches!(worker.state.work, Work::Reverting(_)),
        "nothing is told before what ran is loaded"
    );
}

#[tokio::test]
async fn a_worker_whose_record_holds_something_newer_gives_way_unless_an_order_comes_at_once() {
    let fake = FakeApi::start().await;
    // A removal is being carried out here; another process has admitted a release since.
    let newer = Record { held: Some(held(b"newer")), removed: false, ..record() };
    let mut worker = worker(&fake, newer, b"order").await;
    let outcome = worker.performer.begin(Request::RecordRemoved, None).await;
    worker.finish(outcome);
    assert!(matches!(worker.state.work, Work::Overtaken { .. }));

    worker.tick();
    assert!(!matches!(worker.state.work, Work::Frozen { .. }), "an order may be on its way");
    let since = Instant::now().checked_sub(OVERTAKEN_WAIT).unwrap();
    worker.state.work = Work::Overtaken { since, suspended: Suspended::Nothing };
    worker.tick();

    let Work::Frozen { reason, .. } = &worker.state.work else { panic!("not frozen") };
    assert_eq!(reason.as_str(), "RecordConflict");
    assert_eq!(worker.shared.reloads.requested().await, [worker.key.clone()].into());
    let entry = worker.shared.ledger.entry(&worker.key).unwrap();
    assert_eq!(entry.record.inventory.len(), 1, "nothing newer is overwritten");
}

#[tokio::test]
async fn a_refused_plan_that_was_ordered_again_meanwhile_is_left_to_the_newer_order() {
    let fake = FakeApi::start().await;
    let ran = Record { held: Some(held(b"ran")), ..record() };
    let again = Record {
        held: Some(held(b"plan")),
        rollback_point: RollbackPoint::before(Some((&ran, b"order")), &held(b"plan")),
        ..ran
    };
    let mut worker = worker(&fake, again.clone(), &order_of(b"newer")).await;
    worker.state.work = Work::Reverting(account(&worker));

    let outcome = reverted(&worker, held(b"plan"), b"older", AddedInventory::Drop).await;
    worker.finish(outcome);

    assert_eq!(worker.shared.ledger.entry(&worker.key).unwrap().record, again);
    assert_eq!(worker.shared.reloads.requested().await, [worker.key.clone()].into());
}

#[tokio::test]
async fn what_ran_is_asked_for_also_when_the_record_had_gone_back_to_it_already() {
    let fake = FakeApi::start().await;
    let ran = Record { held: Some(held(b"ran")), ..record() };
    let mut worker = worker(&fake, ran, &order_of(b"order")).await;
    worker.state.work = Work::Reverting(account(&worker));
    let entry = worker.shared.ledger.entry(&worker.key);
    let is_of =
        |plan, order| recording::is_of(entry.as_ref(), Some(&held(plan)), Digest::of(order));
    assert!(is_of(b"ran", b"order"));
    assert!(!is_of(b"plan", b"order") && !is_of(b"ran", b"newer"), "such an order is old news");

    let outcome = reverted(&worker, held(b"plan"), b"newer", AddedInventory::Drop).await;
    worker.finish(outcome);

    assert_eq!(worker.shared.reloads.requested().await, [worker.key.clone()].into());
}

#[tokio::test]
async fn a_removal_that_waited_while_another_process_admitted_a_release_deletes_nothing() {
    let (directive, ordered) = removal();
    let fake = FakeApi::start().await;
    let newer = Record { held: Some(held(b"newer")), ..record() };
    let mut late = worker(&fake, newer, &order_of(b"newer")).await;

    late.take(Slot { order: Some(Order::Remove(Box::new(ordered))), ..Slot::default() });
    late.tick();

    assert!(late.state.work.removing().is_none() && late.flights.is_empty());
    assert_eq!(late.shared.reloads.requested().await, [late.key.clone()].into());

    let (fake, removed) = (FakeApi::start().await, Record { removed: true, ..record() });
    let mut in_time = worker(&fake, removed, &directive).await;
    let (_, ordered) = removal();
    in_time.take(Slot { order: Some(Order::Remove(Box::new(ordered))), ..Slot::default() });
    in_time.tick();
    assert!(in_time.state.work.removing().is_some() && !in_time.flights.is_empty());
}
