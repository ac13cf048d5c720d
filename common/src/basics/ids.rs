//! Identifiers: digests, names, cluster ids, destinations.
//!
//! Every type is validated on construction, so that no malformed value exists.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::basics::reason::Reason;
use crate::basics::text::shortened;

/// Longest [`Name`] in bytes: a DNS-1123 label (RFC 1123, Kubernetes object names for namespaces).
pub const NAME_BYTES_MAX: usize = 63;

/// A point in time in documents: RFC 3339, UTC.
pub type Timestamp = jiff::Timestamp;

/// A SHA-256 digest, written `sha256:<64 lower-case hex>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Creates a digest from its raw bytes.
    pub fn from_raw(raw: [u8; 32]) -> Self {
        Self(raw)
    }

    /// Returns the 32 raw bytes.
    pub fn raw(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns 64 lower-case hexadecimal digits, without a prefix.
    pub fn hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// Returns the first 12 hexadecimal digits, for display.
    pub fn short(&self) -> String {
        self.hex().chars().take(12).collect()
    }

    /// Parses 64 lower-case hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self, IdError> {
        let bytes =
            HEXLOWER.decode(text.as_bytes()).map_err(|_| IdError::Digest(shortened(text)))?;
        let raw = bytes.try_into().map_err(|_| IdError::Digest(shortened(text)))?;
        Ok(Self(raw))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Digest {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let hex = text.strip_prefix("sha256:").ok_or_else(|| IdError::Digest(shortened(text)))?;
        Self::from_hex(hex)
    }
}

impl TryFrom<String> for Digest {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// A name of an application, cluster, namespace or environment: a DNS-1123 label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Checks `text` against DNS-1123: lower-case letters, digits and `-`, at most 63 bytes,
    /// first and last alphanumeric.
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        let fits = !text.is_empty()
            && text.len() <= NAME_BYTES_MAX
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
            && text.as_bytes().last().is_some_and(u8::is_ascii_alphanumeric);
        if fits { Ok(Self(text)) } else { Err(IdError::Name(shortened(&text))) }
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::str::FromStr for Name {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// Identity of a spoke: `c-` and the first 16 hexadecimal digits of the SHA-256 of its identity key.
///
/// The *name* of a cluster is for display and may be reused; the id is not.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId(String);

impl ClusterId {
    /// Returns the id of the spoke with this identity public key (RFC 8032 encoding).
    pub fn of_identity_key(public_key: &[u8; 32]) -> Self {
        let hex = Digest::of(public_key).hex();
        Self(format!("c-{}", hex.chars().take(16).collect::<String>()))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for ClusterId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for ClusterId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        let fits = text.strip_prefix("c-").is_some_and(|hex| {
            hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if fits { Ok(Self(text)) } else { Err(IdError::ClusterId(shortened(&text))) }
    }
}

impl From<ClusterId> for String {
    fn from(id: ClusterId) -> Self {
        id.0
    }
}

/// Key of a destination, which has one ledger, one Directive and one Report.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DestinationKey {
    pub application: Name,
    pub cluster: ClusterId,
    pub namespace: Name,
}

impl fmt::Display for DestinationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.application, self.cluster, self.namespace)
    }
}

/// Reason that a text is not a valid identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    #[error("`{0}` is not a digest; must be sha256: and 64 lower-case hexadecimal digits")]
    Digest(String),
    #[error(
        "`{0}` is not a name; must be at most 63 lower-case letters, digits and `-`, \
         beginning and ending with a letter or digit"
    )]
    Name(String),
    #[error("`{0}` is not a cluster id; the format is c-0123456789abcdef")]
    ClusterId(String),
}

impl IdError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Digest(_) => Reason::DigestFormat,
            Self::Name(_) => Reason::NameInvalid,
            Self::ClusterId(_) => Reason::ClusterIdInvalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kubernetes_would_refuse_are_refused_here() {
        for bad in ["", "-a", "a-", "A", "a.b", "w\u{435}b", "a/b", &"a".repeat(64)] {
            assert_eq!(Name::new(bad).unwrap_err().reason().as_str(), "NameInvalid", "{bad}");
        }
        for good in ["a", "web-app", "0a", &"a".repeat(63)] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_digest_reads_back_and_nothing_close_to_it_does() {
        let digest = Digest::of(b"x");
        let text = digest.to_string();

        assert_eq!(text.parse::<Digest>().unwrap(), digest);
        for bad in [&text[7..], &text.to_uppercase(), &text[..70], &format!("{text}0")] {
            assert_eq!(
                bad.parse::<Digest>().unwrap_err().reason().as_str(),
                "DigestFormat",
                "{bad}"
            );
        }
    }
}
