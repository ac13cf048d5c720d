//! The fleet's certificate authority: one key, one level, pinned by every spoke.
//!
//! It sets every field of a certificate. It does not decide who gets one (the hub's registration does)
//! and keeps no list of issued or revoked certificates.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use attest_common::basics::reason::Reason;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::bundle::{Bundle, chain_to_pem};
use crate::identity::{
    self, GENERATION_ARCS, IdentityError, OperatorRole, Pin, Role, Serial, SpiffeId,
    is_trust_domain, parse, uri,
};
use crate::request::{RequestError, RequestedKey};

/// Lifetime of an authority.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Default lifetime of a hub's certificate.
pub const HUB_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// Default lifetime of an operator's certificate.
pub const OPERATOR_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Default lifetime of a spoke's certificate.
pub const SPOKE_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// Certificates are valid from this long before they are issued, for clocks that are slow.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);

const SERIAL_BYTES: usize = 16;

/// A certificate authority with its private key.
pub struct Authority {
    trust_domain: String,
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
    pin: Pin,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Creates a new key and its self-signed certificate, valid for [`AUTHORITY_LIFETIME`].
    ///
    /// # Errors
    /// [`AuthorityError::TrustDomain`] for a name that SPIFFE does not allow; otherwise creation failed.
    pub fn create(trust_domain: &str) -> Result<Self, AuthorityError> {
        if !is_trust_domain(trust_domain) {
            return Err(AuthorityError::TrustDomain(trust_domain.to_owned()));
        }
        let now = SystemTime::now();
        let mut params = params("ATTEST fleet authority", now, now + AUTHORITY_LIFETIME);
        params.distinguished_name.push(DnType::OrganizationName, trust_domain);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri_name(&format!("spiffe://{trust_domain}"))?];
        let (serial, _) = new_serial()?;
        params.serial_number = Some(serial);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Issue)?;
        let certificate = params.self_signed(&key).map_err(AuthorityError::Issue)?;
        Self::from_parts(certificate.der().clone(), key)
    }

    /// Reads the output of [`Self::certificate_pem`] and [`Self::key_pem`].
    ///
    /// # Errors
    /// When either is malformed, or they do not match.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| AuthorityError::Malformed)?;
        let key = KeyPair::from_pem(key_pem).map_err(AuthorityError::Key)?;
        Self::from_parts(certificate, key)
    }

    fn from_parts(
        certificate: CertificateDer<'static>,
        key: KeyPair,
    ) -> Result<Self, AuthorityError> {
        let parsed = parse(&certificate)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(AuthorityError::KeyMismatch);
        }
        if !parsed.is_ca() {
            return Err(AuthorityError::Malformed);
        }
        let trust_domain = parsed
            .subject_alternative_name()
            .ok()
            .flatten()
            .and_then(|names| names.value.general_names.iter().find_map(uri))
            .and_then(|uri| uri.strip_prefix("spiffe://"))
            .filter(|domain| is_trust_domain(domain))
            .ok_or(AuthorityError::Malformed)?
            .to_owned();
        let end_s = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let pin = Pin::of_spki(parsed.public_key().raw);
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(AuthorityError::Issue)?;
        Ok(Self {
            trust_domain,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(end_s),
            pin,
            certificate,
            issuer,
        })
    }

    /// Trust domain of the fleet, part of every SPIFFE id.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's certificate, PEM.
    pub fn certificate_pem(&self) -> String {
        chain_to_pem(std::slice::from_ref(&self.certificate))
    }

    /// The authority's private key, PKCS#8 PEM. It can impersonate every member of the fleet.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// SHA-256 of the authority's public key, which spokes and operators pin.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// Issues a key and certificate for a hub. `hosts` are for clients that check names (browsers,
    /// curl); ATTEST's own clients check the SPIFFE id.
    ///
    /// # Errors
    /// When a name is not allowed in a certificate or issuance fails.
    pub fn issue_hub(
        &self,
        name: &str,
        hosts: &[Host],
        lifetime: Duration,
    ) -> Result<Issued, AuthorityError> {
        self.issue_with_new_key(Role::Hub, name, hosts, lifetime)
    }

    /// Issues a key and certificate for an operator of the hub's API.
    ///
    /// # Errors
    /// When the name is not allowed in a certificate or issuance fails.
    pub fn issue_operator(
        &self,
        role: OperatorRole,
        name: &str,
        lifetime: Duration,
    ) -> Result<Issued, AuthorityError> {
        self.issue_with_new_key(role.into(), name, &[], lifetime)
    }

    /// Issues a certificate for an operator's own key. Only the public key of the request is used.
    ///
    /// # Errors
    /// When the request does not verify, or the name is not allowed in a certificate.
    pub fn sign_operator(
        &self,
        csr_der: &[u8],
        role: OperatorRole,
        name: &str,
        lifetime: Duration,
    ) -> Result<Issued, AuthorityError> {
        let requested = RequestedKey::from_csr_der(csr_der)?;
        let subject = Subject { role: role.into(), name, generation: 0 };
        self.issue(subject, &[], lifetime, &requested.public_key)
    }

    /// Issues a certificate for a spoke's own key. Only the public key of the request is used. `generation` rises with
    /// each certificate of a cluster, see [`identity::PeerIdentity::generation`].
    ///
    /// # Errors
    /// When the request does not verify, or the cluster id is not allowed in a certificate.
    pub fn issue_spoke(
        &self,
        csr_der: &[u8],
        cluster_id: &str,
        generation: u64,
        lifetime: Duration,
    ) -> Result<Issued, AuthorityError> {
        let requested = RequestedKey::from_csr_der(csr_der)?;
        let subject = Subject { role: Role::Spoke, name: cluster_id, generation };
        self.issue(subject, &[], lifetime, &requested.public_key)
    }

    fn issue_with_new_key(
        &self,
        role: Role,
        name: &str,
        hosts: &[Host],
        lifetime: Duration,
    ) -> Result<Issued, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Issue)?;
        let subject = Subject { role, name, generation: 0 };
        let issued = self.issue(subject, hosts, lifetime, &key)?;
        Ok(Issued { key_pem: Some(Zeroizing::new(key.serialize_pem())), ..issued })
    }

    fn issue(
        &self,
        subject: Subject<'_>,
        hosts: &[Host],
        lifetime: Duration,
        public_key: &impl PublicKeyData,
    ) -> Result<Issued, AuthorityError> {
        let Subject { role, name, generation } = subject;
        let id = SpiffeId::new(&self.trust_domain, role, name)?;
        let now = SystemTime::now();
        let mut params = params(name, now, (now + lifetime).min(self.not_after));
        if generation > 0 {
            let text = generation.to_string().try_into().map_err(AuthorityError::Issue)?;
            let qualifier = DnType::CustomDnType(GENERATION_ARCS.to_vec());
            params.distinguished_name.push(qualifier, DnValue::PrintableString(text));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![uri_name(&id.to_string())?];
        for host in hosts {
            params.subject_alt_names.push(host.to_name()?);
        }
        let (serial_number, serial) = new_serial()?;
        params.serial_number = Some(serial_number);
        let leaf = params.signed_by(public_key, &self.issuer).map_err(AuthorityError::Issue)?;
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        let identity::PeerIdentity { not_after, .. } = identity::peer_identity(&chain)?;
        Ok(Issued { id, chain, key_pem: None, serial, not_after })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("pin", &self.pin.to_string())
            .finish_non_exhaustive()
    }
}

/// Subject of a certificate. A generation of 0 is not written.
#[derive(Clone, Copy)]
struct Subject<'a> {
    role: Role,
    name: &'a str,
    generation: u64,
}

/// A host name or address of a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A DNS name.
    Dns(String),
    /// An IP address.
    Ip(IpAddr),
}

impl Host {
    /// Parses an IP address, else a DNS name.
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Dns(text.to_owned()), Self::Ip)
    }

    fn to_name(&self) -> Result<SanType, AuthorityError> {
        match self {
            Self::Ip(address) => Ok(SanType::IpAddress(*address)),
            Self::Dns(name) => name
                .as_str()
                .try_into()
                .map(SanType::DnsName)
                .map_err(|_| AuthorityError::Host(name.clone())),
        }
    }
}

/// An issued certificate.
pub struct Issued {
    /// Identity that it names.
    pub id: SpiffeId,
    /// Leaf first, then the authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8 PEM of the key, when the authority made it.
    pub key_pem: Option<Zeroizing<String>>,
    /// Serial number: 128 random bits.
    pub serial: Serial,
    /// End of validity.
    pub not_after: SystemTime,
}

impl Issued {
    /// Leaf and authority, PEM.
    pub fn chain_pem(&self) -> String {
        chain_to_pem(&self.chain)
    }

    /// Chain and key, when the authority made the key.
    ///
    /// # Errors
    /// [`AuthorityError::NoKey`] for a certificate over a key that the requester holds.
    pub fn bundle(&self) -> Result<Bundle, AuthorityError> {
        let pem = self.key_pem.as_ref().ok_or(AuthorityError::NoKey)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| AuthorityError::Malformed)?;
        Ok(Bundle::new(self.chain.clone(), PrivateKeyDer::Pkcs8(key)))
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Issued")
            .field("id", &self.id.to_string())
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn params(common_name: &str, now: SystemTime, end: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(end);
    params
}

fn uri_name(uri: &str) -> Result<SanType, AuthorityError> {
    uri.try_into().map(SanType::URI).map_err(AuthorityError::Issue)
}

fn new_serial() -> Result<(SerialNumber, Serial), AuthorityError> {
    let mut bytes = [0; SERIAL_BYTES];
    getrandom::fill(&mut bytes).map_err(AuthorityError::Randomness)?;
    Ok((SerialNumber::from_slice(&bytes), Serial::from_bytes(&bytes)))
}

/// Errors of creating, reading or using an authority.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// Not a SPIFFE trust domain.
    #[error("{0:?} is not a trust domain (lowercase letters, digits, '.', '-', '_')")]
    TrustDomain(String),
    /// Not a DNS name.
    #[error("{0:?} is not a host name")]
    Host(String),
    /// The PEM is not an ATTEST authority's certificate.
    #[error("not the certificate of an ATTEST authority")]
    Malformed,
    /// The private key is malformed.
    #[error("failed to parse the authority's key")]
    Key(#[source] rcgen::Error),
    /// Key and certificate belong to different authorities.
    #[error("the authority's key does not match its certificate")]
    KeyMismatch,
    /// The requester holds the key.
    #[error("the requester of this certificate holds its key")]
    NoKey,
    /// The operating system provides no randomness.
    #[error("failed to get randomness for a serial number")]
    Randomness(#[source] getrandom::Error),
    /// The certificate cannot be created.
    #[error("failed to create the certificate")]
    Issue(#[source] rcgen::Error),
    /// The name is not allowed in an identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The request is rejected.
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl AuthorityError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::TrustDomain(_) => Reason::TrustDomain,
            Self::Host(_) => Reason::HostName,
            Self::Malformed => Reason::MalformedAuthority,
            Self::Key(_) | Self::KeyMismatch | Self::NoKey => Reason::AuthorityKey,
            Self::Randomness(_) => Reason::Randomness,
            Self::Issue(_) => Reason::IssueFailed,
            Self::Identity(error) => error.reason(),
            Self::Request(error) => error.reason(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::peer_identity;
    use crate::request::SigningRequest;

    #[test]
    fn an_authority_read_from_pem_issues_under_the_same_pin() {
        let made = Authority::create("fleet.example").unwrap();

        let read = Authority::from_pem(&made.certificate_pem(), &made.key_pem()).unwrap();
        let issued = read.issue_operator(OperatorRole::Operator, "ada", OPERATOR_LIFETIME).unwrap();

        assert_eq!(read.pin(), made.pin());
        assert_eq!(read.trust_domain(), "fleet.example");
        assert_eq!(issued.id.to_string(), "spiffe://fleet.example/attest/operator/ada");
        assert_eq!(Pin::of_certificate(&issued.chain[1]).unwrap(), made.pin());
    }

    #[test]
    fn a_key_of_another_authority_is_rejected() {
        let one = Authority::create("fleet").unwrap();
        let other = Authority::create("fleet").unwrap();

        let error = Authority::from_pem(&one.certificate_pem(), &other.key_pem()).unwrap_err();

        assert_eq!(error.reason().as_str(), "AuthorityKey");
    }

    #[test]
    fn only_the_public_key_of_a_request_is_used() {
        let authority = Authority::create("fleet").unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut request = CertificateParams::new(vec!["hub.example".to_owned()]).unwrap();
        request.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        request.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        request.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        request.subject_alt_names.push(uri_name("spiffe://fleet/attest/hub/main").unwrap());
        request.distinguished_name.push(DnType::CommonName, "hub");
        let csr = request.serialize_request(&key).unwrap();

        let lifetime = Duration::from_secs(3600);
        let issued = authority.issue_spoke(csr.der(), "c-0123456789abcdef", 7, lifetime).unwrap();

        let peer = peer_identity(&issued.chain).unwrap();
        let leaf = parse(&issued.chain[0]).unwrap();
        assert_eq!(peer.id.to_string(), "spiffe://fleet/attest/spoke/c-0123456789abcdef");
        assert_eq!(peer.spki_sha256, Pin::of_spki(&key.subject_public_key_info()));
        assert_eq!(peer.serial, issued.serial);
        assert_eq!(peer.generation, 7);
        assert!(peer.not_after <= SystemTime::now() + lifetime);
        assert!(!leaf.is_ca());
        assert_eq!(
            leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(),
            1,
            "no name but the one the authority chose"
        );
        assert!(!leaf.extended_key_usage().unwrap().unwrap().value.code_signing);
        assert_eq!(leaf.subject().to_string(), "CN=c-0123456789abcdef, dnQualifier=7");
        assert!(issued.key_pem.is_none());
    }

    #[test]
    fn a_request_with_an_invalid_self_signature_is_rejected() {
        let authority = Authority::create("fleet").unwrap();
        let mut csr = SigningRequest::generate().unwrap().csr_der;
        *csr.last_mut().unwrap() ^= 1;

        let error = authority.issue_spoke(&csr, "c-1", 1, SPOKE_LIFETIME).unwrap_err();

        assert_eq!(error.reason().as_str(), "RequestRefused");
    }

    #[test]
    fn a_request_for_another_kind_of_key_is_rejected() {
        let authority = Authority::create("fleet").unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();

        let error = authority.issue_spoke(csr.der(), "c-1", 1, SPOKE_LIFETIME).unwrap_err();

        assert_eq!(error.reason().as_str(), "RequestKey");
    }

    #[test]
    fn a_request_for_a_key_of_small_order_is_rejected() {
        let authority = Authority::create("fleet").unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut csr = SigningRequest::generate_with(&key);
        let at = csr.windows(32).position(|bytes| bytes == key.public_key_raw()).unwrap();
        csr[at..at + 32].fill(0);
        csr[at] = 1;

        let error = authority.issue_spoke(&csr, "c-1", 1, SPOKE_LIFETIME).unwrap_err();

        assert_eq!(error.reason().as_str(), "RequestKey");
    }

    #[test]
    fn malformed_and_oversized_requests_are_rejected_with_a_reason() {
        let authority = Authority::create("fleet").unwrap();
        let mut trailing = SigningRequest::generate().unwrap().csr_der;
        trailing.push(0);
        for (csr, reason) in [
            (vec![], "MalformedRequest"),
            (b"not der".to_vec(), "MalformedRequest"),
            (trailing, "MalformedRequest"),
            (vec![0; crate::request::REQUEST_BYTES_MAX + 1], "RequestTooLarge"),
        ] {
            let error = authority.issue_spoke(&csr, "c-1", 1, SPOKE_LIFETIME).unwrap_err();

            assert_eq!(error.reason().as_str(), reason);
        }
    }

    #[test]
    fn a_name_that_would_leave_its_path_segment_is_rejected() {
        let authority = Authority::create("fleet").unwrap();
        let csr = SigningRequest::generate().unwrap().csr_der;
        for name in ["", "a/b", "..", "a b", "../hub/main"] {
            let error = authority.issue_spoke(&csr, name, 1, SPOKE_LIFETIME).unwrap_err();

            assert_eq!(error.reason().as_str(), "SpiffeId", "{name}");
        }
    }

    #[test]
    fn no_certificate_outlives_its_authority() {
        let authority = Authority::create("fleet").unwrap();

        let issued = authority
            .issue_operator(OperatorRole::Operator, "ada", 2 * AUTHORITY_LIFETIME)
            .unwrap();

        assert!(issued.not_after <= authority.not_after);
    }

    impl SigningRequest {
        fn generate_with(key: &KeyPair) -> Vec<u8> {
            CertificateParams::default().serialize_request(key).unwrap().der().as_ref().to_vec()
        }
    }
}
