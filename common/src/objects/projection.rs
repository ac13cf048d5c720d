//! What of a live object is ours: the fields our field manager owns, and a digest over them.
//!
//! Kept instead of bodies. Drift is a change of this digest on a watch event: when somebody else
//! changes one of our fields, either its value changes or its ownership leaves us, and both change
//! the digest. Fields of others never enter it. (Server-side apply, KEP-555; FieldsV1.)

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::basics::ids::Digest;

/// Field manager of every write a spoke makes.
pub const FIELD_MANAGER: &str = "attest-spoke";

/// The digest of a live object projected on the fields that [`FIELD_MANAGER`] applied.
/// Absent when we own nothing in it.
pub fn digest(live: &Value) -> Option<Digest> {
    let entries = live.pointer("/metadata/managedFields")?.as_array()?;
    let ours = entries.iter().find(|entry| {
        let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default();
        text("manager") == FIELD_MANAGER
            && text("operation") == "Apply"
            && text("subresource").is_empty()
    })?;
    let mut hasher = Sha256::new();
    project(ours.get("fieldsV1")?, Some(live), &mut hasher);
    Some(Digest::from_raw(hasher.finalize().into()))
}

/// Feeds every owned leaf, with its path and value, to the hasher.
fn project(fields: &Value, live: Option<&Value>, hasher: &mut Sha256) {
    let Some(fields) = fields.as_object() else { return };
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
}
