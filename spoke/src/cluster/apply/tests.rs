use serde_json::json;

use super::*;
use crate::cluster::error::Details;

#[test]
fn an_object_is_the_same_when_only_bookkeeping_differs() {
    let live = json!({"metadata": {"name": "a", "resourceVersion": "1", "managedFields": []}, "data": {"k": "v"}});
    let mut would_be = live.clone();
    would_be["metadata"]["managedFields"] = json!([{"manager": "attest-spoke"}]);
    would_be["status"] = json!({"observedGeneration": 2});
    assert!(same_values(&live, &would_be));

    would_be["data"]["k"] = json!("w");
    assert!(!same_values(&live, &would_be));
}

#[test]
fn our_fields_are_forced_only_on_the_uid_we_wrote_or_where_adopting_is_allowed() {
    let live = json!({"metadata": {"uid": "u"}});
    let ours = |uid: &str, adopt| Ownership::Ours { uid: uid.to_owned(), adopt };

    assert!(may_force(&ours("u", false), &live));
    assert!(!may_force(&ours("other", false), &live));
    assert!(may_force(&ours("other", true), &live));
    assert!(!may_force(&Ownership::Unknown { adopt: false, unfinished: true }, &live));
    assert!(may_force(&Ownership::Unknown { adopt: true, unfinished: false }, &live));
}

#[test]
fn an_object_was_made_by_us_only_when_our_fields_are_as_old_as_it() {
    let live = |manager: &str, time: &str| {
        json!({"metadata": {
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{"manager": manager, "operation": "Apply", "time": time}],
        }})
    };

    assert!(is_made_by_us(&live(FIELD_MANAGER, "2026-01-01T00:00:00Z")));
    assert!(is_made_by_us(&live(FIELD_MANAGER, "2026-01-01T00:00:01Z")));
    assert!(!is_made_by_us(&live(FIELD_MANAGER, "2026-01-01T00:00:09Z")));
    assert!(!is_made_by_us(&live("kubectl", "2026-01-01T00:00:00Z")));
    assert!(!is_made_by_us(&json!({"metadata": {}})));
}

#[test]
fn an_accepted_delete_is_no_deletion_while_the_answer_is_the_object() {
    let answer = json!({"kind": "Widget", "metadata": {"finalizers": ["example.com/drain"]}});

    assert_eq!(deleted(&answer), Deleted::Leaving("finalizers example.com/drain".to_owned()));
    assert_eq!(deleted(&json!({"kind": "Status", "status": "Success"})), Deleted::Gone);
}

#[test]
fn a_forced_write_that_met_a_quota_or_another_writer_says_so() {
    let key = ObjectKey {
        group: String::new(),
        kind: "ConfigMap".to_owned(),
        namespace: Some("shop".to_owned()),
        name: "a".to_owned(),
    };
    let conflict = |message: &str| ApiError::Status {
        verb: "patch",
        path: "/x".to_owned(),
        code: 409,
        status_reason: "Conflict".to_owned(),
        message: message.to_owned(),
        details: Details::of(&json!({"message": message, "details": {"name": "a"}})),
    };
    let force = Force::Of("1".to_owned());
    let said = |message: &str| {
        let error = unwritten(&key, conflict(message), &force);
        assert!(
            error.is_transient() && error.is_conflict() && error.reason().as_str() == "Conflict"
        );
        error.to_string()
    };

    assert!(
        said("Operation cannot be fulfilled on resourcequotas \"q\"").contains("resourcequotas")
    );
    assert!(said("the object has been modified").contains("has been modified"));
    assert!(
        said("uid mismatch: no existing object was found").contains("was deleted, or replaced")
    );
}

#[test]
fn a_message_about_a_secret_never_quotes_it() {
    let status = || ApiError::Status {
        verb: "patch",
        path: "/x".to_owned(),
        code: 422,
        status_reason: "Invalid".to_owned(),
        message: "bad value: hunter2".to_owned(),
        details: Default::default(),
    };
    let key = |kind: &str| ObjectKey {
        group: String::new(),
        kind: kind.to_owned(),
        namespace: None,
        name: "a".to_owned(),
    };

    assert!(!failed(&key("Secret"), status()).to_string().contains("hunter2"));
    assert!(failed(&key("ConfigMap"), status()).to_string().contains("hunter2"));
}

#[test]
fn the_empty_fields_of_an_object_do_not_depend_on_its_autoscaler() {
    let key_fields = json!({"name": "a", "namespace": "shop"});
    let object = |spec: Value| {
        Object::new(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": key_fields, "spec": spec,
        }))
        .unwrap()
    };
    let only_replicas = object(json!({"replicas": 2}));
    let written = as_written(&only_replicas, true);

    assert_eq!(*written, *object(json!({})).value());
    assert_eq!(empty_fields(&only_replicas), empty_fields(&object(json!({}))));
    let null = object(json!({"replicas": null}));
    assert_eq!(empty_fields(&null), EmptyFields::of(null.key(), null.value()));
}
