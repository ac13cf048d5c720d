//! A worker and its record, where they part: at an API server that can be told what to hold.

use attest_common::envelope::{DIRECTIVE_TYPE, seal};
use attest_common::ids::Digest;
use attest_common::keys::PrivateKey;
use attest_common::record::{Held, Owned, Record};

use super::*;
use crate::agent::tests::agent;
use crate::cluster::fake::FakeApi;
use crate::ledger::tests::{object_key, record};
use crate::ledger::{ConfirmedPairs, Entry};

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

#[tokio::test]
async fn a_plan_that_is_refused_unwritten_leaves_the_record_of_what_ran_and_asks_for_it() {
    let fake = FakeApi::start().await;
    let ran = Record { held: Some(held(b"ran")), ..record() };
    let mut inventory = ran.inventory.clone();
    let key = object_key("ConfigMap", "new");
    inventory.push(Owned { key, version: "v1".to_owned(), uid: None, met: false });
    let refused = Record {
        held: Some(held(b"refused")),
        former: Record::way_back(Some((&ran, b"order")), &held(b"refused")),
        inventory,
        ..ran.clone()
    };
    let mut worker = worker(&fake, refused, &order_of(b"newer")).await;
    worker.turning_back = true;

    let order = (held(b"refused"), Digest::of(b"newer"));
    let job = recording::turned_back(&worker.shared.ledger, &worker.key, order, false);
    worker.finish(job.await);

    let entry = worker.shared.ledger.entry(&worker.key).unwrap();
    assert_eq!((entry.record, &entry.directive[..]), (ran, &b"order"[..]));
    assert_eq!(worker.shared.resumes.asked().await, [worker.key.clone()].into());
    assert!(worker.turning_back, "nothing is told before what ran is loaded");
}

#[tokio::test]
async fn a_worker_whose_record_holds_something_newer_gives_way_unless_an_order_comes_at_once() {
    let fake = FakeApi::start().await;
    // A removal is being carried out here; another process has admitted a release since.
    let newer = Record { held: Some(held(b"newer")), removed: false, ..record() };
    let mut worker = worker(&fake, newer, b"order").await;
    let job = recording::removed(&worker.shared.ledger, &worker.key);
    worker.finish(job.await);
    assert!(worker.overtaken.is_some());

    worker.advance();
    assert!(worker.frozen.is_none(), "an order may be on its way");
    worker.overtaken = Instant::now().checked_sub(OVERTAKEN_WAIT);
    worker.advance();

    assert_eq!(worker.frozen.as_ref().unwrap().0, "RecordOvertaken");
    assert_eq!(worker.shared.resumes.asked().await, [worker.key.clone()].into());
    let entry = worker.shared.ledger.entry(&worker.key).unwrap();
    assert_eq!(entry.record.inventory.len(), 1, "nothing newer is overwritten");
}

#[tokio::test]
async fn a_refused_plan_that_was_ordered_again_meanwhile_is_left_to_the_newer_order() {
    let fake = FakeApi::start().await;
    let ran = Record { held: Some(held(b"ran")), ..record() };
    let again = Record {
        held: Some(held(b"plan")),
        former: Record::way_back(Some((&ran, b"order")), &held(b"plan")),
        ..ran
    };
    let mut worker = worker(&fake, again.clone(), &order_of(b"newer")).await;
    worker.turning_back = true;

    let order = (held(b"plan"), Digest::of(b"older"));
    let job = recording::turned_back(&worker.shared.ledger, &worker.key, order, false);
    worker.finish(job.await);

    assert_eq!(worker.shared.ledger.entry(&worker.key).unwrap().record, again);
    assert_eq!(worker.shared.resumes.asked().await, [worker.key.clone()].into());
}

#[tokio::test]
async fn what_ran_is_asked_for_also_when_the_record_had_gone_back_to_it_already() {
    let fake = FakeApi::start().await;
    let ran = Record { held: Some(held(b"ran")), ..record() };
    let mut worker = worker(&fake, ran, &order_of(b"order")).await;
    worker.turning_back = true;
    let entry = worker.shared.ledger.entry(&worker.key);
    let is_of = |plan, order| recording::is_of(entry.as_ref(), &held(plan), Digest::of(order));
    assert!(is_of(b"ran", b"order"));
    assert!(!is_of(b"plan", b"order") && !is_of(b"ran", b"newer"), "such an order is old news");

    let order = (held(b"plan"), Digest::of(b"newer"));
    let job = recording::turned_back(&worker.shared.ledger, &worker.key, order, false);
    worker.finish(job.await);

    assert_eq!(worker.shared.resumes.asked().await, [worker.key.clone()].into());
}
