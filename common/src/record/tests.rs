//! Rules on records: accounts, namespaces, rollback points.

use super::*;
use crate::basics::keys::PrivateKey;
use crate::record::rollback::RollbackPoint;

#[test]
fn two_destinations_never_share_an_account() {
    let name = |text: &str| Name::new(text).unwrap();
    let long = "a".repeat(63);

    assert_eq!(account_name(&name("web"), &name("shop")), "a-web-shop");
    assert_ne!(account_name(&name("a-b"), &name("c")), account_name(&name("a"), &name("b-c")));
    assert!(account_name(&name(&long), &name(&long)).len() <= 63);
    assert!(Name::new(account_name(&name(&long), &name("x"))).is_ok());
}

#[test]
fn namespaces_whose_first_plan_was_turned_back_count_once_they_are_more_than_mistakes() {
    let in_namespace = |record: Record, index: usize| {
        let namespace = Name::new(format!("shop-{index}")).unwrap();
        ((record.application.clone(), namespace.clone()), Record { namespace, ..record })
    };
    let bound = record(b"plan", 1, &[]);
    let repo = bound.binding.clone().unwrap();
    let empty = Record { binding: None, floor: None, held: None, ..bound.clone() };
    let others = |turned_back: usize| {
        let empties = (1..=turned_back).map(|index| in_namespace(empty.clone(), index));
        let records: DestinationRecords = empties.chain([in_namespace(bound.clone(), 0)]).collect();
        other_namespaces(&records, (&bound.application, &Name::new("new").unwrap()), &repo)
    };

    assert_eq!((others(0), others(REVERTED_MAX), others(REVERTED_MAX + 3)), (1, 1, 4));
}

fn held(plan: &[u8]) -> Held {
    let digest = Digest::of(plan);
    Held {
        plan: digest,
        plan_digest: digest,
        release: digest,
        receipts: Vec::new(),
        content: digest,
    }
}

fn owned(name: &str) -> Owned {
    Owned {
        key: ObjectKey {
            group: String::new(),
            kind: "ConfigMap".to_owned(),
            namespace: Some("shop".to_owned()),
            name: name.to_owned(),
        },
        version: "v1".to_owned(),
        uid: None,
        preexisting: false,
        orphan: false,
        wave: 0,
    }
}

fn record(plan: &[u8], sequence: u64, inventory: &[&str]) -> Record {
    Record {
        v: 1,
        application: Name::new("web").unwrap(),
        namespace: Name::new("shop").unwrap(),
        hub_key: PrivateKey::from_seed(&[1; 32]).unwrap().public().id(),
        epoch: 1,
        sequence,
        directive: Digest::of(plan),
        other_hub_keys: Vec::new(),
        binding: Some("https://git.example/web".to_owned()),
        floor: Some(Floor { counter: sequence, release: Digest::of(plan) }),
        held: Some(held(plan)),
        last_good: None,
        good: Vec::new(),
        inventory: inventory.iter().map(|name| owned(name)).collect(),
        removed: false,
        recorded_at: None,
        since: None,
        rollback_point: None,
        rollout: None,
    }
}

#[test]
fn however_many_plans_were_refused_unwritten_the_way_back_leads_to_what_was_written() {
    let a = record(b"a", 1, &["one"]);
    let b = Record {
        rollback_point: RollbackPoint::before(Some((&a, b"order of a")), &held(b"b")),
        ..record(b"b", 2, &["one", "two"])
    };
    let c = Record {
        rollback_point: RollbackPoint::before(Some((&b, b"order of b")), &held(b"c")),
        ..record(b"c", 3, &["one", "two", "three"])
    };
    assert!(c.plans().any(|plan| *plan == held(b"a")), "its content has to stay");

    let (back, directive) = c.clone().reverted(false).unwrap();
    assert_eq!(directive, b"order of a");
    assert_eq!((back.held, back.floor), (a.held, a.floor));
    assert_eq!((back.sequence, back.directive), (3, Digest::of(b"c")), "the order is used up");
    assert_eq!(back.inventory, [owned("one")]);
    assert!(back.rollback_point.is_none());

    let (unsure, _) = c.reverted(true).unwrap();
    assert_eq!(unsure.inventory.len(), 3, "another process may have written them");
}

#[test]
fn once_writing_began_the_way_back_leads_to_that_plan_and_keeps_its_objects() {
    let begun = record(b"b", 2, &["one", "two"]);
    let c = Record {
        rollback_point: RollbackPoint::before(Some((&begun, b"order of b")), &held(b"c")),
        ..record(b"c", 3, &["one", "two", "three"])
    };

    let (back, directive) = c.reverted(false).unwrap();

    assert_eq!(directive, b"order of b");
    assert_eq!((back.held, back.floor), (begun.held, begun.floor));
    assert_eq!(back.inventory, [owned("one"), owned("two")]);
}

#[test]
fn what_runs_already_has_no_way_back_and_a_first_plan_goes_back_to_nothing() {
    let a = record(b"a", 1, &["one"]);
    assert!(RollbackPoint::before(Some((&a, b"")), &held(b"a")).is_none());

    let first = Record { rollback_point: RollbackPoint::before(None, &held(b"a")), ..a };
    let (back, _) = first.reverted(false).unwrap();
    assert_eq!((back.held, back.binding, back.inventory), (None, None, vec![]));
}

fn hub(seed: u8) -> KeyId {
    PrivateKey::from_seed(&[seed; 32]).unwrap().public().id()
}

/// A directive of `hub`, as the record that it leaves on `before`.
fn ordered(before: &Record, hub_key: KeyId, (epoch, sequence): (u64, u64)) -> Record {
    let other_hub_keys = before.others_than(hub_key);
    Record { hub_key, epoch, sequence, other_hub_keys, ..before.clone() }
}

fn order_of(record: &Record, hub_key: KeyId, (epoch, sequence): (u64, u64)) -> &'static str {
    let bytes = include_bytes!("../golden/directive.json");
    let golden: Directive = crate::basics::json::document(bytes).unwrap();
    let directive = Directive { epoch, sequence, ..golden };
    match compare_order(&directive, record.directive, hub_key, Some(record)) {
        Ok(DirectiveOrder::Newer) => "Newer",
        Ok(DirectiveOrder::Repeated) => "Repeated",
        Err(error) => error.reason().as_str(),
    }
}

#[test]
fn each_hub_key_has_its_own_epochs_and_sequences() {
    let first = record(b"plan", 7, &[]);
    let mut used_up = ordered(&first, hub(2), (u64::MAX, u64::MAX));

    assert_eq!(order_of(&first, hub(2), (1, 1)), "Newer");
    assert_eq!(order_of(&used_up, hub(2), (u64::MAX, u64::MAX)), "Repeated");
    assert_eq!(order_of(&used_up, hub(2), (1, 2)), "SequenceReplayed");
    // The first key goes on, and nothing of it can be replayed because another key has signed since.
    for (order, expected) in [((1, 8), "Newer"), ((1, 7), "Repeated"), ((1, 6), "SequenceReplayed")]
    {
        assert_eq!(order_of(&used_up, hub(1), order), expected, "{order:?}");
    }
    let third = ordered(&ordered(&used_up, hub(1), (1, 8)), hub(3), (1, 1));
    assert_eq!(order_of(&third, hub(1), (1, 7)), "SequenceReplayed");
    assert_eq!(order_of(&third, hub(2), (9, 9)), "SequenceReplayed");

    // The documented remedy concerns one key.
    assert_eq!(used_up.forget_hub_key(hub(9)), None);
    let forgotten = used_up.forget_hub_key(hub(2)).unwrap();
    assert_eq!((forgotten.epoch, forgotten.sequence), (u64::MAX, u64::MAX));
    assert_eq!(order_of(&used_up, hub(2), (1, 1)), "Newer");
    assert_eq!(order_of(&used_up, hub(1), (1, 6)), "SequenceReplayed");
    assert_eq!((&used_up.held, &used_up.binding), (&first.held, &first.binding));
}

#[test]
fn the_other_hub_keys_of_a_record_are_limited_and_the_least_recent_is_forgotten() {
    let mut record = record(b"plan", 1, &[]);
    for seed in 2..=40 {
        record = ordered(&record, hub(seed), (1, 1));
    }

    assert_eq!(record.other_hub_keys.len(), OTHER_HUB_KEYS_MAX);
    assert!(record.position_of(hub(39)).is_some() && record.position_of(hub(2)).is_none());
}

#[test]
fn a_record_of_the_form_before_other_hub_keys_is_read_and_written_unchanged() {
    let stored = include_str!("../golden/record.json").trim_end();

    let record: Record = serde_json::from_str(stored).unwrap();

    assert_eq!(record.other_hub_keys, []);
    assert_eq!(order_of(&record, record.hub_key, (record.epoch, record.sequence)), "Repeated");
    assert_eq!(order_of(&record, hub(77), (1, 1)), "Newer");
    assert_eq!(serde_json::to_string(&record).unwrap(), stored);
    let both = ordered(&record, hub(77), (1, 1));
    let written = serde_json::to_string(&both).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&written).unwrap(), both);
}

#[test]
fn the_refusal_of_a_replay_names_the_command_that_forgets_a_hub_key() {
    let record = record(b"plan", u64::MAX, &[]);
    let bytes = include_bytes!("../golden/directive.json");
    let directive: Directive = crate::basics::json::document(bytes).unwrap();

    let refused = compare_order(&directive, Digest::of(b"other"), hub(1), Some(&record));

    let text = refused.unwrap_err().to_string();
    let command = format!(
        "attest spoke reset {} -n {} --hub-key {}",
        directive.application,
        directive.namespace,
        hub(1)
    );
    assert!(text.contains(&command), "{text}");
}
