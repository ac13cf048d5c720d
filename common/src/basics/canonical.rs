//! RFC 8785 text of JSON, with integers of up to 64 bits signed as exact decimals.
//!
//! RFC 8785 takes every number for a double, which rounds integers beyond 2^53. Those are written digit by digit here;
//! all other values have the text of the RFC.

use serde_json::{Number, Value};

/// Integers of at least this magnitude are not exact as doubles (2^53).
pub const EXACT_DOUBLE_LIMIT: f64 = 9_007_199_254_740_992.0;
/// First magnitude beyond 64-bit signed integers (2^63).
const INTEGER_LIMIT: f64 = 9_223_372_036_854_775_808.0;

/// A number that has no exact canonical form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {number} is beyond 64-bit signed integers; write it as a string")]
pub struct InexactNumber {
    /// Path such as `spec.limits[0].max`.
    pub field: String,
    /// The number as it was read.
    pub number: String,
}

/// Returns the canonical text.
///
/// # Errors
/// [`InexactNumber`] for a number beyond 64-bit signed integers.
pub fn to_vec(value: &Value) -> Result<Vec<u8>, InexactNumber> {
    let mut out = Vec::new();
    write(value, &mut Path(Vec::new()), &mut out)?;
    Ok(out)
}

/// Checks that every number of a value has an exact canonical form.
///
/// # Errors
/// [`InexactNumber`] names the first that has none.
pub fn check_numbers(value: &Value) -> Result<(), InexactNumber> {
    to_vec(value).map(drop)
}

/// Steps from the root to the current value.
struct Path<'a>(Vec<Step<'a>>);

enum Step<'a> {
    Field(&'a str),
    Index(usize),
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (place, step) in self.0.iter().enumerate() {
            match step {
                Step::Field(name) if place == 0 => write!(out, "{name}")?,
                Step::Field(name) => write!(out, ".{name}")?,
                Step::Index(index) => write!(out, "[{index}]")?,
            }
        }
        Ok(())
    }
}

fn write<'a>(
    value: &'a Value,
    path: &mut Path<'a>,
    out: &mut Vec<u8>,
) -> Result<(), InexactNumber> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => match text_of(number) {
            Some(text) => out.extend_from_slice(&text),
            None => {
                return Err(InexactNumber { field: path.to_string(), number: number.to_string() });
            }
        },
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                path.0.push(Step::Index(index));
                write(item, path, out)?;
                path.0.pop();
            }
            out.push(b']');
        }
        Value::Object(fields) => {
            let mut sorted: Vec<(&String, &Value)> = fields.iter().collect();
            sorted.sort_by(|(one, _), (other, _)| one.encode_utf16().cmp(other.encode_utf16()));
            out.push(b'{');
            for (index, (name, inner)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_string(name, out);
                out.push(b':');
                path.0.push(Step::Field(name));
                write(inner, path, out)?;
                path.0.pop();
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    // Writing to memory does not fail, and serde_json escapes strings as RFC 8785 requires.
    let _ = serde_json::to_writer(out, text);
}

/// Returns the text of a number, if it is exact.
fn text_of(number: &Number) -> Option<Vec<u8>> {
    if let Some(integer) = number.as_i64() {
        return Some(integer.to_string().into_bytes());
    }
    if number.is_u64() {
        return None;
    }
    let double = number.as_f64()?;
    if double.abs() < EXACT_DOUBLE_LIMIT {
        return serde_json_canonicalizer::to_vec(&double).ok();
    }
    // The double itself is an integer; RFC 8785 would print its shortest digits and fill up with zeros.
    let is_integer = (-INTEGER_LIMIT..INTEGER_LIMIT).contains(&double);
    is_integer.then(|| format!("{double:.0}").into_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::basics::json;

    fn text(value: &Value) -> String {
        String::from_utf8(to_vec(value).unwrap()).unwrap()
    }

    #[test]
    fn integers_of_64_bits_keep_their_value_and_larger_numbers_are_refused_by_field() {
        for (number, written) in [
            (json!(0), "0"),
            (json!(-0.0), "0"),
            (json!(5.0), "5"),
            (json!(1e-7), "1e-7"),
            (json!(0.5), "0.5"),
            (json!(9_007_199_254_740_992_i64), "9007199254740992"),
            (json!(9_007_199_254_740_993_i64), "9007199254740993"),
            (json!(-9_007_199_254_740_993_i64), "-9007199254740993"),
            (json!(i64::MAX), "9223372036854775807"),
            (json!(i64::MIN), "-9223372036854775808"),
            (json!(1e16), "10000000000000000"),
            (json!(1e18), "1000000000000000000"),
        ] {
            assert_eq!(text(&number), written);
        }
        for number in [json!(9_223_372_036_854_775_808_u64), json!(1e19), json!(-1e300)] {
            let object = json!({"spec": {"limits": [{"max": number}]}});
            let error = to_vec(&object).unwrap_err();
            assert_eq!(error.field, "spec.limits[0].max", "{number}");
        }
    }

    #[test]
    fn keys_are_sorted_by_utf_16_units() {
        let odd =
            json!({"\u{fb33}": 1, "\u{1f600}": 2, "a": {"z": 1, "b": [true, null, "\u{1}\"\\é"]}});

        let expected = serde_json_canonicalizer::to_string(&odd).unwrap();

        assert_eq!(text(&odd), expected);
    }

    fn any_scalar() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i64>().prop_map(Value::from),
            (-9_007_199_254_740_994_i64..=9_007_199_254_740_994).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            Just(Value::Null),
        ]
    }

    /// Returns whether two scalars have the same value: numbers as numbers.
    fn same(one: &Value, other: &Value) -> bool {
        match (one.as_i64(), other.as_i64()) {
            (Some(one), Some(other)) => one == other,
            (Some(_), None) | (None, Some(_)) | (None, None) => {
                one == other || one.is_number() && one.as_f64() == other.as_f64()
            }
        }
    }

    proptest! {
        #[test]
        fn every_scalar_is_read_as_it_was_written(scalar in any_scalar()) {
            let object = json!({"spec": {"v": scalar}});
            match to_vec(&object) {
                Ok(bytes) => {
                    let read = json::value(&bytes, 8).unwrap();
                    prop_assert!(same(&read["spec"]["v"], &scalar), "{read} {scalar}");
                }
                Err(_) => prop_assert!(scalar.as_f64().is_some_and(|v| v.abs() >= INTEGER_LIMIT)),
            }
        }

        #[test]
        fn below_2_53_the_text_is_that_of_rfc_8785(scalar in any_scalar(), name in any::<String>()) {
            let exact = scalar.as_f64().is_none_or(|v| v.abs() < EXACT_DOUBLE_LIMIT);
            let object = json!({name: [scalar]});
            if exact {
                prop_assert_eq!(to_vec(&object).unwrap(), serde_json_canonicalizer::to_vec(&object).unwrap());
            }
        }
    }
}
