//! Plain scalars: how kubectl's reader resolves them, and where this reader or another one differs.

use serde_json::Value;

use super::options;

/// Longest word that has a meaning of its own.
const WORD_BYTES_MAX: usize = 5;
/// Most significant digits of a fraction that kubectl writes as a key without an exponent and without rounding it.
const KEY_DIGITS_MAX: usize = 6;

/// A plain scalar as kubectl's reader resolves it (`resolve.go` of go.yaml.in/yaml/v2).
#[derive(Clone, Copy, Debug, PartialEq)]
enum Resolved {
    Null,
    Bool(bool),
    Integer(i64),
    /// A fraction, or an integer beyond 64 bits with a sign.
    Number(f64),
    /// Not a number, or infinite.
    NotFinite,
    Text,
}

/// Problem of a plain scalar as a value.
pub(super) fn value_problem(scalar: &str) -> Option<&'static str> {
    let kubectl = resolve(scalar);
    if is_evident(scalar, kubectl) || is_read_as(scalar, kubectl) {
        return None;
    }
    Some(match kubectl {
        Resolved::Null => "is read as null by kubectl: write null, or quote it",
        Resolved::Bool(true) => "is read as true by kubectl: write true, or quote it",
        Resolved::Bool(false) => "is read as false by kubectl: write false, or quote it",
        Resolved::Integer(_) | Resolved::Number(_) => {
            "is read as a number by kubectl: write it in decimal without `_`, or quote it"
        }
        Resolved::NotFinite => "is no number that JSON has: quote it",
        Resolved::Text => "is read as text by kubectl and as another value elsewhere: quote it",
    })
}

/// Returns true if kubectl reads a plain scalar as another text when it is a key.
pub(super) fn changes_as_key(scalar: &str) -> bool {
    match resolve(scalar) {
        Resolved::Null | Resolved::NotFinite => true,
        Resolved::Bool(value) => scalar != value.to_string(),
        Resolved::Integer(value) => scalar != value.to_string(),
        Resolved::Number(_) => !is_plain_fraction(scalar),
        Resolved::Text => value_problem(scalar).is_some(),
    }
}

/// Returns true for a fraction that kubectl writes as it stands, in single precision.
fn is_plain_fraction(scalar: &str) -> bool {
    let unsigned = scalar.strip_prefix('-').unwrap_or(scalar);
    let Some((whole, fraction)) = unsigned.split_once('.') else { return false };
    is_digits(whole)
        && is_digits(fraction)
        && (whole == "0" || !whole.starts_with('0'))
        && !fraction.ends_with('0')
        && !(whole == "0" && fraction.starts_with("000"))
        && whole.len() + fraction.len() <= KEY_DIGITS_MAX
}

/// Returns true for scalars that every reader reads alike: words without a meaning, and decimal integers.
fn is_evident(scalar: &str, kubectl: Resolved) -> bool {
    match kubectl {
        Resolved::Integer(value) => scalar == value.to_string(),
        Resolved::Text => {
            let is_number_like =
                scalar.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
            !is_number_like && scalar.len() > WORD_BYTES_MAX
        }
        Resolved::Null | Resolved::Bool(_) | Resolved::Number(_) | Resolved::NotFinite => false,
    }
}

/// Returns true if this reader resolves a scalar in the same way.
fn is_read_as(scalar: &str, kubectl: Resolved) -> bool {
    let Ok(here) = serde_saphyr::from_str_with_options::<Value>(scalar, options()) else {
        // The reader refuses the file with a message of its own.
        return true;
    };
    match (kubectl, here) {
        (Resolved::Null, Value::Null) => true,
        (Resolved::Bool(kubectl), Value::Bool(here)) => kubectl == here,
        (Resolved::Integer(kubectl), Value::Number(here)) => here
            .as_i64()
            .map_or_else(|| here.as_f64() == Some(as_double(kubectl)), |here| here == kubectl),
        (Resolved::Number(kubectl), Value::Number(here)) => here.as_f64() == Some(kubectl),
        (Resolved::Text, Value::String(_)) => true,
        _ => false,
    }
}

#[expect(clippy::cast_precision_loss, reason = "compared with a double")]
fn as_double(integer: i64) -> f64 {
    integer as f64
}

fn resolve(scalar: &str) -> Resolved {
    match scalar {
        "" | "~" | "null" | "Null" | "NULL" => return Resolved::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Resolved::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Resolved::Bool(false);
        }
        _ => {}
    }
    let unsigned = scalar.strip_prefix(['-', '+']).unwrap_or(scalar);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(scalar, ".nan" | ".NaN" | ".NAN") {
        return Resolved::NotFinite;
    }
    if scalar.starts_with('.') {
        return decimal(scalar).map_or(Resolved::Text, Resolved::Number);
    }
    if !scalar.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+') {
        return Resolved::Text;
    }
    let plain = scalar.replace('_', "");
    integer(&plain).or_else(|| decimal(&plain).map(Resolved::Number)).unwrap_or(Resolved::Text)
}

/// An integer in the notations of Go: decimal, or octal, hexadecimal or binary by its prefix.
fn integer(plain: &str) -> Option<Resolved> {
    let (is_negative, unsigned) = match plain.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, plain.strip_prefix('+').unwrap_or(plain)),
    };
    let lower = unsigned.to_ascii_lowercase();
    let prefixes = [("0x", 16), ("0b", 2), ("0o", 8), ("0", 8)];
    let (digits, base) = prefixes
        .iter()
        .find_map(|(prefix, base)| {
            let digits = lower.strip_prefix(prefix).filter(|digits| !digits.is_empty());
            digits.map(|digits| (digits, *base))
        })
        .unwrap_or((&lower, 10));
    if digits.starts_with(['-', '+']) {
        return None;
    }
    let magnitude = i128::from_str_radix(digits, base).ok()?;
    let value = if is_negative { -magnitude } else { magnitude };
    if let Ok(value) = i64::try_from(value) {
        return Some(Resolved::Integer(value));
    }
    let is_unsigned = !plain.starts_with(['-', '+']);
    let value = u64::try_from(value).ok().filter(|_| is_unsigned)?;
    #[expect(clippy::cast_precision_loss, reason = "kubectl rounds it too")]
    Some(Resolved::Number(value as f64))
}

/// A number in decimal with a fraction or an exponent, if it is finite.
fn decimal(plain: &str) -> Option<f64> {
    let is_decimal = plain.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    plain.parse::<f64>().ok().filter(|number| is_decimal && number.is_finite())
}

/// Returns how a scalar that readers of YAML understand differently is read here.
pub(super) fn ambiguity(scalar: &str) -> Option<&'static str> {
    let lower = scalar.to_ascii_lowercase();
    if matches!(lower.as_str(), "yes" | "on" | "y") {
        return Some("is read as true: write true, or quote it");
    }
    if matches!(lower.as_str(), "no" | "off" | "n") {
        return Some("is read as false: write false, or quote it");
    }
    let number = lower.strip_prefix(['-', '+']).unwrap_or(&lower);
    if number.len() > 1 && number.starts_with('0') && is_digits(number) {
        return Some("is read as an octal number: write it in decimal, or quote it");
    }
    for (prefix, hint) in [
        ("0o", "is read as an octal number: write it in decimal, or quote it"),
        ("0x", "is read as a hexadecimal number: write it in decimal, or quote it"),
        ("0b", "is read as a binary number: write it in decimal, or quote it"),
    ] {
        let rest = number.strip_prefix(prefix).unwrap_or_default();
        if !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'_') {
            return Some(hint);
        }
    }
    if number.contains('_') && is_digits(&number.replace('_', "")) {
        return Some("is read as a number without `_`: leave it out, or quote it");
    }
    if number.contains(':') && number.split(':').all(is_digits) {
        return Some("is read as text here and as a number base 60 elsewhere: quote it");
    }
    None
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
