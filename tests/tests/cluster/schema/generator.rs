//! Objects of built-in kinds with fields of their OpenAPI schema filled: one field each with a value, null or nothing.

use serde_json::{Map, Value, json};

/// Deepest field that is filled, in mappings.
const DEPTH_MAX: usize = 9;
/// Deepest field inside a pod template that is filled, in mappings.
const TEMPLATE_DEPTH_MAX: usize = 4;

/// Schemas of one group and version, as `/openapi/v3` returns them.
pub(super) struct Schemas<'a>(pub(super) &'a Value);

impl<'a> Schemas<'a> {
    /// Schema of a kind.
    pub(super) fn of(&self, group: &str, version: &str, kind: &str) -> Option<&'a Value> {
        let wanted = json!({"group": group, "version": version, "kind": kind});
        let schemas = self.0.pointer("/components/schemas")?.as_object()?;
        schemas.values().find(|schema| {
            let kinds = schema.get("x-kubernetes-group-version-kind").and_then(Value::as_array);
            kinds.is_some_and(|kinds| kinds.contains(&wanted))
        })
    }

    /// The schema that a reference names.
    fn resolved(&self, schema: &'a Value) -> &'a Value {
        let reference = schema.pointer("/allOf/0/$ref").or_else(|| schema.get("$ref"));
        let name = reference.and_then(Value::as_str).and_then(|text| text.rsplit('/').next());
        let found = name.and_then(|name| self.0.pointer(&format!("/components/schemas/{name}")));
        found.unwrap_or(schema)
    }

    /// Every object that differs from `base` in one field of the schema.
    pub(super) fn variants(&self, schema: &'a Value, base: &Value) -> Vec<Value> {
        let mut places = Vec::new();
        self.places(schema, base, &mut Vec::new(), &mut places);
        let filled = places.iter().flat_map(|(path, field)| {
            self.fillings(field, path).into_iter().map(|filling| with(base, path, filling))
        });
        filled.collect()
    }

    /// Collects every field below `schema` that may be filled in `value`, with its path.
    fn places(
        &self,
        schema: &'a Value,
        value: &Value,
        path: &mut Vec<String>,
        places: &mut Vec<(Vec<String>, &'a Value)>,
    ) {
        let schema = self.resolved(schema);
        if let (Some(items), Some(Value::Object(_))) = (schema.get("items"), value.get(0)) {
            path.push("0".to_owned());
            self.places(items, &value[0], path, places);
            path.pop();
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, field) in properties.into_iter().flatten() {
            if path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind" | "status")
                || path == &["metadata"]
                    && !matches!(
                        name.as_str(),
                        "labels" | "annotations" | "finalizers" | "namespace"
                    )
            {
                continue;
            }
            path.push(name.clone());
            let existing = value.get(name);
            if existing.is_none() || path.len() > 1 {
                places.push((path.clone(), field));
            }
            let is_template = path.iter().any(|name| name == "template");
            let depth_max =
                if is_template { DEPTH_MAX.min(TEMPLATE_DEPTH_MAX + 3) } else { DEPTH_MAX };
            if let Some(existing) = existing
                && path.len() < depth_max
            {
                self.places(field, existing, path, places);
            }
            path.pop();
        }
    }

    /// Values of a field: one of its type, null, and nothing.
    fn fillings(&self, field: &'a Value, path: &[String]) -> Vec<Value> {
        let schema = self.resolved(field);
        let name = path.last().map_or("", String::as_str);
        let mut fillings = vec![self.value(field, name, 0), Value::Null];
        match schema.get("type").and_then(Value::as_str) {
            Some("object") => {
                fillings.push(json!({}));
                if let Some(values) = schema.get("additionalProperties") {
                    fillings.push(json!({"a": null}));
                    if self.resolved(values).get("type") == Some(&json!("string"))
                        && name == "annotations"
                    {
                        fillings.push(awkward_texts());
                    }
                }
            }
            Some("array") => fillings.push(json!([])),
            Some("string") => fillings.push(json!("")),
            Some("integer" | "number") => fillings.push(json!(0)),
            Some("boolean") => fillings.push(json!(false)),
            _ => {}
        }
        if matches!(name, "data" | "stringData") && path.len() == 1 {
            fillings.push(awkward_texts());
        }
        fillings
    }

    /// A value of a schema's type with everything that it requires.
    fn value(&self, field: &'a Value, name: &str, depth: usize) -> Value {
        let schema = self.resolved(field);
        if let Some(first) = schema.pointer("/enum/0").or_else(|| field.pointer("/enum/0")) {
            return first.clone();
        }
        match schema.get("type").and_then(Value::as_str) {
            Some("object") => self.object(schema, depth),
            Some("array") => {
                let item = schema.get("items").map(|items| self.value(items, name, depth + 1));
                json!([item])
            }
            Some("integer") => json!(1),
            Some("number") => json!(1.5),
            Some("boolean") => json!(true),
            Some("string") => text(schema, name),
            _ if schema.get("oneOf").is_some()
                || schema.get("x-kubernetes-int-or-string").is_some() =>
            {
                json!(1)
            }
            _ => json!({"type": "object"}),
        }
    }

    fn object(&self, schema: &'a Value, depth: usize) -> Value {
        if let Some(values) = schema.get("additionalProperties") {
            return json!({"a": self.value(values, "", depth + 1)});
        }
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let properties = schema.get("properties").and_then(Value::as_object);
        let fields: Map<String, Value> = properties
            .into_iter()
            .flatten()
            .filter(|(name, _)| {
                depth < 5 && (required.is_empty() && depth < 2 || required.contains(&name.as_str()))
            })
            .take(4)
            .map(|(name, field)| (name.clone(), self.value(field, name, depth + 1)))
            .collect();
        Value::Object(fields)
    }
}

/// A text that fields of this name often accept.
fn text(schema: &Value, name: &str) -> Value {
    json!(match (schema.get("format").and_then(Value::as_str), name) {
        (Some("date-time"), _) => "2031-01-02T03:04:05Z",
        (Some("byte"), _) => "aGVsbG8=",
        (_, "apiVersion") => "v1",
        (_, "path" | "mountPath" | "subPath" | "devicePath") => "/x",
        (_, "url") => "https://x.example.com",
        (_, "podIP" | "hostIP" | "clusterIP" | "loadBalancerIP" | "ip") => "10.0.0.9",
        (_, "cidr") => "10.0.0.0/8",
        (_, "annotations" | "") => "yes",
        (_, "finalizers") => "example.com/x",
        (_, "namespace") => "default",
        (_, "operator") => "Exists",
        (_, "protocol") => "TCP",
        _ => "x",
    })
}

/// Texts that are other values when they are not quoted.
fn awkward_texts() -> Value {
    json!({
        "a": "", "b": "~", "c": "null", "d": "yes", "e": "0644", "f": "1e3", "g": " x ", "h": "a: b", "i": "# x",
        "j": "x\n", "k": "x\n\n  y\n", "l": "\tx", "m": "é\u{2028}\u{85}\u{1f600}", "n": "\r\n", "o": "- x", "p": "{a}",
        "q": "*x", "r": "'", "s": "\"\\", "t": "%x", "u": ".inf", "v": "1_000", "w": "2001-01-01", "x": "---", "y": "\u{1}",
        "yes": "1", "0": "2", "1.0": "3", "no": "4", "k.y": "<<"
    })
}

/// `base` with another value at `path`.
fn with(base: &Value, path: &[String], filling: Value) -> Value {
    let mut object = base.clone();
    let mut place = &mut object;
    for name in path {
        place = match place {
            Value::Array(items) => &mut items[name.parse::<usize>().expect("an index")],
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Object(_) => &mut place[name.as_str()],
        };
    }
    *place = filling;
    object
}
