//! The schemas of the CustomResourceDefinitions and the types have the same fields.

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::*;
use crate::applications::lower::DESTINATIONS_MAX;
use crate::rollouts::stages::STAGES_MAX;

/// Fields whose content is opaque to the types.
const OPAQUE: [&str; 6] = [
    "successCriteria",
    "strategy",
    "policyValidation",
    "policy_validation",
    "customHooks",
    "custom_hooks",
];

fn spec_schema(definition: &Value) -> Value {
    let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec");
    schema.unwrap().clone()
}

/// Returns a value of a schema with its required fields.
fn minimal(schema: &Value) -> Value {
    match schema["type"].as_str() {
        Some("string") if schema["enum"].is_array() => schema["enum"][0].clone(),
        Some("string") | None => "x".into(),
        Some("integer") => 1.into(),
        Some("boolean") => true.into(),
        Some("array") => json!([minimal(&schema["items"])]),
        Some("object") => {
            let mut required: BTreeSet<&str> = schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            // Required by a rule, in either spelling.
            if schema["properties"].get("repoUrl").is_some() {
                required.insert("repoUrl");
            }
            let fields = required.into_iter();
            let fields: Map<String, Value> = fields
                .map(|field| (field.to_owned(), minimal(&schema["properties"][field])))
                .collect();
            Value::Object(fields)
        }
        Some(other) => panic!("no value of type {other}"),
    }
}

/// Returns a value of a schema in which an inner value stands in its place.
type Place<'a> = dyn Fn(Value) -> Value + 'a;

/// Calls `check` with the path of each object of a schema, a value that has the object, and its properties.
fn visit(
    schema: &Value,
    path: &str,
    place: &Place<'_>,
    check: &mut dyn FnMut(&str, &Place<'_>, &Value),
) {
    match schema["type"].as_str() {
        Some("array") => {
            visit(&schema["items"], &format!("{path}[]"), &|inner| place(json!([inner])), check);
        }
        // Fields of any name, as of labels.
        Some("object") if schema.get("properties").is_none() => {}
        Some("object") => {
            check(path, place, schema);
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                if OPAQUE.contains(&name.as_str()) {
                    continue;
                }
                let within = |inner: Value| {
                    let mut object = minimal(schema);
                    if name == "repoURL" {
                        object.as_object_mut().unwrap().remove("repoUrl");
                    }
                    object[name] = inner;
                    place(object)
                };
                visit(property, &format!("{path}.{name}"), &within, check);
            }
        }
        _ => {}
    }
}

/// Checks that the objects of a schema have exactly the fields of a type. Returns their number.
fn check_fields<T: DeserializeOwned + Debug>(spec: &Value) -> usize {
    let mut objects = 0;
    visit(spec, "spec", &|value| value, &mut |path, place, schema| {
        objects += 1;
        let properties = schema["properties"].as_object().unwrap();
        for (name, property) in properties {
            let mut object = minimal(schema);
            if name == "repoURL" {
                object.as_object_mut().unwrap().remove("repoUrl");
            }
            object[name] = minimal(property);
            let read = serde_json::from_value::<T>(place(object));
            assert!(read.is_ok(), "{path}.{name} is in the schema only: {read:?}");
        }
        let mut object = minimal(schema);
        object["bogus"] = "x".into();
        let error = serde_json::from_value::<T>(place(object)).unwrap_err().to_string();
        let (unknown, known) = error.split_once(", expected ").unwrap();
        assert!(unknown.contains("unknown field `bogus`"), "{path}: {error}");
        let known: BTreeSet<&str> = known.split('`').skip(1).step_by(2).collect();
        let declared: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
        assert_eq!(known, declared, "fields of {path} in the types and in the schema");
    });
    objects
}

#[test]
fn the_schemas_have_exactly_the_fields_of_the_types() {
    let application = spec_schema(&attest_install::application_definition());
    let policy = spec_schema(&attest_install::trust_policy_definition());

    assert!(check_fields::<Spec>(&application) >= 15);
    assert!(check_fields::<attest_common::trust::policy::Spec>(&policy) >= 8);
}

#[test]
fn every_field_is_described_and_bounded() {
    for definition in
        [attest_install::application_definition(), attest_install::trust_policy_definition()]
    {
        visit(&spec_schema(&definition), "spec", &|value| value, &mut |path, _, schema| {
            assert!(schema["description"].is_string(), "{path} has no description");
            for (name, property) in schema["properties"].as_object().unwrap() {
                assert!(property["description"].is_string(), "{path}.{name} has no description");
                let is_bounded = match property["type"].as_str() {
                    Some("string") => ["maxLength", "enum", "pattern"]
                        .iter()
                        .any(|bound| property.get(bound).is_some()),
                    Some("array") => property["maxItems"].is_u64(),
                    Some("integer") => property["maximum"].is_u64(),
                    _ => true,
                };
                assert!(is_bounded, "{path}.{name} has no bound");
            }
        });
    }
}

#[test]
fn the_schema_has_the_limits_of_the_hub() {
    let definition = attest_install::application_definition();
    let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema/properties").unwrap();
    for (path, max) in [
        ("/spec/properties/destinations", DESTINATIONS_MAX),
        ("/spec/properties/progressiveDelivery/properties/stages", STAGES_MAX),
    ] {
        assert_eq!(schema.pointer(path).unwrap()["maxItems"], max, "{path}");
    }
}
