//! A file that is one JSON document: read as JSON, as kubectl does.

use std::fmt;

use attest_common::basics::json;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::YamlBudget;
use super::budget::{DocumentCount, Exceeded, YAML_DEPTH_MAX};

/// Returns the document, if the text is one JSON object within the limits that has only one reading. Other texts are
/// judged as YAML.
pub(super) fn read(text: &str, budget: &mut YamlBudget) -> Option<Value> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let mut count = DocumentCount::default();
    let mut reader = serde_json::Deserializer::from_str(text);
    Counting { count: &mut count, budget }.deserialize(&mut reader).ok()?;
    let value = json::value(text.as_bytes(), YAML_DEPTH_MAX).ok()?;
    budget.add_document(&count).ok()?;
    Some(value)
}

/// Counts a document without building it.
struct Counting<'a> {
    count: &'a mut DocumentCount,
    budget: &'a YamlBudget,
}

impl Counting<'_> {
    fn again(&mut self) -> Counting<'_> {
        Counting { count: self.count, budget: self.budget }
    }

    fn scalar<E: serde::de::Error>(self, bytes: usize) -> Result<(), E> {
        self.count.scalar(0, bytes);
        self.budget.check(self.count).map_err(too_large)
    }
}

fn too_large<E: serde::de::Error>(exceeded: Exceeded) -> E {
    E::custom(exceeded)
}

impl<'de> DeserializeSeed<'de> for Counting<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counting<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.scalar(0)
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.scalar(0)
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.scalar(0)
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.scalar(0)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar(0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.scalar(text.len())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        self.count.start(0).map_err(A::Error::custom)?;
        while items.next_element_seed(self.again())?.is_some() {}
        self.count.end();
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
        self.count.start(0).map_err(A::Error::custom)?;
        while fields.next_key_seed(self.again())?.is_some() {
            fields.next_value_seed(self.again())?;
        }
        self.count.end();
        Ok(())
    }
}
