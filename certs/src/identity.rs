//! SPIFFE identities: the names that certificates give their holders, parsed strictly.
//!
//! Nothing here trusts a certificate; [`crate::tls`] verifies chains. Identity comes from the
//! certificate alone, never from the content of a message.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use attest_common::basics::reason::Reason;
use data_encoding::HEXLOWER;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::asn1_rs::Oid;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Maximum length of a SPIFFE id, in bytes (the limit of the SPIFFE standard).
pub const SPIFFE_ID_BYTES_MAX: usize = 2048;
/// Maximum length of a trust domain, in bytes.
pub const TRUST_DOMAIN_BYTES_MAX: usize = 255;
/// Maximum length of the name in the last path segment, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

const SCHEME: &str = "spiffe://";
const PATH_ROOT: &str = "attest";
const PIN_PREFIX: &str = "sha256:";
/// Object identifier of `dnQualifier` (RFC 4519, section 2.8), which distinguishes certificates of one name.
pub(crate) const GENERATION_ARCS: [u64; 4] = [2, 5, 4, 46];

/// Role of a certificate's holder in the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Issues directives to spokes.
    Hub,
    /// Acts in one cluster.
    Spoke,
    /// A person or program that uses the hub's API without restrictions.
    Operator,
    /// A person or program that reads through the hub's API and changes nothing.
    Viewer,
}

impl Role {
    fn segment(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::Spoke => "spoke",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }

    fn from_segment(segment: &str) -> Option<Self> {
        let all = [Self::Hub, Self::Spoke, Self::Operator, Self::Viewer];
        all.into_iter().find(|role| role.segment() == segment)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.segment())
    }
}

/// Permissions of a client of the hub's API. Part of its certificate, so that a change needs another certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperatorRole {
    /// Reads and changes everything.
    #[default]
    Operator,
    /// Reads everything and changes nothing.
    Viewer,
}

impl OperatorRole {
    /// Returns the role of a certificate; `None` for one that is not a client of the API.
    pub fn of(role: Role) -> Option<Self> {
        match role {
            Role::Operator => Some(Self::Operator),
            Role::Viewer => Some(Self::Viewer),
            Role::Hub | Role::Spoke => None,
        }
    }
}

impl From<OperatorRole> for Role {
    fn from(role: OperatorRole) -> Self {
        match role {
            OperatorRole::Operator => Self::Operator,
            OperatorRole::Viewer => Self::Viewer,
        }
    }
}

impl fmt::Display for OperatorRole {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        Role::from(*self).fmt(out)
    }
}

impl FromStr for OperatorRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = Role::from_segment(text).and_then(Self::of);
        role.ok_or_else(|| format!("`{text}` is not a role; must be operator or viewer"))
    }
}

/// `spiffe://<trust domain>/attest/{hub|spoke|operator|viewer}/<name>`. Compared whole, never by pattern.
///
/// The name of a spoke is its cluster id, not the name of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: String,
    role: Role,
    name: String,
}

impl SpiffeId {
    /// Checks both parts against the character sets of the SPIFFE standard.
    ///
    /// # Errors
    /// [`IdentityError::SpiffeId`] for any character or length outside them.
    pub fn new(trust_domain: &str, role: Role, name: &str) -> Result<Self, IdentityError> {
        if !is_trust_domain(trust_domain) || !is_segment(name) {
            return Err(IdentityError::SpiffeId(format!(
                "{SCHEME}{trust_domain}/{PATH_ROOT}/{role}/{name}"
            )));
        }
        Ok(Self { trust_domain: trust_domain.to_owned(), role, name: name.to_owned() })
    }

    /// Trust domain of the fleet, as chosen at `attest hub init`.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Role of the holder.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Name within the role: hub name, cluster id or operator name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, role, name } = self;
        write!(out, "{SCHEME}{trust_domain}/{PATH_ROOT}/{role}/{name}")
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (trust_domain, role, name) =
            split_id(text).ok_or_else(|| IdentityError::SpiffeId(excerpt(text)))?;
        Self::new(trust_domain, role, name)
    }
}

/// Trust domain, role and name of a SPIFFE id, not yet checked for their characters.
fn split_id(text: &str) -> Option<(&str, Role, &str)> {
    if text.len() > SPIFFE_ID_BYTES_MAX {
        return None;
    }
    let mut parts = text.strip_prefix(SCHEME)?.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(trust_domain), Some(PATH_ROOT), Some(role), Some(name), None) => {
            Some((trust_domain, Role::from_segment(role)?, name))
        }
        _ => None,
    }
}

/// The beginning of a text from a peer, for error messages.
fn excerpt(text: &str) -> String {
    text.chars().take(NAME_BYTES_MAX).collect()
}

/// Returns whether the text is a lowercase DNS-like trust domain without port, user or path.
pub(crate) fn is_trust_domain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= TRUST_DOMAIN_BYTES_MAX
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

fn is_segment(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= NAME_BYTES_MAX
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// The serial number of a certificate: lowercase hex without leading zero bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(String);

impl Serial {
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(HEXLOWER.encode(bytes.get(zeros..).unwrap_or_default()))
    }

    /// The hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// SHA-256 of a public key (DER SubjectPublicKeyInfo), written `sha256:<64 hex digits>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin([u8; 32]);

impl Pin {
    /// Computes the pin of the key in a certificate.
    ///
    /// # Errors
    /// [`IdentityError::Malformed`] when the bytes are not one X.509 certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        Ok(Self::of_spki(parse(certificate)?.public_key().raw))
    }

    pub(crate) fn of_spki(spki_der: &[u8]) -> Self {
        Self(Sha256::digest(spki_der).into())
    }

    /// The raw digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{PIN_PREFIX}{}", HEXLOWER.encode(&self.0))
    }
}

impl FromStr for Pin {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digest = text
            .strip_prefix(PIN_PREFIX)
            .and_then(|hex| HEXLOWER.decode(hex.as_bytes()).ok())
            .and_then(|bytes| bytes.try_into().ok());
        digest.map(Self).ok_or_else(|| IdentityError::Pin(excerpt(text)))
    }
}

/// Identity of a peer, from its verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// SPIFFE id of the peer.
    pub id: SpiffeId,
    /// Serial number of the certificate; the hub compares it with its list of revoked ones.
    pub serial: Serial,
    /// Pin of the peer's key.
    pub spki_sha256: Pin,
    /// Start of validity; renewal is due at a share of the lifetime.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Rises with each certificate of a spoke; 0 for certificates without one.
    pub generation: u64,
}

/// Reads the identity of the leaf (first) certificate of a chain by the X509-SVID rules.
///
/// Call it on chains that TLS has verified; signatures are not checked here.
///
/// # Errors
/// The first violated rule.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, IdentityError> {
    let leaf = chain.first().ok_or(IdentityError::NoCertificate)?;
    let certificate = parse(leaf)?;

    if certificate.basic_constraints()?.is_some_and(|extension| extension.value.ca) {
        return Err(IdentityError::AuthorityAsLeaf);
    }
    let usage = certificate.key_usage()?.ok_or(IdentityError::KeyUsage("is missing"))?;
    if !usage.critical {
        return Err(IdentityError::KeyUsage("is not critical"));
    }
    if !usage.value.digital_signature() {
        return Err(IdentityError::KeyUsage("lacks digitalSignature"));
    }
    if usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err(IdentityError::KeyUsage("allows signing certificates"));
    }
    if let Some(extended) = certificate.extended_key_usage()?
        && !(extended.value.server_auth && extended.value.client_auth)
    {
        return Err(IdentityError::ExtendedKeyUsage);
    }

    let names = certificate.subject_alternative_name()?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(uri);
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err(IdentityError::UriCount);
    };

    let validity = certificate.validity();
    Ok(PeerIdentity {
        id: uri.parse()?,
        serial: Serial::from_bytes(certificate.raw_serial()),
        spki_sha256: Pin::of_spki(certificate.public_key().raw),
        not_before: system_time(validity.not_before),
        not_after: system_time(validity.not_after),
        generation: generation(&certificate)?,
    })
}

/// Reads the generation of a certificate: one decimal number without leading zeros, or none.
fn generation(certificate: &X509Certificate<'_>) -> Result<u64, IdentityError> {
    let oid = Oid::from(&GENERATION_ARCS).map_err(|_| IdentityError::Generation)?;
    let mut qualifiers = certificate.subject().iter_by_oid(&oid);
    let Some(qualifier) = qualifiers.next() else { return Ok(0) };
    let text = qualifier.as_str()?;
    match text.parse::<u64>() {
        Ok(number) if number > 0 && qualifiers.next().is_none() && number.to_string() == text => {
            Ok(number)
        }
        Ok(_) | Err(_) => Err(IdentityError::Generation),
    }
}

fn system_time(time: x509_parser::time::ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Parses exactly one certificate.
pub(crate) fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, IdentityError> {
    match X509Certificate::from_der(certificate.as_ref()) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) | Err(_) => Err(IdentityError::Malformed),
    }
}

/// Returns the text of a URI name; other kinds of names are not identities.
pub(crate) fn uri<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    if let GeneralName::URI(uri) = name { Some(uri) } else { None }
}

/// Reasons why a certificate does not identify a member of the fleet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The peer presented no certificate.
    #[error("no certificate was presented")]
    NoCertificate,
    /// Not one DER X.509 certificate, or a repeated extension.
    #[error("the certificate is not well-formed X.509")]
    Malformed,
    /// A CA certificate in the place of a leaf.
    #[error("the certificate is that of a certificate authority, not of a member")]
    AuthorityAsLeaf,
    /// Key usage breaks the X509-SVID rules.
    #[error("the certificate's key usage {0}")]
    KeyUsage(&'static str),
    /// Extended key usage with only one of serverAuth and clientAuth.
    #[error("the certificate's extended key usage must hold both serverAuth and clientAuth")]
    ExtendedKeyUsage,
    /// No URI, or more than one, among the subject alternative names.
    #[error("the certificate must carry exactly one URI name")]
    UriCount,
    /// Not one positive decimal number.
    #[error("the certificate's generation is not one positive decimal number")]
    Generation,
    /// Not `spiffe://<trust domain>/attest/{hub|spoke|operator|viewer}/<name>`.
    #[error("{0:?} is not an ATTEST SPIFFE id")]
    SpiffeId(String),
    /// Not `sha256:<64 lowercase hex digits>`.
    #[error("{0:?} is not a pin (sha256:<64 lowercase hex digits>)")]
    Pin(String),
    /// A valid identity with the wrong role for this connection.
    #[error("{id} is not a {wanted}")]
    Role {
        /// The peer's identity.
        id: SpiffeId,
        /// The required role.
        wanted: Role,
    },
    /// A valid identity of another fleet.
    #[error("{id} is not in trust domain {wanted}")]
    TrustDomain {
        /// The peer's identity.
        id: SpiffeId,
        /// The trust domain of this end.
        wanted: String,
    },
    /// No presented certificate authority has a pinned key.
    #[error("none of the presented certificate authorities has a pinned key")]
    NotPinned,
}

impl IdentityError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoCertificate => Reason::NoCertificate,
            Self::Malformed | Self::Generation => Reason::MalformedCertificate,
            Self::AuthorityAsLeaf => Reason::AuthorityAsLeaf,
            Self::KeyUsage(_) => Reason::KeyUsage,
            Self::ExtendedKeyUsage => Reason::ExtendedKeyUsage,
            Self::UriCount | Self::SpiffeId(_) => Reason::SpiffeId,
            Self::Pin(_) => Reason::MalformedPin,
            Self::Role { .. } => Reason::PeerRole,
            Self::TrustDomain { .. } => Reason::TrustDomain,
            Self::NotPinned => Reason::NotPinned,
        }
    }
}

impl From<x509_parser::error::X509Error> for IdentityError {
    fn from(_: x509_parser::error::X509Error) -> Self {
        Self::Malformed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_is_written_as_it_is_read() {
        let text = "spiffe://fleet.example/attest/spoke/c-7f3a9d0011223344";

        let id: SpiffeId = text.parse().unwrap();

        assert_eq!(id.to_string(), text);
        assert_eq!(
            (id.trust_domain(), id.role(), id.name()),
            ("fleet.example", Role::Spoke, "c-7f3a9d0011223344")
        );
    }

    #[test]
    fn an_id_outside_the_standard_is_rejected() {
        let long = format!("spiffe://fleet/attest/hub/{}", "n".repeat(NAME_BYTES_MAX + 1));
        for text in [
            "",
            "spiffe://",
            "spiffe://fleet",
            "spiffe://fleet/",
            "spiffe:///attest/hub/main",
            "https://fleet/attest/hub/main",
            "SPIFFE://fleet/attest/hub/main",
            "spiffe://Fleet/attest/hub/main",
            "spiffe://fleet:8443/attest/hub/main",
            "spiffe://user@fleet/attest/hub/main",
            "spiffe://fleet/attest/hub",
            "spiffe://fleet/attest/hub/",
            "spiffe://fleet/attest/hub/main/",
            "spiffe://fleet/attest/hub/main/x",
            "spiffe://fleet//attest/hub/main",
            "spiffe://fleet/attest/hub/..",
            "spiffe://fleet/attest/hub/.",
            "spiffe://fleet/attest/../hub/main",
            "spiffe://fleet/attest/hub/%2e%2e",
            "spiffe://fleet/attest/hub/main?x=1",
            "spiffe://fleet/attest/hub/main#x",
            "spiffe://fleet/attest/Hub/main",
            "spiffe://fleet/attest/agent/main",
            "spiffe://fleet/other/hub/main",
            "spiffe://fleet/attest/hub/m\u{430}in",
            "spiffe://fleet/attest/hub/main ",
            long.as_str(),
        ] {
            let error = text.parse::<SpiffeId>().expect_err(text);

            assert_eq!(error.reason().as_str(), "SpiffeId", "{text}");
        }
    }

    #[test]
    fn a_pin_is_lowercase_hex_of_32_bytes() {
        let text = format!("sha256:{}", "0a".repeat(32));

        assert_eq!(text.parse::<Pin>().unwrap().to_string(), text);
        for wrong in [
            "0a".repeat(32),
            format!("sha256:{}", "0A".repeat(32)),
            format!("sha256:{}", "0a".repeat(31)),
            format!("sha512:{}", "0a".repeat(32)),
        ] {
            assert_eq!(wrong.parse::<Pin>().unwrap_err().reason().as_str(), "MalformedPin");
        }
    }

    #[test]
    fn a_serial_has_one_spelling() {
        assert_eq!(Serial::from_bytes(&[0, 0, 10]), Serial::from_bytes(&[10]));
    }
}
