//! Fields that kubectl owned before an object was deployed from Git: which they are, and how they become ours.
//!
//! Server-side apply removes a field only when no manager owns it. What `kubectl apply` once wrote would stay after it
//! has left Git. (client-go does the same in `util/csaupgrade`.)

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::projection::FIELD_MANAGER;

/// Managers of `kubectl apply`, client-side and server-side, and of what is older than managed fields.
pub const KUBECTL_MANAGERS: [&str; 3] =
    ["kubectl", "kubectl-client-side-apply", "before-first-apply"];
/// Annotation of `kubectl apply` with the object as it was applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Most fields that are listed one by one.
pub const FIELDS_LISTED_MAX: usize = 10;

/// Returns whether kubectl owns fields of a live object.
pub fn is_needed(live: &Value) -> bool {
    entries(live).iter().any(is_of_kubectl)
}

/// Returns the JSON patch that makes kubectl's fields ours. It applies to this version of this object only. `None` if
/// kubectl owns none, or if the object has no version.
pub fn patch(live: &Value) -> Option<Value> {
    let (taken, mut kept): (Vec<&Value>, Vec<&Value>) =
        entries(live).iter().partition(|entry| is_of_kubectl(entry));
    let ours = kept.iter().position(|entry| is_ours(entry));
    let mut merged = match ours {
        Some(place) => kept.remove(place).clone(),
        None => renamed(taken.first()?),
    };
    let version = merged.get("apiVersion").cloned();
    // The paths of another version may name other fields.
    let (taken, foreign): (Vec<&Value>, Vec<&Value>) =
        taken.into_iter().partition(|entry| entry.get("apiVersion") == version.as_ref());
    if taken.is_empty() {
        return None;
    }
    for entry in taken {
        let fields = entry.get("fieldsV1").unwrap_or(&Value::Null);
        let union = united(merged.get("fieldsV1").unwrap_or(&Value::Null), fields);
        merged.as_object_mut()?.insert("fieldsV1".to_owned(), union);
    }
    let all: Vec<Value> =
        [merged].into_iter().chain(kept.into_iter().chain(foreign).cloned()).collect();
    let (uid, version) =
        (live.pointer("/metadata/uid")?, live.pointer("/metadata/resourceVersion")?);
    Some(json!([
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "test", "path": "/metadata/resourceVersion", "value": version},
        {"op": "replace", "path": "/metadata/managedFields", "value": all},
    ]))
}

/// Returns the fields that kubectl owns and we do not, at most [`FIELDS_LISTED_MAX`] and then their number.
pub fn kept_by_kubectl(live: &Value) -> Vec<String> {
    if !is_needed(live) {
        return Vec::new();
    }
    let ours = entries(live).iter().find(|entry| is_ours(entry));
    let ours = ours.and_then(|entry| entry.get("fieldsV1"));
    let mut fields = BTreeSet::new();
    for entry in entries(live).iter().filter(|entry| is_of_kubectl(entry)) {
        if let Some(theirs) = entry.get("fieldsV1") {
            beyond(theirs, ours, "", &mut fields);
        }
    }
    let more = fields.len().saturating_sub(FIELDS_LISTED_MAX);
    let listed = fields.into_iter().take(FIELDS_LISTED_MAX);
    listed.chain((more > 0).then(|| format!("{more} more"))).collect()
}

fn entries(live: &Value) -> &[Value] {
    let entries = live.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries.map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn is_of_kubectl(entry: &Value) -> bool {
    KUBECTL_MANAGERS.contains(&text(entry, "manager")) && text(entry, "subresource").is_empty()
}

fn is_ours(entry: &Value) -> bool {
    text(entry, "manager") == FIELD_MANAGER
        && text(entry, "operation") == "Apply"
        && text(entry, "subresource").is_empty()
}

fn renamed(entry: &Value) -> Value {
    let mut entry = entry.clone();
    if let Some(fields) = entry.as_object_mut() {
        fields.insert("manager".to_owned(), FIELD_MANAGER.into());
        fields.insert("operation".to_owned(), "Apply".into());
    }
    entry
}

/// Returns the union of two sets of fields. A set without elements is the field itself.
fn united(one: &Value, other: &Value) -> Value {
    let (Some(one), Some(other)) = (one.as_object(), other.as_object()) else {
        return if one.is_object() { one.clone() } else { other.clone() };
    };
    let mut union = one.clone();
    if one.is_empty() != other.is_empty() {
        union.insert(".".to_owned(), Value::Object(Map::new()));
    }
    for (step, inner) in other {
        let both = union.get(step).map_or_else(|| inner.clone(), |known| united(known, inner));
        union.insert(step.clone(), both);
    }
    Value::Object(union)
}

/// Adds the paths that `theirs` has and `ours` has not: a map or an item that is not ours at all counts once.
fn beyond(theirs: &Value, ours: Option<&Value>, path: &str, found: &mut BTreeSet<String>) {
    let Some(theirs) = theirs.as_object() else { return };
    for (step, inner) in theirs.iter().filter(|(step, _)| *step != ".") {
        if step.strip_prefix("f:") == Some(LAST_APPLIED) {
            continue;
        }
        let path = format!("{path}{}", shown(step, path.is_empty()));
        let known = ours.and_then(|ours| ours.get(step));
        let is_leaf = inner.as_object().is_none_or(Map::is_empty);
        let is_item = step.starts_with("k:");
        match known {
            // Ours as a whole.
            Some(known) if known.as_object().is_some_and(Map::is_empty) => {}
            None if is_leaf || is_item => {
                found.insert(path);
            }
            _ => beyond(inner, known, &path, found),
        }
    }
}

/// Returns one step of a path: `.name`, `[web]` for an item with one key, `["x"]` for an item of a set.
fn shown(step: &str, is_first: bool) -> String {
    match step.split_once(':') {
        Some(("f", name)) if is_first => name.to_owned(),
        Some(("f", name)) => format!(".{name}"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let values = keys.values().map(|value| match value {
                Value::String(text) => text.clone(),
                other @ (Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::Array(_)
                | Value::Object(_)) => other.to_string(),
            });
            format!("[{}]", values.collect::<Vec<_>>().join(","))
        }
        Some((_, rest)) => format!("[{rest}]"),
        None => format!(".{step}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(entries: &Value) -> Value {
        json!({"metadata": {"uid": "u", "resourceVersion": "7", "managedFields": entries}})
    }

    fn entry(manager: &str, operation: &str, fields: &Value) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": "apps/v1", "fieldsV1": fields})
    }

    #[test]
    fn fields_of_kubectl_are_united_with_ours_in_one_patch_of_this_version_of_this_object() {
        let scale = json!({"manager": "kubectl", "operation": "Update", "subresource": "scale",
            "apiVersion": "apps/v1", "fieldsV1": {"f:spec": {"f:replicas": {}}}});
        let rollout = entry("kubectl-rollout", "Update", &json!({"f:spec": {"f:x": {}}}));
        let object = live(&json!([
            entry(
                "kubectl-client-side-apply",
                "Update",
                &json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}})
            ),
            scale,
            rollout,
            entry(FIELD_MANAGER, "Apply", &json!({"f:data": {"f:a": {}}, "f:m": {}})),
            entry("before-first-apply", "Update", &json!({"f:m": {"f:n": {}}})),
        ]));

        let patch = patch(&object).unwrap();

        let union = json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}, "f:m": {".": {}, "f:n": {}}});
        assert_eq!(
            patch,
            json!([
                {"op": "test", "path": "/metadata/uid", "value": "u"},
                {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "replace", "path": "/metadata/managedFields",
                 "value": [entry(FIELD_MANAGER, "Apply", &union), scale, rollout]},
            ])
        );
    }

    #[test]
    fn without_an_entry_of_ours_that_of_kubectl_is_renamed_and_other_versions_stay() {
        let mut older = entry("kubectl", "Apply", &json!({"f:y": {}}));
        older["apiVersion"] = json!("apps/v1beta1");
        let object = live(&json!([entry("kubectl", "Apply", &json!({"f:x": {}})), older]));

        let patch = patch(&object).unwrap();

        let all = json!([entry(FIELD_MANAGER, "Apply", &json!({"f:x": {}})), older]);
        assert_eq!(patch[2]["value"], all);
        assert!(super::patch(&live(&json!([]))).is_none());
        assert!(
            super::patch(&live(&json!([entry("kubectl-edit", "Update", &json!({}))]))).is_none()
        );
        let only_older = live(&json!([older, entry(FIELD_MANAGER, "Apply", &json!({}))]));
        assert!(super::patch(&only_older).is_none());
    }

    #[test]
    fn fields_that_kubectl_keeps_are_named_once() {
        let annotation = format!("f:{LAST_APPLIED}");
        let object = live(&json!([
            entry(
                "kubectl-client-side-apply",
                "Update",
                &json!({
                    "f:metadata": {"f:annotations": {".": {}, annotation: {}}, "f:labels": {".": {}, "f:app": {}, "f:old": {}}},
                    "f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:image": {},
                        "f:env": {".": {}, "k:{\"name\":\"DEBUG\"}": {".": {}, "f:name": {}, "f:value": {}},
                            "k:{\"name\":\"KEPT\"}": {".": {}, "f:name": {}, "f:value": {}}}}}, "f:selector": {"f:a": {}}},
                })
            ),
            entry(
                FIELD_MANAGER,
                "Apply",
                &json!({
                    "f:metadata": {"f:labels": {"f:app": {}}},
                    "f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:image": {},
                        "f:env": {"k:{\"name\":\"KEPT\"}": {".": {}, "f:name": {}, "f:value": {}}}}}, "f:selector": {}},
                })
            ),
        ]));

        assert_eq!(
            kept_by_kubectl(&object),
            ["metadata.labels.old", "spec.containers[web].env[DEBUG]"]
        );
        assert!(
            kept_by_kubectl(&live(&json!([entry("helm", "Update", &json!({"f:x": {}}))])))
                .is_empty()
        );
    }
}
