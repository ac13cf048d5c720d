//! Certificate signing requests, created by spokes and read by the hub.
//!
//! The hub uses only the public key of a request: names, usages and lifetime are set by the authority
//! ([`crate::authority`]).

use attest_common::basics::reason::Reason;
use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, PKCS_ED25519, PublicKey};
use rustls_pki_types::CertificateSigningRequestDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::OID_SIG_ED25519;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use crate::bundle::pem;
use crate::identity::Pin;

/// Maximum size of a request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 4096;

/// A new Ed25519 TLS key and the self-signed request for its certificate.
pub struct SigningRequest {
    /// PKCS#8 PEM of the private key. It stays with the spoke.
    pub key_pem: Zeroizing<String>,
    /// PKCS#10 DER, for the hub.
    pub csr_der: Vec<u8>,
}

impl SigningRequest {
    /// Generates a key and a request without any attributes.
    ///
    /// # Errors
    /// [`RequestError::KeyGeneration`] when the operating system provides no randomness.
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

impl SigningRequest {
    /// PKCS#10 PEM, for the API server of a cluster.
    pub fn csr_pem(&self) -> String {
        csr_pem(&self.csr_der)
    }
}

/// Returns the PEM of a request in DER.
pub fn csr_pem(csr_der: &[u8]) -> String {
    pem("CERTIFICATE REQUEST", csr_der)
}

impl std::fmt::Debug for SigningRequest {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("SigningRequest").field("csr_der", &self.csr_der).finish_non_exhaustive()
    }
}

/// The public key of a request whose self-signature is valid.
#[derive(Debug)]
pub struct RequestedKey {
    pub(crate) public_key: PublicKey,
    /// Identifies the key, for single use of a token and for audit.
    pub spki_sha256: Pin,
}

impl RequestedKey {
    /// Parses a request and verifies its self-signature.
    ///
    /// # Errors
    /// When it is too large, not PKCS#10, not correctly self-signed, or not for a strong Ed25519 key.
    pub fn from_csr_der(csr_der: &[u8]) -> Result<Self, RequestError> {
        if csr_der.len() > REQUEST_BYTES_MAX {
            return Err(RequestError::TooLarge { bytes: csr_der.len() });
        }
        let Ok(([], parsed)) = X509CertificationRequest::from_der(csr_der) else {
            return Err(RequestError::Malformed);
        };
        let spki = &parsed.certification_request_info.subject_pki;
        if spki.algorithm.algorithm != OID_SIG_ED25519 || !is_strong(&spki.subject_public_key.data)
        {
            return Err(RequestError::Key);
        }
        let spki_sha256 = Pin::of_spki(spki.raw);
        let verified =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
                .map_err(RequestError::Refused)?;
        Ok(Self { public_key: verified.public_key, spki_sha256 })
    }
}

/// Returns whether the key is strong. A point of small order would accept forged signatures.
fn is_strong(public_key: &[u8]) -> bool {
    <&[u8; 32]>::try_from(public_key)
        .ok()
        .and_then(|bytes| ed25519_dalek::VerifyingKey::from_bytes(bytes).ok())
        .is_some_and(|key| !key.is_weak())
}

/// Errors of creating or reading a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The key cannot be generated.
    #[error("failed to generate a TLS key")]
    KeyGeneration(#[source] rcgen::Error),
    /// Larger than [`REQUEST_BYTES_MAX`].
    #[error("the certificate request has {bytes} bytes; the maximum is {REQUEST_BYTES_MAX}")]
    TooLarge {
        /// Size of the request.
        bytes: usize,
    },
    /// Not exactly one PKCS#10 request.
    #[error("the certificate request is not well-formed PKCS#10")]
    Malformed,
    /// Another algorithm, or a weak key.
    #[error("the certificate request must be for a strong Ed25519 key")]
    Key,
    /// The self-signature is invalid, or the request contains unknown extensions.
    #[error("the self-signature of the certificate request is invalid")]
    Refused(#[source] rcgen::Error),
}

impl RequestError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::KeyGeneration(_) => Reason::KeyGeneration,
            Self::TooLarge { .. } => Reason::RequestTooLarge,
            Self::Malformed => Reason::MalformedRequest,
            Self::Key => Reason::RequestKey,
            Self::Refused(_) => Reason::RequestRefused,
        }
    }
}
