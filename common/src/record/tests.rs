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
        binding: Some("https://git.example/web".to_owned()),
        floor: Some(Floor { counter: sequence, release: Digest::of(plan) }),
        held: Some(held(plan)),
        last_good: None,
        inventory: inventory.iter().map(|name| owned(name)).collect(),
        removed: false,
        recorded_at: None,
        since: None,
        rollback_point: None,
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
