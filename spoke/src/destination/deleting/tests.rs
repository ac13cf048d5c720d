use super::*;
use crate::ledger::records::tests::object_key;

#[test]
fn an_update_may_not_delete_most_of_a_large_inventory() {
    assert!(!prune_is_too_much(9, 9, 30));
    assert!(!prune_is_too_much(3, 10, 30));
    assert!(prune_is_too_much(4, 10, 30));
    assert!(!prune_is_too_much(10, 10, 100));
}

#[test]
fn an_update_deletes_nothing_under_a_policy_that_allows_no_deletion() {
    assert!(prune_is_too_much(1, 2, 0));
    assert!(prune_is_too_much(1, 100, 0));
    assert!(!prune_is_too_much(0, 100, 0));
}

fn owned(kind: &str, name: &str) -> Owned {
    Owned {
        key: object_key(kind, name),
        version: "v1".to_owned(),
        uid: Some("uid".to_owned()),
        preexisting: false,
        orphan: false,
        wave: 0,
    }
}

fn deleting(objects: &[(&str, u8)]) -> Deleting {
    let inventory: Vec<Owned> = objects.iter().map(|(name, _)| owned("x", name)).collect();
    let mut deleting = Deleting::of(inventory.iter(), &Kinds::built_in());
    for (name, rank) in objects {
        deleting.items.get_mut(&object_key("x", name)).unwrap().order = (0, *rank);
    }
    deleting
}

fn names(deleting: &Deleting, now: Instant) -> Vec<String> {
    deleting.steps(now, 8).0.into_iter().map(|key| key.name).collect()
}

#[test]
fn deleting_goes_from_the_highest_rank_down() {
    let now = Instant::now();
    let mut deleting = deleting(&[("config", 5), ("web", 7), ("api", 7)]);

    assert_eq!(names(&deleting, now), ["api", "web"]);
    deleting.finish(&object_key("x", "api"), Ok(Deleted::Gone), now);
    deleting.finish(&object_key("x", "web"), Ok(Deleted::Gone), now);
    assert_eq!(names(&deleting, now), ["config"]);
}

#[test]
fn waves_are_deleted_in_the_opposite_order_and_orphans_never() {
    let now = Instant::now();
    let inventory = [
        Owned { wave: -1, ..owned("Deployment", "first") },
        owned("ConfigMap", "second"),
        Owned { wave: 2, ..owned("ConfigMap", "last") },
        Owned { orphan: true, ..owned("ConfigMap", "kept") },
    ];
    let mut deleting = Deleting::of(inventory.iter(), &Kinds::built_in());

    assert_eq!(deleting.done, [object_key("ConfigMap", "kept")]);
    for (kind, name) in [("ConfigMap", "last"), ("ConfigMap", "second"), ("Deployment", "first")] {
        assert_eq!(names(&deleting, now), [name]);
        deleting.finish(&object_key(kind, name), Ok(Deleted::Gone), now);
    }
}

#[test]
fn an_object_that_is_still_leaving_is_asked_again_and_lower_ranks_wait_for_it() {
    let now = Instant::now();
    let mut deleting = deleting(&[("operator", 7), ("widget", 8)]);
    let widget = object_key("x", "widget");

    let leaving = Deleted::Leaving("finalizers example.com/drain".to_owned());
    assert!(!deleting.finish(&widget, Ok(leaving), now));
    let (next, wake) = deleting.steps(now, 8);
    assert_eq!(next, []);
    let again = wake.unwrap();
    assert_eq!(names(&deleting, again), ["widget"]);
    assert!(matches!(
        deleting.obstacle(),
        Some(Obstacle::Leaving(key, "finalizers example.com/drain")) if *key == widget
    ));

    assert!(deleting.finish(&widget, Ok(Deleted::Gone), again));
    assert_eq!(names(&deleting, again), ["operator"]);
}

#[test]
fn an_unknown_kind_is_not_released_but_fails_until_it_is_known() {
    let now = Instant::now();
    let key = object_key("Widget", "w");
    let mut deleting = Deleting::of([owned("Widget", "w")].iter(), &Kinds::built_in());
    assert_eq!(deleting.done, []);

    deleting.finish(&key, Err(ApplyError::KindUnknown), now);

    let Some(Obstacle::Failing(_, failure)) = deleting.obstacle() else { panic!() };
    assert_eq!(failure.reason.as_str(), "KindUnknown");
    let retry_at = failure.retry_at;
    assert_eq!(deleting.steps(now, 8), (vec![], Some(retry_at)));
    assert_eq!(names(&deleting, retry_at), ["w"]);
}
