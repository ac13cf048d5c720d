use attest_common::basics::ids::Name;
use attest_common::basics::keys::PrivateKey;
use attest_common::record::{Held, Owned};
use k8s_openapi::ByteString;

use super::*;
use crate::cluster::error::ApiError;
use crate::cluster::error::Details;
use crate::cluster::fake::FakeApi;

pub(crate) fn object_key(kind: &str, name: &str) -> ObjectKey {
    ObjectKey {
        group: String::new(),
        kind: kind.to_owned(),
        namespace: Some("shop".to_owned()),
        name: name.to_owned(),
    }
}

pub(crate) fn record() -> Record {
    Record {
        v: 1,
        application: Name::new("web").unwrap(),
        namespace: Name::new("shop").unwrap(),
        hub_key: PrivateKey::from_seed(&[1; 32]).unwrap().public().id(),
        epoch: 1,
        sequence: 7,
        directive: Digest::of(b"directive"),
        other_hub_keys: Vec::new(),
        binding: Some("https://git.example/web".to_owned()),
        floor: None,
        held: None,
        last_good: None,
        good: Vec::new(),
        inventory: vec![Owned {
            key: object_key("ConfigMap", "a"),
            version: "v1".to_owned(),
            uid: None,
            preexisting: false,
            orphan: false,
            wave: 0,
        }],
        removed: false,
        recorded_at: None,
        since: None,
        rollback_point: None,
        rollout: None,
    }
}

/// What a plan needs, by digests of nothing else.
pub(crate) fn held(plan: &[u8]) -> Held {
    Held {
        plan: Digest::of(plan),
        plan_digest: Digest::of(b"signed"),
        release: Digest::of(b"release"),
        receipts: Vec::new(),
        content: Digest::of(b"content"),
    }
}

#[test]
fn confirmed_pairs_stay_out_of_a_secret_that_would_be_too_large() {
    let pair = Confirmed {
        desired: Digest::of(b"d"),
        uid: "u".to_owned(),
        projected: Digest::of(b"p"),
        rewritten: Vec::new(),
    };
    let confirmed: ConfirmedPairs = [(object_key("ConfigMap", "a"), pair)].into();
    let with_pairs = |directive: Vec<u8>| {
        let entry = Entry { record: record(), directive, confirmed: confirmed.clone() };
        write("a", &entry, "1").unwrap().0.data.unwrap().contains_key(CONFIRMED_KEY)
    };

    assert!(with_pairs(b"envelope".to_vec()));
    assert!(!with_pairs(vec![b'x'; SECRET_BYTES_MAX]));
}

#[test]
fn an_inventory_is_admitted_only_with_room_for_what_will_be_learnt_of_it() {
    let of = |count: usize, uid: Option<String>| {
        let owned = |index| Owned {
            key: object_key("ConfigMap", &format!("{index:06}")),
            version: "v1".to_owned(),
            uid: uid.clone(),
            preexisting: false,
            orphan: false,
            wave: 0,
        };
        Record { inventory: (0..count).map(owned).collect(), ..record() }
    };
    let size = |count, uid| serde_json::to_vec(&of(count, uid)).unwrap().len();
    let each = size(2, None) - size(1, None);
    let count = (RECORD_BYTES_MAX - size(0, None)) / each;
    let uid = Some("3f2a1b0c-1111-2222-3333-444455556666".to_owned());
    assert!(to_json(&of(count, None)).is_ok());
    assert!(to_json(&of(count, uid.clone())).is_err());

    assert_eq!(check_room(&of(count, None)).unwrap_err().reason().as_str(), "Limit");

    let fewer = count / 2;
    assert!(check_room(&of(fewer, None)).is_ok() && to_json(&of(fewer, uid)).is_ok());
}

#[test]
fn a_destination_reads_back_from_its_secret() {
    let pair = Confirmed {
        desired: Digest::of(b"d"),
        uid: "u".to_owned(),
        projected: Digest::of(b"p"),
        rewritten: Vec::new(),
    };
    let entry = Entry {
        record: record(),
        directive: b"envelope".to_vec(),
        confirmed: [(object_key("ConfigMap", "a"), pair)].into(),
    };

    let (secret, _) = write("attest-destination-x", &entry, "41").unwrap();

    assert_eq!(read(&secret).unwrap(), (entry, "41".to_owned()));
}

#[test]
fn a_record_that_cannot_be_read_is_an_error_and_lost_pairs_are_not() {
    let entry = Entry { record: record(), directive: vec![], confirmed: BTreeMap::new() };
    let (mut secret, _) = write("attest-destination-x", &entry, "").unwrap();

    let put = |secret: &mut Secret, key: &str, bytes: &[u8]| {
        secret.data.as_mut().unwrap().insert(key.to_owned(), ByteString(bytes.to_vec()));
    };
    put(&mut secret, CONFIRMED_KEY, b"!");
    assert!(read(&secret).is_ok());
    put(&mut secret, RECORD_KEY, b"{\"v\":1}");
    assert_eq!(read(&secret).unwrap_err().reason().as_str(), "RecordUnreadable");
}

#[test]
fn a_write_without_rights_or_a_good_token_is_tried_again() {
    let transient = |code: u16| {
        let error = ApiError::Status {
            verb: "update",
            path: String::new(),
            code,
            status_reason: String::new(),
            message: String::new(),
            details: Details::default(),
        };
        LedgerError::Api(error).is_transient()
    };

    assert!([401, 403, 429, 500, 503].into_iter().all(transient));
    assert!(![400, 404, 409, 413, 422].into_iter().any(transient));
}

#[tokio::test]
async fn lost_records_are_missed_and_the_content_they_named_is_kept() {
    let fake = FakeApi::start().await;
    let api = fake.open().await;
    let metrics = Metrics::new().unwrap();
    let recorded = || async { Identity::load_or_create(&api).await.unwrap().destinations };
    let open =
        async |recorded: u64| Ledger::load(api.clone(), metrics.clone(), recorded).await.unwrap();
    let ledger = open(recorded().await).await;
    tokio::spawn(ledger.clone().keep_count(0));
    let key = (record().application, record().namespace);
    let entry = Entry { record: record(), directive: vec![], confirmed: BTreeMap::new() };
    ledger.update(&key, |_| Ok(Some(entry.clone()))).await.unwrap();
    let held = held(b"plan");
    let blobs = held.blobs().map(|digest| (*digest, bytes::Bytes::from_static(b"blob")));
    ledger.store_content(&held, &blobs.collect()).await.unwrap();
    while recorded().await == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(open(1).await.lost(), None);

    api.delete_own(&secrets::path(&secret_name(&key))).await.unwrap();
    let ledger = open(recorded().await).await;
    ledger.drop_unused_content().await.unwrap();

    assert_eq!(ledger.lost(), Some(Lost { recorded: 1, found: 0 }));
    assert_eq!(metrics.state_lost.get(), 1);
    assert!(ledger.load_content(&held, |_| true).await.is_ok());
}

#[tokio::test]
async fn an_order_is_charged_with_what_it_writes_and_an_edit_that_is_undone_costs_nothing() {
    let fake = FakeApi::start().await;
    let ledger = Ledger::load(fake.open().await, Metrics::new().unwrap(), 0).await.unwrap();
    let key = (record().application, record().namespace);
    let written = async |directive: &[u8]| {
        let entry =
            Entry { record: record(), directive: directive.to_vec(), confirmed: BTreeMap::new() };
        let before = ledger.writes().tokens();
        ledger.update(&key, |_| Ok(Some(entry.clone()))).await.unwrap();
        before - ledger.writes().tokens()
    };

    let ordered = written(b"first").await;

    assert!(ordered > i128::from(SECRET_OVERHEAD_BYTES * WRITES_OF_AN_ORDER));
    assert_eq!(written(b"first").await, 0);
    assert_eq!(written(b"other").await, ordered);
}

#[tokio::test]
async fn records_are_read_in_pages_and_all_of_them() {
    let fake = FakeApi::start().await;
    let open = async || {
        let metrics = Metrics::new().unwrap();
        Ledger::load(fake.open().await, metrics, 0).await.unwrap()
    };
    let ledger = open().await;
    let count = 2 * RECORDS_LISTED_MAX + 1;
    for index in 0..count {
        let record = Record { namespace: Name::new(format!("shop-{index}")).unwrap(), ..record() };
        let key = (record.application.clone(), record.namespace.clone());
        let entry = Entry { record, directive: vec![], confirmed: BTreeMap::new() };
        ledger.update(&key, |_| Ok(Some(entry.clone()))).await.unwrap();
    }

    assert_eq!(open().await.with_records(|records| records.len()), count);
    let pages = fake.asked().into_iter().filter(|asked| asked.contains("%3Ddestination"));
    assert_eq!(pages.count(), 1 + 3);
}
