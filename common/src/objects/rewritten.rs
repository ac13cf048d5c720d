//! Fields that admission in a cluster has rewritten, and fields that other managers have added. Pure.
//!
//! An object with such fields is applied, and is not as signed. Only paths are named, never values.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::projection::FIELD_MANAGER;

/// Most rewritten fields of one object that are named.
pub const REWRITTEN_LISTED_MAX: usize = 8;
/// Longest path of a field, in characters.
const PATH_CHARACTERS_MAX: usize = 160;

/// Returns the paths of fields whose live value is not the written one, at most [`REWRITTEN_LISTED_MAX`]. Fields that the
/// written object does not have are not compared.
pub fn rewritten(written: &Value, live: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(written, Some(live), &mut String::new(), &mut found);
    found
}

fn compare(written: &Value, live: Option<&Value>, path: &mut String, found: &mut Vec<String>) {
    if found.len() >= REWRITTEN_LISTED_MAX {
        return;
    }
    match (written, live) {
        // The API server drops values that equal the zero value of their type.
        (written, None) if is_zero(written) => {}
        (Value::Object(fields), Some(Value::Object(live))) => {
            for (name, value) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                step(path, &format!("{dot}{name}"), |path| {
                    compare(value, live.get(name), path, found);
                });
            }
        }
        (Value::Array(items), Some(Value::Array(live))) => compare_lists(items, live, path, found),
        (written, Some(live)) if written == live => {}
        (_, Some(_) | None) => found.push(path.chars().take(PATH_CHARACTERS_MAX).collect()),
    }
}

fn step(path: &mut String, part: &str, inside: impl FnOnce(&mut String)) {
    let end = path.len();
    path.push_str(part);
    inside(path);
    path.truncate(end);
}

/// Compares lists by the names of their items, where all have one; else by position.
fn compare_lists(items: &[Value], live: &[Value], path: &mut String, found: &mut Vec<String>) {
    fn name(item: &Value) -> Option<&str> {
        item.get("name")?.as_str()
    }
    let named: BTreeMap<&str, &Value> =
        live.iter().filter_map(|item| Some((name(item)?, item))).collect();
    for (index, item) in items.iter().enumerate() {
        let other = match name(item) {
            Some(name) if named.len() == live.len() => named.get(name).copied(),
            Some(_) | None => live.get(index),
        };
        step(path, &format!("[{index}]"), |path| compare(item, other, path, found));
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

/// Returns the number of fields outside the status of a live object that only other managers own.
pub fn added(live: &Value) -> u64 {
    let (ours, others): (Vec<&Value>, Vec<&Value>) =
        entries(live).partition(|entry| is_ours(entry));
    let ours = ours.first().and_then(|entry| entry.pointer("/fieldsV1")?.as_object());
    others.iter().filter_map(|entry| entry.get("fieldsV1")).map(|fields| count(fields, ours)).sum()
}

/// Returns the entries of `managedFields` about the object itself.
fn entries(live: &Value) -> impl Iterator<Item = &Value> {
    let entries = live.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries.into_iter().flatten().filter(|entry| entry.get("subresource").is_none())
}

fn is_ours(entry: &Value) -> bool {
    entry.get("manager").and_then(Value::as_str) == Some(FIELD_MANAGER)
}

fn count(fields: &Value, ours: Option<&Map<String, Value>>) -> u64 {
    let Some(fields) = fields.as_object() else { return 0 };
    let inner = fields.iter().filter(|(step, _)| *step != "." && *step != "f:status");
    inner
        .map(|(step, below)| {
            let mine = ours.and_then(|ours| ours.get(step));
            match below.as_object() {
                Some(deeper) if !deeper.is_empty() => count(below, mine.and_then(Value::as_object)),
                Some(_) | None => u64::from(mine.is_none()),
            }
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_is_rewritten_if_its_live_value_is_another_or_missing() {
        let written = json!({
            "metadata": {"name": "web", "annotations": {}},
            "spec": {"paused": false, "template": {"spec": {"containers": [
                {"name": "web", "image": "a", "resources": {"limits": {"cpu": "1000m"}}},
                {"name": "side", "image": "b", "env": [{"name": "A", "value": "1"}]},
            ]}}},
        });
        let live = |image: &str, cpu: &str| {
            json!({
                "metadata": {"name": "web", "uid": "u"},
                "spec": {"replicas": 1, "template": {"spec": {"containers": [
                    {"name": "injected", "image": "proxy"},
                    {"name": "side", "image": "b", "env": [{"name": "A", "value": "1"}]},
                    {"name": "web", "image": image, "resources": {"limits": {"cpu": cpu}}},
                ]}}},
            })
        };
        let containers = "spec.template.spec.containers";

        assert_eq!(rewritten(&written, &live("a", "1000m")), [""; 0]);
        assert_eq!(
            rewritten(&written, &live("mirror/a", "1000m")),
            [format!("{containers}[0].image")]
        );
        assert_eq!(
            rewritten(&written, &live("a", "1")),
            [format!("{containers}[0].resources.limits.cpu")]
        );
        assert_eq!(rewritten(&json!({"data": {"a": "1"}}), &json!({})), ["data"]);
    }

    #[test]
    fn fields_of_others_are_counted_without_the_status_and_without_ours() {
        let live = json!({"metadata": {"managedFields": [
            {"manager": FIELD_MANAGER, "fieldsV1": {"f:spec": {"f:replicas": {}, "f:image": {}}}},
            {"manager": "kubectl", "fieldsV1": {"f:spec": {"f:replicas": {}, "f:paused": {}},
                "f:metadata": {"f:annotations": {".": {}, "f:a": {}, "f:b": {}}}}},
            {"manager": "kube-controller-manager", "subresource": "status",
                "fieldsV1": {"f:status": {"f:replicas": {}}}},
        ]}});

        assert_eq!(added(&live), 3);
        assert_eq!(added(&json!({})), 0);
    }
}
