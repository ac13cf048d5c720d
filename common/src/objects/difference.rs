//! Differences between two renderings: object, field, both values. For display only.
//!
//! Values inside Secrets are never shown, only the path.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::documents::manifest::{Object, ObjectKey};

/// Longest value shown, in characters.
pub const SHOWN_CHARACTERS_MAX: usize = 120;
/// Most differences listed.
pub const DIFFERENCES_MAX: usize = 200;

/// One field that is not the same on both sides. Absent means the side does not have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    pub object: ObjectKey,
    /// Path such as `spec.template.spec.containers[0].image`; empty for the whole object.
    pub field: String,
    pub signed: Option<String>,
    pub found: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = if self.field.is_empty() { "(whole object)" } else { &self.field };
        let side = |v: &Option<String>| v.clone().unwrap_or_else(|| "absent".to_owned());
        write!(
            f,
            "{} {field}: signed {}, found {}",
            self.object,
            side(&self.signed),
            side(&self.found)
        )
    }
}

/// The differences between what was signed and what was found, in object and field order.
pub fn differences(signed: &[Object], found: &[Object]) -> Vec<Difference> {
    let index = |objects: &[Object]| -> BTreeMap<ObjectKey, Value> {
        objects.iter().map(|o| (o.key().clone(), o.value().clone())).collect()
    };
    let (signed, found) = (index(signed), index(found));
    let keys: BTreeSet<&ObjectKey> = signed.keys().chain(found.keys()).collect();
    let mut out = Vec::new();
    for key in keys {
        if out.len() >= DIFFERENCES_MAX {
            break;
        }
        let mut walk = Walk { object: key, path: String::new(), out: &mut out };
        match (signed.get(key), found.get(key)) {
            (Some(a), Some(b)) => walk.compare(a, b),
            (a, b) => walk.note(a.map(|_| "present".to_owned()), b.map(|_| "present".to_owned())),
        }
    }
    out
}

struct Walk<'a> {
    object: &'a ObjectKey,
    path: String,
    out: &'a mut Vec<Difference>,
}

impl Walk<'_> {
    fn compare(&mut self, signed: &Value, found: &Value) {
        if signed == found || self.out.len() >= DIFFERENCES_MAX {
            return;
        }
        match (signed, found) {
            (Value::Object(a), Value::Object(b)) => {
                let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                for name in names {
                    let dot = if self.path.is_empty() { "" } else { "." };
                    self.step(&format!("{dot}{name}"), a.get(name), b.get(name));
                }
            }
            (Value::Array(a), Value::Array(b)) => {
                for index in 0..a.len().max(b.len()) {
                    self.step(&format!("[{index}]"), a.get(index), b.get(index));
                }
            }
            (a, b) => self.note(Some(self.shown(a)), Some(self.shown(b))),
        }
    }

    fn step(&mut self, step: &str, signed: Option<&Value>, found: Option<&Value>) {
        let length = self.path.len();
        self.path.push_str(step);
        match (signed, found) {
            (Some(a), Some(b)) => self.compare(a, b),
            (a, b) => self.note(a.map(|v| self.shown(v)), b.map(|v| self.shown(v))),
        }
        self.path.truncate(length);
    }

    fn note(&mut self, signed: Option<String>, found: Option<String>) {
        let object = self.object.clone();
        self.out.push(Difference { object, field: self.path.clone(), signed, found });
    }

    fn shown(&self, value: &Value) -> String {
        let is_secret = self.object.group.is_empty() && self.object.kind == "Secret";
        if is_secret && !self.path.starts_with("metadata") {
            return "(hidden)".to_owned();
        }
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => value.to_string(),
        };
        text.chars().take(SHOWN_CHARACTERS_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn objects(values: Vec<Value>) -> Vec<Object> {
        values.into_iter().map(|v| Object::new(v).unwrap()).collect()
    }

    #[test]
    fn a_changed_image_is_named_with_object_field_and_both_values() {
        let with = |image: &str| {
            objects(vec![
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
                "spec": {"template": {"spec": {"containers": [{"name": "web", "image": image}]}}}}),
            ])
        };

        let found = differences(&with("myapp:1"), &with("myapp:2"));

        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].to_string(),
            "Deployment.apps/web spec.template.spec.containers[0].image: signed myapp:1, found myapp:2"
        );
    }

    #[test]
    fn values_of_secrets_are_never_shown() {
        let with = |value: &str| {
            objects(vec![json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
                "data": {"password": value}})])
        };

        let found = differences(&with("aHVudGVyMg=="), &with("b3RoZXI="));

        assert_eq!(found[0].to_string(), "Secret/s data.password: signed (hidden), found (hidden)");
    }

    #[test]
    fn objects_on_one_side_only_are_named_whole() {
        let one = objects(vec![
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}),
        ]);

        assert_eq!(
            differences(&one, &[])[0].to_string(),
            "ConfigMap/a (whole object): signed present, found absent"
        );
    }
}
