//! YAML, read once and as kubectl reads it; from here on everything is JSON.
//!
//! `yes` is true and `0644` is 420, with a warning. What kubectl reads differently or not at all, and what it reads in a
//! way that no author means (a key like `n`, the last of two equal keys), is refused. Bombs are refused by budget, before
//! anything is built. `tests/tests/kubectl.rs` compares with kubectl's own reader.

mod budget;
mod json;
mod keys;
mod scalar;
mod syntax;

use std::borrow::Cow;

use attest_common::basics::canonical::check_numbers;
use attest_common::basics::reason::Reason;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_saphyr::granit_parser::{ErrorKind, Event, Parser, ScalarStyle};

use crate::text::one_line;

use budget::{DocumentCount, Exceeded, YAML_DEPTH_MAX};
use keys::KeyCheck;
use syntax::{Problem, SyntaxCheck};

pub use budget::{
    YAML_BYTES_MAX, YAML_DOCUMENTS_MAX, YAML_FILES_MAX, YAML_NODES_MAX, YAML_TEXT_BYTES_MAX,
    YamlBudget,
};

/// Largest YAML file, in bytes.
pub const YAML_FILE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most mappings, sequences and scalars in one file for the reader, which counts an alias in another way.
const READER_NODES_MAX: usize = 1_000_000;

/// Longest part of a scalar in a message, in characters.
const SHOWN_CHARS_MAX: usize = 64;
/// Most warnings that are kept for one rendering.
pub const WARNINGS_MAX: usize = 100;

/// YAML that cannot be read, or that readers would understand differently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{file}: {problem}")]
pub struct YamlError {
    /// The file.
    pub file: String,
    /// Place and rule.
    pub problem: String,
    pub kind: YamlErrorKind,
}

/// The kind of a [`YamlError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum YamlErrorKind {
    /// The text cannot be read, or readers would disagree about it.
    Refused,
    /// The text is larger than is read.
    Limit,
}

impl YamlError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self.kind {
            YamlErrorKind::Refused => Reason::YamlRefused,
            YamlErrorKind::Limit => Reason::Limit,
        }
    }

    fn refused(file: &str, problem: String) -> Self {
        Self { file: file.to_owned(), problem, kind: YamlErrorKind::Refused }
    }

    fn limit(file: &str, problem: String) -> Self {
        Self { file: file.to_owned(), problem, kind: YamlErrorKind::Limit }
    }
}

/// A plain scalar that readers of YAML understand differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// The scalar as written.
    pub scalar: String,
    /// How it is read here, and what to write instead.
    pub hint: Cow<'static, str>,
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
            max_nodes: READER_NODES_MAX,
            max_events: 2 * READER_NODES_MAX,
            max_aliases: READER_NODES_MAX,
            // Aliases are judged by kubectl's rule.
            enforce_alias_anchor_ratio: false,
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
    read_within(&mut YamlBudget::default(), file, bytes, warnings)
}

/// As [`read`], for one of several files that share a budget.
///
/// # Errors
/// As [`read`], and when the files together exceed a limit.
pub fn read_within(
    budget: &mut YamlBudget,
    file: &str,
    bytes: &[u8],
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Value>, YamlError> {
    if bytes.len() > YAML_FILE_BYTES_MAX {
        let problem = format!("is longer than {YAML_FILE_BYTES_MAX} bytes");
        return Err(YamlError::limit(file, problem));
    }
    budget.add_file(bytes.len()).map_err(|exceeded| too_large(file, exceeded))?;
    let Ok(text) = str::from_utf8(bytes) else {
        return Err(YamlError::refused(file, "is not UTF-8".to_owned()));
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some(value) = json::read(text, budget) {
        return Ok(vec![value]);
    }
    scan(file, text, budget, warnings)?;
    let values: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options())
        .map_err(|error| YamlError::refused(file, problem(&error)))?;
    for value in &values {
        check_numbers(value)
            .map_err(|inexact| YamlError::refused(file, format!("{}: {inexact}", named(value))))?;
    }
    Ok(values)
}

fn too_large(file: &str, exceeded: Exceeded) -> YamlError {
    YamlError::limit(file, format!("{exceeded}: make it smaller"))
}

/// Kind and name of an object, for a message.
fn named(value: &Value) -> String {
    let kind = text_at(value, "/kind");
    one_line(&format!("{kind}/{}", text_at(value, "/metadata/name")))
}

fn text_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("?")
}

/// Returns the problem, in words for the author of the file.
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

/// Goes through the events of a file: counts them, refuses keys that change when they are read, and collects ambiguous
/// scalars. Ends at a syntax error, which the reader reports.
fn scan(
    file: &str,
    text: &str,
    budget: &mut YamlBudget,
    warnings: &mut Vec<Warning>,
) -> Result<(), YamlError> {
    syntax::check_lines(text).map_err(|problem| refused_at(file, 0, &problem))?;
    let mut places: Vec<Place> = Vec::new();
    let mut document = DocumentCount::default();
    let mut syntax = SyntaxCheck::new(text);
    let mut keys = KeyCheck::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) => {
                return Err(YamlError::limit(file, one_line(&error.to_string())));
            }
            Err(_) => return Ok(()),
        };
        let line = span.start.line();
        let is_key = places.last() == Some(&Place::Key);
        if let Event::Scalar(scalar, ScalarStyle::Plain, _, None) = &event {
            judge_scalar(file, line, scalar, is_key, warnings)?;
        }
        syntax.event(&event, &span, is_key).map_err(|problem| refused_at(file, line, &problem))?;
        keys.event(&event)
            .map_err(|problem| YamlError::refused(file, format!("{problem} at line {line}")))?;
        follow(&event, &mut places);
        count(&event, &mut document, budget).map_err(|exceeded| too_large(file, exceeded))?;
    }
    Ok(())
}

fn refused_at(file: &str, line: usize, problem: &Problem) -> YamlError {
    let line = problem.line.unwrap_or(line);
    YamlError::refused(file, format!("line {line}: {}", problem.text))
}

/// Adds one event to the size of its document, and a document that ended to the budget.
fn count(
    event: &Event<'_>,
    document: &mut DocumentCount,
    budget: &mut YamlBudget,
) -> Result<(), Exceeded> {
    match event {
        Event::Scalar(scalar, _, anchor, _) => document.scalar(*anchor, scalar.len()),
        Event::SequenceStart(_, anchor, _) | Event::MappingStart(_, anchor, _) => {
            document.start(*anchor)?;
        }
        Event::SequenceEnd | Event::MappingEnd => document.end(),
        Event::Alias(anchor) => document.alias(*anchor)?,
        Event::DocumentEnd => return budget.add_document(&std::mem::take(document)),
        Event::UnresolvedAlias(_)
        | Event::StreamStart
        | Event::StreamEnd
        | Event::DocumentStart(..)
        | Event::Anchor(..)
        | Event::Comment(..)
        | _ => {}
    }
    budget.check(document)
}

/// Keeps track of whether the next node is a key.
fn follow(event: &Event<'_>, places: &mut Vec<Place>) {
    match event {
        Event::Scalar(..) | Event::Alias(_) | Event::UnresolvedAlias(_) => advance(places),
        Event::SequenceStart(..) => places.push(Place::Sequence),
        Event::MappingStart(..) => places.push(Place::Key),
        Event::SequenceEnd | Event::MappingEnd => {
            places.pop();
            advance(places);
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

/// Refuses a key that is another text once it is read; adds an ambiguous value to `warnings`.
fn judge_scalar(
    file: &str,
    line: usize,
    text: &str,
    is_key: bool,
    warnings: &mut Vec<Warning>,
) -> Result<(), YamlError> {
    let hint = scalar::ambiguity(text);
    if is_key && (hint.is_some() || scalar::changes_as_key(text)) {
        let problem = format!(
            "line {line}: key {:?} is read as another value by kubectl: quote it",
            shown(text)
        );
        return Err(YamlError::refused(file, problem));
    }
    if let Some(problem) = scalar::value_problem(text) {
        return Err(YamlError::refused(file, format!("line {line}: {:?} {problem}", shown(text))));
    }
    if let Some(hint) = hint
        && warnings.len() < WARNINGS_MAX
    {
        let hint = Cow::Borrowed(hint);
        warnings.push(Warning { file: file.to_owned(), line, scalar: shown(text), hint });
    }
    Ok(())
}

/// The beginning of a scalar.
fn shown(scalar: &str) -> String {
    scalar.chars().take(SHOWN_CHARS_MAX).collect()
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

#[cfg(test)]
mod tests;
