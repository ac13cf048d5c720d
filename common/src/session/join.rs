//! The single-use join token and the proofs made with it. Pure: the caller supplies randomness and the exporter.
//!
//! `at1.<id>.<secret>.<check>`: the id is public, the secret is never sent, and the check detects typing errors and
//! supports secret scanners. The hub stores only [`JoinToken::key`], the SHA-256 of the secret.

use std::fmt;

use data_encoding::BASE64_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::basics::ids::Digest;
use crate::basics::reason::Reason;

/// Prefix of every token.
pub const TOKEN_PREFIX: &str = "at1";
/// Characters of the public id (50 bits).
pub const TOKEN_ID_CHARACTERS: usize = 10;
/// Characters of the secret (130 bits).
pub const TOKEN_SECRET_CHARACTERS: usize = 26;
/// Random bytes for a new token, one for each character.
pub const TOKEN_RANDOM_BYTES: usize = TOKEN_ID_CHARACTERS + TOKEN_SECRET_CHARACTERS;
/// Longest lifetime of a token in seconds.
pub const TOKEN_LIFETIME_MAX_S: u64 = 24 * 60 * 60;
/// Failed proofs after which a token is revoked.
pub const TOKEN_FAILURES_MAX: u32 = 5;

/// Base 32 of RFC 4648 in lower case.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const CHECK_CHARACTERS: usize = 4;

/// A join token. `Debug` shows the id only; the secret is wiped on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: String,
    secret: Zeroizing<String>,
}

impl JoinToken {
    /// Creates a token from random bytes.
    pub fn from_random(random: &[u8; TOKEN_RANDOM_BYTES]) -> Self {
        let letter =
            |byte: &u8| char::from(ALPHABET.get(usize::from(byte % 32)).copied().unwrap_or(b'a'));
        Self {
            id: random.iter().take(TOKEN_ID_CHARACTERS).map(letter).collect(),
            secret: Zeroizing::new(random.iter().skip(TOKEN_ID_CHARACTERS).map(letter).collect()),
        }
    }

    /// Returns the public id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the SHA-256 of the secret: the key of the proof, and the only part that the hub stores.
    pub fn key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(*Digest::of(self.secret.as_bytes()).raw())
    }

    /// Returns the whole token, for the operator.
    pub fn text(&self) -> Zeroizing<String> {
        let body = format!("{TOKEN_PREFIX}.{}.{}", self.id, self.secret.as_str());
        let check = check_of(&body);
        Zeroizing::new(format!("{body}.{check}"))
    }
}

impl std::str::FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let (body, check) = text.rsplit_once('.').ok_or(TokenError::Form)?;
        let mut parts = body.split('.');
        let (Some(TOKEN_PREFIX), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Form);
        };
        if !is_base32(id, TOKEN_ID_CHARACTERS) || !is_base32(secret, TOKEN_SECRET_CHARACTERS) {
            return Err(TokenError::Form);
        }
        if check != check_of(body) {
            return Err(TokenError::Check);
        }
        Ok(Self { id: id.to_owned(), secret: Zeroizing::new(secret.to_owned()) })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

fn is_base32(part: &str, length: usize) -> bool {
    part.len() == length && part.bytes().all(|byte| ALPHABET.contains(&byte))
}

fn check_of(body: &str) -> String {
    Digest::of(body.as_bytes()).hex().chars().take(CHECK_CHARACTERS).collect()
}

/// Returns the HMAC-SHA256 over `message` (see [`super::message::join_proof_message`]) with a token's key.
pub fn proof(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    mac(key, message).finalize().into_bytes().into()
}

/// Returns whether `proof` is that of `key` over `message`. Compares in constant time.
pub fn proof_holds(key: &[u8; 32], message: &[u8], proof: &[u8]) -> bool {
    mac(key, message).verify_slice(proof).is_ok()
}

fn mac(key: &[u8; 32], message: &[u8]) -> Hmac<Sha256> {
    // HMAC pads keys shorter than a block with zeros (RFC 2104).
    let mut mac = <Hmac<Sha256> as KeyInit>::new(&block(key));
    mac.update(message);
    mac
}

/// Returns the key padded to one block of SHA-256.
fn block(key: &[u8; 32]) -> hmac::digest::Key<Hmac<Sha256>> {
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    block
}

/// Returns `SHA256:` and the unpadded base64 of the identity key's SHA-256, as printed by `ssh-keygen -l`. Compared by
/// `cluster accept --fingerprint`.
pub fn fingerprint(identity_key: &[u8; 32]) -> String {
    format!("SHA256:{}", BASE64_NOPAD.encode(Digest::of(identity_key).raw()))
}

/// Reason that a text is not a join token. Does not contain the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    #[error("not a join token; the format is at1.<10 characters>.<26 characters>.<4 characters>")]
    Form,
    #[error(
        "the join token is mistyped or truncated: its last four characters do not match the rest"
    )]
    Check,
}

impl TokenError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Form => Reason::TokenFormat,
            Self::Check => Reason::TokenChecksum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken::from_random(&std::array::from_fn(|index| u8::try_from(index * 7 % 256).unwrap()))
    }

    #[test]
    fn a_token_reads_back_and_a_mistyped_one_does_not() {
        let text = token().text();

        assert_eq!(text.parse::<JoinToken>().unwrap(), token());
        assert_eq!(format!("{}\n", text.as_str()).parse::<JoinToken>().unwrap(), token());
        let mistyped =
            text.replacen(&text[15..16], if &text[15..16] == "a" { "b" } else { "a" }, 1);
        assert_eq!(mistyped.parse::<JoinToken>().unwrap_err(), TokenError::Check);
        for bad in ["", "at1.a.b.c", &text[1..], &text.to_uppercase(), &text.replace('.', "")] {
            assert_eq!(bad.parse::<JoinToken>().unwrap_err(), TokenError::Form, "{bad}");
        }
    }

    #[test]
    fn the_proof_is_hmac_sha256_and_holds_for_its_message_only() {
        let key = *token().key();

        let made = proof(&key, b"message");

        assert!(proof_holds(&key, b"message", &made));
        assert!(!proof_holds(&key, b"massage", &made));
        assert!(!proof_holds(&[0; 32], b"message", &made));
        assert!(!proof_holds(&key, b"message", &made[..31]));
        // From `openssl dgst -mac HMAC` with 32 bytes 0x0b.
        let known = "198a607eb44bfbc69903a0f1cf2bbdc5ba0aa3f3d9ae3c1c7a3b1696a0b68cf7";
        assert_eq!(data_encoding::HEXLOWER.encode(&proof(&[0x0b; 32], b"Hi There")), known);
    }

    #[test]
    fn debug_never_shows_the_secret() {
        let token = token();

        let shown = format!("{token:?}");

        assert!(shown.contains(token.id()));
        assert!(!shown.contains(&token.text()[15..41]));
    }
}
