//! Labels and selectors in the form of Kubernetes: pairs of key and value, and conditions on them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::basics::reason::Reason;

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// Most labels of one cluster.
pub const LABELS_MAX: usize = 64;
/// Most conditions of one selector.
pub const CONDITIONS_MAX: usize = 64;
/// Longest name of a key, and longest value, in bytes.
const WORD_BYTES_MAX: usize = 63;
/// Longest prefix of a key, in bytes.
const PREFIX_BYTES_MAX: usize = 253;

/// A label, key or selector that is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    #[error(
        "`{0}` is not a label key; use at most 63 letters, digits, `-`, `_` and `.`, optionally after a DNS name and `/`"
    )]
    Key(String),
    #[error("`{0}` is not a label value; use at most 63 letters, digits, `-`, `_` and `.`")]
    Value(String),
    #[error("`{0}` is not a label; write KEY=VALUE")]
    Pair(String),
    #[error(
        "`{0}` is not a label selector; write KEY=VALUE, KEY!=VALUE, KEY in (A,B), KEY notin (A,B), KEY or !KEY, separated by commas"
    )]
    Selector(String),
    #[error("more than {0} labels or conditions; remove some")]
    TooMany(usize),
}

impl LabelError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::TooMany(_) => Reason::Limit,
            Self::Key(_) | Self::Value(_) | Self::Pair(_) | Self::Selector(_) => {
                Reason::LabelInvalid
            }
        }
    }
}

/// Checks a key: a name, optionally after a DNS name and `/`.
///
/// # Errors
/// [`LabelError::Key`].
pub fn check_key(key: &str) -> Result<(), LabelError> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let has_prefix = prefix.is_none_or(is_dns_name);
    if has_prefix && !name.is_empty() && is_word(name) {
        Ok(())
    } else {
        Err(LabelError::Key(key.to_owned()))
    }
}

/// Checks a value, which may be empty.
///
/// # Errors
/// [`LabelError::Value`].
pub fn check_value(value: &str) -> Result<(), LabelError> {
    if is_word(value) { Ok(()) } else { Err(LabelError::Value(value.to_owned())) }
}

/// Checks every label and their number.
///
/// # Errors
/// The first label that is not valid.
pub fn check(labels: &Labels) -> Result<(), LabelError> {
    if labels.len() > LABELS_MAX {
        return Err(LabelError::TooMany(LABELS_MAX));
    }
    labels.iter().try_for_each(|(key, value)| check_key(key).and_then(|()| check_value(value)))
}

/// Parses `KEY=VALUE`.
///
/// # Errors
/// When it has another form, or key or value is not valid.
pub fn parse_pair(text: &str) -> Result<(String, String), LabelError> {
    let (key, value) = text.split_once('=').ok_or_else(|| LabelError::Pair(text.to_owned()))?;
    check_key(key)?;
    check_value(value)?;
    Ok((key.to_owned(), value.to_owned()))
}

fn is_word(text: &str) -> bool {
    text.len() <= WORD_BYTES_MAX
        && text.bytes().next().is_none_or(|byte| byte.is_ascii_alphanumeric())
        && text.bytes().next_back().is_none_or(|byte| byte.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_dns_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= PREFIX_BYTES_MAX
        && text.split('.').all(|part| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

/// Conditions on labels, all of which must hold. Without conditions it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Selector {
    pub conditions: Vec<LabelCondition>,
}

/// One condition on the value of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LabelCondition {
    In(String, BTreeSet<String>),
    /// Also holds without the key, as in Kubernetes.
    NotIn(String, BTreeSet<String>),
    Exists(String),
    DoesNotExist(String),
}

impl LabelCondition {
    fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

impl Selector {
    /// Returns whether every condition holds for `labels`.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.conditions.iter().all(|condition| condition.holds(labels))
    }

    /// Parses a selector as `kubectl get -l` reads it.
    ///
    /// # Errors
    /// The first condition that is not valid.
    pub fn parse(text: &str) -> Result<Self, LabelError> {
        let mut conditions = Vec::new();
        for part in split_conditions(text) {
            conditions.push(parse_condition(part.trim())?);
        }
        if conditions.len() > CONDITIONS_MAX {
            return Err(LabelError::TooMany(CONDITIONS_MAX));
        }
        Ok(Self { conditions })
    }
}

/// Splits at the commas outside parentheses.
fn split_conditions(text: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut depth) = (Vec::new(), 0, 0_usize);
    for (position, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.extend(text.get(begin..position));
                begin = position + 1;
            }
            _ => {}
        }
    }
    parts.extend(text.get(begin..).filter(|last| !text.trim().is_empty() || !last.is_empty()));
    parts
}

fn parse_condition(text: &str) -> Result<LabelCondition, LabelError> {
    if let Some((left, right)) = text.split_once('(') {
        let values = right.strip_suffix(')').ok_or_else(|| malformed(text))?;
        let (key, operator) =
            left.trim().rsplit_once(char::is_whitespace).ok_or_else(|| malformed(text))?;
        let key = checked_key(key)?;
        let values = values.split(',').map(checked_value).collect::<Result<_, _>>()?;
        return match operator {
            "in" => Ok(LabelCondition::In(key, values)),
            "notin" => Ok(LabelCondition::NotIn(key, values)),
            _ => Err(malformed(text)),
        };
    }
    if let Some((key, value)) = text.split_once("!=") {
        return Ok(LabelCondition::NotIn(checked_key(key)?, [checked_value(value)?].into()));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(LabelCondition::In(checked_key(key)?, [checked_value(value)?].into()));
    }
    match text.strip_prefix('!') {
        Some(key) => Ok(LabelCondition::DoesNotExist(checked_key(key)?)),
        None if text.is_empty() => Err(malformed(text)),
        None => Ok(LabelCondition::Exists(checked_key(text)?)),
    }
}

fn malformed(text: &str) -> LabelError {
    LabelError::Selector(text.to_owned())
}

fn checked_key(text: &str) -> Result<String, LabelError> {
    let key = text.trim();
    check_key(key).map(|()| key.to_owned())
}

fn checked_value(text: &str) -> Result<String, LabelError> {
    let value = text.trim();
    check_value(value).map(|()| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.split(',')
            .filter(|pair| !pair.is_empty())
            .map(|pair| parse_pair(pair).unwrap())
            .collect()
    }

    #[test]
    fn a_selector_means_what_kubectl_means_by_it() {
        let cluster = labels("env=prod,ring=0,attest.continuu.ms/stage=canary,empty=");
        for (selector, selects) in [
            ("", true),
            ("env=prod", true),
            ("env==prod", true),
            ("env=staging", false),
            ("env!=staging", true),
            ("zone!=a", true),
            ("env in (prod, staging),ring", true),
            ("env notin (prod,staging)", false),
            ("zone notin (a)", true),
            ("!zone", true),
            ("!env", false),
            ("empty=", true),
            ("attest.continuu.ms/stage=canary, ring in (0,1)", true),
            ("env=prod,ring=1", false),
        ] {
            let parsed = Selector::parse(selector).unwrap();
            assert_eq!(parsed.matches(&cluster), selects, "{selector}");
        }
    }

    #[test]
    fn malformed_labels_and_selectors_are_refused() {
        for text in ["env", "=prod", "-env=prod", "env=a b", "a/b/c=d", "A.b/c=d", "env=-"] {
            assert!(parse_pair(text).is_err(), "{text}");
        }
        for text in
            [",", "env in", "env in prod", "env within (a)", "!", "env=a,,ring=0", "env in (a"]
        {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
        let long = "k".repeat(64);
        assert!(check_key(&long).is_err() && check_value(&long).is_err());
    }
}
