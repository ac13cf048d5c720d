//! Ed25519 keys: parsing, encoding and key ids. `policy` defines the roles of keys.
//!
//! A public key is checked once, when it is loaded: small-order, mixed-order and non-canonical points are rejected, so
//! that `verify_strict` accepts only honest signatures (RFC 8032; "Taming the many EdDSAs", 2020).

use std::fmt;

use data_encoding::HEXLOWER;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::spki::{DecodePublicKey, EncodePublicKey};
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::basics::ids::Digest;
use crate::basics::reason::Reason;
use crate::basics::text::shortened;

/// Longest accepted PEM text in bytes.
pub const PEM_BYTES_MAX: usize = 4096;

/// Id of a key: `ed25519:` and the SHA-256 of its SubjectPublicKeyInfo (RFC 7469 hashes the same bytes).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId([u8; 32]);

impl KeyId {
    /// Returns the short form for display: `ed25519-key-` and 16 hexadecimal digits. Not a basis for trust.
    pub fn display_form(&self) -> String {
        format!("ed25519-key-{}", HEXLOWER.encode(&self.0).chars().take(16).collect::<String>())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ed25519:{}", HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for KeyId {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl std::str::FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.strip_prefix("ed25519:")
            .and_then(|hex| Digest::from_hex(hex).ok())
            .map(|digest| Self(*digest.raw()))
            .ok_or_else(|| KeyError::Id(shortened(text)))
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.to_string()
    }
}

fn without_whitespace(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(|character| !character.is_whitespace())
}

/// A checked public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: VerifyingKey,
    id: KeyId,
}

impl PublicKey {
    /// Parses one PEM block `PUBLIC KEY` (SubjectPublicKeyInfo, RFC 8410).
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let one_public_block = text.len() <= PEM_BYTES_MAX
            && text.starts_with("-----BEGIN PUBLIC KEY-----")
            && text.matches("-----BEGIN").count() == 1;
        if !one_public_block {
            return Err(KeyError::Format);
        }
        let key = VerifyingKey::from_public_key_pem(text).map_err(|_| KeyError::Format)?;
        let public = Self::checked(key)?;
        // Only the canonical encoding is accepted.
        if !without_whitespace(&public.to_pem()).eq(without_whitespace(text)) {
            return Err(KeyError::Format);
        }
        Ok(public)
    }

    /// Parses the 32 bytes of RFC 8032.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Weak)?;
        Self::checked(key)
    }

    fn checked(key: VerifyingKey) -> Result<Self, KeyError> {
        let point = key.to_edwards();
        let canonical = point.compress().to_bytes() == key.to_bytes();
        if key.is_weak() || !point.is_torsion_free() || !canonical {
            return Err(KeyError::Weak);
        }
        let der = key.to_public_key_der().map_err(|_| KeyError::Format)?;
        Ok(Self { key, id: KeyId(*Digest::of(der.as_bytes()).raw()) })
    }

    /// Returns the 32 bytes of RFC 8032, which identify the key.
    pub fn bytes(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// Returns the full id.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Returns the PEM text with a final newline.
    pub fn to_pem(&self) -> String {
        // Encoding 32 bytes into a fixed template cannot fail.
        self.key.to_public_key_pem(LineEnding::LF).unwrap_or_default()
    }

    /// Returns whether `signature` is a valid signature of `message` by this key (RFC 8032, cofactorless, strict).
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.key.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id.display_form())
    }
}

/// A private key. `Debug` shows only the id of the public key; the seed is zeroed on drop.
pub struct PrivateKey {
    key: SigningKey,
    public: PublicKey,
}

impl PrivateKey {
    /// Creates the key with this seed, which the caller draws at random.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, KeyError> {
        let key = SigningKey::from_bytes(seed);
        let public = PublicKey::checked(key.verifying_key())?;
        Ok(Self { key, public })
    }

    /// Parses PEM `PRIVATE KEY` (PKCS#8 v1 or v2, RFC 5958).
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.len() > PEM_BYTES_MAX || !text.starts_with("-----BEGIN PRIVATE KEY-----") {
            return Err(KeyError::PrivateFormat);
        }
        let key = SigningKey::from_pkcs8_pem(text).map_err(|_| KeyError::PrivateFormat)?;
        let public = PublicKey::checked(key.verifying_key())?;
        Ok(Self { key, public })
    }

    /// Returns PEM `PRIVATE KEY`, PKCS#8 version 1, which OpenSSL, Python and Node can read.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        KeypairBytes { secret_key: self.key.to_bytes(), public_key: None }
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|_| KeyError::PrivateFormat)
    }

    /// Returns the public key.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `message` with pure Ed25519.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.public.id.display_form())
    }
}

/// Reason that a key is unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    #[error(
        "not one PEM `PUBLIC KEY` block with an Ed25519 key; print one with `attest key show FILE`"
    )]
    Format,
    #[error(
        "not a PEM `PRIVATE KEY` block with an Ed25519 key; create one with `attest key gen FILE`"
    )]
    PrivateFormat,
    #[error("the public key is weak: its point has small or mixed order or is not canonical")]
    Weak,
    #[error("`{0}` is not a key id; must be ed25519: and 64 hexadecimal digits")]
    Id(String),
}

impl KeyError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Format | Self::PrivateFormat => Reason::KeyFormat,
            Self::Weak => Reason::KeyWeak,
            Self::Id(_) => Reason::KeyIdFormat,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_and_the_private_file_is_version_one() {
        let key = PrivateKey::from_seed(&[7; 32]).unwrap();

        let pem = key.to_pem().unwrap();
        assert_eq!(PrivateKey::from_pem(&pem).unwrap().public(), key.public());
        assert_eq!(PublicKey::from_pem(&key.public().to_pem()).unwrap(), *key.public());
        // 48 bytes of DER: version 0, algorithm, seed. Version 1 would carry the public key too.
        let body: String = pem.lines().filter(|l| !l.starts_with("---")).collect();
        assert_eq!(data_encoding::BASE64.decode(body.as_bytes()).unwrap().len(), 48);
        assert_eq!(key.public().id().to_string().parse::<KeyId>().unwrap(), key.public().id());
    }

    #[test]
    fn weak_points_are_refused_at_load() {
        let mut identity = [0; 32];
        identity[0] = 1;
        for torsion in curve25519_dalek::constants::EIGHT_TORSION {
            let bytes = torsion.compress().to_bytes();
            assert_eq!(PublicKey::from_bytes(&bytes).unwrap_err(), KeyError::Weak);
        }
        assert_eq!(PublicKey::from_bytes(&identity).unwrap_err(), KeyError::Weak);
        assert_eq!(PublicKey::from_bytes(&[0xff; 32]).unwrap_err(), KeyError::Weak);
        let honest = PrivateKey::from_seed(&[7; 32]).unwrap();
        let mixed =
            honest.public().key.to_edwards() + curve25519_dalek::constants::EIGHT_TORSION[1];
        let bytes = mixed.compress().to_bytes();
        assert_eq!(PublicKey::from_bytes(&bytes).unwrap_err(), KeyError::Weak);
    }

    #[test]
    fn texts_that_are_not_exactly_one_public_key_are_refused() {
        let key = PrivateKey::from_seed(&[7; 32]).unwrap();
        let public = key.public().to_pem();
        let twice = format!("{public}{public}");
        let x25519 = public.replace("MCowBQYDK2Vw", "MCowBQYDK2Vu");
        let private = key.to_pem().unwrap();
        for bad in [twice.as_str(), &x25519, &private, "", "ssh-ed25519 AAAA"] {
            assert_eq!(PublicKey::from_pem(bad).unwrap_err(), KeyError::Format);
        }
    }
}
