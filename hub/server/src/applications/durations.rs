//! Durations in manifests, such as `10m` or `1h30m`. Pure.

use serde_json::Value;

/// Longest duration, in milliseconds: 30 days.
pub(crate) const DURATION_MAX_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// Units, longest first, with their length in milliseconds.
const UNITS: [(&str, u64); 5] =
    [("d", 24 * 60 * 60 * 1000), ("h", 60 * 60 * 1000), ("m", 60 * 1000), ("s", 1000), ("ms", 1)];
/// Most decimals of a number.
const DECIMALS_MAX: usize = 9;

/// Reason that a value is not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DurationError {
    #[error("is empty; write a duration such as \"10m\"")]
    Empty,
    #[error("is neither text nor a whole number of seconds; write a duration such as \"10m\"")]
    Type,
    #[error("is negative; write a duration such as \"10m\"")]
    Negative,
    #[error("has no unit; add d, h, m, s or ms, as in \"10m\"")]
    UnitMissing,
    #[error("is not a duration; write units in descending order, each once, as in \"1h30m\"")]
    Syntax,
    #[error("is not a whole number of milliseconds")]
    Precision,
    #[error("is longer than 30 days")]
    TooLong,
}

/// Reads a duration in milliseconds: text with units, or a whole number of seconds.
pub(crate) fn parse(value: &Value) -> Result<u64, DurationError> {
    match value {
        Value::String(text) => parse_text(text.trim()),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(seconds), _) => bounded(u128::from(seconds) * 1000),
            (None, Some(_)) => Err(DurationError::Negative),
            (None, None) => Err(DurationError::Type),
        },
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            Err(DurationError::Type)
        }
    }
}

fn bounded(ms: u128) -> Result<u64, DurationError> {
    let ms = u64::try_from(ms).map_err(|_| DurationError::TooLong)?;
    if ms > DURATION_MAX_MS { Err(DurationError::TooLong) } else { Ok(ms) }
}

fn parse_text(text: &str) -> Result<u64, DurationError> {
    match text {
        "" => return Err(DurationError::Empty),
        "0" => return Ok(0),
        _ if text.starts_with('-') => return Err(DurationError::Negative),
        _ => {}
    }
    let mut units = UNITS.iter();
    let (mut rest, mut total_ms) = (text, 0_u128);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        if unit.is_empty() && after.is_empty() && is_number(number) {
            return Err(DurationError::UnitMissing);
        }
        let (_, unit_ms) =
            units.by_ref().find(|(name, _)| *name == unit).ok_or(DurationError::Syntax)?;
        total_ms += scaled(number, *unit_ms)?;
        rest = after;
    }
    bounded(total_ms)
}

/// Returns whether `text` is a decimal without leading zeros.
fn is_number(text: &str) -> bool {
    let (whole, decimals) = text.split_once('.').map_or((text, None), |(w, d)| (w, Some(d)));
    !whole.is_empty()
        && (whole == "0" || !whole.starts_with('0'))
        && decimals.is_none_or(|decimals| !decimals.is_empty() && !decimals.contains('.'))
}

fn scaled(number: &str, unit_ms: u64) -> Result<u128, DurationError> {
    if !is_number(number) {
        return Err(DurationError::Syntax);
    }
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let decimals = decimals.trim_end_matches('0');
    if decimals.len() > DECIMALS_MAX {
        return Err(DurationError::Precision);
    }
    let whole: u64 = whole.parse().map_err(|_| DurationError::TooLong)?;
    let scale = 10_u128.pow(u32::try_from(decimals.len()).unwrap_or(0));
    let fraction: u128 = if decimals.is_empty() { 0 } else { decimals.parse().unwrap_or(0) };
    let fraction_ms = fraction * u128::from(unit_ms);
    if !fraction_ms.is_multiple_of(scale) {
        return Err(DurationError::Precision);
    }
    Ok(u128::from(whole) * u128::from(unit_ms) + fraction_ms / scale)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_are_read_exactly() {
        for (written, ms) in [
            (json!("0"), 0),
            (json!(0), 0),
            (json!("0s"), 0),
            (json!("5m"), 300_000),
            (json!(" 5m "), 300_000),
            (json!("1h30m"), 5_400_000),
            (json!("1.5h"), 5_400_000),
            (json!("90s"), 90_000),
            (json!("500ms"), 500),
            (json!("1h0.5m"), 3_630_000),
            (json!(300), 300_000),
            (json!("30d"), DURATION_MAX_MS),
        ] {
            assert_eq!(parse(&written), Ok(ms), "{written}");
        }
    }

    #[test]
    fn what_is_not_a_duration_is_refused_by_kind() {
        use DurationError::{Empty, Negative, Precision, Syntax, TooLong, Type, UnitMissing};
        for (written, error) in [
            (json!("5"), UnitMissing),
            (json!("5 m"), Syntax),
            (json!("5M"), Syntax),
            (json!("m5"), Syntax),
            (json!(".5h"), Syntax),
            (json!("1e3s"), Syntax),
            (json!("1m1h"), Syntax),
            (json!("1m1m"), Syntax),
            (json!("01m"), Syntax),
            (json!("-5m"), Negative),
            (json!(-5), Negative),
            (json!(""), Empty),
            (json!("31d"), TooLong),
            (json!("99999999999999999999d"), TooLong),
            (json!("0.0001ms"), Precision),
            (json!(true), Type),
            (json!(null), Type),
            (json!(1.5), Type),
        ] {
            assert_eq!(parse(&written), Err(error), "{written}");
        }
    }
}
