//! The schema of the CustomResourceDefinition and the types have the same fields.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::*;

/// Fields whose content is opaque to the types.
const OPAQUE: [&str; 6] = [
    "progressiveDelivery",
    "strategy",
    "policyValidation",
    "policy_validation",
    "customHooks",
    "custom_hooks",
];

fn spec_schema() -> Value {
    let definition = attest_install::application_definition();
    let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec");
    schema.unwrap().clone()
}

/// Returns a value of a schema with its required fields.
fn minimal(schema: &Value) -> Value {
    match schema["type"].as_str() {
        Some("string") | None => "x".into(),
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

#[test]
fn the_schema_has_exactly_the_fields_of_the_types() {
    let spec = spec_schema();
    let mut objects = 0;

    visit(&spec, "spec", &|value| value, &mut |path, place, schema| {
        objects += 1;
        let properties = schema["properties"].as_object().unwrap();
        for (name, property) in properties {
            let mut object = minimal(schema);
            if name == "repoURL" {
                object.as_object_mut().unwrap().remove("repoUrl");
            }
            object[name] = minimal(property);
            let read = serde_json::from_value::<Spec>(place(object));
            assert!(read.is_ok(), "{path}.{name} is in the schema only: {read:?}");
        }
        let mut object = minimal(schema);
        object["bogus"] = "x".into();
        let error = serde_json::from_value::<Spec>(place(object)).unwrap_err().to_string();
        let (unknown, known) = error.split_once(", expected ").unwrap();
        assert!(unknown.contains("unknown field `bogus`"), "{path}: {error}");
        let known: BTreeSet<&str> = known.split('`').skip(1).step_by(2).collect();
        let declared: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
        assert_eq!(known, declared, "fields of {path} in the types and in the schema");
    });

    assert!(objects >= 7, "{objects}");
}

#[test]
fn every_field_is_described_and_bounded() {
    let spec = spec_schema();

    visit(&spec, "spec", &|value| value, &mut |path, _, schema| {
        assert!(schema["description"].is_string(), "{path} has no description");
        for (name, property) in schema["properties"].as_object().unwrap() {
            assert!(property["description"].is_string(), "{path}.{name} has no description");
            let is_bounded = match property["type"].as_str() {
                Some("string") => property["maxLength"].is_u64(),
                Some("array") => property["maxItems"].is_u64(),
                _ => true,
            };
            assert!(is_bounded, "{path}.{name} has no bound");
        }
    });
}
