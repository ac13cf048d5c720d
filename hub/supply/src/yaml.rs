//! YAML, read once and as kubectl reads it; from here on everything is JSON.
//!
//! `yes` is true and `0644` is 420, with a warning. What kubectl would read in a way that nobody means — a key like
//! `n`, the last of two equal keys — is refused. Bombs are refused by budget.

use attest_common::basics::canonical::check_numbers;
use attest_common::basics::reason::Reason;
use serde_json::Value;
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle};

use crate::text::one_line;

/// Largest YAML file, in bytes.
pub const YAML_FILE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most documents in one file.
pub const YAML_DOCUMENTS_MAX: usize = 5_000;
/// Deepest nesting, in mappings and sequences.
const YAML_DEPTH_MAX: usize = 64;
/// Most mappings, sequences and scalars in one file, after aliases.
const YAML_NODES_MAX: usize = 500_000;
/// Most aliases in one file.
const YAML_ALIASES_MAX: usize = 10_000;

/// Most warnings that are kept for one rendering.
pub const WARNINGS_MAX: usize = 100;

/// YAML that cannot be read, or that readers would understand differently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct YamlError {
    /// The file.
    pub file: String,
    /// Where and what.
    pub problem: String,
}

impl YamlError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        Reason::YamlRefused
    }
}

/// A plain scalar that readers of YAML understand differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// The scalar as written.
    pub scalar: String,
    /// How it is read here, and what to write instead.
    pub hint: &'static str,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}: {:?} {}", self.file, self.line, self.scalar, self.hint)
    }
}

/// How every YAML file is read.
pub(crate) fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        legacy_octal_numbers: true,
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        reject_unsupported_tags: true,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(YAML_FILE_BYTES_MAX),
            max_depth: YAML_DEPTH_MAX,
            max_documents: YAML_DOCUMENTS_MAX,
            max_nodes: YAML_NODES_MAX,
            max_aliases: YAML_ALIASES_MAX,
        },
    }
}

/// Every document of `file` that is not empty. Ambiguous scalars are added to `warnings`.
///
/// # Errors
/// [`YamlError`] names the file, the line and the problem.
pub fn read(
    file: &str,
    bytes: &[u8],
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Value>, YamlError> {
    let refuse = |problem: String| Err(YamlError { file: file.to_owned(), problem });
    if bytes.len() > YAML_FILE_BYTES_MAX {
        return refuse(format!("is longer than {YAML_FILE_BYTES_MAX} bytes"));
    }
    let Ok(text) = str::from_utf8(bytes) else {
        return refuse("is not UTF-8".to_owned());
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let values: Vec<Value> = match serde_saphyr::from_multiple_with_options(text, options()) {
        Ok(values) => values,
        Err(error) => return refuse(problem(&error)),
    };
    look_for_ambiguity(file, text, warnings)?;
    for value in &values {
        if let Err(inexact) = check_numbers(value) {
            return refuse(format!("{}: {inexact}", named(value)));
        }
    }
    Ok(values)
}

/// Kind and name of an object, for a message.
fn named(value: &Value) -> String {
    let kind = text_at(value, "/kind");
    one_line(&format!("{kind}/{}", text_at(value, "/metadata/name")))
}

fn text_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("?")
}

/// What is wrong, in words for the author of the file.
pub(crate) fn problem(error: &serde_saphyr::Error) -> String {
    let Some(key) = twice(error) else { return one_line(&error.to_string()) };
    let at = error.location().map(|at| format!(" at line {}, column {}", at.line(), at.column()));
    one_line(&format!("key `{key}` is given twice{}", at.unwrap_or_default()))
}

/// The key that a mapping has twice.
pub(crate) fn twice(error: &serde_saphyr::Error) -> Option<&str> {
    if let serde_saphyr::Error::DuplicateMappingKey { key, .. } = error.without_snippet() {
        key.as_deref()
    } else {
        None
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Sequence,
    Key,
    Value,
}

fn look_for_ambiguity(
    file: &str,
    text: &str,
    warnings: &mut Vec<Warning>,
) -> Result<(), YamlError> {
    let mut open: Vec<Place> = Vec::new();
    for event in Parser::new_from_str(text) {
        let Ok((event, span)) = event else { return Ok(()) };
        let is_key = open.last() == Some(&Place::Key);
        match event {
            Event::Scalar(scalar, ScalarStyle::Plain, _, None) => {
                let line = span.start.line();
                match ambiguity(&scalar) {
                    hint if is_key && (hint.is_some() || changes_as_key(&scalar)) => {
                        return Err(YamlError {
                            file: file.to_owned(),
                            problem: format!(
                                "line {line}: key {scalar:?} is read as another value by kubectl: quote it"
                            ),
                        });
                    }
                    _ if is_fraction_with_underscores(&scalar) => {
                        return Err(YamlError {
                            file: file.to_owned(),
                            problem: format!(
                                "line {line}: {scalar:?} is read as a number without `_` by kubectl: leave `_` out, or quote it"
                            ),
                        });
                    }
                    Some(hint) if warnings.len() < WARNINGS_MAX => {
                        let scalar = scalar.chars().take(64).collect();
                        warnings.push(Warning { file: file.to_owned(), line, scalar, hint });
                    }
                    Some(_) | None => {}
                }
                advance(&mut open);
            }
            Event::Scalar(..) | Event::Alias(_) | Event::UnresolvedAlias(_) => advance(&mut open),
            Event::SequenceStart(..) => open.push(Place::Sequence),
            Event::MappingStart(..) => open.push(Place::Key),
            Event::SequenceEnd | Event::MappingEnd => {
                open.pop();
                advance(&mut open);
            }
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd
            | Event::Anchor(..)
            | Event::Comment(..)
            | _ => {}
        }
    }
    Ok(())
}

/// In a mapping, a value follows a key and a key a value.
fn advance(open: &mut [Place]) {
    if let Some(place) = open.last_mut() {
        *place = match *place {
            Place::Sequence => Place::Sequence,
            Place::Key => Place::Value,
            Place::Value => Place::Key,
        };
    }
}

/// Whether a number or nothing, once it is read and written again as a key, is another text.
fn changes_as_key(scalar: &str) -> bool {
    if matches!(scalar, "" | "~" | "null" | "Null" | "NULL") {
        return true;
    }
    let digits = scalar.trim_start_matches(['-', '+']).starts_with(|c: char| c.is_ascii_digit());
    digits && scalar.parse::<f64>().is_ok_and(|number| number.to_string() != scalar)
}

/// Returns whether kubectl reads a scalar as a number with a fraction or an exponent, and this reader as text.
fn is_fraction_with_underscores(scalar: &str) -> bool {
    let plain = scalar.replace('_', "");
    let unsigned = plain.strip_prefix(['-', '+']).unwrap_or(&plain);
    scalar.contains('_')
        && unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && (unsigned.contains(['.', 'e', 'E']) || scalar.ends_with('_'))
        && unsigned.parse::<f64>().is_ok_and(f64::is_finite)
}

fn ambiguity(scalar: &str) -> Option<&'static str> {
    let lower = scalar.to_ascii_lowercase();
    if matches!(lower.as_str(), "yes" | "on" | "y") {
        return Some("is read as true: write true, or quote it");
    }
    if matches!(lower.as_str(), "no" | "off" | "n") {
        return Some("is read as false: write false, or quote it");
    }
    let number = lower.strip_prefix(['-', '+']).unwrap_or(&lower);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if number.len() > 1 && number.starts_with('0') && digits(number) {
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
    if number.contains('_') && digits(&number.replace('_', "")) {
        return Some("is read as a number without `_`: leave it out, or quote it");
    }
    if number.contains(':') && number.split(':').all(digits) {
        return Some("is read as text here and as a number base 60 elsewhere: quote it");
    }
    None
}

#[cfg(test)]
mod tests;
