//! The part of a live object that the spoke owns: the fields of its field manager, and a digest over them.
//!
//! Kept instead of bodies. Drift is a change of this digest on a watch event: when somebody else
//! changes one of our fields, either its value changes or its ownership leaves us, and both change
//! the digest. Fields of others never enter it. (Server-side apply, KEP-555; FieldsV1.)

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::basics::ids::Digest;
use crate::objects::absent::EmptyFields;

/// Field manager of every write a spoke makes.
pub const FIELD_MANAGER: &str = "attest-spoke";

/// The digest of a live object projected on the fields that [`FIELD_MANAGER`] applied, without the entries that others
/// write in fields that are empty in the desired object. Absent when we own nothing in it.
///
/// Of an empty field only its presence counts, and only while we own it: the API server drops most empty fields, and
/// gives such a field to the first manager that writes an entry.
pub fn digest(live: &Value, empty: &EmptyFields) -> Option<Digest> {
    let ours = owned_fields(live)?;
    let Some(empty) = empty.reduced() else { return Some(digest_of(ours, live)) };
    ours.as_object().filter(|fields| !fields.is_empty())?;
    Some(digest_of(&claimed(ours, Some(live), Some(empty))?, live))
}

/// The same with the whole value of empty fields, as spokes before version 0.2 recorded it.
pub fn digest_before_empty_fields(live: &Value) -> Option<Digest> {
    Some(digest_of(owned_fields(live)?, live))
}

fn owned_fields(live: &Value) -> Option<&Value> {
    let entries = live.pointer("/metadata/managedFields")?.as_array()?;
    let ours = entries.iter().find(|entry| {
        let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default();
        text("manager") == FIELD_MANAGER
            && text("operation") == "Apply"
            && text("subresource").is_empty()
    })?;
    ours.get("fieldsV1")
}

fn digest_of(fields: &Value, live: &Value) -> Digest {
    let mut hasher = Sha256::new();
    project(fields, Some(live), &mut hasher);
    Digest::from_raw(hasher.finalize().into())
}

/// Reduces owned fields to what the desired object claims. A field of which only the presence counts becomes null.
fn claimed(fields: &Value, live: Option<&Value>, empty: Option<&Value>) -> Option<Value> {
    let (Some(inside), Some(empty)) = (fields.as_object(), empty) else {
        return Some(fields.clone());
    };
    if inside.is_empty() {
        let is_present = live.is_some_and(|value| !value.is_null());
        return match empty {
            Value::Null => None,
            Value::Object(entries) if entries.is_empty() => is_present.then_some(Value::Null),
            Value::Array(items) if items.is_empty() => is_present.then_some(Value::Null),
            Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => Some(fields.clone()),
        };
    }
    let below = inside.iter().filter_map(|(step, inner)| {
        let claimed =
            claimed(inner, live.and_then(|value| follow(value, step)), follow(empty, step));
        Some((step.clone(), claimed?))
    });
    let below: serde_json::Map<String, Value> = below.collect();
    (!below.is_empty()).then_some(Value::Object(below))
}

/// Feeds every owned leaf, with its path and value, to the hasher.
fn project(fields: &Value, live: Option<&Value>, hasher: &mut Sha256) {
    let Some(fields) = fields.as_object() else {
        feed(hasher, b"present");
        return;
    };
    if fields.is_empty() {
        // A leaf: the whole value here is ours.
        feed(hasher, live.map_or_else(|| "absent".to_owned(), Value::to_string).as_bytes());
        return;
    }
    for (step, inner) in fields {
        feed(hasher, step.as_bytes());
        if step == "." {
            continue;
        }
        project(inner, live.and_then(|value| follow(value, step)), hasher);
    }
    feed(hasher, b"end");
}

fn feed(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_be_bytes());
    hasher.update(bytes);
}

/// One path element of FieldsV1: `f:name`, `k:{keys}`, `v:value` or `i:index`.
fn follow<'a>(value: &'a Value, step: &str) -> Option<&'a Value> {
    let (kind, rest) = step.split_once(':')?;
    match kind {
        "f" => value.get(rest),
        "k" => {
            let wanted: Value = serde_json::from_str(rest).ok()?;
            let wanted = wanted.as_object()?;
            value.as_array()?.iter().find(|item| {
                wanted.iter().all(|(field, v)| {
                    // A list key may be left at its default by the author (`protocol: TCP`).
                    item.get(field) == Some(v) || (item.get(field).is_none() && field == "protocol")
                })
            })
        }
        "v" => {
            let wanted: Value = serde_json::from_str(rest).ok()?;
            value.as_array()?.iter().find(|item| **item == wanted)
        }
        "i" => value.as_array()?.get(rest.parse::<usize>().ok()?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::documents::manifest::ObjectKey;

    fn digest(live: &Value) -> Option<Digest> {
        super::digest(live, &EmptyFields::default())
    }

    /// The digest of a live ConfigMap with these fields of ours and these values, desired as `desired`.
    fn projected(desired: &Value, ours: &Value, data: &Value) -> Option<Digest> {
        let key = ObjectKey {
            group: String::new(),
            kind: "ConfigMap".to_owned(),
            namespace: None,
            name: "a".to_owned(),
        };
        let mut live = json!({"metadata": {"managedFields": [
            {"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": ours}]}});
        if !data.is_null() {
            live["data"] = data.clone();
        }
        super::digest(&live, &EmptyFields::of(&key, desired))
    }

    fn live(image: &str, ours: &Value) -> Value {
        json!({
            "metadata": {"managedFields": [
                {"manager": "kube-controller-manager", "operation": "Update", "subresource": "status",
                 "fieldsV1": {"f:status": {}}},
                {"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": ours},
            ], "annotations": {"somebody": "else"}},
            "spec": {"replicas": 2, "containers": [
                {"name": "side", "image": "other"}, {"name": "web", "image": image}]},
        })
    }

    fn owned() -> Value {
        json!({"f:spec": {"f:replicas": {}, "f:containers": {
            "k:{\"name\":\"web\"}": {".": {}, "f:image": {}, "f:name": {}}}}})
    }

    #[test]
    fn a_change_of_our_field_changes_the_digest() {
        assert_ne!(digest(&live("a", &owned())), digest(&live("b", &owned())));
    }

    #[test]
    fn a_change_elsewhere_does_not() {
        let mut other = live("a", &owned());
        other["spec"]["containers"][0]["image"] = json!("changed");
        other["metadata"]["annotations"]["somebody"] = json!("new");
        other["status"] = json!({"replicas": 2});

        assert_eq!(digest(&live("a", &owned())), digest(&other));
    }

    #[test]
    fn losing_ownership_of_a_field_changes_the_digest_even_at_the_same_value() {
        let fewer = json!({"f:spec": {"f:containers": {
            "k:{\"name\":\"web\"}": {".": {}, "f:image": {}, "f:name": {}}}}});

        assert_ne!(digest(&live("a", &owned())), digest(&live("a", &fewer)));
    }

    #[test]
    fn an_object_we_never_applied_has_no_digest() {
        assert_eq!(digest(&json!({"metadata": {}})), None);
    }

    #[test]
    fn an_empty_field_claims_no_entry_that_others_write() {
        let desired = json!({"kind": "ConfigMap", "data": {}, "metadata": {"labels": null}});
        let ours = json!({"f:kind": {}, "f:data": {}});
        let taken = json!({"f:kind": {}});
        let null_owned = json!({"f:kind": {}, "f:data": {}, "f:metadata": {"f:labels": {}}});

        let applied = projected(&desired, &ours, &Value::Null);
        assert!(applied.is_some());
        for (fields, data) in [
            (&taken, json!({"a": "1"})),
            (&taken, json!({"a": "2", "b": "3"})),
            (&taken, Value::Null),
            (&null_owned, Value::Null),
        ] {
            assert_eq!(projected(&desired, fields, &data), applied, "{fields} {data}");
        }

        let only = json!({"f:data": {}});
        assert_eq!(projected(&json!({"data": {}}), &only, &Value::Null), None);
        assert_eq!(projected(&json!({"data": {}}), &json!({}), &json!({"a": "1"})), None);
    }

    #[test]
    fn an_empty_field_that_the_api_server_keeps_is_ours_until_it_is_removed_or_taken() {
        let desired = json!({"kind": "ConfigMap", "data": {}});
        let ours = json!({"f:kind": {}, "f:data": {}});

        let applied = projected(&desired, &ours, &json!({}));

        assert_eq!(projected(&desired, &ours, &json!({"a": "1"})), applied);
        assert_ne!(projected(&desired, &ours, &Value::Null), applied);
        assert_ne!(projected(&desired, &json!({"f:kind": {}}), &json!({"a": "1"})), applied);
    }

    #[test]
    fn without_empty_fields_the_digest_is_as_before() {
        let live = live("a", &owned());

        assert_eq!(digest(&live), digest_before_empty_fields(&live));
    }
}
