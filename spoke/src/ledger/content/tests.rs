use serde_json::json;

use super::*;
use crate::cluster::fake::FakeApi;
use crate::ledger::index::Index;
use crate::metrics::Metrics;
use crate::rate_limits::WRITES;

fn random_bytes(length: usize, mut seed: u64) -> Bytes {
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect()
}

fn held(envelope: &Bytes, content: &Bytes) -> (Held, BTreeMap<Digest, Bytes>) {
    let (plan, content_digest) = (Digest::of(envelope), Digest::of(content));
    let held = Held {
        plan,
        plan_digest: Digest::of(b"signed"),
        release: plan,
        receipts: Vec::new(),
        content: content_digest,
    };
    (held, [(plan, envelope.clone()), (content_digest, content.clone())].into())
}

#[test]
fn content_that_could_not_be_loaded_again_is_refused_before_it_is_stored() {
    let envelope = Bytes::from_static(b"plan");
    let packed = |content: Bytes| {
        let (held, blobs) = held(&envelope, &content);
        pack(&held, &blobs)
    };
    assert_eq!(packed(random_bytes(2 * PIECE_BYTES_MAX, 1)).unwrap().len(), 1 + 3);

    let zeros = Bytes::from(vec![0; usize::try_from(CONTENT_BYTES_MAX).unwrap()]);
    assert_eq!(packed(zeros).unwrap_err().reason().as_str(), "Limit");

    let incompressible = random_bytes(PIECE_BYTES_MAX * PIECES_MAX + 1, 2);
    assert_eq!(packed(incompressible).unwrap_err().reason().as_str(), "Limit");
}

#[tokio::test]
async fn the_same_rendering_in_another_envelope_is_written_once_and_stays_while_one_names_it() {
    let fake = FakeApi::start().await;
    let ledger = Ledger::load(fake.open().await, Metrics::new().unwrap(), 0).await.unwrap();
    let content = random_bytes(PIECE_BYTES_MAX * 2, 3);
    let (first, blobs) = held(&Bytes::from_static(b"plan"), &content);
    let kept = ledger.keep_content(&first);
    ledger.store_content(&first, &blobs).await.unwrap();
    let before = ledger.state().content.stored.clone();

    let (second, more) = held(&Bytes::from_static(b"plan, and noise"), &content);
    let kept_too = ledger.keep_content(&second);
    ledger.store_content(&second, &more).await.unwrap();

    let new: u64 = ledger
        .state()
        .content
        .stored
        .iter()
        .filter(|(name, _)| !before.contains_key(*name))
        .map(|(_, bytes)| bytes)
        .sum();
    assert!(new > 0 && new < 100, "{new}");
    drop(kept);
    ledger.drop_unused_content().await.unwrap();
    let loaded = ledger.load_content(&second, |_| true).await.unwrap();
    assert_eq!(loaded, [Bytes::from_static(b"plan, and noise"), content]);
    assert!(ledger.load_content(&first, |digest| *digest == first.plan).await.is_err());
    drop(kept_too);
    ledger.drop_unused_content().await.unwrap();
    assert!(ledger.state().content.stored.is_empty());
}

/// Creates that the API server was asked for.
fn creates(fake: &FakeApi) -> usize {
    fake.asked().iter().filter(|asked| **asked == collection()).count()
}

#[tokio::test]
async fn content_that_is_there_is_not_sent_again_and_all_that_is_sent_is_charged() {
    let fake = FakeApi::start().await;
    let open = async || Ledger::load(fake.open().await, Metrics::new().unwrap(), 0).await;
    let content = random_bytes(PIECE_BYTES_MAX, 4);
    let spent = |ledger: &Ledger| i128::from(WRITES.burst) - ledger.writes().tokens();
    let ledger = open().await.unwrap();
    let (first, blobs) = held(&Bytes::from_static(b"plan"), &content);
    fake.lose_answers(1);
    assert!(ledger.store_content(&first, &blobs).await.is_err());
    let (sent, charged) = (creates(&fake), spent(&ledger));
    assert!(charged > 0);

    ledger.store_content(&first, &blobs).await.unwrap();
    assert!(creates(&fake) > sent && spent(&ledger) > charged, "what became of it was unknown");
    let (sent, charged) = (creates(&fake), spent(&ledger));
    for noise in 0..20 {
        let (again, more) = held(&Bytes::from(format!("plan {noise}")), &content);
        ledger.store_content(&again, &more).await.unwrap();
    }
    assert_eq!(creates(&fake), sent + 20, "the envelopes");
    assert!(spent(&ledger) - charged < 20 * 100);

    let after = open().await.unwrap();
    after.store_content(&first, &blobs).await.unwrap();
    assert!(spent(&after) > i128::try_from(PIECE_BYTES_MAX).unwrap());
    let sent = creates(&fake);
    after.store_content(&first, &blobs).await.unwrap();
    assert_eq!(creates(&fake), sent);
}

#[tokio::test]
async fn content_that_somebody_deleted_is_stored_again_once_it_was_missed() {
    let fake = FakeApi::start().await;
    let ledger = Ledger::load(fake.open().await, Metrics::new().unwrap(), 0).await.unwrap();
    let (held, blobs) = held(&Bytes::from_static(b"plan"), &random_bytes(100, 5));
    ledger.store_content(&held, &blobs).await.unwrap();
    for name in [held.plan, held.content] {
        ledger.api().delete_own(&path(&content_secret(name, 0))).await.unwrap();
    }

    let missed = ledger.load_content(&held, |_| true).await.unwrap_err();
    ledger.store_content(&held, &blobs).await.unwrap();

    assert_eq!(missed.reason().as_str(), "ContentLost");
    assert!(ledger.load_content(&held, |_| true).await.is_ok());
}

#[tokio::test]
async fn content_whose_deletion_was_not_answered_is_stored_again() {
    let fake = FakeApi::start().await;
    let ledger = Ledger::load(fake.open().await, Metrics::new().unwrap(), 0).await.unwrap();
    let (held, blobs) = held(&Bytes::from_static(b"plan"), &random_bytes(100, 6));
    ledger.store_content(&held, &blobs).await.unwrap();
    fake.lose_answers(1);
    assert!(ledger.drop_unused_content().await.is_err());

    ledger.store_content(&held, &blobs).await.unwrap();

    assert!(ledger.load_content(&held, |_| true).await.is_ok());
}

#[test]
fn all_content_of_a_cluster_has_one_bound_and_what_is_there_counts_once() {
    let max = CONTENT_TOTAL_BYTES_MAX;
    let index = Index { stored: [("a-0".to_owned(), max - 10)].into(), ..Index::default() };
    let (old, new) = ("a-0".to_owned(), "b-0".to_owned());

    assert!(index.has_room([(&old, max), (&new, 10)].into_iter()));
    assert!(!index.has_room([(&new, 11)].into_iter()));
}

#[test]
fn content_of_a_plan_in_flight_is_not_unused() {
    let plan = Digest::of(b"plan");
    let name = content_secret(plan, 0);
    let mut index = Index::default();
    assert!(index.is_unused(&name, &BTreeSet::new()));
    assert!(!index.is_unused(&name, &BTreeSet::from([content_stem(plan)])));

    index.kept.insert(content_stem(plan), 1);
    assert!(!index.is_unused(&name, &BTreeSet::new()));
    assert!(index.is_unused("attest-content-other-0", &BTreeSet::new()));
}

#[test]
fn a_secret_that_does_not_tell_its_size_counts_as_full() {
    let list = serde_json::from_value(json!({"items": [
        {"metadata": {"name": "a-0", "annotations": {BYTES_ANNOTATION: "7"}}},
        {"metadata": {"name": "b-0"}},
    ]}))
    .unwrap();

    let sizes: Vec<u64> = Index::of(&list).stored.into_values().collect();
    assert_eq!(sizes, [7, PIECE_BYTES_MAX as u64]);
}
