//! Strict JSON: one document, no duplicate keys at any level, bounded depth, no number that would be rounded.
//!
//! `serde_json::Value` accepts duplicate keys and silently rounds large numbers, so that two readers of the same signed
//! bytes could differ. All signed documents are parsed here.

use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

use crate::basics::canonical::EXACT_DOUBLE_LIMIT;
use crate::basics::reason::Reason;

/// Deepest nesting of a document (envelope, statement, plan).
pub const DOCUMENT_DEPTH_MAX: usize = 32;
/// Deepest nesting of a Kubernetes object; schemas of CRDs are deeply nested.
pub const OBJECT_DEPTH_MAX: usize = 100;

/// Reason that bytes are not strict JSON.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    #[error("the bytes are not one well-formed JSON document")]
    Malformed(#[source] serde_json::Error),
    #[error("the document does not have the expected fields")]
    Fields(#[source] serde_json::Error),
    #[error("the document does not have the expected form")]
    Form(#[source] serde_json::Error),
}

impl JsonError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Malformed(_) => Reason::JsonMalformed,
            Self::Fields(_) => Reason::JsonFields,
            Self::Form(_) => Reason::JsonForm,
        }
    }
}

/// Parses one document into `T`, which decides whether unknown fields are rejected.
pub fn document<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let value = value(bytes, DOCUMENT_DEPTH_MAX)?;
    T::deserialize(value).map_err(|error| {
        if error.to_string().starts_with("unknown field") {
            JsonError::Fields(error)
        } else {
            JsonError::Form(error)
        }
    })
}

/// Parses one document into a `Value` with nesting of at most `depth_max`.
pub fn value(bytes: &[u8], depth_max: usize) -> Result<Value, JsonError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value =
        Strict { depth_left: depth_max }.deserialize(&mut reader).map_err(JsonError::Malformed)?;
    reader.end().map_err(JsonError::Malformed)?;
    Ok(value)
}

/// Escapes the characters of a JSON text for which `is_escaped` returns true. It must not return true for characters of
/// the JSON syntax, which occur outside of strings.
pub fn escaped(json: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut written = String::with_capacity(json.len());
    for c in json.chars() {
        if is_escaped(c) {
            let mut units = [0; 2];
            written.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            written.push(c);
        }
    }
    written
}

#[derive(Clone, Copy)]
struct Strict {
    depth_left: usize,
}

impl Strict {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        let depth_left =
            self.depth_left.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(Self { depth_left })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Value, E> {
        if i64::try_from(v).is_err() {
            return Err(E::custom("number is beyond 64-bit signed integers"));
        }
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        if v.abs() >= EXACT_DOUBLE_LIMIT {
            return Err(E::custom("number would be rounded"));
        }
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number is not finite"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(inner)?;
            match fields.entry(key) {
                Entry::Vacant(place) => place.insert(value),
                Entry::Occupied(twice) => {
                    let key = twice.key();
                    return Err(de::Error::custom(format_args!("key `{key}` appears twice")));
                }
            };
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> &'static str {
        value(text.as_bytes(), DOCUMENT_DEPTH_MAX)
            .map_or_else(|e| e.reason().as_str(), |_| "accepted")
    }

    #[test]
    fn documents_that_two_readers_could_read_differently_are_refused() {
        let deep = format!("{}{}", "[".repeat(33), "]".repeat(33));
        let bracket_flood = "[".repeat(100_000);
        for bad in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"x":{"a":1,"a":1}}"#,
            "{} {}",
            "{}\0",
            "\u{feff}{}",
            "18446744073709551616",
            "9223372036854775808",
            "1e400",
            r#""\ud800""#,
            "NaN",
            deep.as_str(),
            bracket_flood.as_str(),
            "",
        ] {
            assert_eq!(
                reason(bad),
                "JsonMalformed",
                "{}",
                bad.chars().take(30).collect::<String>()
            );
        }
    }

    #[test]
    fn ordinary_documents_are_read() {
        assert_eq!(reason(r#"{"a":[1,-2,0.5,true,null,"x"],"b":{"a":1}}"#), "accepted");
        assert_eq!(reason(" {} \n"), "accepted");
    }

    #[test]
    fn characters_that_are_escaped_say_the_same() {
        let said = "a \u{85} \u{2028} ä \u{1f600} \\u0085 \n";
        let json = serde_json::to_string(said).unwrap();

        let written = escaped(&json, |c| c > 'ä' || c.is_control());

        assert_eq!(written, r#""a \u0085 \u2028 ä \ud83d\ude00 \\u0085 \n""#);
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), said);
        assert_eq!(escaped(&json, |_| false), json);
    }

    #[test]
    fn keys_stay_sorted_so_that_bytes_are_stable() {
        let value = value(br#"{"b":1,"a":2}"#, 4).unwrap();

        assert_eq!(serde_json::to_string(&value).unwrap(), r#"{"a":2,"b":1}"#);
    }
}
