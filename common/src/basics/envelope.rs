//! Signed envelopes: DSSE v1.0.2 with pure Ed25519.
//!
//! [`open`] is the only function that verifies a signature. It returns the verified payload, which callers use instead of
//! the envelope. The payload is opaque here.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::{BASE64, BASE64URL};
use serde::{Deserialize, Serialize};

use crate::basics::ids::Digest;
use crate::basics::json::{self, JsonError};
use crate::basics::keys::{KeyId, PrivateKey, PublicKey};
use crate::basics::reason::Reason;
use crate::basics::text::shortened;

/// Payload type of in-toto statements: receipts and release statements.
pub const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";
/// Payload type of a [`crate::documents::plan::Plan`].
pub const PLAN_TYPE: &str = "application/vnd.attest.plan.v1+json";
/// Payload type of a [`crate::documents::plan::Directive`].
pub const DIRECTIVE_TYPE: &str = "application/vnd.attest.directive.v1+json";
/// Payload type of a [`crate::documents::plan::Sync`].
pub const SYNC_TYPE: &str = "application/vnd.attest.sync.v1+json";

/// Largest receipt, release statement or directive envelope, in bytes.
pub const ENVELOPE_BYTES_MAX: usize = 256 * 1024;
/// Largest plan or sync envelope, in bytes.
pub const PLAN_ENVELOPE_BYTES_MAX: usize = 1024 * 1024;
/// Most signatures of an envelope, checked before any is verified.
pub const SIGNATURES_MAX: usize = 8;
/// Longest key id hint in bytes.
pub const KEY_ID_HINT_BYTES_MAX: usize = 128;

/// A payload of the expected type signed by a trusted key. Only [`open`] creates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    payload: Vec<u8>,
    signers: BTreeSet<KeyId>,
    id: Digest,
}

impl Opened {
    /// Returns the signed bytes.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Returns the trusted keys with a valid signature. Never empty.
    pub fn signers(&self) -> &BTreeSet<KeyId> {
        &self.signers
    }

    /// Returns the SHA-256 of the pre-authentication encoding, the identity of the signed document. The bytes of the
    /// envelope are not canonical and identify nothing.
    pub fn id(&self) -> Digest {
        self.id
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    payload_type: String,
    payload: String,
    signatures: Vec<WrittenSignature>,
}

#[derive(Serialize, Deserialize)]
struct WrittenSignature {
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// Returns the DSSE pre-authentication encoding; lengths are in bytes.
pub fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out =
        format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

/// Returns the identity of a payload, equal to [`Opened::id`].
pub fn id_of(payload_type: &str, payload: &[u8]) -> Digest {
    Digest::of(&pre_authentication_encoding(payload_type, payload))
}

/// Signs `payload` with each key and writes the envelope.
pub fn seal(payload_type: &str, payload: &[u8], keys: &[&PrivateKey]) -> Vec<u8> {
    let message = pre_authentication_encoding(payload_type, payload);
    let signatures = keys
        .iter()
        .map(|key| WrittenSignature {
            keyid: key.public().id().to_string(),
            sig: BASE64.encode(&key.sign(&message)),
        })
        .collect();
    let written = Written {
        payload_type: payload_type.to_owned(),
        payload: BASE64.encode(payload),
        signatures,
    };
    // Three strings and a list cannot fail to serialise.
    serde_json::to_vec(&written).unwrap_or_default()
}

/// A parsed envelope, not verified.
pub(crate) struct Unopened {
    payload: Vec<u8>,
    /// The pre-authentication encoding, over which signatures are made.
    message: Vec<u8>,
    id: Digest,
    signatures: Vec<WrittenSignature>,
}

impl Unopened {
    /// Parses `envelope`. `payload_type` must match exactly and is checked before the payload is decoded.
    pub(crate) fn read(envelope: &[u8], payload_type: &str) -> Result<Self, EnvelopeError> {
        let bytes_max = match payload_type {
            PLAN_TYPE | SYNC_TYPE => PLAN_ENVELOPE_BYTES_MAX,
            _ => ENVELOPE_BYTES_MAX,
        };
        if envelope.len() > bytes_max {
            return Err(EnvelopeError::Limit { what: "bytes", max: bytes_max });
        }
        let written: Written = json::document(envelope).map_err(EnvelopeError::Json)?;
        if written.payload_type != payload_type {
            return Err(EnvelopeError::PayloadType {
                expected: payload_type.to_owned(),
                found: shortened(&written.payload_type),
            });
        }
        if written.signatures.len() > SIGNATURES_MAX {
            return Err(EnvelopeError::Limit { what: "signatures", max: SIGNATURES_MAX });
        }
        let payload = base64(&written.payload).ok_or(EnvelopeError::Base64)?;
        let message = pre_authentication_encoding(payload_type, &payload);
        let id = Digest::of(&message);
        Ok(Self { payload, message, id, signatures: written.signatures })
    }

    /// Returns the identity of the payload, see [`Opened::id`].
    pub(crate) fn id(&self) -> Digest {
        self.id
    }

    /// Verifies that at least one of `keys` has signed. See [`open`].
    pub(crate) fn open(self, keys: &BTreeMap<KeyId, PublicKey>) -> Result<Opened, EnvelopeError> {
        let mut signers = BTreeSet::new();
        for signature in &self.signatures {
            if signature.keyid.len() > KEY_ID_HINT_BYTES_MAX || !signature.keyid.is_ascii() {
                return Err(EnvelopeError::Limit { what: "key id", max: KEY_ID_HINT_BYTES_MAX });
            }
            let bytes = base64(&signature.sig).and_then(|b| <[u8; 64]>::try_from(b).ok());
            let Some(bytes) = bytes else { continue };
            if let Some(signer) = signer_of(&self.message, &bytes, &signature.keyid, keys) {
                signers.insert(signer);
            }
        }
        if signers.is_empty() {
            let hints = self.signatures.into_iter().map(|signature| signature.keyid).collect();
            return Err(EnvelopeError::SignatureInvalid { hints });
        }
        Ok(Opened { payload: self.payload, signers, id: self.id })
    }
}

/// Verifies `envelope` and returns its payload.
///
/// At least one of `keys` must have signed; signatures by other keys are ignored (DSSE). The key id in the envelope is
/// only a hint for the order of attempts.
pub fn open(
    envelope: &[u8],
    payload_type: &str,
    keys: &BTreeMap<KeyId, PublicKey>,
) -> Result<Opened, EnvelopeError> {
    Unopened::read(envelope, payload_type)?.open(keys)
}

/// Returns the unverified payload and key id hints of an envelope, for display and for finding candidates.
pub fn peek(envelope: &[u8], payload_type: &str) -> Option<(Vec<u8>, Vec<String>)> {
    let read = Unopened::read(envelope, payload_type).ok()?;
    Some((read.payload, read.signatures.into_iter().map(|s| s.keyid).collect()))
}

fn signer_of(
    message: &[u8],
    signature: &[u8; 64],
    hint: &str,
    keys: &BTreeMap<KeyId, PublicKey>,
) -> Option<KeyId> {
    let hinted = hint.parse::<KeyId>().ok().and_then(|id| keys.get(&id));
    // Tries the named key first, and every key at most once.
    let others = keys.values().filter(|key| hinted.is_none_or(|hinted| hinted.id() != key.id()));
    hinted.into_iter().chain(others).find(|key| key.verifies(message, signature)).map(PublicKey::id)
}

/// Decodes the standard or the URL-safe alphabet, not mixed; padded; no trailing bits (RFC 4648; DSSE requires both).
fn base64(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text.as_bytes()).or_else(|_| BASE64URL.decode(text.as_bytes())).ok()
}

/// Reason that an envelope cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    #[error("the envelope exceeds the limit of {max} {what}")]
    Limit { what: &'static str, max: usize },
    #[error("the envelope is not strict JSON")]
    Json(#[source] JsonError),
    #[error("the envelope contains `{found}`; must be `{expected}`")]
    PayloadType { expected: String, found: String },
    #[error("the envelope's payload is not base64")]
    Base64,
    #[error("no trusted key has signed the envelope (it names {})", shown(.hints))]
    SignatureInvalid { hints: Vec<String> },
}

fn shown(hints: &[String]) -> String {
    if hints.is_empty() { "no key".to_owned() } else { hints.join(", ") }
}

impl EnvelopeError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Limit { .. } => Reason::Limit,
            Self::Json(_) => Reason::EnvelopeMalformed,
            Self::PayloadType { .. } => Reason::PayloadType,
            Self::Base64 => Reason::EnvelopeBase64,
            Self::SignatureInvalid { .. } => Reason::SignatureInvalid,
        }
    }
}

#[cfg(test)]
mod tests;
