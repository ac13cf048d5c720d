//! in-toto Statement v1: who says what about which digests. What a predicate must say is `receipt` and `release`.
//!
//! Unknown fields of the statement are ignored, as the specification asks; our own predicate,
//! the release, refuses them because a restriction that an old reader skips would fail open.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::basics::ids::Digest;
use crate::basics::json::{self, JsonError};
use crate::basics::reason::Reason;

/// `_type` of the only accepted statement version.
pub const STATEMENT_V1: &str = "https://in-toto.io/Statement/v1";
/// Most subjects of one statement.
pub const SUBJECTS_MAX: usize = 256;

/// What a receipt or release says, as written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    #[serde(rename = "_type")]
    pub statement_type: String,
    pub subject: Vec<Subject>,
    pub predicate_type: String,
    pub predicate: Value,
}

/// Something a statement is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    #[serde(default)]
    pub name: String,
    pub digest: BTreeMap<String, String>,
}

impl Subject {
    /// A subject known by its SHA-256.
    pub fn new(name: impl Into<String>, digest: Digest) -> Self {
        Self { name: name.into(), digest: BTreeMap::from([("sha256".to_owned(), digest.hex())]) }
    }

    /// The SHA-256 of the subject. Other algorithms do not count: a set with only those matches nothing.
    pub fn sha256(&self) -> Option<Digest> {
        self.digest.get("sha256").and_then(|hex| Digest::from_hex(hex).ok())
    }
}

impl Statement {
    /// A statement about `subject`.
    pub fn new(subject: Vec<Subject>, predicate_type: &str, predicate: Value) -> Self {
        Self {
            statement_type: STATEMENT_V1.to_owned(),
            subject,
            predicate_type: predicate_type.to_owned(),
            predicate,
        }
    }

    /// Reads a statement and checks what every statement must satisfy.
    pub fn read(payload: &[u8]) -> Result<Self, StatementError> {
        let statement: Self = json::document(payload).map_err(StatementError::Json)?;
        if statement.statement_type != STATEMENT_V1 {
            return Err(StatementError::Type(statement.statement_type.chars().take(80).collect()));
        }
        if statement.subject.is_empty() || statement.subject.len() > SUBJECTS_MAX {
            return Err(StatementError::Subjects(statement.subject.len()));
        }
        if statement.subject.iter().any(|s| s.digest.is_empty()) {
            return Err(StatementError::SubjectWithoutDigest);
        }
        Ok(statement)
    }

    /// The bytes to sign.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings, maps and a JSON value have no way to fail to serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// True when a subject has this SHA-256, whatever its name.
    pub fn covers(&self, digest: &Digest) -> bool {
        self.subject.iter().any(|s| s.sha256().as_ref() == Some(digest))
    }

    /// True when a subject has this name and this SHA-256.
    pub fn covers_named(&self, name: &str, digest: &Digest) -> bool {
        self.subject.iter().any(|s| s.name == name && s.sha256().as_ref() == Some(digest))
    }
}

/// Why signed bytes are not an acceptable statement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatementError {
    #[error("the signed bytes are not an in-toto statement")]
    Json(#[source] JsonError),
    #[error("the statement's _type is `{0}`; only {STATEMENT_V1} is accepted")]
    Type(String),
    #[error("the statement has {0} subjects; 1 to {SUBJECTS_MAX} are accepted")]
    Subjects(usize),
    #[error("a subject of the statement has no digest")]
    SubjectWithoutDigest,
}

impl StatementError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        Reason::StatementInvalid
    }
}
