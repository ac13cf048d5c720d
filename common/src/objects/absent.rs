//! Null and empty values of a desired object: what is sent of them, and what of them is ours.
//!
//! A null field is absent, as for kubectl. An empty map or list claims none of the entries that others write in it.

use serde_json::{Map, Value};

use crate::documents::manifest::ObjectKey;

/// Fields of built-in kinds whose entries are data: a null entry there is an entry without a value, not an absent field.
const DATA_FIELDS: [&str; 20] = [
    "annotations",
    "binaryData",
    "capacity",
    "data",
    "default",
    "defaultRequest",
    "hard",
    "labels",
    "limits",
    "matchLabels",
    "max",
    "maxLimitRequestRatio",
    "min",
    "nodeSelector",
    "options",
    "parameters",
    "requests",
    "selector",
    "stringData",
    "volumeAttributes",
];
/// End of the groups that Kubernetes itself defines, besides those without a dot.
const BUILT_IN_GROUPS_END: &str = ".k8s.io";

/// Returns the body that is sent for a desired object: without its null fields.
pub fn without_nulls(key: &ObjectKey, value: &Value) -> Value {
    let built_in = is_built_in(&key.group);
    let mut sent = kept(value, &Place { built_in, field: "", parent: "" });
    if has_aggregated_rules(key, value)
        && let Some(fields) = sent.as_object_mut()
    {
        fields.remove("rules");
    }
    sent
}

/// Returns whether the rules of a ClusterRole are left to the controller that collects them.
fn has_aggregated_rules(key: &ObjectKey, value: &Value) -> bool {
    let is_aggregated = key.group == "rbac.authorization.k8s.io"
        && key.kind == "ClusterRole"
        && value.get("aggregationRule").is_some_and(Value::is_object);
    is_aggregated && value.get("rules").and_then(Value::as_array).is_some_and(Vec::is_empty)
}

fn is_built_in(group: &str) -> bool {
    !group.contains('.') || group.ends_with(BUILT_IN_GROUPS_END)
}

/// Position of a value: the field that holds it, and the field that holds that.
struct Place<'a> {
    built_in: bool,
    field: &'a str,
    parent: &'a str,
}

impl<'a> Place<'a> {
    fn below(&self, field: &'a str) -> Self {
        Self { built_in: self.built_in, field, parent: self.field }
    }

    /// Returns whether the entries of the map here are data.
    fn holds_data(&self) -> bool {
        let of_metadata =
            self.parent == "metadata" && matches!(self.field, "labels" | "annotations");
        of_metadata || self.built_in && DATA_FIELDS.contains(&self.field)
    }
}

fn kept(value: &Value, place: &Place<'_>) -> Value {
    match value {
        Value::Object(fields) => {
            let with_nulls = place.holds_data();
            let stay = fields.iter().filter(|(_, inner)| with_nulls || !inner.is_null());
            Value::Object(
                stay.map(|(name, inner)| (name.clone(), kept(inner, &place.below(name)))).collect(),
            )
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| kept(item, place)).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// The null and empty fields of a desired object, and as much beside them as names the way to them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EmptyFields(Option<Value>);

impl EmptyFields {
    /// Finds them in a desired object.
    pub fn of(key: &ObjectKey, value: &Value) -> Self {
        let built_in = is_built_in(&key.group);
        let mut reduced = way(value, &Place { built_in, field: "", parent: "" });
        if has_aggregated_rules(key, value)
            && let Some(Value::Object(fields)) = &mut reduced
        {
            fields.insert("rules".to_owned(), Value::Null);
        }
        Self(reduced)
    }

    /// Returns the object reduced to them; `None` if there is no such field.
    pub fn reduced(&self) -> Option<&Value> {
        self.0.as_ref()
    }
}

/// Reduces a value to its null and empty fields. Items of lists keep their plain fields, by which they are found.
fn way(value: &Value, place: &Place<'_>) -> Option<Value> {
    match value {
        Value::Object(fields) if fields.is_empty() => Some(value.clone()),
        Value::Array(items) if items.is_empty() => Some(value.clone()),
        Value::Object(fields) => {
            let with_nulls = place.holds_data();
            let reduced: Map<String, Value> = fields
                .iter()
                .filter(|(_, inner)| !(with_nulls && inner.is_null()))
                .filter_map(|(name, inner)| Some((name.clone(), way(inner, &place.below(name))?)))
                .collect();
            (!reduced.is_empty()).then_some(Value::Object(reduced))
        }
        Value::Array(items) => {
            let reduced: Vec<Value> =
                items.iter().filter_map(|item| Some(with_keys(item, way(item, place)?))).collect();
            (!reduced.is_empty()).then_some(Value::Array(reduced))
        }
        Value::Null => Some(Value::Null),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// Adds the plain fields of an item, one of which may be its key.
fn with_keys(item: &Value, reduced: Value) -> Value {
    let (Value::Object(item), Value::Object(mut reduced)) = (item, reduced.clone()) else {
        return reduced;
    };
    let plain = item.iter().filter(|(_, value)| is_plain(value));
    reduced.extend(plain.map(|(name, value)| (name.clone(), value.clone())));
    Value::Object(reduced)
}

fn is_plain(value: &Value) -> bool {
    value.is_string() || value.is_number() || value.is_boolean()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(group: &str, kind: &str) -> ObjectKey {
        ObjectKey {
            group: group.to_owned(),
            kind: kind.to_owned(),
            namespace: None,
            name: "a".to_owned(),
        }
    }

    #[test]
    fn null_fields_are_not_sent_and_null_entries_of_data_are() {
        let value = json!({
            "metadata": {"labels": {"l": null}, "annotations": null},
            "data": {"a": null, "b": "x"},
            "spec": {"replicas": null, "containers": [{"name": "w", "args": null, "env": []}, null],
                "strategy": {}, "x": {"y": null}},
        });

        let sent = without_nulls(&key("", "ConfigMap"), &value);
        let custom = without_nulls(&key("any.example.com", "Any"), &value);

        let spec = json!({"containers": [{"name": "w", "env": []}, null], "strategy": {}, "x": {}});
        let metadata = json!({"labels": {"l": null}});
        assert_eq!(
            sent,
            json!({"metadata": metadata, "data": {"a": null, "b": "x"}, "spec": spec})
        );
        assert_eq!(custom, json!({"metadata": metadata, "data": {"b": "x"}, "spec": spec}));
    }

    #[test]
    fn rules_that_a_controller_collects_are_not_claimed() {
        let role = key("rbac.authorization.k8s.io", "ClusterRole");
        let aggregated = json!({"aggregationRule": {"clusterRoleSelectors": []}, "rules": []});
        let plain = json!({"rules": []});

        let selectors = json!({"clusterRoleSelectors": []});
        assert_eq!(without_nulls(&role, &aggregated), json!({"aggregationRule": selectors}));
        assert_eq!(without_nulls(&role, &plain), plain);
        let reduced = EmptyFields::of(&role, &aggregated);
        assert_eq!(reduced.reduced(), Some(&json!({"aggregationRule": selectors, "rules": null})));
    }

    #[test]
    fn an_object_is_reduced_to_the_way_to_its_empty_fields() {
        let value = json!({
            "metadata": {"name": "a", "annotations": {}},
            "data": {"a": null},
            "spec": {"replicas": 1, "template": {"containers": [
                {"name": "side", "image": "s"}, {"name": "web", "image": "w", "resources": {}, "env": null, "ports": [{}]}]}},
        });

        let reduced = EmptyFields::of(&key("", "ConfigMap"), &value);

        let expected = json!({
            "metadata": {"annotations": {}},
            "spec": {"template": {"containers": [
                {"name": "web", "image": "w", "resources": {}, "env": null, "ports": [{}]}]}},
        });
        assert_eq!(reduced.reduced(), Some(&expected));
        assert_eq!(EmptyFields::of(&key("", "ConfigMap"), &json!({"a": ["b"]})).reduced(), None);
    }
}
