//! Responses of the API server as JSON, down to a depth. Deeper values are dropped and never make a response unreadable.
//!
//! An API server stores objects that are nested up to 10 000 levels, also in fields that other writers
//! may set on an object. An object that cannot be read would be one whose drift is not detected.

use std::fmt;

use attest_common::basics::json::OBJECT_DEPTH_MAX;
use kube::api::{ApiResource, ObjectMeta};
use kube::core::DynamicResourceScope;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Map, Value};

/// Most levels that are read. No signed value is nested deeper, nor is its entry in `managedFields`,
/// also in a list. serde_json reads 128.
pub const DEPTH_MAX: usize = OBJECT_DEPTH_MAX + 16;

/// Parses a document.
///
/// # Errors
/// If it is not JSON.
pub fn read(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Down(DEPTH_MAX).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// One object of a list or watch.
#[derive(Clone)]
pub struct LiveObject {
    pub value: Value,
    /// Name, namespace, UID and version only.
    pub metadata: ObjectMeta,
}

impl fmt::Debug for LiveObject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Live").finish_non_exhaustive()
    }
}

impl<'de> Deserialize<'de> for LiveObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Down(DEPTH_MAX).deserialize(deserializer)?;
        let text = |field| value.get("metadata")?.get(field)?.as_str().map(str::to_owned);
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { value, metadata })
    }
}

impl kube::Resource for LiveObject {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(kind: &ApiResource) -> std::borrow::Cow<'_, str> {
        kind.kind.as_str().into()
    }

    fn group(kind: &ApiResource) -> std::borrow::Cow<'_, str> {
        kind.group.as_str().into()
    }

    fn version(kind: &ApiResource) -> std::borrow::Cow<'_, str> {
        kind.version.as_str().into()
    }

    fn api_version(kind: &ApiResource) -> std::borrow::Cow<'_, str> {
        kind.api_version.as_str().into()
    }

    fn plural(kind: &ApiResource) -> std::borrow::Cow<'_, str> {
        kind.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Reads a value of at most this many levels; values below the last are skipped without recursion.
#[derive(Clone, Copy)]
struct Down(usize);

impl<'de> DeserializeSeed<'de> for Down {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.0 {
            0 => deserializer.deserialize_ignored_any(IgnoredAny).map(|_| Value::Null),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Down {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let (below, mut all) = (Self(self.0.saturating_sub(1)), Vec::new());
        while let Some(item) = items.next_element_seed(below)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let (below, mut all) = (Self(self.0.saturating_sub(1)), Map::new());
        while let Some(name) = fields.next_key::<String>()? {
            all.insert(name, fields.next_value_seed(below)?);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use kube::api::{ObjectList, WatchEvent};
    use serde_json::json;

    use super::*;

    /// A live object with an entry in `managedFields` as deep as an API server keeps it.
    fn deep_object() -> String {
        let deep = format!("{}{{}}{}", r#"{"f:a":"#.repeat(9_000), "}".repeat(9_000));
        format!(
            r#"{{"apiVersion":"apps/v1","kind":"Deployment","metadata":{{"name":"web","namespace":"shop",
            "uid":"u","resourceVersion":"7","managedFields":[{{"manager":"x","fieldsV1":{deep}}}]}},
            "spec":{{"image":"edited","replicas":-2,"ratio":0.5,"limit":18446744073709551615,"on":true,"off":null}}}}"#
        )
        .replace('\n', "")
    }

    #[test]
    fn an_object_is_seen_however_deep_somebody_nests_what_is_in_it() {
        let object = deep_object();

        let answer = read(object.as_bytes()).unwrap();
        let event = format!(r#"{{"type":"MODIFIED","object":{object}}}"#);
        let Ok(WatchEvent::Modified(seen)) = serde_json::from_str::<WatchEvent<LiveObject>>(&event)
        else {
            panic!("an event is not read");
        };
        let list = format!(
            r#"{{"kind":"List","apiVersion":"v1","metadata":{{"resourceVersion":"8"}},"items":[{object}]}}"#
        );
        let listed: ObjectList<LiveObject> = serde_json::from_str(&list).unwrap();

        let spec = json!({"image": "edited", "replicas": -2, "ratio": 0.5, "limit": u64::MAX, "on": true, "off": null});
        assert_eq!(answer["spec"], spec);
        assert_eq!((&seen.value, &listed.items[0].value), (&answer, &answer));
        assert_eq!(seen.metadata.name.as_deref(), Some("web"));
        assert_eq!(seen.metadata.resource_version.as_deref(), Some("7"));
    }

    #[test]
    fn what_may_be_signed_is_read_to_its_last_level() {
        let nested = |levels: usize| (0..levels).fold(json!("end"), |inner, _| json!([inner]));
        // Where our entry of `managedFields` begins, in a list.
        let below = 6;
        let signed = nested(OBJECT_DEPTH_MAX + below);

        assert_eq!(read(signed.to_string().as_bytes()).unwrap(), signed);
    }

    #[test]
    fn what_is_not_json_is_an_error_and_not_nothing() {
        for text in ["", "<html>", "{", r#"{"kind":"Status"} {}"#] {
            assert!(read(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(read(b"null").unwrap(), Value::Null);
    }
}
