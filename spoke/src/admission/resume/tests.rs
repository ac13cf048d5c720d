use attest_common::basics::envelope::{DIRECTIVE_TYPE, seal};
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::reason::{Reason, ReportedReason};

use super::*;
use crate::admission::agent::tests::{agent, reports};
use crate::cluster::fake::FakeApi;
use crate::ledger::records::ConfirmedPairs;
use crate::ledger::records::tests::{held, record};
use crate::rate_limits::LOOKED_UP_AT_ONCE_BYTES_MAX;
use attest_common::session::report::Phase;

fn entry(record: Record, payload: &[u8]) -> Entry {
    let key = PrivateKey::from_seed(&[1; 32]).unwrap();
    let directive = seal(DIRECTIVE_TYPE, payload, &[&key]);
    Entry { record, directive, confirmed: ConfirmedPairs::new() }
}

#[test]
fn a_release_refused_after_it_was_recorded_is_still_refused_after_a_restart() {
    let refused = |sequence| Refusal {
        reason: ReportedReason::parse("FieldConflict"),
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
    assert!(agent.blobs.get(&held.release).is_some() && agent.blobs.get(&held.content).is_none());

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
    fake.forbid("/api/v1/namespaces/attest-spoke/secrets");
    let keys: Vec<Key> =
        agent.shared.ledger.with_records(|records| records.keys().cloned().collect());

    for wait in [RESUME_RETRY.base, RESUME_RETRY.base * 2, RESUME_RETRY.base * 4] {
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
    assert_eq!(agent.resume_delay(), RESUME_RETRY.max);
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
    let (next, _) = agent.due(Instant::now() + RESUME_RETRY.base / 2);
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
    after.freeze(&key, Reason::NoTrustPolicy, "gone");
    assert!(after.workers.is_empty());
}
