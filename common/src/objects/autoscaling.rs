//! Autoscalers, and the objects whose `spec.replicas` they set. Pure.
//!
//! That field belongs to the autoscaler: it is not written, and no value of it is drift (S46).

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::documents::manifest::{Object, ObjectKey};

/// Group of HorizontalPodAutoscalers.
pub const GROUP: &str = "autoscaling";
/// Kind of HorizontalPodAutoscalers.
pub const KIND: &str = "HorizontalPodAutoscaler";

/// Returns the objects whose replicas an autoscaler of the same rendering sets.
pub fn scale_targets(objects: &[Object]) -> BTreeSet<ObjectKey> {
    objects.iter().filter_map(scale_target).collect()
}

fn scale_target(object: &Object) -> Option<ObjectKey> {
    let key = object.key();
    let is_autoscaler = (key.group.as_str(), key.kind.as_str()) == (GROUP, KIND);
    is_autoscaler.then(|| target_of(object.value(), key.namespace.as_deref())).flatten()
}

/// Returns the object that a HorizontalPodAutoscaler of a namespace scales.
pub fn target_of(autoscaler: &Value, namespace: Option<&str>) -> Option<ObjectKey> {
    let reference = autoscaler.pointer("/spec/scaleTargetRef")?;
    let group = match text(reference, "apiVersion").and_then(|version| version.split_once('/')) {
        Some((group, _)) => group.to_owned(),
        None => String::new(),
    };
    Some(ObjectKey {
        group,
        kind: text(reference, "kind")?.to_owned(),
        namespace: namespace.map(str::to_owned),
        name: text(reference, "name")?.to_owned(),
    })
}

fn text<'a>(reference: &'a Value, field: &str) -> Option<&'a str> {
    reference.get(field).and_then(Value::as_str)
}

/// Path of the number of replicas.
pub const REPLICAS_FIELD: &str = "spec.replicas";

/// Returns the number of replicas that an object sets, if it does.
pub fn replicas(object: &Value) -> Option<&Value> {
    object.pointer("/spec/replicas").filter(|replicas| !replicas.is_null())
}

/// Returns an object without its number of replicas.
pub fn without_replicas(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("replicas");
    }
    object
}

/// Returns an object that sets nothing but the number of replicas.
pub fn replicas_only(object: &Value, replicas: &Value) -> Value {
    let metadata = object.get("metadata").and_then(Value::as_object);
    let mut identity = Map::new();
    for field in ["name", "namespace"] {
        if let Some(value) = metadata.and_then(|metadata| metadata.get(field)) {
            identity.insert(field.to_owned(), value.clone());
        }
    }
    serde_json::json!({
        "apiVersion": object.get("apiVersion"),
        "kind": object.get("kind"),
        "metadata": identity,
        "spec": {"replicas": replicas},
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn autoscaler(kind: &str, target: &Value) -> Object {
        Object::new(json!({
            "apiVersion": "autoscaling/v2", "kind": kind,
            "metadata": {"name": "web", "namespace": "shop"}, "spec": {"scaleTargetRef": target},
        }))
        .unwrap()
    }

    #[test]
    fn an_autoscaler_names_the_object_that_it_scales_in_its_own_namespace() {
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
        let deployment = ObjectKey {
            group: "apps".to_owned(),
            kind: "Deployment".to_owned(),
            namespace: Some("shop".to_owned()),
            name: "web".to_owned(),
        };
        let custom = json!({"apiVersion": "example.com/v1", "kind": "Shard", "name": "web"});
        for (kind, target, expected) in [
            ("HorizontalPodAutoscaler", &target, Some(deployment)),
            ("OtherAutoscaler", &target, None),
            ("HorizontalPodAutoscaler", &json!({"kind": "Deployment"}), None),
        ] {
            let found = scale_targets(&[autoscaler(kind, target)]);
            assert_eq!(found.into_iter().next(), expected);
        }
        let found = scale_targets(&[autoscaler("HorizontalPodAutoscaler", &custom)]);
        assert_eq!(found.first().map(|key| key.group.as_str()), Some("example.com"));
    }

    #[test]
    fn replicas_are_taken_out_and_written_alone() {
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "shop", "labels": {"a": "b"}},
            "spec": {"replicas": 2, "paused": true},
        });

        assert_eq!(replicas(&object), Some(&json!(2)));
        assert_eq!(without_replicas(&object)["spec"], json!({"paused": true}));
        let alone = replicas_only(&object, &json!(5));
        assert_eq!(alone["metadata"], json!({"name": "web", "namespace": "shop"}));
        assert_eq!(alone["spec"], json!({"replicas": 5}));
    }
}
