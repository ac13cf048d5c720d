//! A request for a certificate, as a spoke makes it and the hub reads it.
//!
//! The hub takes the public key out of a request and nothing else: names, usages and lifetime are
//! the authority's own decision ([`crate::authority`]).

use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, PKCS_ED25519, PublicKey};
use rustls_pki_types::CertificateSigningRequestDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::OID_SIG_ED25519;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use crate::identity::Pin;

/// Largest request read, in bytes.
pub const REQUEST_BYTES_MAX: usize = 4096;

/// A new Ed25519 TLS key and the self-signed request for a certificate over it.
pub struct SigningRequest {
    /// PKCS#8 PEM of the private key. It stays with the spoke.
    pub key_pem: Zeroizing<String>,
    /// PKCS#10 DER, for the hub.
    pub csr_der: Vec<u8>,
}

impl SigningRequest {
    /// Makes a key and a request that carries no wishes.
    ///
    /// # Errors
    /// [`RequestError::KeyGeneration`] when the system has no randomness to give.
    pub fn generate() -> Result<Self, RequestError> {
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(RequestError::KeyGeneration)?;
        let request = CertificateParams::default()
            .serialize_request(&key)
            .map_err(RequestError::KeyGeneration)?;
        Ok(Self {
            key_pem: Zeroizing::new(key.serialize_pem()),
            csr_der: request.der().as_ref().to_vec(),
        })
    }
}

impl std::fmt::Debug for SigningRequest {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("SigningRequest").field("csr_der", &self.csr_der).finish_non_exhaustive()
    }
}

/// The public key of a request, after its self-signature was checked.
#[derive(Debug)]
pub struct RequestedKey {
    pub(crate) public_key: PublicKey,
    /// Names the key, for single use of a token and for audit.
    pub spki_sha256: Pin,
}

impl RequestedKey {
    /// Reads a request.
    ///
    /// # Errors
    /// When it is too large, not PKCS#10, badly self-signed, or not for a sound Ed25519 key.
    pub fn from_csr_der(csr_der: &[u8]) -> Result<Self, RequestError> {
        if csr_der.len() > REQUEST_BYTES_MAX {
            return Err(RequestError::TooLarge { bytes: csr_der.len() });
        }
        let Ok(([], parsed)) = X509CertificationRequest::from_der(csr_der) else {
            return Err(RequestError::Malformed);
        };
        let spki = &parsed.certification_request_info.subject_pki;
        if spki.algorithm.algorithm != OID_SIG_ED25519 || !is_sound(&spki.subject_public_key.data) {
            return Err(RequestError::Key);
        }
        let spki_sha256 = Pin::of_spki(spki.raw);
        let verified =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
                .map_err(RequestError::Refused)?;
        Ok(Self { public_key: verified.public_key, spki_sha256 })
    }
}

/// A point of small order would accept signatures that nobody made.
fn is_sound(public_key: &[u8]) -> bool {
    <&[u8; 32]>::try_from(public_key)
        .ok()
        .and_then(|bytes| ed25519_dalek::VerifyingKey::from_bytes(bytes).ok())
        .is_some_and(|key| !key.is_weak())
}

/// Why a request was not made or not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// No key could be made.
    #[error("cannot make a TLS key")]
    KeyGeneration(#[source] rcgen::Error),
    /// Larger than [`REQUEST_BYTES_MAX`].
    #[error("certificate request of {bytes} bytes; at most {REQUEST_BYTES_MAX} are read")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not one PKCS#10 request.
    #[error("the certificate request is not well-formed PKCS#10")]
    Malformed,
    /// Another algorithm, or a weak key.
    #[error("the certificate request must be for a sound Ed25519 key")]
    Key,
    /// The self-signature is wrong, or it asks for something unknown.
    #[error("the certificate request does not verify")]
    Refused(#[source] rcgen::Error),
}

impl RequestError {
    /// A stable word for metric labels and condition reasons. Never reworded.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::KeyGeneration(_) => "KeyGeneration",
            Self::TooLarge { .. } => "RequestTooLarge",
            Self::Malformed => "MalformedRequest",
            Self::Key => "RequestKey",
            Self::Refused(_) => "RequestRefused",
        }
    }
}
