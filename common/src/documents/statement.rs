//! in-toto Statement v1: a predicate about subjects, which are digests. `receipt` and `release` define the predicates.
//!
//! Unknown fields of the statement are ignored, as the specification requires. The predicate of a release rejects them,
//! because a restriction that an old reader skips would fail open.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::basics::ids::Digest;
use crate::basics::json::{self, JsonError};
use crate::basics::reason::Reason;
use crate::basics::text::shortened;

/// `_type` of the only accepted statement version.
pub const STATEMENT_V1: &str = "https://in-toto.io/Statement/v1";
/// Most subjects of one statement.
pub const SUBJECTS_MAX: usize = 256;

/// A statement as written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    #[serde(rename = "_type")]
    pub statement_type: String,
    pub subject: Vec<Subject>,
    pub predicate_type: String,
    pub predicate: Value,
}

/// Subject of a statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    #[serde(default)]
    pub name: String,
    pub digest: BTreeMap<String, String>,
}

impl Subject {
    /// Creates a subject with a SHA-256 digest.
    pub fn new(name: impl Into<String>, digest: Digest) -> Self {
        Self { name: name.into(), digest: BTreeMap::from([("sha256".to_owned(), digest.hex())]) }
    }

    /// Returns the SHA-256 of the subject. Digests of other algorithms are ignored.
    pub fn sha256(&self) -> Option<Digest> {
        self.digest.get("sha256").and_then(|hex| Digest::from_hex(hex).ok())
    }
}

impl Statement {
    /// Creates a statement about `subject`.
    pub fn new(subject: Vec<Subject>, predicate_type: &str, predicate: Value) -> Self {
        Self {
            statement_type: STATEMENT_V1.to_owned(),
            subject,
            predicate_type: predicate_type.to_owned(),
            predicate,
        }
    }

    /// Parses a statement and checks the rules common to all statements.
    pub fn read(payload: &[u8]) -> Result<Self, StatementError> {
        let statement: Self = json::document(payload).map_err(StatementError::Json)?;
        if statement.statement_type != STATEMENT_V1 {
            return Err(StatementError::Type(shortened(&statement.statement_type)));
        }
        if statement.subject.is_empty() || statement.subject.len() > SUBJECTS_MAX {
            return Err(StatementError::Subjects(statement.subject.len()));
        }
        if statement.subject.iter().any(|s| s.digest.is_empty()) {
            return Err(StatementError::SubjectWithoutDigest);
        }
        Ok(statement)
    }

    /// Returns the bytes to sign.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings, maps and a JSON value cannot fail to serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Returns whether a subject of any name has this SHA-256.
    pub fn covers(&self, digest: &Digest) -> bool {
        self.subject.iter().any(|s| s.sha256().as_ref() == Some(digest))
    }

    /// Returns whether a subject has this name and this SHA-256.
    pub fn covers_named(&self, name: &str, digest: &Digest) -> bool {
        self.subject.iter().any(|s| s.name == name && s.sha256().as_ref() == Some(digest))
    }
}

/// Reason that signed bytes are not a valid statement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatementError {
    #[error("the signed bytes are not an in-toto statement")]
    Json(#[source] JsonError),
    #[error("the statement's _type is `{0}`; only {STATEMENT_V1} is accepted")]
    Type(String),
    #[error("the statement has {0} subjects; must be 1 to {SUBJECTS_MAX}")]
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
